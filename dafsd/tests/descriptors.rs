//! A server that may have few descriptors serves as many files as it likes.

mod common;

use common::process::Daemon;
use common::{create, pattern, read_to_end, served};
use std::path::Path;

/// Runs a program that may have this many descriptors and no more.
const FEW: [&str; 5] = ["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh", "env"];
/// More files than descriptors.
const FILES: usize = 2_000;

/// Descriptors that the server has at the moment.
fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn name(number: usize) -> String {
    format!("d{}/f{number}", number / 500)
}

fn content(number: usize) -> Vec<u8> {
    pattern(200 + number % 300, number as u8)
}

fn make_directories(tree: &Path) {
    (0..=FILES / 500).for_each(|n| std::fs::create_dir(tree.join(format!("d{n}"))).unwrap());
}

#[test]
fn more_files_than_descriptors_are_written_and_read() {
    let mut daemon = Daemon::start_by(&FEW, &[]);
    make_directories(&daemon.tree());
    {
        let client = daemon.client("tcp");
        for number in 0..FILES {
            // Every third one is written and not committed before the next.
            let file = create(&client, &name(number));
            file.write_all_at(&content(number), 0).unwrap();
            if number % 3 != 0 {
                file.sync().unwrap();
            }
        }
        assert!(descriptors(&daemon) < 240, "{} descriptors", descriptors(&daemon));
    }
    // A client that keeps all of them open.
    let client = daemon.client("shm");
    let files: Vec<_> = (0..FILES).map(|number| client.open(&name(number)).unwrap()).collect();
    for (number, file) in files.iter().enumerate() {
        assert!(read_to_end(file, 4096) == content(number), "{}", name(number));
    }
    let calls = Daemon::counter(&client, "handler_calls");
    let ((), by) = served(&client, || {
        for (number, file) in files.iter().enumerate() {
            assert!(read_to_end(file, 4096) == content(number), "{}", name(number));
        }
    });
    assert_eq!((by.rpcs, by.faults), (0, 0), "{by:?}");
    assert_eq!(Daemon::counter(&client, "handler_calls"), calls);
    assert!(descriptors(&daemon) < 240, "{} descriptors", descriptors(&daemon));
    // Others can still come.
    let another = daemon.client("tcp");
    assert_eq!(read_to_end(&another.open(&name(7)).unwrap(), 4096), content(7));
    // And all of it reaches the disk.
    drop((files, client, another));
    assert_eq!(daemon.stop(), Some(0));
    for number in 0..FILES {
        assert!(std::fs::read(daemon.tree().join(name(number))).unwrap() == content(number));
    }
}

#[test]
fn files_removed_while_they_are_open_are_read_on() {
    let daemon = Daemon::start_by(&FEW, &[]);
    make_directories(&daemon.tree());
    for number in 0..FILES {
        std::fs::write(daemon.tree().join(name(number)), content(number)).unwrap();
    }
    let client = daemon.client("tcp");
    let files: Vec<_> = (0..FILES).map(|number| client.open(&name(number)).unwrap()).collect();
    let (mut removed, mut refused) = (Vec::new(), 0);
    for number in 0..FILES {
        match client.unlink(&name(number)) {
            Ok(()) => removed.push(number),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("too many files are open"), "{text}");
                assert!(text.contains(&format!("f{number}")), "{text}");
                refused += 1;
            }
        }
    }
    assert!(removed.len() > 1 && refused > 0, "{} removed, {refused} refused", removed.len());
    assert!(descriptors(&daemon) < 240, "{} descriptors", descriptors(&daemon));
    for &number in &removed {
        assert!(read_to_end(&files[number], 4096) == content(number), "{}", name(number));
    }
    // Once they are closed, others can be removed.
    drop(files);
    for number in (0..FILES).filter(|number| !removed.contains(number)) {
        client.unlink(&name(number)).unwrap();
    }
}

//! A server that may have few descriptors serves as many files as it likes.

mod common;

use common::process::Daemon;
use common::{create, pattern, read_to_end, served};
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs a program that may have this many descriptors and no more.
const FEW: [&str; 5] = ["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh", "env"];

/// More files than descriptors.
fn many() -> usize {
    let many = std::env::var("DAFS_TEST_FILES").ok();
    many.map_or(2_000, |many| many.parse().expect("a number"))
}

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
    (0..=many() / 500).for_each(|n| std::fs::create_dir(tree.join(format!("d{n}"))).unwrap());
}

#[test]
fn more_files_than_descriptors_are_written_and_read() {
    let mut daemon = Daemon::start_by(&FEW, &[]);
    make_directories(&daemon.tree());
    {
        let client = daemon.client("tcp");
        for number in 0..many() {
            // Every third one is written and not committed before the next.
            let file = create(&client, &name(number));
            file.write_all_at(&content(number), 0).unwrap();
            if number % 3 != 0 {
                file.sync().unwrap();
            }
        }
        assert!(descriptors(&daemon) < 240, "{} descriptors", descriptors(&daemon));
    }
    // Two clients that keep them open, more each than there are descriptors.
    let clients = [daemon.client("shm"), daemon.client("tcp")];
    let of = |client: usize| client * many() / 2..(client + 1) * many() / 2;
    let open = |client: usize| {
        of(client).map(|number| clients[client].open(name(number)).unwrap()).collect::<Vec<_>>()
    };
    let opened = [open(0), open(1)];
    let read = |client: usize| {
        for (number, file) in of(client).zip(&opened[client]) {
            assert!(read_to_end(file, 4096) == content(number), "{}", name(number));
        }
    };
    read(0);
    read(1);
    let calls = Daemon::counter(&clients[0], "handler_calls");
    for client in [0, 1] {
        let ((), by) = served(&clients[client], || read(client));
        assert_eq!((by.rpcs, by.faults), (0, 0), "{by:?}");
    }
    assert_eq!(Daemon::counter(&clients[0], "handler_calls"), calls);
    assert!(descriptors(&daemon) < 240, "{} descriptors", descriptors(&daemon));
    // Others can still come.
    let another = daemon.client("tcp");
    assert_eq!(read_to_end(&another.open(name(7)).unwrap(), 4096), content(7));
    // And all of it reaches the disk.
    drop((opened, clients, another));
    assert_eq!(daemon.stop(), Some(0));
    for number in 0..many() {
        assert!(std::fs::read(daemon.tree().join(name(number))).unwrap() == content(number));
    }
}

/// Descriptors of the server that lead to files without a name.
fn held_without_name(daemon: &Daemon) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    names.filter(|name| name.contains("/tree/") && name.ends_with(" (deleted)")).count()
}

#[test]
fn what_is_moved_and_then_removed_gives_its_space_back() {
    let daemon = Daemon::start(&[]);
    for directory in ["new", "cur"] {
        std::fs::create_dir(daemon.tree().join(directory)).unwrap();
    }
    let client = daemon.client("tcp");
    for number in 0..20 {
        let (new, cur) = (format!("new/{number}"), format!("cur/{number}"));
        let file = create(&client, &new);
        file.write_all_at(&content(number), 0).unwrap();
        file.sync().unwrap();
        client.rename(&new, &cur).unwrap();
        assert!(read_to_end(&client.open(&cur).unwrap(), 4096) == content(number));
        drop(file);
        client.unlink(&cur).unwrap();
    }
    // The client closes files a moment later.
    let end = Instant::now() + Duration::from_secs(10);
    while held_without_name(&daemon) > 0 {
        assert!(Instant::now() < end, "{} are held", held_without_name(&daemon));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn files_removed_while_they_are_open_are_read_on() {
    let daemon = Daemon::start_by(&FEW, &[]);
    make_directories(&daemon.tree());
    for number in 0..many() {
        std::fs::write(daemon.tree().join(name(number)), content(number)).unwrap();
    }
    let client = daemon.client("tcp");
    let files: Vec<_> = (0..many()).map(|number| client.open(name(number)).unwrap()).collect();
    let (mut removed, mut refused) = (Vec::new(), 0);
    for number in 0..many() {
        match client.unlink(name(number)) {
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
    let end = Instant::now() + Duration::from_secs(10);
    for number in (0..many()).filter(|number| !removed.contains(number)) {
        // The client closes files a moment later.
        while let Err(error) = client.unlink(name(number)) {
            assert!(Instant::now() < end, "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

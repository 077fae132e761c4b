//! A small file system that is full, beside one that is not, with the server as a process.

mod common;

use common::process::Daemon;
use common::{create, pattern};
use dafs_client::Status;
use dafs_client::blocking::Client;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A file system in memory, mounted until it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let small = Self(tempfile::tempdir().unwrap());
        let options = format!("size={size}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(small.path()));
        small
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// Writes so much without asking for it to be stable, and then asks.
fn put(client: &Client, name: &str, bytes: usize) -> Result<(), Status> {
    let status = |error: dafs_client::Error| error.status().expect("the server's word");
    let file = create(client, name);
    let content = pattern(MIB, 1);
    for at in 0..bytes / MIB {
        file.write_all_at(&content, (at * MIB) as u64).map_err(status)?;
    }
    file.sync().map_err(status)
}

#[test]
#[ignore = "mounts a small file system, as root"]
fn a_full_export_is_nobody_elses_trouble() {
    let small = Small::mount("24m");
    let log = tempfile::NamedTempFile::new().unwrap();
    let logged = format!("exec \"$@\" 2>{}", log.path().display());
    let full = format!("full={}", small.path().display());
    let flags = ["--export", &full, "--memory", "64MiB"];
    let mut daemon = Daemon::start_by(&["sh", "-c", &logged, "sh"], &flags);
    let engines = ["tcp", "shm"];
    for engine in engines {
        let others: Vec<Client> = (0..3).map(|_| daemon.client_of(engine, "full")).collect();
        let good = daemon.client(engine);
        std::thread::scope(|scope| {
            let writers: Vec<_> = others
                .iter()
                .enumerate()
                .map(|(number, client)| {
                    let name = format!("{engine} {number}");
                    scope.spawn(move || put(client, &name, 64 * MIB))
                })
                .collect();
            put(&good, "good", 128 * MIB).unwrap();
            for writer in writers {
                assert_eq!(writer.join().unwrap(), Err(Status::NoSpace), "{engine}");
            }
        });
        let began = Instant::now();
        let refused = put(&others[0], "one more", MIB);
        // Without waiting for anything; this is far more than it takes.
        assert!(began.elapsed() < Duration::from_secs(10), "{engine}");
        assert_eq!(refused, Err(Status::NoSpace), "{engine}");
        // Room is made, on the server itself.
        for number in 0..3 {
            std::fs::write(small.path().join(format!("{engine} {number}")), b"").unwrap();
        }
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(status) = put(&others[1], "after", MIB) {
            assert_eq!(status, Status::NoSpace);
            assert!(Instant::now() < end, "{engine}: room that was made is not noticed");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(std::fs::read(small.path().join("after")).unwrap() == pattern(MIB, 1));
    }
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(text.len() < 100_000, "{} bytes of log", text.len());
    fence_and_stop(&mut daemon);
}

/// Neither waits for the disk that is full.
fn fence_and_stop(daemon: &mut Daemon) {
    let client = daemon.client_of("tcp", "full");
    assert_eq!(put(&client, "until it is full", 64 * MIB), Err(Status::NoSpace));
    let began = Instant::now();
    let mut fence = Command::new(env!("CARGO_BIN_EXE_dafsd"));
    run(fence
        .arg("--state-dir")
        .arg(daemon.directory.path().join("state"))
        .args(["fence", "test"]));
    assert!(began.elapsed() < Duration::from_secs(10), "the fence");
    let began = Instant::now();
    // Everything that was acknowledged has found its place.
    assert_eq!(daemon.stop(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "the end");
}

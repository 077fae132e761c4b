//! Files that change while they are copied.

use crate::harness::{Server, wait};
use dafs_client::DirEntry;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Long enough that a copy is not over before the file changes.
const SIZE: u64 = 96 << 20;

/// Waits until a part of a copy is at the server.
fn wait_for_part(server: &Server) {
    let client = server.client();
    let is_begun = |entry: &DirEntry| {
        let is_part = entry.name.as_os_str().as_encoded_bytes().starts_with(b".dafs-");
        is_part && entry.attr.is_some_and(|attr| attr.size > 0)
    };
    while !client.read_dir("/").unwrap().iter().any(is_begun) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Does something again and again while a command runs; its exit code and what it says.
fn meanwhile(mut command: std::process::Command, change: impl Fn(u64) + Sync) -> (i32, String) {
    let error = tempfile::NamedTempFile::new().unwrap();
    let mut child = command.stderr(error.reopen().unwrap()).spawn().unwrap();
    let over = AtomicBool::new(false);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                change(round);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let code = wait(&mut child);
        over.store(true, Ordering::Relaxed);
        code
    });
    (code, std::fs::read_to_string(error.path()).unwrap())
}

#[test]
fn what_shrinks_during_a_put_is_put_again() {
    let server = Server::start();
    let local = server.local("local");
    std::fs::write(&local, vec![7; SIZE as usize]).unwrap();
    let mut put = server.command([OsStr::new("put"), local.as_ref(), OsStr::new("/x")]);
    let mut put = put.stderr(Stdio::null()).spawn().unwrap();
    wait_for_part(&server);
    let file = std::fs::File::options().write(true).open(&local).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[8; 1 << 20], 0).unwrap();
    assert_eq!(wait(&mut put), 0);
    assert!(std::fs::read(server.export.join("x")).unwrap() == vec![8; 1 << 20]);
}

#[test]
fn what_goes_on_changing_is_not_put() {
    let server = Server::start();
    let local = server.local("local");
    std::fs::write(&local, vec![7; SIZE as usize]).unwrap();
    let file = std::fs::File::options().write(true).open(&local).unwrap();
    let put = server.command([OsStr::new("put"), local.as_ref(), OsStr::new("/x")]);
    let (code, error) = meanwhile(put, |round| file.set_len(SIZE - round % 2 * 4096).unwrap());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("it changed while it was copied; copy it again"), "{error}");
    assert_eq!(server.export.read_dir().unwrap().count(), 0);
}

#[test]
fn what_changes_during_a_get_is_got_again_or_not_at_all() {
    let server = Server::start();
    let client = server.client();
    server.file("x", vec![7; SIZE as usize]);
    let options = dafs_client::OpenOptions::new().read(true).write(true);
    let file = client.open_with("/x", options).unwrap();
    let to = server.local("to");
    let get = || server.command([OsStr::new("get"), OsStr::new("/x"), to.as_ref()]);
    let (code, error) = meanwhile(get(), |round| {
        file.write_all_at(&[round as u8], SIZE - 1).unwrap();
    });
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("it changed while it was copied; copy it again"), "{error}");
    assert!(!to.exists());
    let (code, error) = meanwhile(get(), |round| {
        if round == 20 {
            file.set_len(1 << 20).unwrap();
        }
    });
    assert_eq!(code, 0, "{error}");
    // Whenever that was: the copy is the file of one time.
    let copy = std::fs::read(&to).unwrap();
    assert!(copy.len() == 1 << 20 || copy.len() as u64 == SIZE, "{}", copy.len());
    let last = copy.len().min(SIZE as usize - 1);
    assert!(copy[..last].iter().all(|byte| *byte == 7));
}

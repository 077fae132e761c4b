//! Copies that end before their time, and those from and to what is no file.

use crate::harness::{Server, wait};
use std::ffi::OsStr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn an_interrupted_get_leaves_nothing() {
    let server = Server::start();
    std::fs::File::create(server.export.join("big")).unwrap().set_len(16 << 30).unwrap();
    let to = server.local("to");
    std::fs::create_dir(&to).unwrap();
    let mut get = server.command([OsStr::new("get"), OsStr::new("/big"), to.as_ref()]);
    let mut get = get.stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert!(get.try_wait().unwrap().is_none());
    get.kill().unwrap();
    get.wait().unwrap();
    assert_eq!(to.read_dir().unwrap().count(), 0);
}

#[test]
fn a_lost_server_ends_a_copy_soon() {
    let mut server = Server::start();
    let there = server.local("there");
    std::fs::create_dir(&there).unwrap();
    for n in 0..2000 {
        std::fs::write(there.join(n.to_string()), vec![1; 20_000]).unwrap();
    }
    let put = ["--timeout", "1", "put", "-r"].map(OsStr::new).into_iter();
    let mut put = server.command(put.chain([there.as_os_str(), OsStr::new("/copy")]));
    let output = server.local("error");
    let mut child = put.stderr(std::fs::File::create(&output).unwrap()).spawn().unwrap();
    while server.export.join("copy").read_dir().map_or(0, Iterator::count) < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.kill();
    assert_eq!(wait(&mut child), 1);
    let error = std::fs::read_to_string(output).unwrap();
    assert!(error.contains("check that dafsd runs"), "{error}");
    assert!(error.lines().last().unwrap().contains("files were not tried"), "{error}");
    assert!(error.lines().count() < 12, "{error}");
}

#[test]
fn what_is_no_file_takes_a_copy_as_it_comes() {
    let server = Server::start();
    server.file("a", "content");
    server.ok(["get", "/a", "/dev/null"]);
    assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
    let fifo = server.local("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let mut put = server.command([OsStr::new("put"), fifo.as_ref(), OsStr::new("/b")]);
    let mut put = put.stderr(Stdio::null()).spawn().unwrap();
    std::fs::write(&fifo, "through a pipe").unwrap();
    assert_eq!(wait(&mut put), 0);
    assert_eq!(server.ok(["cat", "/b"]), "through a pipe");
    let error =
        server.fails(1, [OsStr::new("put"), OsStr::new("-r"), fifo.as_ref(), OsStr::new("/c")]);
    assert!(error.contains("it is neither file nor directory nor symbolic link"), "{error}");
}

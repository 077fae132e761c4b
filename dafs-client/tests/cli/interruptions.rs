//! Copies that end before their time, and those from and to what is no file.

use crate::harness::{Server, status, wait};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

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

/// Makes a fifo outside the export.
fn fifo(server: &Server) -> std::path::PathBuf {
    let fifo = server.local("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    fifo
}

/// A command as another program runs it.
fn within(program: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program[0]);
    outer.args(&program[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdin(Stdio::null());
    outer
}

#[test]
fn an_interrupted_put_leaves_nothing() {
    let server = Server::start();
    let fifo = fifo(&server);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // A pipe that does not end: the copy goes on until the signal. What runs the tests may be
        // in the background of a shell, and then ignores INT.
        let put = server.command([OsStr::new("put"), fifo.as_ref(), OsStr::new("/x")]);
        let mut put = within(&["env", "--default-signal=INT,TERM,HUP"], &put);
        let error = server.local("error");
        let mut put = put.stderr(std::fs::File::create(&error).unwrap()).spawn().unwrap();
        let mut pipe = std::fs::File::options().write(true).open(&fifo).unwrap();
        pipe.write_all(&[7; 100_000]).unwrap();
        while server.export.read_dir().unwrap().count() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let list = server.ok(["ls", "-a"]);
        assert!(list.starts_with(".dafs-") && list.ends_with(".part\n"), "{list}");
        Server::signal(&put, signal);
        assert_eq!(status(&mut put).signal(), Some(signal.as_raw()));
        assert_eq!(server.export.read_dir().unwrap().count(), 0, "{signal:?}");
        assert_eq!(std::fs::read_to_string(&error).unwrap(), "");
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let server = Server::start();
    let fifo = fifo(&server);
    let put = server.command([OsStr::new("put"), fifo.as_ref(), OsStr::new("/x")]);
    let ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"];
    let mut put = within(&ignoring, &put).spawn().unwrap();
    let mut pipe = std::fs::File::options().write(true).open(&fifo).unwrap();
    pipe.write_all(b"all of").unwrap();
    while server.export.read_dir().unwrap().count() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    Server::signal(&put, Signal::HUP);
    pipe.write_all(b" it").unwrap();
    drop(pipe);
    assert_eq!(wait(&mut put), 0);
    assert_eq!(server.ok(["cat", "/x"]), "all of it");
}

#[test]
fn a_later_put_removes_what_the_dead_have_left() {
    let server = Server::start();
    std::fs::create_dir(server.export.join("d")).unwrap();
    let old = SystemTime::now() - Duration::from_secs(2 * 86400);
    let times = std::fs::FileTimes::new().set_accessed(old).set_modified(old);
    let part = ".dafs-1-0-0123abcd.part";
    for (name, times) in [
        (part, times),
        ("d/.dafs-1-1-0123abcd.part", times),
        // Somebody may be at work on this one, whose content is old.
        (".dafs-1-2-0123abcd.part", std::fs::FileTimes::new().set_modified(old)),
        (".other", times),
    ] {
        server.file(name, "half");
        let file = std::fs::File::options().write(true).open(server.export.join(name)).unwrap();
        file.set_times(times).unwrap();
    }
    assert!(server.ok(["ls", "-a"]).contains(part));
    server.ok(["put", "/dev/null", "/x"]);
    assert_eq!(server.ok(["ls", "-a"]), ".dafs-1-2-0123abcd.part\n.other\nd\nx\n");
    assert!(server.ok(["ls", "-a", "/d"]).contains(".dafs-"));
    let local = server.local("local");
    std::fs::create_dir_all(local.join("new")).unwrap();
    server.ok([OsStr::new("put"), OsStr::new("-rT"), local.as_ref(), OsStr::new("/d")]);
    assert_eq!(server.ok(["ls", "-a", "/d"]), "new\n");
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
    let fifo = fifo(&server);
    let mut put = server.command([OsStr::new("put"), fifo.as_ref(), OsStr::new("/b")]);
    let mut put = put.stderr(Stdio::null()).spawn().unwrap();
    std::fs::write(&fifo, "through a pipe").unwrap();
    assert_eq!(wait(&mut put), 0);
    assert_eq!(server.ok(["cat", "/b"]), "through a pipe");
    let error =
        server.fails(1, [OsStr::new("put"), OsStr::new("-r"), fifo.as_ref(), OsStr::new("/c")]);
    assert!(error.contains("it is neither file nor directory nor symbolic link"), "{error}");
}

/// `get` to a name that leads to an open descriptor or to no regular file writes into that.
#[test]
fn get_writes_into_what_is_open_or_no_file() {
    let server = Server::start();
    server.file("a", "content");
    let (first, second) = (server.local("link to 1"), server.local("another"));
    std::os::unix::fs::symlink("/proc/self/fd/1", &first).unwrap();
    std::os::unix::fs::symlink(&first, &second).unwrap();
    let through = |to: &OsStr| ["get".into(), "/a".into(), to.to_os_string()];
    for to in [first.as_os_str(), second.as_os_str(), OsStr::new("/dev/fd/1")] {
        // A file behind it: `>> log`.
        let log = server.local("output");
        std::fs::write(&log, "before ").unwrap();
        let inode = log.metadata().unwrap().ino();
        let file = std::fs::File::options().append(true).open(&log).unwrap();
        let mut get = server.command(through(to));
        assert_eq!(wait(&mut get.stdout(file).spawn().unwrap()), 0);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "before content");
        assert_eq!(log.metadata().unwrap().ino(), inode);
        // A pipe.
        let mut get = server.command(through(to));
        let mut get = get.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = String::new();
        get.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert_eq!((wait(&mut get), output.as_str()), (0, "content"));
    }
    assert!(first.is_symlink() && second.is_symlink());

    let fifo = fifo(&server);
    let mut get = server.command(through(fifo.as_os_str())).spawn().unwrap();
    assert_eq!(std::fs::read_to_string(&fifo).unwrap(), "content");
    assert_eq!(wait(&mut get), 0);
    // In a tree it is in the way: what has the name of a file of the server is not written to.
    let to = server.local("to");
    std::fs::create_dir(&to).unwrap();
    std::fs::rename(&fifo, to.join("a")).unwrap();
    let get = ["get", "-rT", "/"].map(OsStr::new);
    let error = server.fails(1, get.into_iter().chain([to.as_os_str()]));
    assert!(error.contains("what has the name is neither file nor link"), "{error}");
    assert!(to.join("a").symlink_metadata().unwrap().file_type().is_fifo());
}

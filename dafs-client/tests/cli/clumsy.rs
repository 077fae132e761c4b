//! What hands do that are in a hurry.

use crate::harness::{Server, wait};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

#[test]
fn two_operands_never_share_a_copy() {
    let server = Server::start();
    for directory in ["x", "y"] {
        std::fs::create_dir_all(server.local(directory)).unwrap();
        std::fs::write(server.local(directory).join("a"), directory).unwrap();
    }
    let (x, y) = (server.local("x/a"), server.local("y/a"));
    server.ok(["mkdir", "/d"]);
    let error = server.fails(1, [OsStr::new("put"), x.as_ref(), y.as_ref(), OsStr::new("/d")]);
    assert!(
        error.contains("y/a: something else on the command line gets the same name"),
        "{error}"
    );
    assert_eq!(server.ok(["cat", "/d/a"]), "x");
    let to = server.local("to");
    std::fs::create_dir(&to).unwrap();
    server.ok([OsStr::new("put"), OsStr::new("-r"), server.local("y").as_ref(), OsStr::new("/")]);
    let get = ["get", "/d/a", "/y/a"].map(OsStr::new);
    let error = server.fails(1, get.into_iter().chain([to.as_os_str()]));
    assert!(error.contains("/y/a: something else on the command line"), "{error}");
    assert_eq!(std::fs::read_to_string(to.join("a")).unwrap(), "x");
    server.ok(["mkdir", "/e"]);
    let error = server.fails(1, ["mv", "/d/a", "/y/a", "/e"]);
    assert!(error.contains("/y/a: something else on the command line"), "{error}");
    assert_eq!(server.ok(["cat", "/e/a", "/y/a"]), "xy");
}

#[test]
fn a_directory_does_not_go_into_itself() {
    let server = Server::start();
    server.ok(["mkdir", "-p", "/d/e"]);
    for to in ["/d/e", "/d/e/new", "/d/new"] {
        let error = server.fails(1, ["mv", "/d", to]);
        assert!(error.contains("cannot be moved to somewhere in itself"), "{error}");
    }
    assert_eq!(server.ok(["ls", "-R"]), "/:\nd\n\n/d:\ne\n\n/d/e:\n");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let server = Server::start();
    server.file("a", "content");
    let error = server.fails(1, ["get", "/a", "/dev/full"]);
    assert!(
        error.contains("cannot write /dev/full: no space left on device; make room"),
        "{error}"
    );
    for args in [&["cat", "/a"][..], &["ls"], &["stat", "/a"], &["df"], &["counters"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = server.command(args);
        let mut child = command.stdout(full).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(wait(&mut child), 1, "{args:?}");
    }
}

#[test]
fn two_puts_at_once_leave_one_whole_copy() {
    let server = Server::start();
    let local: Vec<_> = (0..4_u8)
        .map(|n| {
            let path = server.local(&format!("local{n}"));
            std::fs::write(&path, vec![n; 3_000_000]).unwrap();
            path
        })
        .collect();
    let mut puts: Vec<_> = local
        .iter()
        .map(|from| {
            let put = [OsStr::new("put"), from.as_ref(), OsStr::new("/same")];
            server.command(put).spawn().unwrap()
        })
        .collect();
    for put in &mut puts {
        assert_eq!(wait(put), 0);
    }
    let copy = std::fs::read(server.export.join("same")).unwrap();
    assert!(copy.len() == 3_000_000 && copy.iter().all(|byte| *byte == copy[0]));
    assert_eq!(server.ok(["ls", "-a"]), "same\n");
    // Trees, into one directory.
    let tree = server.local("tree");
    std::fs::create_dir_all(tree.join("d")).unwrap();
    for n in 0..50 {
        std::fs::write(tree.join(format!("d/{n}")), n.to_string()).unwrap();
    }
    let put = [OsStr::new("put"), OsStr::new("-rT"), tree.as_ref(), OsStr::new("/t")];
    let mut puts: Vec<_> = (0..3).map(|_| server.command(put).spawn().unwrap()).collect();
    for put in &mut puts {
        assert_eq!(wait(put), 0);
    }
    assert_eq!(server.ok(["ls", "-a", "/t/d"]).lines().count(), 50);
    assert_eq!(server.ok(["cat", "/t/d/49"]), "49");
}

/// Each line of a list is a name, and each message is one line, whatever names there are.
#[test]
fn odd_names_go_everywhere() {
    let server = Server::start();
    let tree = server.local("tree");
    let odd =
        [&b"new\nline"[..], b"\xff\xfe", b" ", b"-rf", b"\x1b[2J", b"~", b"*", b"a\\b", b"..."];
    for name in odd {
        let directory = tree.join(OsStr::from_bytes(name));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(OsStr::from_bytes(name)), name).unwrap();
        std::os::unix::fs::symlink(OsStr::from_bytes(name), directory.join("link")).unwrap();
    }
    let back = server.local("back");
    server.ok([OsStr::new("put"), OsStr::new("-r"), tree.as_ref(), OsStr::new("/t")]);
    server.ok([OsStr::new("get"), OsStr::new("-r"), OsStr::new("/t"), back.as_ref()]);
    for name in odd {
        let name = OsStr::from_bytes(name);
        assert_eq!(std::fs::read(back.join(name).join("link")).unwrap(), name.as_bytes());
        let path = std::path::Path::new("/t").join(name);
        let error = server.fails(1, [OsStr::new("rm"), path.as_ref()]);
        assert_eq!(error.lines().count(), 1, "{error:?}");
        assert!(!error.trim_end().contains(|c: char| c.is_control()), "{error:?}");
        server.ok([OsStr::new("rm"), OsStr::new("-r"), path.as_ref()]);
    }
    assert_eq!(server.ok(["ls", "-a", "/t"]), "");
}

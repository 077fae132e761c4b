//! Names are bytes.

use crate::harness::{Server, run};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn names_may_be_any_bytes() {
    let server = Server::start();
    let names: [&[u8]; 8] = [
        b"with space",
        b"new\nline",
        b"\xff\xfe not text",
        b"-dash",
        b"--help",
        b"100%25?a=b#c",
        b"\"quote'\\",
        "gr\u{fc}n".as_bytes(),
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        let local = server.local("local");
        std::fs::write(&local, name.as_bytes()).unwrap();
        let path = Path::new("/").join(name);
        server.ok([OsStr::new("put"), local.as_os_str(), path.as_os_str()]);
        assert_eq!(std::fs::read(server.export.join(name)).unwrap(), name.as_bytes());
        // As it is, behind the end of the flags.
        let cat = server.dafs([OsStr::new("cat"), OsStr::new("--"), name]);
        assert_eq!((cat.code, &cat.output[..]), (0, name.as_bytes()), "{}", cat.error);
        // Within a URL, percent-encoded.
        let escaped: String = name.as_bytes().iter().map(|byte| format!("%{byte:02X}")).collect();
        let cat = server.dafs(["cat", &format!("{}/{escaped}?{}", server.url(), server.query)]);
        assert_eq!((cat.code, &cat.output[..]), (0, name.as_bytes()), "{}", cat.error);
        // And as ls gives it.
        let list = server.dafs(["ls"]);
        assert_eq!(list.output, [name.as_bytes(), b"\n"].concat());
        server.ok([OsStr::new("mv"), path.as_os_str(), OsStr::new("/moved")]);
        server.ok([OsStr::new("mv"), OsStr::new("/moved"), path.as_os_str()]);
        server.ok([OsStr::new("rm"), OsStr::new("--"), name]);
        assert_eq!(server.export.read_dir().unwrap().count(), 0);
    }
    // Messages hold nothing that could confuse a terminal.
    let error = server.fails(1, [OsStr::new("cat"), OsStr::from_bytes(b"/no\n\x1b\xff")]);
    assert!(error.contains("/no%0A%1B%FF") && error.lines().count() == 1, "{error:?}");
}

/// With a directory as the default, a name that is empty by mistake must not mean that directory.
#[test]
fn nothing_is_taken_away_by_a_name_that_is_none() {
    let server = Server::start();
    std::fs::create_dir_all(server.export.join("home/alice/d")).unwrap();
    server.file("home/alice/f", "x");
    let default = format!("{}/home/alice?{}", server.url(), server.query);
    let refused = |code: i32, args: &[&str]| {
        let run = run(server.command(args).env("DAFS_URL", &default));
        assert_eq!(run.code, code, "{args:?}: {}", run.error);
        assert!(run.error.starts_with("dafs: cannot "), "{args:?}: {}", run.error);
        assert_eq!(run.error.lines().count(), 1, "{args:?}: {}", run.error);
        assert_eq!(
            server.ok(["ls", "-R", "/home"]),
            "/home:\nalice\n\n/home/alice:\nd\nf\n\n/home/alice/d:\n"
        );
    };
    for name in [".", "./", "..", "d/.", "d/..", "/", "/home/alice/.", "/home/alice/./"] {
        refused(1, &["rm", "-r", name]);
        refused(1, &["rm", "-rf", name]);
        refused(1, &["mv", name, "new"]);
        refused(1, &["mv", "-T", "d", name]);
    }
    for args in [
        &["rm", "-r", ""][..],
        &["rm", "-rf", ""],
        &["mv", "", "new"],
        &["mv", "d", ""],
        &["ls", ""],
        &["cat", ""],
        &["mkdir", ""],
        &["put", "/dev/null", ""],
        &["ln", "f", ""],
    ] {
        refused(2, args);
    }
    // Without a name, and with one, they do what they are for.
    let run = run(server.command(["ls"]).env("DAFS_URL", &default));
    assert_eq!(run.text(), "d\nf\n");
    server.ok(["rm", "-r", "/home/alice/"]);
    assert_eq!(server.ok(["ls", "/home"]), "");
}

#[test]
fn a_slash_at_the_end_means_a_directory() {
    let server = Server::start();
    server.file("f", "x");
    std::fs::create_dir(server.export.join("d")).unwrap();
    server.file("d/in", "in");
    symlink("d", server.export.join("to d")).unwrap();
    symlink("f", server.export.join("to f")).unwrap();
    let (local, into) = (server.local("local"), server.local("into"));
    std::fs::write(&local, "local").unwrap();
    std::fs::create_dir(&into).unwrap();
    let (local, into) = (local.to_str().unwrap(), into.to_str().unwrap());
    let new = format!("{into}/new/");
    for args in [
        &["cat", "/f/"][..],
        &["cat", "/to f/"],
        &["stat", "/f/"],
        &["ls", "/f/"],
        &["rm", "/f/"],
        &["rm", "-r", "/to d/"],
        &["mv", "/f", "/new/"],
        &["mv", "/f/", "/new"],
        &["ln", "/f", "/new/"],
        &["ln", "/f/", "/new"],
        &["ln", "-s", "f", "/new/"],
        &["put", local, "/new/"],
        &["put", local, "/f/"],
        &["get", "/f", &new],
        &["get", "/f/", into],
    ] {
        let error = server.fails(1, args);
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        assert_eq!(server.ok(["ls", "-R"]), "/:\nd\nf\nto d\nto f\n\n/d:\nin\n", "{args:?}");
        assert_eq!(Path::new(into).read_dir().unwrap().count(), 0, "{args:?}");
    }
    // Where there is a directory, or one is to be made, it changes nothing.
    assert_eq!(server.ok(["ls", "/d/"]), "in\n");
    assert_eq!(server.ok(["ls", "-R", "/to d/"]), "/to d/:\nin\n");
    server.ok(["put", local, "/d/"]);
    assert_eq!(server.ok(["cat", "/to d/local"]), "local");
    server.ok(["mkdir", "/e/"]);
    server.ok(["mv", "/e/", "/e2/"]);
    server.ok(["mv", "/f", "/e2/"]);
    server.ok(["get", "-r", "/e2/", &new]);
    server.ok(["put", "-r", into, "/e3/"]);
    assert_eq!(server.ok(["cat", "/e3/new/f"]), "x");
    server.ok(["rm", "-r", "/e2/"]);
}

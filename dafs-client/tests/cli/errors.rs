//! What goes wrong is told: what was tried, why it failed, what to do.

use crate::harness::{Server, Setup, run};
use std::ffi::OsStr;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// `dafs: cannot VERB WHAT: WHY; WHAT TO DO`, and nothing else.
#[track_caller]
fn check(error: &str, verb: &str, why: &str, advice: &str) {
    assert!(error.starts_with(&format!("dafs: cannot {verb} ")), "{error}");
    assert!(error.contains(&format!(": {why}")), "{error}");
    assert!(error.contains(&format!("; {advice}")), "{error}");
    assert!(!error.contains("os error"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn what_is_not_there_or_of_another_kind() {
    let server = Server::start();
    server.file("f", "x");
    std::fs::create_dir(server.export.join("d")).unwrap();
    let missing = "no such file or directory";
    check(&server.fails(1, ["ls", "/no"]), "list", missing, "see what is there");
    check(&server.fails(1, ["cat", "/no"]), "read", missing, "see what is there");
    check(&server.fails(1, ["stat", "/no"]), "stat", missing, "see what is there");
    check(&server.fails(1, ["cat", "/d"]), "read", "is a directory", "name a file");
    check(&server.fails(1, ["cat", "/f/x"]), "read", "not a directory", "see what is there");
    check(&server.fails(1, ["get", "/d", "x"]), "copy", "it is a directory", "add -r");
    check(&server.fails(1, ["put", "/no/such", "/x"]), "copy", missing, "check the path");
    check(&server.fails(1, ["put", "/", "/x"]), "copy", "it is a directory", "add -r");
    let no_parent = "its directory is not there";
    check(
        &server.fails(1, ["put", "/dev/null", "/no/x"]),
        "write",
        no_parent,
        "make the directory",
    );
    check(&server.fails(1, ["get", "/f", "/no/such"]), "write", missing, "check the path");
    check(&server.fails(1, ["stat", "--path", "/d"]), "read", "it is a directory", "name a file");
    let long = "n".repeat(300);
    check(&server.fails(1, ["mkdir", &long]), "make directory", "the name is too long", "choose");
}

#[test]
fn a_server_that_may_not() {
    let server = Server::start_with(Setup { powerless: true, ..Setup::default() });
    server.file("secret", "x");
    let mode = PermissionsExt::from_mode(0o0);
    std::fs::set_permissions(server.export.join("secret"), mode).unwrap();
    let denied = "the caller's credential does not permit it";
    check(&server.fails(1, ["cat", "/secret"]), "read", denied, "see its owner and mode");
}

#[test]
fn a_read_only_export() {
    let server = Server::start_with(Setup { read_only: true, ..Setup::default() });
    server.file("a", "x");
    assert_eq!(server.ok(["cat", "/a"]), "x");
    let why = "the export or its file system is read-only";
    check(&server.fails(1, ["put", "/dev/null", "/x"]), "write", why, "export it writable");
    check(&server.fails(1, ["rm", "/a"]), "remove", why, "export it writable");
    check(&server.fails(1, ["mkdir", "/d"]), "make directory", why, "export it writable");
}

#[test]
fn a_server_that_is_not_there() {
    let server = Server::start();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let url = format!("dafs://{closed}/data?protection=none");
    let begun = Instant::now();
    let error = server.fails(1, ["ls", &url]);
    check(&error, "connect to", "connection refused", "check that dafsd runs");
    assert!(begun.elapsed() < Duration::from_secs(5));

    // One that takes connections and never says anything.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("dafs://{}/data?protection=none", mute.local_addr().unwrap());
    let begun = Instant::now();
    let error = server.fails(1, ["--timeout", "1", "ls", &url]);
    assert!(error.starts_with("dafs: cannot connect to "), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));

    let error = server.fails(1, ["ls", "dafs://host.invalid/data?protection=none"]);
    assert!(error.starts_with("dafs: cannot connect to dafs://host.invalid:20490/data"), "{error}");
}

/// `--timeout` is the time that an answer may take, also where that is longer than usual.
#[test]
fn a_server_that_is_slow_is_waited_for_as_long_as_was_said() {
    let server = Server::start();
    server.file("a", "x");
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.address("tcp").to_owned();
    let url = format!("dafs://{}/data/a?engine=tcp&{}", slow.local_addr().unwrap(), server.query);
    std::thread::spawn(move || {
        for (number, client) in slow.incoming().enumerate() {
            let client = client.unwrap();
            // Longer than one attempt takes by default.
            let pause = Duration::from_millis(if number == 0 { 5500 } else { 0 });
            let to = to.clone();
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                let server = TcpStream::connect(to).unwrap();
                let (mut from, mut into) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut into));
                _ = std::io::copy(&mut &server, &mut &client);
            });
        }
    });
    assert_eq!(server.ok(["--timeout", "25", "cat", &url]), "x");
}

#[test]
fn an_export_that_is_not_there() {
    let server = Server::start();
    let url = format!("dafs://{}/other?{}", server.address("tcp"), server.query);
    let error = server.fails(1, ["ls", &url]);
    check(&error, "connect to", "the server has no such export", "check the name after the host");
}

#[test]
fn less_than_sealed_is_never_assumed() {
    let server = Server::unprotected();
    let (asked, plain) = (format!("{}?protection=sealed", server.url()), server.url());
    for args in [vec!["ls", &asked], vec!["ls", &plain], vec!["--protection", "keyed", "ls"]] {
        let error = server.fails(1, args);
        check(&error, "connect to", "there is no identity", "then try again");
        assert!(error.contains("`dafs keygen`"), "{error}");
    }
    server.fails(2, ["--protection", "paper", "ls"]);
    server.fails(2, ["--server-key", "short", "ls"]);
}

#[test]
fn arguments_that_cannot_be() {
    let server = Server::start();
    for (argument, why) in [
        ("dafs://h", "names no export"),
        ("dafs://h:99999/d", "is no port"),
        ("dafs://h/d?speed=high", "\"speed=high\" is not understood"),
        ("dafs://h/d/%zz", "a % must be followed by two hexadecimal digits"),
    ] {
        let error = server.fails(2, ["ls", argument]);
        assert!(error.starts_with("dafs: ") && error.contains(why), "{error}");
    }
    let mut bare = server.command([OsStr::new("cat"), OsStr::new("/a")]);
    let bare = run(bare.env_remove("DAFS_URL"));
    assert_eq!(bare.code, 2);
    assert!(bare.error.contains("it names no server; write dafs://"), "{}", bare.error);
}

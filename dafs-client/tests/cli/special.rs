//! What is more than a file with bytes in it: holes, further names, bits, fifos, and one server under
//! two names.

use crate::harness::{Server, Setup, run};
use std::ffi::OsStr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Bytes on disk.
fn used(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn holes_stay_holes() {
    const SIZE: u64 = 256 << 20;
    let server = Server::start();
    let (local, back) = (server.local("local"), server.local("back"));
    let file = std::fs::File::create(&local).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&[7; 4096], SIZE / 2).unwrap();
    assert!(used(&local) < 1 << 20, "the file system of the test has no holes");
    let put = |flag: &str, to: &str| {
        let put = [OsStr::new("put"), OsStr::new(flag), local.as_os_str(), OsStr::new(to)];
        server.ok(put);
    };
    put("--verify", "/x");
    let there = server.export.join("x");
    assert_eq!(there.metadata().unwrap().len(), SIZE);
    assert!(used(&there) < 1 << 20, "{}", used(&there));
    let mut byte = [0];
    std::fs::File::open(&there).unwrap().read_exact_at(&mut byte, SIZE / 2).unwrap();
    assert_eq!(byte, [7]);
    let get = |flag: &str, from: &str| {
        let get = [OsStr::new("get"), OsStr::new(flag), OsStr::new(from), back.as_os_str()];
        server.ok(get);
    };
    get("--verify", "/x");
    assert_eq!(back.metadata().unwrap().len(), SIZE);
    assert!(used(&back) < 1 << 20, "{}", used(&back));

    // As they are asked for. Of a file without holes they are not made.
    file.set_len(8 << 20).unwrap();
    put("--sparse=never", "/full");
    assert!(used(&server.export.join("full")) >= 8 << 20);
    get("--sparse=auto", "/full");
    assert!(used(&back) >= 8 << 20);
    get("--sparse=always", "/full");
    assert_eq!((back.metadata().unwrap().len(), used(&back)), (8 << 20, 0));
    std::fs::write(&local, vec![0; 8 << 20]).unwrap();
    put("--sparse=auto", "/zeros");
    assert!(used(&server.export.join("zeros")) >= 8 << 20);
    put("--sparse=always", "/zeros");
    assert_eq!(used(&server.export.join("zeros")), 0);
    assert_eq!(server.ok(["cat", "/zeros"]).len(), 8 << 20);
}

#[test]
fn further_names_and_setgid_are_kept_or_told() {
    let server = Server::start();
    let (local, back) = (server.local("local"), server.local("back"));
    std::fs::create_dir_all(local.join("d")).unwrap();
    std::fs::write(local.join("a"), "content").unwrap();
    std::fs::hard_link(local.join("a"), local.join("d/b")).unwrap();
    std::fs::hard_link(local.join("a"), local.join("d/c")).unwrap();
    std::fs::set_permissions(local.join("d"), PermissionsExt::from_mode(0o2750)).unwrap();
    let nlink = |path: &Path| path.metadata().unwrap().nlink();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    let told = "dafs: 2 further names of one file became files of their own; -a keeps such things\n\
                dafs: 1 directories lost their setgid bit; -a keeps such things\n";
    let put = |flag: &str, to: &str| {
        let put = [OsStr::new("put"), OsStr::new(flag), local.as_os_str(), OsStr::new(to)];
        run(&mut server.command(put))
    };
    let get = |flag: &str, from: &str| {
        let get = [OsStr::new("get"), OsStr::new(flag), OsStr::new(from), back.as_os_str()];
        run(&mut server.command(get))
    };
    let result = put("-r", "/plain");
    assert_eq!((result.code, result.error.as_str()), (0, told));
    assert_eq!(nlink(&server.export.join("plain/a")), 1);
    assert_eq!(mode(&server.export.join("plain/d")), 0o750);
    for _ in 0..2 {
        // The second time over what the first has left.
        let result = put("-aT", "/kept");
        assert_eq!((result.code, result.error.as_str()), (0, ""));
        let kept = server.export.join("kept");
        assert_eq!((nlink(&kept.join("a")), nlink(&kept.join("d/c"))), (3, 3));
        assert_eq!(mode(&kept.join("d")), 0o2750);
        assert_eq!(server.ok(["ls", "-aR", "/kept"]), "/kept:\na\nd\n\n/kept/d:\nb\nc\n");
    }
    let result = get("-rT", "/kept");
    assert_eq!((result.code, result.error.as_str()), (0, told));
    assert_eq!(nlink(&back.join("a")), 1);
    std::fs::remove_dir_all(&back).unwrap();
    for _ in 0..2 {
        let result = get("-aT", "/kept");
        assert_eq!((result.code, result.error.as_str()), (0, ""));
        assert_eq!((nlink(&back.join("a")), nlink(&back.join("d/b"))), (3, 3));
        assert_eq!(mode(&back.join("d")), 0o2750);
        assert_eq!(std::fs::read_dir(back.join("d")).unwrap().count(), 2);
    }
}

#[test]
fn a_copy_into_itself_is_refused() {
    let server = Server::start();
    std::fs::create_dir_all(server.export.join("n2/below")).unwrap();
    server.file("n2/f", "x");
    std::os::unix::fs::symlink("n2/below", server.export.join("link")).unwrap();
    let local = server.export.join("n2");
    let list = server.ok(["ls", "-aR"]);
    let check = |args: [&OsStr; 4], left: &str| {
        let error = server.fails(1, args);
        assert!(error.contains("the copy would be inside of what is copied"), "{error}");
        assert_eq!(server.ok(["ls", "-aR"]), left);
    };
    let put = |to| [OsStr::new("put"), OsStr::new("-r"), local.as_os_str(), OsStr::new(to)];
    for to in ["/n2/self", "/n2", "/n2/below", "/n2/below/self"] {
        check(put(to), &list);
    }
    let to = local.join("self");
    check(["get".as_ref(), "-r".as_ref(), "/n2".as_ref(), to.as_ref()], &list);
    check(["get".as_ref(), "-rT".as_ref(), "/".as_ref(), to.as_ref()], &list);
    // Where links hide it, it is found on the way.
    let error = server.fails(1, put("/link/self"));
    assert!(error.contains("the copy would be inside of what is copied"), "{error}");
    // Beside it there is room.
    std::fs::remove_dir_all(local.join("below")).unwrap();
    server.ok(put("/n3"));
    assert_eq!(server.ok(["cat", "/n3/f"]), "x");
}

#[test]
fn what_has_no_bytes_says_what_it_is() {
    let server = Server::start();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = server.export.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(server.export.join("socket")).unwrap();
    for kind in ["fifo", "socket"] {
        let error = server.fails(1, ["cat", kind]);
        let says = format!("/{kind}: it is a {kind}, which only works on the server's host");
        assert!(error.contains(&says), "{error}");
        let error = server.fails(1, ["get", kind, "x"]);
        assert!(error.contains(&format!("/{kind}: it is a {kind}; only files")), "{error}");
    }
}

#[test]
fn one_server_under_two_names_is_one_server() {
    let server = Server::start();
    server.file("a", "content");
    let other = server.url().replace("127.0.0.1", "localhost");
    let at = |name: &str| format!("{other}/{name}?{}", server.query);
    server.ok(["mv", &at("a"), "/b"]);
    server.ok(["ln", "/b", &at("c")]);
    assert_eq!(server.ok(["ls"]), "b\nc\n");
    assert_eq!(server.export.join("b").metadata().unwrap().nlink(), 2);
    // Another one, which offers an export of the same name, is none the less another.
    let second = Server::start();
    let error = server.fails(1, ["mv", "/b", &format!("{}/x?{}", second.url(), second.query)]);
    assert!(error.starts_with("dafs: cannot "), "{error}");
    assert_eq!(server.ok(["ls"]), "b\nc\n");
}

/// A place where another file system is mounted, in a directory that every Linux has some in.
#[test]
fn a_mount_point_is_shown_and_named_when_it_is_skipped() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mount =
        mounts.find_map(|path| path.strip_prefix("/dev/").filter(|name| !name.contains('/')));
    let mount = mount.expect("a file system that is mounted in /dev");
    let export = Some("/dev");
    let server = Server::start_with(Setup { export, read_only: true, ..Setup::default() });
    let path = format!("/{mount}");
    let list = server.ok(["ls", "-l"]);
    let line = list.lines().find(|line| line.ends_with(&format!(" {mount}")));
    assert!(line.expect("the mount point").starts_with("m---------"), "{list}");
    assert_eq!(server.ok(["ls", "-a", &path]), "");
    assert_eq!(server.ok(["ls", "-a", &format!("{path}/")]), "");
    let text = server.ok(["stat", &path]);
    assert!(text.contains("    type mount point\n"), "{text}");
    let why = "another file system is mounted there, which is no part of the export";
    let back = server.local("back");
    let get = [OsStr::new("get"), OsStr::new("-r"), OsStr::new("/"), back.as_os_str()];
    let error = server.fails(1, get);
    let line = error.lines().find(|line| line.contains(&format!("{path}: ")));
    let advice = "export it by itself to copy what is in it";
    assert!(line.expect("the mount point").ends_with(&format!("{why}; {advice}")), "{error}");
    let get = [OsStr::new("get"), OsStr::new("-r"), path.as_ref(), back.as_os_str()];
    assert!(server.fails(1, get).contains(why));
    for args in [["cat", &path], ["cat", &format!("{path}/x")], ["ls", &format!("{path}/x")]] {
        let error = server.fails(1, args);
        assert!(error.contains(why) && error.contains("export that file system"), "{error}");
    }
}

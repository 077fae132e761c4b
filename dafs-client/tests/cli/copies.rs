//! `get` and `put`.

use crate::harness::{Server, Setup, run};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is compared of each thing in a tree: type and mode, time of change, and content.
type Tree = BTreeMap<PathBuf, (u32, Option<SystemTime>, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            waiting.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if kind.is_symlink() {
            path.read_link().unwrap().as_os_str().as_bytes().to_vec()
        } else {
            std::fs::read(&path).unwrap()
        };
        // The time of a link is not kept by put.
        let time = (!kind.is_symlink()).then(|| metadata.modified().unwrap());
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        tree.insert(name, (metadata.mode(), time, content));
    }
    tree
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A tree of all that is copied.
fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("d/empty")).unwrap();
    for n in 0..40_u32 {
        let content: Vec<u8> = (0..n * n * 100).map(|at| (at * 7 + n) as u8).collect();
        std::fs::write(root.join(format!("d/file{n}")), content).unwrap();
    }
    std::fs::write(root.join(OsStr::from_bytes(b"odd\n\xff name")), "odd").unwrap();
    std::fs::write(root.join("-r"), "").unwrap();
    std::fs::write(root.join("program"), "#!/bin/sh\n").unwrap();
    set_mode(&root.join("program"), 0o755);
    symlink("d/file3", root.join("link")).unwrap();
    symlink("/nowhere at all", root.join("dangling")).unwrap();
    symlink("d", root.join("link to directory")).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["program", "d/empty", "d"] {
        std::fs::File::open(root.join(name)).unwrap().set_modified(old).unwrap();
    }
    set_mode(&root.join("d/file9"), 0o400);
    set_mode(&root.join("d/empty"), 0o711);
}

#[test]
fn trees_come_back_as_they_went() {
    let server = Server::start();
    let (there, back) = (server.local("there"), server.local("back"));
    make_tree(&there);
    for engine in ["tcp", "shm"] {
        let engine = ["--engine", engine];
        let put = [OsStr::new("put"), OsStr::new("-r"), there.as_os_str(), OsStr::new("/copy")];
        server.ok(engine.map(OsStr::new).into_iter().chain(put));
        assert_eq!(tree(&server.export.join("copy")), tree(&there));
        let get = ["get", "-r", "--verify", "/copy"].map(OsStr::new);
        server.ok(engine.map(OsStr::new).into_iter().chain(get).chain([back.as_os_str()]));
        assert_eq!(tree(&back), tree(&there));
        server.ok(["rm", "-r", "/copy"]);
        std::fs::remove_dir_all(&back).unwrap();
    }
}

#[test]
fn copies_go_into_directories_and_replace() {
    let server = Server::start();
    let local = server.local("local");
    std::fs::create_dir(&local).unwrap();
    std::fs::write(local.join("a"), "new").unwrap();
    std::fs::write(local.join("b"), "b").unwrap();
    std::fs::create_dir(server.export.join("d")).unwrap();
    server.file("d/a", "a much longer old content");
    let (a, b) = (local.join("a"), local.join("b"));
    server.ok([
        OsStr::new("put"),
        OsStr::new("--verify"),
        a.as_ref(),
        b.as_ref(),
        OsStr::new("/d"),
    ]);
    assert_eq!(server.ok(["cat", "/d/a", "/d/b"]), "newb");
    // A second copy of a tree goes into the first, unless -T says otherwise.
    let put = |flags: &str| {
        server.ok([OsStr::new("put"), OsStr::new(flags), local.as_ref(), OsStr::new("/d")])
    };
    put("-r");
    assert_eq!(server.ok(["cat", "/d/local/a"]), "new");
    std::fs::write(&a, "newer").unwrap();
    put("-rT");
    assert_eq!(server.ok(["cat", "/d/a", "/d/local/a"]), "newernew");

    let into = server.local("into");
    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("a"), "old").unwrap();
    server.ok([OsStr::new("get"), OsStr::new("/d/a"), OsStr::new("/d/b"), into.as_os_str()]);
    assert_eq!(std::fs::read_to_string(into.join("a")).unwrap(), "newer");
    server.ok([OsStr::new("get"), OsStr::new("-rT"), OsStr::new("/"), into.as_os_str()]);
    assert_eq!(std::fs::read_to_string(into.join("d/local/a")).unwrap(), "new");
    // A link that the user names is followed to the file that is to be replaced.
    symlink("a", into.join("to a")).unwrap();
    server.ok([OsStr::new("get"), OsStr::new("/d/b"), into.join("to a").as_os_str()]);
    assert_eq!(std::fs::read_to_string(into.join("a")).unwrap(), "b");
    assert!(into.join("to a").is_symlink());
}

#[test]
fn a_copy_goes_on_after_failures_and_lists_them() {
    let server = Server::start_with(Setup { powerless: true, ..Setup::default() });
    server.ok(["mkdir", "/t"]);
    for name in ["a", "secret", "z"] {
        server.file(&format!("t/{name}"), name);
    }
    // Not even for its owner.
    set_mode(&server.export.join("t/secret"), 0o0);
    let back = server.local("back");
    let get = ["get", "-r", "/t"].map(OsStr::new);
    let error = server.fails(1, get.into_iter().chain([back.as_os_str()]));
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].contains("/t/secret: the caller's credential does not permit it"), "{error}");
    assert_eq!(lines[1], "dafs: 1 could not be copied, 2 files were");
    assert_eq!(std::fs::read_to_string(back.join("z")).unwrap(), "z");
    assert!(!back.join("secret").exists());

    // What is in the way of a put.
    let there = server.local("there");
    std::fs::create_dir_all(there.join("sub")).unwrap();
    std::fs::write(there.join("sub/x"), "x").unwrap();
    std::fs::write(there.join("y"), "y").unwrap();
    server.ok(["mkdir", "-p", "/u/y"]);
    let put = [OsStr::new("put"), OsStr::new("-rT"), there.as_os_str(), OsStr::new("/u")];
    let error = server.fails(1, put);
    assert!(error.contains("/u/y: is a directory"), "{error}");
    assert_eq!(server.ok(["ls", "-aR", "/u"]), "/u:\nsub\ny\n\n/u/sub:\nx\n\n/u/y:\n");
}

#[test]
fn links_of_the_server_lead_nowhere_else() {
    let server = Server::start();
    let (to, outside) = (server.local("to"), server.local("outside"));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir_all(server.export.join("t/d")).unwrap();
    server.file("t/d/f", "evil");
    // What an earlier copy, or another listing of the same names, could have left.
    symlink(&outside, to.join("d")).unwrap();
    let get = ["get", "-rT", "/t"].map(OsStr::new);
    let error = server.fails(1, get.into_iter().chain([to.as_os_str()]));
    assert!(error.contains("cannot make directory"), "{error}");
    assert_eq!(outside.read_dir().unwrap().count(), 0);
}

#[test]
fn verbose_tells_what_was_copied() {
    let server = Server::start();
    server.file("a", "12345");
    let to = server.local("to");
    let copy = run(&mut server.command([
        OsStr::new("get"),
        OsStr::new("-v"),
        OsStr::new("/a"),
        to.as_ref(),
    ]));
    assert_eq!(copy.code, 0);
    let expected = "dafs: copied 1 files, 0 directories, 0 symbolic links: 5 B in ";
    assert!(copy.error.starts_with(expected), "{}", copy.error);
}

/// Runs the command with this umask.
#[track_caller]
fn ok_with_umask(server: &Server, umask: &str, args: &[&OsStr]) {
    let command = server.command(args);
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(format!("umask {umask}; exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let run = run(&mut shell);
    assert_eq!((run.code, run.error.as_str()), (0, ""), "{}", run.text());
}

#[test]
fn what_the_umask_forbids_is_not_given() {
    let server = Server::start();
    std::fs::create_dir(server.export.join("d")).unwrap();
    server.file("d/f", "content");
    set_mode(&server.export.join("d/f"), 0o777);
    set_mode(&server.export.join("d"), 0o777);
    for (flag, umask, mode) in [("-r", "027", 0o750), ("-r", "077", 0o700), ("-a", "077", 0o777)] {
        let to = server.local(&format!("to {flag} {umask}"));
        ok_with_umask(&server, umask, &["get".as_ref(), flag.as_ref(), "/d".as_ref(), to.as_ref()]);
        for path in [to.clone(), to.join("f")] {
            let found = path.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{flag} {umask} {}", path.display());
        }
    }
}

//! Deep and broad trees: what they cost is counted in requests.

use crate::harness::Server;
use std::ffi::OsStr;

const DEPTH: u64 = 200;
const BREADTH: u64 = 3000;

/// What a command costs the server, beyond connecting.
fn cost<A: AsRef<OsStr>>(server: &Server, args: impl IntoIterator<Item = A>) -> (u64, String) {
    let before = server.requests();
    let output = server.ok(args);
    (server.requests() - before, output)
}

#[test]
fn a_step_costs_the_same_however_deep_it_is() {
    let server = Server::start();
    let (there, back) = (server.local("there"), server.local("back"));
    let deep = "d/".repeat(DEPTH as usize);
    std::fs::create_dir_all(there.join(&deep)).unwrap();
    std::fs::write(there.join(&deep).join("f"), "at the bottom").unwrap();

    let put = [OsStr::new("put"), OsStr::new("-r"), there.as_os_str(), OsStr::new("/t")];
    // Made, and given its attributes in the end.
    let (requests, _) = cost(&server, put);
    assert!(requests <= 2 * DEPTH + 30, "{requests}");
    let bottom = std::fs::read_to_string(server.export.join("t").join(&deep).join("f"));
    assert_eq!(bottom.unwrap(), "at the bottom");
    let (requests, list) = cost(&server, ["ls", "-R", "/t"]);
    assert!(requests <= DEPTH + 20, "{requests}");
    assert_eq!(list.lines().filter(|line| line.ends_with("/d:")).count() as u64, DEPTH);
    assert!(list.ends_with("/d/d:\nf\n"));
    let get = [OsStr::new("get"), OsStr::new("-r"), OsStr::new("/t"), back.as_os_str()];
    let (requests, _) = cost(&server, get);
    assert!(requests <= DEPTH + 30, "{requests}");
    let bottom = std::fs::read_to_string(back.join(&deep).join("f"));
    assert_eq!(bottom.unwrap(), "at the bottom");
    // Listed, and removed.
    let (requests, _) = cost(&server, ["rm", "-r", "/t"]);
    assert!(requests <= 2 * DEPTH + 20, "{requests}");
    assert_eq!(server.export.read_dir().unwrap().count(), 0);
}

/// Its path is longer than a kernel takes at once, and than the server can ask for.
#[test]
fn a_tree_may_be_deeper_than_a_path_is_long() {
    use rustix::fs::{Mode, OFlags};
    const NAME: &str = "a name of thirty bytes or more";
    let server = Server::start();
    let open = |at: &std::fs::File| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        std::fs::File::from(rustix::fs::openat(at, NAME, flags, Mode::empty()).unwrap())
    };
    let mut at = std::fs::File::open(&server.export).unwrap();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&at, NAME, Mode::RWXU).unwrap();
        at = open(&at);
    }
    let (requests, list) = cost(&server, ["ls", "-R", "/"]);
    assert!(requests <= 3 * DEPTH + 20, "{requests}");
    assert_eq!(list.lines().filter(|line| line.ends_with(':')).count() as u64, DEPTH + 1);
    server.ok(["rm", "-r", NAME]);
    assert_eq!(server.export.read_dir().unwrap().count(), 0);
}

#[test]
fn a_broad_directory_takes_a_request_for_each_file() {
    let server = Server::start();
    std::fs::create_dir_all(server.export.join("a/b/c")).unwrap();
    for n in 0..BREADTH {
        server.file(&format!("a/b/c/{n}"), "");
    }
    for n in 0..20 {
        std::os::unix::fs::symlink("0", server.export.join(format!("a/b/c/l{n}"))).unwrap();
    }
    // Some entries come with each reply.
    let (requests, list) = cost(&server, ["ls", "-l", "/a/b/c"]);
    assert!(requests <= BREADTH / 50 + 20 + 20, "{requests}");
    assert_eq!(list.lines().filter(|line| line.ends_with(" -> 0")).count(), 20);
    let (requests, _) = cost(&server, ["rm", "-r", "/a/b/c"]);
    assert!(requests <= BREADTH + 20 + BREADTH / 50 + 20, "{requests}");
    assert_eq!(server.ok(["ls", "/a/b"]), "");
}

#[test]
fn many_directories_side_by_side_take_three_requests_each() {
    const MANY: u64 = 300;
    let server = Server::start();
    for n in 0..MANY {
        let directory = server.export.join(format!("t/{n}"));
        std::fs::create_dir_all(directory.join("below")).unwrap();
        std::fs::write(directory.join("f"), "").unwrap();
        std::fs::write(directory.join("below/f"), "").unwrap();
    }
    // A list, a file and the directory itself, for each of both.
    let (requests, _) = cost(&server, ["rm", "-r", "/t"]);
    assert!(requests <= 6 * MANY + 30, "{requests}");
    assert_eq!(server.export.read_dir().unwrap().count(), 0);
}

#[test]
fn one_thing_that_cannot_be_removed_does_not_keep_the_others() {
    let server =
        Server::start_with(crate::harness::Setup { powerless: true, ..Default::default() });
    server.ok(["mkdir", "-p", "/t/a/b", "/t/locked/x", "/t/z"]);
    for name in ["t/f", "t/a/b/f", "t/locked/f", "t/z/f"] {
        server.file(name, "");
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o500);
    std::fs::set_permissions(server.export.join("t/locked"), mode).unwrap();
    let error = server.fails(1, ["rm", "-r", "/t"]);
    for name in ["locked/f", "locked/x", "locked", "t"] {
        assert!(error.contains(&format!("/{name}: ")), "{name}: {error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
    assert_eq!(server.ok(["ls", "-R", "/t"]), "/t:\nlocked\n\n/t/locked:\nf\nx\n\n/t/locked/x:\n");
}

//! Single files and directories.

use crate::harness::{Server, wait};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

#[test]
fn ls_sorts_and_hides_and_goes_down() {
    let server = Server::start();
    for name in ["b", "a", ".hidden"] {
        server.file(name, "12345");
    }
    std::fs::create_dir_all(server.export.join("d/e")).unwrap();
    symlink("a", server.export.join("s")).unwrap();
    assert_eq!(server.ok(["ls"]), "a\nb\nd\ns\n");
    assert_eq!(server.ok(["ls", "-a", "/"]), ".hidden\na\nb\nd\ns\n");
    assert_eq!(server.ok(["ls", "-R", "/d"]), "/d:\ne\n\n/d/e:\n");
    assert_eq!(server.ok(["ls", "a", "-d", "d"]), "/a\n/d\n");
    std::fs::set_permissions(server.export.join("a"), PermissionsExt::from_mode(0o640)).unwrap();
    let long = server.ok(["ls", "-l"]);
    let lines: Vec<&str> = long.lines().collect();
    assert!(lines[0].starts_with("-rw-r-----") && lines[0].ends_with(" a"), "{long}");
    assert!(lines[2].starts_with("drwx"), "{long}");
    assert!(lines[3].starts_with("lrwx") && lines[3].ends_with(" s -> a"), "{long}");
    let json = server.ok(["ls", "--json"]);
    assert!(json.contains(r#"{"name":"a","encoded":"a","directory":"/","type":"regular file""#));
    assert!(json.contains(r#""size":5"#), "{json}");
    // With a URL in place of the default server.
    let url = format!("{}/d", server.url());
    let key = server.query.strip_prefix("server_key=").unwrap();
    assert_eq!(server.ok(["--server-key", key, "ls", &url]), "e\n");
    assert_eq!(server.ok(["ls", &format!("{url}?{}&engine=tcp", server.query)]), "e\n");
}

#[test]
fn cat_writes_bytes_as_they_are() {
    let server = Server::start();
    let big: Vec<u8> =
        (0..9_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    server.file("big", &big);
    server.file("empty", "");
    server.file("small", "\0\u{1}x");
    let run = server.dafs(["cat", "/big", "/empty", "/small"]);
    assert_eq!((run.code, run.error.as_str()), (0, ""));
    assert!(run.output == [&big[..], b"\0\x01x"].concat());
    // What can be read comes, whatever else is wrong.
    let run = server.dafs(["cat", "/missing", "/small"]);
    assert_eq!((run.code, &run.output[..]), (1, &b"\0\x01x"[..]));
    assert!(run.error.contains("/missing: no such file"), "{}", run.error);
}

#[test]
fn a_closed_pipe_ends_cat_and_ls_quietly() {
    let server = Server::start();
    server.file("big", vec![7; 32 << 20]);
    for args in [["cat", "/big"], ["ls", "-l"]] {
        let mut command = server.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut few = [0; 10];
        stdout.read_exact(&mut few).unwrap();
        drop(stdout);
        assert_eq!(wait(&mut child), 0);
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(error, "");
    }
}

#[test]
fn mkdir_makes_modes_and_parents() {
    let server = Server::start();
    server.ok(["mkdir", "-m", "2750", "/a"]);
    let mode = |name: &str| server.export.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode("a"), 0o2750);
    server.ok(["mkdir", "-p", "-m", "711", "/b/c/d"]);
    server.ok(["mkdir", "-p", "/b/c/d"]);
    assert_eq!(mode("b/c/d"), 0o711);
    let error = server.fails(1, ["mkdir", "/a"]);
    assert!(error.starts_with("dafs: cannot make directory dafs://") && error.contains("taken"));
    assert!(server.fails(1, ["mkdir", "/x/y"]).contains("no such file or directory"));
    server.file("f", "");
    assert!(server.fails(1, ["mkdir", "-p", "/f/g"]).contains("cannot make directory"));
    server.fails(2, ["mkdir", "-m", "9", "/z"]);
}

#[test]
fn mv_renames_moves_and_replaces() {
    let server = Server::start();
    server.file("a", "a");
    server.file("b", "b");
    std::fs::create_dir(server.export.join("d")).unwrap();
    server.ok(["mv", "/a", "/b"]);
    assert_eq!(server.ok(["cat", "/b"]), "a");
    server.file("c", "c");
    server.ok(["mv", "/b", "/c", "/d"]);
    assert_eq!(server.ok(["ls", "-R"]), "/:\nd\n\n/d:\nb\nc\n");
    server.ok(["mv", "-T", "/d", "/e"]);
    assert!(server.fails(1, ["mv", "/e/b", "/e/c", "/nowhere"]).contains("hold several"));
    assert!(server.fails(1, ["mv", "/gone", "/x"]).contains("no such file or directory"));
    let other = format!("dafs://{}/other/x", server.address("tcp"));
    let error = server.fails(1, ["mv", &format!("{other}?{}", server.query), "/x"]);
    assert!(error.contains("is in another export") && error.contains("dafs get"), "{error}");
}

#[test]
fn ln_links() {
    let server = Server::start();
    server.file("a", "content");
    server.ok(["ln", "/a", "/hard"]);
    server.ok(["ln", "-s", "a", "/soft"]);
    server.ok(["ln", "-s", "../nowhere/%20", "/dangling"]);
    assert_eq!(server.export.join("a").metadata().unwrap().nlink(), 2);
    assert_eq!(server.ok(["cat", "/soft"]), "content");
    let dangling = server.export.join("dangling").read_link().unwrap();
    assert_eq!(dangling, Path::new("../nowhere/%20"));
    assert!(server.fails(1, ["cat", "/dangling"]).contains("no such file or directory"));
    assert!(server.fails(1, ["ln", "-s", "b", "/soft"]).contains("the name is taken"));
    server.ok(["mkdir", "/d"]);
    let error = server.fails(1, ["ln", "/d", "/d2"]);
    assert!(error.contains("a directory has one name alone; make a symbolic link"), "{error}");
    assert!(server.fails(2, ["ln", "-s", "", "/s"]).contains("must contain something"));
}

#[test]
fn rm_removes_what_it_is_told_to() {
    let server = Server::start();
    std::fs::create_dir_all(server.export.join("d/e/f")).unwrap();
    server.file("d/e/file", "x");
    server.file("keep", "x");
    symlink("../keep", server.export.join("d/link")).unwrap();
    symlink(&server.dir, server.export.join("d/out")).unwrap();
    let error = server.fails(1, ["rm", "/d"]);
    assert!(error.contains("it is a directory; add -r"), "{error}");
    server.ok(["rm", "-r", "/d"]);
    assert_eq!(server.ok(["ls"]), "keep\n");
    assert!(server.dir.path().exists());
    let error = server.fails(1, ["rm", "/gone", "/keep"]);
    assert!(error.contains("/gone: no such file or directory"), "{error}");
    assert_eq!(server.ok(["ls"]), "");
    server.ok(["rm", "-f", "/gone"]);
    let error = server.fails(1, ["rm", "-rf", "/"]);
    assert!(error.contains("no name in a directory"), "{error}");
}

#[test]
fn stat_df_and_counters_tell() {
    let server = Server::start();
    server.file("a", "12345");
    symlink("a", server.export.join("s")).unwrap();
    let text = server.ok(["stat", "/a", "/s"]);
    assert!(
        text.contains("size 5 bytes (5 B)") && text.contains("type symbolic link to a"),
        "{text}"
    );
    let json = server.ok(["stat", "--json", "/a"]);
    assert!(json.contains(r#""type":"regular file""#) && json.contains(r#""size":5"#), "{json}");
    assert!(server.ok(["df"]).contains(&server.url()));
    let json = server.ok(["df", "--json", "/"]);
    assert!(json.contains(r#""available":"#) && json.contains(r#""name_max":255"#), "{json}");
    let counters = server.ok(["counters"]);
    assert!(counters.lines().any(|line| line.starts_with("handler_calls ")), "{counters}");
    assert!(server.ok(["counters", "--json"]).starts_with(r#"{"handler_calls":"#));
}

#[test]
fn the_help_of_every_subcommand_is_there() {
    let server = Server::start();
    let all = "ls stat cat get put rm mkdir mv ln df counters doctor";
    for command in all.split(' ') {
        assert!(server.ok([command, "--help"]).contains("Usage: dafs"), "{command}");
    }
    server.fails(2, ["nonsense"]);
    server.fails(2, [OsString::from("cat")]);
}

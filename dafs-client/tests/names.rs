//! Operations on names.

mod common;

use common::{Node, ROOT, Server};
use dafs_client::blocking::Client;
use dafs_client::{Error, FileType, Op, OpenOptions, Status};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn directory() -> Node {
    Node { directory: Some(BTreeMap::new()), ..Node::default() }
}

fn link(target: &str) -> Node {
    Node { target: Some(target.into()), ..Node::default() }
}

fn file(data: &str) -> Node {
    Node { data: data.into(), stable: data.into(), ..Node::default() }
}

/// `/dir/sub/file`, `/other`, and links to them.
fn tree() -> (Server, Client) {
    let server = Server::new();
    let dir = server.add(ROOT, "dir", directory());
    let sub = server.add(dir, "sub", directory());
    server.add(sub, "file", file("hello"));
    server.add(sub, "up", link("../../other"));
    server.add(ROOT, "other", file("other"));
    server.add(ROOT, "short", link("dir/sub"));
    server.add(ROOT, "absolute", link("/dir/sub/file"));
    server.add(ROOT, "chain", link("short/../../absolute"));
    server.add(ROOT, "loop", link("loop"));
    server.add(ROOT, "nowhere", link("dir/new"));
    let client = server.client();
    (server, client)
}

fn read(client: &Client, path: &str) -> String {
    let file = client.open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut buf = [0; 100];
    let count = file.read_at(&mut buf, 0).unwrap();
    String::from_utf8(buf[..count].to_vec()).unwrap()
}

#[test]
fn paths_lead_through_dots_and_links() {
    let (_server, client) = tree();
    for path in [
        "dir/sub/file",
        "/dir/./sub//file",
        "../dir/sub/../sub/file",
        "short/file",
        "absolute",
        "chain",
        "short/../sub/file",
    ] {
        assert_eq!(read(&client, path), "hello", "{path}");
    }
    assert_eq!(read(&client, "short/up"), "other");
    assert_eq!(read(&client, "dir/sub/up"), "other");
    assert_eq!(client.metadata("short").unwrap().r#type(), FileType::Directory);
    assert_eq!(client.symlink_metadata("short").unwrap().r#type(), FileType::Symlink);
    assert_eq!(client.read_link("absolute").unwrap(), Path::new("/dir/sub/file"));
}

#[test]
fn links_that_lead_in_a_circle_are_refused() {
    let (_server, client) = tree();
    for error in [
        client.metadata("loop").unwrap_err(),
        client.metadata("loop/x").unwrap_err(),
        client.open("loop").unwrap_err(),
    ] {
        assert_eq!(error.errno(), 40, "{error}");
    }
}

#[test]
fn creating_through_a_link_creates_its_target() {
    let (_server, client) = tree();
    let new = OpenOptions::new().write(true);
    assert_eq!(client.open_with("nowhere", new).unwrap_err().errno(), 2);
    client.open_with("nowhere", new.create(true)).unwrap().write_at(b"made", 0).unwrap();
    assert_eq!(read(&client, "dir/new"), "made");
    let exclusive = client.open_with("absolute", new.create_new(true)).unwrap_err();
    assert_eq!(exclusive.status(), Some(Status::Exists));
}

#[test]
fn a_directory_is_listed_whole_although_it_comes_in_parts() {
    let server = Server::new();
    for i in 0..20 {
        server.add_file(&format!("file{i:02}"), b"x");
    }
    let client = server.client();
    let names: Vec<PathBuf> = client.read_dir("/").unwrap().into_iter().map(|e| e.name).collect();
    let expected: Vec<PathBuf> = (0..20).map(|i| format!("file{i:02}").into()).collect();
    assert_eq!(names, expected);
    assert!(client.read_dir("file00").is_err());
}

#[test]
fn names_are_made_and_removed() {
    let (_server, client) = tree();
    client.mkdir("dir/d", 0o700).unwrap();
    assert_eq!(client.mkdir("dir/d", 0o700).unwrap_err().errno(), 17);
    client.unlink("dir/sub/file").unwrap();
    let error = client.open("absolute").unwrap_err();
    assert_eq!(error.errno(), 2);
    assert!(error.to_string().contains("\"absolute\""), "names what was asked for: {error}");
    for path in ["", "/", ".", "dir/.", "..", "dir/.."] {
        assert!(matches!(client.unlink(path), Err(Error::InvalidArgument(_))), "{path}");
        assert!(matches!(client.rmdir(path), Err(Error::InvalidArgument(_))), "{path}");
        assert!(matches!(client.rename(path, "x"), Err(Error::InvalidArgument(_))), "{path}");
    }
    assert_eq!(client.open("/").unwrap_err().errno(), 21);
    assert_eq!(client.server_stats().unwrap()[0].0, "one_sided");
}

#[test]
fn a_slash_at_the_end_takes_a_directory() {
    let (_server, client) = tree();
    let errno = |result: dafs_client::Result<()>| result.unwrap_err().errno();
    for path in ["dir/sub/file/", "dir/sub/file/."] {
        assert_eq!(client.metadata(path).unwrap_err().errno(), 20, "{path}");
        assert_eq!(client.symlink_metadata(path).unwrap_err().errno(), 20, "{path}");
    }
    assert_eq!(client.open("dir/sub/file/").unwrap_err().errno(), 20);
    assert_eq!(errno(client.unlink("dir/sub/file/")), 20);
    assert_eq!(errno(client.unlink("dir/sub/")), 21);
    let create = OpenOptions::new().write(true).create(true);
    assert_eq!(client.open_with("new/", create).unwrap_err().errno(), 2);
    assert_eq!(errno(client.rename("dir/sub/file", "new/")), 20);
    assert_eq!(errno(client.rename("dir/sub/file/", "new")), 20);
    client.mkdir("new/", 0o700).unwrap();
    assert_eq!(client.metadata("new/.").unwrap().r#type(), FileType::Directory);
}

#[test]
fn a_directory_is_held_by_its_handle() {
    let (server, client) = tree();
    let held = client.directory("dir/sub").unwrap();
    server.take_log();
    assert_eq!(held.entries().unwrap().len(), 2);
    let file = held.open("file", OpenOptions::new().read(true)).unwrap();
    let (below, _) = held.mkdir("below", 0o700).unwrap();
    assert!(below.entries().unwrap().is_empty());
    let up = held.entry("up").unwrap();
    let links = held.read_links(&[&up]);
    assert_eq!(links[0].as_ref().unwrap(), Path::new("../../other"));
    let results = held.unlink_all(&["up", "missing"]);
    assert!(results[0].is_ok() && results[1].as_ref().unwrap_err().errno() == 2);
    // Nobody has walked.
    assert_eq!(server.take_log().iter().filter(|op| **op == Op::Lookup).count(), 1);
    drop(file);
    for name in ["", ".", "..", "a/b", "file/"] {
        assert!(matches!(held.unlink(name), Err(Error::InvalidArgument(_))), "{name}");
    }
    assert_eq!(client.directory("dir/sub/file").unwrap_err().errno(), 20);
}

#[test]
fn open_options_that_contradict_each_other_are_refused() {
    let (server, client) = tree();
    server.take_log();
    for options in [
        OpenOptions::new(),
        OpenOptions::new().read(true).create(true),
        OpenOptions::new().read(true).truncate(true),
    ] {
        assert!(matches!(client.open_with("other", options), Err(Error::InvalidArgument(_))));
    }
    assert!(server.take_log().is_empty());
    client.open_with("other", OpenOptions::new().write(true).truncate(true)).unwrap();
    assert_eq!(client.metadata("other").unwrap().size, 0);
}

//! The local store on a directory that is made for each test. Those that do not say otherwise run
//! with both kinds of handles, where the kernel's can be used at all.

mod credentials;
mod descriptors;
mod handles;
#[cfg(feature = "explore")]
mod interleavings;
mod sizes;

use super::*;
use crate::store::CreateOptions;
use dafs_proto::{Attr, SetAttr, Time};
use rustix::fs::Mode;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use tempfile::TempDir;

const SERVER: &Credential = &Credential::Server;

struct World {
    /// Holds the export's root `export` and what lies outside of it.
    directory: TempDir,
    store: LocalStore,
}

impl World {
    fn root(&self) -> Handle {
        self.store.root()
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("export").join(name)
    }

    /// The store after a restart.
    fn again(&self) -> LocalStore {
        let descriptors = Descriptors::new(1024);
        let options = LocalOptions { descriptors, ..self.store.options.clone() };
        LocalStore::new(&self.path(""), options).unwrap()
    }

    fn file(&self, name: &str, data: &[u8]) -> Node {
        std::fs::write(self.path(name), data).unwrap();
        self.store.lookup(SERVER, &self.root(), name.as_bytes()).unwrap()
    }
}

fn options(directory: &TempDir, handle_table: bool) -> LocalOptions {
    let state = Some(directory.path().join("state"));
    LocalOptions { state, handle_table, ..LocalOptions::default() }
}

/// Runs a test with each kind of handles.
fn each(test: impl Fn(&World)) {
    for handle_table in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("export")).unwrap();
        std::fs::create_dir(directory.path().join("state")).unwrap();
        let options = options(&directory, handle_table);
        let store = LocalStore::new(&directory.path().join("export"), options).unwrap();
        test(&World { directory, store });
    }
}

fn status<T: std::fmt::Debug>(result: Result<T>) -> Status {
    result.unwrap_err().status
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

fn exclusive(attr: SetAttr) -> CreateOptions {
    CreateOptions { exclusive: true, attr }
}

/// Attributes that others may change, or reading does, left out.
fn lasting(attr: &Attr) -> Attr {
    Attr { atime: None, ..*attr }
}

#[test]
fn what_is_created_is_found_and_written() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let (node, file) = store.create(SERVER, &root, b"f", &exclusive(mode(0o4751))).unwrap();
        let file = file.unwrap();
        assert_eq!((node.attr.mode, node.attr.size, node.attr.nlink), (0o4751, 0, 1));
        assert_eq!(node.attr.r#type(), FileType::Regular);
        assert_eq!(node.identity, file.identity());
        assert_eq!(store.lookup(SERVER, &root, b"f").unwrap(), node);
        assert_eq!(status(store.create(SERVER, &root, b"f", &exclusive(mode(0)))), Status::Exists);
        let (found, opened) = store.create(SERVER, &root, b"f", &CreateOptions::default()).unwrap();
        assert_eq!((found, opened.is_none()), (node.clone(), true));

        file.write_at(b"hello", 10).unwrap();
        file.sync(false).unwrap();
        let mut buffer = [9; 32];
        assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 7);
        assert_eq!(&buffer[..8], b"\0\0hello\x09");
        assert_eq!(file.read_at(&mut buffer, 100).unwrap(), 0);
        file.set_len(12).unwrap();
        assert_eq!(status(file.set_len(u64::MAX)), Status::FileTooBig);
        let mtime = std::time::UNIX_EPOCH - std::time::Duration::from_nanos(1_500_000_000);
        file.set_mtime(mtime).unwrap();
        let attr = store.node(SERVER, &node.handle).unwrap().attr;
        assert_eq!(attr.size, 12);
        assert_eq!(attr.mtime, Some(Time { seconds: -2, nanoseconds: 500_000_000 }));
        assert_ne!(attr.change, node.attr.change);
        assert_eq!(attr.inode, std::fs::metadata(world.path("f")).unwrap().ino());
        // Two opens of one file share a descriptor.
        let again = store.open(SERVER, &node.handle, Access::ReadWrite).unwrap();
        assert_eq!(again.identity(), file.identity());
        assert_eq!(store.origin.descriptors.count_known(), 1);
    });
}

#[test]
fn who_creates_a_file_can_write_it_whatever_its_mode() {
    each(|world| {
        let (_, file) =
            world.store.create(SERVER, &world.root(), b"f", &exclusive(mode(0))).unwrap();
        file.unwrap().write_at(b"x", 0).unwrap();
        assert_eq!(std::fs::metadata(world.path("f")).unwrap().len(), 1);
    });
}

#[test]
fn directories_are_made_renamed_and_removed() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let a = store.mkdir(SERVER, &root, b"a", &mode(0o3777)).unwrap();
        assert_eq!((a.attr.mode, a.attr.r#type()), (0o3777, FileType::Directory));
        assert_eq!(status(store.mkdir(SERVER, &root, b"a", &mode(0))), Status::Exists);
        let b = store.mkdir(SERVER, &a.handle, b"b", &SetAttr::default()).unwrap();
        assert_eq!(b.attr.mode, 0o755);
        assert_eq!(status(store.rmdir(SERVER, &root, b"a")), Status::NotEmpty);
        assert_eq!(status(store.unlink(SERVER, &root, b"a")), Status::IsDirectory);
        world.file("f", b"1");
        assert_eq!(status(store.rmdir(SERVER, &root, b"f")), Status::NotDirectory);
        assert_eq!(status(store.rmdir(SERVER, &root, b"none")), Status::NoEntry);
        assert_eq!(status(store.unlink(SERVER, &root, b"none")), Status::NoEntry);
        assert_eq!(status(store.rename(SERVER, (&root, b"none"), (&root, b"x"))), Status::NoEntry);
        assert_eq!(status(store.rename(SERVER, (&root, b"a"), (&b.handle, b"x"))), Status::Invalid);
        assert_eq!(status(store.rename(SERVER, (&root, b"f"), (&root, b"a"))), Status::IsDirectory);
        assert_eq!(
            status(store.lookup(SERVER, &world.file("f", b"1").handle, b"x")),
            Status::NotDirectory
        );

        // A directory stays itself under another name, and so does what is in it.
        let inner = store.create(SERVER, &b.handle, b"g", &exclusive(mode(0o600))).unwrap().0;
        let renamed = store.rename(SERVER, (&a.handle, b"b"), (&root, b"c")).unwrap();
        assert_eq!((renamed.moved, renamed.replaced), (b.identity, None));
        assert_eq!(store.node(SERVER, &b.handle).unwrap().identity, b.identity);
        store.origin.descriptors.paths.remove(&inner.handle);
        assert_eq!(store.node(SERVER, &inner.handle).unwrap().identity, inner.identity);
        assert_eq!(world.again().node(SERVER, &inner.handle).unwrap().identity, inner.identity);

        store.rmdir(SERVER, &root, b"a").unwrap();
        assert_eq!(status(store.node(SERVER, &a.handle)), Status::StaleHandle);
        assert_eq!(status(store.mkdir(SERVER, &a.handle, b"x", &mode(0))), Status::StaleHandle);
    });
}

#[test]
fn removal_tells_whether_a_name_is_left() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let node = world.file("f", b"1");
        let linked = store.link(SERVER, &node.handle, &root, b"g").unwrap();
        assert_eq!((linked.identity, linked.attr.nlink), (node.identity, 2));
        assert_eq!(status(store.link(SERVER, &node.handle, &root, b"g")), Status::Exists);
        assert_eq!(status(store.link(SERVER, &root, &root, b"h")), Status::Permission);
        // Two names of one file: nothing happens.
        let renamed = store.rename(SERVER, (&root, b"f"), (&root, b"g")).unwrap();
        assert_eq!(renamed.replaced, None);

        let removed = store.unlink(SERVER, &root, b"f").unwrap();
        assert_eq!((removed.identity, removed.last), (node.identity, false));
        let other = world.file("other", b"2");
        let replaced = store.rename(SERVER, (&root, b"other"), (&root, b"g")).unwrap();
        let removed = replaced.replaced.unwrap();
        assert_eq!((removed.identity, removed.last), (node.identity, true));
        assert_eq!(replaced.moved, other.identity);
        assert_eq!(status(store.node(SERVER, &node.handle)), Status::StaleHandle);
        let removed = store.unlink(SERVER, &root, b"g").unwrap();
        assert_eq!((removed.identity, removed.last), (other.identity, true));
    });
}

#[test]
fn an_open_file_outlives_its_names() {
    each(|world| {
        let node = world.file("f", b"12345");
        let file = world.store.open(SERVER, &node.handle, Access::ReadWrite).unwrap();
        assert!(world.store.unlink(SERVER, &world.root(), b"f").unwrap().last);
        file.write_at(b"67", 5).unwrap();
        file.sync(true).unwrap();
        let mut buffer = [0; 7];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 7);
        assert_eq!(&buffer, b"1234567");
        assert_eq!(file.attr().unwrap().nlink, 0);
        let nameless = world.store.node(SERVER, &node.handle).unwrap();
        assert_eq!((nameless.identity, nameless.attr.nlink), (node.identity, 0));
        // Another file of that name is another file, even if it gets the inode.
        drop(file);
        let other = world.file("f", b"");
        assert_ne!(other.handle, node.handle);
        assert_ne!(other.identity, node.identity);
        assert_eq!(status(world.store.node(SERVER, &node.handle)), Status::StaleHandle);
    });
}

#[test]
fn names_that_are_none_are_refused_by_name() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let long = [b'n'; 256];
        for (name, expected) in [
            (&b""[..], Status::Invalid),
            (b".", Status::Invalid),
            (b"..", Status::Invalid),
            (b"a/b", Status::Invalid),
            (b"/", Status::Invalid),
            (b"a\0b", Status::Invalid),
            (&long, Status::NameTooLong),
        ] {
            let create = store.create(SERVER, &root, name, &CreateOptions::default());
            assert_eq!(status(create), expected, "{}", name.escape_ascii());
            assert_eq!(status(store.mkdir(SERVER, &root, name, &mode(0o700))), expected);
            assert_eq!(status(store.symlink(SERVER, &root, name, b"t")), expected);
            assert_eq!(status(store.unlink(SERVER, &root, name)), expected);
            assert_eq!(status(store.rmdir(SERVER, &root, name)), expected);
            assert_eq!(status(store.rename(SERVER, (&root, name), (&root, b"x"))), expected);
            assert_eq!(status(store.link(SERVER, &root, &root, name)), expected);
            let lookup = if name == b"." || name == b".." { Status::NoEntry } else { expected };
            assert_eq!(status(store.lookup(SERVER, &root, name)), lookup);
        }
        for name in [&b"\xff\xfe"[..], b"a b\n\t\\\"", b"...", &long[..255], "\u{e9}".as_bytes()] {
            let (node, _) = store.create(SERVER, &root, name, &exclusive(mode(0o600))).unwrap();
            assert_eq!(store.lookup(SERVER, &root, name).unwrap(), node);
            assert!(world.path(OsStr::from_bytes(name)).exists());
            let (entries, end) = store.readdir(SERVER, &root, 0, 1 << 20).unwrap();
            assert!(end && entries.len() == 1 && entries[0].name == name);
            assert_eq!(world.again().node(SERVER, &node.handle).unwrap().identity, node.identity);
            assert!(store.unlink(SERVER, &root, name).unwrap().last);
        }
        let error = store.lookup(SERVER, &root, b"\xffsecret").unwrap_err();
        assert!(error.what.contains("\\xffsecret"), "{error}");
    });
}

#[test]
fn attributes_are_set_and_wrong_ones_refused() {
    each(|world| {
        let store = &world.store;
        let node = world.file("f", b"1");
        let time = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
        let attr = SetAttr { atime: time(5, 6), mtime: time(-7, 8), ..mode(0o2640) };
        let changed = store.set_attr(SERVER, &node.handle, &attr).unwrap().attr;
        assert_eq!((changed.mode, changed.atime, changed.mtime), (0o2640, attr.atime, attr.mtime));
        let now = SetAttr { mtime_now: true, ..SetAttr::default() };
        let changed = store.set_attr(SERVER, &node.handle, &now).unwrap().attr;
        assert!(changed.mtime.unwrap().seconds > 1_000_000_000);
        assert_eq!(changed.atime, attr.atime);
        for wrong in [
            mode(0o10000),
            SetAttr { mtime: time(0, 1_000_000_000), ..SetAttr::default() },
            SetAttr { uid: Some(u32::MAX), ..SetAttr::default() },
        ] {
            assert_eq!(status(store.set_attr(SERVER, &node.handle, &wrong)), Status::Invalid);
        }
        if rustix::process::geteuid().is_root() {
            let owner = SetAttr { uid: Some(12), gid: Some(34), ..SetAttr::default() };
            let changed = store.set_attr(SERVER, &node.handle, &owner).unwrap().attr;
            assert_eq!((changed.uid, changed.gid), (12, 34));
        }
    });
}

#[test]
fn a_listing_is_complete_in_parts_of_any_size() {
    each(|world| {
        let mut expected: Vec<Vec<u8>> =
            (0..300).map(|n| format!("name-{n}").into_bytes()).collect();
        for name in &expected {
            std::fs::write(world.path(OsStr::from_bytes(name)), b"").unwrap();
        }
        expected.sort();
        for max_bytes in [0, 1000, 1 << 20] {
            let (mut names, mut cookie, mut calls) = (Vec::new(), 0, 0);
            loop {
                let (entries, end) =
                    world.store.readdir(SERVER, &world.root(), cookie, max_bytes).unwrap();
                cookie = entries.last().map_or(cookie, |entry| entry.cookie);
                names.extend(entries.into_iter().map(|entry| entry.name));
                calls += 1;
                if end {
                    break;
                }
            }
            names.sort();
            assert_eq!(names, expected);
            assert!(max_bytes > 1000 || calls > 1);
        }
        let (entries, _) = world.store.readdir(SERVER, &world.root(), 0, 1000).unwrap();
        for entry in entries {
            let node = world.store.lookup(SERVER, &world.root(), &entry.name).unwrap();
            assert_eq!(node, entry.node);
        }
        assert!(world.store.readdir(SERVER, &world.root(), u64::MAX, 10).is_err());
    });
}

#[test]
fn a_read_only_export_changes_nothing() {
    each(|world| {
        world.file("f", b"1");
        let options = LocalOptions { read_only: true, ..world.store.options.clone() };
        let store = LocalStore::new(&world.path(""), options).unwrap();
        let root = store.root();
        let node = store.lookup(SERVER, &root, b"f").unwrap();
        let read_only = Status::ReadOnly;
        assert_eq!(status(store.create(SERVER, &root, b"g", &CreateOptions::default())), read_only);
        assert!(store.create(SERVER, &root, b"f", &CreateOptions::default()).unwrap().1.is_none());
        assert_eq!(status(store.mkdir(SERVER, &root, b"d", &mode(0))), read_only);
        assert_eq!(status(store.symlink(SERVER, &root, b"d", b"t")), read_only);
        assert_eq!(status(store.link(SERVER, &node.handle, &root, b"d")), read_only);
        assert_eq!(status(store.unlink(SERVER, &root, b"f")), read_only);
        assert_eq!(status(store.rmdir(SERVER, &root, b"f")), read_only);
        assert_eq!(status(store.rename(SERVER, (&root, b"f"), (&root, b"g"))), read_only);
        assert_eq!(status(store.set_attr(SERVER, &node.handle, &mode(0))), read_only);
        assert_eq!(status(store.open(SERVER, &node.handle, Access::ReadWrite)), read_only);
        let file = store.open(SERVER, &node.handle, Access::Read).unwrap();
        assert!(!file.writable());
        assert_eq!(file.read_at(&mut [0; 2], 0).unwrap(), 1);
        assert!(file.write_at(b"x", 0).is_err());
    });
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    each(|world| {
        let root = world.root();
        assert_eq!(status(world.store.open(SERVER, &root, Access::Read)), Status::IsDirectory);
        let fifo = world.path("fifo");
        let mode = Mode::from_raw_mode(0o600);
        fs::mknodat(fs::CWD, &fifo, fs::FileType::Fifo, mode, 0).unwrap();
        let node = world.store.lookup(SERVER, &root, b"fifo").unwrap();
        assert_eq!(node.attr.r#type(), FileType::Fifo);
        assert_eq!(status(world.store.open(SERVER, &node.handle, Access::Read)), Status::Invalid);
        assert!(world.store.statfs(SERVER, &root).unwrap().block_size > 0);
    });
}

/// A process of this host that holds a lease of a file and gives it to nobody, and ends with this.
struct Leased(std::process::Child);

impl Leased {
    fn take(path: &Path) -> Self {
        use std::io::BufRead;
        const TAKE: &str = "use Fcntl; $SIG{IO} = 'IGNORE'; open(F, '+<', $ARGV[0]) or die; \
            fcntl(F, 1024, F_WRLCK) or die; $| = 1; print \"taken\\n\"; sleep 600";
        let mut command = std::process::Command::new("perl");
        command.args(["-e", TAKE]).arg(path).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "taken\n");
        Self(child)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The kernel has who opens such a file wait for 45 seconds, unless told not to.
#[test]
fn nobody_waits_for_a_lease_of_a_local_process() {
    each(|world| {
        let node = world.file("leased", b"content");
        let leased = Leased::take(&world.path("leased"));
        for access in [Access::Read, Access::Write] {
            let opened = world.store.open(SERVER, &node.handle, access);
            assert_eq!(status(opened), Status::TryAgain);
        }
        drop(leased);
        let file = world.store.open(SERVER, &node.handle, Access::ReadWrite).unwrap();
        let mut bytes = [0; 7];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 7);
        assert_eq!(&bytes, b"content");
    });
}

#[test]
fn new_objects_belong_to_the_configured_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can give files away: nothing to test");
        return;
    }
    each(|world| {
        let options = LocalOptions { owner: Some((12, 34)), ..world.store.options.clone() };
        let store = LocalStore::new(&world.path(""), options).unwrap();
        let root = store.root();
        let (file, _) = store.create(SERVER, &root, b"f", &exclusive(mode(0o4755))).unwrap();
        let directory = store.mkdir(SERVER, &root, b"d", &SetAttr::default()).unwrap();
        let link = store.symlink(SERVER, &root, b"l", b"t").unwrap();
        let given = SetAttr { uid: Some(56), ..mode(0o600) };
        let (other, _) = store.create(SERVER, &root, b"g", &exclusive(given)).unwrap();
        for (node, uid) in [(&file, 12), (&directory, 12), (&link, 12), (&other, 56)] {
            assert_eq!((node.attr.uid, node.attr.gid), (uid, 34));
        }
        assert_eq!(file.attr.mode, 0o4755);
        let metadata = std::fs::metadata(world.path("f")).unwrap();
        assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o7777), (12, 0o4755));
    });
}

#[test]
fn a_wrong_root_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let none = directory.path().join("none");
    let error = LocalStore::new(&none, LocalOptions::default()).unwrap_err();
    assert_eq!(error.status, Status::NoEntry);
    assert!(error.what.contains("none"), "{error}");
    std::fs::write(&none, b"").unwrap();
    let error = LocalStore::new(&none, LocalOptions::default()).unwrap_err();
    assert_eq!(error.status, Status::NotDirectory);
}

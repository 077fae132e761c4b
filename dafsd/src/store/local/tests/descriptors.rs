//! Descriptors are bounded, whatever is opened, written and removed.

use super::*;
use crate::sync::Mutex;
use std::io::Write;
use std::process::Command;

/// Room for four files.
const FEW: usize = 8;

fn few(world: &World) -> LocalStore {
    let options =
        LocalOptions { descriptors: Descriptors::new(FEW), ..world.store.options.clone() };
    LocalStore::new(&world.path(""), options).unwrap()
}

fn open(store: &LocalStore, name: &str, access: Access) -> Arc<dyn StoreFile> {
    let node = store.lookup(SERVER, &store.root(), name.as_bytes()).unwrap();
    let file = store.open(SERVER, &node.handle, access).unwrap();
    // As by a client.
    file.hold(1);
    file
}

fn read(file: &Arc<dyn StoreFile>) -> Vec<u8> {
    let mut buffer = [0; 64];
    let len = file.read_at(&mut buffer, 0).unwrap();
    buffer[..len].to_vec()
}

/// Descriptors of this process that lead to what lies in the directory and has no name.
fn held_without_name(world: &World) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let ours = world.directory.path().to_str().unwrap().to_owned();
    let names = links.map(|link| link.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&ours) && name.ends_with(" (deleted)")).count()
}

#[test]
fn more_files_are_open_than_descriptors() {
    each(|world| {
        let store = few(world);
        let names: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
        for name in &names {
            std::fs::write(world.path(name), name).unwrap();
        }
        let files: Vec<_> = names.iter().map(|n| open(&store, n, Access::ReadWrite)).collect();
        for round in 0..3 {
            for (file, name) in files.iter().zip(&names) {
                assert_eq!(read(file), name.as_bytes(), "round {round}");
                assert_eq!(file.attr().unwrap().size, name.len() as u64);
                assert!(store.origin.descriptors.files() <= FEW / 2);
                assert!(store.origin.descriptors.paths.len() <= FEW / 2);
            }
        }
        // What is not known to be stable keeps its descriptor, and is not too much.
        for file in &files {
            file.write_at(b"w", 0).unwrap();
            assert!(store.origin.descriptors.files() <= FEW / 2);
        }
        for (file, name) in files.iter().zip(&names) {
            assert_eq!(read(file), [b"w", &name.as_bytes()[1..]].concat());
            file.sync(false).unwrap();
            assert!(store.origin.descriptors.files() <= FEW / 2);
        }
    });
}

#[test]
fn a_failure_that_an_early_sync_was_told_of_is_the_next_syncs() {
    each(|world| {
        let store = few(world);
        std::fs::write(world.path("a"), b"aaa").unwrap();
        std::fs::write(world.path("b"), b"bbb").unwrap();
        let (a, b) = (open(&store, "a", Access::Write), open(&store, "b", Access::Write));
        a.write_at(b"x", 0).unwrap();
        // The other one's write is one too many, and the first is synced.
        store.origin.fail_syncs.store(1, std::sync::atomic::Ordering::SeqCst);
        b.write_at(b"y", 0).unwrap();
        b.sync(false).unwrap();
        // Its descriptor goes and comes.
        for name in 0..20 {
            std::fs::write(world.path(name.to_string()), b"").unwrap();
            open(&store, &name.to_string(), Access::Read);
        }
        a.write_at(b"z", 1).unwrap();
        assert_eq!(status(a.sync(false)), Status::Io);
        a.write_at(b"xz", 0).unwrap();
        a.sync(false).unwrap();
        // One that is told of by the sync itself is told of once.
        a.write_at(b"x", 0).unwrap();
        store.origin.fail_syncs.store(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(status(a.sync(false)), Status::Io);
        a.sync(false).unwrap();
    });
}

#[test]
fn files_that_lost_their_names_are_kept_open_up_to_a_bound() {
    each(|world| {
        let store = few(world);
        let names: Vec<String> = (0..6).map(|n| format!("f{n}")).collect();
        for name in &names {
            std::fs::write(world.path(name), name).unwrap();
        }
        let files: Vec<_> = names.iter().map(|n| open(&store, n, Access::ReadWrite)).collect();
        let removed: Vec<_> =
            names.iter().map(|name| store.unlink(SERVER, &store.root(), name.as_bytes())).collect();
        let refused = |error: &StoreError| error.status == Status::TooManyOpenFiles;
        assert!(removed[..2].iter().all(Result::is_ok), "{removed:?}");
        assert!(removed[2..].iter().all(|r| r.as_ref().is_err_and(refused)), "{removed:?}");
        assert!(removed[5].as_ref().unwrap_err().what.contains("f5"), "{removed:?}");
        std::fs::write(world.path("other"), b"").unwrap();
        let replace = store.rename(SERVER, (&store.root(), b"other"), (&store.root(), b"f5"));
        assert_eq!(status(replace), Status::TooManyOpenFiles);
        for _ in 0..3 {
            for (file, name) in files.iter().zip(&names) {
                assert_eq!(read(file), name.as_bytes());
            }
        }
        // With two names, it loses none that it needs.
        std::fs::hard_link(world.path("f4"), world.path("g4")).unwrap();
        assert!(!store.unlink(SERVER, &store.root(), b"f4").unwrap().last);
        files[0].release(1);
        assert!(store.unlink(SERVER, &store.root(), b"f3").unwrap().last);
        assert_eq!(read(&files[3]), b"f3");
    });
}

#[test]
fn nothing_keeps_the_space_of_what_is_removed() {
    each(|world| {
        let store = few(world);
        let root = store.root();
        let new = store.mkdir(SERVER, &root, b"new", &mode(0o700)).unwrap();
        let cur = store.mkdir(SERVER, &root, b"cur", &mode(0o700)).unwrap();
        for name in [&b"a"[..], b"b"] {
            let (_, file) =
                store.create(SERVER, &new.handle, name, &exclusive(mode(0o600))).unwrap();
            let file = file.unwrap();
            file.write_at(b"mail", 0).unwrap();
            file.sync(false).unwrap();
            // Somebody knows it by either place.
            let before = store.lookup(SERVER, &new.handle, name).unwrap();
            store.rename(SERVER, (&new.handle, name), (&cur.handle, name)).unwrap();
            let after = store.lookup(SERVER, &cur.handle, name).unwrap();
            store.node(SERVER, &before.handle).unwrap();
            store.node(SERVER, &after.handle).unwrap();
            drop(file);
            assert!(store.unlink(SERVER, &cur.handle, name).unwrap().last);
            assert_eq!(held_without_name(world), 0);
        }
        // Removed behind the server's back, it goes when space is short.
        std::fs::write(world.path("f"), b"x").unwrap();
        let node = store.lookup(SERVER, &root, b"f").unwrap();
        let file = store.open(SERVER, &node.handle, Access::Read).unwrap();
        read(&file);
        assert!(!file.is_gone());
        std::fs::remove_file(world.path("f")).unwrap();
        assert!(file.is_gone());
        assert!(store.origin.descriptors.discard_removed());
        assert!(file.is_gone());
        assert_eq!(held_without_name(world), 0);
    });
}

/// The kernel refuses to run a file that somebody has open for writing.
#[test]
fn a_program_can_be_run_that_is_read_only_or_was_written() {
    each(|world| {
        let store = &world.store;
        let program = std::fs::read("/bin/true").unwrap();
        let run = |name: &str| Command::new(world.path(name)).status().map(|status| status.code());
        let made = exclusive(mode(0o755));
        let (node, file) = store.create(SERVER, &world.root(), b"program", &made).unwrap();
        let file = file.unwrap();
        file.write_at(&program, 0).unwrap();
        file.sync(false).unwrap();
        assert!(run("program").is_err());
        file.rest();
        assert_eq!(run("program").unwrap(), Some(0));
        let again = store.open(SERVER, &node.handle, Access::Read).unwrap();
        assert_eq!(again.read_at(&mut [0; 64], 0).unwrap(), 64);
        assert_eq!(run("program").unwrap(), Some(0));
        // One that the server never wrote.
        let mut other = std::fs::File::create(world.path("other")).unwrap();
        other.write_all(&program).unwrap();
        other.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        drop(other);
        let node = store.lookup(SERVER, &world.root(), b"other").unwrap();
        let other = store.open(SERVER, &node.handle, Access::Read).unwrap();
        assert_eq!(other.read_at(&mut [0; 64], 0).unwrap(), 64);
        assert_eq!(run("other").unwrap(), Some(0));
        assert_eq!(status(other.write_at(b"x", 0)), Status::OpenMode);
    });
}

#[test]
fn each_replaced_file_is_told_once() {
    const EACH: usize = 300;
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let replaced = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (root, replaced) = (&root, &replaced);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let name = format!("{thread}-{n}");
                        let name = name.as_bytes();
                        store.create(SERVER, root, name, &exclusive(mode(0o600))).unwrap();
                        let renamed = store.rename(SERVER, (root, name), (root, b"x")).unwrap();
                        replaced.lock().extend(renamed.replaced);
                    }
                });
            }
        });
        let replaced = replaced.lock();
        let all: std::collections::HashSet<_> = replaced.iter().map(|r| r.identity).collect();
        assert!(replaced.iter().all(|replaced| replaced.last));
        assert_eq!((replaced.len(), all.len()), (2 * EACH - 1, 2 * EACH - 1));
    });
}

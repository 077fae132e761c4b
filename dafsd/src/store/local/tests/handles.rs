//! What handles name, and that none leads out of the export.

use super::*;

#[test]
fn symbolic_links_lead_nowhere_on_the_server() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let outside = world.directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), b"s").unwrap();
        symlink(&outside, world.path("out")).unwrap();
        symlink("../outside/secret", world.path("file")).unwrap();
        symlink("/proc/self/root", world.path("magic")).unwrap();

        for name in [&b"out"[..], b"file", b"magic"] {
            let node = store.lookup(SERVER, &root, name).unwrap();
            assert_eq!(node.attr.r#type(), FileType::Symlink);
            assert_eq!(status(store.lookup(SERVER, &node.handle, b"secret")), Status::NotDirectory);
            assert_eq!(status(store.readdir(SERVER, &node.handle, 0, 4096)), Status::NotDirectory);
            assert_eq!(
                status(store.mkdir(SERVER, &node.handle, b"x", &mode(0))),
                Status::NotDirectory
            );
            assert_eq!(status(store.open(SERVER, &node.handle, Access::Read)), Status::Loop);
            assert_eq!(
                status(store.set_attr(SERVER, &node.handle, &mode(0o777))),
                Status::NotSupported
            );
            let (found, file) =
                store.create(SERVER, &root, name, &CreateOptions::default()).unwrap();
            assert!(file.is_none() && found.identity == node.identity);
        }
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"s");

        let node = store.symlink(SERVER, &root, b"new", b"\xff/../x").unwrap();
        assert_eq!(store.readlink(SERVER, &node.handle).unwrap(), b"\xff/../x");
        assert_eq!(status(store.readlink(SERVER, &root)), Status::Invalid);
        assert_eq!(status(store.symlink(SERVER, &root, b"y", b"")), Status::NoEntry);
        assert_eq!(status(store.symlink(SERVER, &root, b"y", &[b'y'; 5000])), Status::NameTooLong);
        let linked = store.link(SERVER, &node.handle, &root, b"new2").unwrap();
        assert_eq!(linked.attr.r#type(), FileType::Symlink);
    });
}

#[test]
fn forged_handles_are_stale() {
    each(|world| {
        let node = world.file("f", b"1");
        let whole = node.handle.as_bytes();
        for at in 0..whole.len() {
            for bit in [0x01, 0x80] {
                let mut forged = whole.to_vec();
                forged[at] ^= bit;
                let forged = Handle::from_wire(&forged).unwrap();
                match world.store.node(SERVER, &forged) {
                    Err(error) => {
                        assert_eq!(error.status, Status::StaleHandle, "byte {at}: {error}")
                    }
                    // The place where it was found is a hint only.
                    Ok(found) => assert_eq!(found.identity, node.identity, "byte {at}"),
                }
            }
        }
        for len in 1..whole.len() {
            match world.store.node(SERVER, &Handle::from_wire(&whole[..len]).unwrap()) {
                Err(error) => assert_eq!(error.status, Status::StaleHandle),
                Ok(found) => assert_eq!(found.identity, node.identity),
            }
        }
        assert_eq!(status(Handle::from_wire(&[])), Status::StaleHandle);
        assert_eq!(status(Handle::from_wire(&[1; 65])), Status::StaleHandle);
    });
}

#[test]
fn a_handle_of_another_export_is_stale() {
    each(|world| {
        let other = world.directory.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("secret"), b"s").unwrap();
        let foreign = LocalStore::new(&other, world.store.options.clone()).unwrap();
        let secret = foreign.lookup(SERVER, &foreign.root(), b"secret").unwrap();
        assert_eq!(status(world.store.node(SERVER, &secret.handle)), Status::StaleHandle);
        assert_eq!(status(world.store.node(SERVER, &foreign.root())), Status::StaleHandle);

        // Even with this export's id in it.
        let ours = world.root();
        for handle in [secret.handle, foreign.root()] {
            let mut forged = handle.as_bytes().to_vec();
            forged[..9].copy_from_slice(&ours.as_bytes()[..9]);
            let forged = Handle::from_wire(&forged).unwrap();
            match world.store.node(SERVER, &forged) {
                Err(error) => assert_eq!(error.status, Status::StaleHandle),
                // The number of the root, in a table.
                Ok(found) => assert_eq!(found.identity, world.store.root.identity),
            }
        }
    });
}

#[test]
fn what_is_moved_out_of_the_export_is_stale() {
    each(|world| {
        let file = world.file("f", b"1");
        let directory = world.store.mkdir(SERVER, &world.root(), b"d", &mode(0o700)).unwrap();
        let inner = world.store.mkdir(SERVER, &directory.handle, b"e", &mode(0o700)).unwrap();
        std::fs::rename(world.path("f"), world.directory.path().join("f")).unwrap();
        std::fs::rename(world.path("d"), world.directory.path().join("d")).unwrap();
        let store = world.again();
        for node in [file, directory, inner] {
            assert_eq!(status(store.node(SERVER, &node.handle)), Status::StaleHandle);
        }
    });
}

#[test]
fn handles_survive_a_restart() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let directory = store.mkdir(SERVER, &root, b"d", &mode(0o700)).unwrap();
        let (file, _) =
            store.create(SERVER, &directory.handle, b"f", &exclusive(mode(0o600))).unwrap();
        let gone = world.file("gone", b"");
        store.unlink(SERVER, &root, b"gone").unwrap();
        store.rename(SERVER, (&directory.handle, b"f"), (&root, b"g")).unwrap();

        let again = world.again();
        assert_eq!(again.root(), root);
        assert_eq!(lasting(&again.node(SERVER, &root).unwrap().attr).r#type(), FileType::Directory);
        assert_eq!(again.node(SERVER, &directory.handle).unwrap().identity, directory.identity);
        assert_eq!(again.node(SERVER, &file.handle).unwrap().identity, file.identity);
        assert_eq!(status(again.node(SERVER, &gone.handle)), Status::StaleHandle);
        assert!(again.open(SERVER, &file.handle, Access::ReadWrite).unwrap().writable());
    });
}

#[test]
fn a_replaced_file_is_another_file() {
    each(|world| {
        let node = world.file("f", b"1");
        std::fs::write(world.path("new"), b"2").unwrap();
        std::fs::rename(world.path("new"), world.path("f")).unwrap();
        let other = world.store.lookup(SERVER, &world.root(), b"f").unwrap();
        assert_ne!(other.handle, node.handle);
        assert_eq!(status(world.again().node(SERVER, &node.handle)), Status::StaleHandle);
    });
}

#[test]
fn descriptors_are_bounded() {
    each(|world| {
        let options =
            LocalOptions { descriptors: Descriptors::new(4), ..world.store.options.clone() };
        let store = LocalStore::new(&world.path(""), options).unwrap();
        let made = (0..20).map(|n| {
            world.file(&n.to_string(), b"");
            store.lookup(SERVER, &store.root(), n.to_string().as_bytes()).unwrap()
        });
        let nodes: Vec<Node> = made.collect();
        for node in nodes.iter().chain(nodes.iter().rev()) {
            assert_eq!(store.node(SERVER, &node.handle).unwrap().identity, node.identity);
            assert!(store.origin.descriptors.paths.len() <= 4);
        }
    });
}

/// A file that the kernel has forgotten has no path until it is looked up again.
#[test]
fn a_file_that_has_no_path_yet_is_found_where_it_was() {
    each(|world| {
        let node = world.file("f", b"1");
        let Handles::Kernel(handles) = &world.store.origin.handles else {
            return;
        };
        let root = || sys::open_path(&world.store.root.fd, b".").unwrap();
        let fd = handles.seek(root(), node.identity).unwrap();
        let stat = sys::stat(&fd).unwrap();
        assert_eq!(sys::identity(fd.as_fd(), &stat), node.identity);
        let other = Identity { generation: node.identity.generation + 1, ..node.identity };
        assert_eq!(status(handles.seek(root(), other)), Status::StaleHandle);
    });
}

/// As above, with a kernel that is told to forget. Alone on the machine only: run it by name.
#[test]
#[ignore = "empties the kernel's caches, as root"]
fn handles_survive_a_kernel_that_forgets() {
    each(|world| {
        let outside = world.directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), b"s").unwrap();
        let node = world.file("f", b"1");
        let moved = world.file("moved", b"1");
        std::fs::rename(world.path("moved"), outside.join("moved")).unwrap();
        let foreign = LocalStore::new(&outside, world.store.options.clone()).unwrap();
        let secret = foreign.lookup(SERVER, &foreign.root(), b"secret").unwrap();
        let mut forged = secret.handle.as_bytes().to_vec();
        forged[1..9].copy_from_slice(&node.handle.as_bytes()[1..9]);
        drop(foreign);
        let place = world.store.mkdir(SERVER, &world.root(), b"place", &mode(0o700)).unwrap();
        let renamed = world.file("renamed", b"1");
        let by_others = world.file("by others", b"1");
        let root = world.root();
        world.store.rename(SERVER, (&root, b"renamed"), (&place.handle, b"new")).unwrap();
        std::fs::rename(world.path("by others"), world.path("place/by others")).unwrap();
        for handle in [&node.handle, &moved.handle, &renamed.handle, &by_others.handle] {
            world.store.origin.descriptors.paths.remove(handle);
        }
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(status(world.store.node(SERVER, &moved.handle)), Status::StaleHandle);
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        if matches!(world.store.origin.handles, Handles::Kernel(_)) {
            let forged = Handle::from_wire(&forged).unwrap();
            assert_eq!(status(world.store.node(SERVER, &forged)), Status::StaleHandle);
        }
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        for node in [node, renamed, by_others] {
            assert_eq!(world.store.node(SERVER, &node.handle).unwrap().identity, node.identity);
        }
    });
}

/// Sought in its old directory it is not found, and not in the one that it was moved to either.
#[test]
fn a_file_without_a_path_is_found_wherever_it_is() {
    each(|world| {
        let node = world.file("f", b"1");
        let outside = world.file("outside", b"1");
        let Handles::Kernel(handles) = &world.store.origin.handles else {
            return;
        };
        std::fs::create_dir_all(world.path("a/b/c")).unwrap();
        std::fs::rename(world.path("f"), world.path("a/b/c/g")).unwrap();
        std::fs::rename(world.path("outside"), world.directory.path().join("outside")).unwrap();
        for _ in 0..2 {
            let fd = handles.locate(&node.handle, None, node.identity).unwrap();
            let stat = sys::stat(&fd).unwrap();
            assert_eq!(sys::identity(fd.as_fd(), &stat), node.identity);
            let nowhere = handles.locate(&outside.handle, None, outside.identity);
            assert_eq!(status(nowhere), Status::StaleHandle);
        }
    });
}

#[test]
fn a_handle_is_good_as_long_as_its_file_has_a_name() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        let known = |handle: &Handle| world.again().node(SERVER, handle).map(|node| node.identity);
        let place = store.mkdir(SERVER, &root, b"place", &mode(0o700)).unwrap();
        let node = world.file("f", b"1");
        let linked = store.link(SERVER, &node.handle, &place.handle, b"g").unwrap();
        assert_eq!(linked.identity, node.identity);
        store.lookup(SERVER, &root, b"f").unwrap();
        assert!(!store.unlink(SERVER, &root, b"f").unwrap().last);
        assert_eq!(known(&node.handle), Ok(node.identity));
        // The other way round, and moved by others.
        store.link(SERVER, &node.handle, &root, b"f").unwrap();
        assert!(!store.unlink(SERVER, &place.handle, b"g").unwrap().last);
        assert_eq!(known(&node.handle), Ok(node.identity));
        std::fs::rename(world.path("f"), world.path("place/h")).unwrap();
        std::fs::rename(world.path("place"), world.path("elsewhere")).unwrap();
        assert_eq!(known(&node.handle), Ok(node.identity));
        assert_eq!(known(&place.handle), Ok(place.identity));
        let last = store.lookup(SERVER, &place.handle, b"h").unwrap();
        assert_eq!(last.identity, node.identity);
        assert!(store.unlink(SERVER, &place.handle, b"h").unwrap().last);
        assert_eq!(known(&node.handle).unwrap_err().status, Status::StaleHandle);
    });
}

#[test]
fn handles_lead_beyond_the_longest_path() {
    each(|world| {
        let store = &world.store;
        let mut nodes = Vec::new();
        let mut at = world.root();
        for depth in 0..20u8 {
            let name = [b'a' + depth; 255];
            let node = store.mkdir(SERVER, &at, &name, &mode(0o700)).unwrap();
            at = node.handle.clone();
            nodes.push(node);
        }
        let (file, _) = store.create(SERVER, &at, b"file", &exclusive(mode(0o600))).unwrap();
        nodes.push(file.clone());
        let again = world.again();
        for node in &nodes {
            assert_eq!(again.node(SERVER, &node.handle).unwrap().identity, node.identity);
        }
        let opened = again.open(SERVER, &file.handle, Access::ReadWrite).unwrap();
        opened.write_at(b"deep", 0).unwrap();
        // Out of the export, it is stale also so far down.
        let first = OsStr::from_bytes(&[b'a'; 255]);
        std::fs::rename(world.path(first), world.directory.path().join(first)).unwrap();
        let again = world.again();
        for node in &nodes {
            assert_eq!(status(again.node(SERVER, &node.handle)), Status::StaleHandle);
        }
    });
}

#[test]
fn an_export_whose_directory_was_removed_says_so() {
    each(|world| {
        let (store, root) = (&world.store, world.root());
        std::fs::remove_dir(world.path("")).unwrap();
        let all = || {
            [
                store.lookup(SERVER, &root, b"f").map(drop),
                store.create(SERVER, &root, b"f", &CreateOptions::default()).map(drop),
                store.mkdir(SERVER, &root, b"d", &mode(0o700)).map(drop),
                store.readdir(SERVER, &root, 0, 4096).map(drop),
            ]
        };
        for result in all() {
            let error = result.unwrap_err();
            assert_eq!(error.status, Status::StaleHandle, "{error}");
            assert!(error.what.contains("was removed on the server: make it again"), "{error}");
        }
        std::fs::create_dir(world.path("")).unwrap();
        for result in all() {
            let error = result.unwrap_err();
            assert!(error.what.contains("there is another one: start dafsd anew"), "{error}");
        }
    });
}

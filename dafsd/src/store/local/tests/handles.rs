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
        let options = LocalOptions { descriptors: Descriptors::new(4), ..world.store.options.clone() };
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
        for handle in [&node.handle, &moved.handle] {
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
        assert_eq!(world.store.node(SERVER, &node.handle).unwrap().identity, node.identity);
    });
}

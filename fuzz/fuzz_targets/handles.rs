//! Handles: none that the server did not sign is taken, and whatever a signed one could hold, it
//! leads to nothing outside of the export.

#![no_main]

use dafs_keys::{HandleKey, Secret};
use dafsd::store::{Credential, Handle, LocalOptions, LocalStore, Store};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct World {
    _directory: tempfile::TempDir,
    /// One with the kernel's handles, where they can be had, and one with a table.
    stores: [LocalStore; 2],
    /// Devices and inodes of what lies in the export.
    inside: Vec<u64>,
    good: Vec<Vec<u8>>,
}

/// A key for each input. The fuzzer sees what is compared with what, and with a key for all it makes up
/// a handle and finds out by the next input how that should have been signed.
fn key() -> HandleKey {
    static USED: AtomicU64 = AtomicU64::new(0);
    let number = USED.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    HandleKey::derive(&Secret::from_bytes([1; 32]), &number)
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let export = directory.path().join("export");
    std::fs::create_dir_all(export.join("sub")).expect("a directory");
    std::fs::write(export.join("sub/file"), b"inside").expect("a file");
    std::fs::write(directory.path().join("secret"), b"outside").expect("a file");
    let kernel = LocalStore::new(&export, LocalOptions::default()).expect("a store");
    let options = LocalOptions { handle_table: true, ..LocalOptions::default() };
    let table = LocalStore::new(&export, options).expect("a store");
    let stores = [kernel, table];
    let (mut inside, mut good) = (Vec::new(), Vec::new());
    for store in &stores {
        let who = &Credential::Server;
        let root = store.node(who, &store.root()).expect("the root");
        let sub = store.lookup(who, &root.handle, b"sub").expect("the directory");
        let file = store.lookup(who, &sub.handle, b"file").expect("the file");
        for node in [root, sub, file] {
            inside.push(node.identity.inode);
            good.push(node.handle.as_bytes().to_vec());
        }
    }
    World { _directory: directory, stores, inside, good }
});

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    let world = &*WORLD;
    let good = &world.good[usize::from(what >> 1) % world.good.len()];
    if what & 1 == 0 {
        // On the wire.
        let key = key();
        let wire = key.sign(good);
        let mut changed = wire.clone();
        changed.iter_mut().zip(rest).for_each(|(byte, mask)| *byte ^= mask);
        assert_eq!(key.verify(&changed).is_some(), changed == wire);
        assert_eq!(key.verify(rest).is_some(), *rest == wire);
        return;
    }
    // Behind the check: a good handle, changed.
    let mut bytes = good.clone();
    let len = bytes.len();
    for (i, mask) in rest.iter().enumerate() {
        if i < len {
            bytes[i] ^= mask;
        } else {
            bytes.push(*mask);
        }
    }
    let Ok(handle) = Handle::from_wire(&bytes) else { return };
    for store in &world.stores {
        if let Ok(node) = store.node(&Credential::Server, &handle) {
            assert!(world.inside.contains(&node.identity.inode), "outside of the export: {node:?}");
        }
        let _ = store.lookup(&Credential::Server, &handle, b"../secret");
        let _ = store.readlink(&Credential::Server, &handle);
    }
});

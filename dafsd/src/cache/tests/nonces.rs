//! No nonce is used twice under a key, whatever becomes of the page: `dafs-keys` counts them, and
//! panics where it sees one again.

use super::*;
use dafs_keys::page::{VERSIONS, nonces};

const LEVEL: Protection = Protection::Sealed;

/// All that seals pages of a file, in a cache over state that another one has had before.
fn use_all(disk: &Arc<MemoryFile>) {
    let cache = cache(LEVEL, 8, 2);
    let file = open(&cache, LEVEL, disk);
    let epoch = || wait(&cache, file.new_epoch()).unwrap();
    let commit = || wait(&cache, file.commit(Extent::default())).unwrap();
    let at = |block: u64| block * PAGE as u64;

    // Overwrites, of clean and dirty pages, and evictions: 40 pages in 16 slots.
    for round in 0..4 {
        for block in 0..40 {
            write(&file, at(block), &[round; PAGE]);
            write(&file, at(block * 7 % 40) + 5, &[round; 9]);
            read(&file, at(block * 13 % 40), 2 * PAGE as u64);
        }
        commit();
        epoch();
    }
    // Both ends of versions: of a page that is then written in part, moved, and given a new key.
    for block in 0..4 {
        write(&file, at(block), &[7; PAGE]);
        let page = (file.number(), block);
        cache.shard(page).lock().page(page).unwrap().version = VERSIONS - 2;
        write(&file, at(block), &[8; PAGE]);
        for byte in 0..4 {
            write(&file, at(block) + 1, &[byte]);
        }
        epoch();
    }
    // The end of the file goes to and fro.
    for size in [at(3) + 5, at(3), at(9) + 1, 0, at(40)] {
        wait(&cache, file.set_size(size)).unwrap();
        write(&file, size, b"x");
        read(&file, size, 1);
        epoch();
        commit();
    }
    wait(&cache, cache.retire_chunk()).unwrap();
    write(&file, 0, &[9; 40 * PAGE]);
    commit();
    cache.close();
}

/// Seals that nothing comes of: when the fill of five pages ends, their chunk is being retired.
fn abort(disk: &Arc<MemoryFile>) {
    let cache = cache(LEVEL, 8, 2);
    let file = open(&cache, LEVEL, disk);
    read(&file, 0, 1);
    let weak = Arc::downgrade(&cache);
    disk.on_read.set(move || {
        // Once: for the second fill, it is so already.
        let _ = weak.upgrade().unwrap().arena.begin_retire(0);
    });
    let from = 20 * PAGE as u64;
    read(&file, from, 5 * PAGE as u64);
    disk.on_read.set(|| ());
    let chunks: Vec<_> = refs(&file).iter().map(|r| (r.block, r.chunk)).collect();
    assert_eq!(chunks, [(0, 0), (20, 1), (21, 1), (22, 1), (23, 1), (24, 1)]);
    write(&file, from, &[3; 5 * PAGE]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    cache.close();
}

/// Fills, writes, truncations, new keys and evictions at the same time.
fn many_at_once() {
    let cache = cache(LEVEL, 8, 2);
    let file = open(&cache, LEVEL, &MemoryFile::with(vec![1; 40 * PAGE]));
    let at = || fastrand::u64(..40 * PAGE as u64);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..2000).for_each(|_| write(&file, at(), &[2; 3000])));
        }
        scope.spawn(|| (0..1000).for_each(|_| drop(read(&file, at(), 5000))));
        scope.spawn(|| {
            for _ in 0..200 {
                wait(&cache, file.set_size(at())).unwrap();
                wait(&cache, file.new_epoch()).unwrap();
                wait(&cache, file.commit(Extent::default())).unwrap();
                wait(&cache, cache.retire_chunk()).unwrap();
            }
        });
    });
    cache.close();
}

#[test]
fn none_is_used_twice() {
    let before = nonces::count();
    let disk = MemoryFile::with(vec![1; 40 * PAGE]);
    for boot in 0..3 {
        use_all(&disk);
        abort(&disk);
        println!("after boot {boot}: {} nonces", nonces::count() - before);
    }
    many_at_once();
    println!("after many at once: {} nonces", nonces::count() - before);
    assert!(nonces::count() - before > 2000);
}

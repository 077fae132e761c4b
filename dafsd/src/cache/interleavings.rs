//! Every interleaving of fill, write, evict, truncate, write-back, new keys and one-sided read.
//!
//! Each scenario runs under all schedules with a bounded number of preemptions. A page's bytes are
//! all one value, and later writes have greater ones, so a reader can tell a mix of two versions, a
//! version older than one it has seen, and one from before a write that was acknowledged before the
//! read began.

use super::tests::{
    MemoryFile, PAGE, cache, key, open, ordma, ordma_with, read, refs, slots, wait, write,
};
use super::{Cache, CachedFile};
use dafs_keys::Protection;
use dafs_proto::Extent;
use ordma::arena::Guard;
use ordma::explore::{Actor, Explored, explore};
use ordma::{AccessFault, RemoteRef};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What the actors of a scenario share.
struct World {
    cache: Arc<Cache>,
    disk: Arc<MemoryFile>,
    file: Arc<CachedFile>,
    /// The greatest value whose write to block 0 has been acknowledged.
    acknowledged: AtomicU8,
}

impl World {
    /// A cache of `slots` slots over a file of `pages` pages of ones, of which block 0 is cached.
    fn new(level: Protection, slots: usize, pages: usize) -> Arc<Self> {
        let cache = cache(level, slots, 1);
        let disk = MemoryFile::with(vec![1; pages * PAGE]);
        let file = open(&cache, level, &disk);
        read(&file, 0, 1);
        Arc::new(Self { cache, disk, file, acknowledged: AtomicU8::new(1) })
    }

    fn reference(&self) -> RemoteRef {
        refs(&self.file)[0]
    }

    fn writer(self: &Arc<Self>, values: &'static [u8]) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || {
            for value in values {
                write(&world.file, 0, &[*value; PAGE]);
                world.acknowledged.store(*value, Ordering::Relaxed);
            }
        })
    }

    /// Writes half a page, so that the other half has to be kept or brought in.
    fn half_writer(self: &Arc<Self>, value: u8) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || write(&world.file, 0, &[value; PAGE / 2]))
    }

    /// Reads block 0 one-sidedly through one reference, again and again, with the key that it has
    /// until that is revoked.
    fn reader(self: &Arc<Self>, times: usize) -> Actor {
        let world = Arc::clone(self);
        let reference = self.reference();
        let mut held = key(&self.file);
        Box::new(move || {
            let mut seen = 0;
            for _ in 0..times {
                let floor = world.acknowledged.load(Ordering::Relaxed);
                match ordma_with(&world.cache.arena, &reference, &held) {
                    Ok((_, page)) => {
                        assert!(page.iter().all(|byte| *byte == page[0]), "a mix of versions");
                        assert!(page[0] >= floor, "{} after {floor} was acknowledged", page[0]);
                        assert!(page[0] >= seen, "{} after {seen} was seen", page[0]);
                        seen = page[0];
                    }
                    Err(AccessFault::Revoked) => {
                        let new = key(&world.file);
                        assert!(new.epoch() > held.epoch(), "revoked without a new key");
                        held = new;
                    }
                    Err(fault) => {
                        assert!(matches!(fault, AccessFault::Stale | AccessFault::Torn), "{fault}");
                    }
                }
            }
        })
    }

    /// Reads block 0 by RPC.
    fn rpc_reader(self: &Arc<Self>) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || {
            let floor = world.acknowledged.load(Ordering::Relaxed);
            let page = read(&world.file, 0, PAGE as u64);
            assert!(page.iter().all(|byte| *byte == page[0]), "a mix of versions");
            assert!(page[0] >= floor, "{} after {floor} was acknowledged", page[0]);
        })
    }

    /// Reads other blocks by RPC, which pushes block 0 out of a cache of two slots.
    fn evictor(self: &Arc<Self>, blocks: &'static [u64]) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || {
            for block in blocks {
                let page = read(&world.file, block * PAGE as u64, 1);
                assert_eq!(page, [1; PAGE]);
            }
        })
    }

    fn flusher(self: &Arc<Self>) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || {
            wait(&world.cache, world.file.commit(Extent::default())).map(drop).unwrap()
        })
    }

    /// Commits. If that succeeds, the disk has for good what was acknowledged before.
    fn committer(self: &Arc<Self>, failures: &Arc<AtomicU8>) -> Actor {
        let (world, failures) = (Arc::clone(self), Arc::clone(failures));
        Box::new(move || {
            let acknowledged = world.acknowledged.load(Ordering::Relaxed);
            match wait(&world.cache, world.file.commit(Extent::default())) {
                Ok(_) => {
                    let stable = world.disk.stable.lock().clone();
                    let is_there = stable[..PAGE].iter().all(|byte| *byte >= acknowledged);
                    assert!(is_there, "{} where {acknowledged} was committed", stable[0]);
                }
                Err(error) => {
                    assert_eq!(error.status, dafs_proto::Status::Io, "{error}");
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    }

    /// Gives the file new keys. Afterwards nothing is under an earlier one.
    fn revoker(self: &Arc<Self>, times: usize) -> Actor {
        let world = Arc::clone(self);
        Box::new(move || {
            for _ in 0..times {
                let old = key(&world.file);
                wait(&world.cache, world.file.new_epoch()).unwrap();
                for (mut payload, footer) in slots(&world.cache.arena) {
                    assert!(ordma::slot::open(&footer, &mut payload, &old).is_err());
                }
            }
        })
    }

    /// In the end the cache, a fresh reference and the disk agree.
    fn settle(&self, expected: impl Fn(&[u8]) -> bool) {
        let size = self.file.size();
        let cached = read(&self.file, 0, size.max(1));
        assert!(expected(&cached), "{:?}...", &cached[..cached.len().min(9)]);
        wait(&self.cache, self.file.commit(Extent::default())).unwrap();
        let blocks = self.file.blocks.lock();
        assert!(self.disk.bytes() == cached, "the disk has what clients see; {blocks:?}");
        drop(blocks);
        read(&self.file, 0, 1);
        let (_, page) = ordma(&self.file, &self.reference()).unwrap();
        assert_eq!(page, cached[..cached.len().min(PAGE)]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A round of write-back that some writer began may not have ended, and would keep the cache.
        while self.cache.runtime.run_queued() {}
        self.cache.close();
    }
}

fn complete(level: Protection, name: &str, explored: Explored) {
    println!("{level}: {name}: {} schedules", explored.schedules);
    assert!(explored.complete, "{name}: {explored:?}");
}

const MOST: usize = 200_000;

/// Makes one test per level out of a function that takes the level.
macro_rules! at {
    ($($module:ident $level:ident: $($name:ident),*;)*) => {
        $( mod $module { $( #[test] fn $name() {
            super::$name(dafs_keys::Protection::$level);
        } )* } )*
    };
}

at! {
    none None:
        write_and_one_sided_read,
        fill_write_evict_and_one_sided_read,
        partial_write_of_an_evicted_page,
        truncate_extend_fill_and_one_sided_read,
        two_writers_extend_while_it_is_written_back,
        commits_beside_a_sync_that_fails,
        a_commit_beside_write_back,
        a_chunk_is_retired_while_it_is_used,
        a_chunk_that_cannot_be_retired_loses_no_slot;
    keyed Keyed:
        new_keys_while_it_is_written_and_read,
        new_keys_while_it_is_written_back;
    sealed Sealed:
        write_and_one_sided_read,
        fill_write_evict_and_one_sided_read,
        partial_write_of_an_evicted_page,
        truncate_extend_fill_and_one_sided_read,
        two_writers_extend_while_it_is_written_back,
        commits_beside_a_sync_that_fails,
        a_chunk_is_retired_while_it_is_used,
        a_chunk_that_cannot_be_retired_loses_no_slot,
        new_keys_while_it_is_written_and_read,
        new_keys_while_it_is_written_back,
        new_keys_while_it_is_filled_and_evicted,
        new_keys_while_it_is_truncated;
}

fn write_and_one_sided_read(level: Protection) {
    let explored = explore(
        3,
        MOST,
        || {
            let world = World::new(level, 4, 1);
            (Arc::clone(&world), vec![world.writer(&[2, 3]), world.reader(2)])
        },
        |world| world.settle(|bytes| bytes == [3; PAGE]),
    );
    complete(level, "write, ordma", explored);
}

/// Three of the four parties with two preemptions, and all four with one.
fn fill_write_evict_and_one_sided_read(level: Protection) {
    for (left_out, preemptions) in [(None, 1), (Some(1), 2), (Some(2), 2), (Some(3), 2)] {
        let explored = explore(
            preemptions,
            MOST,
            || {
                let world = World::new(level, 2, 4);
                let mut actors = vec![
                    world.writer(&[2]),
                    world.reader(2),
                    world.evictor(&[1, 2]),
                    world.rpc_reader(),
                ];
                if let Some(left_out) = left_out {
                    drop(actors.remove(left_out));
                }
                (world, actors)
            },
            |world| {
                world.settle(|b| b[..PAGE] == [2; PAGE] && b[PAGE..] == [1; 3 * PAGE]);
            },
        );
        complete(level, &format!("write, ordma, evict, fill without {left_out:?}"), explored);
    }
}

fn partial_write_of_an_evicted_page(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 2, 4);
            read(&world.file, PAGE as u64, 1);
            let actors = vec![world.half_writer(2), world.evictor(&[2, 3]), world.flusher()];
            (world, actors)
        },
        |world| {
            world.settle(|b| b[..PAGE / 2] == [2; PAGE / 2] && b[PAGE / 2..PAGE] == [1; PAGE / 2]);
        },
    );
    complete(level, "partial write, evict, write-back", explored);
}

fn truncate_extend_fill_and_one_sided_read(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 2);
            let truncate = {
                let world = Arc::clone(&world);
                let reference = world.reference();
                read(&world.file, PAGE as u64, 1);
                let second = refs(&world.file)[1];
                Box::new(move || {
                    wait(&world.cache, world.file.set_size(10)).unwrap();
                    assert_eq!(ordma(&world.file, &second), Err(AccessFault::Stale));
                    let (footer, page) = ordma(&world.file, &reference).unwrap();
                    assert!(footer.last && page == [1; 10]);
                    wait(&world.cache, world.file.set_size(2 * PAGE as u64)).unwrap();
                    let (footer, page) = ordma(&world.file, &reference).unwrap();
                    assert!(!footer.last && page[10..] == [0; PAGE - 10]);
                }) as Actor
            };
            let fill = {
                let world = Arc::clone(&world);
                Box::new(move || {
                    read(&world.file, PAGE as u64, 1);
                    read(&world.file, 0, 1);
                }) as Actor
            };
            let actors = vec![truncate, fill, world.flusher()];
            (world, actors)
        },
        |world| {
            let mut expected = vec![1; 10];
            expected.resize(2 * PAGE, 0);
            world.settle(|bytes| bytes == expected);
        },
    );
    complete(level, "truncate, extend, fill, write-back", explored);
}

fn two_writers_extend_while_it_is_written_back(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 8, 0);
            let append = |at: u64, value: u8| {
                let world = Arc::clone(&world);
                Box::new(move || write(&world.file, at, &[value; 3000])) as Actor
            };
            let actors = vec![append(0, 7), append(3000, 8), world.flusher()];
            (world, actors)
        },
        |world| {
            world.settle(|b| b.len() == 6000 && b[..3000] == [7; 3000] && b[3000..] == [8; 3000])
        },
    );
    complete(level, "extend, extend, write-back", explored);
}

fn a_chunk_is_retired_while_it_is_used(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 2, 4);
            // A second chunk would be over the budget: grown as if the budget had shrunk since.
            world.cache.arena.grow(Guard::None).unwrap();
            read(&world.file, PAGE as u64, 2 * PAGE as u64);
            let retire = {
                let world = Arc::clone(&world);
                Box::new(move || {
                    assert!(wait(&world.cache, world.cache.retire_chunk()).unwrap());
                }) as Actor
            };
            let actors = vec![retire, world.writer(&[2]), world.reader(1)];
            (world, actors)
        },
        |world| world.settle(|bytes| bytes[..PAGE] == [2; PAGE] && bytes[PAGE..] == [1; 3 * PAGE]),
    );
    complete(level, "retire, write, ordma", explored);
}

/// One of two commits meets a sync that fails and loses what was written. It alone says so, and the
/// other one's success is true.
fn commits_beside_a_sync_that_fails(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 1);
            write(&world.file, 0, &[2; PAGE]);
            world.acknowledged.store(2, Ordering::Relaxed);
            world.disk.lose_next_sync.store(true, Ordering::Relaxed);
            let failures = Arc::default();
            let actors =
                vec![world.committer(&failures), world.committer(&failures), world.writer(&[3])];
            ((world, failures), actors)
        },
        |(world, failures)| {
            assert_eq!(failures.load(Ordering::Relaxed), 1, "of two commits");
            world.settle(|bytes| bytes == [3; PAGE]);
            assert_eq!(*world.disk.stable.lock(), [3; PAGE]);
        },
    );
    complete(level, "commit, commit, write, failing sync", explored);
}

/// A page that is written back anew while an earlier version of it is being made stable is not taken for
/// stable: it is written once more where the next sync fails.
fn a_commit_beside_write_back(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 1);
            write(&world.file, 0, &[2; PAGE]);
            world.acknowledged.store(2, Ordering::Relaxed);
            let write_back = {
                let world = Arc::clone(&world);
                Box::new(move || wait(&world.cache, world.file.flush(0..=u64::MAX)).unwrap())
            };
            let failures = Arc::default();
            let actors: Vec<Actor> =
                vec![world.committer(&failures), world.writer(&[3]), write_back];
            ((world, failures), actors)
        },
        |(world, failures)| {
            assert_eq!(failures.load(Ordering::Relaxed), 0);
            world.disk.lose_next_sync.store(true, Ordering::Relaxed);
            wait(&world.cache, world.file.commit(Extent::default())).unwrap_err();
            world.settle(|bytes| bytes == [3; PAGE]);
            assert_eq!(*world.disk.stable.lock(), [3; PAGE]);
        },
    );
    complete(level, "commit, write, write-back", explored);
}

/// The disk takes nothing of a chunk that is to go, so it stays; all of its slots can be used.
fn a_chunk_that_cannot_be_retired_loses_no_slot(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 3, 8);
            let id = world.cache.arena.grow(Guard::None).unwrap().id();
            read(&world.file, 0, 6 * PAGE as u64);
            let there = refs(&world.file);
            let block = there.iter().find(|page| page.chunk == id).expect("one in the chunk").block;
            write(&world.file, block * PAGE as u64, &[1; PAGE]);
            world.disk.fail_sync.store(true, Ordering::Relaxed);
            let retire = {
                let world = Arc::clone(&world);
                Box::new(move || {
                    wait(&world.cache, world.cache.retire_chunk()).expect_err("it is not taken");
                }) as Actor
            };
            let write_another = {
                let world = Arc::clone(&world);
                Box::new(move || write(&world.file, 7 * PAGE as u64, &[1; PAGE])) as Actor
            };
            let actors = vec![retire, write_another, world.evictor(&[6])];
            (world, actors)
        },
        |world| {
            world.disk.fail_sync.store(false, Ordering::Relaxed);
            world.settle(|bytes| bytes == [1; 8 * PAGE]);
            read(&world.file, 0, 8 * PAGE as u64);
            assert_eq!(refs(&world.file).len(), 6, "pages in six slots");
        },
    );
    complete(level, "retire that fails, write, fill", explored);
}

/// Two new keys, which a reader with the old one and a writer meet anywhere.
fn new_keys_while_it_is_written_and_read(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 1);
            let actors = vec![world.revoker(2), world.writer(&[2, 3]), world.reader(3)];
            (world, actors)
        },
        |world| world.settle(|bytes| bytes == [3; PAGE]),
    );
    complete(level, "new key, write, ordma", explored);
}

/// A page that is dirty gets a new key while it is written in part and written back.
fn new_keys_while_it_is_written_back(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 1);
            write(&world.file, 0, &[2; PAGE]);
            let actors = vec![world.revoker(2), world.half_writer(3), world.flusher()];
            (world, actors)
        },
        |world| world.settle(|b| b[..PAGE / 2] == [3; PAGE / 2] && b[PAGE / 2..] == [2; PAGE / 2]),
    );
    complete(level, "new key, partial write, write-back", explored);
}

/// Pages come and go, and a reply has those of one epoch only, while the key changes.
fn new_keys_while_it_is_filled_and_evicted(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 2, 3);
            let all = {
                let world = Arc::clone(&world);
                Box::new(move || assert!(read(&world.file, 0, 3 * PAGE as u64) == [1; 3 * PAGE]))
            };
            let actors: Vec<Actor> = vec![world.revoker(1), all, world.evictor(&[2])];
            (world, actors)
        },
        |world| world.settle(|bytes| bytes == [1; 3 * PAGE]),
    );
    complete(level, "new key, fill, evict", explored);
}

/// The end of the file moves while the key changes.
fn new_keys_while_it_is_truncated(level: Protection) {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(level, 4, 2);
            write(&world.file, PAGE as u64, &[2; PAGE]);
            let truncate = {
                let world = Arc::clone(&world);
                Box::new(move || {
                    wait(&world.cache, world.file.set_size(10)).unwrap();
                    write(&world.file, 2 * PAGE as u64 - 1, &[3]);
                })
            };
            let actors: Vec<Actor> = vec![world.revoker(1), truncate, world.flusher()];
            (world, actors)
        },
        |world| {
            let mut expected = vec![1; 10];
            expected.resize(2 * PAGE - 1, 0);
            expected.push(3);
            world.settle(|bytes| bytes == expected);
        },
    );
    complete(level, "new key, truncate, extend, write-back", explored);
}

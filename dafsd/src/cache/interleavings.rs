//! Every interleaving of fill, write, evict, truncate, write-back and one-sided read.
//!
//! Each scenario runs under all schedules with a bounded number of preemptions. A page's bytes are
//! all one value, and later writes have greater ones, so a reader can tell a mix of two versions, a
//! version older than one it has seen, and one from before a write that was acknowledged before the
//! read began.

use super::tests::{MemoryFile, PAGE, cache, ordma, read, refs, wait, write};
use super::{Cache, CachedFile};
use crate::store::StoreFile;
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
    fn new(slots: usize, pages: usize) -> Arc<Self> {
        let cache = cache(slots, 1);
        let disk = MemoryFile::with(vec![1; pages * PAGE]);
        let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
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

    /// Reads block 0 one-sidedly through one reference, again and again.
    fn reader(self: &Arc<Self>, times: usize) -> Actor {
        let world = Arc::clone(self);
        let reference = self.reference();
        Box::new(move || {
            let mut seen = 0;
            for _ in 0..times {
                let floor = world.acknowledged.load(Ordering::Relaxed);
                match ordma(&world.cache.arena, &reference) {
                    Ok((_, page)) => {
                        assert!(page.iter().all(|byte| *byte == page[0]), "a mix of versions");
                        assert!(page[0] >= floor, "{} after {floor} was acknowledged", page[0]);
                        assert!(page[0] >= seen, "{} after {seen} was seen", page[0]);
                        seen = page[0];
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
        Box::new(move || wait(&world.cache, world.file.commit(Extent::default())).unwrap())
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
        let (_, page) = ordma(&self.cache.arena, &self.reference()).unwrap();
        assert_eq!(page, cached[..cached.len().min(PAGE)]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cache.close();
    }
}

fn complete(name: &str, explored: Explored) {
    println!("{name}: {} schedules", explored.schedules);
    assert!(explored.complete, "{name}: {explored:?}");
}

const MOST: usize = 200_000;

#[test]
fn write_and_one_sided_read() {
    let explored = explore(
        3,
        MOST,
        || {
            let world = World::new(4, 1);
            (Arc::clone(&world), vec![world.writer(&[2, 3]), world.reader(2)])
        },
        |world| world.settle(|bytes| bytes == [3; PAGE]),
    );
    complete("write, ordma", explored);
}

/// Three of the four parties with two preemptions, and all four with one.
#[test]
fn fill_write_evict_and_one_sided_read() {
    for (left_out, preemptions) in [(None, 1), (Some(1), 2), (Some(2), 2), (Some(3), 2)] {
        let explored = explore(
            preemptions,
            MOST,
            || {
                let world = World::new(2, 4);
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
        complete(&format!("write, ordma, evict, fill without {left_out:?}"), explored);
    }
}

#[test]
fn partial_write_of_an_evicted_page() {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(2, 4);
            read(&world.file, PAGE as u64, 1);
            let actors = vec![world.half_writer(2), world.evictor(&[2, 3]), world.flusher()];
            (world, actors)
        },
        |world| {
            world.settle(|b| b[..PAGE / 2] == [2; PAGE / 2] && b[PAGE / 2..PAGE] == [1; PAGE / 2]);
        },
    );
    complete("partial write, evict, write-back", explored);
}

#[test]
fn truncate_extend_fill_and_one_sided_read() {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(4, 2);
            let truncate = {
                let world = Arc::clone(&world);
                let reference = world.reference();
                read(&world.file, PAGE as u64, 1);
                let second = refs(&world.file)[1];
                Box::new(move || {
                    wait(&world.cache, world.file.set_size(10)).unwrap();
                    assert_eq!(ordma(&world.cache.arena, &second), Err(AccessFault::Stale));
                    let (footer, page) = ordma(&world.cache.arena, &reference).unwrap();
                    assert!(footer.last && page == [1; 10]);
                    wait(&world.cache, world.file.set_size(2 * PAGE as u64)).unwrap();
                    let (footer, page) = ordma(&world.cache.arena, &reference).unwrap();
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
    complete("truncate, extend, fill, write-back", explored);
}

#[test]
fn two_writers_extend_while_it_is_written_back() {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(8, 0);
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
    complete("extend, extend, write-back", explored);
}

#[test]
fn a_chunk_is_retired_while_it_is_used() {
    let explored = explore(
        2,
        MOST,
        || {
            let world = World::new(2, 4);
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
    complete("retire, write, ordma", explored);
}

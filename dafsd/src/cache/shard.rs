//! One shard of the page table: plain data under one lock.

use super::Hasher;
use dafs_keys::page::VERSIONS;
use event_listener::Event;
use ordma::arena::Guard;
use ordma::{Arena, ChunkId, Slot};
use std::collections::HashMap;
use std::sync::Arc;

/// Names a page: file number and block.
pub(super) type Key = (u64, u64);

/// Most that a page's heat can grow to, and so the most sweeps of the clock it outlives unread.
const HOTTEST: u8 = 15;

/// A page that lies in a slot.
#[derive(Debug)]
pub(super) struct Page {
    pub slot: Slot,
    pub generation: u64,
    pub version: u64,
    /// Differs from what the store was given, or is being written there.
    pub dirty: bool,
    /// Was written to the store, which has not made it stable yet. It stays, for should the store
    /// fail to, it has to be written again.
    pub written: bool,
    heat: u8,
    /// Where the key stands in its clock's ring.
    ring: usize,
}

impl Page {
    /// Whether the disk has it for good, so that it may go.
    pub fn is_clean(&self) -> bool {
        !self.dirty && !self.written
    }

    /// Generation and version: what tells this content, under this key, from all others.
    pub fn state(&self) -> (u64, u64) {
        (self.generation, self.version)
    }

    /// Spends a version for a change that is about to be made: the page's new state, which has not
    /// been any page's before and will not be another's, whatever becomes of the change. After the
    /// last version comes a new generation.
    pub fn spend_version(&mut self, arena: &Arena) -> (u64, u64) {
        self.version += 1;
        if self.version >= VERSIONS {
            self.generation = arena.next_generation();
            self.version = 0;
        }
        self.state()
    }
}

/// What the table knows of a page.
#[derive(Debug)]
pub(super) enum Entry {
    /// Its slot is reserved and the disk is being read; the event tells the end of it.
    Filling(Arc<Event>),
    /// It can be read.
    Live(Page),
}

/// A shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    entries: HashMap<Key, Entry, Hasher>,
    /// Of the pages in chunks without a guard.
    clock: Clock,
    /// Of those in chunks with [`Guard::Tags`].
    tagged: Clock,
}

/// Picks what has to go among the live pages of one guard, whose keys its ring holds in no order.
#[derive(Debug, Default)]
struct Clock {
    ring: Vec<Key>,
    hand: usize,
}

impl Shard {
    fn clock(&mut self, guard: Guard) -> &mut Clock {
        match guard {
            Guard::None => &mut self.clock,
            Guard::Tags => &mut self.tagged,
        }
    }

    pub fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(&key)
    }

    /// The live page, and counts the access.
    pub fn touch(&mut self, key: Key) -> Option<&mut Page> {
        let page = self.page(key)?;
        page.heat = page.heat.saturating_add(1).min(HOTTEST);
        Some(page)
    }

    /// The live page.
    pub fn page(&mut self, key: Key) -> Option<&mut Page> {
        match self.entries.get_mut(&key) {
            Some(Entry::Live(page)) => Some(page),
            _ => None,
        }
    }

    /// Adds heat that a client reported, if the page is still the one it read.
    pub fn warm(&mut self, key: Key, generation: u64, heat: u8) {
        if let Some(page) = self.page(key).filter(|page| page.generation == generation) {
            page.heat = page.heat.saturating_add(heat).min(HOTTEST);
        }
    }

    /// Reserves the page for a fill; `false` where there is an entry already.
    pub fn reserve(&mut self, key: Key, done: &Arc<Event>) -> bool {
        match self.entries.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Entry::Filling(Arc::clone(done)));
                true
            }
        }
    }

    /// Ends a reservation without a page.
    pub fn unreserve(&mut self, key: Key) {
        if matches!(self.entries.get(&key), Some(Entry::Filling(_))) {
            self.entries.remove(&key);
        }
    }

    /// Enters a page whose slot has been written.
    pub fn insert(&mut self, key: Key, slot: Slot, generation: u64, dirty: bool) {
        let ring = &mut self.clock(slot.chunk.guard()).ring;
        let at = ring.len();
        ring.push(key);
        let page = Page { slot, generation, version: 0, dirty, written: false, heat: 1, ring: at };
        let before = self.entries.insert(key, Entry::Live(page));
        debug_assert!(!matches!(before, Some(Entry::Live(_))), "a page has one slot");
    }

    /// Kills the page's slot and takes the page out of the table.
    pub fn kill(&mut self, key: Key) -> Option<Page> {
        match self.entries.remove(&key) {
            Some(Entry::Live(page)) => {
                page.slot.kill();
                let ring = &mut self.clock(page.slot.chunk.guard()).ring;
                ring.swap_remove(page.ring);
                let moved = ring.get(page.ring).copied();
                if let Some(other) = moved.and_then(|key| self.page(key)) {
                    other.ring = page.ring;
                }
                Some(page)
            }
            Some(filling) => {
                self.entries.insert(key, filling);
                None
            }
            None => None,
        }
    }

    /// Moves the hand of the guard's clock until it finds a clean page that no one has read since the
    /// hand last passed, and kills that one. `None` where one full round of cooling finds none.
    pub fn evict(&mut self, guard: Guard) -> Option<(Key, Page)> {
        for _ in 0..self.clock(guard).ring.len() * (usize::from(HOTTEST) + 1) {
            let Clock { ring, hand } = self.clock(guard);
            if *hand >= ring.len() {
                *hand = 0;
            }
            let key = ring[*hand];
            let page = self.page(key)?;
            if !page.is_clean() || page.heat > 0 {
                page.heat = page.heat.saturating_sub(1);
                self.clock(guard).hand += 1;
                continue;
            }
            return self.kill(key).map(|page| (key, page));
        }
        None
    }

    /// The live pages that lie in a chunk, and whether each is clean.
    pub fn in_chunk(&self, chunk: ChunkId) -> Vec<(Key, bool)> {
        let live = self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Live(page) if page.slot.chunk.id() == chunk => Some((*key, page.is_clean())),
            _ => None,
        });
        live.collect()
    }

    /// The fills under way.
    pub fn filling(&self) -> Option<Arc<Event>> {
        self.entries.values().find_map(|entry| match entry {
            Entry::Filling(done) => Some(Arc::clone(done)),
            Entry::Live(_) => None,
        })
    }

    /// Live pages.
    pub fn len(&self) -> usize {
        self.clock.ring.len() + self.tagged.ring.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ordma::arena::Geometry;

    fn shard_with(pages: u64) -> (Arena, Shard) {
        let arena = Arena::new(Geometry::new(4096, 16 * 4096).unwrap());
        arena.grow(Guard::None).unwrap();
        let mut shard = Shard::default();
        for block in 0..pages {
            shard.insert(
                (1, block),
                arena.take(Guard::None).unwrap(),
                arena.next_generation(),
                false,
            );
        }
        (arena, shard)
    }

    #[test]
    fn the_clock_spares_what_is_read_dirty_or_reported_hot() {
        let (_arena, mut shard) = shard_with(8);
        for _ in 0..3 {
            shard.touch((1, 3));
        }
        shard.page((1, 4)).unwrap().dirty = true;
        let generation = shard.page((1, 5)).unwrap().generation;
        shard.warm((1, 5), generation, 9);
        shard.warm((1, 6), generation, 9);
        let mut victims: Vec<u64> =
            (0..6).filter_map(|_| shard.evict(Guard::None)).map(|v| v.0.1).collect();
        victims.sort_unstable();
        assert_eq!(victims, [0, 1, 2, 3, 6, 7]);
        assert_eq!(shard.evict(Guard::None).map(|v| v.0), Some((1, 5)));
        assert!(shard.evict(Guard::None).is_none(), "only a dirty page is left");
        assert_eq!(shard.len(), 1);
    }

    #[test]
    fn a_killed_page_is_dead_in_memory() {
        let (_arena, mut shard) = shard_with(3);
        let page = shard.kill((1, 1)).unwrap();
        let footer = page.slot.chunk.footer(page.slot.index).unwrap();
        assert_eq!(footer[32..40], [0; 8]);
        assert!(shard.kill((1, 1)).is_none());
        assert!(shard.kill((1, 2)).is_some() && shard.kill((1, 0)).is_some());
        assert_eq!(shard.len(), 0);
    }

    #[test]
    fn a_page_is_reserved_once() {
        let (arena, mut shard) = shard_with(0);
        let done = Arc::new(Event::new());
        assert!(shard.reserve((1, 0), &done));
        assert!(!shard.reserve((1, 0), &done));
        assert!(shard.kill((1, 0)).is_none(), "a fill is not killed");
        shard.insert((1, 0), arena.take(Guard::None).unwrap(), 1, true);
        assert!(shard.page((1, 0)).unwrap().dirty);
    }
}

//! The reference directory: which page lies where in the server's memory, as far as this client
//! has heard.
//!
//! Bounded; plain data, no clock and no I/O. An entry takes 56 bytes and its share of the index 4
//! to 8; memory is taken as the directory fills. Each reference has a *version floor*, the newest
//! version of the page that this client has seen, below which no one-sided read is accepted.

mod index;
mod replacement;
#[cfg(test)]
mod tests;

pub use replacement::Replacement;

use index::{Chained, Index};
use ordma::{AccessFault, ChunkId, RemoteRef};
use replacement::{Linked, Node, Policy};
use std::ops::Range;

/// A reference that the directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The reference.
    pub reference: RemoteRef,
    /// The newest version seen of the page within the reference's generation; `None` if none was
    /// seen yet.
    pub seen: Option<u64>,
}

impl Known {
    /// The least version that a read through the reference may return.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.seen.unwrap_or(0)
    }
}

/// One entry. The version is kept plus one, so that 0 says that none was seen; versions stay below
/// 2^32 and one that does not is kept as the largest.
#[derive(Clone, Copy, Debug)]
struct Entry {
    file: u64,
    block: u64,
    generation: u64,
    chunk: ChunkId,
    slot: u32,
    seen: u32,
    chain: u32,
    node: Node,
}

impl Entry {
    fn known(&self) -> Known {
        let reference = RemoteRef {
            chunk: self.chunk,
            slot: self.slot,
            file: self.file,
            block: self.block,
            generation: self.generation,
        };
        Known { reference, seen: self.seen.checked_sub(1).map(u64::from) }
    }
}

fn stored(version: Option<u64>) -> u32 {
    version.map_or(0, |v| u32::try_from(v.saturating_add(1)).unwrap_or(u32::MAX))
}

impl Chained for Entry {
    fn key(&self) -> (u64, u64) {
        (self.file, self.block)
    }

    fn chain(&mut self) -> &mut u32 {
        &mut self.chain
    }
}

impl Linked for Entry {
    fn node(&mut self) -> &mut Node {
        &mut self.node
    }
}

/// The reference directory.
#[derive(Debug)]
pub struct Directory {
    capacity: usize,
    slab: Vec<Entry>,
    free: Vec<u32>,
    index: Index,
    policy: Policy,
}

impl Directory {
    /// A directory of at most `capacity` references (at least 1, at most 2^31).
    #[must_use]
    pub fn new(capacity: usize, replacement: Replacement) -> Self {
        let capacity = capacity.clamp(1, 1 << 31);
        Self {
            capacity,
            slab: Vec::new(),
            free: Vec::new(),
            index: Index::new(capacity),
            policy: Policy::new(replacement, capacity),
        }
    }

    /// References held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    /// Whether no reference is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most references held at once.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The reference of a page, which counts as used.
    pub fn lookup(&mut self, file: u64, block: u64) -> Option<Known> {
        let place = self.index.find(&mut self.slab, (file, block))?;
        Some(self.used(place))
    }

    /// [Looks up](Self::lookup) neighbouring pages, in their order. References that were installed
    /// one after the other lie side by side, where each is found without the index.
    pub fn lookup_run(
        &mut self,
        file: u64,
        blocks: Range<u64>,
    ) -> impl Iterator<Item = Option<Known>> {
        let mut beside = None;
        blocks.map(move |block| {
            let key = (file, block);
            let place = match beside {
                Some(place) if self.holds(place, key) => place,
                _ => self.index.find(&mut self.slab, key)?,
            };
            beside = Some(place + 1);
            Some(self.used(place))
        })
    }

    /// Whether the entry at `place`, where there is one, is in the directory and of this page.
    fn holds(&self, place: u32, key: (u64, u64)) -> bool {
        let entry = self.slab.get(place as usize);
        entry.is_some_and(|entry| entry.generation != 0 && entry.key() == key)
    }

    fn used(&mut self, place: u32) -> Known {
        self.policy.touch(&mut self.slab, place);
        self.slab[place as usize].known()
    }

    /// The reference of a page; does not count as a use.
    pub fn peek(&mut self, file: u64, block: u64) -> Option<Known> {
        let place = self.index.find(&mut self.slab, (file, block))?;
        Some(self.slab[place as usize].known())
    }

    /// Takes a reference in, with the version of the page if one was seen with it.
    ///
    /// A newer generation replaces what was there, and the floor becomes `version`. Within the same
    /// generation the floor only rises. An older generation, from a reply that was overtaken, is
    /// ignored, as is generation 0, which no live page has.
    pub fn install(&mut self, reference: RemoteRef, version: Option<u64>) {
        if reference.generation == 0 {
            return;
        }
        let key = (reference.file, reference.block);
        let Some(place) = self.index.find(&mut self.slab, key) else {
            self.insert(reference, version);
            return;
        };
        let entry = &mut self.slab[place as usize];
        if reference.generation < entry.generation {
            return;
        }
        let before = if reference.generation == entry.generation { entry.seen } else { 0 };
        entry.generation = reference.generation;
        entry.chunk = reference.chunk;
        entry.slot = reference.slot;
        entry.seen = before.max(stored(version));
    }

    fn insert(&mut self, reference: RemoteRef, version: Option<u64>) {
        if self.len() == self.capacity
            && let Some(victim) = self.policy.victim()
        {
            let key = self.slab[victim as usize].key();
            self.policy.evict(&mut self.slab, victim, key);
            self.index.remove(&mut self.slab, victim);
            self.free.push(victim);
        }
        let entry = Entry {
            file: reference.file,
            block: reference.block,
            generation: reference.generation,
            chunk: reference.chunk,
            slot: reference.slot,
            seen: stored(version),
            chain: 0,
            node: Node::UNLINKED,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.slab[place as usize] = entry;
                place
            }
            None => {
                self.slab.push(entry);
                // The capacity is at most 2^31.
                u32::try_from(self.slab.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.index.insert(&mut self.slab, place);
        self.policy.insert(&mut self.slab, place, (reference.file, reference.block));
    }

    /// Notes that a page was seen in this version and generation: the floor rises if the directory
    /// holds that generation.
    pub fn saw(&mut self, file: u64, block: u64, generation: u64, version: u64) {
        if let Some(place) = self.index.find(&mut self.slab, (file, block)) {
            let entry = &mut self.slab[place as usize];
            if entry.generation == generation {
                entry.seen = entry.seen.max(stored(Some(version)));
            }
        }
    }

    /// Notes that a read through a reference faulted: `Torn` keeps the reference, all others drop
    /// it, unless a newer one has come meanwhile. `Gone` drops all references into the chunk, which
    /// looks at every entry, once for a chunk.
    pub fn faulted(&mut self, reference: &RemoteRef, fault: AccessFault) {
        if fault.keeps_reference() {
            return;
        }
        if let Some(place) = self.index.find(&mut self.slab, (reference.file, reference.block))
            && self.slab[place as usize].generation == reference.generation
        {
            self.remove(place);
            if fault == AccessFault::Gone {
                self.drop_chunk(reference.chunk);
            }
        }
    }

    fn remove(&mut self, place: u32) {
        self.policy.remove(&mut self.slab, place);
        self.index.remove(&mut self.slab, place);
        self.slab[place as usize].generation = 0;
        self.free.push(place);
    }

    /// Drops the references into a chunk. Looks at every entry.
    pub fn drop_chunk(&mut self, chunk: ChunkId) {
        self.drop_where(|entry| entry.chunk == chunk);
    }

    /// Drops the references to a file's pages. Looks at every entry.
    pub fn drop_file(&mut self, file: u64) {
        self.drop_where(|entry| entry.file == file);
    }

    fn drop_where(&mut self, condition: impl Fn(&Entry) -> bool) {
        for place in 0..self.slab.len() {
            let entry = &self.slab[place];
            if entry.generation != 0 && condition(entry) {
                self.remove(u32::try_from(place).unwrap_or(u32::MAX));
            }
        }
    }

    /// Drops everything: the server has a new boot id.
    pub fn clear(&mut self) {
        self.slab = Vec::new();
        self.free = Vec::new();
        self.index.clear();
        self.policy.clear();
    }
}

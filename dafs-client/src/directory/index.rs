//! A hash index from (file, block) to places in a slab, chained through the slab's own entries.

use foldhash::fast::RandomState;
use std::hash::BuildHasher;

/// What the index needs of a slab's entries.
pub(super) trait Chained {
    /// File and block.
    fn key(&self) -> (u64, u64);
    /// The link that the index keeps in the entry: 0 for none, else place + 1.
    fn chain(&mut self) -> &mut u32;
}

/// Buckets of chains. Seeded at random: file numbers and blocks come from the server.
#[derive(Debug)]
pub(super) struct Index {
    heads: Vec<u32>,
    hasher: RandomState,
}

impl Index {
    /// An index for up to `capacity` entries. Takes 4 to 8 bytes an entry, touched as it fills.
    pub(super) fn new(capacity: usize) -> Self {
        Self { heads: vec![0; capacity.next_power_of_two()], hasher: RandomState::default() }
    }

    fn bucket(&self, key: (u64, u64)) -> usize {
        let hash = self.hasher.hash_one(key);
        // The mask keeps the result below a length that fits in memory.
        #[allow(clippy::cast_possible_truncation)]
        let low = hash as usize;
        low & (self.heads.len() - 1)
    }

    /// The place of the entry with this key.
    pub(super) fn find<T: Chained>(&self, slab: &mut [T], key: (u64, u64)) -> Option<u32> {
        let mut link = self.heads[self.bucket(key)];
        while link != 0 {
            let entry = &mut slab[link as usize - 1];
            if entry.key() == key {
                return Some(link - 1);
            }
            link = *entry.chain();
        }
        None
    }

    /// Adds the entry at `place`, whose key must not be there yet.
    pub(super) fn insert<T: Chained>(&mut self, slab: &mut [T], place: u32) {
        let bucket = self.bucket(slab[place as usize].key());
        *slab[place as usize].chain() = self.heads[bucket];
        self.heads[bucket] = place + 1;
    }

    /// Takes the entry at `place` out.
    pub(super) fn remove<T: Chained>(&mut self, slab: &mut [T], place: u32) {
        let bucket = self.bucket(slab[place as usize].key());
        let after = *slab[place as usize].chain();
        if self.heads[bucket] == place + 1 {
            self.heads[bucket] = after;
            return;
        }
        let mut link = self.heads[bucket];
        while link != 0 {
            let chain = slab[link as usize - 1].chain();
            if *chain == place + 1 {
                *chain = after;
                return;
            }
            link = *chain;
        }
    }

    /// Takes all entries out.
    pub(super) fn clear(&mut self) {
        self.heads.fill(0);
    }
}

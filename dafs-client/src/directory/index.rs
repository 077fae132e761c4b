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

/// Buckets of an empty index.
const FEWEST: usize = 64;

/// Buckets of chains. Seeded at random: file numbers and blocks come from the server.
#[derive(Debug)]
pub(super) struct Index {
    /// A power of two; doubles as entries come, so that few entries have their chains close
    /// together.
    heads: Vec<u32>,
    len: usize,
    most: usize,
    hasher: RandomState,
}

impl Index {
    /// An index for up to `capacity` entries. Takes 4 to 8 bytes an entry.
    pub(super) fn new(capacity: usize) -> Self {
        let most = capacity.next_power_of_two();
        let heads = vec![0; FEWEST.min(most)];
        Self { heads, len: 0, most, hasher: RandomState::default() }
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
        if self.len >= self.heads.len() && self.heads.len() < self.most {
            self.grow(slab);
        }
        self.len += 1;
        let bucket = self.bucket(slab[place as usize].key());
        *slab[place as usize].chain() = self.heads[bucket];
        self.heads[bucket] = place + 1;
    }

    /// Takes the entry at `place` out.
    pub(super) fn remove<T: Chained>(&mut self, slab: &mut [T], place: u32) {
        self.len = self.len.saturating_sub(1);
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
        self.heads = vec![0; FEWEST.min(self.most)];
        self.len = 0;
    }

    /// Doubles the buckets and links every entry anew.
    fn grow<T: Chained>(&mut self, slab: &mut [T]) {
        let heads = vec![0; self.heads.len() * 2];
        for mut link in std::mem::replace(&mut self.heads, heads) {
            while link != 0 {
                let entry = &mut slab[link as usize - 1];
                let bucket = self.bucket(entry.key());
                let next = std::mem::replace(entry.chain(), self.heads[bucket]);
                self.heads[bucket] = link;
                link = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(u64, u32);
    impl Chained for Item {
        fn key(&self) -> (u64, u64) {
            (1, self.0)
        }
        fn chain(&mut self) -> &mut u32 {
            &mut self.1
        }
    }

    #[test]
    fn every_entry_is_found_while_the_index_grows_and_shrinks() {
        let mut slab: Vec<Item> = (0..5000).map(|n| Item(n, 0)).collect();
        let mut index = Index::new(slab.len());
        for place in 0..5000u32 {
            index.insert(&mut slab, place);
            assert_eq!(index.find(&mut slab, (1, u64::from(place / 2))), Some(place / 2));
        }
        assert_eq!(index.heads.len(), 8192);
        for place in (0..5000u32).step_by(2) {
            index.remove(&mut slab, place);
        }
        for place in 0..5000u32 {
            let found = index.find(&mut slab, (1, u64::from(place)));
            assert_eq!(found, (place % 2 == 1).then_some(place));
        }
        index.clear();
        assert_eq!(index.find(&mut slab, (1, 1)), None);
    }
}

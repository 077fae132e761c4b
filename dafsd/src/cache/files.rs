//! The files that are cached, by identity and by number.
//!
//! There may be a million of them. So they lie in parts with a lock each, and whoever goes through all
//! of them does so part by part, and keeps nobody from opening a file for long.

use super::{CachedFile, Hasher};
use crate::store::Identity;
use crate::sync::Mutex;
use dafs_keys::{FileKey, Protection};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Parts of the tables.
const PARTS: usize = 64;
/// Bytes that a cached file costs beside itself, its key and its pages: its entries in tables, its block
/// set, and what its store keeps of it. From what 80 000 files of one page take at level `none`.
const AROUND: usize = 640;
/// Bytes that a page key costs beside itself, in the library of its cipher. From what 65 000 files of one
/// page take at level `sealed`.
const AROUND_KEY: usize = 800;

#[derive(Debug)]
pub(super) struct Files {
    hasher: Hasher,
    by_identity: Box<[Part<Identity, Arc<CachedFile>>]>,
    by_number: Box<[Part<u64, Weak<CachedFile>>]>,
    made: AtomicU64,
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// All were forgotten at once.
    cleared: AtomicBool,
}

type Part<K, V> = Mutex<HashMap<K, V, RandomState>>;

/// Bytes of memory that a file costs beside its pages.
fn cost(protection: Protection) -> usize {
    let key = if protection == Protection::Sealed { size_of::<FileKey>() + AROUND_KEY } else { 0 };
    size_of::<CachedFile>() + key + AROUND
}

impl Default for Files {
    fn default() -> Self {
        Self {
            hasher: Hasher::default(),
            by_identity: (0..PARTS).map(|_| Mutex::default()).collect(),
            by_number: (0..PARTS).map(|_| Mutex::default()).collect(),
            made: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            cleared: AtomicBool::new(false),
        }
    }
}

impl Files {
    fn part(&self, key: impl Hash) -> usize {
        usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or(0)
    }

    /// The file with this identity.
    pub(super) fn find(&self, identity: &Identity) -> Option<Arc<CachedFile>> {
        self.by_identity[self.part(identity)].lock().get(identity).cloned()
    }

    /// The file with this number, as long as somebody uses it.
    pub(super) fn numbered(&self, number: u64) -> Option<Arc<CachedFile>> {
        self.by_number[self.part(number)].lock().get(&number).and_then(Weak::upgrade)
    }

    /// The file with this identity, which `make` makes of a number where there is none; whether it was
    /// made.
    pub(super) fn find_or_make(
        &self,
        identity: Identity,
        make: impl FnOnce(u64) -> CachedFile,
    ) -> (Arc<CachedFile>, bool) {
        let mut part = self.by_identity[self.part(identity)].lock();
        match part.entry(identity) {
            Entry::Occupied(found) => (Arc::clone(found.get()), false),
            Entry::Vacant(vacant) => {
                let number = self.number(self.made.fetch_add(1, Ordering::Relaxed) + 1);
                let file = Arc::new(make(number));
                vacant.insert(Arc::clone(&file));
                self.by_number[self.part(number)].lock().insert(number, Arc::downgrade(&file));
                self.count.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(cost(file.protection()), Ordering::Relaxed);
                (file, true)
            }
        }
    }

    /// A file's number: looks random, and is never given twice within a boot, for it is a bijection
    /// of a counter.
    pub(super) fn number(&self, count: u64) -> u64 {
        let key = self.hasher.hash_one(0u64);
        let mixed = (count ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 29)
    }

    /// Forgets a file if it is this one, and `may` says so.
    pub(super) fn forget(&self, file: &Arc<CachedFile>, may: impl FnOnce() -> bool) {
        let identity = file.identity();
        let mut part = self.by_identity[self.part(identity)].lock();
        let is_it = part.get(&identity).is_some_and(|known| Arc::ptr_eq(known, file));
        if is_it && may() {
            part.remove(&identity);
            self.forgotten(file);
        }
    }

    fn forgotten(&self, file: &CachedFile) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(cost(file.protection()), Ordering::Relaxed);
    }

    /// Forgets a file without pages that only the caller has, beside the table.
    pub(super) fn forget_idle(&self, file: Arc<CachedFile>) {
        self.forget(&file, || Arc::strong_count(&file) == 2 && file.is_idle());
        let number = file.number();
        if Arc::into_inner(file).is_some() {
            self.by_number[self.part(number)].lock().remove(&number);
        }
    }

    /// Forgets the files that nobody has, and that have no pages.
    pub(super) fn sweep(&self) {
        for part in &self.by_identity {
            part.lock().retain(|_, file| {
                let stays = Arc::strong_count(file) > 1 || !file.is_idle();
                if !stays {
                    self.forgotten(file);
                }
                stays
            });
        }
        for part in &self.by_number {
            part.lock().retain(|_, file| file.strong_count() > 0);
        }
    }

    /// All files. Those of a part of the tables are had at a time.
    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<CachedFile>> {
        let of_part = |part: &Part<_, _>| part.lock().values().cloned().collect::<Vec<_>>();
        self.by_identity.iter().flat_map(of_part)
    }

    /// Forgets all. Whoever goes through them at the moment finds some no more.
    pub(super) fn clear(&self) {
        self.cleared.store(true, Ordering::Release);
        for part in &self.by_identity {
            let files = std::mem::take(&mut *part.lock());
            files.values().for_each(|file| self.forgotten(file));
        }
    }

    /// Whether all were forgotten.
    pub(super) fn is_cleared(&self) -> bool {
        self.cleared.load(Ordering::Acquire)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Bytes of memory that they cost beside their pages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

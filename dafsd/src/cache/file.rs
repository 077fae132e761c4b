//! One cached file.

use super::Cache;
use super::resize::Opens;
use super::shard::Entry;
use crate::store::{Identity, StoreFile};
use crate::sync::{Mutex, RwLock};
use dafs_proto::{Attr, Time, WireRef};
use ordma::{Footer, Kind};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file whose pages are cached. There is one for each identity, whatever names led to it.
pub struct CachedFile {
    pub(super) cache: Arc<Cache>,
    number: u64,
    identity: Identity,
    pub(super) store: RwLock<Arc<dyn StoreFile>>,
    /// Held across store I/O: shared by fills and write-back, exclusive for truncation and its
    /// like. A holder waits for nothing but the store.
    pub(super) gate: async_lock::RwLock<()>,
    /// One write-back at a time, or an older version could reach the disk after a newer one.
    pub(super) writing_back: async_lock::Mutex<()>,
    pub(super) meta: RwLock<Meta>,
    pub(super) blocks: Mutex<Blocks>,
    /// The block after the last fill, to tell sequential reading.
    pub(super) next_fill: AtomicU64,
    pub(super) opens: Opens,
}

/// What the server knows of a file beyond its pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    /// Size in bytes, including what is not on disk yet.
    pub size: u64,
    /// The time of the last write that the disk does not have yet.
    pub mtime: Option<SystemTime>,
    /// Grows with every change.
    pub change: u64,
    /// What the disk said after our own last I/O: `(ctime, size)`.
    pub on_disk: (i64, u32, u64),
    /// The last name is gone: nothing needs to reach the disk any more once it is closed.
    pub removed: bool,
}

/// Which blocks have an entry in the page table, and which of them are dirty.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub resident: BTreeSet<u64>,
    pub dirty: BTreeSet<u64>,
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile")
            .field("number", &self.number)
            .field("identity", &self.identity)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

impl CachedFile {
    pub(super) fn new(
        cache: Arc<Cache>,
        number: u64,
        store: Arc<dyn StoreFile>,
        attr: &Attr,
    ) -> Self {
        Self {
            cache,
            number,
            identity: store.identity(),
            store: RwLock::new(store),
            gate: async_lock::RwLock::new(()),
            writing_back: async_lock::Mutex::new(()),
            meta: RwLock::new(Meta {
                size: attr.size,
                mtime: None,
                change: attr.change,
                on_disk: disk_state(attr),
                removed: false,
            }),
            blocks: Mutex::default(),
            next_fill: AtomicU64::new(u64::MAX),
            opens: Opens::new(0),
        }
    }

    /// The file's number in footers and references during this boot.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The file's identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Size in bytes, including what is not on disk yet.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.meta.read().size
    }

    /// The write verifier now; see [`Cache::verifier`].
    #[must_use]
    pub fn verifier(&self) -> u64 {
        self.cache.verifier()
    }

    /// Puts what the disk does not have yet over attributes that were read from it.
    pub fn overlay(&self, attr: &mut Attr) {
        let meta = self.meta.read();
        attr.size = meta.size;
        attr.change = attr.change.max(meta.change);
        if let Some(mtime) = meta.mtime {
            attr.mtime = Some(wire_time(mtime));
            attr.ctime = attr.mtime;
        }
    }

    /// Appends references of the cached pages among `count` blocks from `first`.
    pub fn refs(&self, first: u64, count: u64, into: &mut Vec<u8>) {
        let end = first.saturating_add(count).min(self.last_block(self.size()) + 1);
        let mut block = first;
        while block < end {
            // Neighbours share a shard: one lock for all of them.
            let behind = Cache::next_shard_at(block).min(end);
            let shard = self.cache.shard((self.number, block)).lock();
            for block in block..behind {
                if let Some(Entry::Live(page)) = shard.get((self.number, block)) {
                    let (chunk, slot) = (page.slot.chunk.id(), page.slot.index);
                    WireRef { block, generation: page.generation, chunk, slot }.push(into);
                }
            }
            block = behind;
        }
    }

    /// The same file opened once more: keeps the descriptor that can write.
    pub(super) fn adopt(&self, file: Arc<dyn StoreFile>) {
        let mut store = self.store.write();
        if file.writable() && !store.writable() {
            *store = file;
        }
    }

    pub(super) fn store(&self) -> Arc<dyn StoreFile> {
        Arc::clone(&self.store.read())
    }

    /// Nothing of the file is in memory.
    pub(super) fn is_idle(&self) -> bool {
        self.blocks.lock().resident.is_empty()
    }

    pub(super) fn page_size(&self) -> u64 {
        self.cache.page_size() as u64
    }

    /// The block that holds the end of a file of this size.
    pub(super) fn last_block(&self, size: u64) -> u64 {
        size.saturating_sub(1) / self.page_size()
    }

    /// The footer of a block, as the size has it.
    pub(super) fn footer(&self, block: u64, generation: u64, version: u64, size: u64) -> Footer {
        let start = block * self.page_size();
        let valid = size.saturating_sub(start).min(self.page_size());
        Footer {
            kind: Kind::Data,
            sealed: false,
            epoch: 0,
            last: block == self.last_block(size),
            valid: u32::try_from(valid).unwrap_or(u32::MAX),
            file: self.number,
            block,
            generation,
            version,
        }
    }
}

impl Meta {
    /// Counts a change of data made now.
    pub fn changed(&mut self) {
        let now = SystemTime::now();
        let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.mtime = Some(now);
        self.change = (self.change + 1).max(u64::try_from(nanos).unwrap_or(0));
    }
}

/// What tells whether someone else changed the file: ctime and size.
pub(super) fn disk_state(attr: &Attr) -> (i64, u32, u64) {
    let ctime = attr.ctime.unwrap_or_default();
    (ctime.seconds, ctime.nanoseconds, attr.size)
}

fn wire_time(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}

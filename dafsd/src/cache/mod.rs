//! The page cache: pages of files in exported memory, written back to the store.
//!
//! | module | what it does |
//! |---|---|
//! | `shard` | the page table, and the clock that picks what has to go |
//! | `memory` | slots: taking, evicting, growing and shrinking the arena within the budget |
//! | `pressure` | shrinking it when the machine is short of memory |
//! | `file` | one cached file: its number, size and pages |
//! | `cover` | what guards a file's pages in exported memory: closing and opening them |
//! | `epochs` | new keys for files |
//! | `read`, `fill` | delivering pages, and bringing them in from the store |
//! | `change` | changes that clients make: one at a time of each range, and what of them is not stable |
//! | `write` | changing pages in place |
//! | `disk_state` | attributes, and whether someone else changed the file on the disk |
//! | `writeback` | writing dirty pages to the store, and making them stable |
//! | `resize` | truncation, removal |
//!
//! Locks, in the order in which they are taken: a file's `gate` (held across store I/O: shared by
//! fills and write-back, exclusive for what changes which bytes the store holds), a file's `meta`,
//! a shard, a file's `blocks`. The last three are never held across a wait, and but for new epochs
//! and truncation, which go through all pages of a file under its `meta`, for moments only.
//!
//! Size and key of a file are in its `meta`. Whoever puts a page into a slot holds it at least
//! shared, from before he looks at them until the page is in the table: so all pages in the table
//! are under the file's key of now.

mod change;
mod cover;
mod disk_state;
mod epochs;
mod file;
mod files;
mod fill;
mod memory;
mod pressure;
mod read;
mod resize;
mod shard;
mod volume;
mod write;
mod writeback;

pub use change::{Changed, Committed, Standing, Told, Writer};
pub use disk_state::Moment;
pub use file::CachedFile;
pub use read::{Delivery, Pages};
pub use resize::OpenFile;
pub use volume::{Flush, Share, Standstill};

use crate::runtime::Runtime;
use crate::sharing::{Boots, Owners};
use crate::store::{Identity, Result, StoreError, StoreFile};
use crate::sync::Mutex;
use dafs_keys::{Protection, Secret};
use dafs_proto::{Status, WireHeat};
use event_listener::Event;
use files::Files;
use ordma::arena::{Geometry, Guard};
use ordma::{Arena, Chunk, ChunkId};
use shard::{Key, Shard};
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What the page cache may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Sizes of pages and chunks.
    pub geometry: Geometry,
    /// Most bytes of memory for chunks, the tables that describe their pages, and what is kept of
    /// files. Chunks with tags
    /// and those without get half of it each where both are in use. At least one chunk is used, or
    /// one of either kind, however small this is.
    pub budget: usize,
    /// Most bytes of dirty pages, at most half of what either kind of chunk may use; writers wait
    /// beyond it.
    pub dirty_limit: usize,
    /// How long a page stays dirty before it is written back.
    pub writeback_interval: Duration,
    /// How long a client has to let go of a chunk before it is cut off.
    pub retire_patience: Duration,
    /// How long a writer, or whoever needs memory, waits for disks that take nothing.
    pub disk_patience: Duration,
}

/// Bytes of tables that each slot costs: its page's entry, its place in the ring and in the file's
/// block set, its place on the free list.
const SLOT_OVERHEAD: usize = 192;

/// How chunks are shown to and taken from clients.
pub trait Exporter: Send + Sync {
    /// Makes a chunk readable. Called before the first reference to it leaves.
    fn export(&self, chunk: &Arc<Chunk>);
    /// Makes all clients let go of a chunk whose slots are dead; see [`ordma::Listener::retire`].
    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Decides which shard a page lies in, and looks random. Tests that drive every interleaving need the same
/// course each time.
#[cfg(not(feature = "explore"))]
type Hasher = foldhash::fast::RandomState;
#[cfg(feature = "explore")]
type Hasher = foldhash::fast::FixedState;

const SHARDS: usize = 64;
/// Neighbouring blocks share a shard, two to this power of them, so that a large read takes few
/// locks.
const NEIGHBOURS: u32 = 4;

/// The page cache.
pub struct Cache {
    config: CacheConfig,
    arena: Arc<Arena>,
    exporter: Arc<dyn Exporter>,
    runtime: Runtime,
    /// What the page keys of this boot are derived from.
    secret: Secret,
    /// Those of the chunks that pages of the exports lie in.
    guards: Vec<Guard>,
    hasher: Hasher,
    shards: Box<[Mutex<Shard>]>,
    /// Where the next eviction begins to look.
    next_shard: AtomicUsize,
    files: Files,
    /// Bytes of dirty pages.
    dirty: AtomicUsize,
    /// What lies behind the exports.
    volumes: Mutex<Vec<Arc<volume::Volume>>>,
    /// The machine is short of memory.
    pressed: AtomicBool,
    /// Chunks are given back for files.
    shrinking: AtomicBool,
    /// When that was done last, where it was not enough.
    shrunk: Mutex<Option<Instant>>,
    /// A slot may have become free or evictable, or the dirty bytes fewer.
    relief: Event,
    /// The last write verifier that was given to a file.
    verifiers: AtomicU64,
    /// The runs of the server.
    boots: Arc<Boots>,
    /// Clients that have changes which they have not been told are stable.
    owners: Owners,
    /// Number of the last change of any file in this boot.
    changes: AtomicU64,
    /// How often the time of a file's last write was given to the disk.
    times_given: AtomicU64,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    fills: AtomicU64,
    evictions: AtomicU64,
    pages_written_back: AtomicU64,
    writeback_errors: AtomicU64,
    chunks_retired: AtomicU64,
    corrupt_pages: AtomicU64,
    /// Changes by others on the server's own disk that were noticed.
    changed_on_disk: AtomicU64,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache for files of exports with these protection levels, with keys of its own. It has one
    /// chunk, or one with tags and one without where the levels ask for both; more are added as they
    /// are needed.
    ///
    /// # Errors
    /// When the memory for the first chunks, or random numbers, cannot be had.
    pub fn new(
        config: CacheConfig,
        protections: impl IntoIterator<Item = Protection>,
        exporter: Arc<dyn Exporter>,
        runtime: Runtime,
        boots: Arc<Boots>,
    ) -> Result<Arc<Self>> {
        let secret = Secret::random().map_err(|no| error(Status::Io, no.to_string()))?;
        let arena = Arc::new(Arena::new(config.geometry));
        let mut guards = Vec::new();
        for guard in protections.into_iter().map(cover::guard) {
            if guards.contains(&guard) {
                continue;
            }
            let first = arena.grow(guard).map_err(|error| {
                StoreError::io("allocate the first chunk of the page cache", &error)
            })?;
            exporter.export(&first);
            guards.push(guard);
        }
        Ok(Arc::new(Self {
            config,
            arena,
            exporter,
            runtime,
            secret,
            guards,
            hasher: Hasher::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_shard: AtomicUsize::new(0),
            files: Files::default(),
            dirty: AtomicUsize::new(0),
            volumes: Mutex::default(),
            pressed: AtomicBool::new(false),
            shrinking: AtomicBool::new(false),
            shrunk: Mutex::default(),
            relief: Event::new(),
            verifiers: AtomicU64::new(fastrand::u64(..)),
            boots,
            owners: Owners::default(),
            changes: AtomicU64::new(0),
            times_given: AtomicU64::new(0),
            counters: Counters::default(),
        }))
    }

    /// The exported memory.
    #[must_use]
    pub fn arena(&self) -> Arc<Arena> {
        Arc::clone(&self.arena)
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.config.geometry.page_size
    }

    /// The runs of the server.
    #[must_use]
    pub fn boots(&self) -> &Arc<Boots> {
        &self.boots
    }

    /// Clients that have changes which they have not been told are stable.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// A write verifier that no file has had in this boot.
    fn next_verifier(&self) -> u64 {
        self.verifiers.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// The cached file for a store file that was opened through an export with this name and
    /// protection level; made if there is none yet. A writable `file` replaces a read-only one.
    ///
    /// # Errors
    /// When the file's attributes cannot be read; [`Status::Protection`] where the file is cached at
    /// another level, or the cache was not made for this one.
    pub fn open(
        self: &Arc<Self>,
        file: Arc<dyn StoreFile>,
        export: &str,
        protection: Protection,
    ) -> Result<Arc<CachedFile>> {
        let identity = file.identity();
        if let Some(found) = self.find(&identity) {
            found.adopt(file, export, protection)?;
            return Ok(found);
        }
        if !self.guards.contains(&cover::guard(protection)) {
            let what = format!("open a file at level {protection}, which no export has");
            return Err(error(Status::Protection, what));
        }
        let attr = file.attr()?;
        let (cached, made) = self.files.find_or_make(identity, |number| {
            CachedFile::new(Arc::clone(self), number, Arc::clone(&file), &attr, export, protection)
        });
        if made {
            self.make_room_for_files();
        } else {
            // Someone else was faster.
            cached.adopt(file, export, protection)?;
        }
        Ok(cached)
    }

    /// The cached file with this identity.
    #[must_use]
    pub fn find(&self, identity: &Identity) -> Option<Arc<CachedFile>> {
        self.files.find(identity)
    }

    /// Takes a client's report of pages that it read one-sidedly. However much it reports, all its
    /// pages together gain no more than `share`.
    pub fn heat(&self, share: usize, report: &[WireHeat]) {
        for entry in report.iter().take(share) {
            let key = (entry.file, entry.block);
            self.shard(key).lock().warm(key, entry.generation, 2);
        }
    }

    /// Names and values of the cache's counters.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        vec![
            ("cache_hits", get(&c.hits)),
            ("cache_fills", get(&c.fills)),
            ("cache_evictions", get(&c.evictions)),
            ("cache_pages", self.shards.iter().map(|s| s.lock().len() as u64).sum()),
            ("cache_pages_written_back", get(&c.pages_written_back)),
            ("cache_writeback_errors", get(&c.writeback_errors)),
            ("cache_chunks_retired", get(&c.chunks_retired)),
            ("cache_corrupt_pages", get(&c.corrupt_pages)),
            ("cache_changed_on_disk", get(&c.changed_on_disk)),
            ("cache_dirty_bytes", self.dirty.load(Ordering::Relaxed) as u64),
            ("cache_files", self.files.count() as u64),
            ("cache_file_bytes", self.files.bytes() as u64),
            ("arena_bytes", self.arena.bytes() as u64),
        ]
    }

    /// Forgets a file that was removed and that nobody has open.
    fn forget(&self, file: &Arc<CachedFile>) {
        self.files.forget(file, || file.opens.load(Ordering::Acquire) == 0);
        file.store().rest();
    }

    /// Forgets files that no one has open and that have no pages.
    pub fn sweep_files(&self) {
        self.files.sweep();
    }

    /// Ends the cache: kills every slot and forgets every file. What is dirty is lost, so
    /// [`flush_all`](Self::flush_all) comes first. Files that are still open find no page any more.
    pub fn close(&self) {
        for chunk in self.arena.chunks() {
            (0..chunk.geometry().slots).for_each(|slot| chunk.kill(slot));
        }
        self.files.clear();
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one((key.0, key.1 >> NEIGHBOURS));
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
    }

    /// The first block behind `block` that may lie in another shard.
    fn next_shard_at(block: u64) -> u64 {
        ((block >> NEIGHBOURS) + 1) << NEIGHBOURS
    }
}

/// An error of the cache itself.
fn error(status: Status, what: impl Into<String>) -> StoreError {
    StoreError::new(status, what)
}

#[cfg(all(test, feature = "explore"))]
mod interleavings;
#[cfg(test)]
mod tests;

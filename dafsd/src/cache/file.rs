//! One cached file.

use super::cover::{self, Cover};
use super::disk_state::OnDisk;
use super::resize::Opens;
use super::shard::Entry;
use super::volume::{Share, Trouble, Volume};
use super::{Cache, error};
use crate::sharing::Unstable;
use crate::store::{Identity, Result, StoreFile};
use crate::sync::{Mutex, RwLock};
use dafs_keys::secret::MacKey;
use dafs_keys::{FileKey, Protection, ReadKey, Secret};
use dafs_proto::{Attr, Status, Time, WireRef};
use event_listener::Event;
use ordma::arena::Guard;
use ordma::{FOOTER_LEN, Footer, Kind, RemoteRef, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Most bytes a file can have: what a signed 64-bit offset names.
const MAX_SIZE: u64 = i64::MAX as u64;

/// A file whose pages are cached. There is one for each identity, whatever names led to it.
pub struct CachedFile {
    pub(super) cache: Arc<Cache>,
    number: u64,
    identity: Identity,
    protection: Protection,
    /// Behind the export that it was opened through first.
    pub(super) volume: Arc<Volume>,
    /// Behind other exports that it was opened through.
    others: Mutex<Vec<Arc<Volume>>>,
    /// Why the disk does not take what is dirty.
    pub(super) trouble: Mutex<Option<Trouble>>,
    pub(super) store: RwLock<Arc<dyn StoreFile>>,
    /// Held across store I/O: shared by fills and write-back, exclusive for truncation and its
    /// like. A holder waits for nothing but the store.
    pub(super) gate: async_lock::RwLock<()>,
    /// One write-back at a time, or an older version could reach the disk after a newer one; and none
    /// while space is taken on the disk, which changes the same times.
    pub(super) writing_back: async_lock::Mutex<()>,
    /// One sync at a time: the store tells of a failure once, to whoever asked.
    pub(super) syncing: async_lock::Mutex<()>,
    /// The write verifier.
    verifier: u64,
    /// What is not stable yet, and whose it is. Locked alone.
    pub(super) unstable: Mutex<Unstable>,
    /// A change has ended, for which another one may wait.
    pub(super) changed: Event,
    pub(super) meta: RwLock<Meta>,
    pub(super) blocks: Mutex<Blocks>,
    /// The block after the last fill, to tell sequential reading.
    pub(super) next_fill: AtomicU64,
    pub(super) opens: Opens,
    /// Most bytes that the store can hold; asked for when it is needed first.
    max_size: OnceLock<u64>,
}

/// What the server knows of a file beyond its pages.
#[derive(Debug)]
pub(super) struct Meta {
    /// Size in bytes, including what is not on disk yet.
    pub size: u64,
    /// Counts the times that it was set, or that a write made the file longer.
    pub sizes: u64,
    /// What every page in the table is under.
    pub cover: Cover,
    /// The time of the last write that the disk does not have yet.
    pub mtime: Option<SystemTime>,
    /// Grows with every change.
    pub change: u64,
    /// What is known of the file on the disk.
    pub on_disk: OnDisk,
    /// The last name is gone: nothing needs to reach the disk any more once it is closed.
    pub removed: bool,
}

/// Which blocks have an entry in the page table, and which of them are not clean.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub resident: BTreeSet<u64>,
    /// Blocks whose pages have to be written to the store.
    pub dirty: BTreeSet<u64>,
    /// Blocks whose pages were written and are not known to be stable, with the number of syncs that
    /// had begun before.
    pub written: BTreeMap<u64, u64>,
    /// Whose share of dirty bytes the block counts to.
    pub payers: BTreeMap<u64, Arc<Share>>,
    /// Where the next write-back begins.
    pub resume_at: u64,
    /// Syncs of the file that have begun.
    pub syncs: u64,
    /// Syncs that have failed.
    pub failed_syncs: u64,
}

impl Blocks {
    /// Blocks whose pages are dirty, or written and not stable.
    pub fn unclean(&self) -> BTreeSet<u64> {
        self.dirty.iter().chain(self.written.keys()).copied().collect()
    }

    /// Whether all of it is on disk for good.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.written.is_empty()
    }
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
        export: &str,
        protection: Protection,
    ) -> Self {
        let cover = Cover::new(protection, &cache.secret, 1, number);
        let verifier = cache.next_verifier();
        let volume = cache.volume(export);
        Self {
            cache,
            number,
            identity: store.identity(),
            protection,
            volume,
            others: Mutex::default(),
            trouble: Mutex::default(),
            store: RwLock::new(store),
            gate: async_lock::RwLock::new(()),
            writing_back: async_lock::Mutex::new(()),
            syncing: async_lock::Mutex::new(()),
            verifier,
            unstable: Mutex::new(Unstable::new(attr.ctime)),
            changed: Event::new(),
            meta: RwLock::new(Meta {
                size: attr.size,
                sizes: 0,
                cover,
                mtime: None,
                change: attr.change,
                on_disk: OnDisk::new(attr),
                removed: false,
            }),
            blocks: Mutex::default(),
            next_fill: AtomicU64::new(u64::MAX),
            opens: Opens::new(0),
            max_size: OnceLock::new(),
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

    /// How its pages are guarded.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The epoch of its key, from 1 on; 0 at level `none`, which has no keys.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.meta.read().cover.epoch
    }

    /// What a reader in a session with this secret is given, and the epoch it is good for: at
    /// `sealed` the secret of the page key, at `keyed` that of the session's read key; `None` at
    /// `none`, and at `keyed` where there is no session.
    #[must_use]
    pub fn key(&self, session: Option<&MacKey>) -> Option<(u64, Secret)> {
        let Cover { epoch, key } = self.meta.read().cover.clone();
        let secret = match (self.protection, &*key) {
            (_, FileKey::Sealed(key)) => key.secret().clone(),
            (Protection::Keyed, _) => {
                ReadKey::derive(session?, epoch, self.number).secret().clone()
            }
            _ => return None,
        };
        Some((epoch, secret))
    }

    /// Size in bytes, including what is not on disk yet.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.meta.read().size
    }

    /// Most bytes the file can have: what the store can hold, and a signed 64-bit offset name.
    pub(super) fn max_size(&self) -> u64 {
        *self.max_size.get_or_init(|| self.store().max_size().min(MAX_SIZE))
    }

    /// The write verifier: another one where acknowledged writes may be lost, so that they are sent
    /// again. Pages stay in the cache until they are stable, so it stays the same as long as the file
    /// is cached.
    #[must_use]
    pub fn verifier(&self) -> u64 {
        self.verifier
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

    /// Whether it was opened through this export.
    pub(super) fn was_opened_through(&self, export: &str) -> bool {
        self.volume.name() == export
            || self.others.lock().iter().any(|volume| volume.name() == export)
    }

    /// The same file opened once more: keeps the descriptor that can write, and the export's name.
    ///
    /// # Errors
    /// [`Status::Protection`] where the export has another level, as with a hard link between two
    /// exports: the file's pages can lie in one way only. Nothing has changed then.
    pub(super) fn adopt(
        &self,
        file: Arc<dyn StoreFile>,
        export: &str,
        protection: Protection,
    ) -> Result<()> {
        if protection != self.protection {
            let what = format!(
                "open a file through export {export:?}, whose level is {protection}, while it is \
                 cached at level {} for another export",
                self.protection
            );
            return Err(error(Status::Protection, what));
        }
        if !self.was_opened_through(export) {
            let volume = self.cache.volume(export);
            let mut others = self.others.lock();
            if !others.iter().any(|other| Arc::ptr_eq(other, &volume)) {
                others.push(volume);
            }
        }
        let mut store = self.store.write();
        if file.writable() && !store.writable() {
            let before = std::mem::replace(&mut *store, file);
            let opens = self.opens.load(Ordering::Acquire);
            store.hold(opens);
            before.release(opens);
        }
        Ok(())
    }

    pub(super) fn store(&self) -> Arc<dyn StoreFile> {
        Arc::clone(&self.store.read())
    }

    /// Runs a call that may wait for the disk of the file.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.cache.runtime.blocking(self.volume.disk, call).await
    }

    /// Nothing of the file is in memory, and no client would send anything of it again.
    pub(super) fn is_idle(&self) -> bool {
        let blocks = self.blocks.lock();
        let empty = blocks.resident.is_empty() && blocks.is_clean();
        drop(blocks);
        empty && self.unstable.lock().is_idle()
    }

    /// What guards the chunks that its pages lie in.
    pub(super) fn guard(&self) -> Guard {
        cover::guard(self.protection)
    }

    pub(super) fn page_size(&self) -> u64 {
        self.cache.page_size() as u64
    }

    /// The block that holds the end of a file of this size.
    pub(super) fn last_block(&self, size: u64) -> u64 {
        size.saturating_sub(1) / self.page_size()
    }

    /// Puts a page, whose payload lies in private memory, into its slot, as the file's size and key
    /// have it: bytes behind the end of the file become zero, and the payload what is in the slot.
    /// Generation and version must have been spent for this alone.
    pub(super) fn put(
        &self,
        block: u64,
        slot: &Slot,
        (generation, version): (u64, u64),
        meta: &Meta,
        payload: &mut [u8],
    ) {
        let start = block * self.page_size();
        let valid = meta.size.saturating_sub(start).min(self.page_size());
        let footer = Footer {
            kind: Kind::Data,
            sealed: false,
            epoch: 0,
            last: block == self.last_block(meta.size),
            valid: u32::try_from(valid).unwrap_or(u32::MAX),
            file: self.number,
            block,
            generation,
            version,
        };
        payload[footer.valid as usize..].fill(0);
        let footer = meta.cover.close(&footer, payload);
        slot.write(payload, &footer);
    }

    /// Opens a copy of a page in place, for the server's own use. The slot was its own while it was
    /// copied, so the copy must be the page with this generation and version.
    ///
    /// # Errors
    /// [`Status::Io`] where it is not: memory is corrupt, or the server wrong. Logged and counted.
    /// The payload is of no meaning then.
    pub(super) fn open(
        &self,
        block: u64,
        (generation, version): (u64, u64),
        cover: &Cover,
        footer: &[u8; FOOTER_LEN],
        payload: &mut [u8],
    ) -> Result<()> {
        let page = RemoteRef { chunk: 0, slot: 0, file: self.number, block, generation };
        let Err(fault) = ordma::slot::accept(footer, payload, &page, version, &cover.key) else {
            return Ok(());
        };
        self.cache.counters.corrupt_pages.fetch_add(1, Ordering::Relaxed);
        let Identity { device, inode, .. } = self.identity;
        let what = format!(
            "page {block} of inode {inode} on device {device}, which is not what was put into the \
             server's memory ({fault})"
        );
        tracing::error!("corrupt: {what}");
        Err(error(Status::Io, what))
    }
}

impl Meta {
    /// Counts a change of data made now.
    pub fn changed(&mut self) {
        let now = SystemTime::now();
        let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // Not back, though the clock may be set back.
        self.mtime = self.mtime.max(Some(now));
        self.on_disk.acknowledge();
        self.change = (self.change + 1).max(u64::try_from(nanos).unwrap_or(0));
    }
}

pub(super) fn wire_time(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}

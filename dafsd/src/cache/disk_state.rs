//! What the disk has of a file besides its bytes, and whether it was someone else who changed it.
//!
//! After each change of its own the cache remembers what the disk says (a [`Stamp`]), under the same
//! hold of the file's gate under which the change was made. So whoever holds the gate exclusively and
//! finds another stamp sees someone else's change. Before a change of its own the cache looks as well,
//! or it would take what someone else did for its own.
//!
//! Times: the disk gets the time of the last write only when it has all bytes, so until then clients
//! are shown it from memory. Attributes are read from the disk at one moment and covered at a later
//! one. Each time that is given to the disk gets a number, so that the later moment can tell
//! whether what was read is from before.

use super::file::{Meta, wire_time};
use super::{Cache, CachedFile};
use crate::store::Result;
use dafs_proto::{Attr, Extent, Time};
use ordma::complaints;
use std::sync::atomic::Ordering;

/// How often attributes are read anew, where a time was handed over meanwhile, before that is put off.
const READS: u32 = 2;

/// What tells one state of a file on the disk from another. Size and mtime tell of its bytes, ctime of
/// anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: Option<(i64, u32)>,
    ctime: Option<(i64, u32)>,
}

impl Stamp {
    pub(super) fn of(attr: &Attr) -> Self {
        Self { size: attr.size, mtime: attr.mtime.map(order), ctime: attr.ctime.map(order) }
    }

    fn has_bytes_of(&self, other: &Self) -> bool {
        (self.size, self.mtime) == (other.size, other.mtime)
    }
}

/// A number that the cache gives to the moments at which times are given to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What is known of a file on the disk. Part of the file's `meta`.
#[derive(Debug)]
pub(super) struct OnDisk {
    /// What it was after our own last change, or when it was looked at last.
    stamp: Stamp,
    /// Someone else has changed the file since its clean pages were brought in: the next OPEN kills
    /// them.
    changed: bool,
    /// When the time of the last write was handed over.
    time_given: Moment,
    /// The time of the last change that was acknowledged, by the clock that the file systems use:
    /// no ctime that is shown is earlier.
    acknowledged: Option<Time>,
}

impl OnDisk {
    pub(super) fn new(attr: &Attr) -> Self {
        let stamp = Stamp::of(attr);
        Self { stamp, changed: false, time_given: Moment::default(), acknowledged: None }
    }

    /// The ctime that the disk was last seen to have.
    pub(super) fn ctime(&self) -> Option<Time> {
        let (seconds, nanoseconds) = self.stamp.ctime?;
        Some(Time { seconds, nanoseconds })
    }

    /// A change is about to be acknowledged.
    pub(super) fn acknowledge(&mut self) {
        // Later changes on the disk get later times from it; those from the exact clock could be
        // earlier than one that is taken now.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
        self.acknowledged =
            later(self.acknowledged, Some(Time { seconds: now.tv_sec, nanoseconds }));
    }
}

impl Cache {
    /// The present moment, to be taken before attributes are read from the disk that
    /// [`CachedFile::attributes`] is to be given.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment(self.times_given.load(Ordering::SeqCst))
    }
}

impl CachedFile {
    /// Attributes with what is not on disk yet. Those in `attr` were read from the disk after the moment
    /// `since`; where that is too old by now, they are read anew.
    ///
    /// # Errors
    /// The store's.
    pub async fn attributes(&self, mut since: Moment, mut attr: Attr) -> Result<Attr> {
        for _ in 0..READS {
            if let Some(attr) = self.cover_attr(since, attr) {
                return Ok(attr);
            }
            since = self.cache.moment();
            attr = self.disk_attr().await?;
        }
        // Nothing is handed over while this is held.
        let _gate = self.gate.write().await;
        let attr = self.disk_attr().await?;
        Ok(self.cover_attr(Moment(u64::MAX), attr).unwrap_or(attr))
    }

    /// Puts what the disk does not have yet over attributes that were read from it, unless they may be
    /// from before it got what was handed over to it.
    fn cover_attr(&self, since: Moment, mut attr: Attr) -> Option<Attr> {
        let meta = self.meta.read();
        if meta.on_disk.time_given > since {
            return None;
        }
        attr.size = meta.size;
        attr.change = attr.change.max(meta.change);
        if let Some(mtime) = meta.mtime {
            attr.mtime = Some(wire_time(mtime));
        }
        attr.ctime = later(attr.ctime, meta.on_disk.acknowledged);
        Some(attr)
    }

    /// Whether the disk does not have the time of the last write yet.
    #[must_use]
    pub fn has_unwritten_time(&self) -> bool {
        self.meta.read().mtime.is_some()
    }

    /// Asks the disk whether someone changed the file behind our back, and if so kills its clean
    /// pages.
    ///
    /// # Errors
    /// The store's.
    pub async fn revalidate(&self) -> Result<()> {
        let attr = self.disk_attr().await?;
        if !self.is_other(&attr) {
            return Ok(());
        }
        // What was written goes with the clean pages, once it is stable. Where that fails, it is
        // dirty, and wins.
        if !self.blocks.lock().written.is_empty()
            && let Err(error) = self.commit(Extent::default()).await
        {
            let file = self.identity();
            if let Some(untold) = complaints::take("before a look", self.volume.name()) {
                tracing::warn!(%error, ?file, untold, "before a look at the disk");
            }
        }
        // It may have been our own I/O: look again while there is none.
        let _gate = self.gate.write().await;
        let attr = self.disk_attr().await?;
        let mut meta = self.meta.write();
        let now = Stamp::of(&attr);
        if now != meta.on_disk.stamp {
            self.changed_to(&mut meta, now);
        }
        if !std::mem::take(&mut meta.on_disk.changed) {
            return Ok(());
        }
        if self.blocks.lock().is_clean() {
            meta.size = attr.size;
            meta.sizes += 1;
            self.give_time(&mut meta);
        }
        meta.change = meta.change.max(attr.change) + 1;
        self.kill_clean();
        Ok(())
    }

    /// The same before an operation that changes names, mode, owner or times, where attributes have
    /// been read already.
    ///
    /// # Errors
    /// The store's.
    pub async fn revalidate_by(&self, attr: &Attr) -> Result<()> {
        if self.is_other(attr) { self.revalidate().await } else { Ok(()) }
    }

    /// After such an operation of this server: remembers the new ctime, so that it is not taken for
    /// someone else's change; unless the file's bytes seem to be others as well, which it does not
    /// change. `times`: it has set the times.
    pub async fn touched(&self, times: bool) {
        let _gate = self.gate.write().await;
        // It has been done, whatever the disk says now.
        let Some(attr) = self.disk_attr_after("an operation").await else { return };
        let mut meta = self.meta.write();
        let (before, now) = (meta.on_disk.stamp, Stamp::of(&attr));
        if now.has_bytes_of(&before) || times && now.size == before.size {
            meta.on_disk.stamp = now;
        }
        if times && self.blocks.lock().dirty.is_empty() {
            self.give_time(&mut meta);
        }
    }

    /// Before our own I/O: looks whether someone else has changed the file's bytes. The caller holds the
    /// gate, and does so until it has [settled](Self::settle) what it does.
    pub(super) async fn look_first(&self) {
        let Some(attr) = self.disk_attr_after("nothing yet").await else { return };
        self.look(&mut self.meta.write(), &attr);
    }

    /// The same where the attributes have been read already. Another ctime alone says nothing here: an
    /// operation of this server that changes it may be under way.
    pub(super) fn look(&self, meta: &mut Meta, attr: &Attr) {
        let now = Stamp::of(attr);
        if now.has_bytes_of(&meta.on_disk.stamp) {
            meta.on_disk.stamp = now;
        } else {
            self.changed_to(meta, now);
        }
    }

    /// Someone else has changed the file, as far as one can tell.
    fn changed_to(&self, meta: &mut Meta, now: Stamp) {
        let before = std::mem::replace(&mut meta.on_disk.stamp, now);
        meta.on_disk.changed = true;
        self.cache.counters.changed_on_disk.fetch_add(1, Ordering::Relaxed);
        if !now.has_bytes_of(&before)
            && !self.blocks.lock().dirty.is_empty()
            && let Some(untold) = complaints::take("changed on disk", self.volume.name())
        {
            tracing::warn!(
                file = ?self.identity(),
                untold,
                "changed on the server's disk while clients write to it: the server's pages win"
            );
        }
    }

    /// After our own I/O: gives the disk the time of the last write if it has all bytes, and remembers
    /// what the disk says, so that a change by someone else is told from ours. The caller has held the
    /// gate since before the I/O. What fails here is no failure of the I/O, and is shown from memory
    /// meanwhile.
    pub(super) async fn settle(&self) {
        let mtime = self.meta.read().mtime;
        let clean = self.blocks.lock().dirty.is_empty();
        let mtime = mtime.filter(|_| clean);
        let store = self.store();
        if let Some(mtime) = mtime {
            let set = self.blocking(move || {
                let set = store.set_mtime(mtime);
                (set, store.attr())
            });
            let (set, attr) = set.await;
            if let Err(error) = set {
                tracing::debug!(%error, "the time of a write stays in memory");
            }
            match attr {
                Ok(attr) => self.settled(&attr, Some(wire_time(mtime))),
                Err(error) => tracing::debug!(%error, "after a write"),
            }
        } else if let Some(attr) = self.disk_attr_after("a write").await {
            self.settled(&attr, None);
        }
    }

    fn settled(&self, attr: &Attr, given: Option<Time>) {
        let mut meta = self.meta.write();
        meta.on_disk.stamp = Stamp::of(attr);
        // Not where there was another write meanwhile, nor where the disk did not take it.
        let last = meta.mtime.map(wire_time);
        if given.is_some() && last == given && attr.mtime.map(order) >= given.map(order) {
            self.give_time(&mut meta);
        }
    }

    /// From now on the time of the last write is what the disk says.
    fn give_time(&self, meta: &mut Meta) {
        if meta.mtime.take().is_some() {
            let before = self.cache.times_given.fetch_add(1, Ordering::SeqCst);
            meta.on_disk.time_given = Moment(before + 1);
        }
    }

    fn is_other(&self, attr: &Attr) -> bool {
        let meta = self.meta.read();
        meta.on_disk.changed || meta.on_disk.stamp != Stamp::of(attr)
    }

    pub(super) async fn disk_attr(&self) -> Result<Attr> {
        let store = self.store();
        self.blocking(move || store.attr()).await
    }

    /// Where nothing can be done about an error.
    async fn disk_attr_after(&self, what: &str) -> Option<Attr> {
        let attr = self.disk_attr().await;
        attr.inspect_err(|error| tracing::debug!(%error, "attributes after {what}")).ok()
    }
}

fn order(time: Time) -> (i64, u32) {
    (time.seconds, time.nanoseconds)
}

/// The later one of two times.
fn later(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    if a.map(order) < b.map(order) { b } else { a }
}

//! Writing dirty pages to the store, and commit.

use super::volume::Volume;
use super::{Cache, CachedFile, Committed, error};
use crate::sharing::END;
use crate::store::Result;
use dafs_proto::{Extent, Status};
use ordma::{FOOTER_LEN, schedule_point};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Most bytes of one write to the store.
const MAX_RUN: usize = 1 << 20;
/// Pages in a row that the store refuses before the rest of a file is not tried any more.
const MOST_REFUSED: u32 = 16;
/// How often those who wait are woken, to see how long they have waited.
const TICK: Duration = Duration::from_secs(1);

/// Neighbouring dirty pages, copied out to be written.
struct Run {
    first: u64,
    data: Vec<u8>,
    /// Generation and version of each page when it was copied.
    states: Vec<(u64, u64)>,
}

impl Cache {
    /// Writes to the store what has been dirty for about the configured interval, makes stable what
    /// nobody has open, and forgets files that are not in use.
    async fn tend(&self, volume: &Arc<Volume>) {
        for file in self.files_of(volume) {
            let (dirty, unclean) = {
                let blocks = file.blocks.lock();
                (!blocks.dirty.is_empty(), !blocks.is_clean())
            };
            // What becomes of it is noted, and told of where it fails.
            let done = if file.is_removed() {
                continue;
            } else if !unclean {
                file.rest();
                continue;
            } else if file.opens.load(Ordering::Acquire) == 0 {
                file.commit(Extent::default()).await.map(drop)
            } else if dirty {
                file.flush(0..=u64::MAX).await
            } else {
                continue;
            };
            if done.is_err() && !file.is_open() && file.is_gone().await {
                // Removed by others on this host.
                file.removed();
            }
        }
    }

    /// Makes everything stable.
    ///
    /// # Errors
    /// The last file's error, after all files have been tried.
    pub async fn flush_all(&self) -> Result<()> {
        let mut result = Ok(());
        for volume in self.all_volumes() {
            result = self.flush_volume(&volume).await.and(result);
        }
        result
    }

    /// Makes everything of an export stable.
    pub(super) async fn flush_volume(&self, volume: &Arc<Volume>) -> Result<()> {
        self.commit_where(volume, CachedFile::is_unstable).await
    }

    /// Commits the files of an export that are wanted, each of them whatever becomes of the others.
    ///
    /// # Errors
    /// The last file's error; [`Status::StaleHandle`] where the cache was closed meanwhile.
    pub(super) async fn commit_where(
        &self,
        volume: &Arc<Volume>,
        wanted: impl Fn(&CachedFile) -> bool,
    ) -> Result<()> {
        let mut result = Ok(());
        for file in self.files_of(volume) {
            if wanted(&file)
                && let Err(error) = file.commit(Extent::default()).await
            {
                result = Err(error);
            }
        }
        if self.files.is_cleared() {
            return Err(error(Status::StaleHandle, "make the files of a closed cache stable"));
        }
        result
    }

    /// Makes what is dirty reach the disk within about the configured interval, and forgets files
    /// that are not in use, from a thread that ends when the cache is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_background(self: &Arc<Self>) -> std::io::Result<()> {
        let cache = Arc::downgrade(self);
        let interval = self.config.writeback_interval;
        let tick = interval.min(TICK);
        std::thread::Builder::new().name("dafs-flush".to_owned()).spawn(move || {
            let mut next = Instant::now() + interval;
            loop {
                std::thread::sleep(tick);
                let Some(cache) = cache.upgrade() else { return };
                // Those who wait for a disk look whether they have waited for too long.
                cache.relief.notify(usize::MAX);
                if Instant::now() >= next {
                    next = Instant::now() + interval;
                    cache.start_tending();
                }
            }
        })?;
        Ok(())
    }

    /// Each export by itself: a disk that does not answer is no other's trouble.
    fn start_tending(self: &Arc<Self>) {
        for volume in self.all_volumes() {
            if volume.tending.swap(true, Ordering::AcqRel) {
                continue;
            }
            let cache = Arc::clone(self);
            self.runtime.run(async move {
                cache.tend(&volume).await;
                volume.tending.store(false, Ordering::Release);
            });
        }
        self.sweep_files();
    }

    /// Makes one page stable.
    ///
    /// # Errors
    /// The store's; [`Status::StaleHandle`] where nobody knows the page's file, as after the cache
    /// was closed: the page never becomes clean then.
    pub(super) async fn sync_block(&self, number: u64, block: u64) -> Result<()> {
        let Some(file) = self.files.numbered(number) else {
            return Err(error(Status::StaleHandle, "make a page of a forgotten file stable"));
        };
        let page = file.page_size();
        file.commit(Extent { offset: block * page, length: page }).await.map(drop)
    }
}

impl CachedFile {
    /// Makes what was written to the extent (length 0: to the end of the file) before the call
    /// stable.
    ///
    /// # Errors
    /// The store's. Pages that could not be written, or not made stable, are dirty, and a later call
    /// tries again. Nothing is lost, for pages stay in the cache until they are stable.
    pub async fn commit(&self, extent: Extent) -> Result<Committed> {
        // No owner has this number.
        self.commit_for(0, extent).await
    }

    /// The same, to tell an owner of it.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit).
    pub async fn commit_for(&self, owner: u64, extent: Extent) -> Result<Committed> {
        let mut sync = false;
        let committed = self.commit_round(owner, extent, &mut sync).await;
        self.note_outcome(&committed, sync);
        committed
    }

    /// One round of it; `sync`: whether it was the sync that failed.
    async fn commit_round(
        &self,
        owner: u64,
        extent: Extent,
        sync_failed: &mut bool,
    ) -> Result<Committed> {
        let page = self.page_size();
        let first = extent.offset / page;
        let last = match extent.length {
            0 => u64::MAX,
            len => extent.offset.saturating_add(len - 1) / page,
        };
        let pages = first * page..last.saturating_add(1).saturating_mul(page);
        // What the client takes for stable, which may be less.
        let range = extent.offset..match extent.length {
            0 => END,
            len => extent.offset.saturating_add(len),
        };
        let _one = self.syncing.lock().await;
        self.unstable.lock().round_begins(self.cache.changes.load(Ordering::Acquire));
        let flushed = self.flush(first..=last).await;
        let sync = {
            let mut blocks = self.blocks.lock();
            blocks.syncs += 1;
            blocks.syncs
        };
        let store = self.store();
        schedule_point("commit: before the sync");
        let synced = self.blocking(move || store.sync(false)).await;
        schedule_point("commit: after the sync");
        if let Err(error) = synced {
            // The kernel has told of the failure, and taken the pages for clean: a second sync would
            // succeed and mean nothing. So the pages are written again.
            self.cache.counters.writeback_errors.fetch_add(1, Ordering::Relaxed);
            self.write_again();
            *sync_failed = true;
            return Err(error);
        }
        self.volume.gets_on();
        self.synced_before(sync);
        // The others are stable all the same.
        flushed?;
        let mut unstable = self.unstable.lock();
        let through = unstable.through(owner);
        let round = unstable.round_succeeded(&pages);
        Ok(Committed { range, round, through, verifier: self.verifier() })
    }

    /// What was written before sync number `sync` began is stable.
    fn synced_before(&self, sync: u64) {
        let stable: Vec<u64> = {
            let blocks = self.blocks.lock();
            let before = blocks.written.iter().filter(|(_, syncs)| **syncs < sync);
            before.map(|(block, _)| *block).collect()
        };
        schedule_point("commit: what was stable is known");
        for block in stable {
            let key = (self.number(), block);
            let mut shard = self.cache.shard(key).lock();
            let is_still = self.blocks.lock().written.get(&block).is_some_and(|at| *at < sync);
            if let Some(page) = shard.page(key).filter(|page| page.written && is_still) {
                page.written = false;
                self.count_clean(block);
            }
        }
        self.cache.relief.notify(usize::MAX);
    }

    /// What was written may be lost: it is dirty again.
    fn write_again(&self) {
        let written: Vec<u64> = {
            let mut blocks = self.blocks.lock();
            blocks.failed_syncs += 1;
            blocks.written.keys().copied().collect()
        };
        for block in written {
            let key = (self.number(), block);
            let mut shard = self.cache.shard(key).lock();
            if let Some(page) = shard.page(key).filter(|page| page.written) {
                (page.written, page.dirty) = (false, true);
                let mut blocks = self.blocks.lock();
                blocks.written.remove(&block);
                blocks.dirty.insert(block);
            }
        }
    }

    /// Writes the dirty pages among `blocks` to the store. A page is not dirty afterwards only if it
    /// has not changed since it was copied out, nor got a new key. Pages are tried whatever becomes of
    /// the others; after some that the store refuses in a row, the rest is left for the next time.
    ///
    /// # Errors
    /// That of the first page that could not be written.
    pub(super) async fn flush(&self, blocks: RangeInclusive<u64>) -> Result<()> {
        let flushed = self.write_back(blocks).await;
        self.note_outcome(&flushed, false);
        flushed
    }

    async fn write_back(&self, blocks: RangeInclusive<u64>) -> Result<()> {
        let _one = self.writing_back.lock().await;
        let dirty: Vec<u64> = {
            let state = self.blocks.lock();
            let mut dirty: Vec<u64> = state.dirty.range(blocks).copied().collect();
            let behind = dirty.partition_point(|block| *block < state.resume_at);
            dirty.rotate_left(behind);
            dirty
        };
        if dirty.is_empty() {
            return Ok(());
        }
        let mut refused = 0;
        let mut result = Ok(());
        let mut most = (MAX_RUN / self.cache.page_size()).max(1);
        // Up to here pages are written one by one, since together they could not be.
        let mut singly = 0;
        let mut rest = &dirty[..];
        let mut looked = false;
        while let [first, ..] = *rest {
            let neighbours = rest.iter().zip(first..).take_while(|(a, b)| **a == *b).count();
            let count = if first < singly { 1 } else { neighbours.min(most) };
            let _gate = self.gate.read().await;
            let (done, error) = match self.copy_run(first, count) {
                Ok(Some(run)) => {
                    let pages = run.states.len();
                    if !std::mem::replace(&mut looked, true) {
                        self.look_first().await;
                    }
                    let written = self.write_run(run).await;
                    self.settle().await;
                    match written {
                        Ok(()) => (pages, None),
                        Err(_) if pages > 1 => {
                            singly = first + pages as u64;
                            (0, None)
                        }
                        Err(error) => (1, Some(error)),
                    }
                }
                // Truncated meanwhile.
                Ok(None) => (1, None),
                // Nothing of it reaches the disk.
                Err(error) => (1, Some(error)),
            };
            if let Some(error) = error {
                if result.is_ok() {
                    result = Err(error);
                }
                refused += 1;
                if refused == MOST_REFUSED {
                    self.blocks.lock().resume_at = first + 1;
                    break;
                }
                // The store is in trouble: no use in large writes until one goes well.
                most = 1;
            } else if done > 0 {
                refused = 0;
                most = (most * 2).min((MAX_RUN / self.cache.page_size()).max(1));
            }
            rest = &rest[done..];
        }
        result
    }

    /// Copies dirty pages from `first` on, up to the first one that is not dirty any more.
    ///
    /// # Errors
    /// [`Status::Io`](dafs_proto::Status::Io) where the first one is corrupt. A later one ends the
    /// run.
    fn copy_run(&self, first: u64, count: usize) -> Result<Option<Run>> {
        let page_size = self.cache.page_size();
        let mut run = Run { first, data: vec![0; count * page_size], states: Vec::new() };
        for (block, payload) in (first..).zip(run.data.chunks_exact_mut(page_size)) {
            let key = (self.number(), block);
            let mut footer = [0; FOOTER_LEN];
            let (state, cover) = {
                let meta = self.meta.read();
                let mut shard = self.cache.shard(key).lock();
                let Some(page) = shard.page(key).filter(|page| page.dirty) else { break };
                page.slot.copy_out(payload, &mut footer);
                (page.state(), meta.cover.clone())
            };
            match self.open(block, state, &cover, &footer, payload) {
                Ok(()) => run.states.push(state),
                Err(error) if run.states.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        // The tail page is written with its exact length.
        let end = self.size().saturating_sub(first * self.page_size());
        let len = (run.states.len() * page_size).min(usize::try_from(end).unwrap_or(usize::MAX));
        run.data.truncate(len);
        Ok((!run.states.is_empty()).then_some(run))
    }

    async fn write_run(&self, run: Run) -> Result<()> {
        let store = self.store();
        let failed = self.blocks.lock().failed_syncs;
        let Run { first, data, states } = run;
        let offset = first * self.page_size();
        schedule_point("write-back: before the disk");
        let written = self.blocking(move || store.write_at(&data, offset)).await;
        schedule_point("write-back: after the disk");
        let counters = &self.cache.counters;
        if let Err(error) = written {
            counters.writeback_errors.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        counters.pages_written_back.fetch_add(states.len() as u64, Ordering::Relaxed);
        self.volume.gets_on();
        self.volume.wrote(states.len() as u64 * self.page_size());
        for (block, state) in (first..).zip(states) {
            let key = (self.number(), block);
            let mut shard = self.cache.shard(key).lock();
            let Some(page) = shard.page(key) else { continue };
            let mut blocks = self.blocks.lock();
            // Beside a sync that failed the store may have lost it with the rest: it stays dirty.
            if page.dirty && page.state() == state && blocks.failed_syncs == failed {
                (page.dirty, page.written) = (false, true);
                blocks.dirty.remove(&block);
                let syncs = blocks.syncs;
                blocks.written.insert(block, syncs);
            }
        }
        Ok(())
    }

    /// Counts a page that is clean now, or gone. Called under its shard's lock.
    pub(super) fn count_clean(&self, block: u64) {
        let mut blocks = self.blocks.lock();
        blocks.dirty.remove(&block);
        blocks.written.remove(&block);
        let payer = blocks.payers.remove(&block);
        drop(blocks);
        let page = self.cache.page_size();
        self.cache.dirty.fetch_sub(page, Ordering::Relaxed);
        self.volume.dirty.subtract(page);
        if let Some(payer) = payer {
            payer.subtract(page);
        }
    }
}

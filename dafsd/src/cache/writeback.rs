//! Writing dirty pages to the store, and commit.

use super::{Cache, CachedFile};
use crate::store::Result;
use dafs_proto::Extent;
use ordma::{FOOTER_LEN, schedule_point};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most bytes of one write to the store.
const MAX_RUN: usize = 1 << 20;

/// Neighbouring dirty pages, copied out to be written.
struct Run {
    first: u64,
    data: Vec<u8>,
    /// Generation and version of each page when it was copied.
    states: Vec<(u64, u64)>,
}

impl Cache {
    /// Waits until there is room for another dirty page.
    pub(super) async fn below_dirty_limit(self: &Arc<Self>) {
        // A limit below one page would let nobody write.
        let limit = self.config.dirty_limit.max(self.page_size());
        while self.dirty.load(Ordering::Relaxed) + self.page_size() > limit {
            let relief = self.relief.listen();
            if self.dirty.load(Ordering::Relaxed) + self.page_size() <= limit {
                return;
            }
            self.start_writeback();
            relief.await;
        }
    }

    /// Starts write-back of all dirty pages, unless it is under way.
    pub(super) fn start_writeback(self: &Arc<Self>) {
        if self.writing_back.swap(true, Ordering::AcqRel) {
            return;
        }
        let cache = Arc::clone(self);
        let runtime = self.runtime.clone();
        self.runtime.run(async move {
            let flushed = cache.write_back_all().await;
            cache.writing_back.store(false, Ordering::Release);
            if flushed.is_err() {
                // Whoever waits for room would at once ask again: give the disk a moment.
                runtime.blocking(|| std::thread::sleep(Duration::from_millis(100))).await;
            }
            // Who became dirty after it was looked at, and waits, has to start the next round.
            if cache.dirty.load(Ordering::Relaxed) > 0 {
                cache.relief.notify(usize::MAX);
            }
        });
    }

    /// Writes back what is dirty now; pages stay dirty where it fails.
    async fn write_back_all(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.all_files() {
            if file.blocks.lock().dirty.is_empty() {
                continue;
            }
            if let Err(error) = file.flush(0..=u64::MAX).await {
                tracing::warn!(%error, file = ?file.identity(), "write-back failed; pages stay dirty");
                result = Err(error);
            }
        }
        result
    }

    /// Writes everything back and makes it stable.
    ///
    /// # Errors
    /// The last file's error, after all files have been tried.
    pub async fn flush_all(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.all_files() {
            if file.is_removed() {
                continue;
            }
            if let Err(error) = file.commit(Extent::default()).await {
                tracing::error!(%error, file = ?file.identity(), "flush failed");
                result = Err(error);
            }
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
        std::thread::Builder::new().name("dafs-flush".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(interval);
                let Some(cache) = cache.upgrade() else { return };
                cache.start_writeback();
                cache.sweep_files();
            }
        })?;
        Ok(())
    }

    /// Writes one page back, if it is dirty.
    pub(super) async fn flush_block(&self, number: u64, block: u64) -> Result<()> {
        let file = self.files.lock().by_number.get(&number).and_then(std::sync::Weak::upgrade);
        match file {
            Some(file) => file.flush(block..=block).await,
            None => Ok(()),
        }
    }
}

impl CachedFile {
    /// Makes what was written to the extent (length 0: to the end of the file) before the call
    /// stable.
    ///
    /// # Errors
    /// The store's. Pages that could not be written stay dirty, and a later call tries again. Where
    /// the store cannot say what became of pages that it had taken, the write verifier changes, so
    /// that the writers send them again.
    pub async fn commit(&self, extent: Extent) -> Result<()> {
        let first = extent.offset / self.page_size();
        let last = match extent.length {
            0 => u64::MAX,
            len => extent.offset.saturating_add(len - 1) / self.page_size(),
        };
        self.flush(first..=last).await?;
        let store = self.store();
        let synced = self.cache.runtime.blocking(move || store.sync(false)).await;
        if synced.is_err() {
            // After a failed fsync the kernel drops the error with the pages (see the "fsyncgate"
            // discussion of 2018): a second fsync would succeed and mean nothing.
            self.cache.verifier.fetch_add(1, Ordering::AcqRel);
            self.cache.counters.writeback_errors.fetch_add(1, Ordering::Relaxed);
        }
        synced
    }

    /// Writes the dirty pages among `blocks` back. A page is clean afterwards only if it has not
    /// changed since it was copied out, nor got a new key.
    pub(super) async fn flush(&self, blocks: RangeInclusive<u64>) -> Result<()> {
        let _one = self.writing_back.lock().await;
        let dirty: Vec<u64> = self.blocks.lock().dirty.range(blocks).copied().collect();
        if dirty.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        let mut rest = &dirty[..];
        let mut looked = false;
        while let [first, ..] = *rest {
            let most = (MAX_RUN / self.cache.page_size()).max(1);
            let neighbours = rest.iter().zip(first..).take_while(|(a, b)| **a == *b).count();
            let count = neighbours.min(most);
            let _gate = self.gate.read().await;
            match self.copy_run(first, count) {
                Ok(Some(run)) => {
                    rest = &rest[run.states.len()..];
                    if !std::mem::replace(&mut looked, true) {
                        self.look_first().await;
                    }
                    let written = self.write_run(run).await;
                    self.settle().await;
                    written?;
                }
                // Truncated meanwhile.
                Ok(None) => rest = &rest[1..],
                Err(error) => {
                    // Nothing of it reaches the disk, and the others need not wait for it.
                    result = Err(error);
                    rest = &rest[1..];
                }
            }
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
        let Run { first, data, states } = run;
        let offset = first * self.page_size();
        schedule_point("write-back: before the disk");
        let written = self.cache.runtime.blocking(move || store.write_at(&data, offset)).await;
        schedule_point("write-back: after the disk");
        let counters = &self.cache.counters;
        if let Err(error) = written {
            counters.writeback_errors.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        counters.pages_written_back.fetch_add(states.len() as u64, Ordering::Relaxed);
        for (block, state) in (first..).zip(states) {
            let key = (self.number(), block);
            let mut shard = self.cache.shard(key).lock();
            let Some(page) = shard.page(key) else { continue };
            if page.dirty && page.state() == state {
                page.dirty = false;
                self.count_clean(block);
            }
        }
        self.cache.relief.notify(usize::MAX);
        Ok(())
    }

    /// Counts a page that is not dirty any more. Called under its shard's lock.
    pub(super) fn count_clean(&self, block: u64) {
        self.blocks.lock().dirty.remove(&block);
        self.cache.dirty.fetch_sub(self.cache.page_size(), Ordering::Relaxed);
    }
}

//! Slots: taking and evicting them, and growing and shrinking the arena within the budget.

use super::volume::Standstill;
use super::{Cache, SLOT_OVERHEAD};
use crate::runtime::Disk;
use crate::store::Result;
use crate::turns::Whose;
use ordma::arena::Guard;
use ordma::{ChunkId, Slot, complaints};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long after chunks were given back for files in vain it is tried again.
const SHRINK_AGAIN: Duration = Duration::from_secs(1);

impl Cache {
    /// Takes a slot of a chunk with this guard: a free one, one of a new chunk, or an evicted page's.
    /// Waits for write-back where every page is dirty.
    ///
    /// # Errors
    /// [`Status::Io`](dafs_proto::Status::Io) where the disks take nothing for so long.
    pub(super) async fn slot(self: &Arc<Self>, guard: Guard) -> Result<Slot> {
        let mut standstill = Standstill::new(self.progress());
        loop {
            if let Some(slot) = self.try_slot(guard) {
                return Ok(slot);
            }
            let relief = self.relief.listen();
            if let Some(slot) = self.try_slot(guard) {
                return Ok(slot);
            }
            if self.dirty.load(Ordering::Relaxed) > 0 {
                self.start_writeback();
            }
            if standstill.look(self.progress()) >= self.config.disk_patience {
                return Err(self.no_progress());
            }
            relief.await;
        }
    }

    pub(super) fn try_slot(&self, guard: Guard) -> Option<Slot> {
        self.arena
            .take(guard)
            .or_else(|| self.grow(guard).then(|| self.arena.take(guard)).flatten())
            .or_else(|| {
                // One page of some other shard each time: the clock's hand goes round all of them.
                let start = self.next_shard.fetch_add(1, Ordering::Relaxed);
                (0..self.shards.len())
                    .find_map(|i| self.evict_from((start + i) % self.shards.len(), guard))
            })
    }

    /// Gives a slot back that holds no page.
    pub(super) fn free(&self, slot: Slot) {
        self.arena.free(slot);
        self.relief.notify(usize::MAX);
    }

    /// Bytes of a chunk and of the tables that describe its pages.
    pub(super) fn chunk_cost(&self) -> usize {
        let geometry = self.config.geometry;
        geometry.chunk_len() + geometry.slots as usize * SLOT_OVERHEAD
    }

    /// Chunks that there are. Those too that clients have not let go of.
    pub(super) fn chunks(&self) -> usize {
        self.arena.bytes() / self.config.geometry.chunk_len()
    }

    /// Adds a chunk if the guard's share of the budget, and the budget, have room for it, and for as
    /// many files as come with a chunk now.
    fn grow(&self, guard: Guard) -> bool {
        let all = self.chunks();
        let with_files = self.chunk_cost() + self.files.bytes() / all.max(1);
        let room_for = |chunks: usize, budget: usize| (chunks + 1) * with_files <= budget;
        let own = self.arena.chunks().iter().filter(|chunk| chunk.guard() == guard).count();
        if self.pressed.load(Ordering::Relaxed)
            || !room_for(own, self.config.budget / self.guards.len())
            || !room_for(all, self.config.budget)
        {
            return false;
        }
        match self.arena.grow(guard) {
            Ok(chunk) => {
                self.exporter.export(&chunk);
                true
            }
            Err(error) => {
                if let Some(untold) = complaints::take("no chunk", "") {
                    tracing::warn!(
                        %error,
                        untold,
                        "cannot grow the page cache, it goes on with what it has"
                    );
                }
                false
            }
        }
    }

    fn is_over_budget(&self) -> bool {
        self.chunks() * self.chunk_cost() + self.files.bytes() > self.config.budget
    }

    /// Gives chunks back where what is kept of files leaves no room for them in the budget, down to one
    /// for each guard.
    pub(super) fn make_room_for_files(self: &Arc<Self>) {
        if !self.is_over_budget() || self.shrinking.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.shrunk.lock().is_some_and(|at| at.elapsed() < SHRINK_AGAIN) {
            return self.shrinking.store(false, Ordering::Release);
        }
        let cache = Arc::clone(self);
        self.runtime.run_for(Whose::default(), async move {
            // Files that are not in use go first.
            let swept = Arc::clone(&cache);
            cache.runtime.blocking(Disk::NONE, move || swept.sweep_files()).await;
            while cache.is_over_budget() {
                match cache.retire_chunk().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::debug!(%error, "no chunk could be given back for files");
                        break;
                    }
                }
            }
            // Where clients have more files open than there is room for, that does not help.
            *cache.shrunk.lock() = cache.is_over_budget().then(Instant::now);
            cache.shrinking.store(false, Ordering::Release);
        });
    }

    pub(super) fn evict_from(&self, shard: usize, guard: Guard) -> Option<Slot> {
        let ((number, block), page) = self.shards[shard].lock().evict(guard)?;
        self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        self.not_resident(number, block);
        Some(page.slot)
    }

    /// Strikes a block from its file's set once its page is gone. The page may be back already. A file
    /// that has no other, and that nobody uses, is forgotten.
    pub(super) fn not_resident(&self, number: u64, block: u64) {
        let Some(file) = self.files.numbered(number) else { return };
        let shard = self.shard((number, block)).lock();
        if shard.get((number, block)).is_some() {
            return;
        }
        let last = {
            let mut blocks = file.blocks.lock();
            blocks.resident.remove(&block);
            blocks.resident.is_empty()
        };
        drop(shard);
        if last {
            self.files.forget_idle(file);
        }
    }

    /// Gives one chunk back to the system: its pages are written back if they are dirty, killed,
    /// and the clients let go of it. `false` where there is one for each guard only, or another one
    /// is on its way.
    ///
    /// # Errors
    /// When a dirty page cannot be written back; the chunk stays then, with fewer pages.
    pub async fn retire_chunk(self: &Arc<Self>) -> Result<bool> {
        let chunks = self.arena.chunks();
        let of = |guard: Guard| chunks.iter().filter(|chunk| chunk.guard() == guard).count();
        let newest = chunks.iter().rev().find(|chunk| of(chunk.guard()) > 1);
        let Some(id) = newest.map(|chunk| chunk.id()) else { return Ok(false) };
        drop(chunks);
        if !self.arena.begin_retire(id) {
            return Ok(false);
        }
        if let Err(error) = self.empty_chunk(id).await {
            self.arena.cancel_retire(id);
            self.relief.notify(usize::MAX);
            return Err(error);
        }
        self.exporter.retire(id, self.config.retire_patience).await;
        self.arena.finish_retire(id);
        self.counters.chunks_retired.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    async fn empty_chunk(self: &Arc<Self>, id: ChunkId) -> Result<()> {
        for shard in &self.shards {
            loop {
                // A fill may hold a slot of the chunk that is not in the table yet.
                let filling = shard.lock().filling().map(|done| done.listen());
                if let Some(filling) = filling {
                    filling.await;
                    continue;
                }
                let pages = shard.lock().in_chunk(id);
                if pages.is_empty() {
                    break;
                }
                for ((number, block), clean) in pages {
                    if !clean {
                        self.sync_block(number, block).await?;
                    }
                    let page = {
                        let mut shard = shard.lock();
                        let clean = shard.page((number, block)).is_some_and(|page| page.is_clean());
                        clean.then(|| shard.kill((number, block))).flatten()
                    };
                    if let Some(page) = page {
                        self.arena.free(page.slot);
                        self.not_resident(number, block);
                    }
                }
            }
        }
        Ok(())
    }
}

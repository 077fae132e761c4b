//! Bringing pages in from the store.

use super::shard::Entry;
use super::{Cache, CachedFile};
use crate::store::Result;
use event_listener::{Event, EventListener};
use ordma::{Slot, schedule_point};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most pages of one fill, in bytes.
const MAX_FILL: u64 = 1 << 20;
/// What a sequential reader is served ahead, in bytes.
const READ_AHEAD: u64 = 256 << 10;

/// Pages reserved for a fill. Whatever way the fill ends, none stays reserved.
struct Reservation<'a> {
    file: &'a CachedFile,
    first: u64,
    /// Slots of the blocks from `first` on that are not filled yet, last one first.
    slots: Vec<Slot>,
    done: Arc<Event>,
}

impl CachedFile {
    /// Brings in `first`, and blocks behind it as far as `count` goes or reading seems sequential,
    /// up to the first one that is there already. Returns the block after the last one that was
    /// looked at. Does nothing where the file ends before `first`.
    ///
    /// # Errors
    /// The store's; no page of the run is there then.
    pub(super) async fn fill(self: &Arc<Self>, first: u64, count: u64) -> Result<u64> {
        let run = match self.wanted(first, count) {
            Wanted::Fill(run) => run,
            Wanted::Wait(listener) => {
                listener.await;
                return Ok(first);
            }
            Wanted::Nothing => return Ok(first + 1),
        };
        // Slots first: waiting for one may need write-back, which needs the gate.
        let guard = self.guard();
        let mut slots = vec![self.cache.slot(guard).await?];
        while (slots.len() as u64) < run {
            let Some(slot) = self.cache.try_slot(guard) else { break };
            slots.push(slot);
        }
        let gate = self.gate.read().await;
        let size = self.size();
        let Some(mut reservation) = self.reserve(first, slots, size) else { return Ok(first) };
        let pages = reservation.slots.len();
        let page = self.cache.page_size();
        let store = self.store();
        schedule_point("fill: before the disk");
        let read = move || {
            let mut buffer = vec![0; pages * page];
            store.read_at(&mut buffer, first * page as u64).map(|_| buffer)
        };
        let mut buffer = self.blocking(read).await?;
        schedule_point("fill: after the disk");
        for (i, payload) in buffer.chunks_exact_mut(page).enumerate() {
            reservation.install(first + i as u64, payload);
        }
        drop(reservation);
        drop(gate);
        let after = first + pages as u64;
        self.next_fill.store(after, Ordering::Relaxed);
        Ok(after)
    }

    /// What is to be done to have `first`.
    fn wanted(&self, first: u64, count: u64) -> Wanted {
        let page = self.page_size();
        let sequential = self.next_fill.load(Ordering::Relaxed) == first;
        let ahead = if sequential { READ_AHEAD / page } else { 1 };
        let behind = self.last_block(self.size()) + 1;
        let limit =
            count.max(ahead).min((MAX_FILL / page).max(1)).min(behind.saturating_sub(first));
        let mut run = 0;
        while run < limit {
            let key = (self.number(), first + run);
            match self.cache.shard(key).lock().get(key) {
                None => run += 1,
                Some(Entry::Filling(done)) if run == 0 => return Wanted::Wait(done.listen()),
                Some(_) => break,
            }
        }
        if run == 0 { Wanted::Nothing } else { Wanted::Fill(run) }
    }

    /// Reserves blocks from `first` on, one for each slot, as far as the file goes and they are
    /// neither cached nor being filled. `None` where not even the first one can be had.
    fn reserve(&self, first: u64, mut slots: Vec<Slot>, size: u64) -> Option<Reservation<'_>> {
        let done = Arc::new(Event::new());
        let behind = self.last_block(size) + 1;
        let mut reserved = 0;
        while reserved < slots.len() && first + (reserved as u64) < behind {
            let block = first + reserved as u64;
            let key = (self.number(), block);
            let mut shard = self.cache.shard(key).lock();
            if !shard.reserve(key, &done) {
                break;
            }
            self.blocks.lock().resident.insert(block);
            reserved += 1;
        }
        for slot in slots.drain(reserved..) {
            self.cache.free(slot);
        }
        slots.reverse();
        (reserved > 0).then(|| Reservation { file: self, first, slots, done })
    }
}

enum Wanted {
    /// Fill that many blocks.
    Fill(u64),
    /// Someone else fills it.
    Wait(EventListener),
    /// It is there, or the file ends before it.
    Nothing,
}

impl Reservation<'_> {
    /// Puts the page of the next reserved block, `block`, into its slot and enters it in the table.
    fn install(&mut self, block: u64, payload: &mut [u8]) {
        let Some(slot) = self.slots.pop() else { return };
        self.first = block + 1;
        let cache: &Arc<Cache> = &self.file.cache;
        // Of this page alone, even if it does not get into the table.
        let generation = cache.arena.next_generation();
        // The size may have grown meanwhile, and the key changed, and neither must change before the
        // page is in the table: whoever changes them rewrites what he finds there.
        let meta = self.file.meta.read();
        self.file.put(block, &slot, (generation, 0), &meta, payload);
        let key = (self.file.number(), block);
        let mut shard = cache.shard(key).lock();
        if cache.arena.accepts(slot.chunk.id()) {
            shard.insert(key, slot, generation, false);
            cache.counters.fills.fetch_add(1, Ordering::Relaxed);
        } else {
            // The chunk is being retired, which may be given up: the page is dropped, and filled again
            // elsewhere.
            slot.kill();
            shard.unreserve(key);
            self.file.blocks.lock().resident.remove(&block);
            cache.free(slot);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let first = self.first;
        for (i, slot) in std::mem::take(&mut self.slots).into_iter().rev().enumerate() {
            let block = first + i as u64;
            let key = (self.file.number(), block);
            let mut shard = self.file.cache.shard(key).lock();
            shard.unreserve(key);
            self.file.blocks.lock().resident.remove(&block);
            drop(shard);
            self.file.cache.free(slot);
        }
        self.done.notify(usize::MAX);
        // What has been filled can be evicted.
        self.file.cache.relief.notify(usize::MAX);
    }
}

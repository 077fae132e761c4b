//! Delivering pages.

use super::{CachedFile, error};
use crate::store::Result;
use dafs_proto::{Extent, Status, WireRef};
use ordma::{FOOTER_LEN, Slot};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages as a reply carries them, or tells of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages<T = Vec<u8>> {
    /// How many pages each extent got.
    pub counts: Vec<u32>,
    /// The pages themselves.
    pub data: T,
    /// References of the pages and of cached neighbours, packed.
    pub refs: Vec<u8>,
    /// Size of the file in bytes.
    pub size: u64,
    /// The epoch of the key that all of the pages are under; `None` at level `none`.
    pub epoch: Option<u64>,
}

/// What a read delivers: copies of its pages, or the slots that they lie in, which may change or be
/// killed from then on.
pub trait Delivery: Send {
    /// Makes room for so many pages of this size. What was there before does not matter.
    fn begin(&mut self, pages: usize, page_size: usize);
    /// Takes the next page, number `at` of them, which does not change meanwhile; its footer.
    fn take(&mut self, at: usize, slot: &Slot) -> [u8; FOOTER_LEN];
    /// So many pages of this size came, and will not be more.
    fn end(&mut self, pages: usize, page_size: usize);
}

/// All footers, then all payloads.
impl Delivery for Vec<u8> {
    fn begin(&mut self, pages: usize, page_size: usize) {
        // What is in it already need not be zeroed: every byte is written over or cut off.
        self.resize(pages * (FOOTER_LEN + page_size), 0);
    }

    fn take(&mut self, at: usize, slot: &Slot) -> [u8; FOOTER_LEN] {
        let page = slot.chunk.geometry().page_size;
        let planned = self.len() / (FOOTER_LEN + page);
        let mut footer = [0; FOOTER_LEN];
        slot.copy_out(&mut self[planned * FOOTER_LEN + at * page..][..page], &mut footer);
        self[at * FOOTER_LEN..][..FOOTER_LEN].copy_from_slice(&footer);
        footer
    }

    fn end(&mut self, pages: usize, page_size: usize) {
        let planned = self.len() / (FOOTER_LEN + page_size);
        if pages < planned {
            let payloads = planned * FOOTER_LEN;
            self.copy_within(payloads..payloads + pages * page_size, pages * FOOTER_LEN);
            self.truncate(pages * (FOOTER_LEN + page_size));
        }
    }
}

impl Delivery for Vec<Slot> {
    fn begin(&mut self, pages: usize, _: usize) {
        self.clear();
        self.reserve(pages);
    }

    fn take(&mut self, _: usize, slot: &Slot) -> [u8; FOOTER_LEN] {
        self.push(slot.clone());
        slot.footer()
    }

    fn end(&mut self, _: usize, _: usize) {}
}

/// How often a read is begun anew because the file got a new key meanwhile. Once is seldom enough.
const MOST_EPOCHS: usize = 16;

/// How often a page is brought in for a steady read. A second time is rare: another page is due
/// because the size has changed, or the page was evicted at once.
const MOST_FILLS: usize = 64;

/// What a steady read took.
struct Steady {
    /// The last page.
    last: u64,
    count: u32,
    refs: Vec<u8>,
    size: u64,
    epoch: Option<u64>,
}

impl CachedFile {
    /// Delivers the pages that the extents touch. Each extent stops after the page that holds the
    /// end of the file. Up to `want_refs` references of cached pages behind the last one are added.
    /// The pages go into `data`, whose content does not matter.
    ///
    /// # Errors
    /// [`Status::Invalid`] where an extent wraps; [`Status::MessageTooBig`] where the pages come to
    /// more than `limit` bytes of data; the store's error where a page cannot be read;
    /// [`Status::TryAgain`] where the file gets new keys all the time.
    pub async fn read<T: Delivery>(
        self: &Arc<Self>,
        extents: &[Extent],
        limit: usize,
        want_refs: u32,
        mut data: T,
    ) -> Result<Pages<T>> {
        for _ in 0..MOST_EPOCHS {
            // Keys change only while no one looks at the epoch: if it is the same afterwards, there
            // was no other one in between.
            let epoch = self.epoch();
            let mut pages = self.read_once(extents, limit, want_refs, data).await?;
            if self.epoch() == epoch {
                pages.epoch = (epoch != 0).then_some(epoch);
                return Ok(pages);
            }
            data = pages.data;
        }
        let what = format!("read a file that got {MOST_EPOCHS} new keys meanwhile");
        Err(error(Status::TryAgain, what))
    }

    async fn read_once<T: Delivery>(
        self: &Arc<Self>,
        extents: &[Extent],
        limit: usize,
        want_refs: u32,
        mut data: T,
    ) -> Result<Pages<T>> {
        let plan = self.plan(extents, limit)?;
        let page = self.cache.page_size();
        let planned = usize::try_from(plan.iter().map(|run| run.1).sum::<u64>()).unwrap_or(0);
        data.begin(planned, page);
        let mut refs = Vec::with_capacity((planned + want_refs as usize) * WireRef::LEN);
        let mut counts = Vec::with_capacity(plan.len());
        let mut done = 0;
        let mut next = None;
        for (first, count) in plan {
            let from = done;
            for block in first..first + count {
                let left = first + count - block;
                let take = |slot: &Slot| data.take(done, slot);
                let Some(last) = self.read_page(block, left, take, &mut refs).await? else {
                    break;
                };
                done += 1;
                next = Some(block + 1);
                if last {
                    break;
                }
            }
            counts.push(u32::try_from(done - from).unwrap_or(u32::MAX));
        }
        data.end(done, page);
        let size = self.size();
        match next {
            Some(next) => self.refs(next, u64::from(want_refs), &mut refs),
            // Nothing there: the page that holds the end tells the client so next time.
            None if want_refs > 0 => self.refs(self.last_block(size), 1, &mut refs),
            None => {}
        }
        Ok(Pages { counts, data, refs, size, epoch: None })
    }

    /// Delivers pages of one state of the file's size: those that the extent touches from its first one
    /// on, as many as the cache holds together, at least one. Where the file ends before the extent,
    /// delivers the page that holds the end of the file.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Status::TryAgain`] where the cache is so small that no page stays in
    /// it until it is taken.
    pub async fn read_steady<T: Delivery>(
        self: &Arc<Self>,
        extent: Extent,
        limit: usize,
        want_refs: u32,
        mut data: T,
    ) -> Result<Pages<T>> {
        // What it asks for is checked here, and found anew each time, as the file may be longer then.
        self.plan(&[extent], limit)?;
        let page = self.page_size();
        let first = extent.offset / page;
        let most = (limit / (self.cache.page_size() + FOOTER_LEN)).max(1) as u64;
        let asked = (extent.offset + extent.length).div_ceil(page) - first;
        let asked = asked.clamp(1, most);
        for attempt in 0..MOST_FILLS {
            let last = self.last_block(self.size());
            let (from, count) =
                if first > last { (last, 1) } else { (first, asked.min(last + 1 - first)) };
            // Where pages do not stay, one at a time has to do.
            let count = if attempt == 0 { count } else { 1 };
            let mut block = from;
            while block < from + count {
                block = self.fill(block, from + count - block).await?.max(block + 1);
            }
            if let Some(mut pages) = self.take_steady(first, asked, &mut data) {
                let behind = pages.last + 1;
                self.refs(behind, u64::from(want_refs), &mut pages.refs);
                let Steady { refs, size, epoch, count, .. } = pages;
                return Ok(Pages { counts: vec![count], data, refs, size, epoch });
            }
        }
        let what =
            format!("read a page that left the cache {MOST_FILLS} times before it was taken");
        Err(error(Status::TryAgain, what))
    }

    /// Takes cached pages, while neither size nor key can change; `None` where not even the first one
    /// that is due is cached.
    fn take_steady<T: Delivery>(&self, first: u64, asked: u64, data: &mut T) -> Option<Steady> {
        let meta = self.meta.read();
        let last = self.last_block(meta.size);
        let (from, count) =
            if first > last { (last, 1) } else { (first, asked.min(last + 1 - first)) };
        let page = self.cache.page_size();
        let planned = usize::try_from(count).unwrap_or(0);
        data.begin(planned, page);
        let mut refs = Vec::with_capacity(planned * WireRef::LEN);
        let mut done = 0;
        for block in from..from + count {
            let mut take = Some(|slot: &Slot| data.take(done, slot));
            if self.take_cached(block, &mut take, &mut refs).is_none() {
                break;
            }
            done += 1;
        }
        data.end(done, page);
        let epoch = (meta.cover.epoch != 0).then_some(meta.cover.epoch);
        (done > 0).then(|| Steady {
            last: from + done as u64 - 1,
            count: u32::try_from(done).unwrap_or(u32::MAX),
            refs,
            size: meta.size,
            epoch,
        })
    }

    /// Brings a range into the cache, as far as there is room, and appends references of what is
    /// cached there.
    ///
    /// # Errors
    /// [`Status::Invalid`] where the extent wraps; the store's error, only with `fill`.
    pub async fn warm(self: &Arc<Self>, extent: Extent, limit: u32, fill: bool) -> Result<Vec<u8>> {
        let mut refs = Vec::new();
        for (first, count) in self.plan(&[extent], usize::MAX)? {
            let count = count.min(u64::from(limit));
            if fill {
                let mut block = first;
                while block < first + count {
                    block = self.fill(block, first + count - block).await?.max(block + 1);
                }
            }
            self.refs(first, count, &mut refs);
        }
        Ok(refs)
    }

    /// The runs of blocks that extents touch, as far as the file goes.
    fn plan(&self, extents: &[Extent], limit: usize) -> Result<Vec<(u64, u64)>> {
        let (page, size) = (self.page_size(), self.size());
        let mut plan = Vec::with_capacity(extents.len());
        let mut total = 0;
        for extent in extents {
            let end = extent.offset.checked_add(extent.length).ok_or_else(|| {
                let what = format!("read {} bytes at {}", extent.length, extent.offset);
                error(Status::Invalid, what)
            })?;
            let first = extent.offset / page;
            let behind = end.div_ceil(page).min(self.last_block(size) + 1);
            let count = if extent.length == 0 { 0 } else { behind.saturating_sub(first) };
            total += count;
            plan.push((first, count));
        }
        let bytes = total.saturating_mul(page + FOOTER_LEN as u64);
        if bytes > limit as u64 {
            let what = format!("read {total} pages at once, {bytes} bytes where {limit} fit");
            return Err(error(Status::MessageTooBig, what));
        }
        Ok(plan)
    }

    /// Takes a page that is cached, with its reference; its footer. `take` is used only then.
    fn take_cached<F: FnOnce(&Slot) -> [u8; FOOTER_LEN]>(
        &self,
        block: u64,
        take: &mut Option<F>,
        refs: &mut Vec<u8>,
    ) -> Option<[u8; FOOTER_LEN]> {
        let key = (self.number(), block);
        let mut shard = self.cache.shard(key).lock();
        let page = shard.touch(key)?;
        let footer = take.take()?(&page.slot);
        let (chunk, slot) = (page.slot.chunk.id(), page.slot.index);
        WireRef { block, generation: page.generation, chunk, slot }.push(refs);
        self.cache.counters.hits.fetch_add(1, Ordering::Relaxed);
        Some(footer)
    }

    /// Takes one page, filling it first if need be; whether it is the last one, or `None` where the
    /// file ends before it. `left` pages from here on are wanted, for the fill.
    async fn read_page(
        self: &Arc<Self>,
        block: u64,
        left: u64,
        take: impl FnOnce(&Slot) -> [u8; FOOTER_LEN],
        refs: &mut Vec<u8>,
    ) -> Result<Option<bool>> {
        let mut take = Some(take);
        loop {
            if let Some(footer) = self.take_cached(block, &mut take, refs) {
                return Ok(Some(ordma::Footer::decode(&footer).is_some_and(|footer| footer.last)));
            }
            if block > self.last_block(self.size()) {
                return Ok(None);
            }
            self.fill(block, left).await?;
        }
    }
}

//! Changing pages in place.

use super::cover::Cover;
use super::file::Meta;
use super::shard::{Entry, Page};
use super::{CachedFile, error};
use crate::store::{Result, StoreError};
use dafs_proto::{Extent, Status};
use event_listener::EventListener;
use ordma::{FOOTER_LEN, Slot};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

thread_local! {
    /// A page in private memory: what is received or changed reaches a slot only when complete.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What keeps a write from being applied to a page.
enum Obstacle {
    /// The page is being filled.
    Filling(EventListener),
    /// The page's other bytes have to be brought in first.
    Fill,
    /// A new page, which needs a slot.
    Slot,
    /// The file ends before the end of the write.
    Size,
    /// The page's other bytes are lost.
    Corrupt(StoreError),
}

impl CachedFile {
    /// Writes the extents' bytes, one after the other out of `data`. When it returns, every page
    /// shows them to one-sided readers. Not atomic across pages.
    ///
    /// # Errors
    /// [`Status::Invalid`] where the extents do not add up to `data`, [`Status::FileTooBig`] beyond
    /// what the store can hold: nothing has been written then. The store's where a page that is
    /// changed in part cannot be read first, [`Status::Io`] where it is corrupt: extents and pages
    /// before the failing one have been written.
    pub async fn write(self: &Arc<Self>, extents: &[Extent], data: &[u8]) -> Result<()> {
        let total = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.length));
        if total != Some(data.len() as u64) {
            let what = format!("write extents that do not add up to their {} bytes", data.len());
            return Err(error(Status::Invalid, what));
        }
        let most = self.max_size();
        for Extent { offset, length } in extents {
            if offset.checked_add(*length).is_none_or(|end| end > most) {
                let what = format!(
                    "write {length} bytes at {offset}, where the file system holds {most} of a file"
                );
                return Err(error(Status::FileTooBig, what));
            }
        }
        let mut rest = data;
        for extent in extents {
            let len = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            self.write_range(extent.offset, bytes).await?;
        }
        if !data.is_empty() {
            self.meta.write().changed();
        }
        Ok(())
    }

    async fn write_range(self: &Arc<Self>, offset: u64, mut bytes: &[u8]) -> Result<()> {
        let page = self.page_size();
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while !bytes.is_empty() {
            let start = usize::try_from(at % page).unwrap_or(0);
            let (now, later) = bytes.split_at(bytes.len().min(self.cache.page_size() - start));
            self.cache.below_dirty_limit().await;
            self.write_page(at / page, start, now, end).await?;
            at += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Applies one page's part of a write that ends at `end`.
    async fn write_page(
        self: &Arc<Self>,
        block: u64,
        start: usize,
        bytes: &[u8],
        end: u64,
    ) -> Result<()> {
        let mut slot = None;
        let result = loop {
            match self.apply(block, start, bytes, &mut slot) {
                Ok(()) => break Ok(()),
                Err(Obstacle::Filling(listener)) => listener.await,
                Err(Obstacle::Size) => {
                    if let Err(error) = self.extend(end) {
                        break Err(error);
                    }
                }
                Err(Obstacle::Slot) => slot = Some(self.cache.slot(self.guard()).await?),
                Err(Obstacle::Fill) => {
                    if let Err(error) = self.fill(block, 1).await {
                        break Err(error);
                    }
                }
                Err(Obstacle::Corrupt(error)) => break Err(error),
            }
        };
        if let Some(unused) = slot {
            self.cache.free(unused);
        }
        result
    }

    fn apply(
        &self,
        block: u64,
        start: usize,
        bytes: &[u8],
        spare: &mut Option<Slot>,
    ) -> std::result::Result<(), Obstacle> {
        let page_size = self.cache.page_size();
        // Shared suffices: size and key stay, and the shard's lock guards the page.
        let meta = self.meta.read();
        let behind = block * self.page_size() + (start + bytes.len()) as u64;
        if behind > meta.size {
            return Err(Obstacle::Size);
        }
        let key = (self.number(), block);
        let mut shard = self.cache.shard(key).lock();
        // Whether no byte of the page's old content survives the write.
        let whole = start == 0 && (bytes.len() == page_size || behind == meta.size);
        match shard.get(key) {
            Some(Entry::Filling(done)) => return Err(Obstacle::Filling(done.listen())),
            None if !whole => return Err(Obstacle::Fill),
            None if spare.is_none() => return Err(Obstacle::Slot),
            _ => {}
        }
        SCRATCH.with_borrow_mut(|payload| {
            payload.clear();
            payload.resize(page_size, 0);
            if let Some(page) = shard.touch(key) {
                if !whole {
                    let copied = self.copy_out(block, page, &meta.cover, payload);
                    copied.map_err(Obstacle::Corrupt)?;
                }
                payload[start..start + bytes.len()].copy_from_slice(bytes);
                let state = page.spend_version(&self.cache.arena);
                self.put(block, &page.slot, state, &meta, payload);
                if !page.dirty {
                    page.dirty = true;
                    self.count_dirty(block);
                }
                return Ok(());
            }
            let Some(slot) = spare.take() else { return Err(Obstacle::Slot) };
            if !self.cache.arena.accepts(slot.chunk.id()) {
                // Its chunk is being retired: another one.
                return Err(Obstacle::Slot);
            }
            payload[..bytes.len()].copy_from_slice(bytes);
            let generation = self.cache.arena.next_generation();
            self.put(block, &slot, (generation, 0), &meta, payload);
            shard.insert(key, slot, generation, true);
            self.blocks.lock().resident.insert(block);
            self.count_dirty(block);
            Ok(())
        })
    }

    /// Makes the file at least `end` bytes long: what was the last page shows that it is not any
    /// more. The store learns of it with the page that ends the file.
    ///
    /// # Errors
    /// [`Status::Io`] where that page is corrupt; nothing has changed then.
    fn extend(&self, end: u64) -> Result<()> {
        let mut meta = self.meta.write();
        if end <= meta.size {
            return Ok(());
        }
        let before = std::mem::replace(&mut meta.size, end);
        let rewritten = self.rewrite(self.last_block(before), &meta);
        if rewritten.is_err() {
            meta.size = before;
        }
        rewritten
    }

    /// Puts a cached page into its slot anew, after the size has changed. The caller holds `meta`
    /// exclusively.
    ///
    /// # Errors
    /// [`Status::Io`] where the page is corrupt: it stays as it is.
    pub(super) fn rewrite(&self, block: u64, meta: &Meta) -> Result<()> {
        let key = (self.number(), block);
        let mut shard = self.cache.shard(key).lock();
        match shard.page(key) {
            Some(page) => self.reclose(block, page, &meta.cover, meta),
            None => Ok(()),
        }
    }

    /// Takes a page that is under `old` and puts it into its slot anew, as `meta` has it.
    ///
    /// # Errors
    /// [`Status::Io`] where the page is corrupt: it stays as it is.
    pub(super) fn reclose(
        &self,
        block: u64,
        page: &mut Page,
        old: &Cover,
        meta: &Meta,
    ) -> Result<()> {
        SCRATCH.with_borrow_mut(|payload| {
            payload.resize(self.cache.page_size(), 0);
            self.copy_out(block, page, old, payload)?;
            let state = page.spend_version(&self.cache.arena);
            self.put(block, &page.slot, state, meta, payload);
            Ok(())
        })
    }

    /// Copies a page out of its slot into private memory and opens it. Called under its shard's
    /// lock.
    fn copy_out(&self, block: u64, page: &Page, cover: &Cover, payload: &mut [u8]) -> Result<()> {
        let mut footer = [0; FOOTER_LEN];
        page.slot.copy_out(payload, &mut footer);
        self.open(block, page.state(), cover, &footer, payload)
    }

    /// Counts a page that has just become dirty. Called under its shard's lock.
    fn count_dirty(&self, block: u64) {
        self.blocks.lock().dirty.insert(block);
        self.cache.dirty.fetch_add(self.cache.page_size(), Ordering::Relaxed);
    }
}

//! Changing pages in place.

use super::cover::Cover;
use super::file::Meta;
use super::shard::{Entry, Page};
use super::{CachedFile, Writer, error};
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

/// A write has made the file longer.
#[derive(Clone, Copy, Debug)]
struct Extension {
    /// The size before.
    before: u64,
    /// What `Meta::sizes` was then.
    number: u64,
}

/// How far a write has come.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that were written.
    done: usize,
    extension: Option<Extension>,
}

impl CachedFile {
    /// Writes the extents' bytes, one after the other out of `data`. When it returns, every page
    /// shows them to one-sided readers. Not atomic across pages.
    ///
    /// # Errors
    /// [`Status::Invalid`] where the extents do not add up to `data`, [`Status::FileTooBig`] beyond
    /// what the store can hold; nothing has changed then. The store's where a page that is changed
    /// in part cannot be read first, [`Status::Io`] where it is corrupt: extents and pages before the
    /// failing one have been written, and the file is no longer than they make it.
    pub async fn write(self: &Arc<Self>, extents: &[Extent], data: &[u8]) -> Result<()> {
        check_extents(extents, data, self.max_size())?;
        let mut rest = data;
        for extent in extents {
            let len = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            self.write_range(extent.offset, bytes, None).await?;
        }
        if !data.is_empty() {
            self.meta.write().changed();
        }
        Ok(())
    }

    /// Writes one range, as long as the session stands.
    pub(super) async fn write_range(
        self: &Arc<Self>,
        offset: u64,
        bytes: &[u8],
        writer: Option<&Writer>,
    ) -> Result<()> {
        let mut progress = Progress::default();
        let written = self.write_pages(offset, bytes, writer, &mut progress).await;
        if let (Err(_), Some(extension)) = (&written, progress.extension) {
            let done = if progress.done > 0 { offset + progress.done as u64 } else { 0 };
            self.shrink_back(extension, done).await;
        }
        written
    }

    async fn write_pages(
        self: &Arc<Self>,
        offset: u64,
        mut bytes: &[u8],
        writer: Option<&Writer>,
        progress: &mut Progress,
    ) -> Result<()> {
        let page = self.page_size();
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while !bytes.is_empty() {
            let start = usize::try_from(at % page).unwrap_or(0);
            let (now, later) = bytes.split_at(bytes.len().min(self.cache.page_size() - start));
            self.cache.room_for_a_page(self, writer).await?;
            let extension = &mut progress.extension;
            self.write_page(at / page, start, now, end, writer, extension).await?;
            at += now.len() as u64;
            progress.done += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// A write that has made the file longer has failed: the file is as long as what is there, which
    /// ends at `done`, unless its size was set or it was made longer meanwhile.
    async fn shrink_back(&self, extension: Extension, done: u64) {
        // No write-back meanwhile, which would write a page with its former length.
        let _gate = self.gate.write().await;
        let there = done.max(extension.before);
        {
            let mut meta = self.meta.write();
            if meta.sizes != extension.number || there >= meta.size {
                return;
            }
            meta.size = there;
            let last = self.last_block(there);
            self.kill_from(last + 1);
            if let Err(error) = self.rewrite(last, &meta) {
                tracing::error!(%error, file = ?self.identity(), "after a failed write");
            }
        }
        let store = self.store();
        let cut = move || match store.attr() {
            Ok(attr) if attr.size > there => store.set_len(there),
            other => other.map(drop),
        };
        if let Err(error) = self.blocking(cut).await {
            // Bytes behind the end of the file on disk are zeros of a page that was written back.
            tracing::error!(%error, file = ?self.identity(), "after a failed write");
        }
        self.settle().await;
    }

    /// Applies one page's part of a write that ends at `end`.
    async fn write_page(
        self: &Arc<Self>,
        block: u64,
        start: usize,
        bytes: &[u8],
        end: u64,
        writer: Option<&Writer>,
        extension: &mut Option<Extension>,
    ) -> Result<()> {
        let mut slot = None;
        let result = loop {
            let mut apply = || self.apply(block, start, bytes, writer, &mut slot);
            let applied = match writer {
                Some(writer) => writer.standing.while_it_stands(apply),
                None => Ok(apply()),
            };
            let applied = match applied {
                Ok(applied) => applied,
                Err(ended) => break Err(ended),
            };
            match applied {
                Ok(()) => break Ok(()),
                Err(Obstacle::Filling(listener)) => listener.await,
                Err(Obstacle::Size) => match self.extend(end) {
                    Ok(None) => {}
                    // It may have become shorter since the first time.
                    Ok(Some(again)) => {
                        let before = extension.map_or(again.before, |first| first.before);
                        *extension = Some(Extension { before, ..again });
                    }
                    Err(error) => break Err(error),
                },
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
        writer: Option<&Writer>,
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
                let clean = page.is_clean();
                if !page.dirty {
                    (page.dirty, page.written) = (true, false);
                    self.note_dirty(block, clean, writer);
                }
                return Ok(());
            }
            let Some(slot) = spare.take() else { return Err(Obstacle::Slot) };
            if !self.cache.arena.accepts(slot.chunk.id()) {
                // Its chunk is being retired, which may be given up: another one.
                self.cache.free(slot);
                return Err(Obstacle::Slot);
            }
            payload[..bytes.len()].copy_from_slice(bytes);
            let generation = self.cache.arena.next_generation();
            self.put(block, &slot, (generation, 0), &meta, payload);
            shard.insert(key, slot, generation, true);
            self.blocks.lock().resident.insert(block);
            self.note_dirty(block, true, writer);
            Ok(())
        })
    }

    /// Makes the file at least `end` bytes long: what was the last page shows that it is not any
    /// more. The store learns of it with the page that ends the file.
    ///
    /// # Errors
    /// [`Status::Io`] where that page is corrupt; nothing has changed then.
    fn extend(&self, end: u64) -> Result<Option<Extension>> {
        let mut meta = self.meta.write();
        if end <= meta.size {
            return Ok(None);
        }
        let before = std::mem::replace(&mut meta.size, end);
        if let Err(error) = self.rewrite(self.last_block(before), &meta) {
            meta.size = before;
            return Err(error);
        }
        meta.sizes += 1;
        Ok(Some(Extension { before, number: meta.sizes }))
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

    /// Notes that a page has just become dirty, and counts it, for the writer, if it was clean. Called under its
    /// shard's lock.
    fn note_dirty(&self, block: u64, clean: bool, writer: Option<&Writer>) {
        let mut blocks = self.blocks.lock();
        blocks.written.remove(&block);
        blocks.dirty.insert(block);
        if clean {
            let page = self.cache.page_size();
            self.cache.dirty.fetch_add(page, Ordering::Relaxed);
            self.volume.dirty.add(page);
            if let Some(writer) = writer {
                let share = writer.owner.dirty();
                share.add(page);
                blocks.payers.insert(block, Arc::clone(share));
            }
        }
    }
}

/// Looks at what a write asks for.
///
/// # Errors
/// As for [`CachedFile::write`].
pub(super) fn check_extents(extents: &[Extent], data: &[u8], max_size: u64) -> Result<()> {
    let total = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.length));
    if total != Some(data.len() as u64) {
        let what = format!("write extents that do not add up to their {} bytes", data.len());
        return Err(error(Status::Invalid, what));
    }
    for Extent { offset, length } in extents {
        if offset.checked_add(*length).is_none_or(|end| end > max_size) {
            let what = format!(
                "write {length} bytes at {offset}, where the file system holds {max_size} of a file"
            );
            return Err(error(Status::FileTooBig, what));
        }
    }
    Ok(())
}

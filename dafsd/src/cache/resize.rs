//! What ends pages or changes where the file ends: truncation and removal.

use super::{CachedFile, Standing, error};
use crate::store::Result;
use dafs_proto::Status;
use ordma::schedule_point;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keeps a file from being discarded while a client has it open.
#[derive(Debug)]
pub struct OpenFile(Arc<CachedFile>);

impl Deref for OpenFile {
    type Target = Arc<CachedFile>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let last = {
            let store = self.0.store.read();
            store.release(1);
            self.0.opens.fetch_sub(1, Ordering::AcqRel) == 1
        };
        if last && self.0.is_removed() {
            self.0.discard();
        } else if last {
            self.0.rest();
        }
    }
}

/// Counts opens; see [`OpenFile`].
pub(super) type Opens = AtomicUsize;

impl CachedFile {
    /// Counts an open until the guard is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> OpenFile {
        {
            // The store's file may be replaced only with those who have it open.
            let store = self.store.read();
            store.hold(1);
            self.opens.fetch_add(1, Ordering::AcqRel);
        }
        OpenFile(Arc::clone(self))
    }

    /// Sets the size. When it returns, slots beyond the new end are dead, and the old and the new
    /// last page show where the file ends.
    ///
    /// # Errors
    /// [`Status::FileTooBig`] beyond what the store can hold, and the store's; nothing has changed
    /// then. [`Status::Io`] where the old
    /// or the new last page is corrupt: the size is set then, and the page can only be overwritten.
    pub async fn set_size(&self, size: u64) -> Result<()> {
        self.set_size_while(size, None).await
    }

    /// The same, if the session stands.
    pub(super) async fn set_size_while(
        &self,
        size: u64,
        standing: Option<&Arc<Standing>>,
    ) -> Result<()> {
        let most = self.max_size();
        if size > most {
            let what = format!("set a size of {size} bytes, where the file system holds {most}");
            return Err(error(Status::FileTooBig, what));
        }
        let _gate = self.gate.write().await;
        let store = self.store();
        schedule_point("set size: before the disk");
        let standing = standing.cloned();
        let set_len = move || {
            // Only looked at: the end of a session waits for no disk, and whoever changes the file
            // in another session waits for us.
            if let Some(standing) = standing {
                standing.while_it_stands(|| ())?;
            }
            let before = store.attr();
            store.set_len(size).map(|()| before)
        };
        let before = self.blocking(set_len).await?;
        schedule_point("set size: after the disk");
        let rewritten = {
            let mut meta = self.meta.write();
            if let Ok(attr) = before {
                self.look(&mut meta, &attr);
            }
            let before = self.last_block(meta.size);
            let shrunk = size < meta.size;
            meta.size = size;
            meta.sizes += 1;
            meta.changed();
            let last = self.last_block(size);
            if shrunk {
                self.kill_from(last + 1);
            }
            let new_last = self.rewrite(last, &meta);
            let old_last = if before < last { self.rewrite(before, &meta) } else { Ok(()) };
            new_last.and(old_last)
        };
        self.settle().await;
        rewritten
    }

    /// The file's last name went away. Its pages end now, or when the last client closes it.
    pub fn removed(self: &Arc<Self>) {
        self.meta.write().removed = true;
        if self.opens.load(Ordering::Acquire) == 0 {
            self.discard();
        }
    }

    /// Whether its last name is gone.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.meta.read().removed
    }

    /// Ends all pages, dirty ones too, and forgets the file: nothing keeps its space any more.
    fn discard(self: &Arc<Self>) {
        let meta = self.meta.write();
        self.kill_from(0);
        drop(meta);
        self.unstable.lock().forget_all();
        self.cache.forget(self);
    }

    /// Whether it has no name on the disk any more.
    pub(super) async fn is_gone(&self) -> bool {
        let store = self.store();
        self.blocking(move || store.is_gone()).await
    }

    /// Whether a client has it open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }

    /// The store need not keep the file open while no client has it open and all of it is stable.
    pub(super) fn rest(&self) {
        if self.opens.load(Ordering::Acquire) == 0 && self.blocks.lock().is_clean() {
            self.store().rest();
        }
    }

    /// Kills the pages from `first` on. The caller holds `meta` exclusively.
    pub(super) fn kill_from(&self, first: u64) {
        let blocks: Vec<u64> = self.blocks.lock().resident.range(first..).copied().collect();
        blocks.into_iter().for_each(|block| self.kill(block));
    }

    /// Kills the pages that are clean. The caller holds `meta` exclusively, so none becomes dirty.
    pub(super) fn kill_clean(&self) {
        let blocks: Vec<u64> = {
            let blocks = self.blocks.lock();
            blocks.resident.difference(&blocks.unclean()).copied().collect()
        };
        blocks.into_iter().for_each(|block| self.kill(block));
    }

    fn kill(&self, block: u64) {
        let key = (self.number(), block);
        let mut shard = self.cache.shard(key).lock();
        let Some(page) = shard.kill(key) else { return };
        self.blocks.lock().resident.remove(&block);
        if !page.is_clean() {
            self.count_clean(block);
        }
        drop(shard);
        self.cache.free(page.slot);
    }
}

//! New keys: for one file, or for all that an export leads to.

use super::cover::Cover;
use super::{Cache, CachedFile};
use crate::runtime::Disk;
use crate::store::Result;
use ordma::schedule_point;
use std::sync::Arc;

impl Cache {
    /// Gives every cached file that was opened through an export a new epoch. Files that are opened
    /// for the first time afterwards have new keys anyway. Whoever is to be kept from the new keys
    /// has to be refused before the call. Takes long where much is dirty; waits for no disk.
    ///
    /// # Errors
    /// The last one of [`CachedFile::new_epoch`], after all files have got their new epochs.
    pub fn revoke_export(&self, export: &str) -> Result<()> {
        let mut result = Ok(());
        for file in self.files.iter() {
            if file.was_opened_through(export)
                && let Err(error) = file.rekey()
            {
                result = Err(error);
            }
        }
        result
    }
}

impl CachedFile {
    /// Begins a new epoch of the file: when it returns, and from then on, no page in a slot is under
    /// an earlier key. Clean pages are killed. The others stay where they are, with a new version
    /// under the new key, so references to them stay good, and readers with the old key find them
    /// revoked. Nothing at level `none`.
    ///
    /// # Errors
    /// [`Status::Io`](dafs_proto::Status::Io) where the memory of a dirty page is corrupt, so that
    /// no key opens it: it stays as it is. The new epoch has begun all the same.
    pub async fn new_epoch(self: &Arc<Self>) -> Result<()> {
        // All pages in one go, which for a large file is more than a thread that serves clients
        // should do.
        let file = Arc::clone(self);
        self.cache.runtime.blocking(Disk::NONE, move || file.rekey()).await
    }

    fn rekey(&self) -> Result<()> {
        if self.epoch() == 0 {
            return Ok(());
        }
        schedule_point("new epoch");
        // Whoever puts a page into a slot holds `meta` from before he looks at the key until the
        // page is in the table. So all pages under the old key are found here, none becomes dirty
        // meanwhile, and whoever comes after us uses the new key.
        let mut meta = self.meta.write();
        let new = self.cover(meta.cover.epoch + 1);
        let old = std::mem::replace(&mut meta.cover, new);
        let mut result = Ok(());
        let unclean = self.blocks.lock().unclean();
        for block in unclean {
            schedule_point("new epoch: a dirty page");
            let mut shard = self.cache.shard((self.number(), block)).lock();
            // One that has become clean since then is killed with the rest.
            if let Some(page) = shard.page((self.number(), block)).filter(|page| !page.is_clean())
                && let Err(error) = self.reclose(block, page, &old, &meta)
            {
                result = Err(error);
            }
        }
        self.kill_clean();
        result
    }

    /// What the file's pages are under in an epoch.
    pub(super) fn cover(&self, epoch: u64) -> Cover {
        Cover::new(self.protection(), &self.cache.secret, epoch, self.number())
    }
}

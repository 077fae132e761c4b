//! What guards the pages of a file in exported memory.

use dafs_keys::page::footer_epoch;
use dafs_keys::{FileKey, PageKey, Protection, Secret};
use ordma::arena::Guard;
use ordma::{FOOTER_LEN, Footer};
use std::sync::Arc;

/// What a file's pages are under during one epoch: it closes them on their way into a slot, and opens
/// the server's own copies.
#[derive(Clone, Debug)]
pub(super) struct Cover {
    /// The file's epoch; 0 at level `none`.
    pub epoch: u64,
    /// What opens a copy: the page key at `sealed`; at the other levels pages are in the clear.
    pub key: Arc<FileKey>,
}

impl Cover {
    /// That of a file with this number, in an epoch.
    pub fn new(protection: Protection, boot: &Secret, epoch: u64, file: u64) -> Self {
        match protection {
            Protection::None => Self { epoch: 0, key: FileKey::clear() },
            Protection::Keyed => Self { epoch, key: FileKey::clear() },
            Protection::Sealed => {
                let key = PageKey::derive(boot, epoch, file);
                Self { epoch, key: Arc::new(FileKey::Sealed(key)) }
            }
        }
    }

    /// Makes of a payload, in private memory, what may lie in a slot; and the footer's bytes for it.
    /// Generation and version of the footer must have been spent for this alone.
    pub fn close(&self, footer: &Footer, payload: &mut [u8]) -> [u8; FOOTER_LEN] {
        match &*self.key {
            FileKey::Sealed(key) => footer.seal(payload, key),
            FileKey::Clear | FileKey::Keyed(_) => {
                Footer { epoch: footer_epoch(self.epoch), ..*footer }.encode(payload)
            }
        }
    }
}

/// What guards the chunks for pages at this level.
pub(super) fn guard(protection: Protection) -> Guard {
    match protection {
        Protection::Keyed => Guard::Tags,
        Protection::None | Protection::Sealed => Guard::None,
    }
}

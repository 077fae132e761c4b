//! Files that were given set-id bits while somebody may have them open for writing.
//!
//! Who opens a file for writing takes its set-id bits away. Those that come later, through this
//! server, go with the next write. Each write asks, so that the answer is one load as a rule.

use crate::store::{Identity, Result};
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most files that are known by name. Beyond that each file may be one.
const MOST: usize = 4096;

/// The files.
#[derive(Debug, Default)]
pub struct SetId {
    /// `MOST` is for more than there is room for.
    count: AtomicUsize,
    files: Mutex<HashSet<Identity, RandomState>>,
}

impl SetId {
    /// A file was given this mode.
    pub fn mode_set(&self, identity: &Identity, mode: u32) {
        if mode & 0o6000 == 0 {
            return;
        }
        let mut files = self.files.lock();
        if files.len() < MOST {
            files.insert(*identity);
        }
        self.count.store(files.len(), Ordering::SeqCst);
    }

    /// Whether a file may have set-id bits.
    pub fn may_have(&self, identity: &Identity) -> bool {
        match self.count.load(Ordering::SeqCst) {
            0 => false,
            MOST => true,
            _ => self.files.lock().contains(identity),
        }
    }

    /// Takes a file's bits away by `drop`, which says whether there were any, or that they stay.
    pub fn dropping(
        &self,
        identity: &Identity,
        drop: impl FnOnce() -> Result<Option<bool>>,
    ) -> Result<bool> {
        // Under the lock: bits that are set meanwhile are noted afterwards.
        let mut files = self.files.lock();
        let dropped = drop()?;
        // Once there were more than there is room for, nobody knows any more which.
        if dropped.is_some() && files.len() < MOST {
            files.remove(identity);
            self.count.store(files.len(), Ordering::SeqCst);
        }
        Ok(dropped == Some(true))
    }
}

//! The descriptors that stores keep open, those of all exports together: no more than a set number,
//! however many files clients have open or the page cache holds.
//!
//! There are two kinds. `O_PATH` descriptors of what was named lately save resolving a handle each
//! time; the least recently used one goes ([`FdCache`]). Those of files whose data is read and
//! written are closed in turn, unless they were used since their last turn, and opened again by
//! handle when they are needed next. Two things keep one open (see [`LocalFile::evict`]): what was
//! written through it is not known to be stable, for the kernel tells of a failure to those who had
//! the file open at the time; and the file could not be opened again, as it has lost its last name
//! while a client has it open. The first is bounded for each store by making the oldest stable, the
//! second by refusing the removal.
//!
//! Descriptors belong to the process. So where the kernel has none left, all stores close some, and
//! the call is made again ([`with_room`]).

use super::Object;
use super::fds::FdCache;
use super::file::LocalFile;
use super::sys;
use crate::store::{Handle, Identity};
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// All there are in this process.
static ALL: Mutex<Vec<Weak<Descriptors>>> = Mutex::new(Vec::new());
/// How often a call is made again that found no descriptor left.
const TRIES: usize = 4;

/// The descriptors of some stores; see the module.
#[derive(Debug)]
pub struct Descriptors {
    /// What was named lately.
    pub(super) paths: FdCache,
    /// Files that were opened through any export, so that one that is opened twice has one descriptor.
    known: Mutex<HashMap<Identity, Weak<LocalFile>, RandomState>>,
    /// Files with an open descriptor, in the order in which their turn comes. With some that were
    /// closed since.
    files: Mutex<VecDeque<Weak<LocalFile>>>,
    most_files: usize,
    /// Files that have lost their last name while they were open, by the key of their handle.
    nameless: Mutex<HashMap<Handle, Weak<LocalFile>, RandomState>>,
    /// Stores that share them.
    stores: AtomicUsize,
}

impl Descriptors {
    /// Room for this many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let most_paths = most / 2;
        let new = Arc::new(Self {
            paths: FdCache::new(most_paths),
            known: Mutex::default(),
            files: Mutex::default(),
            most_files: (most - most_paths).max(1),
            nameless: Mutex::default(),
            stores: AtomicUsize::new(0),
        });
        let mut all = ALL.lock();
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    /// A store begins to use them.
    pub(super) fn join(&self) {
        self.stores.fetch_add(1, Ordering::Relaxed);
    }

    /// A store is gone.
    pub(super) fn leave(&self) {
        self.stores.fetch_sub(1, Ordering::Relaxed);
    }

    /// Most files of one store with data that is not known to be stable.
    pub(super) fn most_unsynced(&self) -> usize {
        (self.most_files / 4 / self.stores.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// Most open files without a name.
    fn most_nameless(&self) -> usize {
        (self.most_files / 2).max(1)
    }

    /// Most open files without a name that one session may make.
    pub(super) fn most_nameless_each(&self) -> usize {
        (self.most_nameless() / 2).max(1)
    }

    /// Whether one more file can lose its last name while it is open.
    pub(super) fn may_lose_name(&self) -> bool {
        let mut nameless = self.nameless.lock();
        nameless.retain(|_, file| file.strong_count() > 0);
        let in_use = |file: &&Weak<LocalFile>| file.upgrade().is_some_and(|file| file.is_in_use());
        nameless.values().filter(in_use).count() < self.most_nameless()
    }

    /// A file has lost its last name while it is open.
    pub(super) fn lost_name(&self, handle: &Handle, file: &Arc<LocalFile>) {
        self.nameless.lock().insert(handle.key(), Arc::downgrade(file));
    }

    /// The open file without a name that a handle names.
    pub(super) fn nameless(&self, handle: &Handle) -> Option<Arc<LocalFile>> {
        self.nameless.lock().get(&handle.key()).and_then(Weak::upgrade)
    }

    /// The file with this identity, if somebody needs it.
    pub(super) fn known(&self, identity: &Identity) -> Option<Arc<LocalFile>> {
        self.known.lock().get(identity).and_then(Weak::upgrade)
    }

    /// The same, or a new one that is open; whether it is new.
    pub(super) fn make_known(
        &self,
        identity: &Identity,
        new: impl FnOnce() -> Arc<LocalFile>,
    ) -> (Arc<LocalFile>, bool) {
        let mut known = self.known.lock();
        if let Some(file) = known.get(identity).and_then(Weak::upgrade) {
            return (file, false);
        }
        let file = new();
        if known.len() == known.capacity() {
            known.retain(|_, file| file.strong_count() > 0);
        }
        known.insert(*identity, Arc::downgrade(&file));
        drop(known);
        self.opened(&Arc::downgrade(&file));
        (file, true)
    }

    /// A file has a descriptor now: others are closed where there are too many.
    pub(super) fn opened(&self, file: &Weak<LocalFile>) {
        self.files.lock().push_back(Weak::clone(file));
        self.close_down_to(self.most_files);
    }

    /// Whether there is room for one more, after others are closed.
    pub(super) fn has_room(&self) -> bool {
        self.close_down_to(self.most_files - 1)
    }

    /// Closes files in turn until there are no more than this; whether that is so. Each has two
    /// turns: at the first it may have been used since the last one.
    fn close_down_to(&self, most: usize) -> bool {
        let mut turns = 2 * self.files.lock().len();
        loop {
            let next = {
                let mut files = self.files.lock();
                if files.len() <= most {
                    return true;
                }
                if turns == 0 {
                    return false;
                }
                files.pop_front()
            };
            turns -= 1;
            // Gone, it has closed its descriptor.
            let Some(file) = next.as_ref().and_then(Weak::upgrade) else { continue };
            if !file.evict() {
                self.files.lock().push_back(Arc::downgrade(&file));
            }
        }
    }

    /// Closes a part of them.
    fn give_way(&self) {
        self.paths.shrink();
        let now = self.files.lock().len();
        self.close_down_to(now - now.div_ceil(4));
    }

    /// Closes what keeps the space of files that have no name and that nobody has open, such as
    /// those removed by others on this host; whether there was any.
    pub(super) fn discard_removed(&self) -> bool {
        let files: Vec<_> = self.files.lock().iter().filter_map(Weak::upgrade).collect();
        let closed = files.iter().filter(|file| file.is_removed() && file.close()).count();
        closed + self.paths.remove_where(has_no_name) > 0
    }

    /// Files with an open descriptor, and at most as many that had one.
    #[cfg(test)]
    pub(super) fn files(&self) -> usize {
        self.files.lock().len()
    }

    /// Files that somebody needs.
    #[cfg(test)]
    pub(super) fn count_known(&self) -> usize {
        self.known.lock().values().filter(|file| file.strong_count() > 0).count()
    }
}

fn has_no_name(object: &Object) -> bool {
    sys::stat(&object.fd).is_ok_and(|stat| stat.stx_nlink == 0)
}

/// Makes a system call that takes a descriptor. Where there are none left, stores close some, and it
/// is made again.
///
/// # Errors
/// Those of the call.
pub fn with_room<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match call() {
            Err(Errno::MFILE | Errno::NFILE) => {
                let all: Vec<_> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
                all.iter().for_each(|descriptors| descriptors.give_way());
            }
            result => return result,
        }
    }
    call()
}

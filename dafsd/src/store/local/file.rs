//! A regular file for data I/O.
//!
//! It has a descriptor while one is needed, and is opened again by its handle after that was closed,
//! for reading until somebody writes: a program that is only read can be run on this host meanwhile.
//!
//! The kernel tells of data that it could not write once, at the next sync through a descriptor that
//! was open at the time. So the descriptor stays as long as something was written through it since
//! the last sync. Where such descriptors become too many, the oldest is synced early; a failure of
//! that is what the next [`sync`](StoreFile::sync) tells of, and who asked for it writes all again.

use super::descriptors::Descriptors;
use super::sys::{self, failed};
use super::{Handles, Object, caller};
use crate::store::{Handle, Identity, Result, StoreError, StoreFile};
use crate::sync::Mutex;
use ordma::complaints;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, Weak};

mod io;

/// What the files of a store have in common.
#[derive(Debug)]
pub(super) struct Origin {
    pub handles: Handles,
    pub descriptors: Arc<Descriptors>,
    /// Files that were written since they were synced, in the order in which they were.
    unsynced: Mutex<BTreeMap<u64, Weak<LocalFile>>>,
    /// The last number of that order.
    written: AtomicU64,
    /// The largest size of a file of the store that was looked at last; 0 before the first. Most likely
    /// the next one's is the same.
    max_size: AtomicU64,
    /// Syncs to come that fail.
    #[cfg(test)]
    pub fail_syncs: AtomicUsize,
}

impl Origin {
    pub fn new(handles: Handles, descriptors: Arc<Descriptors>) -> Self {
        descriptors.join();
        let (unsynced, written, max_size) =
            (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self {
            handles,
            descriptors,
            unsynced,
            written,
            max_size,
            #[cfg(test)]
            fail_syncs: AtomicUsize::new(0),
        }
    }

    /// A file is about to be written that has no unsynced data.
    fn note_unsynced(&self, file: &Weak<LocalFile>) -> u64 {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        self.unsynced.lock().insert(number, Weak::clone(file));
        number
    }

    /// Where files with unsynced data are too many, syncs the oldest.
    fn bound_unsynced(&self) {
        let mut excess =
            self.unsynced.lock().len().saturating_sub(self.descriptors.most_unsynced());
        while excess > 0 {
            let oldest = self.unsynced.lock().pop_first();
            if let Some((number, file)) = oldest
                && let Some(file) = file.upgrade()
                && file.sync_early()
            {
                // It is being written: the next one sees to it.
                self.unsynced.lock().insert(number, Arc::downgrade(&file));
            }
            excess -= 1;
        }
    }

    /// What the disk says of a file that is not open.
    fn stat(
        &self,
        handle: &Handle,
        identity: Identity,
    ) -> Result<std::result::Result<fs::Statx, Errno>> {
        Ok(match self.descriptors.paths.get(handle) {
            Some(object) => sys::stat(&object.fd),
            None => sys::stat(self.handles.reopen(handle, identity, OFlags::PATH)?),
        })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.descriptors.leave();
    }
}

/// A file of a [`LocalStore`](super::LocalStore). Those who have it open can read and write it after
/// its last name is gone.
#[derive(Debug)]
pub struct LocalFile {
    this: Weak<Self>,
    origin: Arc<Origin>,
    handle: Handle,
    identity: Identity,
    /// Somebody has opened it for writing.
    writable: AtomicBool,
    /// It had no name any more when it was closed.
    gone: AtomicBool,
    /// Clients that have it open.
    users: AtomicUsize,
    /// It was used since its last turn to be closed.
    used: AtomicBool,
    state: Mutex<State>,
    /// One sync at a time, or one could find that another one was told of the failure.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    fd: Option<Arc<OwnedFd>>,
    /// The descriptor is good for writing.
    for_writing: bool,
    /// It is among those that have their turn to be closed.
    queued: bool,
    /// Writes under way.
    writing: usize,
    /// Writes that have begun.
    writes: u64,
    /// It was written since it was synced: its number among those.
    unsynced: Option<u64>,
    /// What an early sync has failed with.
    failure: Option<StoreError>,
}

/// A write under way.
struct Writing<'a> {
    file: &'a LocalFile,
    fd: Arc<OwnedFd>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.file.state.lock().writing -= 1;
    }
}

impl LocalFile {
    /// A file with its first descriptor.
    pub(super) fn new(
        origin: &Arc<Origin>,
        handle: Handle,
        identity: Identity,
        fd: OwnedFd,
        writable: bool,
    ) -> Arc<Self> {
        let fd = Some(Arc::new(fd));
        let state = State { fd, for_writing: writable, queued: true, ..State::default() };
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            origin: Arc::clone(origin),
            handle,
            identity,
            writable: AtomicBool::new(writable),
            gone: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            state: Mutex::new(state),
            syncing: Mutex::default(),
        })
    }

    /// Whether a client has it open.
    pub(super) fn is_in_use(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 0
    }

    /// Whether it has a descriptor, and no name.
    pub(super) fn is_removed(&self) -> bool {
        let fd = self.state.lock().fd.clone();
        fd.is_some_and(|fd| has_no_name(&fd))
    }

    /// Its descriptor once more, to be named only. `None` where it has none.
    pub(super) fn path(&self) -> Option<std::result::Result<OwnedFd, Errno>> {
        let fd = self.state.lock().fd.clone()?;
        Some(sys::path_of(&*fd))
    }

    /// Somebody may write it: sees to it that the server can.
    pub(super) fn allow_writing(&self, object: &Object) -> std::result::Result<(), Errno> {
        self.open_by(object, true)?;
        self.writable.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// It has lost its last name, and cannot be opened by its handle any more: those who have it open
    /// need its descriptor.
    pub(super) fn keep_open(&self, object: &Object) -> std::result::Result<(), Errno> {
        self.open_by(object, self.writable())
    }

    fn open_by(&self, object: &Object, write: bool) -> std::result::Result<(), Errno> {
        self.acquire(write, |flags| caller::reopen(object, flags), |error| error, |_| ()).map(drop)
    }

    /// A descriptor. Where there is none that is good for this, it is opened.
    fn fd(&self, write: bool) -> Result<Arc<OwnedFd>> {
        self.fd_for(write, |_| ())
    }

    fn fd_for(&self, write: bool, note: impl FnOnce(&mut State)) -> Result<Arc<OwnedFd>> {
        let open = |flags| self.origin.handles.reopen(&self.handle, self.identity, flags);
        self.acquire(write, open, |error| failed(self.what("opening"), error), note)
    }

    /// The same, opened in a way of the caller's, who notes down what it is for before anyone can
    /// close it.
    fn acquire<E>(
        &self,
        write: bool,
        open: impl FnOnce(OFlags) -> std::result::Result<OwnedFd, E>,
        fail: impl FnOnce(Errno) -> E,
        note: impl FnOnce(&mut State),
    ) -> std::result::Result<Arc<OwnedFd>, E> {
        self.used.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        let good = state.fd.as_ref().filter(|_| state.for_writing || !write);
        if let Some(fd) = good.map(Arc::clone) {
            note(&mut state);
            return Ok(fd);
        }
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = Arc::new(match &state.fd {
            Some(fd) => caller::open_again(fd, flags).map_err(fail)?,
            None => open(flags)?,
        });
        let old = state.fd.replace(Arc::clone(&fd));
        state.for_writing = write;
        note(&mut state);
        let queued = std::mem::replace(&mut state.queued, true);
        drop(state);
        drop(old);
        if !queued {
            self.origin.descriptors.opened(&self.this);
        }
        Ok(fd)
    }

    /// Begins a write.
    fn writing(&self) -> Result<Writing<'_>> {
        if !self.writable() {
            return Err(failed(self.what("writing to what was opened for reading"), Errno::BADF));
        }
        let mut first = false;
        let fd = self.fd_for(true, |state| {
            state.writing += 1;
            state.writes += 1;
            first = state.unsynced.is_none();
            state.unsynced.get_or_insert_with(|| self.origin.note_unsynced(&self.this));
        })?;
        let writing = Writing { file: self, fd };
        if first {
            self.origin.bound_unsynced();
        }
        Ok(writing)
    }

    /// Makes a call that takes space. Where there is none left, that of files without a name is given
    /// back, and it is made again.
    fn with_space<T>(
        &self,
        mut call: impl FnMut() -> std::result::Result<T, Errno>,
    ) -> std::result::Result<T, Errno> {
        match call() {
            Err(Errno::NOSPC | Errno::DQUOT) if self.origin.descriptors.discard_removed() => call(),
            result => result,
        }
    }

    /// Syncs. What was written before is stable, or the failure has been told of here, and to nobody
    /// else.
    fn sync_once(&self, data_only: bool) -> Result<Arc<OwnedFd>> {
        let (mut writes, mut quiet) = (0, false);
        let fd = self.fd_for(false, |state| {
            (writes, quiet) = (state.writes, state.writing == 0);
        })?;
        let result = if data_only { fs::fdatasync(&fd) } else { fs::fsync(&fd) };
        #[cfg(test)]
        let result = {
            let fails = &self.origin.fail_syncs;
            let fail = fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if fail.is_ok() { Err(Errno::IO) } else { result }
        };
        let mut state = self.state.lock();
        if quiet && state.writes == writes {
            let number = state.unsynced.take();
            number.map(|number| self.origin.unsynced.lock().remove(&number));
        }
        drop(state);
        result.map_err(|error| failed(self.what("sync"), error))?;
        Ok(fd)
    }

    /// Syncs it before anybody asks; whether it is still, or again, unsynced.
    fn sync_early(&self) -> bool {
        let _one = self.syncing.lock();
        if self.state.lock().unsynced.is_none() {
            return false;
        }
        if let Err(error) = self.sync_once(false) {
            if let Some(untold) = complaints::take("early sync", "") {
                tracing::warn!(%error, untold, "the file's next sync fails");
            }
            self.state.lock().failure = Some(error);
        }
        self.state.lock().unsynced.is_some()
    }

    /// Its turn has come to be closed: whether it has no descriptor any more. It keeps one that was
    /// used since its last turn, and one that is needed.
    pub(super) fn evict(&self) -> bool {
        // Where it is being opened, which may take long, its turn comes again.
        let Some(mut state) = self.state.try_lock() else { return false };
        let Some(fd) = &state.fd else {
            state.queued = false;
            return true;
        };
        let used = self.used.swap(false, Ordering::Relaxed);
        if used || state.is_needed() || self.cannot_open_again(fd, state.for_writing) {
            return false;
        }
        state.queued = false;
        self.take_away(state);
        true
    }

    /// Closes it, unless it is needed; whether it had a descriptor.
    pub(super) fn close(&self) -> bool {
        let Some(state) = self.state.try_lock() else { return false };
        if self.is_in_use() || state.is_needed() {
            return false;
        }
        self.take_away(state)
    }

    /// Closes the descriptor; whether there was one.
    fn take_away(&self, mut state: MutexGuard<'_, State>) -> bool {
        let fd = state.fd.take();
        state.for_writing = false;
        if fd.as_deref().is_some_and(has_no_name) {
            self.gone.store(true, Ordering::SeqCst);
        }
        // Closing may take time.
        drop(state);
        fd.is_some()
    }

    fn cannot_open_again(&self, fd: &OwnedFd, for_writing: bool) -> bool {
        if self.is_in_use() && has_no_name(fd) {
            return true;
        }
        // Root may always. Others are bound by the mode, which may forbid writing to who made the file.
        for_writing
            && !rustix::process::geteuid().is_root()
            && caller::open_again(fd, OFlags::RDWR).is_err()
    }

    fn what(&self, what: &str) -> String {
        format!("{what} of inode {}", self.identity.inode)
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if let Some(number) = self.state.lock().unsynced {
            self.origin.unsynced.lock().remove(&number);
        }
    }
}

impl State {
    /// The descriptor is the one that is told of data that could not be written.
    fn is_needed(&self) -> bool {
        self.writing > 0 || self.unsynced.is_some()
    }
}

fn has_no_name(fd: &OwnedFd) -> bool {
    sys::stat(fd).is_ok_and(|stat| stat.stx_nlink == 0)
}

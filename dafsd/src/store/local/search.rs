//! Looking for an object whose place is not known any more, through the whole export.
//!
//! A last resort, for the kernel and the handle table know the place as a rule. What was moved through
//! this server, or by others, while the kernel had forgotten it, is found again; so a handle is good as
//! long as its file has a name. It takes as long as listing all directories: only one thread does so at
//! a time, and what was found nowhere is not looked for again for a while.

use super::sys::{self, failed};
use crate::store::{Identity, Result, StoreError};
use crate::sync::Mutex;
use dafs_proto::Status;
use foldhash::fast::RandomState;
use rustix::fs::{self, OFlags, RawDir};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest path that is resolved at once; the kernel's limit is 4096.
const MAX_PATH: usize = 4000;
/// Most threads that wait for one that looks. The others can do something else meanwhile.
const MAX_WAITING: usize = 2;
/// Most objects that are remembered to be nowhere.
const MAX_ABSENT: usize = 4096;
/// How long those are not looked for: this, or so many times what it took to look.
const ABSENT: Duration = Duration::from_secs(5);
const ABSENT_TIMES: u32 = 20;
/// How often it is looked once more because names were moved meanwhile.
const ROUNDS: usize = 3;

/// Where an object was found.
#[derive(Debug)]
pub struct Found {
    /// The object, to be named only.
    pub fd: OwnedFd,
    /// The names that lead from the root to it. Never empty.
    pub names: Vec<Vec<u8>>,
}

/// Who looks, and what was found nowhere.
#[derive(Debug, Default)]
pub struct Search {
    looking: Mutex<()>,
    waiting: AtomicUsize,
    /// Names that are being moved through this server, and how often one has been.
    moving: AtomicUsize,
    moves: AtomicU64,
    absent: Mutex<HashMap<Identity, Instant, RandomState>>,
}

/// A name is being moved, or another one made.
#[derive(Debug)]
pub struct Moving<'a>(&'a Search);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.moves.fetch_add(1, Ordering::SeqCst);
        self.0.moving.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Search {
    /// A name is about to be moved, or another one made. Who looks meanwhile may miss it.
    pub fn moving(&self) -> Moving<'_> {
        self.moving.fetch_add(1, Ordering::SeqCst);
        Moving(self)
    }

    /// An object has another name, or one more, and what is in it another place.
    pub fn moved(&self, identity: &Identity, is_directory: bool) {
        let mut absent = self.absent.lock();
        if is_directory {
            absent.clear();
        } else {
            absent.remove(identity);
        }
    }

    /// Looks for an object below `root`. `None` where it is nowhere.
    ///
    /// # Errors
    /// [`Status::TryAgain`] where others wait already, or names were moved all the time.
    pub fn find(&self, root: &OwnedFd, wanted: Identity) -> Result<Option<Found>> {
        let is_absent = |until: &Instant| *until > Instant::now();
        if self.absent.lock().get(&wanted).is_some_and(is_absent) {
            return Ok(None);
        }
        let again = || StoreError::new(Status::TryAgain, "handle: its place is being looked for");
        if self.waiting.fetch_add(1, Ordering::SeqCst) > MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(again());
        }
        let looking = self.looking.lock();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let moves = self.moves.load(Ordering::SeqCst);
            let quiet = self.moving.load(Ordering::SeqCst) == 0;
            if let Some(found) = look(root, wanted)? {
                return Ok(Some(found));
            }
            if quiet && self.moves.load(Ordering::SeqCst) == moves {
                self.note_absent(wanted, begin);
                drop(looking);
                return Ok(None);
            }
        }
        Err(again())
    }

    fn note_absent(&self, wanted: Identity, begin: Instant) {
        let now = Instant::now();
        let until = now + ABSENT.max(ABSENT_TIMES * (now - begin));
        let mut absent = self.absent.lock();
        if absent.len() >= MAX_ABSENT {
            absent.clear();
        }
        absent.insert(wanted, until);
    }
}

/// Lists one directory after the other.
fn look(root: &OwnedFd, wanted: Identity) -> Result<Option<Found>> {
    let mut directories: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
    let mut buffer = Vec::with_capacity(32 << 10);
    while let Some(names) = directories.pop() {
        // Gone since, or not the server's to list.
        let Ok(place) = open(root, &names) else { continue };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(directory) = sys::open_beneath(&place, b".", flags, 0.into()) else { continue };
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let Ok(entry) = entry else { break };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let below = || [&names[..], &[name.to_vec()]].concat();
            if entry.ino() == wanted.inode
                && let Ok(fd) = sys::open_path(&place, name)
                && let Ok(stat) = sys::stat(&fd)
                && sys::identity(fd.as_fd(), &stat) == wanted
            {
                return Ok(Some(Found { fd, names: below() }));
            }
            if matches!(entry.file_type(), fs::FileType::Directory | fs::FileType::Unknown) {
                directories.push(below());
            }
        }
    }
    Ok(None)
}

/// Opens what some names lead to, to be named only.
///
/// # Errors
/// Those of the kernel.
pub fn open(root: &OwnedFd, names: &[impl AsRef<[u8]>]) -> Result<OwnedFd> {
    let mut fd = sys::open_path(root, b".").map_err(|error| failed("handle", error))?;
    for path in join(names) {
        fd = sys::open_path(&fd, &path).map_err(|error| failed("handle", error))?;
    }
    Ok(fd)
}

/// Joins names to paths that the kernel takes at once.
fn join(names: &[impl AsRef<[u8]>]) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for name in names.iter().map(AsRef::as_ref) {
        match paths.last_mut() {
            Some(path) if path.len() + 1 + name.len() <= MAX_PATH => {
                path.push(b'/');
                path.extend(name);
            }
            _ => paths.push(name.to_vec()),
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_resolved_in_parts() {
        let name = [b'n'; 255];
        let names = vec![&name[..]; 100];
        let paths = join(&names);
        assert!(paths.iter().all(|path| path.len() <= MAX_PATH));
        assert_eq!(paths.join(&b'/'), names.join(&b'/'));
    }
}

//! Handles by number, for file systems and servers that cannot use the kernel's.
//!
//! A table maps each number to a directory's number, a name there, and the identity of what the
//! name led to. Where the path leads to something else by now, as one of several names was removed or
//! others have moved it, the object is [looked for](super::search). The table is kept in
//! an append-only [log](super::journal), so that handles survive a restart.
//!
//! Wire form: version 2, export id (8 bytes), number (8 bytes).

use super::journal::{Change, Journal};
use super::search::{self, Found, Moving, Search};
use super::sys::{self, failed};
use super::{Object, caller};
use crate::store::{Handle, Identity, Result, StoreError};
use crate::sync::Mutex;
use dafs_proto::Status;
use foldhash::fast::RandomState;
use rustix::fs::{OFlags, Statx};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// First byte of a wire handle of this kind.
const VERSION: u8 = 2;
/// The root directory's number.
const ROOT: u64 = 0;
/// Objects other than directories that the table holds; the oldest are forgotten beyond that.
const MAX_FILES: usize = 1 << 20;
/// How often a handle is resolved anew because what it names was moved meanwhile.
const ROUNDS: usize = 16;
/// Deepest directory that is resolved.
const MAX_DEPTH: usize = 4096;

/// Where an object was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The directory's number.
    pub parent: u64,
    /// The name there.
    pub name: Box<[u8]>,
    /// What the name led to.
    pub identity: Identity,
    /// It is a directory, which others may need to be found.
    pub directory: bool,
}

/// The table, as plain data.
#[derive(Debug, Default)]
pub struct Records {
    by_number: HashMap<u64, Record, RandomState>,
    by_identity: HashMap<Identity, u64, RandomState>,
    /// Numbers of files in the order they came, with some that are gone.
    files: VecDeque<u64>,
}

impl Records {
    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// All objects.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.by_number.iter().map(|(number, record)| (*number, record))
    }

    /// Puts an object in, or elsewhere.
    pub fn put(&mut self, number: u64, record: Record) {
        self.by_identity.insert(record.identity, number);
        if let Some(old) = self.by_number.insert(number, record.clone()) {
            if old.identity != record.identity {
                self.by_identity.remove(&old.identity);
            }
        } else if !record.directory {
            self.files.push_back(number);
        }
    }

    /// Takes an object out.
    pub fn remove(&mut self, number: u64) {
        if let Some(record) = self.by_number.remove(&number)
            && self.by_identity.get(&record.identity) == Some(&number)
        {
            self.by_identity.remove(&record.identity);
        }
        if self.files.len() > 2 * self.by_number.len() + 16 {
            let by_number = &self.by_number;
            self.files.retain(|number| by_number.contains_key(number));
        }
    }

    /// A file to be forgotten, where there are more than `max`.
    fn excess(&mut self, max: usize) -> Option<u64> {
        while self.files.len() > max {
            let oldest = self.files.pop_front()?;
            if self.by_number.contains_key(&oldest) {
                return Some(oldest);
            }
        }
        None
    }

    /// The names that lead from the root to an object.
    fn path(&self, number: u64) -> Option<Vec<&[u8]>> {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            let record = self.by_number.get(&at)?;
            names.push(&*record.name);
            at = record.parent;
            if names.len() > MAX_DEPTH {
                return None;
            }
        }
        names.reverse();
        Some(names)
    }
}

/// Makes and opens such handles.
#[derive(Debug)]
pub struct ObjectTable {
    export: [u8; 8],
    root: OwnedFd,
    state: Mutex<State>,
    search: Search,
}

#[derive(Debug)]
struct State {
    records: Records,
    journal: Option<Journal>,
}

impl State {
    fn change(&mut self, change: Change) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.append(&change, &self.records)
        {
            tracing::error!(
                %error, path = %journal.path().display(),
                "the handle table cannot be written; handles will not survive a restart"
            );
            self.journal = None;
        }
        match change {
            Change::Put(number, record) => self.records.put(number, record),
            Change::Remove(number) => self.records.remove(number),
        }
    }
}

/// Whether a path leads nowhere, as far as one can tell.
fn is_absence(error: &StoreError) -> bool {
    matches!(
        error.status,
        Status::NoEntry | Status::NotDirectory | Status::CrossDevice | Status::Loop
    )
}

fn stale(why: &str) -> StoreError {
    StoreError::new(Status::StaleHandle, format!("handle: {why}"))
}

impl ObjectTable {
    /// A table that begins with what the journal holds; without a journal its handles end with it.
    pub fn new(export: [u8; 8], root: OwnedFd, journal: Option<(Journal, Records)>) -> Self {
        let (journal, records) =
            journal.map_or_else(Default::default, |(journal, records)| (Some(journal), records));
        let (state, search) = (Mutex::new(State { records, journal }), Search::default());
        Self { export, root, state, search }
    }

    /// The wire handle and identity of what was found in `parent` under `name`; `None` for the
    /// root.
    pub fn make(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Statx,
        place: Option<(&Handle, &[u8])>,
    ) -> Result<(Handle, Identity)> {
        let identity = sys::identity(fd, stat);
        let number = match place {
            None => ROOT,
            Some((parent, name)) => {
                let record = Record {
                    parent: self.number(parent)?,
                    name: name.into(),
                    identity,
                    directory: sys::file_type(stat) == dafs_proto::FileType::Directory,
                };
                self.put(record)
            }
        };
        Ok((self.wire(number)?, identity))
    }

    fn put(&self, record: Record) -> u64 {
        let mut state = self.state.lock();
        let known = state.records.by_identity.get(&record.identity).copied();
        if let Some(number) = known {
            if state.records.by_number.get(&number) != Some(&record) {
                state.change(Change::Put(number, record));
            }
            return number;
        }
        // Random, so that numbers of a table that was lost do not come to mean other files.
        let number = loop {
            let number = fastrand::u64(1..);
            if !state.records.by_number.contains_key(&number) {
                break number;
            }
        };
        state.change(Change::Put(number, record));
        if let Some(oldest) = state.records.excess(MAX_FILES) {
            state.change(Change::Remove(oldest));
        }
        number
    }

    fn wire(&self, number: u64) -> Result<Handle> {
        let mut wire = vec![VERSION];
        wire.extend(self.export);
        wire.extend(number.to_le_bytes());
        Handle::from_wire(&wire)
    }

    fn number(&self, handle: &Handle) -> Result<u64> {
        let wire = handle.as_bytes().strip_prefix(&[VERSION]);
        let number = wire.and_then(|wire| wire.strip_prefix(&self.export));
        let number = number.and_then(|number| number.try_into().ok()).map(u64::from_le_bytes);
        number.ok_or_else(|| stale("not one of this export"))
    }

    /// Opens what a wire handle names.
    pub fn open(&self, handle: &Handle) -> Result<Object> {
        let number = self.number(handle)?;
        for _ in 0..ROUNDS {
            let (names, identity) = self.place(number).ok_or_else(|| stale("not known"))?;
            let found = search::open(&self.root, &names).and_then(|fd| self.object(fd, handle));
            let Some(wanted) = identity else { return found };
            match found {
                Ok(object) if object.identity == wanted => return Ok(object),
                Err(error) if !is_absence(&error) => return Err(error),
                _ => {}
            }
            // It may have been moved meanwhile.
            if self.place(number).is_some_and(|(now, _)| now != names) {
                continue;
            }
            let found = self.search.find(&self.root, wanted)?;
            let Some(Found { fd, names }) = found else {
                return Err(stale("it is not in the export"));
            };
            self.note_place(&names)?;
            return self.object(fd, handle);
        }
        Err(StoreError::new(Status::TryAgain, "handle: what it names is moved all the time"))
    }

    /// The names that lead to an object, and what it is; that is not known of the root.
    fn place(&self, number: u64) -> Option<(Vec<Vec<u8>>, Option<Identity>)> {
        let state = self.state.lock();
        let names = state.records.path(number)?.into_iter().map(<[u8]>::to_vec).collect();
        Some((names, state.records.by_number.get(&number).map(|record| record.identity)))
    }

    fn object(&self, fd: OwnedFd, handle: &Handle) -> Result<Object> {
        let stat = sys::stat(&fd).map_err(|error| failed("handle", error))?;
        let (identity, kind) = (sys::identity(fd.as_fd(), &stat), sys::file_type(&stat));
        Ok(Object { fd, handle: handle.clone(), identity, kind })
    }

    /// Notes where an object was found, and the directories on the way there.
    fn note_place(&self, names: &[Vec<u8>]) -> Result<()> {
        let fail = |error| failed("handle", error);
        let mut fd = sys::open_path(&self.root, b".").map_err(fail)?;
        let mut parent = self.wire(ROOT)?;
        for name in names {
            fd = sys::open_path(&fd, name).map_err(fail)?;
            let stat = sys::stat(&fd).map_err(fail)?;
            (parent, _) = self.make(fd.as_fd(), &stat, Some((&parent, name)))?;
        }
        Ok(())
    }

    /// What moves or makes names holds this meanwhile.
    pub fn moving(&self) -> Moving<'_> {
        self.search.moving()
    }

    /// Opens a file once more that was open.
    pub fn reopen(&self, handle: &Handle, identity: Identity, flags: OFlags) -> Result<OwnedFd> {
        let object = self.open(handle)?;
        if object.identity != identity {
            return Err(stale("its path leads to another file now"));
        }
        caller::reopen(&object, flags).map_err(|error| failed("opening a handle", error))
    }

    /// An object was renamed.
    pub fn moved(&self, object: &Object, to: (&Handle, &[u8])) {
        self.search.moved(&object.identity, object.kind == dafs_proto::FileType::Directory);
        let (Ok(number), Ok(parent)) = (self.number(&object.handle), self.number(to.0)) else {
            return;
        };
        let mut state = self.state.lock();
        if let Some(record) = state.records.by_number.get(&number) {
            let record = Record { parent, name: to.1.into(), ..record.clone() };
            state.change(Change::Put(number, record));
        }
    }

    /// An object has no name any more.
    pub fn removed(&self, object: &Handle) {
        if let Ok(number) = self.number(object) {
            self.state.lock().change(Change::Remove(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(parent: u64, inode: u64, directory: bool) -> Record {
        let identity = Identity { device: 1, inode, generation: 1 };
        Record { parent, name: format!("n{inode}").into_bytes().into(), identity, directory }
    }

    #[test]
    fn the_oldest_files_are_forgotten_and_directories_are_not() {
        let mut records = Records::default();
        records.put(100, record(ROOT, 100, true));
        (1..=5).for_each(|number| records.put(number, record(100, number, false)));
        assert_eq!(records.excess(5), None);
        records.put(6, record(100, 6, false));
        assert_eq!(records.excess(5), Some(1));
        assert_eq!(records.path(3), Some(vec![&b"n100"[..], b"n3"]));
        assert_eq!(records.path(77), None);
    }

    #[test]
    fn a_circle_has_no_path() {
        let mut records = Records::default();
        records.put(1, record(2, 1, true));
        records.put(2, record(1, 2, true));
        assert_eq!(records.path(1), None);
    }
}

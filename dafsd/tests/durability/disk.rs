//! A disk in memory, as a kernel and a device hold it, with faults.
//!
//! A file has a *volatile* state, which is what the kernel shows, and a *stable* one, which is what
//! the device has. A sync of the file makes the volatile state stable. Names and owners are stable
//! at once. The disk outlives the server: a crash of the server keeps the volatile state, and
//! [`Disk::lose_power`] goes back to the stable one.
//!
//! A sync that fails loses the pages that it should have written, as Linux does: the kernel shows
//! what the device has, and the next sync succeeds. Each open file description is told once.

use super::PAGE;
use super::inode::{Inode, index, pages};
use dafs_proto::{Attr, FileType, SetAttr, Status, Time};
use dafsd::store::{Result, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Linux's number of `EDQUOT`.
const EDQUOT: i32 = 122;

/// What can go wrong from now on. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many syncs fail, of this file or of any.
    pub failing_syncs: u32,
    /// The only file whose syncs fail.
    pub failing_file: Option<u64>,
    /// A failing sync writes some pages and loses the others, instead of all.
    pub partly: bool,
    /// Pages that cannot be written: file and page.
    pub unwritable: BTreeSet<(u64, u64)>,
    /// Pages that cannot be read.
    pub unreadable: BTreeSet<(u64, u64)>,
    /// So many reads find no memory.
    pub reads_without_memory: u32,
    /// Pages that can still be allocated.
    pub space: Option<usize>,
    /// A user, and the pages that this user's files may still allocate.
    pub quota: Option<(u32, usize)>,
}

/// When a call that a test has prepared is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before a sync.
    Sync,
    /// Before data is read.
    Read,
    /// Before data is written.
    Write,
    /// After a sync.
    Synced,
}

type Call = Box<dyn FnOnce() + Send>;

/// The disk.
pub struct Disk {
    state: Mutex<State>,
    prepared: Mutex<Option<(When, Call)>>,
}

pub(super) struct State {
    pub inodes: BTreeMap<u64, Inode>,
    pub names: BTreeMap<Vec<u8>, u64>,
    pub last: u64,
    clock: SystemTime,
    faults: Faults,
    /// How many faults something met.
    hits: u64,
    random: fastrand::Rng,
    max_size: u64,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed<T>(status: Status, what: impl Into<String>) -> Result<T> {
    Err(StoreError::new(status, what))
}

impl Disk {
    /// An empty disk, whose chances come from the seed.
    pub fn new(seed: u64) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            last: 1,
            clock: UNIX_EPOCH,
            faults: Faults::default(),
            hits: 0,
            random: fastrand::Rng::with_seed(seed ^ 0x5EED),
            max_size: 16 << 20,
        };
        Self { state: Mutex::new(state), prepared: Mutex::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes what goes wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Whether something may go wrong now.
    pub fn is_faulty(&self) -> bool {
        let state = self.state();
        let Faults { failing_syncs, unwritable, unreadable, space, quota, .. } = &state.faults;
        *failing_syncs > 0
            || !unwritable.is_empty()
            || !unreadable.is_empty()
            || space.is_some()
            || quota.is_some()
    }

    /// The pages that cannot be written, where nothing else goes wrong.
    pub fn unwritable(&self) -> Option<BTreeSet<(u64, u64)>> {
        let prepared = lock(&self.prepared).is_some();
        let state = self.state();
        let Faults { failing_syncs, space, quota, unwritable, .. } = &state.faults;
        let is_lossless = state.inodes.values().all(|inode| inode.losses == 0);
        let others = *failing_syncs > 0 || space.is_some() || quota.is_some() || prepared;
        (is_lossless && !others).then(|| unwritable.clone())
    }

    /// Ends all faults, and forgets the prepared call.
    pub fn heal(&self) {
        self.state().faults = Faults::default();
        self.forget_prepared();
    }

    /// How many faults something met.
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    /// The time now, by the clock that files get their ctime from.
    pub fn now(&self) -> Time {
        time(self.state().tick())
    }

    /// The largest size of a file, which a test may set.
    pub fn set_max_size(&self, size: u64) {
        self.state().max_size = size;
    }

    /// The largest size of a file.
    pub fn max_size(&self) -> u64 {
        self.state().max_size
    }

    /// Has a call made once, before the next operation of this kind. The disk is not locked then.
    pub fn prepare(&self, when: When, call: impl FnOnce() + Send + 'static) {
        *lock(&self.prepared) = Some((when, Box::new(call)));
    }

    /// Forgets the prepared call.
    pub fn forget_prepared(&self) {
        *lock(&self.prepared) = None;
    }

    /// Makes the prepared call, if it is time.
    pub(super) fn run_prepared(&self, now: When) {
        let call = {
            let mut prepared = lock(&self.prepared);
            if prepared.as_ref().is_none_or(|(when, _)| *when != now) {
                return;
            }
            prepared.take()
        };
        if let Some((_, call)) = call {
            call();
        }
    }

    /// The number of the file with this name.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.state().names.get(name.as_bytes()).copied()
    }

    /// What a power loss would leave of the file.
    pub fn stable(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let number = state.names.get(name.as_bytes())?;
        Some(state.inodes[number].stable.clone())
    }

    /// What the kernel shows of the file.
    pub fn volatile(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let number = state.names.get(name.as_bytes())?;
        Some(state.inodes[number].volatile.clone())
    }

    /// The server's process has ended: files without a name end.
    pub fn lose_server(&self) {
        self.forget_prepared();
        self.state().inodes.retain(|_, inode| inode.links > 0);
    }

    /// The power fails, after the server's process. Of the pages that were not synced the device may
    /// have some.
    pub fn lose_power(&self) {
        let mut state = self.state();
        let State { inodes, random, .. } = &mut *state;
        inodes.values_mut().for_each(|inode| inode.lose_power(random));
    }

    /// The kernel writes some of its pages of a file to the device by itself.
    pub fn write_back(&self, number: u64) {
        let mut state = self.state();
        let State { inodes, random, .. } = &mut *state;
        if let Some(inode) = inodes.get_mut(&number) {
            inode.write_some(random);
        }
    }

    /// The kernel fails to do that: the pages are lost, and the next sync tells.
    pub fn fail_write_back(&self, number: u64) {
        let mut state = self.state();
        let State { inodes, random, hits, .. } = &mut *state;
        if let Some(inode) = inodes.get_mut(&number)
            && !inode.dirty.is_empty()
        {
            *hits += 1;
            inode.lose_pages(false, random);
        }
    }

    pub(super) fn attr(&self, number: u64) -> Result<Attr> {
        self.state().attr(number)
    }

    pub(super) fn read(&self, number: u64, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut state = self.state();
        if state.faults.reads_without_memory > 0 {
            state.faults.reads_without_memory -= 1;
            state.hits += 1;
            return failed(Status::NoMemory, format!("read of file {number}"));
        }
        let pages = pages(offset, buffer.len());
        if let Some(page) = pages.clone().find(|p| state.faults.unreadable.contains(&(number, *p)))
        {
            state.hits += 1;
            return failed(Status::Io, format!("read of page {page} of file {number}"));
        }
        let inode = state.inode(number)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.volatile.len());
        let count = buffer.len().min(inode.volatile.len() - from);
        buffer[..count].copy_from_slice(&inode.volatile[from..from + count]);
        Ok(count)
    }

    /// Writes whole pages up to the first one that cannot be written.
    pub(super) fn write(&self, number: u64, data: &[u8], offset: u64) -> Result<()> {
        let mut state = self.state();
        let now = state.tick();
        for page in pages(offset, data.len()) {
            let (start, end) = (page * PAGE as u64, (page + 1) * PAGE as u64);
            let (from, to) = (start.max(offset), end.min(offset + data.len() as u64));
            state.admit(number, page, to)?;
            let bytes = &data[index(from - offset)..index(to - offset)];
            let inode = state.inode(number)?;
            inode.volatile.resize(inode.volatile.len().max(index(to)), 0);
            inode.volatile[index(from)..index(to)].copy_from_slice(bytes);
            inode.dirty.insert(page);
            (inode.mtime, inode.ctime) = (now, now);
        }
        Ok(())
    }

    pub(super) fn set_len(&self, number: u64, len: u64) -> Result<()> {
        let mut state = self.state();
        if len > state.max_size {
            return failed(Status::FileTooBig, format!("set the size of file {number} to {len}"));
        }
        let now = state.tick();
        let inode = state.inode(number)?;
        inode.volatile.resize(index(len), 0);
        inode.shortest = inode.shortest.min(index(len));
        inode.dirty.retain(|page| page * (PAGE as u64) < len);
        (inode.mtime, inode.ctime) = (now, now);
        Ok(())
    }

    /// `told` is how many losses the open file description was told of.
    pub(super) fn sync(&self, number: u64, told: &AtomicU64) -> Result<()> {
        let mut state = self.state();
        let State { inodes, random, hits, faults, .. } = &mut *state;
        let Some(inode) = inodes.get_mut(&number) else {
            return failed(Status::Io, format!("sync of file {number}, which is gone"));
        };
        let is_meant = faults.failing_file.is_none_or(|file| file == number);
        if faults.failing_syncs > 0 && is_meant {
            faults.failing_syncs -= 1;
            *hits += 1;
            inode.lose_pages(faults.partly, random);
        } else {
            inode.stable.clone_from(&inode.volatile);
            inode.dirty.clear();
            inode.shortest = inode.stable.len();
        }
        if told.swap(inode.losses, Ordering::Relaxed) < inode.losses {
            inode.told = true;
            return failed(Status::Io, format!("sync of file {number}"));
        }
        Ok(())
    }

    /// How many losses a description that is opened now takes as told.
    pub(super) fn told(&self, number: u64) -> u64 {
        let state = self.state();
        let inode = state.inodes.get(&number);
        inode.map_or(0, |inode| inode.losses.saturating_sub(u64::from(!inode.told)))
    }

    pub(super) fn set_mtime(&self, number: u64, mtime: SystemTime) -> Result<()> {
        let mut state = self.state();
        let now = state.tick();
        let inode = state.inode(number)?;
        (inode.mtime, inode.ctime) = (mtime, now);
        Ok(())
    }
}

impl State {
    /// A time that is later than all before.
    pub fn tick(&mut self) -> SystemTime {
        self.clock = SystemTime::now().max(self.clock + Duration::from_micros(1));
        self.clock
    }

    pub fn inode(&mut self, number: u64) -> Result<&mut Inode> {
        match self.inodes.get_mut(&number) {
            Some(inode) => Ok(inode),
            None => failed(Status::StaleHandle, format!("file {number}, which is gone")),
        }
    }

    pub fn create(&mut self, name: &[u8], uid: u32, gid: u32) -> u64 {
        self.last += 1;
        let now = self.tick();
        let inode = Inode {
            volatile: Vec::new(),
            stable: Vec::new(),
            dirty: BTreeSet::new(),
            shortest: 0,
            links: 1,
            mode: 0o644,
            uid,
            gid,
            mtime: now,
            ctime: now,
            losses: 0,
            told: true,
        };
        self.inodes.insert(self.last, inode);
        self.names.insert(name.to_vec(), self.last);
        self.last
    }

    /// Counts a change of attributes.
    pub fn touch(&mut self, number: u64) {
        let now = self.tick();
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.ctime = now;
        }
    }

    /// Whether a page may be written now, up to `end`.
    fn admit(&mut self, number: u64, page: u64, end: u64) -> Result<()> {
        let what = format!("write of page {page} of file {number}");
        if end > self.max_size {
            return failed(Status::FileTooBig, what);
        }
        if self.faults.unwritable.contains(&(number, page)) {
            self.hits += 1;
            return failed(Status::Io, what);
        }
        let inode = self.inode(number)?;
        let is_there = page * (PAGE as u64) < inode.volatile.len() as u64;
        let uid = inode.uid;
        if is_there {
            return Ok(());
        }
        if let Some(space) = &mut self.faults.space {
            if *space == 0 {
                self.hits += 1;
                return failed(Status::NoSpace, what);
            }
            *space -= 1;
        }
        if let Some((user, pages)) = &mut self.faults.quota
            && *user == uid
        {
            if *pages == 0 {
                self.hits += 1;
                return failed(Status::from_errno(EDQUOT), what);
            }
            *pages -= 1;
        }
        Ok(())
    }

    pub fn attr(&mut self, number: u64) -> Result<Attr> {
        let inode = self.inode(number)?;
        Ok(Attr {
            r#type: FileType::Regular.into(),
            mode: inode.mode,
            nlink: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.volatile.len() as u64,
            used: inode.volatile.len() as u64,
            device: super::store::DEVICE,
            inode: number,
            rdev: 0,
            atime: Some(time(inode.mtime)),
            mtime: Some(time(inode.mtime)),
            ctime: Some(time(inode.ctime)),
            change: u64::try_from(since(inode.ctime).as_nanos()).unwrap_or(u64::MAX),
        })
    }

    pub fn set_attr(&mut self, number: u64, set: &SetAttr) -> Result<()> {
        let now = self.tick();
        let inode = self.inode(number)?;
        inode.mode = set.mode.unwrap_or(inode.mode);
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if let Some(Time { seconds, nanoseconds }) = set.mtime {
            let since = Duration::new(u64::try_from(seconds).unwrap_or(0), nanoseconds);
            inode.mtime = UNIX_EPOCH + since;
        }
        if set.mtime_now {
            inode.mtime = now;
        }
        inode.ctime = now;
        Ok(())
    }
}

fn since(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn time(at: SystemTime) -> Time {
    Time {
        seconds: i64::try_from(since(at).as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since(at).subsec_nanos(),
    }
}

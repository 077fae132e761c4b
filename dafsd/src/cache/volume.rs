//! What lies behind an export, as write-back sees it: how many of its bytes are dirty, whether its disk
//! takes them, and whether that has room for more.
//!
//! All dirty pages together have a limit. How much of it one export, or one client, may use grows with
//! what the others leave free, and shrinks as they take more (dynamic thresholds: Choudhury and Hahne,
//! 1998). So a disk that takes nothing any more leaves room for the others, and so does a client whose
//! writes the disk refuses.

use super::{Cache, CachedFile, Writer, error};
use crate::runtime::Disk;
use crate::store::{Result, StoreError};
use crate::sync::Mutex;
use crate::turns::Whose;
use dafs_proto::{Extent, Status};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How many times the bytes that are left free an export may have dirty, and how many one client.
/// What all files of an export have is more than what one client has, so that a client cannot use up
/// what belongs to the export's others.
const EXPORT_TIMES: usize = 7;
const CLIENT_TIMES: usize = 3;
/// How long a file that is in trouble is left alone before a writer tries again.
const RETRY: Duration = Duration::from_millis(500);
/// How often a disk is asked for its free space, and how often where little seems to be left.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(20);
/// How often the log says that trouble goes on.
const TELL: Duration = Duration::from_secs(60);
/// The pause after a round of write-back that has failed and brought nothing to the disk.
const PAUSE: Duration = Duration::from_millis(100);

/// Dirty bytes of one export, or of one client.
#[derive(Debug, Default)]
pub struct Share(AtomicUsize);

impl Share {
    /// How many there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Whether so many bytes more may become dirty, where `total` are, `export` of them of the same export
/// and `client` of them of the same client.
fn fits(limit: usize, bytes: usize, total: usize, export: usize, client: usize) -> bool {
    // A limit below one page would let nobody write.
    if total + bytes > limit {
        return total == 0;
    }
    let free = limit - total;
    let within = |share: usize, times: usize| share == 0 || share + bytes <= times * free;
    within(export, EXPORT_TIMES) && within(client, CLIENT_TIMES)
}

/// The file system behind an export.
pub(super) struct Volume {
    /// The export.
    name: String,
    pub disk: Disk,
    pub dirty: Share,
    /// Its files are being made clean.
    writing_back: AtomicBool,
    /// The background thread's work on its files is being done.
    pub tending: AtomicBool,
    /// Grows whenever its disk takes something.
    progress: AtomicU64,
    /// Bytes that were free when it was looked at last, without those that were written since.
    free: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Rounds of write-back that have ended, and the last one that failed, with its error.
    rounds: u64,
    failed: Option<(u64, StoreError)>,
    /// No round begins earlier.
    not_before: Option<Instant>,
    /// When the free space was looked at last.
    looked: Option<Instant>,
    /// Files in trouble.
    files: usize,
    /// Since when there are any.
    since: Option<Instant>,
    /// When the log was told of it last, and failures since then.
    told: Option<Instant>,
    failures: u64,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Volume {
    /// The export's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            disk: Disk::of_export(name),
            dirty: Share::default(),
            writing_back: AtomicBool::new(false),
            tending: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            state: Mutex::default(),
        }
    }

    /// Its disk has taken something.
    pub fn gets_on(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Begins a round of write-back, unless one is under way or it is too early.
    fn begin_round(&self, now: Instant) -> bool {
        let early = self.state.lock().not_before.is_some_and(|at| now < at);
        !early && !self.writing_back.swap(true, Ordering::AcqRel)
    }

    /// A round that began when the [progress](Self::progress) was `before` has ended.
    fn end_round(&self, result: Result<()>, before: u64) {
        {
            let mut state = self.state.lock();
            state.rounds += 1;
            let vain = result.is_err() && self.progress() == before;
            state.not_before = vain.then(|| Instant::now() + PAUSE);
            if let Err(error) = result {
                state.failed = Some((state.rounds, error));
            }
        }
        self.writing_back.store(false, Ordering::Release);
    }

    fn rounds(&self) -> u64 {
        self.state.lock().rounds
    }

    /// Why a round that ended after this many failed.
    fn failed_since(&self, rounds: u64) -> Option<StoreError> {
        let state = self.state.lock();
        state.failed.as_ref().filter(|(round, _)| *round > rounds).map(|(_, error)| error.clone())
    }

    /// A file has got into trouble, or is still in it where it was.
    fn file_fails(&self, error: &StoreError, was: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.failures += 1;
        state.files += usize::from(!was);
        let since = *state.since.get_or_insert(now);
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < TELL) {
            return;
        }
        let first = state.told.replace(now).is_none();
        let (files, failures) = (state.files, std::mem::take(&mut state.failures));
        drop(state);
        let (export, bytes) = (&self.name, self.dirty.bytes());
        if first {
            tracing::error!(
                %error, export,
                "write-back fails; what clients have written stays in memory, and is tried again"
            );
        } else {
            let seconds = now.saturating_duration_since(since).as_secs();
            tracing::error!(
                %error, export, files, bytes, failures, seconds, "write-back still fails"
            );
        }
    }

    fn file_is_well(&self) {
        let mut state = self.state.lock();
        state.files = state.files.saturating_sub(1);
        if state.files > 0 {
            return;
        }
        let since = state.since.take();
        // What fails again at once is not told of again.
        let told = state.told;
        state.failed = None;
        drop(state);
        if let (Some(since), Some(_)) = (since, told) {
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                export = self.name,
                seconds,
                "no file waits for its write-back any more"
            );
        }
    }

    /// Whether a change has to have its space reserved before it is acknowledged: the disk has little
    /// left, or has refused something.
    fn is_tight(&self, limit: usize) -> bool {
        let free = self.free.load(Ordering::Relaxed);
        free < (self.dirty.bytes() + limit) as u64 || self.state.lock().files > 0
    }

    /// Bytes were written to the disk, which may have taken them from its free space.
    pub fn wrote(&self, bytes: u64) {
        let less = |free: u64| (free < u64::MAX).then(|| free.saturating_sub(bytes));
        // Not where it is not known.
        let _ = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Whether it is time to ask the disk for its free space.
    fn looks(&self, now: Instant, limit: usize) -> bool {
        let pause = if self.is_tight(limit) { LOOK_SOON } else { LOOK };
        let mut state = self.state.lock();
        let due = state.looked.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        if due {
            state.looked = Some(now);
        }
        due
    }
}

/// For how long disks have taken nothing, as far as somebody looks who waits for them.
#[derive(Debug)]
pub struct Standstill {
    progress: u64,
    since: Instant,
}

impl Standstill {
    /// Nothing is known yet. `progress` grows whenever a disk takes something.
    #[must_use]
    pub fn new(progress: u64) -> Self {
        Self { progress, since: Instant::now() }
    }

    /// How long there has been no progress.
    pub fn look(&mut self, progress: u64) -> Duration {
        if progress != self.progress {
            *self = Self::new(progress);
        }
        self.since.elapsed()
    }
}

/// A file whose dirty pages the disk does not take.
#[derive(Debug)]
pub(super) struct Trouble {
    volume: Arc<Volume>,
    error: StoreError,
    /// A sync has failed: pages that were written are not safe before one succeeds.
    sync: bool,
    /// When it was tried last.
    tried: Instant,
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.volume.file_is_well();
    }
}

impl Cache {
    /// What lies behind an export.
    pub(super) fn volume(&self, export: &str) -> Arc<Volume> {
        let mut volumes = self.volumes.lock();
        if let Some(volume) = volumes.iter().find(|volume| volume.name == export) {
            return Arc::clone(volume);
        }
        let volume = Arc::new(Volume::new(export));
        volumes.push(Arc::clone(&volume));
        volume
    }

    pub(super) fn all_volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.lock().clone()
    }

    /// Most dirty bytes there may be. Never all pages of one guard, or none could be brought in.
    pub(super) fn dirty_limit(&self) -> usize {
        let share = self.config.budget / self.guards.len().max(1);
        self.config.dirty_limit.min(share / 2).max(self.page_size())
    }

    /// Waits until another page of a file may become dirty.
    ///
    /// # Errors
    /// What write-back fails with, where what is dirty already cannot be written; [`Status::Io`] where
    /// the disk has taken nothing for so long; [`Status::BadSession`] where the writer's session ends.
    pub(super) async fn room_for_a_page(
        self: &Arc<Self>,
        file: &CachedFile,
        writer: Option<&Writer>,
    ) -> Result<()> {
        let volume = &file.volume;
        let (page, limit) = (self.page_size(), self.dirty_limit());
        let has_room = || {
            let client = writer.map_or(0, |writer| writer.owner.dirty().bytes());
            let total = self.dirty.load(Ordering::Relaxed);
            fits(limit, page, total, volume.dirty.bytes(), client)
        };
        if has_room() {
            return Ok(());
        }
        let rounds = volume.rounds();
        let mut standstill = Standstill::new(self.progress());
        loop {
            let relief = self.relief.listen();
            if has_room() {
                return Ok(());
            }
            if let Some(writer) = writer {
                writer.standing.while_it_stands(|| ())?;
            }
            let failed = volume.failed_since(rounds);
            // Another round fails as this one did, before someone makes room. Other failures may be
            // those of other files.
            if let Some(error) = failed.as_ref().filter(|error| error.status == Status::NoSpace) {
                return Err(refusal(error));
            }
            if standstill.look(self.progress()) >= self.config.disk_patience {
                return Err(failed.as_ref().map_or_else(|| self.no_progress(), refusal));
            }
            self.start_writeback();
            relief.await;
        }
    }

    /// Those who wait for room look whether their sessions still stand.
    pub fn wake_waiters(&self) {
        self.relief.notify(usize::MAX);
    }

    /// Grows whenever some disk takes something.
    pub(super) fn progress(&self) -> u64 {
        self.volumes.lock().iter().map(|volume| volume.progress()).fold(0, u64::wrapping_add)
    }

    pub(super) fn no_progress(&self) -> StoreError {
        let seconds = self.config.disk_patience.as_secs();
        let what = format!("write-back, which has brought nothing to the disk for {seconds} s");
        error(Status::Io, what)
    }

    /// Starts to make all pages clean, for each export by itself, unless that is under way.
    pub(super) fn start_writeback(self: &Arc<Self>) {
        for volume in self.all_volumes() {
            if volume.dirty.bytes() == 0 || !volume.begin_round(Instant::now()) {
                continue;
            }
            let cache = Arc::clone(self);
            // The server's own work, whoever waits for it.
            self.runtime.run_for(Whose::default(), async move {
                let before = volume.progress();
                // Also of files that are removed and still open: they take the room of others.
                let cleaned = cache.commit_where(&volume, |file| !file.is_clean()).await;
                volume.end_round(cleaned, before);
                // Also those who became dirty after they were looked at, and wait, have to know.
                cache.relief.notify(usize::MAX);
            });
        }
    }

    /// Begins to make everything of each export stable.
    pub fn start_flush(self: &Arc<Self>) -> Vec<Arc<Flush>> {
        let begin = |volume: Arc<Volume>| {
            let flush = Arc::new(Flush { volume, result: Mutex::default() });
            let (cache, under_way) = (Arc::clone(self), Arc::clone(&flush));
            self.runtime.run(async move {
                let result = cache.flush_volume(&under_way.volume).await;
                *under_way.result.lock() = Some(result);
            });
            flush
        };
        self.all_volumes().into_iter().map(begin).collect()
    }

    /// The files that have something which is not stable: where they lie, and how many bytes.
    #[must_use]
    pub fn unstable_files(&self) -> Vec<(String, usize)> {
        let unclean = |file: &Arc<CachedFile>| {
            let pages = file.blocks.lock().unclean().len();
            (pages > 0 && !file.is_removed())
                .then(|| (file.store().place(), pages * self.page_size()))
        };
        self.files.iter().filter_map(|file| unclean(&file)).collect()
    }

    pub(super) fn files_of(&self, volume: &Arc<Volume>) -> impl Iterator<Item = Arc<CachedFile>> {
        self.files.iter().filter(move |file| Arc::ptr_eq(&file.volume, volume))
    }
}

/// Everything of an export is being made stable.
#[derive(Debug)]
pub struct Flush {
    volume: Arc<Volume>,
    result: Mutex<Option<Result<()>>>,
}

impl Flush {
    /// What came of it; `None` while it is under way.
    #[must_use]
    pub fn result(&self) -> Option<Result<()>> {
        self.result.lock().clone()
    }

    /// Grows whenever the disk takes something.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.volume.progress()
    }

    /// The export.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.volume.name
    }
}

/// The error of write-back, for those whose write it keeps from being taken.
fn refusal(error: &StoreError) -> StoreError {
    let what =
        format!("write, since what was written before does not reach the disk ({})", error.what);
    StoreError::new(error.status, what)
}

impl CachedFile {
    pub(super) fn is_clean(&self) -> bool {
        self.blocks.lock().is_clean()
    }

    /// Whether something of it has still to become stable.
    pub(super) fn is_unstable(&self) -> bool {
        !self.is_removed() && (!self.is_clean() || !self.unstable.lock().is_idle())
    }

    /// Notes what became of bringing the file's pages to the disk. `sync`: of making them stable.
    pub(super) fn note_outcome<T>(&self, result: &Result<T>, sync: bool) {
        let mut trouble = self.trouble.lock();
        match result {
            Ok(_) => {
                let well = {
                    let blocks = self.blocks.lock();
                    let written = trouble.as_ref().is_some_and(|trouble| !trouble.sync);
                    blocks.is_clean() || written && blocks.dirty.is_empty()
                };
                if well {
                    *trouble = None;
                }
            }
            Err(error) if !self.is_clean() => {
                let volume = Arc::clone(&self.volume);
                volume.file_fails(error, trouble.is_some());
                match &mut *trouble {
                    Some(trouble) => {
                        (trouble.error, trouble.tried) = (error.clone(), Instant::now());
                        trouble.sync |= sync;
                    }
                    none => {
                        let (error, tried) = (error.clone(), Instant::now());
                        *none = Some(Trouble { volume, error, sync, tried });
                    }
                }
            }
            Err(_) => *trouble = None,
        }
    }

    /// Refuses to take more of a file whose earlier changes do not reach the disk. Once in a while
    /// tries again first.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) async fn check_trouble(&self) -> Result<()> {
        let due = {
            let mut trouble = self.trouble.lock();
            let Some(trouble) = &mut *trouble else { return Ok(()) };
            let due = trouble.tried.elapsed() >= RETRY;
            if due {
                trouble.tried = Instant::now();
            }
            due
        };
        // Whoever has begun before tells what comes of it, perhaps much later.
        if due && self.syncing.try_lock().is_some() {
            // Its outcome is noted.
            let _ = self.commit(Extent::default()).await;
        }
        if self.is_clean() {
            *self.trouble.lock() = None;
        }
        self.trouble.lock().as_ref().map_or(Ok(()), |trouble| Err(refusal(&trouble.error)))
    }

    /// Where the disk has little room left, takes as much of it as a change of this range needs, so
    /// that the change is not acknowledged in vain.
    ///
    /// # Errors
    /// [`Status::NoSpace`], [`Status::Quota`], and the store's others.
    pub(super) async fn reserve_space(&self, extent: Extent) -> Result<()> {
        let volume = &self.volume;
        let limit = self.cache.dirty_limit();
        if volume.looks(Instant::now(), limit) {
            let store = self.store();
            match self.blocking(move || store.available()).await {
                Ok(free) => volume.free.store(free, Ordering::Relaxed),
                Err(error) => tracing::debug!(%error, export = volume.name, "its free space"),
            }
        }
        if !volume.is_tight(limit) {
            return Ok(());
        }
        let page = self.page_size();
        let offset = extent.offset - extent.offset % page;
        let length = (extent.offset + extent.length - offset).next_multiple_of(page);
        // That changes the file's times, as write-back does. One of them at a time, or each would take
        // the other for somebody else.
        let _one = self.writing_back.lock().await;
        let _gate = self.gate.read().await;
        self.look_first().await;
        let store = self.store();
        let reserved = self.blocking(move || store.reserve(offset, length)).await;
        self.settle().await;
        reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_nothing_leaves_room_for_others() {
        let limit = 1 << 20;
        let grow = |total: usize, export: usize| {
            let mut more = 0;
            while fits(limit, 4096, total + more, export + more, more) {
                more += 4096;
            }
            more
        };
        // One client that nobody takes anything from.
        let one = grow(0, 0);
        assert!((limit / 4 * 3 - 8192..=limit / 4 * 3).contains(&one), "{one}");
        // Each other one of the same export gets less, and all of them leave an eighth free.
        let mut total = 0;
        for client in 0..100 {
            let more = grow(total, total);
            assert!(more > 0 || client > 0, "client {client} of {total}");
            total += more;
        }
        assert!(total <= limit / 8 * 7, "{total}");
        // Which another export may use.
        let other = grow(total, 0);
        assert!(other >= limit / 12, "{other}");
    }

    #[test]
    fn a_limit_below_a_page_lets_one_write() {
        assert!(fits(100, 4096, 0, 0, 0));
        assert!(!fits(100, 4096, 4096, 4096, 4096));
    }
}

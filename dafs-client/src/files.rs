//! The files of a client, each once, however often it is open: what was changed and is not stable
//! belongs to the file, and so does the news that some of it was lost.

use crate::error::Error;
use crate::file::OpenFile;
use crate::session::Session;
use crate::session::pump::{MESSAGES, want};
use crate::sync::lock;
use crate::write::{Receipt, Uncommitted};
use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Closed files that wait for their writes to be committed, from which on an open commits them first.
const MOST_LINGERING: usize = 64;
/// The pauses between two attempts to commit a closed file.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Most closed files with a loss that nobody has been told of.
const MOST_UNTOLD: usize = 1024;

/// One file.
#[derive(Debug)]
pub(crate) struct FileState {
    /// The server's name for it, in all boots.
    identity: Vec<u8>,
    pub(crate) uncommitted: Mutex<Uncommitted>,
    /// The greatest number of an acknowledged change, and the boot that it is of.
    latest: Mutex<(u64, u64)>,
    /// Which changes must not overtake each other.
    pub(crate) turns: Turns,
    news: Mutex<News>,
    /// Opens for writing that are not closed.
    writers: AtomicUsize,
}

/// What the next syncs have to tell.
#[derive(Debug, Default)]
struct News {
    /// Counts losses.
    losses: u64,
    /// The last one, and whether an open has been told of it.
    last: Option<(Error, bool)>,
    /// The oldest start of the server's machine under which attributes or the name were changed
    /// since they were last made stable; 0 for none.
    rests_on: u64,
}

impl FileState {
    fn new(identity: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            uncommitted: Mutex::default(),
            latest: Mutex::default(),
            turns: Turns::default(),
            news: Mutex::default(),
            writers: AtomicUsize::new(0),
        })
    }

    /// A change was acknowledged.
    pub(crate) fn saw(&self, receipt: &Receipt) {
        let mut latest = lock(&self.latest);
        let before = if latest.0 == receipt.boot { latest.1 } else { 0 };
        *latest = (receipt.boot, before.max(receipt.number));
    }

    /// The greatest number of a change that a boot has acknowledged.
    pub(crate) fn seen(&self, boot: u64) -> u64 {
        let latest = lock(&self.latest);
        if latest.0 == boot { latest.1 } else { 0 }
    }

    /// Something that was acknowledged is lost: each open of the file is told once, or, where there
    /// is none, the next one.
    pub(crate) fn lose(&self, error: Error) {
        tracing::warn!(%error, "what was written and acknowledged is lost");
        let mut news = lock(&self.news);
        news.losses += 1;
        news.last = Some((error, false));
    }

    /// The news of a loss that an open which has `seen` so many has not been told.
    pub(crate) fn news(&self, seen: &AtomicU64) -> Option<Error> {
        let mut news = lock(&self.news);
        let losses = news.losses;
        if seen.swap(losses, Ordering::Relaxed) == losses {
            return None;
        }
        let (error, told) = news.last.as_mut()?;
        *told = true;
        Some(error.clone())
    }

    /// The losses that a new open need not be told of.
    fn losses_seen(&self) -> u64 {
        let news = lock(&self.news);
        let untold = news.last.as_ref().is_some_and(|(_, told)| !told);
        news.losses - u64::from(untold)
    }

    /// Attributes or the name were changed while the server's machine ran for the `machine_boot`th
    /// time.
    pub(crate) fn rest_on(&self, machine_boot: u64) {
        let mut news = lock(&self.news);
        if news.rests_on == 0 || news.rests_on > machine_boot {
            news.rests_on = machine_boot;
        }
    }

    /// What the file's attributes and name rest on.
    pub(crate) fn rests_on(&self) -> u64 {
        lock(&self.news).rests_on
    }

    /// They are stable, or their loss has been told.
    pub(crate) fn rests_on_nothing(&self, before: u64) {
        let mut news = lock(&self.news);
        if news.rests_on == before {
            news.rests_on = 0;
        }
    }

    /// Changes what is kept, and counts it.
    pub(crate) fn keep<T>(
        &self,
        session: &Session,
        change: impl FnOnce(&mut Uncommitted) -> T,
    ) -> T {
        let mut uncommitted = lock(&self.uncommitted);
        let before = uncommitted.bytes();
        let result = change(&mut uncommitted);
        let after = uncommitted.bytes();
        // The sum is right in the end; it wraps for no longer than another thread takes to add.
        session.retained.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        result
    }

    /// Whether nothing is kept, and nobody is left to be told anything.
    fn is_settled(&self) -> bool {
        let untold = lock(&self.news).last.as_ref().is_some_and(|(_, told)| !told);
        !untold && lock(&self.uncommitted).is_empty()
    }

    pub(crate) fn add_writer(&self) {
        self.writers.fetch_add(1, Ordering::AcqRel);
    }

    /// An open for writing is closed; whether it was the last one.
    pub(crate) fn remove_writer(&self) -> bool {
        self.writers.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// The kinds of changes that wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// New ones, which the server puts in order.
    New,
    /// Those that are sent again, which must not land after a new one of the same bytes.
    Again,
}

/// Changes under way, by their range: those that are sent again exclude all others.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<TurnState>);

#[derive(Debug, Default)]
struct TurnState {
    under_way: Vec<(u64, Turn, Range<u64>)>,
    begun: u64,
    waiting: Vec<Waker>,
}

/// Ends a turn when dropped.
#[derive(Debug)]
pub(crate) struct TurnGuard<'a> {
    turns: &'a Turns,
    id: u64,
}

impl Turns {
    /// Waits until no change of the range is under way that this one must wait for.
    pub(crate) async fn take(&self, turn: Turn, range: Range<u64>) -> TurnGuard<'_> {
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            let conflicts = |(_, other, of): &(u64, Turn, Range<u64>)| {
                (turn == Turn::Again || *other == Turn::Again)
                    && of.start < range.end
                    && range.start < of.end
            };
            if state.under_way.iter().any(conflicts) {
                state.waiting.push(cx.waker().clone());
                // Whoever is under way may wait for this thread to drive the connection.
                want(MESSAGES);
                return Poll::Pending;
            }
            state.begun += 1;
            let id = state.begun;
            state.under_way.push((id, turn, range.clone()));
            Poll::Ready(TurnGuard { turns: self, id })
        })
        .await
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.turns.0);
        state.under_way.retain(|(id, ..)| *id != self.id);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A closed file whose writes have still to be committed.
#[derive(Debug)]
struct Lingering {
    file: Arc<OpenFile>,
    /// When to try next, and how long was waited for that.
    at: Instant,
    pause: Duration,
}

/// A lingering file that is being committed. Whoever commits it may be cancelled at any time.
#[derive(Debug)]
pub(crate) struct Due<'a> {
    files: &'a Files,
    taken: Option<Lingering>,
}

impl Due<'_> {
    /// The file; `None` once it is settled.
    pub(crate) fn file(&self) -> Option<&Arc<OpenFile>> {
        self.taken.as_ref().map(|taken| &taken.file)
    }

    /// Its writes are committed, or known to be lost.
    pub(crate) fn settled(mut self) {
        self.taken = None;
    }
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        lock(&self.files.lingering).extend(self.taken.take());
    }
}

/// The files of a client.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: Mutex<HashMap<u64, Weak<OpenFile>>>,
    next: AtomicU64,
    states: Mutex<HashMap<Vec<u8>, Arc<FileState>>>,
    lingering: Mutex<Vec<Lingering>>,
    /// Truncating opens and changes by path, which do not know beforehand which file they change.
    pub(crate) turns: Turns,
    /// Session and number of opens that nobody has any more and that are still to be closed.
    dropped: Mutex<Vec<(u64, u64)>>,
}

impl Files {
    /// All opens, closed ones that linger among them.
    pub(crate) fn all(&self) -> Vec<Arc<OpenFile>> {
        lock(&self.open).values().filter_map(Weak::upgrade).collect()
    }

    /// The file with this identity, and the losses that a new open of it need not be told of.
    pub(crate) fn state(&self, identity: &[u8]) -> (Arc<FileState>, u64) {
        let mut states = lock(&self.states);
        let state =
            states.entry(identity.to_vec()).or_insert_with(|| FileState::new(identity.to_vec()));
        (Arc::clone(state), state.losses_seen())
    }

    /// The file with this identity, if anything is known of it.
    pub(crate) fn known(&self, identity: &[u8]) -> Option<Arc<FileState>> {
        lock(&self.states).get(identity).cloned()
    }

    /// Registers an open; its key.
    pub(crate) fn register(&self, make: impl FnOnce(u64) -> Arc<OpenFile>) -> Arc<OpenFile> {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let file = make(key);
        lock(&self.open).insert(key, Arc::downgrade(&file));
        file
    }

    /// An open is gone. What is known of its file stays as long as somebody needs it.
    pub(crate) fn unregister(&self, key: u64, state: &Arc<FileState>) {
        lock(&self.open).remove(&key);
        let mut states = lock(&self.states);
        // The table's and the open's own.
        if Arc::strong_count(state) > 2 {
            return;
        }
        if state.is_settled() {
            states.remove(&state.identity);
            return;
        }
        let is_closed = |state: &Arc<FileState>| Arc::strong_count(state) == 1;
        if states.len() > MOST_UNTOLD
            && let Some(other) = states.values().find(|other| is_closed(other))
        {
            let identity = other.identity.clone();
            tracing::error!("too many closed files have lost what was written to them");
            states.remove(&identity);
        }
    }

    /// Takes a closed file whose writes have still to be committed.
    pub(crate) fn linger(&self, file: Arc<OpenFile>, now: Instant) {
        lock(&self.lingering).push(Lingering { file, at: now, pause: Duration::ZERO });
    }

    /// Whether so many files linger that they should be committed before others are opened.
    pub(crate) fn are_too_many_lingering(&self) -> bool {
        lock(&self.lingering).len() > MOST_LINGERING
    }

    /// Takes out a lingering file that is due. It comes back, to be tried later, unless it is
    /// [settled](Due::settled).
    pub(crate) fn take_due(&self, now: Instant) -> Option<Due<'_>> {
        let mut lingering = lock(&self.lingering);
        let at = lingering.iter().position(|file| file.at <= now)?;
        let mut taken = lingering.swap_remove(at);
        taken.pause = (taken.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        taken.at = now + taken.pause;
        Some(Due { files: self, taken: Some(taken) })
    }

    /// Takes out all lingering files.
    pub(crate) fn take_lingering(&self) -> Vec<Arc<OpenFile>> {
        lock(&self.lingering).drain(..).map(|lingering| lingering.file).collect()
    }

    /// Notes an open that has still to be closed at the server.
    pub(crate) fn note_dropped(&self, session: u64, open: u64) {
        lock(&self.dropped).push((session, open));
    }

    /// Closes what could not be closed when it was dropped.
    pub(crate) fn close_dropped(&self, session: &Session) {
        let dropped = std::mem::take(&mut *lock(&self.dropped));
        for (number, open) in dropped {
            if !session.forget(number, open) {
                self.note_dropped(number, open);
            }
        }
    }
}

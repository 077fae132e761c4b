//! What has reached an endpoint, for those that wait in `drive`.

use crate::Interest;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of what an endpoint's user has been given.
#[derive(Debug)]
pub(super) struct Progress {
    /// Distinguishes endpoints of all worlds, for `LOOKED`.
    id: u64,
    messages: AtomicU64,
    reads: AtomicU64,
    interrupts: AtomicU64,
    ended: AtomicU64,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    messages: u64,
    reads: u64,
    interrupts: u64,
    ended: u64,
}

thread_local! {
    /// How much of each endpoint's progress this thread has made or seen. A thread that finds it
    /// has not what it waits for, and then waits, would miss what another thread delivered in
    /// between.
    static LOOKED: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
}

impl Progress {
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            id: LAST.fetch_add(1, Ordering::Relaxed),
            messages: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// A message or a part of a direct transfer was delivered.
    pub(super) fn message(&self) {
        self.count(&self.messages);
    }

    /// One-sided reads were completed.
    pub(super) fn read(&self) {
        self.count(&self.reads);
    }

    /// The connection ended.
    pub(super) fn end(&self) {
        self.count(&self.ended);
    }

    /// Those that wait shall return.
    pub(super) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) != 0
    }

    /// The counts now; or `None` if there has been progress that the calling thread neither made
    /// nor saw, so that it has to look before it waits.
    pub(super) fn look(&self) -> Option<Seen> {
        let total = self.total();
        let before = LOOKED.with_borrow_mut(|looked| looked.insert(self.id, total));
        (before.unwrap_or(0) == total).then(|| self.seen())
    }

    /// Whether there is something of interest that was not there at `start`.
    pub(super) fn since(&self, start: &Seen, interest: Interest) -> bool {
        let now = self.seen();
        now.interrupts != start.interrupts
            || now.ended != start.ended
            || interest.messages && now.messages != start.messages
            || interest.reads && now.reads != start.reads
    }

    /// The calling thread is about to look.
    pub(super) fn looked(&self) {
        LOOKED.with_borrow_mut(|looked| looked.insert(self.id, self.total()));
    }

    fn seen(&self) -> Seen {
        Seen {
            messages: self.messages.load(Ordering::SeqCst),
            reads: self.reads.load(Ordering::SeqCst),
            interrupts: self.interrupts.load(Ordering::SeqCst),
            ended: self.ended.load(Ordering::SeqCst),
        }
    }

    fn total(&self) -> u64 {
        let Seen { messages, reads, ended, .. } = self.seen();
        messages + reads + ended
    }

    fn count(&self, counter: &AtomicU64) {
        // Whoever pumps holds the turn, so no other thread counts at the same time.
        let before = self.total();
        counter.fetch_add(1, Ordering::SeqCst);
        LOOKED.with_borrow_mut(|looked| {
            let seen = looked.entry(self.id).or_insert(0);
            if *seen == before {
                *seen = before + 1;
            }
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Other threads keep a few bytes for an endpoint that is gone; it is a test's memory.
        let _ = LOOKED.try_with(|looked| looked.borrow_mut().remove(&self.id));
    }
}

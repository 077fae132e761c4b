//! How much memory incomplete messages may take.
//!
//! A message that arrives in one piece needs none. One that does not has to be kept until the rest
//! is there, and a peer decides how long that takes. So such messages share a fixed budget, in two
//! pools, that strangers do not take from those who were let in.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often a connection that waits for receive memory asks again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Messages up to this size are not counted.
const SMALL: usize = 16 << 10;
/// Why a connection ends whose message does not go on.
pub(crate) const STANDS_STILL: &str =
    "a message stood still, incomplete, while others waited for its memory";
/// Connections that may wait for the budget at a time; each holds what it had already sent.
const MOST_WAITING: usize = 64;

/// The budget.
#[derive(Debug)]
pub(crate) struct ReceiveMemory {
    limit: usize,
    pools: [Pool; 2],
}

#[derive(Debug, Default)]
struct Pool {
    taken: AtomicUsize,
    waiting: AtomicUsize,
}

/// Part of the budget; given back when dropped.
#[derive(Debug)]
struct Share {
    memory: std::sync::Arc<ReceiveMemory>,
    pool: usize,
    bytes: usize,
}

/// A place among those who wait; given back when dropped.
#[derive(Debug)]
struct Waiting {
    memory: std::sync::Arc<ReceiveMemory>,
    pool: usize,
}

/// What a connection has of the budget, for the message that is arriving on it.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    share: Option<Share>,
    waiting: Option<Waiting>,
    /// When the incomplete message that has the share last grew.
    grown: Option<Instant>,
}

/// Whether a connection may go on receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// It may.
    Go,
    /// It may; its message has just got its share.
    Begin,
    /// Others have to give some back first: ask again later.
    Wait,
    /// Too many wait already.
    Never,
}

impl Gathering {
    /// Sees to it that an incomplete message, which will have `bytes`, has its share.
    pub(crate) fn share(
        &mut self,
        memory: &std::sync::Arc<ReceiveMemory>,
        trusted: bool,
        bytes: Option<usize>,
    ) -> May {
        let Some(bytes) = bytes.filter(|&bytes| bytes > SMALL) else {
            (self.share, self.grown) = (None, None);
            return May::Go;
        };
        self.grown = Some(Instant::now());
        if self.share.is_some() {
            return May::Go;
        }
        self.share = memory.take(trusted, bytes);
        if self.share.is_some() {
            self.waiting = None;
            return May::Begin;
        }
        if self.waiting.is_none() {
            self.waiting = memory.wait(trusted);
        }
        if self.waiting.is_some() { May::Wait } else { May::Never }
    }

    /// Whether the connection waits for a share.
    pub(crate) fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the message holds a share, and for how long it has stood still where others want it.
    pub(crate) fn stands_still(&self) -> Option<Option<Duration>> {
        let (share, grown) = (self.share.as_ref()?, self.grown?);
        Some(share.wanted().then(|| grown.elapsed()))
    }
}

impl ReceiveMemory {
    /// A budget of `limit` bytes in each pool.
    pub(crate) fn new(limit: usize) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { limit, pools: Default::default() })
    }

    /// Takes a share; `None` where the pool has too little left. A message larger than the pool gets
    /// it when it is the only one.
    fn take(self: &std::sync::Arc<Self>, trusted: bool, bytes: usize) -> Option<Share> {
        let pool = usize::from(trusted);
        let fits = |taken: usize| {
            let after = taken.saturating_add(bytes);
            (after <= self.limit || taken == 0).then_some(after)
        };
        let taken = &self.pools[pool].taken;
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Share { memory: std::sync::Arc::clone(self), pool, bytes })
    }

    /// Queues up; `None` where too many wait already.
    fn wait(self: &std::sync::Arc<Self>, trusted: bool) -> Option<Waiting> {
        let pool = usize::from(trusted);
        let room = |waiting: usize| (waiting < MOST_WAITING).then_some(waiting + 1);
        let waiting = &self.pools[pool].waiting;
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Waiting { memory: std::sync::Arc::clone(self), pool })
    }
}

impl Share {
    /// Whether others wait for what this one has.
    fn wanted(&self) -> bool {
        self.memory.pools[self.pool].waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.pools[self.pool].taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.memory.pools[self.pool].waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_shared_and_given_back() {
        let memory = ReceiveMemory::new(100);
        let first = memory.take(true, 60).unwrap();
        assert!(memory.take(true, 41).is_none());
        assert!(memory.take(false, 41).is_some(), "strangers have their own");
        let waiting = memory.wait(true).unwrap();
        assert!(first.wanted());
        drop(first);
        let large = memory.take(true, 1000).unwrap();
        assert!(large.wanted() && memory.take(true, 1).is_none());
        drop((waiting, large));
        let places: Vec<_> = (0..MOST_WAITING).map(|_| memory.wait(false).unwrap()).collect();
        assert!(memory.wait(false).is_none());
        drop(places);
        assert!(memory.wait(false).is_some());
    }
}

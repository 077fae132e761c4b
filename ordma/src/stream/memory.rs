//! How much memory incomplete messages may take.
//!
//! A message that arrives in one piece needs none. One that does not has to be kept until the rest
//! is there, and a peer decides how long that takes. So such messages share a fixed budget, in two
//! pools, that strangers do not take from those who were let in.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Messages up to this size are not counted.
pub(crate) const SMALL: usize = 16 << 10;
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
pub(crate) struct Share {
    memory: std::sync::Arc<ReceiveMemory>,
    pool: usize,
    bytes: usize,
}

/// A place among those who wait; given back when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    memory: std::sync::Arc<ReceiveMemory>,
    pool: usize,
}

impl ReceiveMemory {
    /// A budget of `limit` bytes in each pool.
    pub(crate) fn new(limit: usize) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { limit, pools: Default::default() })
    }

    /// Takes a share; `None` where the pool has too little left. A message larger than the pool gets
    /// it when it is the only one.
    pub(crate) fn take(self: &std::sync::Arc<Self>, trusted: bool, bytes: usize) -> Option<Share> {
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
    pub(crate) fn wait(self: &std::sync::Arc<Self>, trusted: bool) -> Option<Waiting> {
        let pool = usize::from(trusted);
        let room = |waiting: usize| (waiting < MOST_WAITING).then_some(waiting + 1);
        let waiting = &self.pools[pool].waiting;
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Waiting { memory: std::sync::Arc::clone(self), pool })
    }
}

impl Share {
    /// Whether others wait for what this one has.
    pub(crate) fn wanted(&self) -> bool {
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

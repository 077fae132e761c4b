//! Receives beyond those that every client gets, shared among the clients that were let in. Plain data.
//!
//! They cannot be taken back from a client that says nothing: a receive that is posted is gone from its
//! queue only with a packet. So a client that has more than its share gives one back with each packet
//! that it sends, its next lease renewal at the latest, and one that has less gets more when it sends
//! one. Whoever comes while all are given away does with what everyone gets, and is served all the same.

use std::sync::atomic::{AtomicU32, Ordering};

/// What there is to share.
#[derive(Debug)]
pub(super) struct Shares {
    /// Receives in all.
    all: u32,
    /// The most of one client.
    most: u32,
    given: AtomicU32,
    clients: AtomicU32,
}

impl Shares {
    /// Of so many receives, at most `most` a client.
    pub(super) fn new(all: u32, most: u32) -> Self {
        Self { all, most, given: AtomicU32::new(0), clients: AtomicU32::new(0) }
    }

    /// There is a client more.
    pub(super) fn join(&self) {
        self.clients.fetch_add(1, Ordering::Relaxed);
    }

    /// A client is gone, and what it had.
    pub(super) fn leave(&self, has: u32) {
        self.give_back(has);
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// What each client should have.
    pub(super) fn share(&self) -> u32 {
        (self.all / self.clients.load(Ordering::Relaxed).max(1)).min(self.most)
    }

    /// Takes what a client lacks that has so many, as far as there is any; how many.
    pub(super) fn take(&self, has: u32) -> u32 {
        let lacks = self.share().saturating_sub(has);
        let taken = |given: u32| lacks.min(self.all.saturating_sub(given));
        let order = Ordering::Relaxed;
        let before = self.given.fetch_update(order, order, |given| Some(given + taken(given)));
        before.map_or(0, taken)
    }

    /// So many are free again.
    pub(super) fn give_back(&self, receives: u32) {
        self.given.fetch_sub(receives, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Clients come, say something and go in any order: never is more given than there is, and
        /// once all have said enough, all have the same.
        #[test]
        fn shares_become_equal(steps in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 0..200)) {
            let shares = Shares::new(50, 12);
            let mut has: Vec<u32> = Vec::new();
            let says = |has: &mut u32| {
                if *has > shares.share() {
                    *has -= 1;
                    shares.give_back(1);
                } else {
                    *has += shares.take(*has);
                }
            };
            for (step, which) in steps {
                match step {
                    0 => {
                        shares.join();
                        has.push(0);
                    }
                    _ if has.is_empty() => {}
                    1 => says(which.get_mut(&mut has)),
                    _ => shares.leave(has.swap_remove(which.index(has.len()))),
                }
                prop_assert!(has.iter().sum::<u32>() <= 50);
                prop_assert!(has.iter().all(|has| *has <= 12));
            }
            for _ in 0..13 {
                has.iter_mut().for_each(says);
            }
            prop_assert!(has.iter().all(|has| *has == shares.share()), "{:?}", has);
        }
    }
}

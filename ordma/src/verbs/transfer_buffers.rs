//! The buffers of transfers, which the links of a device share: who has much under way leaves some for
//! others, and those for whom nothing is left get theirs in the order in which they asked.
//!
//! A link may have as many as are free besides: one alone half of them, two a third each. So there is
//! one for who comes next, whatever became of the clients that the others' transfers wait for.

use super::pool::Pool;
use crate::lock;
use crate::rdma::{Block, Local, Parts, Result};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Buffers that are taken in turn.
#[derive(Debug)]
pub(super) struct TransferBuffers {
    pool: Pool,
    turns: Mutex<Turns>,
}

/// Who has how many. Plain data.
#[derive(Debug)]
struct Turns {
    free: u32,
    next: u64,
    has: HashMap<u64, u32>,
    /// Who has none and got none.
    waiting: VecDeque<u64>,
}

impl Turns {
    fn new(free: u32) -> Self {
        Self { free, next: 0, has: HashMap::default(), waiting: VecDeque::new() }
    }

    fn join(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether `who` may take one more, and has it then.
    fn take(&mut self, who: u64) -> bool {
        let place = self.waiting.iter().position(|waits| *waits == who);
        let ahead = u32::try_from(place.unwrap_or(self.waiting.len())).unwrap_or(u32::MAX);
        let free = self.free.saturating_sub(ahead);
        let has = self.has.get(&who).copied().unwrap_or(0);
        let may = if has == 0 { free > 0 } else { has < free };
        if !may {
            if has == 0 && place.is_none() {
                self.waiting.push_back(who);
            }
            return false;
        }
        if let Some(place) = place {
            self.waiting.remove(place);
        }
        self.free -= 1;
        *self.has.entry(who).or_default() += 1;
        true
    }

    fn give_back(&mut self, who: u64) {
        self.free += 1;
        if let Some(has) = self.has.get_mut(&who) {
            *has -= 1;
            if *has == 0 {
                self.has.remove(&who);
            }
        }
    }

    /// `who` waits for none any more.
    fn leave(&mut self, who: u64) {
        self.waiting.retain(|waits| *waits != who);
    }
}

impl TransferBuffers {
    /// As many buffers as the pool can have.
    pub(super) fn new(pool: Pool) -> Arc<Self> {
        let turns = Mutex::new(Turns::new(pool.most()));
        Arc::new(Self { pool, turns })
    }

    /// A link's place among the others.
    pub(super) fn seat(self: &Arc<Self>) -> Seat {
        Seat { who: lock(&self.turns).join(), transfers: Arc::clone(self) }
    }

    /// Gives back what is not in use.
    pub(super) fn trim(&self) {
        self.pool.trim();
    }
}

/// A link's place among those that share buffers.
#[derive(Debug)]
pub(super) struct Seat {
    transfers: Arc<TransferBuffers>,
    who: u64,
}

impl Seat {
    /// A buffer, with anything in it; `None` where others have to give some back first, or this link.
    ///
    /// # Errors
    /// As for [`Pool::take`].
    pub(super) fn take(&self) -> Result<Option<Taken>> {
        if !lock(&self.transfers.turns).take(self.who) {
            return Ok(None);
        }
        let turn = Turn { transfers: Arc::clone(&self.transfers), who: self.who };
        // Where less memory can be had than the pool may have, it is as if others had the rest.
        Ok(self.transfers.pool.take()?.map(|block| Taken { block, _turn: turn }))
    }

    /// Nothing is waited for any more.
    pub(super) fn leave(&self) {
        lock(&self.transfers.turns).leave(self.who);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A buffer that is some link's.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) block: Block,
    /// Given back after the buffer.
    _turn: Turn,
}

// SAFETY: as for the buffer.
unsafe impl Local for Taken {
    fn parts(&self, parts: &mut Parts) {
        self.block.parts(parts);
    }
}

#[derive(Debug)]
struct Turn {
    transfers: Arc<TransferBuffers>,
    who: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.transfers.turns).give_back(self.who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takes_all(turns: &mut Turns, who: u64) -> usize {
        (0..1000).take_while(|_| turns.take(who)).count()
    }

    #[test]
    fn who_takes_what_there_is_leaves_some() {
        let mut turns = Turns::new(32);
        assert_eq!(takes_all(&mut turns, 1), 16);
        assert_eq!(takes_all(&mut turns, 2), 8);
        assert_eq!(takes_all(&mut turns, 3), 4);
        (0..16).for_each(|_| turns.give_back(1));
        // Theirs is the larger share now.
        assert_eq!(takes_all(&mut turns, 3), 8);
        assert!(turns.take(4));
    }

    #[test]
    fn nobody_overtakes_who_waits() {
        let mut turns = Turns::new(2);
        assert!(turns.take(1) && turns.take(2));
        assert!(!turns.take(3) && !turns.take(4) && !turns.take(3));
        turns.give_back(1);
        assert!(!turns.take(1) && !turns.take(4), "it is another's turn");
        assert!(turns.take(3));
        turns.leave(4);
        turns.give_back(2);
        assert!(turns.take(1));
        turns.give_back(3);
        turns.give_back(1);
        assert_eq!((turns.free, turns.has.len(), turns.waiting.len()), (2, 0, 0));
    }

    proptest! {
        /// In any order, all is given back, never is more taken than there is, and whoever keeps asking
        /// gets one as soon as all others have given theirs back.
        #[test]
        fn all_is_given_back(steps in prop::collection::vec((any::<bool>(), 0u64..6), 0..200)) {
            let mut turns = Turns::new(5);
            let mut has = [0u32; 6];
            for (take, who) in steps {
                let at = who as usize;
                if take {
                    has[at] += u32::from(turns.take(who));
                } else if has[at] > 0 {
                    has[at] -= 1;
                    turns.give_back(who);
                }
                prop_assert_eq!(has.iter().sum::<u32>() + turns.free, 5);
            }
            for (who, has) in has.iter().enumerate() {
                (0..*has).for_each(|_| turns.give_back(who as u64));
            }
            while let Some(first) = turns.waiting.front().copied() {
                prop_assert!(turns.take(first));
                turns.give_back(first);
            }
            prop_assert!(turns.has.is_empty());
            prop_assert_eq!(turns.free, 5);
        }
    }
}

//! Queues that are served in turn. Plain data.

use foldhash::fast::RandomState;
use ordma::Party;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A queue for each of `K`, served round robin: who queues much waits for itself and for nobody else.
#[derive(Debug)]
pub struct Turns<K, T> {
    queues: HashMap<K, VecDeque<T>, RandomState>,
    /// Whose queues are not empty, the next one first.
    ring: VecDeque<K>,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self { queues: HashMap::default(), ring: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash, T> Turns<K, T> {
    /// Queues something for `who`.
    pub fn push(&mut self, who: K, what: T) {
        let queue = self.queues.entry(who).or_default();
        if queue.is_empty() {
            self.ring.push_back(who);
        }
        queue.push_back(what);
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// What comes next, and whose it is.
    pub fn pop(&mut self) -> Option<(K, T)> {
        let who = self.ring.pop_front()?;
        let queue = self.queues.get_mut(&who)?;
        let what = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&who);
        } else {
            self.ring.push_back(who);
        }
        Some((who, what))
    }
}

/// Whose something is: a client's, and of one of its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Whose {
    /// The client.
    pub party: Party,
    /// Distinguishes its sessions.
    pub session: u64,
}

/// A queue for each session, served round robin by client, and of each client by session.
#[derive(Debug)]
pub struct FairQueue<T> {
    parties: HashMap<Party, Turns<u64, T>, RandomState>,
    /// Who has something in there, the next one first.
    ring: VecDeque<Party>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { parties: HashMap::default(), ring: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Queues something.
    pub fn push(&mut self, whose: Whose, what: T) {
        let theirs = self.parties.entry(whose.party).or_default();
        if theirs.is_empty() {
            self.ring.push_back(whose.party);
        }
        theirs.push(whose.session, what);
    }

    /// What comes next, and whose it is.
    pub fn pop(&mut self) -> Option<(Whose, T)> {
        let party = self.ring.pop_front()?;
        let theirs = self.parties.get_mut(&party)?;
        let (session, what) = theirs.pop()?;
        if theirs.is_empty() {
            self.parties.remove(&party);
        } else {
            self.ring.push_back(party);
        }
        Some((Whose { party, session }, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_turns_and_so_have_their_sessions() {
        let mut queue = FairQueue::default();
        let (many, one) = (Party::of_peer("many"), Party::of_peer("one"));
        for session in [1, 1, 1, 2, 3] {
            queue.push(Whose { party: many, session }, session);
        }
        for what in [10, 11] {
            queue.push(Whose { party: one, session: 1 }, what);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(order, [1, 10, 2, 11, 3, 1, 1]);
        assert!(queue.parties.is_empty() && queue.ring.is_empty());
    }

    #[test]
    fn everyone_has_a_turn() {
        let mut turns = Turns::default();
        for number in 0..100 {
            turns.push('a', number);
        }
        turns.push('b', 100);
        turns.push('c', 101);
        turns.push('b', 102);
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order[..5], [('a', 0), ('b', 100), ('c', 101), ('a', 1), ('b', 102)]);
        assert_eq!(order[5..], (2..100).map(|number| ('a', number)).collect::<Vec<_>>());
        assert!(turns.queues.is_empty() && turns.ring.is_empty());
    }
}

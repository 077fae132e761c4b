//! Queues that are served in turn. Plain data.

use foldhash::fast::RandomState;
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! Which reference goes when the directory is full.
//!
//! LRU keeps one list. Multi-Queue (Zhou, Philbin and Li, 2001) keeps several, by the logarithm of
//! how often a reference was used: below a storage cache, recency alone says little. A reference
//! that is not used for a lifetime moves one queue down; the next to go is the oldest of the lowest
//! queue; and a history of those that went lets one that comes back keep its rank.

use super::index::{Chained, Index};

/// Which policy a directory follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replacement {
    /// The least recently used reference goes first.
    Lru,
    /// Multi-Queue: seldom used references go first, often used ones after they have aged.
    #[default]
    MultiQueue,
}

/// Queues of Multi-Queue; the last one holds references used 128 times or more.
const QUEUES: usize = 8;
/// No place.
const NONE: u32 = u32::MAX;

/// A reference's place in the lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    previous: u32,
    next: u32,
    /// When it moves one queue down, in uses of the directory; wraps.
    expires: u32,
    uses: u16,
    queue: u16,
}

impl Node {
    pub(super) const UNLINKED: Self =
        Self { previous: NONE, next: NONE, expires: 0, uses: 0, queue: 0 };
}

/// Entries that carry a node.
pub(super) trait Linked {
    fn node(&mut self) -> &mut Node;
}

/// A doubly linked list over the slab: the head is the oldest.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE, tail: NONE };

    fn push<T: Linked>(&mut self, slab: &mut [T], place: u32) {
        let node = slab[place as usize].node();
        node.previous = self.tail;
        node.next = NONE;
        match self.tail {
            NONE => self.head = place,
            tail => slab[tail as usize].node().next = place,
        }
        self.tail = place;
    }

    fn remove<T: Linked>(&mut self, slab: &mut [T], place: u32) {
        let Node { previous, next, .. } = *slab[place as usize].node();
        match previous {
            NONE => self.head = next,
            previous => slab[previous as usize].node().next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => slab[next as usize].node().previous = previous,
        }
    }
}

/// The state of a policy.
#[derive(Debug)]
pub(super) struct Policy {
    lists: [List; QUEUES],
    aging: Option<Aging>,
}

/// What Multi-Queue has besides its lists.
#[derive(Debug)]
struct Aging {
    /// Counts uses of the directory; wraps, so only differences mean anything.
    now: u32,
    lifetime: u32,
    history: History,
}

impl Policy {
    pub(super) fn new(replacement: Replacement, capacity: usize) -> Self {
        let aging = match replacement {
            Replacement::Lru => None,
            Replacement::MultiQueue => Some(Aging {
                now: 0,
                // The distance between two uses of a warm page is about a few passes over what
                // fits. Kept below 2^31 so that wrapped differences stay ordered.
                lifetime: u32::try_from(capacity.saturating_mul(4))
                    .map_or(1 << 30, |n| n.min(1 << 30)),
                history: History::new((capacity / 4).max(1)),
            }),
        };
        Self { lists: [List::EMPTY; QUEUES], aging }
    }

    /// A new entry, already in the slab.
    pub(super) fn insert<T: Linked>(&mut self, slab: &mut [T], place: u32, key: (u64, u64)) {
        let uses = match &mut self.aging {
            None => 1,
            Some(aging) => aging.history.forget(key).saturating_add(1),
        };
        self.link(slab, place, uses);
        self.age(slab);
    }

    /// An entry was used.
    pub(super) fn touch<T: Linked>(&mut self, slab: &mut [T], place: u32) {
        let node = *slab[place as usize].node();
        self.lists[usize::from(node.queue)].remove(slab, place);
        self.link(slab, place, node.uses.saturating_add(1));
        self.age(slab);
    }

    fn link<T: Linked>(&mut self, slab: &mut [T], place: u32, uses: u16) {
        let node = slab[place as usize].node();
        node.uses = uses;
        node.queue = 0;
        if let Some(aging) = &self.aging {
            let rank =
                usize::try_from(uses.max(1).ilog2()).map_or(QUEUES - 1, |r| r.min(QUEUES - 1));
            node.queue = u16::try_from(rank).unwrap_or(0);
            node.expires = aging.now.wrapping_add(aging.lifetime);
        }
        let queue = usize::from(node.queue);
        self.lists[queue].push(slab, place);
    }

    /// Lets time pass: the oldest of each queue moves down if its lifetime is over.
    fn age<T: Linked>(&mut self, slab: &mut [T]) {
        let Some(aging) = &mut self.aging else { return };
        aging.now = aging.now.wrapping_add(1);
        for queue in 1..QUEUES {
            let head = self.lists[queue].head;
            if head == NONE {
                continue;
            }
            let expires = slab[head as usize].node().expires;
            // Wrapped difference: past if less than half the range behind.
            if expires.wrapping_sub(aging.now) > u32::MAX / 2 {
                self.lists[queue].remove(slab, head);
                let node = slab[head as usize].node();
                node.queue -= 1;
                node.expires = aging.now.wrapping_add(aging.lifetime);
                self.lists[queue - 1].push(slab, head);
            }
        }
    }

    /// The entry that has to go next.
    pub(super) fn victim(&self) -> Option<u32> {
        self.lists.iter().map(|list| list.head).find(|head| *head != NONE)
    }

    /// Takes an entry out for lack of room, and remembers its rank.
    pub(super) fn evict<T: Linked>(&mut self, slab: &mut [T], place: u32, key: (u64, u64)) {
        let uses = slab[place as usize].node().uses;
        self.remove(slab, place);
        if let Some(aging) = &mut self.aging {
            aging.history.remember(key, uses);
        }
    }

    /// Takes an entry out.
    pub(super) fn remove<T: Linked>(&mut self, slab: &mut [T], place: u32) {
        let queue = usize::from(slab[place as usize].node().queue);
        self.lists[queue].remove(slab, place);
    }

    /// Takes all entries out and forgets the history.
    pub(super) fn clear(&mut self) {
        self.lists = [List::EMPTY; QUEUES];
        if let Some(aging) = &mut self.aging {
            aging.history.clear();
        }
    }

    /// The places on the lists, oldest of the lowest queue first, after checking every link.
    #[cfg(test)]
    pub(super) fn order<T: Linked>(&self, slab: &mut [T]) -> Vec<u32> {
        let mut order = Vec::new();
        for (queue, list) in self.lists.iter().enumerate() {
            let (mut previous, mut place) = (NONE, list.head);
            while place != NONE {
                let node = *slab[place as usize].node();
                assert_eq!(node.previous, previous);
                assert_eq!(usize::from(node.queue), queue);
                order.push(place);
                assert!(order.len() <= slab.len(), "a list has a cycle");
                (previous, place) = (place, node.next);
            }
            assert_eq!(list.tail, previous);
        }
        order
    }
}

/// How often the last references that went had been used: first in, first out.
#[derive(Debug)]
struct History {
    ring: Vec<Past>,
    capacity: usize,
    oldest: usize,
    index: Index,
}

#[derive(Debug)]
struct Past {
    key: (u64, u64),
    /// 0: forgotten, and not in the index.
    uses: u16,
    chain: u32,
}

impl Chained for Past {
    fn key(&self) -> (u64, u64) {
        self.key
    }

    fn chain(&mut self) -> &mut u32 {
        &mut self.chain
    }
}

impl History {
    fn new(capacity: usize) -> Self {
        Self { ring: Vec::new(), capacity, oldest: 0, index: Index::new(capacity) }
    }

    fn remember(&mut self, key: (u64, u64), uses: u16) {
        self.forget(key);
        let past = Past { key, uses: uses.max(1), chain: 0 };
        let place = if self.ring.len() < self.capacity {
            self.ring.push(past);
            self.ring.len() - 1
        } else {
            let place = self.oldest;
            self.oldest = (self.oldest + 1) % self.capacity;
            let at = u32::try_from(place).unwrap_or(NONE);
            if self.ring[place].uses != 0 {
                self.index.remove(&mut self.ring, at);
            }
            self.ring[place] = past;
            place
        };
        self.index.insert(&mut self.ring, u32::try_from(place).unwrap_or(NONE));
    }

    /// How often the reference had been used when it went, and forgets it; 0 if unknown.
    fn forget(&mut self, key: (u64, u64)) -> u16 {
        let Some(place) = self.index.find(&mut self.ring, key) else { return 0 };
        self.index.remove(&mut self.ring, place);
        std::mem::take(&mut self.ring[place as usize].uses)
    }

    fn clear(&mut self) {
        self.ring.clear();
        self.oldest = 0;
        self.index.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Item(Node);
    impl Linked for Item {
        fn node(&mut self) -> &mut Node {
            &mut self.0
        }
    }

    fn slab(n: usize) -> Vec<Item> {
        vec![Item(Node::UNLINKED); n]
    }

    #[test]
    fn lru_evicts_the_least_recently_used() {
        let mut slab = slab(3);
        let mut policy = Policy::new(Replacement::Lru, 3);
        for place in 0..3 {
            policy.insert(&mut slab, place, (0, u64::from(place)));
        }
        policy.touch(&mut slab, 0);
        assert_eq!(policy.order(&mut slab), [1, 2, 0]);
        assert_eq!(policy.victim(), Some(1));
    }

    #[test]
    fn multi_queue_keeps_what_was_used_often() {
        let mut slab = slab(3);
        let mut policy = Policy::new(Replacement::MultiQueue, 3);
        for place in 0..3 {
            policy.insert(&mut slab, place, (0, u64::from(place)));
        }
        policy.touch(&mut slab, 0);
        policy.touch(&mut slab, 1);
        // 2 is the most recent but the least used.
        policy.insert(&mut slab, 2, (0, 2));
        assert_eq!(policy.victim(), Some(2));
    }

    #[test]
    fn multi_queue_moves_down_what_is_not_used_for_a_lifetime() {
        let mut slab = slab(2);
        let mut policy = Policy::new(Replacement::MultiQueue, 2);
        policy.insert(&mut slab, 0, (0, 0));
        policy.touch(&mut slab, 0);
        policy.insert(&mut slab, 1, (0, 1));
        assert_eq!(policy.victim(), Some(1));
        // Uses of 1 raise it past 0, whose lifetime ends meanwhile.
        for _ in 0..40 {
            policy.touch(&mut slab, 1);
        }
        assert_eq!(policy.victim(), Some(0));
    }

    #[test]
    fn multi_queue_remembers_the_rank_of_what_came_back() {
        let mut slab = slab(2);
        let mut policy = Policy::new(Replacement::MultiQueue, 8);
        policy.insert(&mut slab, 0, (0, 0));
        for _ in 0..3 {
            policy.touch(&mut slab, 0);
        }
        policy.evict(&mut slab, 0, (0, 0));
        policy.insert(&mut slab, 0, (0, 0));
        assert_eq!(slab[0].0.uses, 5);
        assert_eq!(slab[0].0.queue, 2);
    }

    #[test]
    fn the_history_is_bounded_and_forgets_the_oldest() {
        let mut history = History::new(2);
        for block in 0..5 {
            history.remember((1, block), 7);
        }
        assert_eq!(history.ring.len(), 2);
        assert_eq!(history.forget((1, 0)), 0);
        assert_eq!(history.forget((1, 4)), 7);
        assert_eq!(history.forget((1, 4)), 0);
        history.remember((1, 9), 1);
        history.remember((1, 10), 1);
        assert_eq!(history.forget((1, 9)), 1);
    }
}

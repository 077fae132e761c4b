//! Calls that wait to begin, by the disk that they wait for. Plain data.

use crate::turns::{FairQueue, Whose};
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

/// What a call waits for: the file system of an export, the state directory, or no disk at all. Calls of
/// one disk do not keep those of another from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Disk(u64);

impl Disk {
    /// None: work that takes a processor longer than a thread that serves clients should be away.
    pub const NONE: Self = Self(0);
    /// That of the state directory.
    pub const STATE: Self = Self(1);

    /// That of the export of this name.
    #[must_use]
    pub fn of_export(name: &str) -> Self {
        // Two exports whose hashes are the same share their bound, and nothing else.
        Self(foldhash::fast::FixedState::default().hash_one(name))
    }
}

/// Calls by disk. Of each disk, as many as the bound says are under way at a time, and the disks that
/// have calls to begin have their turns.
#[derive(Debug)]
pub(super) struct Calls<T> {
    most: usize,
    disks: HashMap<Disk, Lane<T>, RandomState>,
    /// Disks of which a call can begin, the next one first.
    ring: VecDeque<Disk>,
}

#[derive(Debug)]
struct Lane<T> {
    under_way: usize,
    waiting: FairQueue<T>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { under_way: 0, waiting: FairQueue::default() }
    }
}

impl<T> Lane<T> {
    fn can_begin(&self, most: usize) -> bool {
        self.under_way < most && !self.waiting.is_empty()
    }
}

impl<T> Calls<T> {
    /// With at most so many under way for each disk.
    pub(super) fn new(most: usize) -> Self {
        Self { most, disks: HashMap::default(), ring: VecDeque::new() }
    }

    pub(super) fn push(&mut self, disk: Disk, whose: Whose, call: T) {
        let lane = self.disks.entry(disk).or_default();
        let could = lane.can_begin(self.most);
        lane.waiting.push(whose, call);
        if !could && lane.can_begin(self.most) {
            self.ring.push_back(disk);
        }
    }

    pub(super) fn any_can_begin(&self) -> bool {
        !self.ring.is_empty()
    }

    /// The next call, which is under way from now on.
    pub(super) fn begin(&mut self) -> Option<(Disk, Whose, T)> {
        let disk = self.ring.pop_front()?;
        let lane = self.disks.get_mut(&disk)?;
        let (whose, call) = lane.waiting.pop()?;
        lane.under_way += 1;
        if lane.can_begin(self.most) {
            self.ring.push_back(disk);
        }
        Some((disk, whose, call))
    }

    /// A call of this disk is not under way any more.
    pub(super) fn ended(&mut self, disk: Disk) {
        let Some(lane) = self.disks.get_mut(&disk) else { return };
        let could = lane.can_begin(self.most);
        lane.under_way -= 1;
        if lane.under_way == 0 && lane.waiting.is_empty() {
            self.disks.remove(&disk);
        } else if !could && lane.can_begin(self.most) {
            self.ring.push_back(disk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_disk_that_does_not_answer_has_its_bound() {
        let mut calls = Calls::new(2);
        let (silent, good) = (Disk::of_export("silent"), Disk::of_export("good"));
        (0..5).for_each(|call| calls.push(silent, Whose::default(), call));
        calls.push(good, Whose::default(), 10);
        let begun: Vec<_> = std::iter::from_fn(|| calls.begin()).map(|(_, _, call)| call).collect();
        assert_eq!(begun, [0, 10, 1]);
        calls.push(good, Whose::default(), 11);
        assert_eq!(calls.begin().map(|(disk, _, call)| (disk, call)), Some((good, 11)));
        assert!(!calls.any_can_begin());
        calls.ended(silent);
        assert_eq!(calls.begin().map(|(disk, _, call)| (disk, call)), Some((silent, 2)));
    }

    proptest! {
        /// In whatever order calls come and end, each begins, none beyond the bound, and nothing is kept.
        #[test]
        fn each_call_begins_once(steps in prop::collection::vec((0u8..3, 0u64..4), 0..200)) {
            let mut calls = Calls::new(2);
            let mut under_way: Vec<Disk> = Vec::new();
            let (mut pushed, mut begun) = (0, 0);
            let mut begin = |calls: &mut Calls<u32>, under_way: &mut Vec<Disk>| {
                let call = calls.begin();
                begun += usize::from(call.is_some());
                under_way.extend(call.map(|(disk, ..)| disk));
                call.is_some()
            };
            for (step, disk) in steps {
                match step {
                    0 => {
                        calls.push(Disk(disk), Whose::default(), 0);
                        pushed += 1;
                    }
                    1 => {
                        begin(&mut calls, &mut under_way);
                    }
                    _ if under_way.is_empty() => {}
                    _ => calls.ended(under_way.swap_remove(disk as usize % under_way.len())),
                }
                for disk in &under_way {
                    prop_assert!(under_way.iter().filter(|other| *other == disk).count() <= 2);
                }
            }
            while begin(&mut calls, &mut under_way) || !under_way.is_empty() {
                under_way.pop().into_iter().for_each(|disk| calls.ended(disk));
            }
            prop_assert_eq!(begun, pushed);
            prop_assert!(calls.disks.is_empty() && calls.ring.is_empty());
        }
    }
}

//! What was changed of a file and is not known to be on stable storage. Plain data.
//!
//! Kept is the latest content alone: what a later change replaces is cut away at once. So no byte is
//! kept twice, and it does not matter in which order writes are sent again; only changes of the size
//! are sent between the writes before and after them.

use dafs_proto::Stable;
use ordma::Region;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a kept change costs besides its bytes.
pub(super) const OVERHEAD: usize = 128;

/// What the server said of a change when it acknowledged it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The boot of the server.
    pub(crate) boot: u64,
    /// The change's number in that boot: the order in which changes were made.
    pub(crate) number: u64,
    /// The server's write verifier: as long as it stays the same, nothing was lost.
    pub(crate) verifier: u64,
    /// When the file on disk was last changed, then.
    pub(crate) ctime: Option<dafs_proto::Time>,
    /// Counts the starts of the server's machine.
    pub(crate) machine_boot: u64,
}

/// A write that may have to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct KeptWrite {
    /// Grows with each change that is kept.
    id: u64,
    data: Region,
    /// Where in `data` the bytes begin, and how many there are.
    start: usize,
    len: usize,
    receipt: Receipt,
}

/// A change of the size that may have to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeptSize {
    id: u64,
    size: u64,
    /// From here on it had an effect.
    from: u64,
    receipt: Receipt,
}

/// A change to be sent again.
#[derive(Clone, Debug)]
pub(super) enum Again {
    Write { offset: u64, data: ordma::Segment, receipt: Receipt },
    Size { size: u64, from: u64, receipt: Receipt },
}

impl Again {
    /// The bytes that it changes.
    pub(super) fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, data, .. } => *offset..offset + data.len as u64,
            Self::Size { from, .. } => *from..u64::MAX,
        }
    }

    pub(super) fn receipt(&self) -> &Receipt {
        match self {
            Self::Write { receipt, .. } | Self::Size { receipt, .. } => receipt,
        }
    }
}

/// The changes of one file that are not known to be stable.
#[derive(Debug, Default)]
pub(crate) struct Uncommitted {
    /// By offset; they do not overlap.
    writes: BTreeMap<u64, KeptWrite>,
    /// In the order in which they were made.
    sizes: Vec<KeptSize>,
    latest: u64,
    cost: usize,
}

/// The end of a range; `length` 0 means to the end of the file.
fn range_of(offset: u64, length: u64) -> Range<u64> {
    offset..if length == 0 { u64::MAX } else { offset.saturating_add(length) }
}

impl KeptWrite {
    fn cost(&self) -> usize {
        self.len + OVERHEAD
    }

    /// A part of it, from the offset of its first byte on. Where little is left of its memory, that
    /// is copied, so that the rest is free.
    fn part(&self, part: Range<u64>) -> Self {
        let usize_of = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (start, len) = (self.start + usize_of(part.start), usize_of(part.end - part.start));
        if len > self.data.len() / 2 {
            return Self { start, len, data: self.data.clone(), ..*self };
        }
        let copy = self.data.segment(start, len).with_ref(<[u8]>::to_vec).unwrap_or_default();
        Self { start: 0, len: copy.len(), data: Region::owned(copy), ..*self }
    }
}

impl Uncommitted {
    /// Bytes of memory that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.cost
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.sizes.is_empty()
    }

    /// Keeps a write, as far as no later change that is kept has replaced it.
    pub(crate) fn keep(&mut self, offset: u64, data: Vec<u8>, receipt: Receipt) {
        let end = offset + data.len() as u64;
        self.latest += 1;
        let write = KeptWrite {
            id: self.latest,
            len: data.len(),
            data: Region::owned(data),
            start: 0,
            receipt,
        };
        let mut free: Vec<Range<u64>> = std::iter::once(offset..end).collect();
        let is_later =
            |other: &Receipt| other.boot == receipt.boot && other.number > receipt.number;
        for later in self.overlapping(&(offset..end)) {
            if is_later(&self.writes[&later].receipt) {
                let end = later + self.writes[&later].len as u64;
                free = free.into_iter().flat_map(|part| without(part, &(later..end))).collect();
            }
        }
        for size in self.sizes.iter().filter(|size| is_later(&size.receipt)) {
            let gone = size.from..u64::MAX;
            free = free.into_iter().flat_map(|part| without(part, &gone)).collect();
        }
        for part in free {
            self.cut(&part);
            let kept = write.part(part.start - offset..part.end - offset);
            self.cost += kept.cost();
            self.writes.insert(part.start, kept);
        }
    }

    /// Keeps a change of the size.
    pub(crate) fn keep_size(&mut self, size: u64, from: u64, receipt: Receipt) {
        let is_later =
            |other: &Receipt| other.boot == receipt.boot && other.number > receipt.number;
        let replaced: Vec<u64> = self
            .overlapping(&(from..u64::MAX))
            .into_iter()
            .filter(|at| !is_later(&self.writes[at].receipt))
            .collect();
        for at in replaced {
            let end = at + self.writes[&at].len as u64;
            self.cut(&(at.max(from)..end));
        }
        self.latest += 1;
        self.cost += OVERHEAD;
        let kept = KeptSize { id: self.latest, size, from, receipt };
        let at = self.sizes.iter().position(|other| is_later(&other.receipt));
        self.sizes.insert(at.unwrap_or(self.sizes.len()), kept);
    }

    /// A write is stable that came with this receipt: what it replaced is not sent again.
    pub(crate) fn replaced(&mut self, range: &Range<u64>, receipt: &Receipt) {
        for at in self.overlapping(range) {
            let write = &self.writes[&at];
            if write.receipt.boot != receipt.boot || write.receipt.number <= receipt.number {
                let end = at + write.len as u64;
                self.cut(&(at.max(range.start)..end.min(range.end)));
            }
        }
        self.sizes_are_stable(receipt.boot, receipt.machine_boot, receipt.number);
    }

    /// The server, in this boot of it and of its machine, has made a range stable: what it says of it
    /// is not sent again.
    pub(crate) fn committed(
        &mut self,
        (offset, length): (u64, u64),
        boot: u64,
        machine_boot: u64,
        stable: &Stable,
    ) {
        let range = range_of(offset, length);
        let Stable { verifier, through, .. } = *stable;
        let is_stable = |receipt: &Receipt| {
            receipt.boot == boot && receipt.verifier == verifier && receipt.number <= through
        };
        for at in self.overlapping(&range) {
            let write = &self.writes[&at];
            if is_stable(&write.receipt) {
                let end = at + write.len as u64;
                self.cut(&(at.max(range.start)..end.min(range.end)));
            }
        }
        self.sizes_are_stable(boot, machine_boot, through);
    }

    /// The server has synced the file, whatever range that was for: sizes that were set in `boot`, up
    /// to the number `through`, or in an earlier one since the machine was started, are not set
    /// again. A failed sync does not take them back.
    fn sizes_are_stable(&mut self, boot: u64, machine_boot: u64, through: u64) {
        let before = self.sizes.len();
        self.sizes.retain(|size| {
            let Receipt { boot: of, number, machine_boot: machine, .. } = size.receipt;
            if of == boot { number > through } else { machine != machine_boot }
        });
        self.cost -= (before - self.sizes.len()) * OVERHEAD;
    }

    /// The ids of the changes of a range that fulfil a condition, in order.
    pub(super) fn select(
        &self,
        (offset, length): (u64, u64),
        condition: impl Fn(&Receipt) -> bool,
    ) -> Vec<u64> {
        let range = range_of(offset, length);
        let writes = self.overlapping(&range).into_iter().map(|at| {
            let write = &self.writes[&at];
            (write.id, write.receipt)
        });
        let sizes = self.sizes.iter().filter(|size| size.from < range.end);
        let sizes = sizes.map(|size| (size.id, size.receipt));
        let mut ids: Vec<u64> = writes
            .chain(sizes)
            .filter(|(_, receipt)| condition(receipt))
            .map(|(id, _)| id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What is left of a change.
    pub(super) fn parts(&self, id: u64) -> Vec<Again> {
        if let Some(KeptSize { size, from, receipt, .. }) =
            self.sizes.iter().find(|size| size.id == id)
        {
            return vec![Again::Size { size: *size, from: *from, receipt: *receipt }];
        }
        let parts = self.writes.iter().filter(|(_, write)| write.id == id);
        let parts = parts.map(|(offset, write)| Again::Write {
            offset: *offset,
            data: write.data.segment(write.start, write.len),
            receipt: write.receipt,
        });
        parts.collect()
    }

    /// A part of a change was acknowledged again.
    pub(super) fn acknowledged(&mut self, id: u64, range: &Range<u64>, receipt: Receipt) {
        for at in self.overlapping(range) {
            let Some(write) = self.writes.get(&at).filter(|write| write.id == id).cloned() else {
                continue;
            };
            let end = at + write.len as u64;
            let part = at.max(range.start)..end.min(range.end);
            // The rest has still to be.
            self.cut(&part);
            let kept = KeptWrite { receipt, ..write.part(part.start - at..part.end - at) };
            self.cost += kept.cost();
            self.writes.insert(part.start, kept);
        }
        if let Some(size) = self.sizes.iter_mut().find(|size| size.id == id) {
            size.receipt = receipt;
        }
    }

    /// A part of a change is not to be sent again.
    pub(super) fn forget(&mut self, id: u64, range: &Range<u64>) {
        for at in self.overlapping(range) {
            let write = &self.writes[&at];
            if write.id == id {
                let end = at + write.len as u64;
                self.cut(&(at.max(range.start)..end.min(range.end)));
            }
        }
        if let Some(at) = self.sizes.iter().position(|size| size.id == id) {
            self.sizes.remove(at);
            self.cost -= OVERHEAD;
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self) {
        *self = Self { latest: self.latest, ..Self::default() };
    }

    /// Offsets of the writes that have a byte in the range.
    fn overlapping(&self, range: &Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        let before = self.writes.range(..range.start).next_back();
        let before = before.filter(|(at, write)| *at + write.len as u64 > range.start);
        let within = self.writes.range(range.clone());
        before.into_iter().chain(within).map(|(at, _)| *at).collect()
    }

    /// Cuts a range away from the writes.
    fn cut(&mut self, range: &Range<u64>) {
        for at in self.overlapping(range) {
            let Some(write) = self.writes.remove(&at) else { continue };
            self.cost -= write.cost();
            for left in without(at..at + write.len as u64, range) {
                let kept = write.part(left.start - at..left.end - at);
                self.cost += kept.cost();
                self.writes.insert(left.start, kept);
            }
        }
    }
}

/// What is left of a range without another one.
fn without(range: Range<u64>, hole: &Range<u64>) -> Vec<Range<u64>> {
    let parts = [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end];
    parts.into_iter().filter(|part| part.start < part.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receipt(number: u64) -> Receipt {
        Receipt { boot: 1, number, verifier: 7, ctime: None, machine_boot: 1 }
    }

    fn stable(through: u64) -> Stable {
        Stable { file: 1, verifier: 7, through }
    }

    /// The bytes that would be sent again, and the sizes.
    fn content(uncommitted: &Uncommitted) -> BTreeMap<u64, u8> {
        let mut content = BTreeMap::new();
        for id in uncommitted.select((0, 0), |_| true) {
            for part in uncommitted.parts(id) {
                match part {
                    Again::Write { offset, data, .. } => {
                        let bytes = data.with_ref(<[u8]>::to_vec).unwrap();
                        content.extend((offset..).zip(bytes));
                    }
                    Again::Size { size, .. } => content.retain(|at, _| *at < size),
                }
            }
        }
        content
    }

    fn bytes(uncommitted: &Uncommitted, offset: u64, len: u64) -> Vec<u8> {
        let content = content(uncommitted);
        (offset..offset + len).map(|at| content.get(&at).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn a_later_write_replaces_what_it_covers() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1; 10], receipt(1));
        uncommitted.keep(3, vec![2; 4], receipt(2));
        assert_eq!(bytes(&uncommitted, 0, 10), [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]);
        // Acknowledged later, but made before.
        let mut other = Uncommitted::default();
        other.keep(3, vec![2; 4], receipt(2));
        other.keep(0, vec![1; 10], receipt(1));
        assert_eq!(content(&uncommitted), content(&other));
    }

    #[test]
    fn a_commit_of_a_part_leaves_nothing_older_there() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1; 100], receipt(1));
        uncommitted.keep(50, vec![2; 100], receipt(2));
        uncommitted.committed((50, 100), 1, 1, &stable(2));
        assert_eq!(bytes(&uncommitted, 0, 150), [vec![1; 50], vec![0; 100]].concat());
        uncommitted.committed((0, 0), 1, 1, &stable(2));
        assert!(uncommitted.is_empty());
        assert_eq!(uncommitted.bytes(), 0);
    }

    #[test]
    fn only_what_the_commit_covered_goes() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1], Receipt { boot: 2, ..receipt(1) });
        uncommitted.keep(1, vec![1], Receipt { verifier: 8, ..receipt(1) });
        uncommitted.keep(2, vec![1], receipt(3));
        uncommitted.keep(3, vec![1], receipt(2));
        uncommitted.committed((0, 0), 1, 1, &stable(2));
        assert_eq!(content(&uncommitted).into_keys().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_size_stands_between_the_writes_before_and_after_it() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1; 100], receipt(1));
        uncommitted.keep_size(10, 10, receipt(2));
        uncommitted.keep(50, vec![2; 10], receipt(3));
        let expected = [vec![1; 10], vec![0; 40], vec![2; 10], vec![0; 40]].concat();
        assert_eq!(bytes(&uncommitted, 0, 100), expected);
        uncommitted.keep(5, vec![3; 20], receipt(1));
        assert_eq!(bytes(&uncommitted, 0, 20), [vec![1; 5], vec![3; 5], vec![0; 10]].concat());
        // A sync makes the size stable, whatever it was for: set again, it would end what is.
        uncommitted.committed((0, 1), 1, 1, &stable(3));
        assert!(uncommitted.sizes.is_empty());
        uncommitted.keep_size(10, 10, receipt(4));
        uncommitted.replaced(&(50..60), &receipt(5));
        assert!(uncommitted.sizes.is_empty());
        uncommitted.committed((0, 0), 1, 1, &stable(3));
        assert_eq!(uncommitted.bytes(), 0);
    }

    /// The server was restarted; a write is sent again in two messages, of which the second fails.
    #[test]
    fn what_was_not_sent_again_does_not_count_as_acknowledged() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1; 100], receipt(9));
        let id = uncommitted.select((0, 0), |_| true)[0];
        let now = Receipt { boot: 2, number: 1, verifier: 8, ctime: None, machine_boot: 1 };
        uncommitted.acknowledged(id, &(0..50), now);
        assert_eq!(uncommitted.select((50, 50), |kept| kept.boot == 1).len(), 1);
        uncommitted.committed((0, 0), 2, 1, &Stable { file: 1, verifier: 8, through: 1 });
        assert_eq!(bytes(&uncommitted, 50, 50), [1; 50], "it is to be sent again");
    }

    #[test]
    fn a_stable_write_ends_what_it_replaced() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1; 10], receipt(1));
        uncommitted.replaced(&(2..4), &receipt(2));
        assert_eq!(bytes(&uncommitted, 0, 10), [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_was_written_last_and_is_not_stable(
            steps in proptest::collection::vec((0u8..8, 0u64..40, 1u64..20), 1..60)
        ) {
            let mut uncommitted = Uncommitted::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            let mut number = 0;
            for (kind, offset, len) in steps {
                number += 1;
                match kind {
                    0..5 => {
                        let fill = u8::try_from(number % 255).unwrap() + 1;
                        let data = vec![fill; usize::try_from(len).unwrap()];
                        uncommitted.keep(offset, data, receipt(number));
                        (offset..offset + len).for_each(|at| {
                            model.insert(at, fill);
                        });
                    }
                    5 => {
                        uncommitted.keep_size(offset, offset, receipt(number));
                        model.retain(|at, _| *at < offset);
                    }
                    6 => {
                        uncommitted.committed((offset, len), 1, 1, &stable(number));
                        model.retain(|at, _| !(offset..offset + len).contains(at));
                    }
                    _ => {
                        uncommitted.replaced(&(offset..offset + len), &receipt(number));
                        model.retain(|at, _| !(offset..offset + len).contains(at));
                    }
                }
                prop_assert_eq!(content(&uncommitted), model.clone());
                let kept: usize = uncommitted.writes.values().map(KeptWrite::cost).sum();
                prop_assert_eq!(uncommitted.bytes(), kept + uncommitted.sizes.len() * OVERHEAD);
            }
            uncommitted.committed((0, 0), 1, 1, &stable(number));
            prop_assert_eq!(uncommitted.bytes(), 0);
        }
    }
}

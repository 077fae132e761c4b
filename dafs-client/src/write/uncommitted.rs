//! What was written to a file and is not known to be on stable storage.

use crate::error::Error;
use ordma::Region;
use std::collections::VecDeque;

/// What a kept write costs besides its bytes.
pub(super) const OVERHEAD: usize = 96;

/// A write that may have to be sent again.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Grows with each write.
    pub(super) id: u64,
    pub(super) offset: u64,
    pub(super) data: Region,
    /// The server's write verifier: as long as it stays the same, nothing was lost.
    pub(super) verifier: u64,
    /// The boot of the server that has it.
    pub(super) boot: u64,
}

impl Kept {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn cost(&self) -> usize {
        self.data.len() + OVERHEAD
    }

    /// Whether a byte of the write is in the range; `length` 0 means to the end of the file.
    pub(super) fn touches(&self, offset: u64, length: u64) -> bool {
        self.end() > offset && self.offset < range_end(offset, length)
    }
}

fn range_end(offset: u64, length: u64) -> u64 {
    if length == 0 { u64::MAX } else { offset.saturating_add(length) }
}

/// The uncommitted writes of one file, in the order they were done.
#[derive(Debug, Default)]
pub(crate) struct Uncommitted {
    kept: VecDeque<Kept>,
    latest: u64,
    cost: usize,
    error: Option<Error>,
}

impl Uncommitted {
    /// Bytes of memory that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.cost
    }

    /// The id of the latest write.
    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// Why writes were lost for good, once.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Keeps a write; how many bytes more are kept.
    pub(super) fn keep(&mut self, offset: u64, data: Vec<u8>, verifier: u64, boot: u64) -> usize {
        self.latest += 1;
        let kept = Kept { id: self.latest, offset, data: Region::owned(data), verifier, boot };
        let cost = kept.cost();
        self.cost += cost;
        self.kept.push_back(kept);
        cost
    }

    /// A range was committed under `verifier`: writes up to `latest` that lie in it and were made
    /// under the same verifier are stable. How many bytes fewer are kept.
    pub(super) fn committed(
        &mut self,
        offset: u64,
        length: u64,
        latest: u64,
        verifier: u64,
    ) -> usize {
        let end = range_end(offset, length);
        self.drop_where(|kept| {
            kept.id <= latest
                && kept.offset >= offset
                && kept.end() <= end
                && kept.verifier == verifier
        })
    }

    /// The writes that fulfil a condition, in order.
    pub(super) fn select(&self, condition: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        self.kept.iter().filter(|kept| condition(kept)).cloned().collect()
    }

    /// A write was sent again.
    pub(super) fn sent_again(&mut self, id: u64, verifier: u64, boot: u64) {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.id == id) {
            (kept.verifier, kept.boot) = (verifier, boot);
        }
    }

    /// A write could not be done again: the next commit reports why. How many bytes fewer are kept.
    pub(super) fn lose(&mut self, id: u64, error: Error) -> usize {
        self.error.get_or_insert(error);
        self.drop_where(|kept| kept.id == id)
    }

    /// Lets go of all writes, not of the error. How many bytes fewer are kept.
    pub(crate) fn clear(&mut self) -> usize {
        self.drop_where(|_| true)
    }

    fn drop_where(&mut self, condition: impl Fn(&Kept) -> bool) -> usize {
        let before = self.cost;
        let cost = &mut self.cost;
        self.kept.retain(|kept| {
            let goes = condition(kept);
            if goes {
                *cost -= kept.cost();
            }
            !goes
        });
        before - self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_frees_what_lies_in_its_range_under_its_verifier() {
        let mut uncommitted = Uncommitted::default();
        let cost = uncommitted.keep(0, vec![1; 10], 7, 1);
        uncommitted.keep(100, vec![2; 10], 7, 1);
        uncommitted.keep(5, vec![3; 10], 8, 1);
        assert_eq!(uncommitted.committed(0, 50, uncommitted.latest(), 7), cost);
        assert_eq!(uncommitted.bytes(), 2 * cost);
        let rest = uncommitted.select(|kept| kept.touches(0, 50));
        assert_eq!(rest.iter().map(|kept| kept.offset).collect::<Vec<_>>(), [5]);
        uncommitted.sent_again(rest[0].id, 7, 2);
        assert_eq!(uncommitted.committed(0, 0, uncommitted.latest(), 7), 2 * cost);
        assert_eq!(uncommitted.bytes(), 0);
    }

    #[test]
    fn a_later_write_is_not_covered_by_an_earlier_commit() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1], 7, 1);
        let before = uncommitted.latest();
        uncommitted.keep(0, vec![2], 7, 1);
        uncommitted.committed(0, 0, before, 7);
        assert_eq!(uncommitted.select(|_| true).len(), 1);
    }

    #[test]
    fn a_lost_write_is_reported_once() {
        let mut uncommitted = Uncommitted::default();
        uncommitted.keep(0, vec![1], 7, 1);
        uncommitted.lose(1, Error::InvalidArgument("x".into()));
        assert!(uncommitted.take_error().is_some());
        assert!(uncommitted.take_error().is_none());
        assert_eq!(uncommitted.bytes(), 0);
    }
}

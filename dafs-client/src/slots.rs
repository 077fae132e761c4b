//! Request slots: how many requests may be outstanding, and how each is told from all others.
//!
//! The server keeps the last reply of each slot, so that a request which is sent again after a lost
//! connection is done once. A slot's requests are numbered from 1; a new one begins only when the
//! reply to the one before has come, and only below the credits that the server gave last.

/// The place and number of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) slot: u16,
    pub(crate) sequence: u32,
}

/// Why a reply fits no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("a reply names slot {0}, which was not granted")]
    Unknown(u16),
    #[error("a reply names slot {0}, which has no request outstanding")]
    Free(u16),
    #[error("a reply to request {got} of slot {slot}, whose request is {expected}")]
    Sequence { slot: u16, expected: u32, got: u32 },
    #[error("a reply leaves no credits")]
    NoCredits,
    #[error("the second reply to request {sequence} of slot {slot}, which was sent again")]
    Again { slot: u16, sequence: u32 },
}

#[derive(Debug)]
struct Slot<T> {
    /// Number of the last request begun.
    sequence: u32,
    outstanding: Option<T>,
    /// Number of the request that was sent again last. It may get two replies: one because it was done
    /// just when its client had come back, and the same once more because it came again.
    again: Option<u32>,
}

/// The request slots of a session, with what is kept of each outstanding request.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    credits: usize,
    used: usize,
    /// No slot below is free.
    lowest: usize,
}

impl<T> Slots<T> {
    /// `granted` slots, all usable.
    pub(crate) fn new(granted: u16) -> Self {
        let slot = || Slot { sequence: 0, outstanding: None, again: None };
        let slots = (0..granted).map(|_| slot()).collect();
        Self { slots, credits: usize::from(granted), used: 0, lowest: 0 }
    }

    /// Requests outstanding.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Takes the credits of a reply.
    pub(crate) fn set_credits(&mut self, credits: u16) -> Result<(), SlotError> {
        if credits == 0 {
            return Err(SlotError::NoCredits);
        }
        self.credits = usize::from(credits).min(self.slots.len());
        Ok(())
    }

    /// Requests that may begin now.
    pub(crate) fn available(&self) -> usize {
        self.slots[..self.credits].iter().filter(|slot| slot.outstanding.is_none()).count()
    }

    /// Begins a request in the lowest free slot, if there is one; `make` says what is kept of it.
    pub(crate) fn begin(&mut self, make: impl FnOnce(Ticket) -> T) -> Option<Ticket> {
        let free = self.slots[..self.credits]
            .iter()
            .skip(self.lowest)
            .position(|slot| slot.outstanding.is_none());
        let index = self.lowest + free?;
        let slot = &mut self.slots[index];
        slot.sequence = slot.sequence.wrapping_add(1);
        let ticket = Ticket { slot: u16::try_from(index).ok()?, sequence: slot.sequence };
        slot.outstanding = Some(make(ticket));
        self.used += 1;
        self.lowest = index + 1;
        Some(ticket)
    }

    /// What is kept of an outstanding request.
    pub(crate) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let slot = self.slots.get_mut(usize::from(ticket.slot))?;
        if slot.sequence == ticket.sequence { slot.outstanding.as_mut() } else { None }
    }

    /// An outstanding request is sent again.
    pub(crate) fn sent_again(&mut self, ticket: Ticket) {
        if let Some(slot) = self.slots.get_mut(usize::from(ticket.slot)) {
            slot.again = Some(ticket.sequence);
        }
    }

    /// The reply to a request came: frees its slot and gives back what was kept.
    pub(crate) fn finish(&mut self, ticket: Ticket, credits: u16) -> Result<T, SlotError> {
        let index = usize::from(ticket.slot);
        let slot = self.slots.get_mut(index).ok_or(SlotError::Unknown(ticket.slot))?;
        let Ticket { sequence, .. } = ticket;
        let due = slot.outstanding.is_some() && slot.sequence == sequence;
        if !due && slot.again.take_if(|again| *again == sequence).is_some() {
            return Err(SlotError::Again { slot: ticket.slot, sequence });
        }
        if slot.outstanding.is_none() {
            return Err(SlotError::Free(ticket.slot));
        }
        if slot.sequence != ticket.sequence {
            return Err(SlotError::Sequence {
                slot: ticket.slot,
                expected: slot.sequence,
                got: ticket.sequence,
            });
        }
        if credits == 0 {
            return Err(SlotError::NoCredits);
        }
        let kept = slot.outstanding.take().ok_or(SlotError::Free(ticket.slot))?;
        self.used -= 1;
        self.lowest = self.lowest.min(index);
        self.credits = usize::from(credits).min(self.slots.len());
        Ok(kept)
    }

    /// The outstanding requests, by slot.
    pub(crate) fn outstanding(&mut self) -> impl Iterator<Item = (Ticket, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let ticket = Ticket { slot: u16::try_from(index).ok()?, sequence: slot.sequence };
            slot.outstanding.as_mut().map(|kept| (ticket, kept))
        })
    }

    /// The session is over: gives back what was kept of all outstanding requests. What remains has
    /// no slots.
    pub(crate) fn end(&mut self) -> Vec<T> {
        let slots = std::mem::take(&mut self.slots);
        (self.credits, self.used, self.lowest) = (0, 0, 0);
        slots.into_iter().filter_map(|slot| slot.outstanding).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn sequences_begin_at_one_and_grow_by_one_for_each_slot() {
        let mut slots = Slots::new(2);
        let first = slots.begin(|t| t).unwrap();
        let second = slots.begin(|t| t).unwrap();
        assert_eq!(first, Ticket { slot: 0, sequence: 1 });
        assert_eq!(second, Ticket { slot: 1, sequence: 1 });
        assert!(slots.begin(|t| t).is_none());
        assert_eq!(slots.finish(first, 2), Ok(first));
        assert_eq!(slots.begin(|t| t), Some(Ticket { slot: 0, sequence: 2 }));
    }

    #[test]
    fn a_slot_at_or_above_the_credits_is_left_alone() {
        let mut slots = Slots::new(3);
        let tickets: Vec<_> = std::iter::from_fn(|| slots.begin(|t| t)).collect();
        slots.finish(tickets[0], 1).unwrap();
        slots.finish(tickets[2], 1).unwrap();
        assert_eq!(slots.available(), 1);
        assert_eq!(slots.begin(|t| t).unwrap().slot, 0);
        assert!(slots.begin(|t| t).is_none());
        slots.finish(tickets[1], 9).unwrap();
        assert_eq!(slots.available(), 2);
    }

    #[test]
    fn replies_that_fit_no_request_are_refused_and_change_nothing() {
        let mut slots = Slots::new(2);
        let ticket = slots.begin(|t| t).unwrap();
        let other = |slot, sequence| Ticket { slot, sequence };
        assert_eq!(slots.finish(other(7, 1), 1), Err(SlotError::Unknown(7)));
        assert_eq!(slots.finish(other(1, 0), 1), Err(SlotError::Free(1)));
        let sequence = SlotError::Sequence { slot: 0, expected: 1, got: 2 };
        assert_eq!(slots.finish(other(0, 2), 1), Err(sequence));
        assert_eq!(slots.finish(ticket, 0), Err(SlotError::NoCredits));
        assert_eq!(slots.used(), 1);
        assert_eq!(slots.finish(ticket, 1), Ok(ticket));
    }

    #[test]
    fn a_request_that_was_sent_again_may_get_its_reply_twice_and_no_other_may() {
        let mut slots = Slots::new(1);
        let first = slots.begin(|t| t).unwrap();
        slots.sent_again(first);
        assert_eq!(slots.finish(first, 1), Ok(first));
        let second = slots.begin(|t| t).unwrap();
        assert_eq!(slots.finish(first, 1), Err(SlotError::Again { slot: 0, sequence: 1 }));
        let sequence = SlotError::Sequence { slot: 0, expected: 2, got: 1 };
        assert_eq!(slots.finish(first, 1), Err(sequence));
        assert_eq!(slots.finish(second, 1), Ok(second));
        assert_eq!(slots.finish(second, 1), Err(SlotError::Free(0)));
    }

    #[test]
    fn an_ended_session_has_no_slots() {
        let mut slots = Slots::new(2);
        slots.begin(|t| t.slot).unwrap();
        assert_eq!(slots.end(), [0]);
        assert!(slots.begin(|t| t.slot).is_none());
        assert_eq!(slots.used(), 0);
    }

    proptest! {
        #[test]
        fn no_two_outstanding_requests_share_a_ticket(
            steps in proptest::collection::vec((any::<bool>(), 0usize..8, 1u16..10), 1..200)
        ) {
            let mut slots = Slots::new(6);
            let mut out: Vec<Ticket> = Vec::new();
            let mut last: HashMap<u16, u32> = HashMap::new();
            let mut credits = 6;
            for (begin, pick, next_credits) in steps {
                if begin {
                    if let Some(t) = slots.begin(|t| t) {
                        prop_assert!(usize::from(t.slot) < usize::from(credits));
                        prop_assert_eq!(t.sequence, last.get(&t.slot).copied().unwrap_or(0) + 1);
                        prop_assert!(out.iter().all(|o| o.slot != t.slot));
                        last.insert(t.slot, t.sequence);
                        out.push(t);
                    } else {
                        prop_assert_eq!(slots.available(), 0);
                    }
                } else if !out.is_empty() {
                    let t = out.swap_remove(pick % out.len());
                    prop_assert_eq!(slots.finish(t, next_credits), Ok(t));
                    credits = next_credits;
                }
                prop_assert_eq!(slots.used(), out.len());
                prop_assert_eq!(slots.outstanding().count(), out.len());
            }
        }
    }
}

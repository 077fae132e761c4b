//! Request slots and the replies kept in them: each request is executed exactly once, whatever
//! connection breaks in between.
//!
//! A session has a fixed number of slots. A client uses a slot for one request at a time and gives
//! each the next sequence number; until it has the reply it may send the same request again, with
//! the same number, over the same or another connection. Replies of operations that must not be
//! executed twice are kept until the slot's next request shows that the client has them.

use std::sync::Arc;

/// Counts the requests of a slot, from 1 on; wraps.
pub type Sequence = u32;

/// The slots of one session. `R` is a reply.
#[derive(Debug)]
pub struct RequestSlots<R> {
    slots: Vec<RequestSlot<R>>,
    runs: u64,
}

#[derive(Debug)]
struct RequestSlot<R> {
    /// The latest sequence number that was accepted.
    last: Sequence,
    state: State<R>,
}

#[derive(Debug)]
enum State<R> {
    /// No request yet.
    Unused,
    /// The latest request is being executed.
    Running {
        run: u64,
        link: u64,
        idempotent: bool,
        /// Asked for again meanwhile, over another link.
        awaited: bool,
    },
    /// The latest request was executed and its reply must be given again.
    Replied(Arc<R>),
    /// The latest request was executed without a trace, or not at all.
    Repeatable {
        /// It was an operation that must not be executed twice, and it was not executed.
        unexecuted: bool,
    },
}

/// A request, as the slots see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The slot it came in.
    pub slot: u16,
    /// Its number.
    pub sequence: Sequence,
    /// The link it came over.
    pub link: u64,
    /// It may be executed any number of times.
    pub idempotent: bool,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin<R> {
    /// Execute it, and [`RequestSlots::finish`] or [`RequestSlots::abandon`] it.
    Execute(Ticket),
    /// Nothing: it is being executed, and its reply will be sent when it is done.
    InProgress,
    /// Send this reply again.
    Replay(Arc<R>),
    /// There is no such slot.
    BadSlot,
    /// The slot waits for another number: this one plus 1.
    BadSequence(Sequence),
}

/// The right and the duty to end a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: u16,
    sequence: Sequence,
    run: u64,
    link: u64,
    idempotent: bool,
}

impl Ticket {
    /// The slot of the request.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The number of the request.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The link the request came over.
    #[must_use]
    pub fn link(&self) -> u64 {
        self.link
    }

    /// Whether the request may be executed again: its reply is then for its own link only, which
    /// may have carried data of it, and is not kept.
    #[must_use]
    pub fn idempotent(&self) -> bool {
        self.idempotent
    }
}

/// What became of an abandoned request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// The slot executes it when it comes again.
    Repeatable,
    /// As above, but it has come again already and the client waits for a reply.
    Awaited,
    /// Another run of the request has taken over.
    Superseded,
}

impl<R> RequestSlots<R> {
    /// `count` slots, none used.
    #[must_use]
    pub fn new(count: u16) -> Self {
        let slot = || RequestSlot { last: 0, state: State::Unused };
        Self { slots: (0..count).map(|_| slot()).collect(), runs: 0 }
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        // Made from a u16.
        self.slots.len() as u16
    }

    /// A request arrived.
    pub fn begin(&mut self, arrival: Arrival) -> Begin<R> {
        let Some(slot) = self.slots.get_mut(usize::from(arrival.slot)) else {
            return Begin::BadSlot;
        };
        let is_next = arrival.sequence == slot.last.wrapping_add(1);
        if !is_next && arrival.sequence != slot.last {
            return Begin::BadSequence(slot.last);
        }
        let execute = match &mut slot.state {
            // A client that goes on has the reply, so the slot is free; it does not go on before.
            State::Running { .. } if is_next => return Begin::BadSequence(slot.last),
            _ if is_next => true,
            State::Unused => return Begin::BadSequence(slot.last),
            State::Replied(reply) => return Begin::Replay(Arc::clone(reply)),
            // What the first run sends goes to a link that is gone.
            State::Running { link, idempotent: true, .. } => {
                *link != arrival.link && arrival.idempotent
            }
            State::Running { link, awaited, .. } => {
                *awaited |= *link != arrival.link;
                false
            }
            State::Repeatable { unexecuted } => {
                if !*unexecuted && !arrival.idempotent {
                    return Begin::BadSequence(slot.last);
                }
                true
            }
        };
        if !execute {
            return Begin::InProgress;
        }
        self.runs += 1;
        let Arrival { sequence, link, idempotent, .. } = arrival;
        slot.last = sequence;
        slot.state = State::Running { run: self.runs, link, idempotent, awaited: false };
        Begin::Execute(Ticket { slot: arrival.slot, sequence, run: self.runs, link, idempotent })
    }

    /// A request was executed. Keeps `reply` unless the request is idempotent; `false` where
    /// another run has taken over and no reply must be sent.
    pub fn finish(&mut self, ticket: &Ticket, reply: Option<Arc<R>>) -> bool {
        let Some(slot) = self.running(ticket) else {
            return false;
        };
        slot.state = match reply {
            Some(reply) if !ticket.idempotent => State::Replied(reply),
            _ => State::Repeatable { unexecuted: false },
        };
        true
    }

    /// A request was not executed, and nothing was changed.
    pub fn abandon(&mut self, ticket: &Ticket) -> Abandoned {
        let Some(slot) = self.running(ticket) else {
            return Abandoned::Superseded;
        };
        let awaited = matches!(slot.state, State::Running { awaited: true, .. });
        slot.state = State::Repeatable { unexecuted: true };
        if awaited { Abandoned::Awaited } else { Abandoned::Repeatable }
    }

    fn running(&mut self, ticket: &Ticket) -> Option<&mut RequestSlot<R>> {
        self.slots
            .get_mut(usize::from(ticket.slot))
            .filter(|slot| matches!(slot.state, State::Running { run, .. } if run == ticket.run))
    }

    /// Replies that are being kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.state, State::Replied(_))).count()
    }

    /// Panics where the slots contradict themselves; for tests.
    ///
    /// # Panics
    /// See above.
    pub fn check_invariants(&self) {
        let mut runs = Vec::new();
        for slot in &self.slots {
            match &slot.state {
                State::Unused => assert_eq!(slot.last, 0, "an unused slot has taken no number"),
                State::Running { run, .. } => {
                    assert!(*run <= self.runs, "a run was started here");
                    runs.push(*run);
                }
                State::Replied(_) | State::Repeatable { .. } => {}
            }
        }
        runs.sort_unstable();
        assert!(runs.windows(2).all(|pair| pair[0] != pair[1]), "a run belongs to one slot");
        assert!(self.kept() <= self.slots.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(sequence: Sequence, link: u64, idempotent: bool) -> Arrival {
        Arrival { slot: 0, sequence, link, idempotent }
    }

    fn ticket<R: std::fmt::Debug>(begin: Begin<R>) -> Ticket {
        match begin {
            Begin::Execute(ticket) => ticket,
            other => panic!("not executed: {other:?}"),
        }
    }

    #[test]
    fn a_reply_is_kept_until_the_next_request() {
        let mut slots = RequestSlots::new(1);
        let first = ticket(slots.begin(arrival(1, 7, false)));
        assert_eq!(slots.begin(arrival(1, 7, false)), Begin::InProgress);
        assert_eq!(slots.begin(arrival(2, 7, false)), Begin::BadSequence(1));
        assert!(slots.finish(&first, Some(Arc::new("done"))));
        assert_eq!(slots.begin(arrival(1, 8, false)), Begin::Replay(Arc::new("done")));
        assert_eq!(slots.begin(arrival(3, 8, false)), Begin::BadSequence(1));
        ticket(slots.begin(arrival(2, 8, false)));
        assert_eq!(slots.kept(), 0);
        slots.check_invariants();
    }

    #[test]
    fn an_idempotent_request_is_executed_again() {
        let mut slots = RequestSlots::<()>::new(1);
        let first = ticket(slots.begin(arrival(1, 7, true)));
        // Over the same link nothing is lost; over another one the first reply is.
        assert_eq!(slots.begin(arrival(1, 7, true)), Begin::InProgress);
        let second = ticket(slots.begin(arrival(1, 8, true)));
        assert!(!slots.finish(&first, None));
        assert_eq!(slots.abandon(&first), Abandoned::Superseded);
        assert!(slots.finish(&second, None));
        ticket(slots.begin(arrival(1, 8, true)));
        slots.check_invariants();
    }

    #[test]
    fn what_was_not_executed_may_come_again() {
        let mut slots = RequestSlots::<()>::new(1);
        let first = ticket(slots.begin(arrival(1, 7, false)));
        assert_eq!(slots.abandon(&first), Abandoned::Repeatable);
        let second = ticket(slots.begin(arrival(1, 8, false)));
        assert_eq!(slots.begin(arrival(1, 9, false)), Begin::InProgress);
        assert_eq!(slots.abandon(&second), Abandoned::Awaited);
    }

    #[test]
    fn slots_and_numbers_that_were_not_granted_are_refused() {
        let mut slots = RequestSlots::<()>::new(1);
        assert_eq!(slots.begin(Arrival { slot: 1, ..arrival(1, 7, true) }), Begin::BadSlot);
        assert_eq!(slots.begin(arrival(0, 7, true)), Begin::BadSequence(0));
        assert_eq!(slots.begin(arrival(2, 7, true)), Begin::BadSequence(0));
        let first = ticket(slots.begin(arrival(1, 7, true)));
        slots.finish(&first, None);
        // A replay that claims to be another kind of operation.
        assert_eq!(slots.begin(arrival(1, 7, false)), Begin::BadSequence(1));
    }
}

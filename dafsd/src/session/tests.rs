//! Sessions alone, and against a model of what a client may rely on.

use super::*;
use crate::reply_cache::{Arrival, Begin, Sequence, Ticket};
use proptest::prelude::*;
use std::sync::Arc;

type TestSession = Session<(u16, Sequence, u32), u64, u32>;

const LIMITS: SessionLimits = SessionLimits { slots: 3, opens: 2, lease: Duration::from_secs(10) };

#[test]
fn a_lease_runs_out_only_without_a_link() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut session = TestSession::new(LIMITS, start);
    assert_eq!(session.attach(1, 1, at(1)), None);
    assert!(!session.expired(at(100)));
    assert!(!session.detach(2, at(100)), "not its link");
    assert!(session.detach(1, at(100)));
    assert!(!session.expired(at(109)));
    assert!(session.expired(at(110)));
    assert_eq!(session.attach(2, 2, at(109)), None);
    assert_eq!(session.attach(3, 3, at(109)), Some(2), "the old link is to be closed");
    session.check_invariants();
}

#[test]
fn heat_counts_once_in_a_while() {
    let start = Instant::now();
    let mut session = TestSession::new(LIMITS, start);
    assert!(session.take_heat(start));
    assert!(!session.take_heat(start + HEAT_INTERVAL / 2));
    assert!(session.take_heat(start + HEAT_INTERVAL));
}

#[test]
fn opens_are_bounded_and_end_with_the_session() {
    let mut session = TestSession::new(LIMITS, Instant::now());
    assert_eq!(session.add_open(10), Ok(1));
    assert_eq!(session.add_open(20), Ok(2));
    assert_eq!(session.add_open(30), Err(TooManyOpens(2)));
    assert_eq!(session.remove_open(1), Some(10));
    assert_eq!(session.add_open(30), Ok(3), "numbers are not used again");
    assert_eq!((session.open(1), session.open(3)), (None, Some(&30)));
    let (link, mut opens) = session.end();
    opens.sort_unstable();
    assert_eq!((link, opens), (None, vec![20, 30]));
    assert!(session.expired(Instant::now()));
    session.check_invariants();
}

/// A step of a client and of the network, and of the server's work.
#[derive(Clone, Debug)]
enum Step {
    /// The client sends the next request of a slot, if it has the reply of the one before.
    Request { slot: u16, idempotent: bool },
    /// The client sends the outstanding request of a slot again.
    Again { slot: u16 },
    /// A request with a wrong number arrives.
    Wrong { slot: u16, offset: u32 },
    /// The server finishes the oldest request it executes.
    Finish { reply_is_lost: bool },
    /// The server abandons the oldest request it executes.
    Abandon,
    /// The connection breaks and the client makes a new one.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..LIMITS.slots;
    prop_oneof![
        4 => (slot.clone(), any::<bool>())
            .prop_map(|(slot, idempotent)| Step::Request { slot, idempotent }),
        2 => slot.clone().prop_map(|slot| Step::Again { slot }),
        1 => (slot, 2u32..9).prop_map(|(slot, offset)| Step::Wrong { slot, offset }),
        4 => any::<bool>().prop_map(|reply_is_lost| Step::Finish { reply_is_lost }),
        1 => Just(Step::Abandon),
        1 => Just(Step::Reconnect),
    ]
}

/// What the client and the world know of one slot.
#[derive(Clone, Default)]
struct Model {
    sequence: Sequence,
    outstanding: bool,
    idempotent: bool,
    /// How often the effect of the latest request took place.
    effects: u32,
}

struct World {
    session: TestSession,
    now: Instant,
    link: u64,
    slots: Vec<Model>,
    running: Vec<Ticket>,
}

impl World {
    fn send(&mut self, slot: u16) {
        let model = self.slots[usize::from(slot)].clone();
        let arrival = Arrival {
            slot,
            sequence: model.sequence,
            link: self.link,
            idempotent: model.idempotent,
        };
        self.session.renew(self.now);
        match self.session.slots.begin(arrival) {
            Begin::Execute(ticket) => {
                assert!(
                    model.idempotent || model.effects == 0,
                    "executed again: slot {slot}, number {}",
                    model.sequence
                );
                self.running.push(ticket);
            }
            Begin::Replay(reply) => {
                assert_eq!(*reply, (slot, model.sequence, model.effects));
                self.slots[usize::from(slot)].outstanding = false;
            }
            Begin::InProgress => {
                assert!(self.running.iter().any(|ticket| {
                    ticket.slot() == slot && ticket.sequence() == model.sequence
                }));
            }
            other => panic!("a correct request was refused: {other:?}"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request { slot, idempotent } => {
                let model = &mut self.slots[usize::from(slot)];
                if !model.outstanding {
                    let sequence = model.sequence + 1;
                    *model = Model { sequence, outstanding: true, idempotent, effects: 0 };
                    self.send(slot);
                }
            }
            Step::Again { slot } => {
                if self.slots[usize::from(slot)].outstanding {
                    self.send(slot);
                }
            }
            Step::Wrong { slot, offset } => {
                let last = self.slots[usize::from(slot)].sequence;
                let sequence = last.wrapping_add(offset);
                let arrival = Arrival { slot, sequence, link: self.link, idempotent: true };
                assert_eq!(self.session.slots.begin(arrival), Begin::BadSequence(last));
            }
            Step::Finish { reply_is_lost } => {
                if self.running.is_empty() {
                    return;
                }
                let ticket = self.running.remove(0);
                let model = &mut self.slots[usize::from(ticket.slot())];
                let is_latest = model.sequence == ticket.sequence();
                if is_latest {
                    model.effects += 1;
                }
                let reply = Arc::new((ticket.slot(), ticket.sequence(), model.effects));
                let counts = self.session.slots.finish(&ticket, Some(reply));
                // A reply reaches the client over the present link: any one that is kept, and
                // others if they belong to that link.
                let arrives = !ticket.idempotent() || ticket.link() == self.link;
                if counts && arrives && !reply_is_lost {
                    assert!(is_latest);
                    model.outstanding = false;
                }
            }
            Step::Abandon => {
                if !self.running.is_empty() {
                    let ticket = self.running.remove(0);
                    self.session.slots.abandon(&ticket);
                }
            }
            Step::Reconnect => {
                let old = self.link;
                self.link += 1;
                let replaced = self.session.attach(self.link, self.link, self.now);
                assert_eq!(replaced, Some(old));
            }
        }
        self.now += Duration::from_millis(100);
        self.session.check_invariants();
    }
}

proptest! {
    #[test]
    fn requests_take_effect_exactly_once(steps in prop::collection::vec(step(), 1..200)) {
        let now = Instant::now();
        let mut session = TestSession::new(LIMITS, now);
        session.attach(1, 1, now);
        let slots = vec![Model::default(); usize::from(LIMITS.slots)];
        let mut world = World { session, now, link: 1, slots, running: Vec::new() };
        steps.into_iter().for_each(|step| world.step(step));

        // In the end, over a connection that holds, the client gets every reply.
        world.step(Step::Reconnect);
        for slot in 0..LIMITS.slots {
            while world.slots[usize::from(slot)].outstanding {
                world.send(slot);
                while !world.running.is_empty() {
                    world.step(Step::Finish { reply_is_lost: false });
                }
            }
            let model = &world.slots[usize::from(slot)];
            prop_assert!(model.idempotent || model.effects == u32::from(model.sequence > 0));
        }
    }
}

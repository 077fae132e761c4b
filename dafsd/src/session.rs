//! One session: request slots, credits, lease, opens, and the link it is reached by. Plain data;
//! the time is an argument.

use crate::reply_cache::RequestSlots;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Least time between two reports of heat that count.
pub const HEAT_INTERVAL: Duration = Duration::from_millis(100);

/// Sizes of a session, granted when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Request slots.
    pub slots: u16,
    /// Files open at the same time.
    pub opens: usize,
    /// How long the session outlives its connection.
    pub lease: Duration,
}

/// A session. `R` is a reply, `L` a link, `O` an open file.
#[derive(Debug)]
pub struct Session<R, L, O> {
    /// Request slots and replies.
    pub slots: RequestSlots<R>,
    limits: SessionLimits,
    link: Option<(u64, L)>,
    renewed: Instant,
    heated: Option<Instant>,
    opens: HashMap<u64, O, RandomState>,
    last_open: u64,
    ended: bool,
}

/// The session has as many files open as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this session has {0} files open, which is the most it may have")]
pub struct TooManyOpens(pub usize);

impl<R, L, O> Session<R, L, O> {
    /// A session that nobody is connected to yet.
    #[must_use]
    pub fn new(limits: SessionLimits, now: Instant) -> Self {
        Self {
            slots: RequestSlots::new(limits.slots.max(1)),
            limits,
            link: None,
            renewed: now,
            heated: None,
            opens: HashMap::default(),
            last_open: 0,
            ended: false,
        }
    }

    /// Requests the client may have outstanding, told with each reply. Never 0.
    #[must_use]
    pub fn credits(&self) -> u16 {
        self.slots.count()
    }

    /// How long the session outlives its connection.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.limits.lease
    }

    /// Takes a new link; the old one, to be closed, is returned.
    pub fn attach(&mut self, id: u64, link: L, now: Instant) -> Option<L> {
        self.renew(now);
        self.link.replace((id, link)).map(|(_, old)| old)
    }

    /// The link `id` is gone; whether it was the session's.
    pub fn detach(&mut self, id: u64, now: Instant) -> bool {
        let is_ours = self.link.as_ref().is_some_and(|(ours, _)| *ours == id);
        if is_ours {
            self.link = None;
            self.renew(now);
        }
        is_ours
    }

    /// The link where the client can be reached.
    #[must_use]
    pub fn link(&self) -> Option<&L> {
        self.link.as_ref().map(|(_, link)| link)
    }

    /// The id of the link where the client can be reached.
    #[must_use]
    pub fn link_id(&self) -> Option<u64> {
        self.link.as_ref().map(|(id, _)| *id)
    }

    /// A message arrived.
    pub fn renew(&mut self, now: Instant) {
        self.renewed = self.renewed.max(now);
    }

    /// Whether a report of heat counts. Reports that come faster than [`HEAT_INTERVAL`] do not, so
    /// that nobody's pages gain more than other sessions' by being reported more often.
    pub fn take_heat(&mut self, now: Instant) -> bool {
        let since = self
            .heated
            .map(|heated| now.saturating_duration_since(heated));
        let counts = since.is_none_or(|since| since >= HEAT_INTERVAL);
        if counts {
            self.heated = Some(now);
        }
        counts
    }

    /// Whether nobody is connected and the lease has run out, or the session was ended.
    #[must_use]
    pub fn expired(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.renewed);
        self.ended || (self.link.is_none() && idle >= self.limits.lease)
    }

    /// Ends the session: nothing is accepted any more. Gives back what was open.
    pub fn end(&mut self) -> (Option<L>, Vec<O>) {
        self.ended = true;
        let opens = std::mem::take(&mut self.opens).into_values().collect();
        (self.link.take().map(|(_, link)| link), opens)
    }

    /// Whether the session was ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether another file can be opened.
    ///
    /// # Errors
    /// [`TooManyOpens`].
    pub fn check_opens(&self) -> Result<(), TooManyOpens> {
        let most = self.limits.opens;
        if self.opens.len() < most {
            Ok(())
        } else {
            Err(TooManyOpens(most))
        }
    }

    /// Adds an open file; its number is never used again in this session.
    ///
    /// # Errors
    /// [`TooManyOpens`]; nothing has changed then.
    pub fn add_open(&mut self, open: O) -> Result<u64, TooManyOpens> {
        self.check_opens()?;
        self.last_open += 1;
        self.opens.insert(self.last_open, open);
        Ok(self.last_open)
    }

    /// The open file with this number.
    #[must_use]
    pub fn open(&self, id: u64) -> Option<&O> {
        self.opens.get(&id)
    }

    /// Forgets an open file.
    pub fn remove_open(&mut self, id: u64) -> Option<O> {
        self.opens.remove(&id)
    }

    /// How many files are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.opens.len()
    }

    /// Panics where the session contradicts itself; for tests.
    ///
    /// # Panics
    /// See above.
    pub fn check_invariants(&self) {
        self.slots.check_invariants();
        assert!(
            self.credits() >= 1,
            "a client without credit could never speak again"
        );
        assert!(self.opens.len() <= self.limits.opens);
        assert!(
            self.opens
                .keys()
                .all(|id| (1..=self.last_open).contains(id))
        );
        assert!(!self.ended || (self.link.is_none() && self.opens.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply_cache::{Arrival, Begin, Sequence, Ticket};
    use proptest::prelude::*;
    use std::sync::Arc;

    type TestSession = Session<(u16, Sequence, u32), u64, u32>;

    const LIMITS: SessionLimits = SessionLimits {
        slots: 3,
        opens: 2,
        lease: Duration::from_secs(10),
    };

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
        assert_eq!(
            session.attach(3, 3, at(109)),
            Some(2),
            "the old link is to be closed"
        );
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
                        *model = Model {
                            sequence,
                            outstanding: true,
                            idempotent,
                            effects: 0,
                        };
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
                    let arrival = Arrival {
                        slot,
                        sequence,
                        link: self.link,
                        idempotent: true,
                    };
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
}

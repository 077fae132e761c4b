//! How much memory incomplete messages may take.
//!
//! A message that arrives in one piece needs none. One that does not has to be kept until the rest
//! is there, and a peer decides how long that takes. So such messages share a fixed budget, in two
//! pools, that strangers do not take from those who were let in. Each client has a share of a pool,
//! and a message goes on at a rate while others want its memory, or its connection ends.

use crate::party::{Party, Share, Shares};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a connection that waits for receive memory asks again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Messages up to this size are not counted.
const SMALL: usize = 16 << 10;
/// What has to arrive of a message within the engine's patience while others want its memory, or the
/// rest of it.
const LEAST: usize = 256 << 10;
/// Why a connection ends whose message does not go on.
pub(crate) const STANDS_STILL: &str =
    "a message stood still, incomplete, while others waited for its memory";
/// Connections that may wait for the budget at a time; each holds what it had already sent.
const MOST_WAITING: usize = 128;

/// The budget.
#[derive(Debug)]
pub(crate) struct ReceiveMemory {
    pools: [Pool; 2],
}

#[derive(Debug)]
struct Pool {
    memory: Arc<Shares>,
    /// The places of those who wait.
    waiting: Arc<Shares>,
}

/// A message of which part is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arriving {
    /// Bytes that it will have.
    pub(crate) bytes: usize,
    /// Bytes that have arrived.
    pub(crate) here: usize,
}

/// What a connection has of the budget, for the message that is arriving on it.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    held: Option<Held>,
    waiting: Option<Share>,
}

/// The share of a message.
#[derive(Debug)]
struct Held {
    _share: Share,
    pool: usize,
    message: Arriving,
    /// When enough of it had arrived last, and how much that was.
    seen: (Instant, usize),
}

/// Whether a connection may go on receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// It may.
    Go,
    /// It may; its message has just got its share.
    Begin,
    /// Others have to give some back first: ask again later.
    Wait,
    /// Too many wait already.
    Never,
}

impl Gathering {
    /// Sees to it that an incomplete message has its share.
    pub(crate) fn share(
        &mut self,
        memory: &ReceiveMemory,
        trusted: bool,
        party: impl FnOnce() -> Party,
        arriving: Option<Arriving>,
    ) -> May {
        let Some(message) = arriving.filter(|arriving| arriving.bytes > SMALL) else {
            self.held = None;
            return May::Go;
        };
        if let Some(held) = self.held.as_mut().filter(|held| held.is_of(message)) {
            held.arrived(message);
            return May::Go;
        }
        self.held = None;
        let (pool, party) = (usize::from(trusted), party());
        let Pool { memory, waiting } = &memory.pools[pool];
        if let Ok(share) = memory.take(party, message.bytes) {
            let seen = (Instant::now(), message.here);
            self.held = Some(Held { _share: share, pool, message, seen });
            self.waiting = None;
            return May::Begin;
        }
        if self.waiting.is_none() {
            self.waiting = waiting.take(party, 1).ok();
        }
        if self.waiting.is_some() { May::Wait } else { May::Never }
    }

    /// Whether the connection waits for a share.
    pub(crate) fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the message holds a share, and for how long too little of it has arrived where others
    /// want it.
    pub(crate) fn stands_still(&self, memory: &ReceiveMemory) -> Option<Option<Duration>> {
        let held = self.held.as_ref()?;
        let wanted = memory.pools[held.pool].waiting.taken() > 0;
        Some(wanted.then(|| held.seen.0.elapsed()))
    }
}

impl Held {
    /// Whether it is the same message still, as far as can be told.
    fn is_of(&self, message: Arriving) -> bool {
        message.bytes == self.message.bytes && message.here >= self.message.here
    }

    fn arrived(&mut self, message: Arriving) {
        self.message = message;
        if message.here >= self.seen.1 + LEAST {
            self.seen = (Instant::now(), message.here);
        }
    }
}

impl ReceiveMemory {
    /// A budget of `limit` bytes in each pool.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let pool = || Pool { memory: Shares::new(limit), waiting: Shares::new(MOST_WAITING) };
        Arc::new(Self { pools: [pool(), pool()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(gathering: &mut Gathering, memory: &ReceiveMemory, who: &str, bytes: usize) -> May {
        let party = || Party::of_peer(who);
        gathering.share(memory, true, party, Some(Arriving { bytes, here: 10 }))
    }

    #[test]
    fn a_pool_is_shared_by_clients_and_given_back() {
        let memory = ReceiveMemory::new(1 << 20);
        let mut theirs: [Gathering; 4] = Default::default();
        let may = theirs.each_mut().map(|one| asks(one, &memory, "greedy", 200 << 10));
        assert_eq!(may, [May::Begin, May::Begin, May::Wait, May::Wait]);
        assert!(theirs[2].waits() && !theirs[0].waits());
        let mut other = Gathering::default();
        assert_eq!(asks(&mut other, &memory, "other", 200 << 10), May::Begin);
        assert!(theirs[0].stands_still(&memory).unwrap().is_some());
        // Strangers have their own.
        let mut stranger = Gathering::default();
        let arriving = Some(Arriving { bytes: 900 << 10, here: 0 });
        let may = stranger.share(&memory, false, || Party::of_peer("greedy"), arriving);
        assert_eq!(may, May::Begin);
        assert_eq!(stranger.stands_still(&memory), Some(None));
        assert_eq!(asks(&mut theirs[0], &memory, "greedy", 100), May::Go);
        assert_eq!(asks(&mut theirs[2], &memory, "greedy", 200 << 10), May::Begin);
        drop((theirs, other, stranger));
        let mut large = Gathering::default();
        assert_eq!(asks(&mut large, &memory, "greedy", 10 << 20), May::Begin);
        let mut places: Vec<Gathering> = Vec::new();
        loop {
            let mut one = Gathering::default();
            match asks(&mut one, &memory, "many", 20 << 10) {
                May::Wait => places.push(one),
                may => break assert_eq!(may, May::Never),
            }
        }
        assert_eq!(places.len(), MOST_WAITING / 2);
        assert_eq!(asks(&mut Gathering::default(), &memory, "another", 20 << 10), May::Wait);
        drop((large, places));
        assert_eq!(asks(&mut Gathering::default(), &memory, "many", 20 << 10), May::Begin);
    }

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let memory = ReceiveMemory::new(1 << 20);
        let (mut slow, mut waits) = (Gathering::default(), Gathering::default());
        assert_eq!(asks(&mut slow, &memory, "slow", 1 << 20), May::Begin);
        assert_eq!(asks(&mut waits, &memory, "other", 1 << 20), May::Wait);
        let began = slow.held.as_ref().unwrap().seen.0;
        let mut goes_on = |here| {
            let arriving = Some(Arriving { bytes: 1 << 20, here });
            slow.share(&memory, true, || unreachable!("it has its share"), arriving);
            slow.held.as_ref().unwrap().seen
        };
        for here in 11..100 {
            assert_eq!(goes_on(here), (began, 10));
        }
        assert_eq!(goes_on(10 + LEAST).1, 10 + LEAST);
    }
}

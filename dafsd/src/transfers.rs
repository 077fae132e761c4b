//! Permits for direct transfers, which bound the memory that these take.
//!
//! A permit is held while bytes travel, which takes as long as the client likes. So a session and a
//! client have only part of the permits, whose turn it is goes round, and who holds a permit while
//! nothing moves loses its connection once another one needs the permit. A transfer that is not given
//! one in time is not made: its bytes travel in messages.

use crate::ops::OpError;
use crate::sessions::SessionId;
use crate::sync::Mutex;
use crate::turns::Turns;
use dafs_proto::Status;
use foldhash::fast::RandomState;
use ordma::{Link, LinkError, Party, Transfer};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A session moves at least [`LEAST`] bytes within this time, or it stands still.
const STALL: Duration = Duration::from_secs(1);
/// See [`STALL`].
const LEAST: u64 = 64 << 10;
/// The same where the engine does not say how much has moved: how long a transfer may take.
const UNTOLD_STALL: Duration = Duration::from_secs(30);
/// How long a transfer waits for its permit before its bytes travel in messages.
const WAIT: Duration = Duration::from_secs(1);

/// Who wants a permit.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// The session.
    pub session: SessionId,
    /// Whose session it is.
    pub party: Party,
}

/// The permits.
#[derive(Debug)]
pub struct Transfers {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    all: usize,
    /// Of one session; what it wants beyond waits for its own transfers.
    session: usize,
    /// Of one client.
    party: usize,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// Sessions that hold or want permits.
    sessions: HashMap<SessionId, Session, RandomState>,
    /// Permits that each client holds.
    parties: HashMap<Party, usize, RandomState>,
    /// Sessions that could have another permit if there were one, and want it.
    turns: Turns<Party, SessionId>,
}

#[derive(Debug)]
struct Session {
    party: Party,
    held: usize,
    /// It is in `turns`.
    in_turn: bool,
    waiting: VecDeque<Arc<Waiting>>,
    moving: Vec<(Arc<dyn Link>, Transfer)>,
    /// Bytes of transfers that have ended.
    moved: u64,
    /// When enough had moved last, and how many bytes that were.
    seen: Option<(Instant, u64)>,
}

/// One that waits.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Locked after the permits' state.
    answer: Mutex<(Answer, Option<Waker>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Permit,
    /// It waited for too long.
    TooLate,
}

impl Waiting {
    fn new(since: Instant) -> Arc<Self> {
        Arc::new(Self { since, answer: Mutex::new((Answer::None, None)) })
    }

    fn answer(&self, answer: Answer) {
        let mut state = self.answer.lock();
        state.0 = answer;
        let waker = state.1.take();
        drop(state);
        // Only queues the task.
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Session {
    fn new(party: Party) -> Self {
        Self {
            party,
            held: 0,
            in_turn: false,
            waiting: VecDeque::new(),
            moving: Vec::new(),
            moved: 0,
            seen: None,
        }
    }

    /// For how long too little has moved, where that is too long.
    fn stalled(&mut self, now: Instant) -> Option<Duration> {
        let told = self.moving.iter().map(|(_, transfer)| transfer.moved());
        let is_told = told.clone().all(|moved| moved.is_some());
        let moved = self.moved + told.flatten().sum::<u64>();
        if self.moving.is_empty() {
            self.seen = None;
            return None;
        }
        let (since, before) = *self.seen.get_or_insert((now, moved));
        if moved >= before + LEAST {
            self.seen = Some((now, moved));
            return None;
        }
        let still = now.saturating_duration_since(since);
        (still >= if is_told { STALL } else { UNTOLD_STALL }).then_some(still)
    }
}

impl State {
    /// Takes a permit where nobody waits for one and no limit is reached: whether it was.
    fn take_at_once(&mut self, asking: Asking, limits: Limits) -> bool {
        if self.held >= limits.all || !self.turns.is_empty() {
            return false;
        }
        let session = self.sessions.entry(asking.session);
        let session = session.or_insert_with(|| Session::new(asking.party));
        let party = self.parties.entry(asking.party).or_default();
        if session.held >= limits.session || *party >= limits.party || !session.waiting.is_empty() {
            return false;
        }
        (self.held, session.held, *party) = (self.held + 1, session.held + 1, *party + 1);
        true
    }

    /// Forgets sessions and clients that hold and want nothing. Left for a while, since most of them
    /// soon hold something again.
    fn forget_idle(&mut self) {
        self.sessions.retain(|_, session| session.held > 0 || !session.waiting.is_empty());
        self.parties.retain(|_, held| *held > 0);
    }

    /// Gives permits to those whose turn it is, as far as there are any.
    fn give(&mut self, limits: Limits) {
        let mut passed_over = Vec::new();
        while self.held < limits.all {
            let Some((party, id)) = self.turns.pop() else { break };
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.in_turn = false;
            if self.parties.get(&party).is_some_and(|held| *held >= limits.party) {
                passed_over.push(id);
                continue;
            }
            if let Some(waiting) = session.waiting.pop_front() {
                session.held += 1;
                self.held += 1;
                *self.parties.entry(party).or_default() += 1;
                waiting.answer(Answer::Permit);
            }
            self.line_up(id, limits);
        }
        passed_over.into_iter().for_each(|id| self.line_up(id, limits));
    }

    /// Sees to it that a session that wants a permit has its turn.
    fn line_up(&mut self, id: SessionId, limits: Limits) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.waiting.is_empty() && session.held < limits.session && !session.in_turn {
            session.in_turn = true;
            self.turns.push(session.party, id);
        }
    }

    /// Whether some could be given a permit if others had fewer.
    fn is_short(&self, limits: Limits) -> bool {
        self.sessions.values().any(|session| session.in_turn)
            || self.held > limits.party
            || self.parties.values().any(|held| *held >= limits.party)
    }

    /// The links of sessions that have stood still for longest, as many as it takes so that there are
    /// permits again for those who want one, and for one client more.
    fn in_the_way(&mut self, limits: Limits, now: Instant) -> Vec<Arc<dyn Link>> {
        let stalled = |(id, session): (&SessionId, &mut Session)| {
            let since = session.stalled(now)?;
            Some((since, *id))
        };
        let mut stalled: Vec<_> = self.sessions.iter_mut().filter_map(stalled).collect();
        if stalled.is_empty() || !self.is_short(limits) {
            return Vec::new();
        }
        stalled.sort_unstable_by_key(|(still, _)| std::cmp::Reverse(*still));
        let wanted = self.sessions.values().filter(|session| session.in_turn).count();
        let mut left = limits.all - self.held;
        let enough = (limits.all - limits.party).saturating_add(wanted);
        let mut links = Vec::new();
        for (_, id) in stalled {
            if left >= enough {
                break;
            }
            let Some(session) = self.sessions.get(&id) else { continue };
            left += session.held;
            links.extend(session.moving.iter().map(|(link, _)| Arc::clone(link)));
        }
        links
    }
}

impl Transfers {
    /// So many permits, at least 1. A session has half of them at most, and a client three quarters.
    #[must_use]
    pub fn new(permits: usize) -> Arc<Self> {
        let all = permits.max(1);
        let limits = Limits { all, session: all.div_ceil(2), party: (all - all / 4).max(1) };
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// Permits that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().held
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// [`Status::Transfer`] where there was none in time: the client is to ask for the bytes, or to
    /// send them, in a message.
    pub fn acquire(
        self: &Arc<Self>,
        asking: Asking,
        now: Instant,
    ) -> impl Future<Output = Result<Permit, OpError>> + Send + use<> {
        let pool = Arc::clone(self);
        let mut state = self.state.lock();
        if state.take_at_once(asking, self.limits) {
            return Acquiring { pool, asking, step: Acquire::Taken };
        }
        let waiting = Waiting::new(now);
        let session = state.sessions.entry(asking.session);
        let session = session.or_insert_with(|| Session::new(asking.party));
        session.waiting.push_back(Arc::clone(&waiting));
        state.line_up(asking.session, self.limits);
        state.give(self.limits);
        // Where there is none for it, perhaps those have one who do nothing with it.
        let has_none = waiting.answer.lock().0 == Answer::None;
        let links = if has_none { state.in_the_way(self.limits, now) } else { Vec::new() };
        drop(state);
        close(links);
        Acquiring { pool, asking, step: Acquire::Waits(waiting) }
    }

    /// A permit is free again.
    fn release(&self, asking: Asking) {
        let mut state = self.state.lock();
        state.held -= 1;
        if let Some(theirs) = state.parties.get_mut(&asking.party) {
            *theirs -= 1;
        }
        if let Some(session) = state.sessions.get_mut(&asking.session) {
            session.held -= 1;
        }
        state.line_up(asking.session, self.limits);
        state.give(self.limits);
    }

    /// Does what time asks for: who stands still while others want its permits loses its connection,
    /// and who has waited for too long is told so.
    pub fn tick(&self, now: Instant) {
        let mut state = self.state.lock();
        let links = state.in_the_way(self.limits, now);
        let mut late = Vec::new();
        for session in state.sessions.values_mut() {
            // Who has all the permits that it may have waits for its own transfers.
            if !session.in_turn {
                continue;
            }
            let is_late =
                |waiting: &Arc<Waiting>| now.saturating_duration_since(waiting.since) >= WAIT;
            let count = session.waiting.iter().take_while(|waiting| is_late(waiting)).count();
            late.extend(session.waiting.drain(..count));
        }
        state.forget_idle();
        late.iter().for_each(|waiting| waiting.answer(Answer::TooLate));
        drop(state);
        close(links);
    }
}

fn close(links: Vec<Arc<dyn Link>>) {
    for link in links {
        link.close("its direct transfers stand still, and others wait for their turn");
    }
}

/// A permit that is asked for.
struct Acquiring {
    pool: Arc<Transfers>,
    asking: Asking,
    step: Acquire,
}

enum Acquire {
    /// There was one at once.
    Taken,
    Waits(Arc<Waiting>),
    /// It has been answered.
    Over,
}

impl Future for Acquiring {
    type Output = Result<Permit, OpError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &self.step {
            Acquire::Taken => Answer::Permit,
            Acquire::Waits(waiting) => {
                let mut state = waiting.answer.lock();
                if state.0 == Answer::None {
                    state.1 = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                state.0
            }
            Acquire::Over => return Poll::Pending,
        };
        self.step = Acquire::Over;
        if answer == Answer::Permit {
            let (pool, asking) = (Arc::clone(&self.pool), self.asking);
            return Poll::Ready(Ok(Permit { pool, asking }));
        }
        let what = "all direct transfers are taken: the bytes have to travel in messages";
        Poll::Ready(Err(OpError { unexecuted: true, ..OpError::new(Status::Transfer, what) }))
    }
}

impl Drop for Acquiring {
    /// Nobody waits any more, or the permit came too late.
    fn drop(&mut self) {
        let waiting = match std::mem::replace(&mut self.step, Acquire::Over) {
            Acquire::Taken => return self.pool.release(self.asking),
            Acquire::Waits(waiting) => waiting,
            Acquire::Over => return,
        };
        let mut state = self.pool.state.lock();
        if let Some(session) = state.sessions.get_mut(&self.asking.session) {
            session.waiting.retain(|other| !Arc::ptr_eq(other, &waiting));
        }
        let answer = waiting.answer.lock().0;
        state.line_up(self.asking.session, self.pool.limits);
        drop(state);
        if answer == Answer::Permit {
            self.pool.release(self.asking);
        }
    }
}

/// The right to a direct transfer; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    pool: Arc<Transfers>,
    asking: Asking,
}

impl Permit {
    /// Waits for a transfer over this link, and has it looked at meanwhile whether it moves.
    ///
    /// # Errors
    /// The transfer's.
    pub async fn until(
        &self,
        link: &Arc<dyn Link>,
        transfer: Transfer,
    ) -> Result<Vec<u8>, LinkError> {
        /// Ends the looking, also where nobody waits any more.
        struct Looking<'a>(&'a Permit, Transfer);
        impl Drop for Looking<'_> {
            fn drop(&mut self) {
                self.0.ended(&self.1);
            }
        }
        if let Some(session) = self.pool.state.lock().sessions.get_mut(&self.asking.session) {
            if session.moving.is_empty() {
                session.seen = None;
            }
            session.moving.push((Arc::clone(link), transfer.clone()));
        }
        let looking = Looking(self, transfer);
        looking.1.clone().await
    }

    fn ended(&self, transfer: &Transfer) {
        let mut state = self.pool.state.lock();
        let Some(session) = state.sessions.get_mut(&self.asking.session) else { return };
        let ended = session.moving.iter().position(|(_, other)| other.is(transfer));
        let ended = ended.map(|at| session.moving.swap_remove(at));
        session.moved += ended.and_then(|(_, transfer)| transfer.moved()).unwrap_or(0);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.release(self.asking);
    }
}

#[cfg(test)]
mod tests;

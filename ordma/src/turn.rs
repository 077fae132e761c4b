//! Who drives: of all threads that wait on a client's connections, one at a time receives from each
//! and the others sleep until it has made progress or leaves.

use crate::engine::LinkError;
use crate::wait::Waiter;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A client has at most two connections that are waited on.
pub(crate) const LANES: usize = 2;
/// The lane of messages and transfers.
pub(crate) const MESSAGES: usize = 0;
/// The lane of one-sided reads.
pub(crate) const READS: usize = 1;
/// Among the epochs: calls of [`Turn::interrupt`].
const INTERRUPTS: usize = LANES;
/// Receives in a row, where none completes anything, before another look at the rest.
const AT_ONCE: usize = 64;

/// A connection that can be driven.
pub(crate) trait Lane: Send + Sync {
    /// What to wait on.
    fn socket(&self) -> BorrowedFd<'_>;
    /// Receives once, without blocking, and handles what has arrived.
    fn receive(&self) -> Result<Handled, LinkError>;
    /// Someone is about to sleep until the descriptor is readable: sees to it that it will be.
    /// `true` where something may have arrived already.
    fn arm(&self) -> Result<bool, LinkError> {
        Ok(false)
    }
    /// Whether something waits to be sent, once the descriptor takes it.
    fn wants_to_write(&self) -> bool {
        false
    }
    /// Sends what waits, as far as it goes.
    fn flush(&self) -> Result<(), LinkError> {
        Ok(())
    }
}

/// What a look at a lane brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handled {
    /// Something was completed.
    pub(crate) progress: bool,
    /// There may be more at once.
    pub(crate) more: bool,
}

/// The lanes of a client; the second is `None` where reads need none.
pub(crate) type Lanes<'a> = [Option<&'a dyn Lane>; LANES];

/// The end of a wait, which begins when it is first asked for: what is there at once takes no look at
/// the clock.
struct Deadline {
    timeout: Duration,
    at: OnceCell<Option<Instant>>,
}

impl Deadline {
    fn new(timeout: Duration) -> Self {
        Self { timeout, at: OnceCell::new() }
    }

    /// `None` where it is further away than the clock goes.
    fn get(&self) -> Option<Instant> {
        *self.at.get_or_init(|| Instant::now().checked_add(self.timeout))
    }

    fn left(&self) -> Option<Duration> {
        self.get().map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// The order of those who wait.
#[derive(Debug)]
pub(crate) struct Turn {
    id: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Progress on each lane, and interrupts.
    epochs: [AtomicU64; LANES + 1],
    /// Wakes the leader of each lane.
    kicks: [OwnedFd; LANES],
    waiters: [Mutex<Waiter>; LANES],
}

#[derive(Debug, Default)]
struct State {
    /// By lane: someone receives from it.
    led: [bool; LANES],
    /// By lane: its leader sleeps.
    asleep: [bool; LANES],
    /// By lane: its leader also waits for what another leader does.
    curious: [bool; LANES],
    followers: usize,
}

/// Distinguishes the clients of this process.
static TURNS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// What this thread had seen when it last returned from waiting, and on which client. Progress
    /// since then is news to it: a thread finds its result missing, and before it waits another
    /// thread delivers it.
    static SEEN: Cell<(u64, [u64; LANES + 1])> = const { Cell::new((0, [0; LANES + 1])) };
}

impl Turn {
    /// An order without anyone in it. Leaders spin for at most `spin`.
    pub(crate) fn new(spin: Duration) -> io::Result<Self> {
        let kick = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            id: TURNS.fetch_add(1, Ordering::Relaxed),
            state: Mutex::default(),
            changed: Condvar::new(),
            epochs: Default::default(),
            kicks: [kick()?, kick()?],
            waiters: [Mutex::new(Waiter::new(spin)), Mutex::new(Waiter::new(spin))],
        })
    }

    /// Waits until there is news on one of the `wanted` lanes, at most `timeout`.
    pub(crate) fn drive(
        &self,
        lanes: Lanes<'_>,
        wanted: [bool; LANES],
        timeout: Duration,
    ) -> Result<(), LinkError> {
        let deadline = Deadline::new(timeout);
        let seen = self.seen();
        let mut state = self.lock();
        let mut news;
        let mine = loop {
            news = self.news(wanted, &seen);
            let free = |lane: usize| wanted[lane] && !state.led[lane];
            let mine = [free(MESSAGES), free(READS)];
            if news || mine.contains(&true) {
                break mine;
            }
            state.followers += 1;
            let (again, late) = self.wait(state, &deadline);
            state = again;
            state.followers -= 1;
            if late {
                break [false; LANES];
            }
        };
        let curious = mine != wanted;
        for lane in lanes_of(mine) {
            (state.led[lane], state.curious[lane]) = (true, curious);
        }
        drop(state);
        if mine == [false; LANES] {
            self.see();
            return Ok(());
        }
        let leading = Leading { turn: self, mine };
        let result = if news {
            // No wait, but a look: who comes with news each time must not starve.
            self.look_at(lanes, mine).map(|_| ())
        } else {
            self.lead(lanes, mine, wanted, &seen, &deadline)
        };
        drop(leading);
        self.see();
        result
    }

    /// Waits until the first lane is writable, and receives from it meanwhile where no one else
    /// does.
    pub(crate) fn drive_writable(&self, lane: &dyn Lane) -> Result<(), LinkError> {
        const SLICE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let mut state = self.lock();
        let lead = !state.led[MESSAGES];
        state.led[MESSAGES] = true;
        drop(state);
        let leading = lead.then(|| Leading { turn: self, mine: [true, false] });
        let events = if lead { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT };
        let socket = lane.socket();
        let mut fds = [PollFd::from_borrowed_fd(socket, events)];
        let _ = poll(&mut fds, Some(&SLICE));
        if leading.is_some()
            && fds[0].revents().intersects(PollFlags::IN | ENDS)
            && self.look(Some(lane))?
        {
            self.progress([true, false]);
        }
        Ok(())
    }

    /// Ends every wait under way.
    pub(crate) fn interrupt(&self) {
        let state = self.lock();
        self.epochs[INTERRUPTS].fetch_add(1, Ordering::Release);
        if state.followers > 0 {
            self.changed.notify_all();
        }
        for lane in 0..LANES {
            if state.asleep[lane] {
                self.kick(lane);
            }
        }
    }

    /// Wakes the leader of a lane, which has something to send.
    pub(crate) fn nudge(&self, lane: usize) {
        if self.lock().asleep[lane] {
            self.kick(lane);
        }
    }

    fn lead(
        &self,
        lanes: Lanes<'_>,
        mine: [bool; LANES],
        wanted: [bool; LANES],
        seen: &[u64; LANES + 1],
        deadline: &Deadline,
    ) -> Result<(), LinkError> {
        let first = if mine[MESSAGES] { MESSAGES } else { READS };
        let budget = self.waiter(first).budget();
        if !budget.is_zero() {
            // What is there at once says nothing of what spinning is worth, and takes no clock.
            if self.look_at(lanes, mine)? {
                return Ok(());
            }
            let start = Instant::now();
            loop {
                let now = Instant::now();
                if self.news(wanted, seen) || deadline.get().is_some_and(|deadline| now >= deadline)
                {
                    return Ok(());
                }
                if self.look_at(lanes, mine)? {
                    self.waiter(first).hit();
                    return Ok(());
                }
                if now - start >= budget {
                    self.waiter(first).miss();
                    break;
                }
                std::hint::spin_loop();
            }
        }
        while let Some(arrived) = self.sleep(lanes, mine, wanted, seen, deadline)? {
            if self.look_at(lanes, arrived)? {
                break;
            }
        }
        Ok(())
    }

    /// Sleeps until something has arrived: on which lanes. `None` where the wait is over for
    /// another reason.
    fn sleep(
        &self,
        lanes: Lanes<'_>,
        mine: [bool; LANES],
        wanted: [bool; LANES],
        seen: &[u64; LANES + 1],
        deadline: &Deadline,
    ) -> Result<Option<[bool; LANES]>, LinkError> {
        let first = if mine[MESSAGES] { MESSAGES } else { READS };
        {
            let mut state = self.lock();
            if self.news(wanted, seen) {
                return Ok(None);
            }
            // Before it is asked what waits to be sent: whoever queues something later kicks.
            state.asleep[first] = true;
        }
        let mut arrived = [false; LANES];
        for lane in lanes_of(mine) {
            if let Some(lane_of) = lanes[lane] {
                arrived[lane] = lane_of.arm()?;
            }
        }
        if arrived != [false; LANES] {
            self.lock().asleep[first] = false;
            return Ok(Some(arrived));
        }
        let mut fds = [const { None }; LANES];
        for lane in lanes_of(mine) {
            let Some(driven) = lanes[lane] else { continue };
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, driven.wants_to_write());
            fds[lane] = Some(PollFd::from_borrowed_fd(driven.socket(), events));
        }
        let kick = PollFd::new(&self.kicks[first], PollFlags::IN);
        // Those that are not mine are asked about nothing, so that the places stay the same.
        let idle = || PollFd::new(&self.kicks[first], PollFlags::empty());
        let [a, b] = fds;
        let mut fds = [a.unwrap_or_else(idle), b.unwrap_or_else(idle), kick];
        let left = deadline.left();
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let result = poll(&mut fds, timeout.as_ref());
        self.lock().asleep[first] = false;
        if fds[LANES].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.kicks[first], &mut [0u8; 8]);
        }
        let late = matches!(result, Ok(0)) && timeout.is_some();
        if late || self.news(wanted, seen) {
            return Ok(None);
        }
        for lane in lanes_of(mine) {
            let events = fds[lane].revents();
            arrived[lane] = events.intersects(PollFlags::IN | ENDS);
            if events.contains(PollFlags::OUT)
                && let Some(driven) = lanes[lane]
            {
                driven.flush()?;
            }
        }
        Ok(Some(arrived))
    }

    /// Receives what has arrived on these lanes, and tells of it if anything was completed.
    fn look_at(&self, lanes: Lanes<'_>, which: [bool; LANES]) -> Result<bool, LinkError> {
        let mut progress = [false; LANES];
        for lane in lanes_of(which) {
            progress[lane] = self.look(lanes[lane])?;
        }
        let any = progress.contains(&true);
        if any {
            self.progress(progress);
        }
        Ok(any)
    }

    /// Receives what has arrived on a lane; whether anything was completed.
    fn look(&self, lane: Option<&dyn Lane>) -> Result<bool, LinkError> {
        let Some(lane) = lane else { return Ok(false) };
        let mut progress = false;
        for _ in 0..AT_ONCE {
            let handled = lane.receive()?;
            progress = handled.progress;
            if progress || !handled.more {
                break;
            }
        }
        Ok(progress)
    }

    /// Tells of progress on the lanes.
    fn progress(&self, lanes: [bool; LANES]) {
        let state = self.lock();
        for lane in lanes_of(lanes) {
            self.epochs[lane].fetch_add(1, Ordering::Release);
        }
        if state.followers > 0 {
            self.changed.notify_all();
        }
        for lane in lanes_of(lanes.map(|progress| !progress)) {
            if state.asleep[lane] && state.curious[lane] {
                self.kick(lane);
            }
        }
    }

    fn kick(&self, lane: usize) {
        // Can only fail where the counter is full, and then the leader wakes anyway.
        let _ = rustix::io::write(&self.kicks[lane], &1u64.to_ne_bytes());
    }

    fn epochs(&self) -> [u64; LANES + 1] {
        [0, 1, 2].map(|i: usize| self.epochs[i].load(Ordering::Acquire))
    }

    fn news(&self, wanted: [bool; LANES], seen: &[u64; LANES + 1]) -> bool {
        let now = self.epochs();
        let news = |i: usize| now[i] != seen[i];
        news(INTERRUPTS) || (0..LANES).any(|lane| wanted[lane] && news(lane))
    }

    /// What this thread has seen; nothing that is, where it was elsewhere meanwhile.
    fn seen(&self) -> [u64; LANES + 1] {
        let (id, seen) = SEEN.get();
        if id == self.id { seen } else { [u64::MAX; LANES + 1] }
    }

    fn see(&self) {
        SEEN.set((self.id, self.epochs()));
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: &Deadline,
    ) -> (MutexGuard<'a, State>, bool) {
        let Some(left) = deadline.left() else {
            return (self.changed.wait(state).unwrap_or_else(PoisonError::into_inner), false);
        };
        if left.is_zero() {
            return (state, true);
        }
        let (state, _) =
            self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        (state, false)
    }

    fn waiter(&self, lane: usize) -> MutexGuard<'_, Waiter> {
        self.waiters[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ENDS: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

fn lanes_of(set: [bool; LANES]) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |&lane| set[lane])
}

/// Leads until dropped, also by a panic in a callback.
struct Leading<'a> {
    turn: &'a Turn,
    mine: [bool; LANES],
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let mut state = self.turn.lock();
        for lane in lanes_of(self.mine) {
            (state.led[lane], state.curious[lane]) = (false, false);
        }
        if state.followers > 0 {
            self.turn.changed.notify_all();
        }
    }
}

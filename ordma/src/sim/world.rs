//! What a test sees of a world, and what it can command.

use super::core::{Core, Step};
use super::event::{Event, What};
use super::faults::Faults;
use crate::Transfer;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Events after which [`World::run_until_idle`] takes the world for one that never comes to rest.
const RESTLESS: u64 = 10_000_000;

/// A simulated world: its clock, network and weather. Clones share it. When a test panics, the
/// first clone to be dropped prints the seed and the last events.
///
/// Links are named by [`Link::id`](crate::Link::id); commands for a link that is over do nothing.
#[derive(Clone)]
pub struct World {
    core: Arc<Core>,
}

/// Names a hook; see [`World::on_pump`].
#[derive(Debug, PartialEq, Eq)]
pub struct PumpId(u64);

/// What is under way, or held for someone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Connections that are not over on both sides.
    pub connections: usize,
    /// Messages, parts of transfers and of reads on their way.
    pub flying: usize,
    /// Bytes that count as queued for clients.
    pub queued: usize,
    /// Transfers that have not ended.
    pub transfers: usize,
    /// Batches of one-sided reads that have not ended.
    pub reads: usize,
}

impl World {
    /// A world in fair weather, at time zero.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { core: Core::new(seed) }
    }

    /// A world with this weather from its beginning.
    #[must_use]
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        let world = Self::new(seed);
        world.set_faults(faults);
        world
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The seed, to run it again.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.core.seed
    }

    /// The weather now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.core.with(|state| state.faults.clone())
    }

    /// Changes the weather for what is sent from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.core.with(|state| state.faults = faults);
    }

    // -----------------------------------------------------------------------------------------
    // Time

    /// The virtual time, as an instant.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.core.instant()
    }

    /// The virtual time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.core.with(|state| state.now)
    }

    /// Lets this much time pass, with all that happens in it.
    pub fn advance(&self, time: Duration) {
        let end = self.elapsed() + time;
        while self.core.step(end, |_| false) == Step::Ran {}
    }

    /// Lets happen whatever is still to happen; how many events that were. The clock stands at the
    /// last of them.
    ///
    /// # Panics
    /// When it does not end, as with a timer that sets itself again.
    pub fn run_until_idle(&self) -> u64 {
        let mut events = 0;
        while self.core.step(Duration::MAX, |_| false) == Step::Ran {
            events += 1;
            assert!(events < RESTLESS, "the world does not come to rest");
        }
        events
    }

    /// Lets time pass until `done`, which is asked after each event, or at most this much; whether
    /// it was done.
    pub fn run_until(&self, time: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = self.elapsed() + time;
        loop {
            if done() {
                return true;
            }
            if self.core.step(end, |_| false) == Step::Idle {
                return done();
            }
        }
    }

    /// Lets time pass until the future is ready, or at most this much.
    pub fn block_on<F: Future>(&self, time: Duration, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut result = None;
        self.run_until(time, || {
            if let Poll::Ready(value) =
                future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                result = Some(value);
            }
            result.is_some()
        });
        result
    }

    /// Calls `f` after this much time.
    pub fn after(&self, time: Duration, f: impl FnOnce() + Send + 'static) {
        self.core.with(|state| {
            let at = state.now.saturating_add(time);
            state.schedule(at, Event { conn: 0, channel: None, what: What::Call(Box::new(f)) });
        });
    }

    /// Ready after this much time.
    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send + 'static {
        let done = Transfer::new();
        let timer = done.clone();
        self.after(time, move || timer.complete(Ok(Vec::new())));
        async move {
            let _ = done.await;
        }
    }

    /// Has `pump` run what others queued, such as the tasks of a server without threads. Called
    /// before and after each event, together with all other hooks, until none says that anything
    /// ran.
    pub fn on_pump(&self, pump: Box<dyn Fn() -> bool + Send + Sync>) -> PumpId {
        PumpId(self.core.add_pump(pump))
    }

    /// Takes a hook away and drops it.
    pub fn remove_pump(&self, id: PumpId) {
        self.core.remove_pump(id.0);
    }

    // -----------------------------------------------------------------------------------------
    // Looking back

    /// A number for all that happened so far: kinds, times and sizes of the events, not contents.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.core.with(|state| state.trace.hash())
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.core.with(|state| state.trace.events())
    }

    /// What is under way. All zero once every connection is over.
    #[must_use]
    pub fn outstanding(&self) -> Outstanding {
        self.core.with(|state| {
            let conns = || state.conns.values();
            let servers = || conns().filter_map(|conn| conn.server.as_ref());
            Outstanding {
                connections: conns().count(),
                flying: state.queue.values().filter(|event| event.channel.is_some()).count(),
                queued: conns().map(|conn| conn.queued).sum(),
                transfers: servers().map(|server| server.transfers.len()).sum(),
                reads: conns().map(|conn| conn.client.batches.len()).sum(),
            }
        })
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.with(|state| {
            let (seed, events) = (self.core.seed, state.trace.events());
            writeln!(
                f,
                "sim: seed {seed}, {:?} and {events} events after the beginning",
                state.now
            )?;
            write!(f, "{}", state.trace)
        })
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.core.seed).finish_non_exhaustive()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.core.told.swap(true, Ordering::Relaxed) {
            eprint!("{self}");
        }
    }
}

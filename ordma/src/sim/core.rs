//! The pump: takes one event after the other and calls whom it concerns.
//!
//! The state is behind one mutex that is never held while somebody else's code runs. Callbacks run
//! between events, one event's at a time: whoever pumps holds the *turn*, and other threads that
//! want to pump wait for it. A callback may send, read, close and even wait (that pumps on, on the
//! same thread); all of it only queues events.

use super::state::State;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Something to be run without the lock: a callback, a completion, a drop of what others gave us.
pub(super) type Call = Box<dyn FnOnce() + Send>;

/// Work that others queued; whether any ran.
pub(super) type Pump = Box<dyn Fn() -> bool + Send + Sync>;

pub(super) struct Core {
    state: Mutex<State>,
    /// The turn is free, or something has happened.
    turn: Condvar,
    pumps: Mutex<Vec<(u64, Arc<Hook>)>>,
    /// When the world began, on the scale of `Instant`; the clock is not looked at again.
    base: Instant,
    pub(super) seed: u64,
    /// The seed has been told.
    pub(super) told: AtomicBool,
}

struct Hook {
    pump: Pump,
    /// Skips the hook where what it runs waits and so pumps in its turn.
    running: AtomicBool,
}

/// What [`Core::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// One event happened.
    Ran,
    /// Nothing is left to happen until the limit, which is now.
    Idle,
    /// What the caller waits for is there.
    Enough,
}

impl Core {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new_cyclic(|core| Self {
            state: Mutex::new(State::new(seed, Weak::clone(core))),
            turn: Condvar::new(),
            pumps: Mutex::default(),
            base: Instant::now(),
            seed,
            told: AtomicBool::new(false),
        })
    }

    /// Looks at or changes the state, and then runs what that calls for.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = f(&mut state);
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        calls.into_iter().for_each(|call| call());
        result
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + self.lock().now
    }

    /// Runs the next event that happens not after `limit`, unless `enough` says that the caller has
    /// what it waits for.
    pub(super) fn step(&self, limit: Duration, enough: impl Fn(&State) -> bool) -> Step {
        let me = std::thread::current().id();
        let mut state = self.lock();
        let nested = loop {
            if enough(&state) {
                return Step::Enough;
            }
            match state.turn {
                None => break false,
                Some(thread) if thread == me => break true,
                Some(_) => state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.turn = Some(me);
        drop(state);
        let _turn = Turn { core: self, nested };

        self.run_pumps();
        let mut state = self.lock();
        if enough(&state) {
            return Step::Enough;
        }
        let next = state.queue.first_key_value().map(|(key, _)| *key);
        let Some(key) = next.filter(|(at, _)| *at <= limit) else {
            // Without a limit the clock stands still when there is nothing more to come.
            if limit < Duration::MAX {
                state.now = state.now.max(limit);
            }
            return Step::Idle;
        };
        if let Some(event) = state.queue.remove(&key) {
            state.now = state.now.max(key.0);
            state.execute(event);
        }
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        calls.into_iter().for_each(|call| call());
        self.run_pumps();
        Step::Ran
    }

    /// Wakes those that wait for their turn, to look again at what they wait for.
    pub(super) fn nudge(&self) {
        drop(self.lock());
        self.turn.notify_all();
    }

    pub(super) fn add_pump(&self, pump: Pump) -> u64 {
        let id = self.with(State::next_id);
        let hook = Arc::new(Hook { pump, running: AtomicBool::new(false) });
        self.pumps().push((id, hook));
        id
    }

    pub(super) fn remove_pump(&self, id: u64) {
        let mut pumps = self.pumps();
        let removed = pumps.iter().position(|(other, _)| *other == id).map(|at| pumps.remove(at));
        drop(pumps);
        // Dropped without the lock: it may own anything.
        drop(removed);
    }

    /// Runs all hooks until none has anything left to do.
    fn run_pumps(&self) {
        let hooks: Vec<_> = self.pumps().iter().map(|(_, hook)| Arc::clone(hook)).collect();
        let mut ran = !hooks.is_empty();
        while ran {
            ran = false;
            for hook in &hooks {
                if !hook.running.swap(true, Ordering::Relaxed) {
                    let _running = Running(&hook.running);
                    ran |= (hook.pump)();
                }
            }
        }
    }

    fn pumps(&self) -> MutexGuard<'_, Vec<(u64, Arc<Hook>)>> {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed still wants to know the seed and the last events.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the turn back, after a panic too.
struct Turn<'a> {
    core: &'a Core,
    nested: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.nested {
            self.core.lock().turn = None;
        }
        // Those who wait for something that has happened look even if the turn is not free yet.
        self.core.turn.notify_all();
    }
}

struct Running<'a>(&'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Nothing will happen any more; what is awaited ends all the same, so that no task and what
        // it owns waits for ever.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let conns: Vec<_> = state.conns.keys().copied().collect();
        let error = super::end::lost("the world", "it has ended");
        for id in conns {
            state.abandon(id, &error);
        }
        let hosts: Vec<_> = state.hosts.keys().copied().collect();
        hosts.into_iter().for_each(|host| state.stop_listener(host, true));
        std::mem::take(&mut state.calls).into_iter().for_each(|call| call());
    }
}

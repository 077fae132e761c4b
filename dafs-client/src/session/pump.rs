//! Who drives the connection.
//!
//! At any time at most one thread, the *leader*, is in [`Endpoint::drive`]; it handles what arrives
//! for everyone. A thread that has to wait leads if nobody does, so that a single caller waits for
//! its page with no other thread in between; else it follows: it sleeps until the leader has
//! handled what it waits for, or until the lead is free. Futures of the asynchronous interface are
//! driven by one more thread, the reactor, which is started when the first of them has to wait.

use super::{Link, Session, lock};
use ordma::{Endpoint, Interest};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The longest single wait: bounds what a wake-up lost between two threads can cost.
pub(super) const DRIVE: Duration = Duration::from_millis(50);

const MESSAGES: u8 = 1;
const READS: u8 = 2;

/// Wakes a thread that waits for a future.
#[derive(Debug)]
pub(crate) struct ThreadWaker {
    thread: Thread,
    woken: AtomicBool,
}

impl ThreadWaker {
    pub(crate) fn new() -> Self {
        Self { thread: std::thread::current(), woken: AtomicBool::new(false) }
    }

    /// Forgets former wake-ups; the future must be polled afterwards.
    pub(crate) fn reset(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

thread_local! {
    static ME: (Arc<ThreadWaker>, Waker) = {
        let me = Arc::new(ThreadWaker::new());
        let waker = Waker::from(Arc::clone(&me));
        (me, waker)
    };
}

/// Who leads, and who waits for it.
#[derive(Debug)]
pub(crate) struct Pump {
    roles: Mutex<Roles>,
    /// What the leader's current wait covers.
    covered: AtomicU8,
    /// One-sided batches under way that somebody waits for.
    pub(super) reads: AtomicUsize,
    /// Messages have not been looked at for a while.
    overdue: AtomicBool,
    reactor: Reactor,
}

#[derive(Debug, Default)]
struct Roles {
    led: bool,
    followers: VecDeque<Arc<ThreadWaker>>,
}

#[derive(Debug, Default)]
struct Reactor {
    state: Mutex<ReactorState>,
    wanted: Condvar,
}

#[derive(Debug, Default)]
struct ReactorState {
    running: bool,
    stop: bool,
    /// Asynchronous operations that wait.
    waiting: usize,
}

impl Pump {
    pub(super) fn new() -> Self {
        Self {
            roles: Mutex::default(),
            covered: AtomicU8::new(0),
            reads: AtomicUsize::new(0),
            overdue: AtomicBool::new(false),
            reactor: Reactor::default(),
        }
    }

    fn lead(&self) -> Option<Lead<'_>> {
        let mut roles = lock(&self.roles);
        if roles.led {
            return None;
        }
        roles.led = true;
        Some(Lead(self))
    }

    /// The lead, or a place among the followers.
    fn lead_or_follow(&self, me: &Arc<ThreadWaker>) -> Option<Lead<'_>> {
        let mut roles = lock(&self.roles);
        if roles.led {
            roles.followers.push_back(Arc::clone(me));
            return None;
        }
        roles.led = true;
        Some(Lead(self))
    }

    /// Leaves the followers: takes the lead if it is free and `wanted`, else offers it to the next.
    fn unfollow(&self, me: &Arc<ThreadWaker>, wanted: bool) -> Option<Lead<'_>> {
        let mut roles = lock(&self.roles);
        roles.followers.retain(|follower| !Arc::ptr_eq(follower, me));
        if wanted && !roles.led {
            roles.led = true;
            return Some(Lead(self));
        }
        Self::offer(&roles);
        None
    }

    fn offer(roles: &Roles) {
        if !roles.led
            && let Some(next) = roles.followers.front()
        {
            next.thread.unpark();
        }
    }

    /// Lets everyone who waits look at the state again: the connection came or went.
    pub(super) fn kick(&self) {
        for follower in &lock(&self.roles).followers {
            follower.thread.unpark();
        }
    }
}

/// The right to drive, given up when dropped.
struct Lead<'a>(&'a Pump);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.0.covered.store(0, Ordering::SeqCst);
        let mut roles = lock(&self.0.roles);
        roles.led = false;
        Pump::offer(&roles);
    }
}

impl Session {
    /// Runs a future to its end in this thread, which drives the connection while it waits.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        // Without a limit the future always comes to its end.
        loop_until(self, future, || false).unwrap_or_else(|| unreachable!())
    }

    /// The same, unless `cancelled` says to leave it; the future is dropped then.
    pub(crate) fn block_on_unless<F: Future>(
        &self,
        future: F,
        cancelled: impl Fn() -> bool,
    ) -> Option<F::Output> {
        loop_until(self, future, cancelled)
    }

    /// Waits in this thread until `me` is woken, or not much longer than until `deadline`.
    pub(crate) fn wait(&self, me: &Arc<ThreadWaker>, deadline: Option<Instant>) {
        self.turn(me, || deadline.is_some_and(|deadline| self.now() >= deadline));
    }

    /// Drives or follows until `me` is woken, or for some time.
    fn turn(&self, me: &Arc<ThreadWaker>, cancelled: impl Fn() -> bool) {
        let mut lead = self.pump.lead_or_follow(me);
        if lead.is_none() {
            self.widen();
            if !me.is_woken() {
                std::thread::park_timeout(DRIVE);
            }
            lead = self.pump.unfollow(me, !me.is_woken());
        }
        if let Some(lead) = lead {
            while !me.is_woken() && !cancelled() {
                self.drive_once(&lead, DRIVE);
            }
        }
    }

    /// What somebody waits for.
    fn wanted(&self) -> u8 {
        let messages = if lock(&self.state).slots.used() > 0 { MESSAGES } else { 0 };
        let reads = if self.pump.reads.load(Ordering::SeqCst) > 0 { READS } else { 0 };
        messages | reads
    }

    /// Makes the leader look again if it does not wait for all that is wanted.
    fn widen(&self) {
        let covered = self.pump.covered.load(Ordering::SeqCst);
        if covered != 0
            && self.wanted() & !covered != 0
            && let Some((live, _)) = self.live()
        {
            live.endpoint.interrupt();
        }
    }

    fn drive_once(&self, _lead: &Lead<'_>, timeout: Duration) {
        let (endpoint, messages): (Arc<dyn Endpoint>, bool) = {
            let state = lock(&self.state);
            match &state.link {
                Link::Up(endpoint) | Link::Recovering(endpoint) => {
                    (Arc::clone(endpoint), state.slots.used() > 0)
                }
                Link::Down(outage) if outage.deadline.is_some() => {
                    drop(state);
                    return self.reconnect();
                }
                Link::Down(_) | Link::Closed => {
                    drop(state);
                    std::thread::park_timeout(timeout.min(Duration::from_millis(1)));
                    return;
                }
            }
        };
        let reads = self.pump.reads.load(Ordering::SeqCst) > 0;
        let overdue = self.pump.overdue.load(Ordering::Relaxed)
            && self.pump.overdue.swap(false, Ordering::Relaxed);
        let messages = messages || overdue || !reads;
        let covered = if messages { MESSAGES } else { 0 } | if reads { READS } else { 0 };
        self.pump.covered.store(covered, Ordering::SeqCst);
        endpoint.drive(Interest { messages, reads }, timeout);
    }

    /// Handles what has arrived while nobody waited, such as requests to let go of memory. If
    /// another thread leads it will.
    pub(super) fn tend(&self) {
        self.pump.overdue.store(true, Ordering::Relaxed);
        if let Some(lead) = self.pump.lead() {
            self.drive_once(&lead, Duration::ZERO);
        }
    }

    /// Connects again if nobody else does.
    pub(super) fn tend_outage(&self) {
        let down = matches!(&lock(&self.state).link, Link::Down(_));
        if down && let Some(_lead) = self.pump.lead() {
            self.try_again();
        }
    }

    /// Ends the reactor.
    pub(super) fn stop_reactor(&self) {
        lock(&self.pump.reactor.state).stop = true;
        self.pump.reactor.wanted.notify_all();
    }

    /// An asynchronous operation waits: sees to it that somebody drives.
    fn attend(&self) {
        let mut reactor = lock(&self.pump.reactor.state);
        reactor.waiting += 1;
        if !reactor.running && !reactor.stop {
            let this = self.this.clone();
            let thread = std::thread::Builder::new().name("dafs-reactor".into());
            let spawned = thread.spawn(move || {
                let me = Arc::new(ThreadWaker::new());
                while let Some(session) = this.upgrade() {
                    if !session.react(&me) {
                        break;
                    }
                }
            });
            match spawned {
                Ok(_) => reactor.running = true,
                Err(error) => tracing::error!(%error, "cannot start the reactor thread"),
            }
        }
        drop(reactor);
        self.pump.reactor.wanted.notify_one();
        self.widen();
    }

    fn unattend(&self) {
        lock(&self.pump.reactor.state).waiting -= 1;
    }

    /// One round of the reactor; `false` to end.
    fn react(&self, me: &Arc<ThreadWaker>) -> bool {
        let reactor = lock(&self.pump.reactor.state);
        // Bounded, so that a session which everyone has left can end.
        let (reactor, _) = self
            .pump
            .reactor
            .wanted
            .wait_timeout_while(reactor, Duration::from_millis(200), |r| r.waiting == 0 && !r.stop)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if reactor.stop {
            return false;
        }
        let waiting = reactor.waiting > 0;
        drop(reactor);
        if waiting {
            let mut lead = self.pump.lead_or_follow(me);
            if lead.is_none() {
                self.widen();
                std::thread::park_timeout(DRIVE);
                lead = self.pump.unfollow(me, true);
            }
            if let Some(lead) = lead {
                self.drive_once(&lead, DRIVE);
            }
        }
        true
    }
}

fn loop_until<F: Future>(
    session: &Session,
    future: F,
    cancelled: impl Fn() -> bool,
) -> Option<F::Output> {
    ME.with(|(me, waker)| {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(waker);
        loop {
            me.reset();
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return Some(value);
            }
            while !me.is_woken() {
                if cancelled() {
                    return None;
                }
                session.turn(me, &cancelled);
            }
        }
    })
}

/// The waker of this thread, for executors that run many futures in it.
pub(crate) fn this_thread() -> Arc<ThreadWaker> {
    ME.with(|(me, _)| Arc::clone(me))
}

/// A future of the asynchronous interface: while it waits, the reactor drives the connection.
pub(crate) struct Driven<F> {
    session: Arc<Session>,
    future: Pin<Box<F>>,
    attended: bool,
}

impl<F: Future> Driven<F> {
    pub(crate) fn new(session: Arc<Session>, future: F) -> Self {
        Self { session, future: Box::pin(future), attended: false }
    }
}

impl<F: Future> Future for Driven<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let result = this.future.as_mut().poll(cx);
        if result.is_pending() {
            if std::mem::replace(&mut this.attended, true) {
                this.session.widen();
            } else {
                this.session.attend();
            }
        } else if std::mem::take(&mut this.attended) {
            this.session.unattend();
        }
        result
    }
}

impl<F> Drop for Driven<F> {
    fn drop(&mut self) {
        if self.attended {
            self.session.unattend();
        }
    }
}

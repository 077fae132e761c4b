//! Who drives the connection.
//!
//! A thread that waits for a future drives the connection itself, so that a single caller gets its
//! page with no other thread in between; where several wait, the endpoint sees to it that one of
//! them receives and the others sleep. While a future is polled its leaves say what they wait for,
//! messages or one-sided reads, and only that is driven: a thread that reads does not handle the
//! replies that another one waits for.
//!
//! Futures of the asynchronous interface are driven by one more thread, the reactor, which is
//! started when the first of them has to wait. A connection that is lost is replaced by whichever
//! of these threads notices.

use super::{Link, Session, lock};
use ordma::Interest;
use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

/// The longest single wait.
pub(super) const DRIVE: Duration = Duration::from_millis(50);

/// What is waited for: a reply, or a slot to send in.
pub(crate) const MESSAGES: u8 = 1;
/// What is waited for: one-sided reads.
pub(crate) const READS: u8 = 2;

/// Wakes a thread that waits for a future.
#[derive(Debug)]
pub(crate) struct ThreadWaker {
    thread: Thread,
    woken: AtomicBool,
}

impl ThreadWaker {
    /// Of the calling thread.
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
    /// What the future that was polled last in this thread waits for.
    static WANTED: Cell<u8> = const { Cell::new(0) };
}

/// The waker of this thread, for executors that run several futures in it.
pub(crate) fn this_thread() -> Arc<ThreadWaker> {
    ME.with(|(me, _)| Arc::clone(me))
}

/// A leaf of the future that is being polled waits for this.
pub(crate) fn want(what: u8) {
    WANTED.set(WANTED.get() | what);
}

/// Polls a future; also gives what it waits for.
pub(crate) fn poll_wanting<F: Future + ?Sized>(
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> (Poll<F::Output>, u8) {
    let outer = WANTED.replace(0);
    let result = future.poll(cx);
    (result, WANTED.replace(outer))
}

/// What threads that wait share.
#[derive(Debug)]
pub(crate) struct Pump {
    /// One-sided batches under way that somebody waits for.
    pub(super) reads: AtomicUsize,
    /// Held by the thread that replaces a lost connection.
    connecting: Mutex<()>,
    /// Threads that sleep until the connection comes or goes.
    parked: Mutex<Vec<Thread>>,
    reactor: Reactor,
}

#[derive(Debug, Default)]
struct Reactor {
    state: Mutex<ReactorState>,
    wanted: Condvar,
    /// What the reactor's current wait covers; 0 while it does not wait.
    covered: AtomicU8,
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
            reads: AtomicUsize::new(0),
            connecting: Mutex::default(),
            parked: Mutex::default(),
            reactor: Reactor::default(),
        }
    }

    /// The connection came or went: lets those look again who wait for that.
    pub(super) fn kick(&self) {
        std::mem::take(&mut *lock(&self.parked)).into_iter().for_each(|thread| thread.unpark());
    }
}

impl Session {
    /// Runs a future to its end in this thread, which drives the connection while it waits.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.block_on_unless(future, || false) {
            Some(value) => value,
            None => unreachable!("a wait that cannot be cancelled was"),
        }
    }

    /// The same, unless `cancelled` says to leave it; the future is dropped then.
    pub(crate) fn block_on_unless<F: Future>(
        &self,
        future: F,
        cancelled: impl Fn() -> bool,
    ) -> Option<F::Output> {
        ME.with(|(me, waker)| {
            let mut future = pin!(future);
            let mut cx = Context::from_waker(waker);
            loop {
                me.reset();
                let (result, wanted) = poll_wanting(future.as_mut(), &mut cx);
                if let Poll::Ready(value) = result {
                    return Some(value);
                }
                while !me.is_woken() {
                    if cancelled() {
                        return None;
                    }
                    self.drive_once(me, wanted, DRIVE);
                }
            }
        })
    }

    /// Waits in this thread until `me` is woken, something else has happened, or for not much longer
    /// than `timeout`.
    pub(crate) fn wait_once(&self, me: &ThreadWaker, wanted: u8, timeout: Option<Duration>) {
        if !me.is_woken() {
            self.drive_once(me, wanted, timeout.map_or(DRIVE, |timeout| timeout.min(DRIVE)));
        }
    }

    /// Drives the connection once for a thread that waits, or replaces it.
    fn drive_once(&self, me: &ThreadWaker, wanted: u8, timeout: Duration) {
        // The lock ends with this statement: connecting again takes it anew.
        let (endpoint, down) = match &lock(&self.state).link {
            Link::Up(endpoint) if wanted != 0 => (Some(Arc::clone(endpoint)), false),
            Link::Up(_) | Link::Recovering(_) | Link::Closed => (None, false),
            Link::Down(outage) => (None, outage.deadline.is_some()),
        };
        if down {
            // Looked at again by `reconnect`.
            return self.connect_again(me, timeout);
        }
        match endpoint {
            Some(endpoint) => {
                let interest =
                    Interest { messages: wanted & MESSAGES != 0, reads: wanted & READS != 0 };
                endpoint.drive(interest, timeout);
            }
            None => self.park(me, timeout),
        }
    }

    fn connect_again(&self, me: &ThreadWaker, timeout: Duration) {
        match self.pump.connecting.try_lock() {
            Ok(_connecting) => self.reconnect(),
            Err(TryLockError::Poisoned(poisoned)) => {
                let _connecting = poisoned.into_inner();
                self.reconnect();
            }
            Err(TryLockError::WouldBlock) => self.park(me, timeout),
        }
    }

    /// Sleeps until `me` is woken or the connection changes.
    fn park(&self, me: &ThreadWaker, timeout: Duration) {
        lock(&self.pump.parked).push(std::thread::current());
        if !me.is_woken() {
            std::thread::park_timeout(timeout);
        }
        let current = std::thread::current().id();
        lock(&self.pump.parked).retain(|thread| thread.id() != current);
    }

    /// Handles what has arrived while nobody waited, such as requests to let go of memory, and
    /// replaces the connection if it was lost.
    pub(super) fn tend(&self) {
        self.drive_once(&ThreadWaker::new(), MESSAGES, Duration::ZERO);
    }

    /// Tries to reach a server that was given up, unless another thread does.
    pub(super) fn tend_outage(&self) {
        if let Ok(_connecting) = self.pump.connecting.try_lock() {
            self.try_again();
        }
    }

    /// Ends the reactor.
    pub(super) fn stop_reactor(&self) {
        lock(&self.pump.reactor.state).stop = true;
        self.pump.reactor.wanted.notify_all();
    }

    /// An asynchronous operation waits: sees to it that the reactor runs and knows of it.
    fn attend(&self) {
        let mut reactor = lock(&self.pump.reactor.state);
        reactor.waiting += 1;
        if !reactor.running && !reactor.stop {
            let this = self.this.clone();
            let thread = std::thread::Builder::new().name("dafs-reactor".into());
            let spawned = thread.spawn(move || {
                while let Some(session) = this.upgrade() {
                    if !session.react() {
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
    }

    fn unattend(&self) {
        lock(&self.pump.reactor.state).waiting -= 1;
    }

    /// Makes the reactor look again if it does not wait for all that is wanted.
    fn widen(&self, wanted: u8) {
        let covered = self.pump.reactor.covered.load(Ordering::SeqCst);
        if covered != 0
            && wanted & !covered != 0
            && let Some((live, _)) = self.live()
        {
            live.endpoint.interrupt();
        }
    }

    /// What anybody waits for.
    fn outstanding(&self) -> u8 {
        let messages = if lock(&self.state).slots.used() > 0 { MESSAGES } else { 0 };
        let reads = if self.pump.reads.load(Ordering::SeqCst) > 0 { READS } else { 0 };
        messages | reads
    }

    /// One round of the reactor; `false` to end.
    fn react(&self) -> bool {
        let reactor = lock(&self.pump.reactor.state);
        // Bounded, so that the reactor of a session that everyone has left ends.
        let idle = |reactor: &mut ReactorState| reactor.waiting == 0 && !reactor.stop;
        let (reactor, _) = self
            .pump
            .reactor
            .wanted
            .wait_timeout_while(reactor, Duration::from_millis(200), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let (stop, waiting) = (reactor.stop, reactor.waiting);
        drop(reactor);
        if !stop && waiting > 0 {
            // The end of the connection comes as a message.
            let wanted = match self.outstanding() {
                0 => MESSAGES,
                wanted => wanted,
            };
            self.pump.reactor.covered.store(wanted, Ordering::SeqCst);
            // What begins before this line is found here; what begins after it sees what is
            // covered and interrupts the wait.
            if self.outstanding() & !wanted == 0 {
                self.drive_once(&this_thread(), wanted, DRIVE);
            }
            self.pump.reactor.covered.store(0, Ordering::SeqCst);
        }
        !stop
    }
}

/// A future of the asynchronous interface: while it waits, the reactor drives the connection.
pub(crate) struct Driven<F> {
    session: Arc<Session>,
    future: Pin<Box<F>>,
    attended: bool,
}

impl<F: Future> Driven<F> {
    pub(crate) fn new(session: &Arc<Session>, future: F) -> Self {
        Self { session: Arc::clone(session), future: Box::pin(future), attended: false }
    }
}

impl<F: Future> Future for Driven<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let (result, wanted) = poll_wanting(this.future.as_mut(), cx);
        if result.is_pending() {
            if !std::mem::replace(&mut this.attended, true) {
                this.session.attend();
            }
            this.session.widen(wanted);
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

//! Event loops: few threads, each with its share of the connections.

use crate::wait::Waiter;
use foldhash::{HashMap, HashMapExt};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::BinaryHeap;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

/// Bytes of a thread's scratch buffer.
pub(crate) const SCRATCH: usize = 256 << 10;
/// Names the eventfd; no source has this token.
const WAKE: u64 = 0;

/// What a source did when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing had arrived.
    Idle,
    /// Something was handled; the next request may follow soon.
    Served,
    /// The source is finished: [`Source::end`] comes next.
    Close,
}

/// One connection, or whatever else has a descriptor.
pub(crate) trait Source: Send {
    /// What to watch.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The source now belongs to the thread that calls this, before anything else.
    fn begin(&mut self, _room: &mut Room<'_>) -> Step {
        Step::Idle
    }
    /// The descriptor is readable, or may be.
    fn readable(&mut self, room: &mut Room<'_>) -> Step;
    /// The descriptor is writable.
    fn writable(&mut self, _room: &mut Room<'_>) -> Step {
        Step::Idle
    }
    /// A time set by [`Room::wake_at`] has come.
    fn expired(&mut self, _room: &mut Room<'_>) -> Step {
        Step::Idle
    }
    /// The loop is about to sleep, and was [asked](Room::arm_later) to say so: sees to it that the
    /// descriptor tells of what arrives from now on. `Served` where something had arrived before.
    fn arm(&mut self, _room: &mut Room<'_>) -> Step {
        Step::Idle
    }
    /// Called once, at last; `stopping` where the whole listener ends.
    fn end(&mut self, stopping: bool);
}

/// What a source has at hand while it is asked.
pub(crate) struct Room<'a> {
    /// A buffer whose contents mean nothing between calls.
    pub(crate) scratch: &'a mut [u8],
    /// The loop that asks.
    pub(crate) reactor: &'a Arc<Reactor>,
    /// The end of the connection was told, not only that something arrived.
    pub(crate) hangup: bool,
    token: u64,
    timers: &'a mut BinaryHeap<Timer>,
    unarmed: &'a mut Vec<u64>,
}

impl Room<'_> {
    /// Asks for [`Source::expired`] at a time. Times cannot be taken back.
    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.timers.push(Timer { at, what: What::Source(self.token) });
    }

    /// Asks for [`Source::arm`] before the loop sleeps: the source's descriptor tells nothing now.
    pub(crate) fn arm_later(&mut self) {
        if !self.unarmed.contains(&self.token) {
            self.unarmed.push(self.token);
        }
    }

    /// Where this source is registered.
    pub(crate) fn registration(&self) -> Registration {
        Registration { reactor: Arc::clone(self.reactor), token: self.token }
    }
}

/// A place in a reactor, to change from any thread what a source waits for.
#[derive(Debug)]
pub(crate) struct Registration {
    reactor: Arc<Reactor>,
    token: u64,
}

impl Registration {
    /// Sets what the source waits for. An end of the connection is always told.
    pub(crate) fn interest(&self, fd: BorrowedFd<'_>, readable: bool, writable: bool) {
        let flags = flags(readable, writable);
        // Fails only where the source has just been removed.
        let _ = epoll::modify(&self.reactor.epoll, fd, EventData::new_u64(self.token), flags);
    }

    /// Whether this is the loop's thread.
    pub(crate) fn is_here(&self) -> bool {
        self.reactor.thread.get() == Some(&std::thread::current().id())
    }

    /// Has the source look whether it is readable.
    pub(crate) fn poke(&self) {
        self.reactor.command(Command::Poke(self.token));
    }
}

fn flags(readable: bool, writable: bool) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN | EventFlags::RDHUP, readable);
    flags.set(EventFlags::OUT, writable);
    flags
}

/// Something to be done by a reactor's thread.
enum Command {
    Adopt(u64, Box<dyn Source>),
    At(Instant, Call),
    Poke(u64),
}

type Call = Box<dyn FnOnce() + Send>;

enum What {
    Source(u64),
    Call(Call),
}

struct Timer {
    at: Instant,
    what: What,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    // The earliest is the greatest, so that the heap gives it first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

/// One event loop.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    wake: OwnedFd,
    commands: Mutex<Vec<Command>>,
    woken: AtomicBool,
    stopping: AtomicBool,
    tokens: AtomicU64,
    thread: OnceLock<ThreadId>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Reactor {
    /// Starts a loop on a thread of its own. Between requests it spins for at most `spin`.
    pub(crate) fn start(name: &str, spin: Duration) -> io::Result<Arc<Self>> {
        let reactor = Arc::new(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            commands: Mutex::default(),
            woken: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            tokens: AtomicU64::new(WAKE + 1),
            thread: OnceLock::new(),
            join: Mutex::default(),
        });
        epoll::add(&reactor.epoll, &reactor.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let looped = Arc::clone(&reactor);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let join = thread.spawn(move || looped.run(spin))?;
        let _ = reactor.thread.set(join.thread().id());
        *reactor.join.lock().unwrap_or_else(PoisonError::into_inner) = Some(join);
        Ok(reactor)
    }

    /// Gives a source to this loop.
    pub(crate) fn adopt(&self, source: Box<dyn Source>) {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        self.command(Command::Adopt(token, source));
    }

    /// Runs `call` on this loop's thread at a time; dropped where the loop ends before.
    pub(crate) fn at(&self, at: Instant, call: Call) {
        self.command(Command::At(at, call));
    }

    /// Ends the loop and all its sources. Returns when they have ended, unless called by one.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join
            && join.thread().id() != std::thread::current().id()
            && join.join().is_err()
        {
            tracing::error!("an engine thread had panicked");
        }
    }

    fn command(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.wake();
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        // Can only fail where the counter is full, and then the loop wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn run(self: Arc<Self>, spin: Duration) {
        let mut state = Loop {
            reactor: &self,
            sources: HashMap::new(),
            timers: BinaryHeap::new(),
            unarmed: Vec::new(),
            scratch: vec![0; SCRATCH],
            waiter: Waiter::new(spin),
        };
        let mut events = Vec::with_capacity(64);
        let mut hot: Option<Hot> = None;
        while !self.stopping.load(Ordering::Acquire) {
            state.commands();
            state.expire();
            if hot.is_none() {
                hot = state.arm();
            }
            let awake = hot.is_some() || !state.unarmed.is_empty();
            // What was armed may have set a time as well.
            let timeout = if awake { Some(NOW) } else { state.until_next().map(timespec) };
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "an engine thread cannot wait for events and ends");
                    break;
                }
            }
            let mut served = None;
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == WAKE {
                    let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
                } else if state.event(token, flags) == Step::Served {
                    served = Some(token);
                }
            }
            hot = state.spin(hot, served);
        }
        for command in self.take_commands() {
            if let Command::Adopt(_, mut source) = command {
                end(source.as_mut(), true);
            }
        }
        for (_, mut source) in state.sources {
            end(source.as_mut(), true);
        }
    }
}

fn end(source: &mut dyn Source, stopping: bool) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| source.end(stopping))).is_err() {
        tracing::error!("what was told of the end of a connection panicked");
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up to a millisecond, which is what epoll_wait counts in.
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2) + 1;
    Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 }
}

/// Looks at the source that was served last between two looks at all.
const LOOKS: usize = 8;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A wait that is still spinning.
struct Hot {
    /// The source that was served last.
    token: u64,
    since: Instant,
    budget: Duration,
    /// It was looked at in vain.
    spun: bool,
}

/// What the thread of a loop has.
struct Loop<'a> {
    reactor: &'a Arc<Reactor>,
    sources: HashMap<u64, Box<dyn Source>>,
    timers: BinaryHeap<Timer>,
    /// Sources to be asked before the loop sleeps.
    unarmed: Vec<u64>,
    scratch: Vec<u8>,
    waiter: Waiter,
}

impl Loop<'_> {
    fn commands(&mut self) {
        if !self.reactor.woken.swap(false, Ordering::Acquire) {
            return;
        }
        for command in self.reactor.take_commands() {
            match command {
                Command::Adopt(token, source) => self.adopt(token, source),
                Command::At(at, call) => self.timers.push(Timer { at, what: What::Call(call) }),
                Command::Poke(token) => {
                    self.ask(token, |source, room| source.readable(room));
                }
            }
        }
    }

    fn adopt(&mut self, token: u64, mut source: Box<dyn Source>) {
        let data = EventData::new_u64(token);
        if let Err(error) = epoll::add(&self.reactor.epoll, source.fd(), data, flags(true, false)) {
            tracing::error!(%error, "cannot watch a connection");
            end(source.as_mut(), false);
            return;
        }
        self.sources.insert(token, source);
        self.ask(token, |source, room| source.begin(room));
    }

    /// Asks a source, and removes it where it is finished. `Idle` where it is not there any more.
    fn ask(
        &mut self,
        token: u64,
        call: impl FnOnce(&mut dyn Source, &mut Room<'_>) -> Step,
    ) -> Step {
        let Some(source) = self.sources.get_mut(&token) else { return Step::Idle };
        let mut room = Room {
            scratch: &mut self.scratch,
            reactor: self.reactor,
            hangup: false,
            token,
            timers: &mut self.timers,
            unarmed: &mut self.unarmed,
        };
        // A panic ends the one connection, not the thread and with it all others.
        let asked = AssertUnwindSafe(|| call(source.as_mut(), &mut room));
        let step = std::panic::catch_unwind(asked).unwrap_or_else(|_| {
            tracing::error!("a connection is closed because what handled it panicked");
            Step::Close
        });
        if step == Step::Close
            && let Some(mut source) = self.sources.remove(&token)
        {
            let _ = epoll::delete(&self.reactor.epoll, source.fd());
            end(source.as_mut(), false);
        }
        step
    }

    fn event(&mut self, token: u64, flags: EventFlags) -> Step {
        if flags.contains(EventFlags::OUT)
            && self.ask(token, |source, room| source.writable(room)) == Step::Close
        {
            return Step::Close;
        }
        let ends = EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP;
        if flags.intersects(EventFlags::IN | ends) {
            return self.ask(token, |source, room| {
                room.hangup = flags.intersects(ends);
                source.readable(room)
            });
        }
        Step::Idle
    }

    /// Decides, after a look at all sources that served the one with token `served` last, whether
    /// to spin on, and if so looks a few times at the source that is likeliest to be next.
    fn spin(&mut self, hot: Option<Hot>, served: Option<u64>) -> Option<Hot> {
        let mut hot = match (hot, served) {
            (None, None) => return None,
            (None, Some(token)) => self.heat(token)?,
            (Some(hot), Some(token)) => {
                self.learn(&hot);
                self.heat(token)?
            }
            (Some(hot), None) => hot,
        };
        for _ in 0..LOOKS {
            match self.ask(hot.token, |source, room| source.readable(room)) {
                Step::Served => {
                    self.learn(&hot);
                    hot = self.heat(hot.token)?;
                }
                Step::Close => return None,
                Step::Idle => {
                    hot.spun = true;
                    std::hint::spin_loop();
                }
            }
        }
        if hot.since.elapsed() < hot.budget {
            return Some(hot);
        }
        self.waiter.miss();
        None
    }

    /// Arms the sources that asked for it. Where something had arrived at one meanwhile, it is looked
    /// at again before the loop sleeps.
    fn arm(&mut self) -> Option<Hot> {
        let mut hot = None;
        for token in std::mem::take(&mut self.unarmed) {
            if self.ask(token, |source, room| source.arm(room)) == Step::Served {
                hot = self.heat(token).or(hot);
            }
        }
        hot
    }

    fn learn(&mut self, hot: &Hot) {
        // What was there at once says nothing of what spinning is worth.
        if hot.spun {
            self.waiter.hit();
        }
    }

    fn heat(&mut self, token: u64) -> Option<Hot> {
        let budget = self.waiter.budget();
        (!budget.is_zero()).then(|| Hot { token, since: Instant::now(), budget, spun: false })
    }

    /// Does what is due.
    fn expire(&mut self) {
        while self.until_next().is_some_and(|left| left.is_zero()) {
            match self.timers.pop().map(|timer| timer.what) {
                Some(What::Source(token)) => {
                    self.ask(token, |source, room| source.expired(room));
                }
                Some(What::Call(call)) => call(),
                None => {}
            }
        }
    }

    /// How long it is until something is due.
    fn until_next(&self) -> Option<Duration> {
        let next = self.timers.peek()?;
        Some(next.at.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::mpsc::{Sender, channel};

    /// Nothing ever arrives at it, and it sets a time when it is armed.
    struct Quiet(OwnedFd, Sender<()>);

    impl Source for Quiet {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn begin(&mut self, room: &mut Room<'_>) -> Step {
            room.arm_later();
            Step::Idle
        }
        fn readable(&mut self, _: &mut Room<'_>) -> Step {
            Step::Idle
        }
        fn arm(&mut self, room: &mut Room<'_>) -> Step {
            room.wake_at(Instant::now() + Duration::from_millis(20));
            Step::Idle
        }
        fn expired(&mut self, _: &mut Room<'_>) -> Step {
            self.1.send(()).unwrap();
            Step::Idle
        }
        fn end(&mut self, _: bool) {}
    }

    #[test]
    fn a_time_that_is_set_while_a_source_is_armed_comes() {
        let reactor = Reactor::start("quiet", Duration::ZERO).unwrap();
        let (sender, expired) = channel();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        reactor.adopt(Box::new(Quiet(fd, sender)));
        let came = expired.recv_timeout(Duration::from_secs(10));
        reactor.stop();
        assert_eq!(came, Ok(()));
    }
}

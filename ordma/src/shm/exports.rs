//! The server's side of handing chunks over, and of getting them back.

use super::boot::BootPage;
use super::control::{self, LEN, Message};
use crate::ChunkId;
use crate::arena::Chunk;
use crate::engine::{Link, LinkError, Transfer};
use crate::stream::link::{Second, StreamLink};
use crate::stream::reactor::{Registration, Room, Source, Step};
use crate::stream::server::{Counted, Server};
use crate::stream::{io, lock};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How long to wait where the kernel has too many descriptors under way.
const BREATHER: Duration = Duration::from_millis(20);

/// All that is handed over, and to whom.
#[derive(Debug)]
pub(crate) struct Exports {
    boot: BootPage,
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    chunks: BTreeMap<ChunkId, Arc<Chunk>>,
    /// By link.
    controls: BTreeMap<u64, Arc<Control>>,
    retiring: BTreeMap<ChunkId, Retiring>,
}

/// A chunk that links have been told to let go of.
#[derive(Debug)]
struct Retiring {
    waiting: BTreeSet<u64>,
    /// Done when no one is waited for.
    done: Transfer,
}

impl Exports {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { boot: BootPage::create()?, registry: Mutex::default() }))
    }

    /// Clients find the server gone from now on.
    pub(crate) fn stop(&self) {
        self.boot.stop();
    }

    pub(crate) fn export(&self, chunk: &Arc<Chunk>) {
        let mut registry = lock(&self.registry);
        if registry.chunks.insert(chunk.id(), Arc::clone(chunk)).is_none() {
            for control in registry.controls.values() {
                control.announce([chunk]);
            }
        }
    }

    /// Tells all links to let go of a chunk. Resolves when they have, or are closed for not having
    /// done so by the deadline.
    pub(crate) fn retire(
        self: &Arc<Self>,
        chunk: ChunkId,
        patience: Duration,
        server: &Server,
    ) -> Transfer {
        let done = Transfer::new();
        let mut registry = lock(&self.registry);
        registry.chunks.remove(&chunk);
        let told = registry.controls.iter().filter(|(_, control)| control.retire(chunk));
        let waiting: BTreeSet<u64> = told.map(|(link, _)| *link).collect();
        if waiting.is_empty() {
            done.complete(Ok(Vec::new()));
            return done;
        }
        registry.retiring.insert(chunk, Retiring { waiting, done: done.clone() });
        drop(registry);
        let exports = Arc::clone(self);
        let call = Box::new(move || exports.run_out(chunk, patience));
        if let Some(deadline) = Instant::now().checked_add(patience) {
            server.clock().at(deadline, call);
        }
        done
    }

    /// The patience with those who still have the chunk is at its end.
    fn run_out(&self, chunk: ChunkId, patience: Duration) {
        let mut registry = lock(&self.registry);
        let Some(retiring) = registry.retiring.remove(&chunk) else { return };
        let late: Vec<_> =
            retiring.waiting.iter().filter_map(|id| registry.controls.get(id).cloned()).collect();
        drop(registry);
        for link in late.iter().filter_map(|control| control.link.upgrade()) {
            let reason = format!("the client did not let go of chunk {chunk} within {patience:?}");
            tracing::warn!(link = link.id(), reason, "fenced");
            link.fail(LinkError::Closed(reason));
        }
        retiring.done.complete(Ok(Vec::new()));
    }

    /// A link no longer has the chunk, or none at all.
    fn let_go(&self, link: u64, chunk: Option<ChunkId>) {
        let mut registry = lock(&self.registry);
        if chunk.is_none() {
            registry.controls.remove(&link);
        }
        let mut done = Vec::new();
        registry.retiring.retain(|id, retiring| {
            if chunk.is_none_or(|chunk| chunk == *id) {
                retiring.waiting.remove(&link);
            }
            if retiring.waiting.is_empty() {
                done.push(retiring.done.clone());
            }
            !retiring.waiting.is_empty()
        });
        drop(registry);
        done.into_iter().for_each(|done| done.complete(Ok(Vec::new())));
    }
}

/// The control connection as its link sees it.
pub(crate) struct Control {
    socket: Arc<OwnedFd>,
    link: Weak<StreamLink>,
    exports: Arc<Exports>,
    server: Weak<Server>,
    this: Weak<Control>,
    registration: OnceLock<Registration>,
    state: Mutex<State>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("link", &self.link).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    allowed: bool,
    queue: VecDeque<Outgoing>,
    /// How often each chunk was handed over and not yet let go of.
    held: BTreeMap<ChunkId, u32>,
    closed: bool,
}

#[derive(Debug)]
enum Outgoing {
    Hello(Vec<u8>),
    Boot,
    Chunk(Arc<Chunk>),
    Plain(Message),
}

impl Control {
    /// Makes `socket` the control connection of `link`.
    pub(crate) fn attach(
        exports: &Arc<Exports>,
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        welcome: &[u8],
    ) -> bool {
        let queue = VecDeque::from([Outgoing::Hello(welcome.to_vec()), Outgoing::Boot]);
        let control = Arc::new_cyclic(|this| Self {
            socket: Arc::clone(&socket),
            link: Arc::downgrade(&link),
            exports: Arc::clone(exports),
            server: Arc::downgrade(server),
            this: this.clone(),
            registration: OnceLock::new(),
            state: Mutex::new(State { queue, ..State::default() }),
        });
        // Known before it is asked what it may read, so that no export is missed in between.
        lock(&exports.registry).controls.insert(link.id(), Arc::clone(&control));
        if !link.attach(control.clone()) {
            lock(&exports.registry).controls.remove(&link.id());
            return false;
        }
        let thread = Arc::clone(server.agent(&link));
        thread.adopt(Box::new(ControlConnection { control, link, _counted: counted }));
        true
    }

    fn announce<'a>(&self, chunks: impl IntoIterator<Item = &'a Arc<Chunk>>) {
        let mut state = lock(&self.state);
        if state.allowed {
            state.queue.extend(chunks.into_iter().map(|chunk| Outgoing::Chunk(Arc::clone(chunk))));
            self.flush(&mut state);
        }
    }

    /// Whether the link has the chunk and must be waited for.
    fn retire(&self, chunk: ChunkId) -> bool {
        let mut state = lock(&self.state);
        state.queue.retain(|o| !matches!(o, Outgoing::Chunk(queued) if queued.id() == chunk));
        if state.closed || !state.held.contains_key(&chunk) {
            return false;
        }
        state.queue.push_back(Outgoing::Plain(Message::Retire(chunk)));
        self.flush(&mut state);
        true
    }

    /// Sends what is queued, as far as it goes.
    fn flush(&self, state: &mut State) {
        let waited = state.queue.len();
        while let Some(next) = state.queue.front() {
            let sent = match next {
                Outgoing::Hello(bytes) => control::send(self.socket.as_fd(), bytes, None),
                Outgoing::Plain(message) => {
                    control::send(self.socket.as_fd(), &message.encode(), None)
                }
                Outgoing::Boot => self.hand_over(Message::Boot, self.exports.boot.reader()),
                Outgoing::Chunk(chunk) => {
                    let message = Message::Chunk(chunk.id(), chunk.geometry());
                    self.hand_over(message, chunk.reader())
                }
            };
            match sent {
                Ok(Some(())) => {
                    if let Some(Outgoing::Chunk(chunk)) = state.queue.pop_front() {
                        *state.held.entry(chunk.id()).or_insert(0) += 1;
                    }
                }
                Ok(None) => break,
                // Descriptors are short for now, in this process or under way to others.
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS | Errno::NOMEM)) => {
                    tracing::warn!(%error, "cannot hand a chunk over yet");
                    self.try_later();
                    break;
                }
                Err(error) => {
                    state.queue.clear();
                    if let Some(link) = self.link.upgrade() {
                        link.fail(link.lost(format_args!("control connection: {error}")));
                    }
                    break;
                }
            }
        }
        if waited > 0
            && let Some(registration) = self.registration.get()
        {
            registration.interest(self.socket.as_fd(), true, !state.queue.is_empty());
        }
    }

    fn hand_over(
        &self,
        message: Message,
        descriptor: std::io::Result<OwnedFd>,
    ) -> rustix::io::Result<Option<()>> {
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let descriptor = descriptor.map_err(failed)?;
        control::send(self.socket.as_fd(), &message.encode(), Some(descriptor.as_fd()))
    }

    fn try_later(&self) {
        let (Some(server), this) = (self.server.upgrade(), self.this.clone()) else { return };
        let call = Box::new(move || {
            if let Some(control) = this.upgrade() {
                control.flush(&mut lock(&control.state));
            }
        });
        server.clock().at(Instant::now() + BREATHER, call);
    }

    /// The client has let go of a chunk once. The error says what is wrong with that.
    fn unmapped(&self, link: u64, chunk: ChunkId) -> Result<(), String> {
        let mut state = lock(&self.state);
        let Some(held) = state.held.get_mut(&chunk) else {
            return Err(format!("it lets go of chunk {chunk}, which it does not have"));
        };
        *held -= 1;
        if *held > 0 {
            return Ok(());
        }
        state.held.remove(&chunk);
        drop(state);
        self.exports.let_go(link, Some(chunk));
        Ok(())
    }
}

impl Second for Control {
    fn allow(&self, allow: bool) {
        // The registry's lock first, so that no export falls between looking and announcing.
        let registry = lock(&self.exports.registry);
        let mut state = lock(&self.state);
        if state.allowed == allow {
            self.flush(&mut state);
            return;
        }
        state.allowed = allow;
        if allow {
            state.queue.push_back(Outgoing::Plain(Message::Allow));
            state.queue.extend(registry.chunks.values().cloned().map(Outgoing::Chunk));
        } else {
            state.queue.retain(|outgoing| !matches!(outgoing, Outgoing::Chunk(_)));
            state.queue.push_back(Outgoing::Plain(Message::Revoke));
        }
        self.flush(&mut state);
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        io::shut_down(self.socket.as_fd());
    }
}

/// The event loop's side of a control connection.
struct ControlConnection {
    control: Arc<Control>,
    link: Arc<StreamLink>,
    _counted: Counted,
}

impl ControlConnection {
    fn broken(&self, reason: String) -> Step {
        self.link.fail(LinkError::Protocol { peer: self.link.peer(), reason });
        Step::Close
    }
}

impl Source for ControlConnection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.control.socket.as_fd()
    }

    fn begin(&mut self, room: &mut Room<'_>) -> Step {
        let _ = self.control.registration.set(room.registration());
        let state = &mut lock(&self.control.state);
        self.control.flush(state);
        Step::Idle
    }

    fn readable(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return Step::Close;
        }
        // Descriptors that a client sends are no message of ours: they are not even received.
        let room = &mut room.scratch[..LEN];
        match io::receive(self.fd(), room) {
            Ok(None) => Step::Idle,
            Ok(Some(0)) => Step::Close,
            Ok(Some(LEN)) => {
                let mut bytes = [0; LEN];
                bytes.copy_from_slice(room);
                match Message::decode(&bytes) {
                    Some(Message::Unmapped(chunk)) => {
                        match self.control.unmapped(self.link.id(), chunk) {
                            Ok(()) => Step::Idle,
                            Err(reason) => self.broken(reason),
                        }
                    }
                    other => self.broken(format!("an unexpected control message: {other:?}")),
                }
            }
            Ok(Some(n)) => self.broken(format!("a control message of {n} bytes")),
            Err(_) => Step::Close,
        }
    }

    fn writable(&mut self, _room: &mut Room<'_>) -> Step {
        self.control.flush(&mut lock(&self.control.state));
        Step::Idle
    }

    fn end(&mut self, stopping: bool) {
        self.control.close();
        self.link.second_ended(stopping);
        self.control.exports.let_go(self.link.id(), None);
    }
}

//! The server's side of handing chunks over, and of getting them back.

use super::boot::BootPage;
use super::control::{self, LEN, Message};
use crate::ChunkId;
use crate::arena::Chunk;
use crate::engine::{Link, LinkError, ReadAccess};
use crate::exports::{self, Holder, Registry};
use crate::gate::{Gate, WrongProof};
use crate::lock;
use crate::reactor::{Registration, Room, Source, Step};
use crate::stream::io;
use crate::stream::link::{Second, StreamLink};
use crate::stream::server::{Counted, Server};
use dafs_keys::tags::ConnectionNonce;
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
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
    chunks: Arc<exports::Exports<Control>>,
}

impl Exports {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { boot: BootPage::create()?, chunks: Arc::default() }))
    }

    /// Clients find the server gone from now on.
    pub(crate) fn stop(&self) {
        self.boot.stop();
    }

    /// The chunks, and who has them.
    pub(crate) fn chunks(&self) -> &Arc<exports::Exports<Control>> {
        &self.chunks
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

#[derive(Debug)]
struct State {
    gate: Gate,
    /// The next message is the proof itself.
    proof_follows: bool,
    /// The client was told that it may read.
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
        nonce: ConnectionNonce,
    ) -> bool {
        let welcome = server.welcome(nonce).encode().to_vec();
        let state = State {
            gate: Gate::new(nonce),
            proof_follows: false,
            allowed: false,
            queue: VecDeque::from([Outgoing::Hello(welcome), Outgoing::Boot]),
            held: BTreeMap::new(),
            closed: false,
        };
        let control = Arc::new_cyclic(|this| Self {
            socket: Arc::clone(&socket),
            link: Arc::downgrade(&link),
            exports: Arc::clone(exports),
            server: Arc::downgrade(server),
            this: this.clone(),
            registration: OnceLock::new(),
            state: Mutex::new(state),
        });
        // Known before it is asked what it may read, so that no export is missed in between.
        exports.chunks.join(link.id(), Arc::clone(&control));
        if !link.attach(control.clone()) {
            exports.chunks.let_go(link.id(), None);
            return false;
        }
        let thread = Arc::clone(server.agent(&link));
        thread.adopt(Box::new(ControlConnection { control, link, _counted: counted }));
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

    /// Receives a message. `None` where none has arrived.
    fn receive(&self, state: &mut State) -> Result<Option<Heard>, Ended> {
        let mut bytes = [0; LEN];
        // Descriptors that a client sends are no message of ours: they are not even received.
        match io::receive(self.socket.as_fd(), &mut bytes) {
            Ok(None) => return Ok(None),
            Ok(Some(LEN)) => {}
            Ok(Some(0)) | Err(_) => return Err(Ended::Closed),
            Ok(Some(n)) => {
                return Err(Ended::broken(format_args!("a control message of {n} bytes")));
            }
        }
        if std::mem::take(&mut state.proof_follows) {
            state.gate.prove(bytes).map_err(Ended::broken)?;
            return Ok(Some(Heard::Proof));
        }
        match Message::decode(&bytes) {
            Some(Message::Proof) => {
                state.proof_follows = true;
                Ok(Some(Heard::Nothing))
            }
            Some(Message::Unmapped(chunk)) => {
                let unknown = || format!("it lets go of chunk {chunk}, which it does not have");
                let held = state.held.get_mut(&chunk).ok_or_else(|| Ended::broken(unknown()))?;
                *held -= 1;
                if *held > 0 {
                    return Ok(Some(Heard::Nothing));
                }
                state.held.remove(&chunk);
                Ok(Some(Heard::LetGo(chunk)))
            }
            other => Err(Ended::broken(format_args!("an unexpected control message: {other:?}"))),
        }
    }

    /// Receives a message and acts upon it. `None` where none has arrived.
    fn hear(&self, link: &StreamLink) -> Option<Step> {
        // The registry's lock first, so that no export falls between looking and announcing.
        let registry = self.exports.chunks.lock();
        let mut state = lock(&self.state);
        let heard = self.receive(&mut state);
        if let Ok(Some(Heard::Proof)) = heard {
            self.update(&registry, &mut state);
        }
        drop((state, registry));
        match heard {
            Ok(None) => return None,
            Ok(Some(Heard::Nothing | Heard::Proof)) => {}
            Ok(Some(Heard::LetGo(chunk))) => self.exports.chunks.let_go(link.id(), Some(chunk)),
            Err(Ended::Closed) => return Some(Step::Close),
            Err(Ended::Broken(reason)) => {
                link.fail(link.broken(reason));
                return Some(Step::Close);
            }
        }
        Some(Step::Idle)
    }

    /// Tells the client whether it may read, where that has changed, and hands over what there is.
    fn update(&self, registry: &Registry<Self>, state: &mut State) {
        let allow = state.gate.access().is_some();
        if state.allowed != allow {
            state.allowed = allow;
            if allow {
                state.queue.push_back(Outgoing::Plain(Message::Allow));
                state.queue.extend(registry.chunks().cloned().map(Outgoing::Chunk));
            } else {
                state.queue.retain(|outgoing| !matches!(outgoing, Outgoing::Chunk(_)));
                state.queue.push_back(Outgoing::Plain(Message::Revoke));
            }
        }
        self.flush(state);
    }
}

impl Holder for Control {
    fn announce(&self, chunk: &Arc<Chunk>) {
        let mut state = lock(&self.state);
        if state.allowed {
            state.queue.push_back(Outgoing::Chunk(Arc::clone(chunk)));
            self.flush(&mut state);
        }
    }

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

    /// A chunk that is mapped takes memory: who keeps it is cut off.
    fn late(&self, chunk: ChunkId, patience: Duration) {
        if let Some(link) = self.link.upgrade() {
            let reason = format!("the client did not let go of chunk {chunk} within {patience:?}");
            tracing::warn!(link = link.id(), reason, "fenced");
            link.fail(LinkError::Closed(reason));
        }
    }
}

/// What a message from the client brought.
enum Heard {
    /// Nothing to be acted upon.
    Nothing,
    /// The proof that the connection is its session's: it may be allowed to read now.
    Proof,
    /// It does not have the chunk any more.
    LetGo(ChunkId),
}

/// Why no message comes any more.
enum Ended {
    Closed,
    Broken(String),
}

impl Ended {
    fn broken(reason: impl fmt::Display) -> Self {
        Self::Broken(reason.to_string())
    }
}

impl Second for Control {
    fn allow(&self, access: Option<Arc<ReadAccess>>) -> Result<(), WrongProof> {
        // In this order, as in `hear`.
        let registry = self.exports.chunks.lock();
        let mut state = lock(&self.state);
        let allowed = state.gate.allow(access);
        self.update(&registry, &mut state);
        let waits = state.gate.waits();
        drop((state, registry));
        if waits && let Some(link) = self.link.upgrade() {
            // A client sends its proof before the message that the permission follows from: it is
            // here, and the chunks are handed over before the reply.
            while self.hear(&link) == Some(Step::Idle) {}
        }
        allowed
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

    fn readable(&mut self, _room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return Step::Close;
        }
        self.control.hear(&self.link).unwrap_or(Step::Idle)
    }

    fn writable(&mut self, _room: &mut Room<'_>) -> Step {
        self.control.flush(&mut lock(&self.control.state));
        Step::Idle
    }

    fn end(&mut self, stopping: bool) {
        self.control.close();
        self.link.second_ended(stopping);
        self.control.exports.chunks.let_go(self.link.id(), None);
    }
}

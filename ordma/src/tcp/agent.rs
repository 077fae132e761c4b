//! The server's agent: answers requests for pages from the arena.
//!
//! A single page is copied out with its footer and sent from the copy. Of several, only the footers
//! are copied, and the kernel takes the payloads from where they lie. Either way they are read at
//! different times, and the client's check of the page tells whether they belong together. Tagged
//! requests are answered from copies alone: see [`tagged`](super::tagged).

use super::tagged::Tagged;
use super::wire::{
    ENTRY_LEN, HEADER_LEN, Kind, LONGEST_HEAD, LONGEST_REQUEST, Request, put_reply, read_entry,
};
use crate::AccessFault;
use crate::RemoteRef;
use crate::arena::{Chunk, Guard};
use crate::engine::{LinkError, ReadAccess};
use crate::gate::{Gate, WrongProof};
use crate::lock;
use crate::reactor::{Registration, Room, Source, Step};
use crate::region::Iovecs;
use crate::slot::{FOOTER_LEN, names, version_of};
use crate::stream::io;
use crate::stream::link::{Second, StreamLink};
use crate::stream::server::{Counted, Server};
use dafs_keys::tags::ConnectionNonce;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

/// The one-sided connection as its link sees it.
#[derive(Debug)]
struct Handle {
    socket: Arc<OwnedFd>,
    /// The agent asks it with every request.
    gate: Mutex<Gate>,
}

impl Second for Handle {
    fn allow(&self, access: Option<Arc<ReadAccess>>) -> Result<(), WrongProof> {
        lock(&self.gate).allow(access)
    }

    fn close(&self) {
        io::shut_down(self.socket.as_fd());
    }
}

/// The event loop's side of a one-sided connection.
pub(crate) struct AgentConnection {
    handle: Arc<Handle>,
    link: Arc<StreamLink>,
    server: Arc<Server>,
    registration: Option<Registration>,
    /// From the first tagged request on.
    tagged: Option<Box<Tagged>>,
    /// Requests that are incomplete or wait for a reply to go out; empty when idle.
    requests: Vec<u8>,
    /// The reply that is going out.
    stalled: Option<Stalled>,
    /// It will be looked at whether it goes.
    looks: bool,
    _counted: Counted,
}

/// A reply on its way out. Holds no payload, unless it is the answer to a tagged request: what
/// remains is taken from the slots when it goes.
struct Reply {
    head: Vec<u8>,
    /// The slots of its pages.
    slots: Vec<u32>,
    sent: usize,
    page_size: usize,
}

/// A reply of which part has not gone out. However long its reader takes, it keeps no chunk: the
/// pages of a chunk that has gone are sent as zeros, which its reader's check finds out.
struct Stalled {
    reply: Reply,
    /// Those that its pages lie in.
    chunks: Vec<Weak<Chunk>>,
    /// When enough of it had gone last, and how much that was.
    seen: (Instant, usize),
}

/// What a client takes of a reply within the engine's time for that, or it is cut off.
const LEAST: usize = 64 << 10;

/// What comes of a request: what of the reply did not go out, or why the connection ends.
type Answered = Result<Option<Stalled>, LinkError>;

impl AgentConnection {
    /// Makes `socket` the one-sided connection of `link`.
    pub(crate) fn attach(
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        nonce: ConnectionNonce,
    ) -> bool {
        let gate = Mutex::new(Gate::new(nonce));
        let handle = Arc::new(Handle { socket: Arc::clone(&socket), gate });
        if !link.attach(Arc::clone(&handle) as Arc<dyn Second>) {
            return false;
        }
        crate::stream::welcome::say(&socket, &server.welcome(nonce).encode());
        let agent = Arc::clone(server.agent(&link));
        agent.adopt(Box::new(Self {
            handle,
            link,
            server: Arc::clone(server),
            registration: None,
            tagged: None,
            requests: Vec::new(),
            stalled: None,
            looks: false,
            _counted: counted,
        }));
        true
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.handle.socket.as_fd()
    }

    fn lost(&self, reason: impl std::fmt::Display) -> LinkError {
        self.link.lost(format_args!("one-sided connection: {reason}"))
    }

    fn fail(&self, error: LinkError) -> Step {
        self.link.fail(error);
        Step::Close
    }

    /// Answers the requests in `bytes`, and returns how many bytes of it are done with.
    fn answer(&mut self, mut bytes: &[u8], scratch: &mut [u8]) -> Result<usize, LinkError> {
        let all = bytes.len();
        let page_size = self.server.arena.geometry().page_size;
        while bytes.len() >= HEADER_LEN && self.stalled.is_none() {
            let request = Request::decode(bytes)
                .filter(|request| request.count <= request.kind.pages(page_size))
                .ok_or_else(|| self.link.broken("a request that is none, or for too many pages"))?;
            let end = HEADER_LEN + request.rest();
            let Some(entries) = bytes.get(HEADER_LEN..end) else { break };
            self.stalled = match request.kind {
                Kind::Proof => self.prove(entries),
                Kind::Tagged => self.tagged(request.number, entries, scratch),
                Kind::Plain if request.count == 1 => {
                    self.single(request.number, entries, &mut scratch[..page_size])
                }
                Kind::Plain => self.several(request.number, entries, page_size),
            }?;
            bytes = &bytes[end..];
        }
        Ok(all - bytes.len())
    }

    /// Takes the proof that the connection is its session's.
    fn prove(&self, proof: &[u8]) -> Answered {
        let proof = proof.try_into().map_err(|_| self.link.broken("a proof of another length"))?;
        let proven = lock(&self.handle.gate).prove(proof);
        proven.map(|()| None).map_err(|error| self.link.broken(error))
    }

    /// Answers a tagged request.
    fn tagged(&mut self, number: u64, entries: &[u8], scratch: &mut [u8]) -> Answered {
        let (access, nonce) = {
            let gate = lock(&self.handle.gate);
            (gate.access().cloned(), *gate.nonce())
        };
        let page_size = self.server.arena.geometry().page_size;
        let tagged = self.tagged.get_or_insert_with(|| Box::new(Tagged::new(nonce)));
        let answer = tagged.answer(&self.server, access.as_ref(), number, entries, scratch);
        let parts = answer.parts();
        let all: usize = parts.iter().map(|part| part.len()).sum();
        let sent = io::send(self.socket(), &parts).map_err(|error| self.lost(error))?.unwrap_or(0);
        // What was tagged is what is sent: the rest must not be taken from the slots.
        let reply = || Reply { head: answer.bytes(), slots: Vec::new(), sent, page_size };
        Ok((sent < all).then(|| reply().stalled(&[])))
    }

    /// Whether plain requests are answered now.
    fn is_open(&self) -> bool {
        lock(&self.handle.gate).access().is_some()
    }

    /// The chunk that a plain request refers to.
    fn chunk(&self, open: bool, reference: &RemoteRef) -> Result<Arc<Chunk>, AccessFault> {
        if !open {
            return Err(AccessFault::Revoked);
        }
        let chunk = self.server.arena.chunk(reference.chunk).ok_or(AccessFault::Gone)?;
        if chunk.guard() == Guard::Tags {
            self.server.refuse(1);
            return Err(AccessFault::Revoked);
        }
        Ok(chunk)
    }

    /// Answers a request for one page.
    fn single(&self, number: u64, entries: &[u8], payload: &mut [u8]) -> Answered {
        let (reference, floor) = read_entry(entries);
        let mut footer = [0; FOOTER_LEN];
        let found = self.chunk(self.is_open(), &reference).and_then(|chunk| {
            let there = chunk.copy_out(reference.slot, payload, &mut footer);
            let good = there && names(&footer, &reference) && version_of(&footer) >= floor;
            if good { Ok(chunk) } else { Err(AccessFault::Stale) }
        });
        let mut head = Vec::with_capacity(HEADER_LEN + FOOTER_LEN);
        let status = [found.as_ref().map(drop).map_err(|fault| *fault)];
        put_reply(&mut head, Kind::Plain, number, &status, payload.len());
        let mut parts = [IoSlice::new(&[]), IoSlice::new(&[])];
        if found.is_ok() {
            head.extend_from_slice(&footer);
            parts[1] = IoSlice::new(payload);
        }
        parts[0] = IoSlice::new(&head);
        let all = parts[0].len() + parts[1].len();
        let sent = io::send(self.socket(), &parts).map_err(|error| self.lost(error))?.unwrap_or(0);
        if sent == all {
            return Ok(None);
        }
        let slots = if found.is_ok() { vec![reference.slot] } else { Vec::new() };
        let reply = Reply { head, slots, sent, page_size: payload.len() };
        Ok(Some(reply.stalled(&[found.ok()])))
    }

    /// Answers a request for several pages.
    fn several(&self, number: u64, entries: &[u8], page_size: usize) -> Answered {
        let count = entries.len() / ENTRY_LEN;
        let open = self.is_open();
        let mut statuses = Vec::with_capacity(count);
        let mut footers = Vec::with_capacity(count * FOOTER_LEN);
        let (mut chunks, mut slots) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for bytes in entries.chunks_exact(ENTRY_LEN) {
            let (reference, floor) = read_entry(bytes);
            let found = self.chunk(open, &reference).and_then(|chunk| {
                let footer = chunk.footer(reference.slot).ok_or(AccessFault::Stale)?;
                if !names(&footer, &reference) || version_of(&footer) < floor {
                    return Err(AccessFault::Stale);
                }
                footers.extend_from_slice(&footer);
                chunks.push(Some(chunk));
                slots.push(reference.slot);
                Ok(())
            });
            statuses.push(found);
        }
        let mut head = Vec::with_capacity(LONGEST_HEAD.min(HEADER_LEN + count * 2 + footers.len()));
        put_reply(&mut head, Kind::Plain, number, &statuses, page_size);
        head.extend_from_slice(&footers);
        let mut reply = Reply { head, slots, sent: 0, page_size };
        let done = reply.send(self.socket(), &chunks).map_err(|error| self.lost(error))?;
        Ok((!done).then(|| reply.stalled(&chunks)))
    }

    fn watch(&mut self, room: &mut Room<'_>) {
        let registration = room.registration();
        // A client that does not take its replies gets no more of its requests read.
        let stalled = self.stalled.is_some();
        registration.interest(self.socket(), !stalled, stalled);
        if stalled && !std::mem::replace(&mut self.looks, true) {
            room.wake_at(Instant::now() + self.server.settings.take_patience);
        }
    }
}

impl Reply {
    /// It waits until its reader takes more. `chunks` are those of its pages.
    fn stalled(self, chunks: &[Option<Arc<Chunk>>]) -> Stalled {
        let chunks = chunks.iter().flatten().map(Arc::downgrade).collect();
        Stalled { seen: (Instant::now(), self.sent), reply: self, chunks }
    }

    /// Sends as much as goes; whether that was all. `chunks` are those of its pages, as far as they
    /// are still there.
    fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        chunks: &[Option<Arc<Chunk>>],
    ) -> std::io::Result<bool> {
        let all = self.head.len() + self.slots.len() * self.page_size;
        // Sent in the place of a page whose chunk has gone.
        let has_gone = chunks.iter().any(Option::is_none);
        let gone = if has_gone { vec![0; self.page_size] } else { Vec::new() };
        while self.sent < all {
            let mut iovecs = Iovecs::new();
            let rest = &self.head[self.sent.min(self.head.len())..];
            iovecs.push(rest.as_ptr().cast_mut(), rest.len());
            let into = self.sent.saturating_sub(self.head.len());
            let (first, mut skip) = (into / self.page_size, into % self.page_size);
            for (chunk, slot) in chunks[first..].iter().zip(&self.slots[first..]) {
                let there = |chunk: &Arc<Chunk>| chunk.payload_address(*slot);
                let address = chunk.as_ref().map_or(gone.as_ptr(), there);
                iovecs.push(address.cast_mut().wrapping_add(skip), self.page_size - skip);
                skip = 0;
            }
            // SAFETY: the head is borrowed, and each page lies in the mapping of a chunk that
            // `chunks` keeps alive, or is `gone`, which is as long as a page. The kernel only
            // reads; that the pages may change meanwhile is for the reader's check to find out.
            match unsafe { io::send_raw(socket, &mut iovecs) }? {
                Some(n) => self.sent += n,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Stalled {
    /// Sends as much as goes; whether that was all.
    fn send(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<bool> {
        let chunks: Vec<_> = self.chunks.iter().map(Weak::upgrade).collect();
        self.reply.send(socket, &chunks)
    }
}

impl Source for AgentConnection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket()
    }

    fn begin(&mut self, room: &mut Room<'_>) -> Step {
        self.registration = Some(room.registration());
        Step::Idle
    }

    fn readable(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return Step::Close;
        }
        if self.stalled.is_some() {
            let gone = || self.fail(self.lost("closed by the client"));
            return if room.hangup { gone() } else { Step::Idle };
        }
        // The front takes requests, and what is behind it a page. No more requests than a longest
        // one, since that is what a connection holds whose client does not take its replies.
        let (front, back) = room.scratch.split_at_mut(LONGEST_REQUEST);
        let kept = self.requests.len();
        front[..kept].copy_from_slice(&self.requests);
        let arrived = match io::receive(self.socket(), &mut front[kept..]) {
            Ok(None) => return Step::Idle,
            Ok(Some(0)) => return self.fail(self.lost("closed by the client")),
            Ok(Some(n)) => kept + n,
            Err(error) => return self.fail(self.lost(error)),
        };
        match self.answer(&front[..arrived], back) {
            Ok(done) => {
                if kept > 0 || done < arrived {
                    self.requests = front[done..arrived].to_vec();
                }
                if self.stalled.is_some() {
                    self.watch(room);
                }
                Step::Served
            }
            Err(error) => self.fail(error),
        }
    }

    fn writable(&mut self, room: &mut Room<'_>) -> Step {
        if let Some(reply) = &mut self.stalled {
            match reply.send(self.handle.socket.as_fd()) {
                Ok(true) => self.stalled = None,
                Ok(false) => return Step::Idle,
                Err(error) => return self.fail(self.lost(error)),
            }
        }
        let requests = std::mem::take(&mut self.requests);
        match self.answer(&requests, room.scratch) {
            Ok(done) => self.requests = requests[done..].to_vec(),
            Err(error) => return self.fail(error),
        }
        if self.stalled.is_none() {
            self.watch(room);
        }
        Step::Served
    }

    fn expired(&mut self, room: &mut Room<'_>) -> Step {
        self.looks = false;
        let Some(stalled) = &mut self.stalled else { return Step::Idle };
        let (now, sent) = (Instant::now(), stalled.reply.sent);
        if sent >= stalled.seen.1 + LEAST {
            stalled.seen = (now, sent);
        }
        let end = stalled.seen.0 + self.server.settings.take_patience;
        if now >= end {
            return self.fail(self.lost("the client does not take its replies"));
        }
        self.looks = true;
        room.wake_at(end);
        Step::Idle
    }

    fn end(&mut self, stopping: bool) {
        io::shut_down(self.socket());
        self.link.second_ended(stopping);
    }
}

//! The server's side of one client's first connection.

use super::frame::{Header, Kind, Pull};
use super::hello::Ticket;
use super::inbox::{Body, Ended, Handler, Inbox, receive_two};
use super::io;
use super::memory::{SMALL, Share, Waiting};
use super::out::Out;
use super::reactor::{Registration, Room, Source, Step};
use super::server::{Counted, Server};
use crate::engine::{Capabilities, Link, LinkError, Tag, Transfer};
use foldhash::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often a connection that waits for receive memory asks again.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// The session's second connection, as its first one sees it.
pub(crate) trait Second: Send + Sync + fmt::Debug {
    /// The client may read one-sidedly from now on, or no longer.
    fn allow(&self, allow: bool);
    /// Ends the connection.
    fn close(&self);
}

/// The server's side of one client's connection.
pub(crate) struct StreamLink {
    id: u64,
    peer: String,
    ticket: Ticket,
    server: Arc<Server>,
    out: Mutex<Out>,
    registration: OnceLock<Registration>,
    reads_allowed: AtomicBool,
    closing: AtomicBool,
    reason: OnceLock<LinkError>,
    second: Mutex<Option<Arc<dyn Second>>>,
    /// Transfers from the client that are under way, by the id of the pull; `None` once closed.
    pulls: Mutex<Option<HashMap<u64, Pulled>>>,
    next_pull: AtomicU64,
}

impl fmt::Debug for StreamLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("peer", &self.peer).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stops() -> LinkError {
    LinkError::Closed("the server stops".to_owned())
}

impl StreamLink {
    pub(crate) fn new(
        id: u64,
        peer: String,
        ticket: Ticket,
        server: Arc<Server>,
        socket: Arc<OwnedFd>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            ticket,
            server,
            out: Mutex::new(Out::new(socket)),
            registration: OnceLock::new(),
            reads_allowed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            reason: OnceLock::new(),
            second: Mutex::new(None),
            pulls: Mutex::new(Some(HashMap::default())),
            next_pull: AtomicU64::new(1),
        })
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    pub(crate) fn reads_allowed(&self) -> bool {
        self.reads_allowed.load(Ordering::Acquire)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Takes the session's second connection; `false` where there is one already or the link is
    /// closing.
    pub(crate) fn attach(&self, second: Arc<dyn Second>) -> bool {
        let mut slot = lock(&self.second);
        if slot.is_some() || self.is_closing() {
            return false;
        }
        // Under the lock, so that no change of the permission falls between the two.
        second.allow(self.reads_allowed());
        *slot = Some(second);
        true
    }

    /// Ends the connection, for the first reason that is given. The event loop does the rest.
    pub(crate) fn fail(&self, reason: LinkError) {
        let _ = self.reason.set(reason);
        self.closing.store(true, Ordering::Release);
        if let Some(socket) = lock(&self.out).socket() {
            io::shut_down(socket.as_fd());
        }
    }

    /// The session's second connection has ended, and so this one does.
    pub(crate) fn second_ended(&self, stopping: bool) {
        self.fail(if stopping { stops() } else { self.lost("its second connection is closed") });
    }

    /// Why the connection ended.
    pub(crate) fn reason(&self) -> LinkError {
        let unknown = || self.lost("no reason was given");
        self.reason.get().cloned().unwrap_or_else(unknown)
    }

    pub(crate) fn lost(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }

    /// Runs `send` on the queue and deals with what comes of it.
    fn with_out<T: Default>(&self, send: impl FnOnce(&mut Out) -> std::io::Result<T>) -> T {
        let mut out = lock(&self.out);
        let waited = out.waits();
        let result = send(&mut out);
        if out.waits() != waited {
            self.update_interest(&out);
        }
        let over = out.held() > self.server.settings.send_queue;
        drop(out);
        if over {
            let held = self.server.settings.send_queue;
            self.fail(self.lost(format_args!(
                "the client does not take its replies: more than {held} bytes wait for it"
            )));
        }
        result.unwrap_or_else(|error| {
            self.fail(self.lost(error));
            T::default()
        })
    }

    fn update_interest(&self, out: &Out) {
        if let (Some(registration), Some(socket)) = (self.registration.get(), out.socket()) {
            registration.interest(socket.as_fd(), !out.paused, out.waits());
        }
    }

    fn pause(&self, paused: bool) {
        let mut out = lock(&self.out);
        out.paused = paused;
        self.update_interest(&out);
    }

    /// Lets go of everything: the connection is over.
    fn tear_down(&self) {
        self.closing.store(true, Ordering::Release);
        let reason = self.reason();
        self.server.forget(self);
        if let Some(socket) = lock(&self.out).socket() {
            io::shut_down(socket.as_fd());
        }
        let abandoned = lock(&self.out).close();
        abandoned.tell(&reason);
        let pulls = lock(&self.pulls).take();
        for pulled in pulls.into_iter().flat_map(|pulls| pulls.into_values()) {
            pulled.transfer.complete(Err(reason.clone()));
        }
        let second = lock(&self.second).take();
        if let Some(second) = second {
            second.close();
        }
    }
}

impl Link for StreamLink {
    fn id(&self) -> u64 {
        self.id
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.server.capabilities.clone()
    }

    fn send(&self, head: &[u8], data: &[u8]) {
        let limits = self.server.settings.limits();
        if head.len() > limits.head || data.len() > limits.data {
            let (head, data) = (head.len(), data.len());
            self.fail(LinkError::Closed(format!(
                "a message of {head} and {data} bytes exceeds the limits"
            )));
            return;
        }
        let header = Header::message(head.len(), data.len()).encode();
        self.with_out(|out| out.send([&header, head, data]));
    }

    fn write_to(&self, tag: Tag, data: Vec<u8>) -> Transfer {
        let transfer = Transfer::new();
        if self.is_closing() {
            transfer.complete(Err(self.reason()));
        } else if data.is_empty() {
            transfer.complete(Ok(data));
        } else {
            let header = Header::data(Kind::Data, tag, data.len()).encode();
            let handed = transfer.clone();
            self.with_out(|out| match out.socket() {
                Some(_) => out.send_transfer(&header, data, handed),
                None => {
                    handed.complete(Err(self.reason()));
                    Ok(Default::default())
                }
            })
            .tell();
        }
        transfer
    }

    fn read_from(&self, tag: Tag, offset: u64, buffer: Vec<u8>) -> Transfer {
        let transfer = Transfer::new();
        if buffer.is_empty() {
            transfer.complete(Ok(buffer));
            return transfer;
        }
        let id = self.next_pull.fetch_add(1, Ordering::Relaxed);
        let pull = Pull { id, offset, len: buffer.len() as u64 };
        let pulled = Pulled { id, buffer, filled: 0, transfer: transfer.clone() };
        match &mut *lock(&self.pulls) {
            Some(pulls) => {
                pulls.insert(id, pulled);
            }
            None => {
                transfer.complete(Err(self.reason()));
                return transfer;
            }
        }
        let head = pull.encode();
        let header = Header { kind: Kind::Pull, head_len: head.len() as u32, data_len: 0, tag };
        self.with_out(|out| out.send([&header.encode(), &head, &[]]));
        transfer
    }

    fn allow_reads(&self, allow: bool) {
        let second = lock(&self.second);
        self.reads_allowed.store(allow, Ordering::Release);
        if let Some(second) = &*second {
            second.allow(allow);
        }
    }

    fn close(&self, reason: &str) {
        self.fail(LinkError::Closed(reason.to_owned()));
    }
}

/// A transfer from the client that is under way.
pub(crate) struct Pulled {
    id: u64,
    buffer: Vec<u8>,
    filled: usize,
    transfer: Transfer,
}

/// A piece of a transfer on its way into the buffer.
pub(crate) struct Pulling {
    pulled: Option<Pulled>,
    link: Weak<StreamLink>,
}

impl Body for Pulling {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(pulled) = &mut self.pulled {
            pulled.buffer[pulled.filled..pulled.filled + bytes.len()].copy_from_slice(bytes);
            pulled.filled += bytes.len();
        }
    }

    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        left: usize,
        scratch: &mut [u8],
    ) -> std::io::Result<Option<(usize, usize)>> {
        let Some(pulled) = &mut self.pulled else { return Ok(None) };
        let place = &mut pulled.buffer[pulled.filled..pulled.filled + left];
        let Some(n) = receive_two(socket, place, scratch)? else { return Ok(None) };
        let placed = n.min(left);
        pulled.filled += placed;
        Ok(Some((placed, n - placed)))
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        if let Some(pulled) = self.pulled.take() {
            let gone = || LinkError::Closed("the connection is gone".to_owned());
            let reason = self.link.upgrade().map_or_else(gone, |link| link.reason());
            pulled.transfer.complete(Err(reason));
        }
    }
}

/// The event loop's side of a link.
pub(crate) struct RpcConnection {
    socket: Arc<OwnedFd>,
    link: Arc<StreamLink>,
    shown: Arc<dyn Link>,
    inbox: Inbox<Pulling>,
    share: Option<Share>,
    waiting: Option<Waiting>,
    /// When the incomplete message that has the share last grew.
    grown: Option<Instant>,
    begun: bool,
    _counted: Counted,
}

impl RpcConnection {
    pub(crate) fn new(socket: Arc<OwnedFd>, link: Arc<StreamLink>, counted: Counted) -> Self {
        let limits = link.server.settings.limits();
        Self {
            socket,
            shown: link.clone(),
            link,
            inbox: Inbox::new(limits),
            share: None,
            waiting: None,
            grown: None,
            begun: false,
            _counted: counted,
        }
    }

    fn close(&self, reason: LinkError) -> Step {
        self.link.fail(reason);
        Step::Close
    }

    /// Sees to it that an incomplete message has its share of the receive memory.
    fn share_memory(&mut self, room: &mut Room<'_>) -> Step {
        let Some(bytes) = self.inbox.gathering().filter(|&bytes| bytes > SMALL) else {
            (self.share, self.grown) = (None, None);
            return Step::Served;
        };
        let now = Instant::now();
        self.grown = Some(now);
        if self.share.is_some() {
            return Step::Served;
        }
        let memory = &self.link.server.memory;
        let trusted = self.link.reads_allowed();
        self.share = memory.take(trusted, bytes);
        if self.share.is_some() {
            if self.waiting.take().is_some() {
                self.link.pause(false);
            }
            room.wake_at(now + self.link.server.settings.patience);
        } else {
            if self.waiting.is_none() {
                self.waiting = memory.wait(trusted);
                if self.waiting.is_none() {
                    return self.close(self.link.lost("the receive memory is exhausted"));
                }
                self.link.pause(true);
            }
            room.wake_at(now + ASK_AGAIN);
        }
        Step::Served
    }
}

impl Source for RpcConnection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn begin(&mut self, room: &mut Room<'_>) -> Step {
        let _ = self.link.registration.set(room.registration());
        self.begun = true;
        self.link.server.service.connected(self.shown.clone());
        // What was queued meanwhile could not be registered for.
        let out = lock(&self.link.out);
        self.link.update_interest(&out);
        Step::Idle
    }

    fn readable(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return Step::Close;
        }
        if self.waiting.is_some() {
            if room.hangup {
                return self.close(self.link.lost("closed by the client"));
            }
            return Step::Idle;
        }
        let first = room.scratch.len();
        let mut handler = LinkHandler { link: &self.link, shown: &self.shown };
        match self.inbox.receive(self.socket.as_fd(), room.scratch, first, &mut handler) {
            Ok(got) if got.bytes == 0 => Step::Idle,
            Ok(_) if self.link.is_closing() => Step::Close,
            Ok(_) => self.share_memory(room),
            Err(Ended::Eof) => self.close(self.link.lost("closed by the client")),
            Err(Ended::Io(error)) => self.close(self.link.lost(error)),
            Err(Ended::Protocol(reason)) => {
                let peer = self.link.peer.clone();
                self.close(LinkError::Protocol { peer, reason })
            }
        }
    }

    fn writable(&mut self, _room: &mut Room<'_>) -> Step {
        self.link.with_out(Out::flush).tell();
        if self.link.is_closing() { Step::Close } else { Step::Idle }
    }

    fn expired(&mut self, room: &mut Room<'_>) -> Step {
        if self.waiting.is_some() {
            return match self.share_memory(room) {
                Step::Close => Step::Close,
                _ => Step::Idle,
            };
        }
        let (Some(share), Some(grown)) = (&self.share, self.grown) else { return Step::Idle };
        let patience = self.link.server.settings.patience;
        if grown.elapsed() >= patience && share.wanted() {
            return self
                .close(self.link.lost(
                    "a message stood still, incomplete, while others waited for its memory",
                ));
        }
        room.wake_at(Instant::now() + patience);
        Step::Idle
    }

    fn end(&mut self, stopping: bool) {
        if stopping {
            self.link.fail(stops());
        }
        self.link.tear_down();
        self.inbox.clear();
        (self.share, self.waiting) = (None, None);
        if self.begun {
            let reason = self.link.reason();
            match &reason {
                LinkError::Protocol { .. } => {
                    tracing::warn!(link = self.link.id, %reason, "closed")
                }
                _ => tracing::debug!(link = self.link.id, %reason, "closed"),
            }
            self.link.server.service.closed(&self.shown, &reason);
        }
    }
}

struct LinkHandler<'a> {
    link: &'a Arc<StreamLink>,
    shown: &'a Arc<dyn Link>,
}

impl Handler for LinkHandler<'_> {
    type Body = Pulling;

    fn whole(&mut self, header: &Header, head: &[u8], data: &[u8]) -> Result<(), String> {
        match header.kind {
            Kind::Message => {
                if !self.link.is_closing() {
                    self.link.server.service.message(self.shown, head, data);
                }
                Ok(())
            }
            Kind::PullRefused => {
                let pulled = lock(&self.link.pulls).as_mut().and_then(|p| p.remove(&header.tag));
                let Some(pulled) = pulled else {
                    return Err(format!("an answer to pull {}, which is not open", header.tag));
                };
                pulled.transfer.complete(Err(LinkError::Closed(
                    "the client has withdrawn the buffer".to_owned(),
                )));
                Ok(())
            }
            kind => Err(format!("a {kind:?} frame from a client")),
        }
    }

    fn place(&mut self, header: &Header) -> Result<Pulling, String> {
        if header.kind != Kind::PullData {
            return Err(format!("a {:?} frame from a client", header.kind));
        }
        let pulled = lock(&self.link.pulls).as_mut().and_then(|p| p.remove(&header.tag));
        let pulling = Pulling { pulled, link: Arc::downgrade(self.link) };
        let Some(pulled) = &pulling.pulled else {
            return Err(format!("data for pull {}, which is not open", header.tag));
        };
        if header.data_len > (pulled.buffer.len() - pulled.filled) as u64 {
            return Err(format!("{} bytes for pull {}: too many", header.data_len, header.tag));
        }
        Ok(pulling)
    }

    fn placed(&mut self, mut body: Pulling) {
        let Some(pulled) = body.pulled.take() else { return };
        if pulled.filled == pulled.buffer.len() {
            pulled.transfer.complete(Ok(pulled.buffer));
            return;
        }
        match &mut *lock(&self.link.pulls) {
            Some(pulls) => {
                pulls.insert(pulled.id, pulled);
            }
            None => body.pulled = Some(pulled),
        }
    }
}

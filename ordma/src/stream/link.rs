//! The server's side of one client's first connection.

use super::connection::Pulled;
use super::frame::{Header, Kind, Pull};
use super::hello::Ticket;
use super::io;
use super::out::Out;
use super::server::Server;
use crate::engine::{Capabilities, Link, LinkError, ReadAccess, Tag, Transfer};
use crate::gate::WrongProof;
use crate::lock;
use crate::party::{Party, PartyCell};
use crate::reactor::Registration;
use arc_swap::ArcSwapOption;
use foldhash::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Instant;

/// The session's second connection, as its first one sees it.
pub(crate) trait Second: Send + Sync + fmt::Debug {
    /// The client may read one-sidedly from now on, or no longer. The error says what is wrong with
    /// the proof that it has sent.
    fn allow(&self, access: Option<Arc<ReadAccess>>) -> Result<(), WrongProof>;
    /// Ends the connection.
    fn close(&self);
}

/// The server's side of one client's connection.
pub(crate) struct StreamLink {
    pub(super) id: u64,
    pub(super) peer: String,
    party: PartyCell,
    ticket: Ticket,
    pub(super) server: Arc<Server>,
    pub(super) out: Mutex<Out>,
    pub(super) registration: OnceLock<Registration>,
    access: ArcSwapOption<ReadAccess>,
    closing: AtomicBool,
    reason: OnceLock<LinkError>,
    second: Mutex<Option<Arc<dyn Second>>>,
    /// Transfers from the client that are under way, by the id of the pull; `None` once closed.
    pub(super) pulls: Mutex<Option<HashMap<u64, Pulled>>>,
    next_pull: AtomicU64,
    /// Part of a pull is on its way into its buffer.
    pub(super) pulling: AtomicBool,
    /// Bytes that pulls have brought.
    pub(super) pulled: AtomicU64,
    this: Weak<Self>,
}

impl fmt::Debug for StreamLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("peer", &self.peer).finish()
    }
}

/// Why all connections of a server end.
pub(crate) fn stops() -> LinkError {
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
        Arc::new_cyclic(|this| Self {
            id,
            party: PartyCell::of_peer(&peer),
            peer,
            ticket,
            server,
            out: Mutex::new(Out::new(socket)),
            registration: OnceLock::new(),
            access: ArcSwapOption::empty(),
            closing: AtomicBool::new(false),
            reason: OnceLock::new(),
            second: Mutex::new(None),
            pulls: Mutex::new(Some(HashMap::default())),
            next_pull: AtomicU64::new(1),
            pulling: AtomicBool::new(false),
            pulled: AtomicU64::new(0),
            this: this.clone(),
        })
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Whose share of the server's memory it takes.
    pub(super) fn party(&self) -> Party {
        self.party.get()
    }

    pub(crate) fn reads_allowed(&self) -> bool {
        self.access.load().is_some()
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
        // No proof has come yet that could be wrong.
        let _ = second.allow(self.access.load_full());
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

    pub(crate) fn broken(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Protocol { peer: self.peer.clone(), reason: reason.to_string() }
    }

    /// Runs `send` on the queue and deals with what comes of it.
    pub(super) fn with_out<T: Default>(
        &self,
        send: impl FnOnce(&mut Out) -> std::io::Result<T>,
    ) -> T {
        let mut out = lock(&self.out);
        let waited = out.waits();
        let result = send(&mut out);
        let waits = out.waits();
        if waits != waited {
            self.update_interest(&out);
        }
        let grown = out.count(&self.server.untaken);
        let over = out.held() > self.server.settings.send_queue;
        drop(out);
        if over {
            self.fail(self.lost(self.server.settings.not_taken()));
        } else if grown {
            self.server.make_room();
        }
        if waits && !waited {
            self.watch();
        }
        result.unwrap_or_else(|error| {
            self.fail(self.lost(error));
            T::default()
        })
    }

    /// Has it looked at whether what waits for the client moves.
    fn watch(&self) {
        if let Some(this) = self.this.upgrade() {
            self.server.watch(&this);
        }
    }

    /// How many bytes were moved of all that has waited for the client; `None` where nothing waits.
    pub(super) fn moved(&self) -> Option<u64> {
        let out = lock(&self.out);
        let pulls = lock(&self.pulls).as_ref().is_some_and(|pulls| !pulls.is_empty());
        let waits = out.waits() || pulls || self.pulling.load(Ordering::Relaxed);
        waits.then(|| out.moved() + self.pulled.load(Ordering::Relaxed))
    }

    /// Bytes that wait for the client, and since when none of them has been taken.
    pub(super) fn untaken(&self) -> Option<(usize, Instant)> {
        lock(&self.out).untaken()
    }

    pub(super) fn update_interest(&self, out: &Out) {
        if let (Some(registration), Some(socket)) = (self.registration.get(), out.socket()) {
            registration.interest(socket.as_fd(), !out.paused, out.waits());
        }
    }

    pub(super) fn pause(&self, paused: bool) {
        let mut out = lock(&self.out);
        out.paused = paused;
        self.update_interest(&out);
    }

    /// Lets go of everything: the connection is over.
    pub(super) fn tear_down(&self) {
        self.closing.store(true, Ordering::Release);
        let reason = self.reason();
        self.server.forget(self);
        if let Some(socket) = lock(&self.out).socket() {
            io::shut_down(socket.as_fd());
        }
        let abandoned = {
            let mut out = lock(&self.out);
            let abandoned = out.close();
            out.count(&self.server.untaken);
            abandoned
        };
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
        if let Err(over) = self.server.settings.limits().check(head.len(), data.len()) {
            self.fail(LinkError::Closed(over));
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
        transfer.advance(0);
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
        self.watch();
        transfer
    }

    fn allow_reads(&self, access: Option<ReadAccess>) {
        let second = lock(&self.second);
        let access = access.map(Arc::new);
        self.access.store(access.clone());
        if let Some(Err(error)) = second.as_ref().map(|second| second.allow(access)) {
            self.fail(self.broken(error));
        }
    }

    fn belongs_to(&self, party: Party) {
        self.party.set(party);
    }

    fn close(&self, reason: &str) {
        self.fail(LinkError::Closed(reason.to_owned()));
    }
}

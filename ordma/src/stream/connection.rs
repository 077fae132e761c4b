//! The event loop's side of one client's first connection: what arrives on it.

use super::frame::{Header, Kind};
use super::inbox::{Body, Ended, Handler, Inbox, receive_two};
use super::link::{StreamLink, stops};
use super::memory::{ASK_AGAIN, Gathering, May, STANDS_STILL};
use super::out::Out;
use super::server::Counted;
use crate::complaints;
use crate::engine::{Link, LinkError, Transfer};
use crate::lock;
use crate::reactor::{Room, Source, Step};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A transfer from the client that is under way.
pub(crate) struct Pulled {
    pub(super) id: u64,
    pub(super) buffer: Vec<u8>,
    pub(super) filled: usize,
    pub(super) transfer: Transfer,
}

/// A piece of a transfer on its way into the buffer.
pub(crate) struct Pulling {
    pulled: Option<Pulled>,
    link: Weak<StreamLink>,
}

impl Pulled {
    /// So many bytes more have arrived.
    fn grow(&mut self, bytes: usize) {
        self.filled += bytes;
        self.transfer.advance(self.filled as u64);
    }
}

impl Body for Pulling {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(pulled) = &mut self.pulled {
            pulled.buffer[pulled.filled..pulled.filled + bytes.len()].copy_from_slice(bytes);
            pulled.grow(bytes.len());
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
        pulled.grow(placed);
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
    gathering: Gathering,
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
            gathering: Gathering::default(),
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
        let (memory, trusted) = (&self.link.server.memory, self.link.reads_allowed());
        let waited = self.gathering.waits();
        let party = || self.link.party();
        match self.gathering.share(memory, trusted, party, self.inbox.gathering()) {
            May::Go => {}
            May::Begin => {
                if waited {
                    self.link.pause(false);
                }
                room.wake_at(Instant::now() + self.link.server.settings.patience);
            }
            May::Wait => {
                if !waited {
                    self.link.pause(true);
                }
                room.wake_at(Instant::now() + ASK_AGAIN);
            }
            May::Never => return self.close(self.link.lost("the receive memory is exhausted")),
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
        if self.gathering.waits() {
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
        if self.gathering.waits() {
            return match self.share_memory(room) {
                Step::Close => Step::Close,
                _ => Step::Idle,
            };
        }
        let Some(still) = self.gathering.stands_still(&self.link.server.memory) else {
            return Step::Idle;
        };
        let patience = self.link.server.settings.patience;
        if still.is_some_and(|still| still >= patience) {
            return self.close(self.link.lost(STANDS_STILL));
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
        self.gathering = Gathering::default();
        if self.begun {
            let reason = self.link.reason();
            match &reason {
                LinkError::Protocol { peer, .. } => {
                    if let Some(untold) = complaints::take("closed", peer) {
                        tracing::warn!(link = self.link.id, %reason, untold, "closed");
                    }
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
        self.link.pulling.store(true, Ordering::Relaxed);
        self.link.pulled.fetch_add(header.data_len, Ordering::Relaxed);
        Ok(pulling)
    }

    fn placed(&mut self, mut body: Pulling) {
        self.link.pulling.store(false, Ordering::Relaxed);
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

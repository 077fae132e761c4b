//! The server's agent: answers requests for pages from the arena.
//!
//! A single page is copied out with its footer and sent from the copy. Of several, only the footers
//! are copied, and the kernel takes the payloads from where they lie. Either way they are read at
//! different times, and the client's check of the page tells whether they belong together.

use super::wire::{
    ENTRY_LEN, HEADER_LEN, LONGEST_HEAD, LONGEST_REQUEST, entry, put_reply, request,
};
use crate::AccessFault;
use crate::RemoteRef;
use crate::arena::Chunk;
use crate::region::Iovecs;
use crate::slot::{FOOTER_LEN, names, version_of};
use crate::stream::io;
use crate::stream::link::{Second, StreamLink};
use crate::stream::reactor::{Registration, Room, Source, Step};
use crate::stream::server::{Counted, Server};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The one-sided connection as its link sees it.
#[derive(Debug)]
struct Handle(Arc<OwnedFd>);

impl Second for Handle {
    /// The agent asks the link with every request.
    fn allow(&self, _allow: bool) {}

    fn close(&self) {
        io::shut_down(self.0.as_fd());
    }
}

/// The event loop's side of a one-sided connection.
pub(crate) struct AgentConnection {
    socket: Arc<OwnedFd>,
    link: Arc<StreamLink>,
    server: Arc<Server>,
    registration: Option<Registration>,
    /// Requests that are incomplete or wait for a reply to go out; empty when idle.
    requests: Vec<u8>,
    /// The reply that is going out.
    stalled: Option<Reply>,
    _counted: Counted,
}

/// A reply of which part has not gone out. Holds no payload: what remains is taken from the slots
/// when it goes.
struct Reply {
    head: Vec<u8>,
    pages: Vec<(Arc<Chunk>, u32)>,
    sent: usize,
    page_size: usize,
}

impl AgentConnection {
    /// Makes `socket` the one-sided connection of `link`.
    pub(crate) fn attach(
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        welcome: &[u8],
    ) -> bool {
        if !link.attach(Arc::new(Handle(Arc::clone(&socket)))) {
            return false;
        }
        crate::stream::welcome::say(&socket, welcome);
        let agent = Arc::clone(server.agent(&link));
        agent.adopt(Box::new(Self {
            socket,
            link,
            server: Arc::clone(server),
            registration: None,
            requests: Vec::new(),
            stalled: None,
            _counted: counted,
        }));
        true
    }

    fn lost(&self, reason: impl std::fmt::Display) -> Step {
        self.link.fail(self.link.lost(format_args!("one-sided connection: {reason}")));
        Step::Close
    }

    /// Answers the requests in `bytes`, and returns how many bytes of it are done with.
    fn answer(&mut self, mut bytes: &[u8], scratch: &mut [u8]) -> Result<usize, String> {
        let all = bytes.len();
        while bytes.len() >= HEADER_LEN && self.stalled.is_none() {
            let Some((number, count)) = request(bytes) else {
                return Err("a request for no pages, or for too many".to_owned());
            };
            let Some(entries) = bytes.get(HEADER_LEN..HEADER_LEN + count * ENTRY_LEN) else {
                break;
            };
            let page_size = self.server.arena.geometry().page_size;
            self.stalled = if count == 1 {
                self.single(number, entries, &mut scratch[..page_size])
            } else {
                self.several(number, entries, page_size)
            }
            .map_err(|error| error.to_string())?;
            bytes = &bytes[HEADER_LEN + count * ENTRY_LEN..];
        }
        Ok(all - bytes.len())
    }

    fn chunk(&self, reference: &RemoteRef) -> Result<Arc<Chunk>, AccessFault> {
        if !self.link.reads_allowed() {
            return Err(AccessFault::Revoked);
        }
        self.server.arena.chunk(reference.chunk).ok_or(AccessFault::Gone)
    }

    /// Answers a request for one page; what does not go out comes back.
    fn single(
        &self,
        number: u64,
        entries: &[u8],
        payload: &mut [u8],
    ) -> std::io::Result<Option<Reply>> {
        let (reference, floor) = entry(entries);
        let mut footer = [0; FOOTER_LEN];
        let found = self.chunk(&reference).and_then(|chunk| {
            let there = chunk.copy_out(reference.slot, payload, &mut footer);
            let good = there && names(&footer, &reference) && version_of(&footer) >= floor;
            if good { Ok(chunk) } else { Err(AccessFault::Stale) }
        });
        let mut head = Vec::with_capacity(HEADER_LEN + FOOTER_LEN);
        put_reply(
            &mut head,
            number,
            &[found.as_ref().map(drop).map_err(|fault| *fault)],
            payload.len(),
        );
        let mut parts = [IoSlice::new(&[]), IoSlice::new(&[])];
        if found.is_ok() {
            head.extend_from_slice(&footer);
            parts[1] = IoSlice::new(payload);
        }
        parts[0] = IoSlice::new(&head);
        let all = parts[0].len() + parts[1].len();
        let sent = io::send(self.socket.as_fd(), &parts)?.unwrap_or(0);
        if sent == all {
            return Ok(None);
        }
        let pages = found.into_iter().map(|chunk| (chunk, reference.slot)).collect();
        Ok(Some(Reply { head, pages, sent, page_size: payload.len() }))
    }

    /// Answers a request for several pages; what does not go out comes back.
    fn several(
        &self,
        number: u64,
        entries: &[u8],
        page_size: usize,
    ) -> std::io::Result<Option<Reply>> {
        let count = entries.len() / ENTRY_LEN;
        let mut statuses = Vec::with_capacity(count);
        let mut footers = Vec::with_capacity(count * FOOTER_LEN);
        let mut pages = Vec::with_capacity(count);
        for bytes in entries.chunks_exact(ENTRY_LEN) {
            let (reference, floor) = entry(bytes);
            let found = self.chunk(&reference).and_then(|chunk| {
                let footer = chunk.footer(reference.slot).ok_or(AccessFault::Stale)?;
                if !names(&footer, &reference) || version_of(&footer) < floor {
                    return Err(AccessFault::Stale);
                }
                footers.extend_from_slice(&footer);
                pages.push((chunk, reference.slot));
                Ok(())
            });
            statuses.push(found);
        }
        let mut head = Vec::with_capacity(LONGEST_HEAD.min(HEADER_LEN + count * 2 + footers.len()));
        put_reply(&mut head, number, &statuses, page_size);
        head.extend_from_slice(&footers);
        let mut reply = Reply { head, pages, sent: 0, page_size };
        let done = reply.send(self.socket.as_fd())?;
        Ok((!done).then_some(reply))
    }

    fn watch(&self, room: &Room<'_>) {
        let registration = room.registration();
        // A client that does not take its replies gets no more of its requests read.
        let stalled = self.stalled.is_some();
        registration.interest(self.socket.as_fd(), !stalled, stalled);
    }
}

impl Reply {
    /// Sends as much as goes; whether that was all.
    fn send(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<bool> {
        let all = self.head.len() + self.pages.len() * self.page_size;
        while self.sent < all {
            let mut iovecs = Iovecs::new();
            let rest = &self.head[self.sent.min(self.head.len())..];
            iovecs.push(rest.as_ptr().cast_mut(), rest.len());
            let into = self.sent.saturating_sub(self.head.len());
            let (first, mut skip) = (into / self.page_size, into % self.page_size);
            for (chunk, slot) in &self.pages[first..] {
                let address = chunk.payload_address(*slot);
                iovecs.push(address.cast_mut().wrapping_add(skip), self.page_size - skip);
                skip = 0;
            }
            // SAFETY: the head is borrowed, and each page lies in the mapping of a chunk that this
            // reply keeps alive. The kernel only reads; that the pages may change meanwhile is for
            // the reader's check to find out.
            match unsafe { io::send_raw(socket, &mut iovecs) }? {
                Some(n) => self.sent += n,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Source for AgentConnection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
            return if room.hangup { self.lost("closed by the client") } else { Step::Idle };
        }
        // The front takes requests, and what is behind it a page. No more requests than a longest
        // one, since that is what a connection holds whose client does not take its replies.
        let (front, back) = room.scratch.split_at_mut(LONGEST_REQUEST);
        let kept = self.requests.len();
        front[..kept].copy_from_slice(&self.requests);
        let arrived = match io::receive(self.socket.as_fd(), &mut front[kept..]) {
            Ok(None) => return Step::Idle,
            Ok(Some(0)) => return self.lost("closed by the client"),
            Ok(Some(n)) => kept + n,
            Err(error) => return self.lost(error),
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
            Err(error) => self.lost(error),
        }
    }

    fn writable(&mut self, room: &mut Room<'_>) -> Step {
        if let Some(reply) = &mut self.stalled {
            match reply.send(self.socket.as_fd()) {
                Ok(true) => self.stalled = None,
                Ok(false) => return Step::Idle,
                Err(error) => return self.lost(error),
            }
        }
        let requests = std::mem::take(&mut self.requests);
        match self.answer(&requests, room.scratch) {
            Ok(done) => self.requests = requests[done..].to_vec(),
            Err(error) => return self.lost(error),
        }
        if self.stalled.is_none() {
            self.watch(room);
        }
        Step::Served
    }

    fn end(&mut self, stopping: bool) {
        io::shut_down(self.socket.as_fd());
        self.link.second_ended(stopping);
    }
}

//! The client's one-sided connection: asks for pages, receives them into their places and judges
//! each as soon as it is there.

use super::posting::{Flight, Posting};
use super::wire::{
    HEADER_LEN, Kind, LONGEST_HEAD, ReplyHeader, Tag, status, status_byte, statuses_len, tags_len,
};
use crate::AccessFault;
use crate::arena::Geometry;
use crate::client::ReadLane;
use crate::engine::{LinkError, Outcome, PageReads, ReadBatch};
use crate::lock;
use crate::region::{Access, Iovecs, with_iovecs};
use crate::slot::{FOOTER_LEN, accept};
use crate::stream::io;
use crate::stream::placing::receive_into;
use crate::turn::{Handled, Lane};
use dafs_keys::tags::{ConnectionNonce, TAG_LEN, second_connection_proof};
use dafs_keys::{ReplyKey, Secret};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of the buffer that the heads of replies arrive in, and small pages that are asked for one
/// by one and come in a row.
const SCRATCH: usize = 80 << 10;

/// The largest page there is.
const MAX_PAGE: usize = 64 << 10;

/// The one-sided connection.
pub(crate) struct Reads {
    socket: OwnedFd,
    peer: String,
    page_size: usize,
    nonce: ConnectionNonce,
    /// Once the connection has proved itself.
    reply_key: OnceLock<ReplyKey>,
    posting: Mutex<Posting>,
    receiving: Mutex<Receiving>,
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What has arrived.
struct Receiving {
    scratch: Vec<u8>,
    /// What is in the scratch buffer and not yet taken.
    start: usize,
    end: usize,
    /// The reply whose payloads are arriving.
    reply: Option<Reply>,
    /// What the tag of a page is over.
    tagged: Vec<u8>,
    /// Outcomes of the first pages of the batch that the next reply belongs to.
    outcomes: Vec<Outcome>,
    /// Batches that are done, to be completed once no lock is held, since that may run anything.
    done: Vec<Done>,
}

type Done = (Arc<ReadBatch>, Vec<Outcome>);

struct Reply {
    flight: Flight,
    /// By page: its footer, or why there is none.
    heads: Vec<Result<[u8; FOOTER_LEN], AccessFault>>,
    /// By page, where the request was tagged.
    tags: Vec<Tag>,
    /// The page that is arriving, and how much of it is there.
    page: usize,
    at: usize,
}

impl Reads {
    /// The connection, with the nonce that the server gave it; `same_host` where the server is on
    /// this host.
    pub(crate) fn new(
        socket: OwnedFd,
        peer: String,
        geometry: Geometry,
        nonce: ConnectionNonce,
        same_host: bool,
    ) -> Self {
        Self {
            socket,
            peer,
            page_size: geometry.page_size,
            nonce,
            reply_key: OnceLock::new(),
            posting: Mutex::new(Posting::new(geometry.page_size, nonce, same_host)),
            receiving: Mutex::new(Receiving {
                scratch: vec![0; SCRATCH],
                start: 0,
                end: 0,
                reply: None,
                tagged: Vec::new(),
                outcomes: Vec::new(),
                done: Vec::new(),
            }),
        }
    }

    /// Shows that the connection is its session's, before all requests to come. Once only. Whether
    /// something waits for the connection to become writable.
    pub(crate) fn prove(&self, connection: &Secret) -> bool {
        let mut posting = lock(&self.posting);
        let first = self.reply_key.set(ReplyKey::derive(connection, &self.nonce)).is_ok();
        let proof = second_connection_proof(connection, &self.nonce);
        first && !posting.is_closed() && posting.prove(proof, self.socket.as_fd())
    }

    /// Asks for pages. Also says whether requests wait for the connection to become writable.
    pub(crate) fn post(&self, reads: PageReads) -> (Arc<ReadBatch>, bool) {
        let batch = ReadBatch::new(reads);
        if batch.reads.pages().is_empty() {
            batch.complete(Vec::new());
            return (batch, false);
        }
        // Without a key the server would not answer, nor could an answer be told from anyone else's.
        if let Some(fault) = batch.reads.unfit(self.page_size, self.reply_key.get().is_some()) {
            batch.fail(fault);
            return (batch, false);
        }
        let mut posting = lock(&self.posting);
        if posting.is_closed() {
            drop(posting);
            batch.fail(AccessFault::Unreachable);
            return (batch, false);
        }
        posting.add(&batch);
        let queued = posting.begin(self.socket.as_fd());
        (batch, queued)
    }

    fn lost(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }

    fn broken(&self, reason: &str) -> LinkError {
        LinkError::Protocol { peer: self.peer.clone(), reason: reason.to_owned() }
    }

    fn received(&self, got: std::io::Result<Option<usize>>) -> Result<Option<usize>, LinkError> {
        match got {
            Ok(Some(0)) => Err(self.lost("closed by the server")),
            Ok(got) => Ok(got),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// How many requests are under way, and kind and pages of the first.
    fn under_way(&self) -> (usize, Kind, usize) {
        lock(&self.posting).under_way()
    }

    /// The longest head that the reply to a request for `count` pages can have.
    fn longest_head(kind: Kind, count: usize) -> usize {
        HEADER_LEN + statuses_len(count) + tags_len(kind, count) + count * FOOTER_LEN
    }

    /// Receives the reply to a request for one page when no other is under way: it goes to its place
    /// at once. Bytes of a reply that is not there whole are left for the ordinary way.
    fn receive_single(&self, r: &mut Receiving) -> Result<Option<usize>, LinkError> {
        let Some(flight) = lock(&self.posting).first().cloned() else { return Ok(None) };
        let place = flight.batch.reads.place(&flight.pages()[0]);
        let mut head = [0; HEADER_LEN + TAG_LEN + FOOTER_LEN];
        let head = &mut head[..Self::longest_head(flight.kind, 1)];
        let mut iovecs = Iovecs::new();
        iovecs.push(head.as_mut_ptr(), head.len());
        let scratch = &mut r.scratch[head.len()..];
        let got = with_iovecs(std::iter::once(place), Access::Write, iovecs, |iovecs| {
            let [_, place] = iovecs.as_mut_slice() else { return Ok(None) };
            if place.iov_base.is_null() {
                // The page is no longer wanted.
                place.iov_base = scratch.as_mut_ptr().cast();
            }
            let place = place.iov_base.cast::<u8>();
            // SAFETY: the vectors are `head`, part of a locked region or the scratch buffer, which
            // has room for the largest page, each of them exclusively ours for the time of the call.
            let got = unsafe { io::receive_raw(self.socket.as_fd(), iovecs) };
            let payload =
                got.as_ref().ok().and_then(|n| *n).unwrap_or(0).saturating_sub(head.len());
            if payload > 0 && head[10] != 0 && place != scratch.as_mut_ptr() {
                // A fault has no payload: these bytes are of the reply to a request that another
                // thread has sent meanwhile.
                // SAFETY: the call has just put as many bytes there; the region is still locked.
                scratch[..payload]
                    .copy_from_slice(unsafe { std::slice::from_raw_parts(place, payload) });
            }
            got
        });
        let Some(n) = self.received(got)? else { return Ok(None) };
        let in_head = n.min(head.len());
        r.scratch[..in_head].copy_from_slice(&head[..in_head]);
        let good = head[10] == 0;
        (r.start, r.end) = (0, if good { in_head } else { n });
        self.parse_head(r)?;
        if let Some(reply) = r.reply.as_mut().filter(|_| good) {
            reply.at = n - in_head;
        }
        Ok(Some(n))
    }

    /// Receives as the state demands. `None` where nothing has arrived.
    fn receive_some(&self, r: &mut Receiving) -> Result<Option<usize>, LinkError> {
        let (under_way, kind, front) = self.under_way();
        let buffered = r.end - r.start;
        if r.reply.is_none() && buffered == 0 && under_way == 1 && front == 1 {
            return self.receive_single(r);
        }
        if let Some(reply) = &r.reply {
            // The payloads that are missing, and the head of the reply after them.
            let next = match (under_way, front) {
                (0, _) => 0,
                (_, 1) => SCRATCH,
                (_, count) => Self::longest_head(kind, count),
            };
            let good = |i: &usize| reply.heads[*i].is_ok();
            let (reads, pages) = (&reply.flight.batch.reads, reply.flight.pages());
            let (first, at) = (reply.page, reply.at);
            let parts = (first..reply.flight.count).filter(good).map(|i| {
                let skip = if i == first { at } else { 0 };
                let (region, start, size) = reads.place(&pages[i]);
                (region, start + skip, size - skip)
            });
            let left = parts.clone().map(|(_, _, len)| len).sum();
            let got = receive_into(self.socket.as_fd(), parts, left, &mut r.scratch, next);
            let got = got.map_err(|error| self.lost(error))?;
            let Some((placed, spilled)) = got else { return Ok(None) };
            if placed + spilled == 0 {
                return Err(self.lost("closed by the server"));
            }
            (r.start, r.end) = (0, spilled);
            self.advance(r, placed)?;
            return Ok(Some(placed + spilled));
        }
        r.scratch.copy_within(r.start..r.end, 0);
        (r.start, r.end) = (0, buffered);
        // Not more than the head where several payloads follow it: those go to their places. Where
        // nothing was under way, another thread may have asked meanwhile and be answered already.
        let want = if front == 1 { SCRATCH } else { Self::longest_head(kind, front) };
        let got =
            io::receive(self.socket.as_fd(), &mut r.scratch[buffered..want.max(buffered + 1)]);
        let Some(n) = self.received(got)? else { return Ok(None) };
        r.end += n;
        Ok(Some(n))
    }

    /// Takes the head of a reply from the scratch buffer, if it is there whole.
    fn parse_head(&self, r: &mut Receiving) -> Result<bool, LinkError> {
        let bytes = &r.scratch[r.start..r.end];
        if bytes.len() < HEADER_LEN {
            return Ok(false);
        }
        let header = ReplyHeader::decode(bytes);
        let (statuses, tags) = match lock(&self.posting).first() {
            Some(flight) if flight.number == header.number && flight.count == header.count => {
                (statuses_len(flight.count), tags_len(flight.kind, flight.count))
            }
            _ => return Err(self.broken("a reply to another request")),
        };
        let single = [header.single];
        let codes = match header.count {
            1 => &single[..],
            count if bytes.len() < HEADER_LEN + statuses => {
                let _ = count;
                return Ok(false);
            }
            count => &bytes[HEADER_LEN..HEADER_LEN + count],
        };
        let good = codes.iter().filter(|code| **code == 0).count();
        if header.rest != statuses + tags + good * (FOOTER_LEN + self.page_size) {
            return Err(self.broken("a reply of the wrong length"));
        }
        let footers = HEADER_LEN + statuses + tags;
        let len = footers + good * FOOTER_LEN;
        if bytes.len() < len {
            return Ok(false);
        }
        let tags = bytes[HEADER_LEN + statuses..footers].as_chunks().0.to_vec();
        let mut footers = bytes[footers..len].chunks_exact(FOOTER_LEN);
        let mut heads = Vec::with_capacity(header.count);
        for code in codes {
            let status = status(*code).ok_or_else(|| self.broken("a status of no meaning"))?;
            heads.push(status.map(|()| {
                let mut footer = [0; FOOTER_LEN];
                footer.copy_from_slice(footers.next().unwrap_or(&[0; FOOTER_LEN]));
                footer
            }));
        }
        r.start += len;
        let Some(flight) = lock(&self.posting).next(self.socket.as_fd()) else { return Ok(false) };
        r.reply = Some(Reply { flight, heads, tags, page: 0, at: 0 });
        Ok(true)
    }

    /// Goes on after `placed` more bytes are in their places: judges the pages that are complete.
    fn advance(&self, r: &mut Receiving, placed: usize) -> Result<(), LinkError> {
        let Some(reply) = &mut r.reply else { return Ok(()) };
        reply.at += placed;
        while reply.page < reply.flight.count {
            if reply.heads[reply.page].is_ok() {
                let Some(after) = reply.at.checked_sub(self.page_size) else { return Ok(()) };
                reply.at = after;
            }
            r.outcomes.push(self.judge(reply, &mut r.tagged)?);
            reply.page += 1;
        }
        let flight = &reply.flight;
        if flight.first + flight.count == flight.batch.reads.pages().len() {
            r.done.push((Arc::clone(&flight.batch), std::mem::take(&mut r.outcomes)));
        }
        r.reply = None;
        Ok(())
    }

    /// Judges the page of a reply that has arrived. The error says that it is not the server's.
    fn judge(&self, reply: &Reply, tagged: &mut Vec<u8>) -> Result<Outcome, LinkError> {
        let reads = &reply.flight.batch.reads;
        let page = &reply.flight.pages()[reply.page];
        match &reply.heads[reply.page] {
            Err(fault) => self.check(reply, Err(*fault), &[], tagged).map(|()| Err(*fault)),
            Ok(footer) => {
                let judge = |payload: &mut [u8]| {
                    self.check(reply, Ok(()), &[footer, payload], tagged)?;
                    Ok(accept(footer, payload, &page.reference, page.floor, reads.key()))
                };
                // A place that is gone gets nothing.
                reads.with_place(page, judge).unwrap_or(Ok(Err(AccessFault::Unreachable)))
            }
        }
    }

    /// Checks the tag of the page, where the request was tagged: over its status and these bytes.
    fn check(
        &self,
        reply: &Reply,
        status: Result<(), AccessFault>,
        bytes: &[&[u8]],
        tagged: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        let Some(tag) = reply.tags.get(reply.page) else { return Ok(()) };
        if status == Err(AccessFault::Revoked) && *tag == [0; TAG_LEN] {
            // The server had no key to tag it with. Who forges this gains nothing but that the page
            // is asked for by RPC.
            return Ok(());
        }
        // In one piece, since that is how GMAC is computed.
        tagged.clear();
        tagged.push(status_byte(status));
        bytes.iter().for_each(|bytes| tagged.extend_from_slice(bytes));
        let key = self.reply_key.get();
        let (number, index) = (reply.flight.number, reply.page as u32);
        let right = key.is_some_and(|key| key.verify(number, index, tagged, tag).is_ok());
        if right { Ok(()) } else { Err(self.broken("the tag of a reply is wrong")) }
    }

    /// Receives once and takes what has arrived; whether more may follow at once.
    fn receive_once(&self, r: &mut Receiving) -> Result<bool, LinkError> {
        if self.receive_some(r)?.is_none() {
            return Ok(false);
        }
        loop {
            if r.reply.is_some() {
                let moved = self.unbuffer(r);
                self.advance(r, moved)?;
                if r.reply.is_some() {
                    break;
                }
            } else if r.start == r.end || !self.parse_head(r)? {
                break;
            }
        }
        Ok(r.reply.is_some() || self.under_way().0 > 0)
    }

    /// Puts bytes from the scratch buffer into the places where they belong.
    fn unbuffer(&self, r: &mut Receiving) -> usize {
        let Some(reply) = &r.reply else { return 0 };
        let (reads, pages) = (&reply.flight.batch.reads, reply.flight.pages());
        let (mut at, mut moved) = (reply.at, 0);
        for i in (reply.page..reply.flight.count).filter(|i| reply.heads[*i].is_ok()) {
            let here = (self.page_size - at).min(r.end - r.start);
            let bytes = &r.scratch[r.start..r.start + here];
            reads.with_place(&pages[i], |place| place[at..at + here].copy_from_slice(bytes));
            (r.start, moved, at) = (r.start + here, moved + here, 0);
        }
        moved
    }
}

impl Lane for Reads {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&self) -> Result<Handled, LinkError> {
        let mut receiving = lock(&self.receiving);
        let result = self.receive_once(&mut receiving);
        let done = std::mem::take(&mut receiving.done);
        drop(receiving);
        let progress = !done.is_empty();
        for (batch, outcomes) in done {
            batch.complete(outcomes);
        }
        result.map(|more| Handled { progress, more })
    }

    fn wants_to_write(&self) -> bool {
        lock(&self.posting).is_queued()
    }

    fn flush(&self) -> Result<(), LinkError> {
        let mut posting = lock(&self.posting);
        posting.flush(self.socket.as_fd()).map_err(|error| self.lost(error))
    }
}

impl ReadLane for Reads {
    fn lose(&self) {
        io::shut_down(self.socket.as_fd());
        let flights = lock(&self.posting).close();
        // Only now: whoever receives holds this lock while it takes the first flight.
        let mut receiving = lock(&self.receiving);
        let current = receiving.reply.take().map(|reply| reply.flight);
        receiving.outcomes = Vec::new();
        drop(receiving);
        for flight in current.into_iter().chain(flights) {
            // The first end of a batch counts.
            flight.batch.fail(AccessFault::Unreachable);
        }
    }
}

const _: () = assert!(LONGEST_HEAD + MAX_PAGE <= SCRATCH);

//! The client's side of its first connection: messages, and transfers into and out of advertised
//! memory.

use super::frame::{HEADER_LEN, Header, Kind, Limits, PIECE, Pull};
use super::inbox::{Ended, Handler, Inbox};
use super::io;
use super::placing::{Advert, AdvertState, Placing};
use crate::client::MessageLane;
use crate::engine::{LinkError, Receiver, Tag};
use crate::lock;
use crate::region::{Access, Iovecs, MAX_IOVECS, Segment, parts, with_iovecs};
use crate::turn::{Handled, Lane, Turn};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes of the buffer that frames arrive in.
const SCRATCH: usize = 128 << 10;
/// An advertised buffer of this size is worth another system call that spares its bytes a copy.
const LARGE: usize = 16 << 10;
/// What is received at first where data for such a buffer may follow.
const PEEK: usize = 1 << 10;
/// Pulls that the server may have open; it breaks the protocol beyond that.
const MOST_PULLS: usize = 4096;

/// The first connection.
pub(crate) struct Rpc {
    socket: OwnedFd,
    peer: String,
    /// Most that the server takes.
    limits: Limits,
    receiver: Arc<dyn Receiver>,
    receiving: Mutex<Receiving>,
    sending: Mutex<Sending>,
    sent: Condvar,
    adverts: Mutex<HashMap<Tag, Arc<Advert>>>,
    large_adverts: AtomicUsize,
    next_tag: AtomicU64,
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("peer", &self.peer).finish_non_exhaustive()
    }
}

struct Receiving {
    inbox: Inbox<Placing>,
    scratch: Vec<u8>,
}

#[derive(Default)]
struct Sending {
    /// A thread is in the middle of a message.
    busy: bool,
    /// The rest of a frame that the kernel did not take.
    rest: Vec<u8>,
    rest_at: usize,
    answers: VecDeque<Answer>,
}

/// What is still to be sent of a pull.
struct Answer {
    id: u64,
    advert: Option<Arc<Advert>>,
    offset: u64,
    left: u64,
}

/// A message on its way out.
pub(crate) struct Outgoing<'a> {
    header: [u8; HEADER_LEN],
    head: &'a [u8],
    data: &'a [Segment],
    data_len: u64,
    sent: u64,
    /// This thread has the connection for itself.
    busy: bool,
}

impl Rpc {
    pub(crate) fn new(
        socket: OwnedFd,
        peer: String,
        own_limits: Limits,
        limits: Limits,
        receiver: Arc<dyn Receiver>,
    ) -> Self {
        Self {
            socket,
            peer,
            limits,
            receiver,
            receiving: Mutex::new(Receiving {
                inbox: Inbox::new(own_limits),
                scratch: vec![0; SCRATCH],
            }),
            sending: Mutex::default(),
            sent: Condvar::new(),
            adverts: Mutex::default(),
            large_adverts: AtomicUsize::new(0),
            next_tag: AtomicU64::new(1),
        }
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    pub(crate) fn lost(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }

    fn send_more(
        &self,
        sending: &mut Sending,
        message: &mut Outgoing<'_>,
    ) -> Result<bool, LinkError> {
        if message.sent == 0 && !self.send_rest(sending)? {
            return Ok(false);
        }
        let prefix = (HEADER_LEN + message.head.len()) as u64;
        let total = prefix + message.data_len;
        if message.data.is_empty() && message.sent == 0 {
            let parts = [IoSlice::new(&message.header), IoSlice::new(message.head)];
            message.sent = self.io(io::send(self.socket.as_fd(), &parts))? as u64;
            return Ok(message.sent == total);
        }
        while message.sent < total {
            let mut iovecs = Iovecs::new();
            let mut skip = message.sent.min(prefix) as usize;
            for part in [&message.header[..], message.head] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                let rest = &part[skipped..];
                iovecs.push(rest.as_ptr().cast_mut(), rest.len());
            }
            let skip = message.sent.saturating_sub(prefix);
            let data = parts(message.data, skip, u64::MAX);
            let sent = with_iovecs(data, Access::Read, iovecs, |iovecs| {
                if has_gap(iovecs) {
                    return Err(LinkError::Closed("data to be sent was withdrawn".to_owned()));
                }
                // SAFETY: the vectors are `header` and `head`, borrowed here, and parts of locked
                // regions.
                self.io(unsafe { io::send_raw(self.socket.as_fd(), iovecs) })
            })?;
            if sent == 0 {
                return Ok(false);
            }
            message.sent += sent as u64;
        }
        Ok(true)
    }

    /// Sends the rest of a frame that was cut; whether all of it has gone.
    fn send_rest(&self, sending: &mut Sending) -> Result<bool, LinkError> {
        while sending.rest_at < sending.rest.len() {
            let part = [IoSlice::new(&sending.rest[sending.rest_at..])];
            let sent = self.io(io::send(self.socket.as_fd(), &part))?;
            if sent == 0 {
                return Ok(false);
            }
            sending.rest_at += sent;
        }
        (sending.rest, sending.rest_at) = (Vec::new(), 0);
        Ok(true)
    }

    /// Answers pulls, as far as it goes. A piece that is begun is finished from a copy, so that its
    /// memory can be withdrawn at any time.
    fn send_answers(&self, sending: &mut Sending) -> Result<(), LinkError> {
        while self.send_rest(sending)? {
            let Some(answer) = sending.answers.front_mut() else { return Ok(()) };
            let advert = answer.advert.clone();
            let state = advert.as_ref().map(|advert| lock(&advert.state));
            let mut given = 0;
            if let (Some(advert), Some(AdvertState { withdrawn: false, .. })) =
                (&advert, state.as_deref())
            {
                // As much as one system call takes, which the header must tell.
                let most = answer.left.min(PIECE as u64);
                let data = parts(&advert.segments, answer.offset, most).take(MAX_IOVECS - 1);
                let len = data.clone().map(|(_, _, len)| len).sum::<usize>();
                let header = Header::data(Kind::PullData, answer.id, len).encode();
                let mut iovecs = Iovecs::new();
                iovecs.push(header.as_ptr().cast_mut(), HEADER_LEN);
                let rest = &mut sending.rest;
                if with_iovecs(data, Access::Read, iovecs, |iovecs| self.give(iovecs, rest))? {
                    given = len as u64;
                }
            }
            drop(state);
            if given > 0 {
                (answer.offset, answer.left) = (answer.offset + given, answer.left - given);
                if answer.left == 0 {
                    sending.answers.pop_front();
                }
            } else {
                let id = answer.id;
                sending.answers.pop_front();
                sending.rest = Header::data(Kind::PullRefused, id, 0).encode().to_vec();
            }
        }
        Ok(())
    }

    /// Sends what the vectors name, and copies what does not go out; `false` where part of it is
    /// gone.
    fn give(&self, iovecs: &mut Iovecs, rest: &mut Vec<u8>) -> Result<bool, LinkError> {
        if has_gap(iovecs) {
            return Ok(false);
        }
        // SAFETY: the vectors are a header that the caller holds and parts of locked regions.
        let mut sent = self.io(unsafe { io::send_raw(self.socket.as_fd(), iovecs) })?;
        for part in iovecs.as_mut_slice() {
            let skip = sent.min(part.iov_len);
            sent -= skip;
            // SAFETY: as above; no one writes to the regions while they are locked.
            rest.extend_from_slice(unsafe {
                std::slice::from_raw_parts(
                    part.iov_base.cast::<u8>().add(skip),
                    part.iov_len - skip,
                )
            });
        }
        Ok(true)
    }

    /// How many bytes went out; 0 where none can at the moment.
    fn io(&self, result: std::io::Result<Option<usize>>) -> Result<usize, LinkError> {
        result.map(|n| n.unwrap_or(0)).map_err(|error| self.lost(error))
    }

    pub(crate) fn advertise(&self, segments: Vec<Segment>) -> Tag {
        let len: usize = segments.iter().map(|segment| segment.len).sum();
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let advert = Advert { segments, len: len as u64, state: Mutex::default() };
        self.large_adverts.fetch_add(usize::from(len >= LARGE), Ordering::Relaxed);
        lock(&self.adverts).insert(tag, Arc::new(advert));
        tag
    }

    pub(crate) fn withdraw(&self, tag: Tag) -> u64 {
        let Some(advert) = lock(&self.adverts).remove(&tag) else { return 0 };
        self.large_adverts.fetch_sub(usize::from(advert.len >= LARGE as u64), Ordering::Relaxed);
        let mut state = lock(&advert.state);
        state.withdrawn = true;
        state.placed
    }
}

/// Whether part of the memory is not there.
fn has_gap(iovecs: &mut Iovecs) -> bool {
    iovecs.as_mut_slice().iter().any(|part| part.iov_base.is_null())
}

impl Lane for Rpc {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&self) -> Result<Handled, LinkError> {
        let mut receiving = lock(&self.receiving);
        let Receiving { inbox, scratch } = &mut *receiving;
        let large = self.large_adverts.load(Ordering::Relaxed) > 0;
        let first = if large { PEEK } else { SCRATCH };
        let mut handler = RpcHandler { rpc: self, pulls: false };
        let got = inbox.receive(self.socket.as_fd(), scratch, first, &mut handler);
        let pulls = handler.pulls;
        drop(receiving);
        let got = got.map_err(|ended| match ended {
            Ended::Eof => self.lost("closed by the server"),
            Ended::Io(error) => self.lost(error),
            Ended::Protocol(reason) => LinkError::Protocol { peer: self.peer.clone(), reason },
        })?;
        if pulls {
            self.flush()?;
        }
        Ok(Handled { progress: got.frames > 0, more: !got.drained })
    }

    fn wants_to_write(&self) -> bool {
        let sending = lock(&self.sending);
        let waits = !sending.rest.is_empty() || !sending.answers.is_empty();
        waits && !sending.busy
    }

    fn flush(&self) -> Result<(), LinkError> {
        let mut sending = lock(&self.sending);
        if sending.busy { Ok(()) } else { self.send_answers(&mut sending) }
    }
}

impl MessageLane for Rpc {
    type Outgoing<'a> = Outgoing<'a>;

    /// Begins a message.
    fn outgoing<'a>(&self, head: &'a [u8], data: &'a [Segment]) -> Result<Outgoing<'a>, LinkError> {
        let data_len = data.iter().map(|segment| segment.len).sum::<usize>();
        self.limits.check(head.len(), data_len).map_err(LinkError::Closed)?;
        let header = Header::message(head.len(), data_len).encode();
        Ok(Outgoing { header, head, data, data_len: data_len as u64, sent: 0, busy: false })
    }

    /// Sends as much of a message as goes; `true` when all of it has gone. Between the calls for one
    /// message no one else's frames are sent. Where it fails within the message the connection is
    /// of no more use.
    fn send(&self, message: &mut Outgoing<'_>) -> Result<bool, LinkError> {
        let mut sending = lock(&self.sending);
        while !message.busy && sending.busy {
            let slice = std::time::Duration::from_millis(50);
            let (again, waited) =
                self.sent.wait_timeout(sending, slice).unwrap_or_else(PoisonError::into_inner);
            sending = again;
            if waited.timed_out() {
                // The caller looks whether the connection still lives, and comes back.
                return Ok(false);
            }
        }
        let result = self.send_more(&mut sending, message);
        let done = !matches!(result, Ok(false));
        // A message that is partly out keeps all others waiting; one that is not need not.
        sending.busy = !done && message.sent > 0;
        message.busy = sending.busy;
        if done && result.is_ok() && !sending.answers.is_empty() {
            self.send_answers(&mut sending)?;
        }
        drop(sending);
        if done {
            self.sent.notify_one();
        }
        result
    }

    fn wait(&self, turn: &Turn) -> Result<(), LinkError> {
        turn.drive_writable(self)
    }

    fn shut_down(&self) {
        io::shut_down(self.socket.as_fd());
        self.sent.notify_all();
    }

    fn lost(&self, reason: &dyn fmt::Display) -> LinkError {
        Self::lost(self, reason)
    }
}

struct RpcHandler<'a> {
    rpc: &'a Rpc,
    /// Pulls have arrived.
    pulls: bool,
}

impl Handler for RpcHandler<'_> {
    type Body = Placing;

    fn whole(&mut self, header: &Header, head: &[u8], data: &[u8]) -> Result<(), String> {
        match header.kind {
            Kind::Message => self.rpc.receiver.message(head, data),
            Kind::Pull => {
                let pull = Pull::decode(head);
                let advert = lock(&self.rpc.adverts).get(&header.tag).cloned();
                let inside = |advert: &Arc<Advert>| {
                    pull.offset.checked_add(pull.len).is_some_and(|end| end <= advert.len)
                };
                let advert = advert.filter(inside);
                let mut sending = lock(&self.rpc.sending);
                if sending.answers.len() >= MOST_PULLS {
                    return Err(format!("more than {MOST_PULLS} pulls at a time"));
                }
                let (id, offset, left) = (pull.id, pull.offset, pull.len);
                sending.answers.push_back(Answer { id, advert, offset, left });
                self.pulls = true;
            }
            kind => return Err(format!("a {kind:?} frame from a server")),
        }
        Ok(())
    }

    fn place(&mut self, header: &Header) -> Result<Placing, String> {
        if header.kind != Kind::Data {
            return Err(format!("a {:?} frame from a server", header.kind));
        }
        let (tag, len) = (header.tag, header.data_len);
        let advert = lock(&self.rpc.adverts).get(&tag).cloned();
        match &advert {
            Some(advert) if len > advert.len => {
                Err(format!("{len} bytes for a buffer of {}", advert.len))
            }
            None if tag == 0 || tag >= self.rpc.next_tag.load(Ordering::Relaxed) => {
                Err(format!("data for buffer {tag}, which was never advertised"))
            }
            _ => Ok(Placing { advert, at: 0 }),
        }
    }

    fn placed(&mut self, _body: Placing) {}
}

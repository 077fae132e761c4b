//! One request and its reply.

use super::outstanding::{Direct, Outstanding, Reply, ReplyCell, Sink};
use super::pump::{MESSAGES, want};
use super::{Link, Live, Outage, Session};
use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::slots::Ticket;
use crate::sync::lock;
use dafs_keys::shown::shown_within;
use dafs_proto::{Call, ErrorReply, Header, Op, Status, encode_message};
use ordma::{Endpoint, Segment};
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Most bytes of a server's explanation that are shown.
const MAX_MESSAGE: usize = 2048;

/// Which requests may be sent while files are being opened again in a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Those of operations wait until that is done.
    Normal,
    /// Those that do it, over the connection `epoch` only.
    Recovery { epoch: u64 },
}

/// Why there is no reply.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// It will not come.
    Failed(Error),
    /// The session is gone. `sent`: the server may have done what was asked.
    SessionLost { sent: bool },
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether an operation may be done twice: the reads and queries, and those that set what they set
/// to the same again.
pub(crate) fn repeatable(op: Op) -> bool {
    op.is_idempotent() || matches!(op, Op::Write | Op::Commit | Op::SetAttr | Op::Close)
}

/// Makes the message once slot and session are known; called under the session's lock.
type EncodePlain<'a> = &'a (dyn Fn(Header) -> Vec<u8> + Sync);

/// What to send.
pub(crate) enum Body<'a> {
    /// A message.
    Plain(EncodePlain<'a>),
    /// A message that names a buffer.
    Direct(Direct),
}

/// A request to be sent.
pub(crate) struct Request<'a> {
    pub(crate) op: Op,
    /// The open file it is about: not sent in a session where that is not open, as its number may
    /// mean another file there.
    pub(crate) file: Option<&'a OpenFile>,
    pub(crate) body: Body<'a>,
    /// Data that travels behind the message.
    pub(crate) data: Vec<Segment>,
    /// Where the reply's inline data goes; a reply must have none without it.
    pub(crate) sink: Option<Sink>,
}

impl Session {
    /// Sends a request and waits for its reply, whatever its status.
    pub(crate) async fn request(
        &self,
        lane: Lane,
        request: Request<'_>,
    ) -> std::result::Result<Reply, CallError> {
        let cell = Arc::new(ReplyCell::default());
        let waiting = Waiting { cell };
        let begin = Begin { session: self, lane, request: Some(request), cell: &waiting.cell };
        let (ticket, live, prepared) = Acquire { begin, waiter: None, given_up: None }.await?;
        self.counters.requests.add(1);
        match prepared {
            Prepared::Frame(frame, data) => self.send(&live, &frame, &data),
            Prepared::Direct(direct) => self.send_direct(ticket, live, &direct, &waiting.cell),
        }
        let mut reply = std::future::poll_fn(|cx| waiting.cell.poll(cx)).await?;
        reply.placed = waiting.cell.lent(None);
        Ok(reply)
    }

    pub(super) fn send(&self, live: &Live, frame: &[u8], data: &[Segment]) {
        if let Err(error) = live.endpoint.send(frame, data) {
            self.lost(live.epoch, &error);
        }
    }

    /// Lends the buffer and sends the request; again, should the connection be replaced in between.
    /// From when the frame is kept, reconnecting sees to that.
    fn send_direct(&self, ticket: Ticket, live: Live, direct: &Direct, cell: &ReplyCell) {
        let mut live = live;
        loop {
            let lent = direct.lend(&live.endpoint, cell);
            let mut state = lock(&self.state);
            let (epoch, session) = (state.epoch, state.session);
            let endpoint = match &state.link {
                Link::Up(endpoint) | Link::Recovering(endpoint) => Some(Arc::clone(endpoint)),
                Link::Down(_) | Link::Closed => None,
            };
            if session != live.session {
                return;
            }
            let Some(kept) = state.slots.get_mut(ticket) else { return };
            if epoch == live.epoch {
                let header = header(kept.op, ticket, self.options.slots);
                let frame = Arc::new((direct.encode)(header, &lent));
                kept.frame = Some(Arc::clone(&frame));
                kept.sent = true;
                drop(state);
                self.send(&live, &frame, &[]);
                return;
            }
            let Some(endpoint) = endpoint else {
                // The next connection will find the frame and lend anew.
                let header = header(kept.op, ticket, self.options.slots);
                kept.frame = Some(Arc::new((direct.encode)(header, &lent)));
                return;
            };
            live = Live { endpoint, epoch, session };
        }
    }

    /// Does an operation that goes by request and reply, again in a new session where that can do
    /// no harm. `make` is called for each attempt under the session's lock and must not block.
    ///
    /// # Errors
    /// The server's refusal, with `what` in its text; those of the connection.
    pub(crate) async fn call<C: Call>(
        &self,
        what: &str,
        make: impl Fn() -> C + Send + Sync,
    ) -> Result<C::Reply> {
        loop {
            match self.call_once::<C>(Lane::Normal, what, &make).await {
                Ok((reply, _)) => return Ok(reply),
                Err(CallError::Failed(error)) => return Err(error),
                Err(CallError::SessionLost { sent }) if sent && !repeatable(C::OP) => {
                    return Err(Error::OutcomeUnknown { op: C::OP, what: what.into() });
                }
                Err(CallError::SessionLost { .. }) => {}
            }
        }
    }

    /// One attempt; also gives the reply as it came.
    pub(crate) async fn call_once<C: Call>(
        &self,
        lane: Lane,
        what: &str,
        make: &(impl Fn() -> C + Send + Sync),
    ) -> std::result::Result<(C::Reply, Reply), CallError> {
        let encode = |header| encode_message(header, &make());
        let body = Body::Plain(&encode);
        let request = Request { op: C::OP, file: None, body, data: Vec::new(), sink: None };
        let reply = self.request(lane, request).await?;
        Ok((self.decode::<C>(&reply, what)?, reply))
    }

    /// Takes a reply's message out, or the server's refusal.
    pub(crate) fn decode<C: Call>(
        &self,
        reply: &Reply,
        what: &str,
    ) -> std::result::Result<C::Reply, CallError> {
        match reply.status {
            Status::Ok => C::Reply::decode(reply.body.as_slice()).map_err(|error| {
                let reason = format!("the body of a {} reply does not decode: {error}", C::OP);
                self.violation(reply.epoch, &reason).into()
            }),
            Status::BadSession | Status::ServerStopping => {
                self.session_lost(reply.epoch, reply.status.meaning());
                // This sending did nothing; one before it, over a lost connection, may have.
                Err(CallError::SessionLost { sent: reply.resent })
            }
            status => {
                let message = ErrorReply::decode(reply.body.as_slice()).unwrap_or_default().message;
                // Whoever shows it need not know that a server wrote it.
                let message = shown_within(&message, MAX_MESSAGE);
                let what = what.to_owned();
                Err(Error::Status { op: C::OP, status, message, what }.into())
            }
        }
    }
}

impl Session {
    /// Sends a request of session `number` whose reply nobody waits for. Whether it could be sent,
    /// or need not be because that session is gone.
    pub(crate) fn send_unawaited<C: Call>(&self, number: u64, call: &C) -> bool {
        let mut state = lock(&self.state);
        if state.session != number || matches!(state.link, Link::Closed) {
            return true;
        }
        let Link::Up(endpoint) = &state.link else { return false };
        let live = Live { endpoint: Arc::clone(endpoint), epoch: state.epoch, session: number };
        let mut encoded = None;
        state.slots.begin(|ticket| {
            let header = header(C::OP, ticket, self.options.slots);
            let frame = Arc::new(encode_message(header, call));
            encoded = Some(Arc::clone(&frame));
            Outstanding {
                op: C::OP,
                frame: Some(frame),
                data: Vec::new(),
                direct: None,
                sink: None,
                cell: Arc::default(),
                sent: true,
                resent: false,
            }
        });
        drop(state);
        encoded.is_some_and(|frame| {
            self.counters.requests.add(1);
            self.send(&live, &frame, &[]);
            true
        })
    }
}

pub(super) fn header(op: Op, ticket: Ticket, wanted: u16) -> Header {
    Header::request(op, ticket.slot, ticket.sequence, wanted)
}

/// Withdraws the buffer when the one who waits goes away, with or without the reply.
struct Waiting {
    cell: Arc<ReplyCell>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.cell.lent(None);
    }
}

enum Prepared {
    Frame(Arc<Vec<u8>>, Vec<Segment>),
    Direct(Direct),
}

struct Begin<'a, 'r> {
    session: &'a Session,
    lane: Lane,
    request: Option<Request<'r>>,
    cell: &'a Arc<ReplyCell>,
}

impl Begin<'_, '_> {
    /// Puts the request into a slot.
    fn begin(
        &mut self,
        state: &mut super::State,
        endpoint: &Arc<dyn Endpoint>,
    ) -> Option<(Ticket, Live, Prepared)> {
        if state.slots.available() == 0 {
            return None;
        }
        let Request { op, body, data, sink, .. } = self.request.take()?;
        let wanted = self.session.options.slots;
        let mut prepared = None;
        let ticket = state.slots.begin(|ticket| {
            let (frame, direct) = match body {
                Body::Plain(encode) => {
                    let frame = Arc::new(encode(header(op, ticket, wanted)));
                    prepared = Some(Prepared::Frame(Arc::clone(&frame), data.clone()));
                    (Some(frame), None)
                }
                Body::Direct(direct) => {
                    prepared = Some(Prepared::Direct(direct.clone()));
                    (None, Some(direct))
                }
            };
            let sent = frame.is_some();
            let cell = Arc::clone(self.cell);
            Outstanding { op, frame, data, direct, sink, cell, sent, resent: false }
        })?;
        let (epoch, session) = (state.epoch, state.session);
        Some((ticket, Live { endpoint: Arc::clone(endpoint), epoch, session }, prepared?))
    }
}

/// Waits for the connection and a free slot.
struct Acquire<'a, 'r> {
    begin: Begin<'a, 'r>,
    waiter: Option<u64>,
    /// How often the server had been given up when the wait began.
    given_up: Option<u64>,
}

impl Future for Acquire<'_, '_> {
    type Output = std::result::Result<(Ticket, Live, Prepared), CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let session = this.begin.session;
        let mut guard = lock(&session.state);
        let state = &mut *guard;
        if let Some(waiter) = this.waiter.take() {
            state.waiters.retain(|(id, _)| *id != waiter);
        }
        let lost = Poll::Ready(Err(CallError::SessionLost { sent: false }));
        let usable = match (&mut state.link, this.begin.lane) {
            (Link::Closed, _) => return Poll::Ready(Err(session.closed_error().into())),
            (Link::Up(endpoint), Lane::Normal) => Some(Arc::clone(endpoint)),
            (Link::Recovering(endpoint), Lane::Recovery { epoch }) if epoch == state.epoch => {
                Some(Arc::clone(endpoint))
            }
            (_, Lane::Recovery { .. }) => return lost,
            (Link::Recovering(_), Lane::Normal) => None,
            (Link::Down(outage), Lane::Normal) => {
                if this.given_up.is_some_and(|seen| seen != state.given_up) {
                    let waited = session.now().saturating_duration_since(outage.since);
                    let error = session.timeout(waited, &outage.reason);
                    return Poll::Ready(Err(error.into()));
                }
                session.ask_again(outage);
                None
            }
        };
        this.given_up.get_or_insert(state.given_up);
        let file = this.begin.request.as_ref().and_then(|request| request.file);
        if usable.is_some() && file.is_some_and(|file| !file.is_of(state.session)) {
            return lost;
        }
        if let Some(endpoint) = &usable
            && let Some(begun) = this.begin.begin(state, endpoint)
        {
            return Poll::Ready(Ok(begun));
        }
        if usable.is_some() {
            want(MESSAGES);
        }
        state.last_waiter += 1;
        this.waiter = Some(state.last_waiter);
        state.waiters.push_back((state.last_waiter, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Acquire<'_, '_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter else { return };
        let mut state = lock(&self.begin.session.state);
        let before = state.waiters.len();
        state.waiters.retain(|(id, _)| *id != waiter);
        // Already woken for a slot that it will not take: the next one may.
        let wake = if state.waiters.len() == before { state.wakeable() } else { Vec::new() };
        drop(state);
        wake.into_iter().for_each(Waker::wake);
    }
}

impl Session {
    /// An operation needs the server again after it was given up: a new period begins.
    fn ask_again(&self, outage: &mut Outage) {
        if outage.deadline.is_none() {
            outage.since = self.now();
            outage.deadline = Some(outage.since + self.options.timeout);
        }
    }
}

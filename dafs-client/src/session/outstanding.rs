//! What is kept of a request until its reply comes, and the reply.

use super::pump::{MESSAGES, want};
use super::rpc::CallError;
use super::{Grant, Protected};
use crate::sync::lock;
use dafs_proto::{Buffer, Header, Op, Status};
use ordma::{Endpoint, FOOTER_LEN, Segment, Tag};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use zeroize::Zeroize;

/// Where pages that come in a reply go.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    /// For the footers, one after the other.
    pub(crate) footers: Segment,
    /// For the payloads.
    pub(crate) pages: Vec<Segment>,
}

impl Sink {
    /// Copies footers and payloads to their places; how many pages, or why that cannot be.
    pub(super) fn scatter(&self, data: &[u8]) -> std::result::Result<usize, String> {
        let Some(page_size) = self.pages.first().map(|page| page.len) else {
            return Err("pages where none were asked for".into());
        };
        let count = data.len() / (page_size + FOOTER_LEN);
        if !data.len().is_multiple_of(page_size + FOOTER_LEN) || count > self.pages.len() {
            return Err(format!(
                "{} bytes of inline data are not up to {} pages",
                data.len(),
                self.pages.len()
            ));
        }
        let (footers, payloads) = data.split_at(count * FOOTER_LEN);
        self.footers.with(|to| to[..footers.len()].copy_from_slice(footers));
        for (page, payload) in self.pages.iter().zip(payloads.chunks_exact(page_size)) {
            page.with(|to| to.copy_from_slice(payload));
        }
        Ok(count)
    }
}

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) body: Vec<u8>,
    /// Pages that came inline.
    pub(crate) pages: usize,
    /// Bytes that the server placed into the advertised buffer.
    pub(crate) placed: u64,
    /// The request was sent more than once.
    pub(crate) resent: bool,
    /// The connection it came over.
    pub(crate) epoch: u64,
    /// The session it belongs to.
    pub(crate) session: u64,
    /// What the server had granted with that.
    pub(crate) grant: Option<Arc<Grant>>,
    /// How that connection is protected.
    pub(crate) protected: Protected,
}

impl Reply {
    /// Overwrites the message, which brought a secret.
    pub(crate) fn wipe(&mut self) {
        self.body.zeroize();
    }
}

/// What is kept of a request until its reply comes.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) op: Op,
    /// The message; `None` while its buffer is being lent.
    pub(super) frame: Option<Arc<Vec<u8>>>,
    pub(super) data: Vec<Segment>,
    pub(super) direct: Option<Direct>,
    pub(super) sink: Option<Sink>,
    pub(super) cell: Arc<ReplyCell>,
    pub(super) sent: bool,
    pub(super) resent: bool,
}

impl Outstanding {
    /// The session is gone, and the request with it.
    pub(super) fn lost(self) {
        self.cell.complete(Err(CallError::SessionLost { sent: self.sent }));
    }
}

/// A buffer that the server was told of, for as long as the connection stands.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    tag: Tag,
    /// What the server needs to open what it fetches; empty where that is not sealed.
    pub(crate) seal: Vec<u8>,
}

impl Lent {
    /// The buffer, as requests name it.
    pub(crate) fn buffer(&self, length: u64) -> Buffer {
        Buffer { tag: self.tag, address: 0, length }
    }
}

/// Makes the message that names a buffer.
pub(crate) type EncodeDirect = Arc<dyn Fn(Header, &Lent) -> Vec<u8> + Send + Sync>;

/// What the server does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It places pages there.
    Fill,
    /// It fetches data from there.
    Fetch,
}

/// A request that names a buffer, which has to be lent to the server anew on each connection that
/// the request is sent over.
#[derive(Clone)]
pub(crate) struct Direct {
    /// Kept for when the request is sent again.
    pub(crate) encode: EncodeDirect,
    pub(crate) buffer: Vec<Segment>,
    pub(crate) purpose: Use,
}

impl Direct {
    /// Lends the buffer on this connection, in place of a former one.
    pub(super) fn lend(&self, endpoint: &Arc<dyn Endpoint>, cell: &ReplyCell) -> Lent {
        let buffer = self.buffer.clone();
        let (tag, seal) = match self.purpose {
            Use::Fill => (endpoint.advertise(buffer), Vec::new()),
            Use::Fetch => endpoint.offer(buffer),
        };
        cell.lent(Some((Arc::clone(endpoint), tag)));
        Lent { tag, seal }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

/// Where the reply is put for the one who waits.
#[derive(Debug, Default)]
pub(crate) struct ReplyCell {
    state: Mutex<CellState>,
    /// The buffer lent for the request.
    lent: Mutex<Option<(Arc<dyn Endpoint>, Tag)>>,
}

#[derive(Debug, Default)]
enum CellState {
    #[default]
    Idle,
    Waiting(Waker),
    Done(Box<std::result::Result<Reply, CallError>>),
    Taken,
}

impl ReplyCell {
    /// Ends the wait. Only the first call counts.
    pub(super) fn complete(&self, result: std::result::Result<Reply, CallError>) {
        let mut state = lock(&self.state);
        if matches!(*state, CellState::Done(_) | CellState::Taken) {
            return;
        }
        let before = std::mem::replace(&mut *state, CellState::Done(Box::new(result)));
        drop(state);
        if let CellState::Waiting(waker) = before {
            waker.wake();
        }
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<std::result::Result<Reply, CallError>> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, CellState::Taken) {
            CellState::Done(result) => Poll::Ready(*result),
            CellState::Idle | CellState::Waiting(_) => {
                *state = CellState::Waiting(cx.waker().clone());
                want(MESSAGES);
                Poll::Pending
            }
            CellState::Taken => Poll::Pending,
        }
    }

    /// Notes the buffer that is lent now, and withdraws the one before; how many bytes had been
    /// placed there.
    pub(super) fn lent(&self, now: Option<(Arc<dyn Endpoint>, Tag)>) -> u64 {
        let before = std::mem::replace(&mut *lock(&self.lent), now);
        before.map_or(0, |(endpoint, tag)| endpoint.withdraw(tag))
    }
}

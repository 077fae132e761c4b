//! What is going to happen in a world.

use super::core::Call;
use super::transfer::Source;
use crate::{ChunkId, LinkError, Tag};
use std::ops::Range;
use std::sync::Arc;

/// A one-way stream of a connection, in which nothing overtakes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Messages to the server, and what answers the server's transfers.
    Up,
    /// Messages and transfers to the client.
    Down,
    /// One-sided reads on their way to the slots; apart from messages, as on every engine.
    Reads,
    /// What they brought.
    Copies,
}

/// Something that will happen to a connection (0: to none).
pub(super) struct Event {
    pub(super) conn: u64,
    /// The stream it travels in; `None` for what a side does or notices by itself.
    pub(super) channel: Option<Channel>,
    pub(super) what: What,
}

/// The part of a slot that one step of a read copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    First,
    Second,
    Footer,
    Whole,
}

pub(super) enum What {
    /// A client asks for a connection.
    Dial,
    /// The server took it.
    Accepted,
    /// No one took it.
    Refused(String),
    ToServer {
        head: Vec<u8>,
        data: Vec<u8>,
    },
    ToClient {
        head: Vec<u8>,
        data: Vec<u8>,
    },
    /// A part of a transfer reaches the client's buffer.
    Place {
        transfer: u64,
        tag: Tag,
        from: Arc<Source>,
        range: Range<usize>,
    },
    /// The server's transfer is over, well or (for a fetch) not.
    TransferDone {
        transfer: u64,
        result: Result<Option<Vec<u8>>, String>,
    },
    /// The server asks for bytes of the client's buffer.
    Fetch {
        transfer: u64,
        tag: Tag,
        offset: u64,
        len: usize,
    },
    Export {
        chunk: ChunkId,
    },
    Retire {
        chunk: ChunkId,
    },
    /// The client has let go of a chunk.
    LetGo {
        chunk: ChunkId,
    },
    /// The server waits no longer for clients to let go of a chunk.
    Patience {
        listener: u64,
        retire: u64,
    },
    /// A step of a one-sided read happens at the slot.
    Read {
        batch: u64,
        page: usize,
        part: Part,
    },
    /// The copy of a page has arrived.
    Copied {
        batch: u64,
        page: usize,
    },
    ClientLost(LinkError),
    ServerLost(LinkError),
    /// A test's or a timer's.
    Call(Call),
}

impl What {
    /// The name and size that go into the trace.
    pub(super) fn describe(&self) -> (&'static str, usize) {
        match self {
            Self::Dial => ("dial", 0),
            Self::Accepted => ("accepted", 0),
            Self::Refused(_) => ("refused", 0),
            Self::ToServer { head, data } => ("message up", head.len() + data.len()),
            Self::ToClient { head, data } => ("message down", head.len() + data.len()),
            Self::Place { range, .. } => ("place", range.len()),
            Self::TransferDone { result, .. } => ("transfer done", usize::from(result.is_ok())),
            Self::Fetch { len, .. } => ("fetch", *len),
            Self::Export { chunk } => ("export", *chunk as usize),
            Self::Retire { chunk } => ("retire", *chunk as usize),
            Self::LetGo { chunk } => ("let go", *chunk as usize),
            Self::Patience { .. } => ("end of patience", 0),
            Self::Read { page, part, .. } => (part.name(), *page),
            Self::Copied { page, .. } => ("copy arrives", *page),
            Self::ClientLost(_) => ("client sees the loss", 0),
            Self::ServerLost(_) => ("server sees the loss", 0),
            Self::Call(_) => ("timer", 0),
        }
    }

    /// Bytes that count against the server's queue for the client. Transfers do not: who began one
    /// waits for it.
    pub(super) fn queued(&self) -> usize {
        match self {
            Self::ToClient { head, data } => head.len() + data.len(),
            _ => 0,
        }
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::First => "read, first half",
            Self::Second => "read, second half",
            Self::Footer => "read, footer",
            Self::Whole => "read",
        }
    }
}

//! Memory that the client lends to the server.
//!
//! What the server writes to or reads from is registered memory of this side's own, to which and
//! from which the data is copied: so nothing of the application's is ever within the server's reach,
//! and a buffer can be withdrawn at once, whatever is still on its way. Its stand-in is used again
//! when the server has said that it is done with it.

use super::packet::{Piece, Record};
use super::pool::Pool;
use super::wire::Wire;
use crate::engine::Tag;
use crate::lock;
use crate::rdma::{Access, Block, Domain, Result, Slab};
use crate::region::Segment;
use foldhash::HashMap;
use std::sync::{Arc, Mutex};

/// Lengths of the buffers that are kept, and most bytes of each length.
const CLASSES: [(usize, usize); 3] =
    [(8 << 10, 2 << 20), (128 << 10, 4 << 20), (1152 << 10, 9 << 20)];
/// Most bytes that are registered at a time, where a buffer is no longer.
const SHARE: usize = 512 << 10;

/// The buffers that are lent.
#[derive(Debug)]
pub(super) struct Adverts {
    domain: Arc<Domain>,
    pools: Vec<Pool>,
    wire: Arc<Wire>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: Tag,
    lent: HashMap<Tag, Lent>,
    /// Withdrawn, and not known to be done with.
    leaving: HashMap<Tag, Block>,
}

#[derive(Debug)]
struct Lent {
    /// Where what is placed belongs; empty for what is only read.
    to: Vec<Segment>,
    block: Option<Block>,
    placed: u64,
}

impl Adverts {
    pub(super) fn new(domain: &Arc<Domain>, wire: Arc<Wire>) -> Self {
        let pool = |(block, limit): (usize, usize)| {
            Pool::new(domain, Access::RemoteWrite, block, SHARE.min(8 * block), limit)
        };
        let pools = CLASSES.into_iter().map(pool).collect();
        let state = State { next: 1, lent: HashMap::default(), leaving: HashMap::default() };
        Self { domain: Arc::clone(domain), pools, wire, state: Mutex::new(state) }
    }

    /// A registered buffer of at least this length.
    fn buffer(&self, len: usize) -> Result<Option<Block>> {
        for pool in self.pools.iter().filter(|pool| pool.block() >= len) {
            // Where the memory may not be locked, less of it may.
            if let Ok(Some(block)) = pool.take() {
                return Ok(Some(block));
            }
        }
        // All are in use, or none is as long.
        Ok(Slab::new(&self.domain, len, 1, Access::RemoteWrite)?.take())
    }

    /// Lends a buffer of this length to be written to, and then what is there.
    pub(super) fn fill(&self, to: Vec<Segment>) -> Tag {
        self.lend(to.iter().map(|segment| segment.len).sum(), to, &[])
    }

    /// Lends a copy of data to be read.
    pub(super) fn fetch(&self, data: &[Segment]) -> Tag {
        self.lend(data.iter().map(|segment| segment.len).sum(), Vec::new(), data)
    }

    fn lend(&self, len: usize, to: Vec<Segment>, from: &[Segment]) -> Tag {
        let mut block = match self.buffer(len.max(1)) {
            Ok(block) => block,
            Err(error) => {
                tracing::warn!(%error, len, "no memory for a direct transfer, which fails");
                None
            }
        };
        let mut pieces = Vec::new();
        if let Some(block) = &mut block {
            let mut at = 0;
            let gone = from.iter().any(|segment| {
                let copied = segment.with_ref(|bytes| {
                    block.copy_in(at, bytes);
                    at += bytes.len();
                });
                copied.is_none()
            });
            // What was withdrawn is not there to be read.
            let len = if gone { 0 } else { len as u32 };
            pieces.push(Piece { remote: block.remote(), len });
        }
        let mut state = lock(&self.state);
        let tag = state.next;
        state.next += 1;
        state.lent.insert(tag, Lent { to, block, placed: 0 });
        // In the order of tags.
        self.wire.record(Record::Advert(tag, pieces));
        tag
    }

    /// The server has placed something.
    pub(super) fn placed(&self, tag: Tag, len: u64) {
        // Where it is gone it was withdrawn meanwhile.
        if let Some(lent) = lock(&self.state).lent.get_mut(&tag) {
            lent.placed = len;
        }
    }

    /// Takes a buffer back, and puts what was placed where it belongs; how much that was.
    pub(super) fn withdraw(&self, tag: Tag) -> u64 {
        let mut state = lock(&self.state);
        let Some(Lent { to, block, placed }) = state.lent.remove(&tag) else { return 0 };
        self.wire.record(Record::Withdraw(tag));
        let Some(block) = block else { return 0 };
        let mut left = placed.min(block.capacity() as u64) as usize;
        let mut at = 0;
        for segment in to {
            let len = segment.len.min(left);
            segment.with(|bytes| block.copy_out(at, &mut bytes[..len]));
            (at, left) = (at + len, left - len);
        }
        state.leaving.insert(tag, block);
        placed
    }

    /// The server is done with a buffer.
    pub(super) fn withdrawn(&self, tag: Tag) {
        lock(&self.state).leaving.remove(&tag);
    }
}

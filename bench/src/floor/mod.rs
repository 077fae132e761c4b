//! Floors: the same bytes moved with as little as possible around them, in the same run and with
//! the same placement as the rows that are held against them.
//!
//! | floor | what it is |
//! |---|---|
//! | ping-pong | a request of as many bytes and a reply of as many, over TCP or a Unix socket, with a process that does nothing else; blocking, or spinning for a short time before it blocks. Replies to reads come out of memory as large as the file, into as many buffers as the client has |
//! | copy and check | pages copied out of private memory as large as the file and checked, or opened where they are sealed |
//! | READs | over verbs: READs of the peer's memory, as large as the file, by its device alone; what `ib_read_lat` and `ib_read_bw` measure |
//! | messages | over verbs: a ping-pong of SENDs and RECVs |
//! | open | sealed pages opened where they have just been copied to, without the copy |

mod copy;
mod hello;
mod peer;
mod ping_pong;
mod socket;
pub(crate) mod verbs;

pub(crate) use copy::{CopyCheck, Memory, Open};
pub(crate) use peer::{Peer, Where, serve};
pub use socket::Transport;
pub(crate) use socket::Waiting;

use crate::data::Offsets;
use crate::error::{Error, Result};
use crate::measure::{Label, Subject};
use crate::signals::Stop;
use ping_pong::PingPong;
use socket::Address;
use verbs::{Messages, Part, RawReads};

/// Bytes of a page: what the bench asks the server for.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a request that carries no data, about those of a one-sided read.
pub(crate) const REQUEST: usize = 56;
/// Bytes of a reply around its page: a footer, and what says to which request it belongs.
const REPLY: usize = 80;
/// Bytes of a footer, one for each page.
pub(crate) const FOOTER: usize = dafs_client::ordma::FOOTER_LEN;
/// A request begins with the place in the peer's memory that its reply comes from, if it is long
/// enough: what is sent from memory takes longer than what lies in the CPU's cache.
const PLACE: usize = 8;

/// What travels in a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// Bytes of the request.
    pub(crate) request: usize,
    /// Bytes of the reply.
    pub(crate) reply: usize,
}

impl Exchange {
    /// Reads `block` bytes, whole pages.
    pub(crate) fn read(block: usize) -> Self {
        let pages = block.div_ceil(PAGE).max(1);
        Self { request: REQUEST, reply: REPLY - FOOTER + pages * (FOOTER + PAGE) }
    }

    /// Writes `block` bytes.
    pub(crate) fn write(block: usize) -> Self {
        Self { request: REQUEST + block, reply: REPLY }
    }

    /// One byte each way.
    pub(crate) fn byte() -> Self {
        Self { request: 1, reply: 1 }
    }
}

impl Peer {
    /// A ping-pong with this peer as a row: messages over verbs, else over a socket. It counts
    /// `block` bytes for each round trip, and keeps `depth` of them under way. Replies come from
    /// where `offsets` say.
    pub(crate) fn ping_pong<'a>(
        &self,
        (block, depth): (u64, u64),
        exchange: Exchange,
        waiting: Waiting,
        offsets: Option<&Offsets>,
        stop: &'a Stop,
    ) -> Result<Box<dyn Subject + 'a>> {
        let spins = waiting != Waiting::Blocking;
        let path = match (&self.address, spins) {
            (Address::Tcp(_), false) => "floor",
            (Address::Tcp(_), true) => "floor-spin",
            (Address::Unix(_), false) => "floor-socket",
            (Address::Unix(_), true) => "floor-socket-spin",
            (Address::Verbs(_), false) => "floor-send",
            (Address::Verbs(_), true) => "floor-send-spin",
        };
        let label = Label { path, block, depth, clients: 1 };
        Ok(match &self.address {
            Address::Verbs(at) => {
                Box::new(Messages::connect(*at, label, exchange, waiting, offsets, stop)?)
            }
            at => Box::new(PingPong::connect(at, label, exchange, waiting, offsets, stop)?),
        })
    }

    /// READs of this peer's memory as a row. See [`RawReads`].
    pub(crate) fn reads<'a>(
        &self,
        label: Label,
        parts: Vec<Part>,
        offsets: Offsets,
        waiting: Waiting,
        stop: &'a Stop,
    ) -> Result<Box<dyn Subject + 'a>> {
        let Address::Verbs(at) = self.address else {
            return Err(Error::Usage("nobody reads memory through a socket".into()));
        };
        Ok(Box::new(RawReads::connect(at, label, parts, offsets, waiting, stop)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_travels_with_its_footer() {
        assert_eq!(Exchange::read(4096), Exchange { request: 56, reply: 80 + 4096 });
        assert_eq!(Exchange::read(8192).reply, 16 + 2 * (64 + 4096));
        assert_eq!(Exchange::write(64), Exchange { request: 120, reply: 80 });
    }
}

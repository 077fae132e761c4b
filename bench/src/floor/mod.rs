//! Floors: the same bytes moved with as little as possible around them, in the same run and with
//! the same placement as the rows that are held against them.
//!
//! | floor | what it is |
//! |---|---|
//! | ping-pong | a request of as many bytes and a reply of as many, over TCP or a Unix socket, with a process that does nothing else; blocking, or spinning for a short time before it blocks. Replies to reads come out of memory as large as the file, into as many buffers as the client has |
//! | copy and check | pages copied out of private memory as large as the file and checked, or opened where they are sealed |
//! | open | sealed pages opened where they have just been copied to, without the copy |

mod copy;
mod peer;
mod ping_pong;
mod socket;

pub(crate) use copy::{CopyCheck, Memory, Open};
pub(crate) use peer::{Peer, serve};
pub(crate) use ping_pong::PingPong;
pub use socket::Transport;
pub(crate) use socket::Waiting;

/// Bytes of a page: what the bench asks the server for.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a request that carries no data, about those of a one-sided read.
pub(crate) const REQUEST: usize = 56;
/// Bytes of a reply around its page: a footer, and what says to which request it belongs.
const REPLY: usize = 80;
/// Bytes of a footer, one for each page.
const FOOTER: usize = dafs_client::ordma::FOOTER_LEN;

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

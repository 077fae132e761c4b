//! The sending side of a server's connection: what the kernel does not take at once waits here.

use super::io;
use super::untaken::Untaken;
use crate::engine::{LinkError, Transfer};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Pieces sent by one system call.
const AT_ONCE: usize = 32;

/// The queue of a connection and the connection itself.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// `None` once closed.
    socket: Option<Arc<OwnedFd>>,
    pieces: VecDeque<Piece>,
    /// Bytes sent of the first piece.
    at: usize,
    /// Bytes of pieces that are not transfers.
    held: usize,
    /// As many of them are counted with those of other connections.
    counted: usize,
    /// Bytes sent that had waited.
    moved: u64,
    /// When the last of them went, or the first that waits came.
    since: Option<Instant>,
    /// Not to be read from until further notice.
    pub(crate) paused: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    transfer: Option<Transfer>,
}

/// Transfers that are done; to be completed once no lock is held, since that may run anything.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Done(Vec<(Transfer, Vec<u8>)>);

impl Done {
    /// Tells those who wait.
    pub(crate) fn tell(self) {
        for (transfer, bytes) in self.0 {
            transfer.complete(Ok(bytes));
        }
    }
}

impl Out {
    /// A queue for this connection.
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        Self { socket: Some(socket), ..Self::default() }
    }

    /// The connection, while it is open.
    pub(crate) fn socket(&self) -> Option<&Arc<OwnedFd>> {
        self.socket.as_ref()
    }

    /// Whether something waits for the connection to become writable.
    pub(crate) fn waits(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Bytes that are held for a peer that does not take them, without those of transfers.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Counts what is held with what other connections hold. Whether it has grown.
    pub(super) fn count(&mut self, untaken: &Untaken) -> bool {
        let before = std::mem::replace(&mut self.counted, self.held);
        if before != self.held {
            untaken.change(before, self.held);
        }
        self.held > before
    }

    /// Bytes that had to wait and were sent.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes that are held, and since when none of what waits has been sent.
    pub(super) fn untaken(&self) -> Option<(usize, Instant)> {
        Some((self.held, self.since.filter(|_| self.held > 0)?))
    }

    fn push(&mut self, bytes: Vec<u8>, transfer: Option<Transfer>) {
        if self.pieces.is_empty() {
            self.since = Some(Instant::now());
        }
        self.pieces.push_back(Piece { bytes, transfer });
    }

    /// Sends a frame that consists of these parts, queueing what does not go out at once. Nothing
    /// happens on a closed connection.
    pub(crate) fn send(&mut self, parts: [&[u8]; 3]) -> std::io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut sent = 0;
        if self.pieces.is_empty() {
            let slices = parts.map(IoSlice::new);
            sent = io::send(socket.as_fd(), &slices)?.unwrap_or(0);
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if sent < total {
            let mut bytes = Vec::with_capacity(total - sent);
            for part in parts {
                let skip = sent.min(part.len());
                bytes.extend_from_slice(&part[skip..]);
                sent -= skip;
            }
            self.held += bytes.len();
            self.push(bytes, None);
        }
        Ok(())
    }

    /// Sends a frame whose data is handed over and comes back with the transfer.
    pub(crate) fn send_transfer(
        &mut self,
        header: &[u8],
        data: Vec<u8>,
        transfer: Transfer,
    ) -> std::io::Result<Done> {
        self.held += header.len();
        transfer.advance(0);
        let idle = self.pieces.is_empty();
        self.push(header.to_vec(), None);
        self.push(data, Some(transfer));
        if idle { self.flush() } else { Ok(Done::default()) }
    }

    /// Sends what waits, as far as it goes.
    pub(crate) fn flush(&mut self) -> std::io::Result<Done> {
        let mut done = Done::default();
        let Some(socket) = self.socket.clone() else { return Ok(done) };
        while !self.pieces.is_empty() {
            let mut slices = Vec::with_capacity(AT_ONCE.min(self.pieces.len()));
            for (i, piece) in self.pieces.iter().take(AT_ONCE).enumerate() {
                slices.push(IoSlice::new(&piece.bytes[if i == 0 { self.at } else { 0 }..]));
            }
            let Some(mut sent) = io::send(socket.as_fd(), &slices)? else { break };
            self.moved += sent as u64;
            self.since = Some(Instant::now());
            sent += self.at;
            while let Some(piece) = self.pieces.front() {
                if sent < piece.bytes.len() {
                    break;
                }
                sent -= piece.bytes.len();
                match self.pieces.pop_front() {
                    Some(Piece { bytes, transfer: Some(transfer) }) => {
                        transfer.advance(bytes.len() as u64);
                        done.0.push((transfer, bytes));
                    }
                    Some(Piece { bytes, transfer: None }) => self.held -= bytes.len(),
                    None => {}
                }
            }
            self.at = sent;
            if let Some(Piece { transfer: Some(transfer), .. }) = self.pieces.front() {
                transfer.advance(sent as u64);
            }
        }
        Ok(done)
    }

    /// Closes: what waits is dropped, and its transfers get the error once no lock is held.
    pub(crate) fn close(&mut self) -> Abandoned {
        self.socket = None;
        (self.at, self.held) = (0, 0);
        Abandoned(self.pieces.drain(..).filter_map(|piece| piece.transfer).collect())
    }
}

/// Transfers that will not be done.
#[derive(Debug)]
#[must_use]
pub(crate) struct Abandoned(Vec<Transfer>);

impl Abandoned {
    /// Tells those who wait.
    pub(crate) fn tell(self, error: &LinkError) {
        for transfer in self.0 {
            transfer.complete(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_does_not_go_out_at_once_follows_in_order() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        let mut out = Out::new(Arc::new(a.into()));
        let mut expected = Vec::new();
        let mut received = Vec::new();
        let transfer = Transfer::new();
        for i in 0..40u8 {
            let (x, y, z) = (vec![i; 24], vec![i; 1000], vec![i; 30_000]);
            out.send([&x, &y, &z]).unwrap();
            expected.extend([x, y, z].concat());
        }
        assert!(out.waits() && out.held() > 0);
        assert_eq!(transfer.moved(), None);
        out.send_transfer(&[1, 2], vec![3; 500_000], transfer.clone()).unwrap().tell();
        assert_eq!(transfer.moved(), Some(0));
        expected.extend([1, 2]);
        expected.extend([3; 500_000]);
        let mut buffer = [0; 10_000];
        while received.len() < expected.len() {
            while let Ok(n) = b.read(&mut buffer) {
                received.extend_from_slice(&buffer[..n]);
            }
            out.flush().unwrap().tell();
        }
        assert!(transfer.moved() > Some(0));
        assert!(received == expected && !out.waits() && out.held() == 0);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = std::pin::pin!(transfer).poll(&mut cx);
        assert!(matches!(polled, std::task::Poll::Ready(Ok(data)) if data.len() == 500_000));
    }
}

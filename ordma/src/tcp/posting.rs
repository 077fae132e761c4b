//! What a client has asked for on its one-sided connection.

use super::wire::{HEADER_LEN, Kind, Request, entry, fields};
use crate::engine::{PageRead, ReadBatch};
use crate::gate::Proof;
use crate::stream::io;
use dafs_keys::FileKey;
use dafs_keys::tags::ConnectionNonce;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Payload bytes that are asked for at a time of a server on the same host. Two requests keep both
/// sides busy, and their payloads stay in the caches between the server's copy into the socket and
/// the client's copy out of it: with 1 MiB under way, that alone costs half of the throughput.
/// Across a network there is no such bound: the path decides how much must be under way.
pub(super) const LOCAL_WINDOW: usize = 512 << 10;

/// A request under way.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) batch: Arc<ReadBatch>,
    /// Its first page within the batch.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) kind: Kind,
}

impl Flight {
    /// Its pages.
    pub(super) fn pages(&self) -> &[PageRead] {
        &self.batch.reads.pages()[self.first..self.first + self.count]
    }

    /// Appends the request.
    fn put(&self, out: &mut Vec<u8>, nonce: &ConnectionNonce) {
        let request = Request { kind: self.kind, number: self.number, count: self.count };
        out.reserve(HEADER_LEN + request.rest());
        out.extend_from_slice(&request.encode());
        for (index, page) in (0..).zip(self.pages()) {
            if let FileKey::Keyed(key) = self.batch.reads.key() {
                let fields = fields(&page.reference, page.floor, key.epoch());
                out.extend_from_slice(&fields);
                out.extend_from_slice(&key.tag(nonce, self.number, index, &fields));
            } else {
                out.extend_from_slice(&entry(&page.reference, page.floor));
            }
        }
    }
}

/// Requests that are not answered yet.
pub(super) struct Posting {
    nonce: ConnectionNonce,
    page_size: usize,
    /// Most pages asked for at a time, unless one request has more.
    window: usize,
    /// The number of the next request.
    next: u64,
    /// Requests, in the order in which they are answered.
    flights: VecDeque<Flight>,
    /// How many of them have been sent or are in `unsent`, and their pages.
    begun: usize,
    begun_pages: usize,
    /// Requests that the kernel did not take.
    unsent: Vec<u8>,
    closed: bool,
}

impl Posting {
    /// Nothing asked for, of a server with pages of this size, on a connection with this nonce.
    pub(super) fn new(page_size: usize, nonce: ConnectionNonce, same_host: bool) -> Self {
        Self {
            nonce,
            page_size,
            window: if same_host { LOCAL_WINDOW / page_size } else { usize::MAX },
            next: 0,
            flights: VecDeque::new(),
            begun: 0,
            begun_pages: 0,
            unsent: Vec::new(),
            closed: false,
        }
    }

    /// Cuts a batch into requests. They are sent by [`begin`](Self::begin).
    pub(super) fn add(&mut self, batch: &Arc<ReadBatch>) {
        let kind = Kind::of(batch.reads.is_tagged());
        let mut first = 0;
        for pages in batch.reads.pages().chunks(kind.pages(self.page_size)) {
            let (number, batch, count) = (self.next, Arc::clone(batch), pages.len());
            self.flights.push_back(Flight { number, batch, first, count, kind });
            self.next += 1;
            first += count;
        }
    }

    /// Sends a proof, before all requests to come. Whether it waits for the connection to become
    /// writable.
    pub(super) fn prove(&mut self, proof: Proof, socket: BorrowedFd<'_>) -> bool {
        self.send(&[&Request::PROOF.encode()[..], &proof].concat(), socket);
        self.is_queued()
    }

    /// Sends as many requests as may be under way. Whether some wait for the connection to become
    /// writable.
    pub(super) fn begin(&mut self, socket: BorrowedFd<'_>) -> bool {
        let mut bytes = Vec::new();
        while let Some(flight) = self.flights.get(self.begun) {
            let pages = self.begun_pages + flight.count;
            if self.begun > 0 && pages > self.window {
                break;
            }
            flight.put(&mut bytes, &self.nonce);
            self.begun += 1;
            self.begun_pages = pages;
        }
        self.send(&bytes, socket);
        self.is_queued()
    }

    /// Sends as much as goes, behind what waits, and keeps the rest.
    fn send(&mut self, bytes: &[u8], socket: BorrowedFd<'_>) {
        let mut sent = 0;
        if self.unsent.is_empty() && !bytes.is_empty() {
            // An error shows when the replies do not come.
            sent = io::send(socket, &[IoSlice::new(bytes)]).ok().flatten().unwrap_or(0);
        }
        self.unsent.extend_from_slice(&bytes[sent..]);
    }

    /// Takes the first request off, whose reply has begun to arrive, which makes room for another.
    pub(super) fn next(&mut self, socket: BorrowedFd<'_>) -> Option<Flight> {
        let flight = self.flights.pop_front()?;
        // A peer may answer what was not yet asked; it gets no further than the next request.
        self.begun = self.begun.saturating_sub(1);
        self.begun_pages = self.begun_pages.saturating_sub(flight.count);
        self.begin(socket);
        Some(flight)
    }

    /// The first request.
    pub(super) fn first(&self) -> Option<&Flight> {
        self.flights.front()
    }

    /// How many requests there are, and kind and pages of the first.
    pub(super) fn under_way(&self) -> (usize, Kind, usize) {
        let (kind, pages) =
            self.first().map_or((Kind::Plain, 0), |first| (first.kind, first.count));
        (self.flights.len(), kind, pages)
    }

    /// Whether requests wait for the connection to become writable.
    pub(super) fn is_queued(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        if let Some(sent) = io::send(socket, &[IoSlice::new(&self.unsent)])? {
            self.unsent.drain(..sent);
        }
        Ok(())
    }

    /// Whether nothing more can be asked for.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends it: the requests that get no answer.
    pub(super) fn close(&mut self) -> VecDeque<Flight> {
        self.closed = true;
        self.unsent = Vec::new();
        std::mem::take(&mut self.flights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RemoteRef;
    use crate::engine::PageReads;
    use crate::region::Region;
    use dafs_keys::{ReadKey, Secret};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn batch(pages: usize) -> Arc<ReadBatch> {
        batch_with(&FileKey::clear(), pages)
    }

    fn batch_with(key: &Arc<FileKey>, pages: usize) -> Arc<ReadBatch> {
        let reference = RemoteRef { chunk: 0, slot: 0, file: 0, block: 0, generation: 1 };
        let mut reads = PageReads::into(&Region::owned(vec![0; 4096]), 4096, key, pages);
        (0..pages).for_each(|_| reads.push(reference, 0, 0));
        ReadBatch::new(reads)
    }

    /// Requests that have arrived.
    fn arrived(socket: &mut UnixStream) -> Vec<(u64, usize)> {
        socket.set_nonblocking(true).unwrap();
        let (mut bytes, mut requests) = (vec![0; 1 << 20], Vec::new());
        let len = socket.read(&mut bytes).unwrap_or(0);
        let mut rest = &bytes[..len];
        while !rest.is_empty() {
            let request = Request::decode(rest).unwrap();
            requests.push((request.number, request.count));
            rest = &rest[HEADER_LEN + request.rest()..];
        }
        requests
    }

    #[test]
    fn on_the_same_host_a_window_is_kept() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut posting = Posting::new(4096, [7; 16], true);
        posting.add(&batch(200));
        posting.add(&batch(1));
        assert!(!posting.begin(a.as_fd()));
        assert_eq!(arrived(&mut b), [(0, 64), (1, 64)]);
        assert_eq!(posting.next(a.as_fd()).map(|flight| flight.first), Some(0));
        assert_eq!(arrived(&mut b), [(2, 64)]);
        posting.next(a.as_fd());
        assert_eq!(arrived(&mut b), [(3, 8), (4, 1)]);
        assert_eq!(posting.under_way(), (3, Kind::Plain, 64));
        assert_eq!(posting.close().len(), 3);
    }

    #[test]
    fn across_a_network_all_is_asked_for_at_once() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut posting = Posting::new(4096, [7; 16], false);
        posting.add(&batch(200));
        posting.begin(a.as_fd());
        assert_eq!(arrived(&mut b), [(0, 64), (1, 64), (2, 64), (3, 8)]);
    }

    #[test]
    fn what_the_kernel_does_not_take_follows_later() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut posting = Posting::new(4096, [7; 16], false);
        while !posting.is_queued() {
            posting.add(&batch(64));
            posting.begin(a.as_fd());
        }
        let mut received = 0;
        b.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; 1 << 20];
        while let Ok(n @ 1..) = b.read(&mut bytes) {
            received += n;
            posting.flush(a.as_fd()).unwrap();
        }
        assert!(!posting.is_queued());
        assert_eq!(received, posting.under_way().0 * (HEADER_LEN + 64 * 40));
    }

    #[test]
    fn pages_of_a_keyed_file_are_asked_for_with_tags() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let keyed = Arc::new(FileKey::Keyed(ReadKey::new(3, Secret::from_bytes([1; 32]))));
        let mut posting = Posting::new(4096, [7; 16], false);
        let batches = [batch(2), batch_with(&keyed, 38), batch(50)];
        batches.iter().for_each(|batch| posting.add(batch));
        assert!(!posting.prove([9; 16], a.as_fd()));
        posting.begin(a.as_fd());
        let kinds: Vec<_> = posting.flights.iter().map(|flight| flight.kind).collect();
        assert_eq!(kinds, [Kind::Plain, Kind::Tagged, Kind::Tagged, Kind::Tagged, Kind::Plain]);
        let expected = [(0, 0), (0, 2), (1, 16), (2, 16), (3, 6), (4, 50)];
        assert_eq!(arrived(&mut b), expected);
    }
}

//! Ways in for the fuzzer, to what takes a peer's bytes apart and is not public.
//!
//! Each lets one end of a connection make of the bytes what it does in earnest; those of the stream
//! engines send them over a connection, `cut` at a time. What must hold whatever comes is asserted.

use crate::arena::Geometry;
use crate::engine::{LinkError, PageReads, Receiver};
use crate::region::Region;
use crate::shm::control;
use crate::stream::frame::Limits;
use crate::stream::hello::{CLIENT_LEN, ClientHello, SERVER_LEN, ServerHello};
use crate::stream::rpc::Rpc;
use crate::tcp::reads::Reads;
use crate::tcp::wire::{HEADER_LEN, Request, read_entry, status};
use crate::turn::Lane;
use crate::{AccessFault, RemoteRef};
use dafs_keys::{FileKey, PageKey, Secret};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub use crate::verbs::fuzz::{from_client, from_server, private_data};

const LIMITS: Limits = Limits { head: 1 << 10, data: 4 << 10 };
const PAGE: usize = 4096;

#[derive(Debug)]
struct Bounded;

impl Receiver for Bounded {
    fn message(&self, head: &[u8], data: &[u8]) {
        assert!(head.len() <= LIMITS.head && data.len() <= LIMITS.data);
    }

    fn closed(&self, _: LinkError) {}
}

/// Sends the bytes in pieces and receives until nothing more comes.
fn feed(lane: &dyn Lane, mut peer: UnixStream, bytes: &[u8], cut: usize) {
    for piece in bytes.chunks(cut.max(1)) {
        // Fails once the lane has closed its end.
        let _ = peer.write_all(piece);
        loop {
            match lane.receive() {
                Ok(handled) if handled.more => {}
                Ok(_) => break,
                Err(_) => return,
            }
        }
    }
}

/// Frames of a server, at a client that has advertised a buffer under the first tag.
///
/// # Panics
/// If a message exceeds the limits, or bytes beside the buffer were written.
pub fn frames(bytes: &[u8], cut: usize) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let rpc = Rpc::new(ours.into(), "fuzz".to_owned(), LIMITS, LIMITS, Arc::new(Bounded));
    let region = Region::owned(vec![0xEE; 300]);
    let tag = rpc.advertise(vec![region.segment(50, 100), region.segment(160, 100)]);
    feed(&rpc, theirs, bytes, cut);
    assert!(rpc.withdraw(tag) <= 200);
    let buffer = region.take().unwrap_or_default();
    let beside = buffer.iter().enumerate().filter(|(i, _)| !matches!(i, 50..150 | 160..260));
    assert!(beside.into_iter().all(|(_, byte)| *byte == 0xEE));
}

/// Replies to one-sided reads, at a client that waits for two sealed pages.
///
/// # Panics
/// If one of them is accepted.
pub fn replies(bytes: &[u8], cut: usize) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let Ok(geometry) = Geometry::new(PAGE, 4 * PAGE) else { return };
    if ours.set_nonblocking(true).is_err() {
        return;
    }
    let reads = Reads::new(ours.into(), "fuzz".to_owned(), geometry, [0; 16], false);
    let region = Region::owned(vec![0xEE; 2 * PAGE]);
    let key = Arc::new(FileKey::Sealed(PageKey::derive(&Secret::from_bytes([1; 32]), 1, 5)));
    let mut wanted = PageReads::into(&region, PAGE, &key, 2);
    for block in 0..2 {
        let reference = RemoteRef { chunk: 0, slot: 0, file: 5, block, generation: 1 };
        wanted.push(reference, 0, block as usize * PAGE);
    }
    let (batch, _) = reads.post(wanted);
    feed(&reads, theirs, bytes, cut);
    if let Poll::Ready(outcomes) = batch.poll(&mut Context::from_waker(Waker::noop())) {
        assert!(outcomes.iter().all(Result::is_err), "a page out of thin air");
        let buffer = region.take().unwrap_or_default();
        assert!(buffer.iter().all(|byte| *byte == 0), "the buffer is not zeroed");
    }
}

/// Packets of fixed length: hellos, requests for pages, control messages.
///
/// # Panics
/// If one is read as what would be written in another way.
pub fn packets(bytes: &[u8]) {
    if let Some(packet) = bytes.first_chunk::<CLIENT_LEN>()
        && let Ok(hello) = ClientHello::decode(packet)
    {
        assert_eq!(hello.encode(), *packet);
    }
    if let Some(packet) = bytes.first_chunk::<SERVER_LEN>()
        && let Ok(hello) = ServerHello::decode(packet)
    {
        assert_eq!(ServerHello::decode(&hello.encode()), Ok(hello));
    }
    if let Some(packet) = bytes.first_chunk::<HEADER_LEN>()
        && let Some(request) = Request::decode(packet)
    {
        assert_eq!(request.encode(), *packet);
        if let Some(rest) = bytes.get(HEADER_LEN..HEADER_LEN + request.rest())
            && request.count > 0
        {
            rest.chunks_exact(request.rest() / request.count).for_each(|entry| {
                let _ = read_entry(entry);
            });
        }
    }
    if let Some(packet) = bytes.first_chunk::<{ control::LEN }>()
        && let Some(message) = control::Message::decode(packet)
    {
        assert_eq!(message.encode(), *packet);
    }
    if let Some(Some(Err(fault))) = bytes.first().map(|byte| status(*byte)) {
        assert!(AccessFault::ALL.contains(&fault));
    }
}

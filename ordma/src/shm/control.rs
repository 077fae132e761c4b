//! What the second connection carries: who may read, and the memory to read from.
//!
//! Messages are 16 bytes, little-endian: kind u8, three zero bytes, chunk u32, page size u32, slots
//! u32. Those that hand memory over come with one descriptor, and a proof with the 16 bytes of it
//! behind the message.

use crate::ChunkId;
use crate::arena::Geometry;
use crate::stream::frame::half;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Length of a message.
pub(crate) const LEN: usize = 16;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// To the client, first: the boot page, with its descriptor.
    Boot,
    /// To the client: it may read.
    Allow,
    /// To the client: it may not read any more, and lets go of all chunks.
    Revoke,
    /// To the client: a chunk, with its descriptor.
    Chunk(ChunkId, Geometry),
    /// To the client: let go of the chunk.
    Retire(ChunkId),
    /// To the server, once for each time that a chunk was handed over: it is no longer mapped.
    Unmapped(ChunkId),
    /// To the server, once: what comes next is the proof that the connection is its session's.
    Proof,
}

impl Message {
    /// The message's bytes.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut b = [0; LEN];
        let (kind, chunk) = match self {
            Self::Boot => (1, 0),
            Self::Allow => (2, 0),
            Self::Revoke => (3, 0),
            Self::Chunk(chunk, geometry) => {
                b[8..12].copy_from_slice(&(geometry.page_size as u32).to_le_bytes());
                b[12..].copy_from_slice(&geometry.slots.to_le_bytes());
                (4, *chunk)
            }
            Self::Retire(chunk) => (5, *chunk),
            Self::Unmapped(chunk) => (6, *chunk),
            Self::Proof => (7, 0),
        };
        b[0] = kind;
        b[4..8].copy_from_slice(&chunk.to_le_bytes());
        b
    }

    /// Reads a message; `None` where it is none.
    pub(crate) fn decode(b: &[u8; LEN]) -> Option<Self> {
        let (chunk, page_size, slots) = (half(b, 4), half(b, 8) as usize, half(b, 12) as usize);
        let message = match b[0] {
            1 => Self::Boot,
            2 => Self::Allow,
            3 => Self::Revoke,
            4 => Self::Chunk(chunk, Geometry::new(page_size, page_size.checked_mul(slots)?).ok()?),
            5 => Self::Retire(chunk),
            6 => Self::Unmapped(chunk),
            7 => Self::Proof,
            _ => return None,
        };
        // One way to say each thing.
        (message.encode() == *b).then_some(message)
    }
}

/// Sends bytes, all or none, with a descriptor. `None` where the connection takes none now.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<Option<()>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            // Unix sockets take so few bytes as a whole.
            Ok(n) if n == bytes.len() => return Ok(Some(())),
            Ok(_) => return Err(rustix::io::Errno::MSGSIZE),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What was received.
#[derive(Debug)]
pub(crate) enum Received {
    /// Nothing has arrived.
    Nothing,
    /// The peer closed the connection.
    End,
    /// A message, and the descriptor that came with it.
    Message(Message, Option<OwnedFd>),
    /// Bytes that are no message.
    Nonsense,
}

/// Receives a message, without blocking.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> rustix::io::Result<Received> {
    let mut bytes = [0; LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let n = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(message) => break message.bytes,
            Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    };
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.into_iter().next();
        }
    }
    match n {
        0 => Ok(Received::End),
        LEN => Ok(Message::decode(&bytes)
            .map_or(Received::Nonsense, |message| Received::Message(message, descriptor))),
        _ => Ok(Received::Nonsense),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let geometry = Geometry::new(8192, 1 << 20).unwrap();
        let messages = [
            (Message::Boot, true),
            (Message::Allow, false),
            (Message::Chunk(u32::MAX, geometry), true),
            (Message::Retire(7), false),
            (Message::Revoke, false),
            (Message::Unmapped(7), false),
            (Message::Proof, false),
        ];
        for (message, with) in messages {
            let descriptor = with.then_some(a.as_fd());
            assert_eq!(send(a.as_fd(), &message.encode(), descriptor), Ok(Some(())));
        }
        for (message, with) in messages {
            match receive(b.as_fd()).unwrap() {
                Received::Message(got, descriptor) => {
                    assert_eq!((got, descriptor.is_some()), (message, with));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(receive(b.as_fd()), Ok(Received::Nothing)));
        send(a.as_fd(), &[9; LEN], None).unwrap();
        assert!(matches!(receive(b.as_fd()), Ok(Received::Nonsense)));
        drop(a);
        assert!(matches!(receive(b.as_fd()), Ok(Received::End)));
    }
}

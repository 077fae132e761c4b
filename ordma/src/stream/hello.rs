//! Hellos: the first bytes on every connection, both ways.
//!
//! The client says what the connection is for; a session's second connection names the ticket that
//! the first one was given. The server answers with its limits, the sizes of its chunks, and, on a
//! first connection, the ticket; on a second one, the nonce that its proof and its tags are over.

use super::frame::{Limits, half};
use crate::arena::Geometry;

/// Opens every connection. Not text, so that a stray line of another protocol does not pass.
const MAGIC: [u8; 8] = *b"\xDAFSordma";
/// The version of frames, one-sided requests and control messages.
const VERSION: u16 = 1;

/// Length of a client's hello.
pub(crate) const CLIENT_LEN: usize = 32;
/// Length of a server's hello.
pub(crate) const SERVER_LEN: usize = 48;

/// Pairs a session's second connection with its first.
pub(crate) type Ticket = [u8; 16];

/// What a client wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientHello {
    /// Messages and transfers: the first connection.
    Messages,
    /// One-sided reads (tcp) or the handing over of chunks (shm), for the holder of the ticket.
    Second(Ticket),
}

/// Why a hello is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHello {
    /// Another protocol.
    Magic,
    /// Another version.
    Version(u16),
    /// The rest does not make sense.
    Nonsense,
}

impl std::fmt::Display for BadHello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("its first bytes are not of this protocol"),
            Self::Version(theirs) => {
                write!(f, "it speaks version {theirs} of the protocol, and this side {VERSION}")
            }
            Self::Nonsense => f.write_str("its hello does not make sense"),
        }
    }
}

impl ClientHello {
    /// The hello's bytes.
    pub(crate) fn encode(&self) -> [u8; CLIENT_LEN] {
        let mut b = [0; CLIENT_LEN];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&VERSION.to_le_bytes());
        match self {
            Self::Messages => b[10] = 1,
            Self::Second(ticket) => {
                b[10] = 2;
                b[16..].copy_from_slice(ticket);
            }
        }
        b
    }

    /// Reads a hello.
    pub(crate) fn decode(b: &[u8; CLIENT_LEN]) -> Result<Self, BadHello> {
        opening(b)?;
        let mut ticket = [0; 16];
        ticket.copy_from_slice(&b[16..]);
        match b[10] {
            _ if b[11..16] != [0; 5] => Err(BadHello::Nonsense),
            1 if ticket == [0; 16] => Ok(Self::Messages),
            2 => Ok(Self::Second(ticket)),
            _ => Err(BadHello::Nonsense),
        }
    }
}

/// The server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerHello {
    /// Welcome.
    Welcome {
        /// The sizes of the server's chunks.
        geometry: Geometry,
        /// Most that the server takes in one message.
        limits: Limits,
        /// Names this session to its second connection; on that, its nonce.
        ticket: Ticket,
    },
    /// No session has that ticket.
    UnknownTicket,
    /// The server has as many connections as it takes.
    Full,
    /// The client's version is not the server's, which is the version of this hello.
    OtherVersion,
}

impl ServerHello {
    /// The hello's bytes.
    pub(crate) fn encode(&self) -> [u8; SERVER_LEN] {
        let mut b = [0; SERVER_LEN];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&VERSION.to_le_bytes());
        match self {
            Self::Welcome { geometry, limits, ticket } => {
                b[16..20].copy_from_slice(&(geometry.page_size as u32).to_le_bytes());
                b[20..24].copy_from_slice(&geometry.slots.to_le_bytes());
                b[24..28].copy_from_slice(&(limits.head as u32).to_le_bytes());
                b[28..32].copy_from_slice(&(limits.data as u32).to_le_bytes());
                b[32..].copy_from_slice(ticket);
            }
            Self::UnknownTicket => b[10] = 1,
            Self::Full => b[10] = 2,
            Self::OtherVersion => b[10] = 3,
        }
        b
    }

    /// Reads a hello.
    pub(crate) fn decode(b: &[u8; SERVER_LEN]) -> Result<Self, BadHello> {
        opening(b)?;
        match b[10] {
            0 => {}
            1 => return Ok(Self::UnknownTicket),
            2 => return Ok(Self::Full),
            3 => return Ok(Self::OtherVersion),
            _ => return Err(BadHello::Nonsense),
        }
        let (page_size, slots) = (half(b, 16) as usize, half(b, 20) as usize);
        let geometry = page_size
            .checked_mul(slots)
            .and_then(|bytes| Geometry::new(page_size, bytes).ok())
            .ok_or(BadHello::Nonsense)?;
        let limits = Limits { head: half(b, 24) as usize, data: half(b, 28) as usize };
        let mut ticket = [0; 16];
        ticket.copy_from_slice(&b[32..]);
        Ok(Self::Welcome { geometry, limits, ticket })
    }
}

fn opening(b: &[u8]) -> Result<(), BadHello> {
    if b[..8] != MAGIC {
        return Err(BadHello::Magic);
    }
    match u16::from_le_bytes([b[8], b[9]]) {
        VERSION => Ok(()),
        other => Err(BadHello::Version(other)),
    }
}

/// Whether bytes that have arrived so far can still become a hello.
pub(crate) fn may_become_hello(bytes: &[u8]) -> bool {
    let known = bytes.len().min(MAGIC.len());
    bytes[..known] == MAGIC[..known]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_survive_the_wire() {
        for hello in [ClientHello::Messages, ClientHello::Second([7; 16])] {
            assert_eq!(ClientHello::decode(&hello.encode()), Ok(hello));
        }
        let geometry = Geometry::new(4096, 64 << 20).unwrap();
        let limits = Limits { head: 1, data: 2 };
        for hello in [
            ServerHello::Welcome { geometry, limits, ticket: [9; 16] },
            ServerHello::UnknownTicket,
            ServerHello::Full,
            ServerHello::OtherVersion,
        ] {
            assert_eq!(ServerHello::decode(&hello.encode()), Ok(hello));
        }
    }

    #[test]
    fn other_protocols_and_versions_are_told_apart() {
        let good = ClientHello::Messages.encode();
        let mut bad = good;
        bad[0] = b'G';
        assert_eq!(ClientHello::decode(&bad), Err(BadHello::Magic));
        assert!(!may_become_hello(&bad[..3]));
        bad = good;
        bad[8] = 9;
        assert_eq!(ClientHello::decode(&bad), Err(BadHello::Version(9)));
        bad = good;
        bad[12] = 1;
        assert_eq!(ClientHello::decode(&bad), Err(BadHello::Nonsense));
        assert!(may_become_hello(&good[..3]) && may_become_hello(&good));
        let mut sizes = ServerHello::Welcome {
            geometry: Geometry::new(4096, 4096).unwrap(),
            limits: Limits { head: 0, data: 0 },
            ticket: [0; 16],
        }
        .encode();
        sizes[16] = 1;
        assert_eq!(ServerHello::decode(&sizes), Err(BadHello::Nonsense));
    }
}

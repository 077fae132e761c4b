//! What the two sides tell each other when a connection is made, in the private data of `rdma_cm`.
//!
//! Little-endian, and zeros may follow:
//!
//! | offset | client | server, accepting | server, refusing |
//! |---|---|---|---|
//! | 0 | magic, 4 bytes | magic | magic |
//! | 4 | version u8 | version | version |
//! | 5 | 1: messages, 2: READs | 0 | why, u8 |
//! | 6 | path MTU u16 | path MTU u16 | |
//! | 8 | receives for packets u16 | receives for packets u16 | |
//! | 10 | zero u16 | zero u16 | |
//! | 12 | limit of heads u32 | limit of heads u32 | |
//! | 16 | limit of data u32 | limit of data u32 | |
//! | 20 | ticket, 16 bytes, for READs | ticket; for READs a nonce | |
//! | 36 | | length of a packet u32 | |
//! | 40 | | page size u32 | |
//! | 44 | | slots of a chunk u32 | |

use crate::arena::Geometry;
use crate::stream::frame::Limits;
use crate::stream::hello::Ticket;

const MAGIC: [u8; 4] = *b"DAFr";
const VERSION: u8 = 1;
/// Length of a client's hello.
pub(super) const CLIENT_LEN: usize = 36;
/// Length of an acceptance.
pub(super) const SERVER_LEN: usize = 48;
/// The least length of a packet: what a small page takes with its message.
pub(super) const LEAST_PACKET: usize = 4096;
/// The most.
pub(super) const MOST_PACKET: usize = 1 << 20;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A connection for messages.
    Messages,
    /// One for READs, beside that with the ticket.
    Reads(Ticket),
}

/// A client's hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientHello {
    pub(super) wish: Wish,
    pub(super) mtu: u16,
    pub(super) window: u16,
    pub(super) limits: Limits,
}

/// A server's acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) mtu: u16,
    pub(super) window: u16,
    pub(super) limits: Limits,
    pub(super) ticket: Ticket,
    pub(super) packet: u32,
    pub(super) geometry: Geometry,
}

/// Why a server refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it does not speak this protocol")]
    NotOurs,
    #[error("it speaks another version of the engine's protocol; update the older side")]
    Version,
    #[error("it does not know the session")]
    UnknownTicket,
    #[error("it has no room for more connections")]
    Full,
    #[error("it lacks resources for the connection; its log says which")]
    Resources,
}

const REFUSALS: [Refusal; 5] =
    [Refusal::NotOurs, Refusal::Version, Refusal::UnknownTicket, Refusal::Full, Refusal::Resources];

fn start(kind: u8, mtu: u16, window: u16, limits: Limits, ticket: &Ticket) -> [u8; SERVER_LEN] {
    let mut b = [0; SERVER_LEN];
    b[..4].copy_from_slice(&MAGIC);
    b[4] = VERSION;
    b[5] = kind;
    b[6..8].copy_from_slice(&mtu.to_le_bytes());
    b[8..10].copy_from_slice(&window.to_le_bytes());
    b[12..16].copy_from_slice(&(limits.head as u32).to_le_bytes());
    b[16..20].copy_from_slice(&(limits.data as u32).to_le_bytes());
    b[20..36].copy_from_slice(ticket);
    b
}

fn version(b: &[u8]) -> Result<(), Refusal> {
    match b {
        [a, b, c, d, VERSION, ..] if [*a, *b, *c, *d] == MAGIC => Ok(()),
        [a, b, c, d, _, ..] if [*a, *b, *c, *d] == MAGIC => Err(Refusal::Version),
        _ => Err(Refusal::NotOurs),
    }
}

fn u16_at(b: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([b[i], b[i + 1]])
}

fn u32_at(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

fn limits(b: &[u8]) -> Limits {
    Limits { head: u32_at(b, 12) as usize, data: u32_at(b, 16) as usize }
}

fn ticket(b: &[u8]) -> Ticket {
    let mut ticket = [0; 16];
    ticket.copy_from_slice(&b[20..36]);
    ticket
}

impl ClientHello {
    pub(super) fn encode(&self) -> [u8; CLIENT_LEN] {
        let (kind, ticket) = match self.wish {
            Wish::Messages => (1, [0; 16]),
            Wish::Reads(ticket) => (2, ticket),
        };
        let mut b = [0; CLIENT_LEN];
        b.copy_from_slice(&start(kind, self.mtu, self.window, self.limits, &ticket)[..CLIENT_LEN]);
        b
    }

    pub(super) fn decode(b: &[u8]) -> Result<Self, Refusal> {
        version(b)?;
        if b.len() < CLIENT_LEN {
            return Err(Refusal::NotOurs);
        }
        let wish = match b[5] {
            1 => Wish::Messages,
            2 => Wish::Reads(ticket(b)),
            _ => return Err(Refusal::NotOurs),
        };
        Ok(Self { wish, mtu: u16_at(b, 6), window: u16_at(b, 8), limits: limits(b) })
    }
}

impl Welcome {
    pub(super) fn encode(&self) -> [u8; SERVER_LEN] {
        let mut b = start(0, self.mtu, self.window, self.limits, &self.ticket);
        b[36..40].copy_from_slice(&self.packet.to_le_bytes());
        b[40..44].copy_from_slice(&(self.geometry.page_size as u32).to_le_bytes());
        b[44..48].copy_from_slice(&self.geometry.slots.to_le_bytes());
        b
    }

    /// The error says what is wrong with it.
    pub(super) fn decode(b: &[u8]) -> Result<Self, String> {
        version(b).map_err(|error| error.to_string())?;
        if b.len() < SERVER_LEN || b[5] != 0 {
            return Err(Refusal::NotOurs.to_string());
        }
        let packet = u32_at(b, 36);
        if !(LEAST_PACKET..=MOST_PACKET).contains(&(packet as usize)) {
            return Err(format!("its packets have {packet} bytes"));
        }
        let (page, slots) = (u32_at(b, 40) as usize, u32_at(b, 44) as usize);
        let geometry = Geometry::new(page, page.saturating_mul(slots))?;
        Ok(Self {
            mtu: u16_at(b, 6),
            window: u16_at(b, 8),
            limits: limits(b),
            ticket: ticket(b),
            packet,
            geometry,
        })
    }
}

impl Refusal {
    pub(super) fn encode(self) -> [u8; 6] {
        let [a, b, c, d] = MAGIC;
        let code = REFUSALS.iter().position(|refusal| *refusal == self).unwrap_or(0);
        [a, b, c, d, VERSION, 1 + code as u8]
    }

    /// `None` where the refusal is not the server's.
    pub(super) fn decode(b: &[u8]) -> Option<Self> {
        let code = usize::from(*b.get(5)?);
        match version(b) {
            Ok(()) => REFUSALS.get(code.checked_sub(1)?).copied(),
            Err(Refusal::Version) => Some(Refusal::Version),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 65 << 10, data: 2 << 20 };

    #[test]
    fn hellos_come_back_as_they_were() {
        for wish in [Wish::Messages, Wish::Reads([7; 16])] {
            let hello = ClientHello { wish, mtu: 4096, window: 32, limits: LIMITS };
            let mut bytes = hello.encode().to_vec();
            assert!(bytes.len() <= crate::rdma::MAX_HELLO);
            bytes.resize(56, 0);
            assert_eq!(ClientHello::decode(&bytes), Ok(hello));
            bytes[4] = 9;
            assert_eq!(ClientHello::decode(&bytes), Err(Refusal::Version));
            assert_eq!(ClientHello::decode(&bytes[..3]), Err(Refusal::NotOurs));
        }
        let welcome = Welcome {
            mtu: 1024,
            window: 4,
            limits: LIMITS,
            ticket: [3; 16],
            packet: 8192,
            geometry: Geometry::new(4096, 1 << 20).unwrap(),
        };
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        let mut bytes = welcome.encode();
        bytes[36..40].fill(0xFF);
        assert!(Welcome::decode(&bytes).is_err());
        bytes = welcome.encode();
        bytes[44..48].fill(0xFF);
        assert!(Welcome::decode(&bytes).is_err());
    }

    #[test]
    fn refusals_come_back_as_they_were() {
        for refusal in REFUSALS {
            assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
        }
        assert_eq!(Refusal::decode(&[0; 148]), None);
        assert_eq!(Refusal::decode(&[]), None);
    }
}

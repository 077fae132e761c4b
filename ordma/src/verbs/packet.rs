//! Packets: what one SEND carries.
//!
//! A packet is a header of 16 bytes, little-endian, then records, then part of a message:
//!
//! | offset | field |
//! |---|---|
//! | 0 | format u8, flags u8 (1: a message begins) |
//! | 2 | receives newly posted for the peer, u16 |
//! | 4 | length of the records, u16 |
//! | 6 | packets without content handled, u8; a zero byte |
//! | 8 | length of the message's head, u32, where one begins |
//! | 12 | length of the message's data, u32, where one begins |
//!
//! The bytes of a message, head and then data, go on from packet to packet until all are there.
//! Records are what the engine itself has to say. They come in the order in which things happened,
//! before the message bytes of their packet.

use super::credits::Told;
use crate::ChunkId;
use crate::rdma::Remote;
use crate::stream::memory::Arriving;
use dafs_keys::tags::TAG_LEN;
use std::fmt;

pub(super) const HEADER_LEN: usize = 16;
const FORMAT: u8 = 1;
const BEGINS: u8 = 1;

/// Most pieces of memory that an advertised buffer is made of.
pub(super) const MOST_PIECES: usize = 16;
/// The longest record.
pub(super) const LONGEST_RECORD: usize = 1 + 8 + 2 + MOST_PIECES * PIECE_LEN;
const PIECE_LEN: usize = 16;

/// Part of an advertised buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) remote: Remote,
    pub(super) len: u32,
}

/// What the engine has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// Client: the buffer `tag` is there.
    Advert(u64, Vec<Piece>),
    /// Client: it is not any more. Answered by [`Withdrawn`](Self::Withdrawn).
    Withdraw(u64),
    /// Client: the queue pair for READs is the session's.
    Proof([u8; TAG_LEN]),
    /// Client: nothing of the chunk is read any more.
    LetGo(ChunkId),
    /// Client: the queue pair for READs has failed; for the next life, its number, and that of the
    /// client's first packet.
    Rearm(u32, u32),
    /// Server: a chunk can be read.
    Chunk(ChunkId, Remote),
    /// Server: nothing of the chunk may be read any more. Answered by [`LetGo`](Self::LetGo).
    Retire(ChunkId),
    /// Server: READs are allowed.
    Allow,
    /// Server: they are not any more.
    Revoke,
    /// Server: so many bytes were placed into the buffer `tag`.
    Placed(u64, u64),
    /// Server: nothing is written to or read from the buffer `tag` any more.
    Withdrawn(u64),
    /// Server: its queue pair for READs lives again; the life's number, and that of its first packet.
    Rearmed(u32, u32),
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPacket {
    #[error("a packet of {0} bytes")]
    Short(usize),
    #[error("a packet of format {0}")]
    Format(u8),
    #[error("a packet with unknown flags")]
    Flags,
    #[error("records longer than their packet")]
    Records,
    #[error("record kind {0}")]
    Kind(u8),
    #[error("half a record")]
    HalfRecord,
    #[error("a buffer of {0} pieces")]
    Pieces(usize),
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) told: Told,
    pub(super) records: u16,
    /// Lengths of the head and of the data of the message that begins.
    pub(super) begins: Option<(u32, u32)>,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0] = FORMAT;
        b[2..4].copy_from_slice(&self.told.granted.to_le_bytes());
        b[4..6].copy_from_slice(&self.records.to_le_bytes());
        b[6] = self.told.handled;
        if let Some((head, data)) = self.begins {
            b[1] = BEGINS;
            b[8..12].copy_from_slice(&head.to_le_bytes());
            b[12..16].copy_from_slice(&data.to_le_bytes());
        }
        b
    }
}

/// A packet that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) header: Header,
    records: &'a [u8],
    /// Bytes of a message.
    pub(super) message: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, BadPacket> {
        let (b, rest) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(BadPacket::Short(bytes.len()))?;
        if b[0] != FORMAT {
            return Err(BadPacket::Format(b[0]));
        }
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let begins = match b[1] {
            0 if b[8..] == [0; 8] => None,
            BEGINS => Some((u32_at(8), u32_at(12))),
            _ => return Err(BadPacket::Flags),
        };
        if b[7] != 0 {
            return Err(BadPacket::Flags);
        }
        let told = Told { granted: u16_at(2), handled: b[6] };
        let header = Header { told, records: u16_at(4), begins };
        let (records, message) =
            rest.split_at_checked(header.records.into()).ok_or(BadPacket::Records)?;
        Ok(Self { header, records, message })
    }

    /// The records, up to the first that cannot be read.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Record, BadPacket>> + 'a {
        let mut rest = self.records;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let record = Record::decode(&mut rest);
            if record.is_err() {
                rest = &[];
            }
            Some(record)
        })
    }

    /// Whether it says more than that receives were posted.
    pub(super) fn has_content(&self) -> bool {
        self.header.begins.is_some() || !self.records.is_empty() || !self.message.is_empty()
    }
}

impl Record {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, parts: &[&[u8]]| {
            out.push(kind);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        match self {
            Self::Advert(tag, pieces) => {
                put(1, &[&tag.to_le_bytes(), &(pieces.len() as u16).to_le_bytes()]);
                for Piece { remote, len } in pieces {
                    put_remote(out, remote);
                    out.extend_from_slice(&len.to_le_bytes());
                }
            }
            Self::Withdraw(tag) => put(2, &[&tag.to_le_bytes()]),
            Self::Proof(proof) => put(3, &[proof]),
            Self::LetGo(chunk) => put(4, &[&chunk.to_le_bytes()]),
            Self::Rearm(life, packet) => put(5, &[&life.to_le_bytes(), &packet.to_le_bytes()]),
            Self::Chunk(chunk, remote) => {
                put(16, &[&chunk.to_le_bytes()]);
                put_remote(out, remote);
            }
            Self::Retire(chunk) => put(17, &[&chunk.to_le_bytes()]),
            Self::Allow => put(18, &[]),
            Self::Revoke => put(19, &[]),
            Self::Placed(tag, len) => put(20, &[&tag.to_le_bytes(), &len.to_le_bytes()]),
            Self::Withdrawn(tag) => put(21, &[&tag.to_le_bytes()]),
            Self::Rearmed(life, packet) => put(22, &[&life.to_le_bytes(), &packet.to_le_bytes()]),
        }
    }

    fn decode(rest: &mut &[u8]) -> Result<Self, BadPacket> {
        let mut cursor = Cursor(rest);
        let record = match cursor.take::<1>()?[0] {
            1 => {
                let tag = cursor.u64()?;
                let count = usize::from(u16::from_le_bytes(cursor.take()?));
                if count > MOST_PIECES {
                    return Err(BadPacket::Pieces(count));
                }
                let piece = |_| {
                    Ok(Piece { remote: cursor.remote()?, len: u32::from_le_bytes(cursor.take()?) })
                };
                Self::Advert(tag, (0..count).map(piece).collect::<Result<_, _>>()?)
            }
            2 => Self::Withdraw(cursor.u64()?),
            3 => Self::Proof(cursor.take()?),
            4 => Self::LetGo(cursor.chunk()?),
            5 => Self::Rearm(cursor.u32()?, cursor.u32()?),
            16 => Self::Chunk(cursor.chunk()?, cursor.remote()?),
            17 => Self::Retire(cursor.chunk()?),
            18 => Self::Allow,
            19 => Self::Revoke,
            20 => Self::Placed(cursor.u64()?, cursor.u64()?),
            21 => Self::Withdrawn(cursor.u64()?),
            22 => Self::Rearmed(cursor.u32()?, cursor.u32()?),
            kind => return Err(BadPacket::Kind(kind)),
        };
        *rest = cursor.0;
        Ok(record)
    }
}

fn put_remote(out: &mut Vec<u8>, remote: &Remote) {
    out.extend_from_slice(&remote.address.to_le_bytes());
    out.extend_from_slice(&remote.key.to_le_bytes());
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadPacket> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BadPacket::HalfRecord)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, BadPacket> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadPacket> {
        self.take().map(u64::from_le_bytes)
    }

    fn chunk(&mut self) -> Result<ChunkId, BadPacket> {
        self.take().map(ChunkId::from_le_bytes)
    }

    fn remote(&mut self) -> Result<Remote, BadPacket> {
        Ok(Remote { address: self.u64()?, key: self.u32()? })
    }
}

/// A message that arrives packet by packet. Plain data.
#[derive(Default)]
pub(super) struct Assembly {
    under_way: Option<Gathered>,
}

struct Gathered {
    head: usize,
    total: usize,
    bytes: Vec<u8>,
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.under_way.as_ref().map(|g| g.total - g.bytes.len());
        f.debug_struct("Assembly").field("missing", &missing).finish()
    }
}

/// What a packet's message bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assembled<'a> {
    /// No message is complete.
    Nothing,
    /// A message that came in one packet: head and data.
    Here(&'a [u8], &'a [u8]),
    /// A message that came in several: the bytes, and how many are of the head.
    Gathered(Vec<u8>, usize),
}

impl Assembly {
    /// Takes a packet's message bytes. The error says what is wrong with them.
    pub(super) fn take<'a>(
        &mut self,
        packet: &Packet<'a>,
        limits: crate::stream::frame::Limits,
    ) -> Result<Assembled<'a>, String> {
        let bytes = packet.message;
        let Some((head, data)) = packet.header.begins else {
            if bytes.is_empty() {
                return Ok(Assembled::Nothing);
            }
            let gathered = self.under_way.as_mut().ok_or("message bytes without a beginning")?;
            if bytes.len() > gathered.total - gathered.bytes.len() {
                return Err("more bytes than the message has".to_owned());
            }
            gathered.bytes.extend_from_slice(bytes);
            return Ok(self.finish());
        };
        let (head, data) = (head as usize, data as usize);
        if self.under_way.is_some() {
            return Err("a message begins within another".to_owned());
        }
        limits.check(head, data)?;
        let total = head + data;
        if bytes.len() > total {
            return Err("more bytes than the message has".to_owned());
        }
        if bytes.len() == total {
            let (head, data) = bytes.split_at(head);
            return Ok(Assembled::Here(head, data));
        }
        // Memory is taken for what has come, not for what is announced.
        self.under_way = Some(Gathered { head, total, bytes: bytes.to_vec() });
        Ok(Assembled::Nothing)
    }

    fn finish<'a>(&mut self) -> Assembled<'a> {
        match self.under_way.take() {
            Some(gathered) if gathered.bytes.len() == gathered.total => {
                Assembled::Gathered(gathered.bytes, gathered.head)
            }
            other => {
                self.under_way = other;
                Assembled::Nothing
            }
        }
    }

    /// The message under way.
    pub(super) fn gathering(&self) -> Option<Arriving> {
        let gathered = self.under_way.as_ref()?;
        Some(Arriving { bytes: gathered.total, here: gathered.bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::Limits;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { head: 1000, data: 10_000 };

    fn records() -> Vec<Record> {
        let remote = Remote { address: 0x1122_3344_5566_7788, key: 0x99AA_BBCC };
        let piece = Piece { remote, len: 4160 };
        vec![
            Record::Advert(7, vec![piece; MOST_PIECES]),
            Record::Advert(8, Vec::new()),
            Record::Withdraw(7),
            Record::Proof([9; TAG_LEN]),
            Record::LetGo(3),
            Record::Rearm(1, 0xFF_FFFF),
            Record::Chunk(3, remote),
            Record::Retire(3),
            Record::Allow,
            Record::Revoke,
            Record::Placed(7, 1 << 40),
            Record::Withdrawn(7),
            Record::Rearmed(2, 5),
        ]
    }

    fn packet(header: Header, records: &[Record], message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        let header = Header { records: bytes.len() as u16, ..header };
        [&header.encode()[..], &bytes, message].concat()
    }

    #[test]
    fn packets_come_back_as_they_were() {
        let records = records();
        let told = Told { granted: 5, handled: 250 };
        let header = Header { told, begins: Some((3, 4)), ..Header::default() };
        let bytes = packet(header, &records, b"headata");
        let decoded = Packet::decode(&bytes).unwrap();
        assert_eq!((decoded.header.told, decoded.header.begins), (told, Some((3, 4))));
        let got: Result<Vec<_>, _> = decoded.records().collect();
        assert_eq!(got.unwrap(), records);
        assert_eq!(decoded.message, b"headata");
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert!(bytes.len() <= LONGEST_RECORD);
        }
        let grant = packet(Header { told, ..Header::default() }, &[], &[]);
        assert!(!Packet::decode(&grant).unwrap().has_content());
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Packet::decode(&[1; 15]), Err(BadPacket::Short(15)));
        let good = packet(Header::default(), &[Record::Allow], &[]);
        let change = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Packet::decode(&bytes).map(|packet| packet.records().next())
        };
        assert_eq!(change(0, 9), Err(BadPacket::Format(9)));
        assert_eq!(change(1, 2), Err(BadPacket::Flags));
        assert_eq!(change(8, 1), Err(BadPacket::Flags));
        assert_eq!(change(4, 200), Err(BadPacket::Records));
        assert_eq!(change(16, 99), Ok(Some(Err(BadPacket::Kind(99)))));
        assert_eq!(change(16, 17), Ok(Some(Err(BadPacket::HalfRecord))));
    }

    #[test]
    fn messages_are_put_together() {
        let message: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        for size in [1, 700, 5000, 6000] {
            let mut assembly = Assembly::default();
            let mut got = None;
            for (i, bytes) in message.chunks(size).enumerate() {
                let begins = (i == 0).then_some((100, 4900));
                let bytes = packet(Header { begins, ..Header::default() }, &[], bytes);
                let decoded = Packet::decode(&bytes).unwrap();
                match assembly.take(&decoded, LIMITS).unwrap() {
                    Assembled::Nothing => {
                        assert_eq!(assembly.gathering().map(|message| message.bytes), Some(5000))
                    }
                    Assembled::Here(head, data) => got = Some([head, data].concat()),
                    Assembled::Gathered(bytes, 100) => got = Some(bytes),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(got.as_ref(), Some(&message));
            assert_eq!(assembly.gathering(), None);
        }
    }

    #[test]
    fn messages_that_do_not_fit_are_refused() {
        let take = |begins, bytes: &[u8]| {
            let bytes = packet(Header { begins, ..Header::default() }, &[], bytes);
            Assembly::default().take(&Packet::decode(&bytes).unwrap(), LIMITS).err()
        };
        assert!(take(None, b"x").unwrap().contains("without a beginning"));
        assert!(take(Some((1001, 0)), b"").unwrap().contains("exceeds the limits"));
        assert!(take(Some((0, 10_001)), b"").unwrap().contains("exceeds the limits"));
        assert!(take(Some((1, 1)), b"abc").unwrap().contains("more bytes"));
        assert_eq!(take(Some((u32::MAX, u32::MAX)), b"").map(|_| ()), Some(()));
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(bytes in any::<Vec<u8>>(), format in any::<bool>()) {
            let mut bytes = bytes;
            if format && bytes.len() >= HEADER_LEN {
                bytes[0] = FORMAT;
                bytes[1] &= 1;
                bytes[4..8].fill(0);
                bytes[4] = (bytes.len() - HEADER_LEN).min(40) as u8;
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert!(packet.records().count() <= bytes.len());
                let _ = Assembly::default().take(&packet, LIMITS);
            }
        }
    }
}

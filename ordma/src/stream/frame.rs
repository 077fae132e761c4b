//! Frames: how messages and bulk data follow each other on a connection.
//!
//! A frame is a header of 24 bytes, little-endian, then its head, then its data:
//!
//! | offset | field |
//! |---|---|
//! | 0 | kind u8, three zero bytes |
//! | 4 | length of the head, u32 |
//! | 8 | length of the data, u64 |
//! | 16 | tag u64 |

use std::fmt;

/// Length of a frame's header in bytes.
pub(crate) const HEADER_LEN: usize = 24;
/// Length of the head of a [`Kind::Pull`] frame.
pub(crate) const PULL_LEN: usize = 24;
/// Most data of one [`Kind::PullData`] frame: what one side may have to hold of a transfer.
pub(crate) const PIECE: usize = 256 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message: head and data are the user's.
    Message = 1,
    /// Server to client: data for the advertised buffer `tag`, from its start.
    Data = 2,
    /// Server to client: send part of the advertised buffer `tag`. The head says which: see
    /// [`Pull`].
    Pull = 3,
    /// Client to server: the next piece of what the pull `tag` asked for.
    PullData = 4,
    /// Client to server: the pull `tag` gets no (more) data; the buffer is withdrawn.
    PullRefused = 5,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) head_len: u32,
    pub(crate) data_len: u64,
    pub(crate) tag: u64,
}

/// Most that a side takes in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of a head.
    pub(crate) head: usize,
    /// Bytes of a message's data.
    pub(crate) data: usize,
}

impl Limits {
    /// Whether a message is within them. The error says what exceeds what.
    pub(crate) fn check(&self, head: usize, data: usize) -> Result<(), String> {
        if head <= self.head && data <= self.data {
            return Ok(());
        }
        let Self { head: most, data: most_data } = self;
        Err(format!(
            "a message of {head} and {data} bytes exceeds the limits of {most} and {most_data}"
        ))
    }
}

impl Header {
    /// A message's header.
    pub(crate) fn message(head: usize, data: usize) -> Self {
        Self { kind: Kind::Message, head_len: head as u32, data_len: data as u64, tag: 0 }
    }

    /// The header of a frame that is data alone.
    pub(crate) fn data(kind: Kind, tag: u64, len: usize) -> Self {
        Self { kind, head_len: 0, data_len: len as u64, tag }
    }

    /// The header's bytes.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0] = self.kind as u8;
        b[4..8].copy_from_slice(&self.head_len.to_le_bytes());
        b[8..16].copy_from_slice(&self.data_len.to_le_bytes());
        b[16..24].copy_from_slice(&self.tag.to_le_bytes());
        b
    }

    /// Reads a header and holds it against the limits. The error says what is wrong with it.
    pub(crate) fn decode(b: &[u8; HEADER_LEN], limits: Limits) -> Result<Self, BadFrame> {
        let kind = match b[0] {
            1 => Kind::Message,
            2 => Kind::Data,
            3 => Kind::Pull,
            4 => Kind::PullData,
            5 => Kind::PullRefused,
            other => return Err(BadFrame::Kind(other)),
        };
        if b[1..4] != [0; 3] {
            return Err(BadFrame::Kind(b[0]));
        }
        let head_len = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        let data_len = word(b, 8);
        let header = Self { kind, head_len, data_len, tag: word(b, 16) };
        let (head_fits, data_fits) = match kind {
            Kind::Message => (head_len as usize <= limits.head, data_len <= limits.data as u64),
            // How much data fits is for the buffer to say that it goes into.
            Kind::Data | Kind::PullData => (head_len == 0, data_len > 0),
            Kind::Pull => (head_len as usize == PULL_LEN, data_len == 0),
            Kind::PullRefused => (head_len == 0, data_len == 0),
        };
        if !head_fits || !data_fits {
            return Err(BadFrame::Length { kind, head: head_len, data: data_len });
        }
        Ok(header)
    }

    /// Bytes of head and data. Only meaningful for kinds that are taken whole.
    pub(crate) fn body_len(&self) -> usize {
        self.head_len as usize + self.data_len as usize
    }
}

/// What a pull asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pull {
    /// The tag of the frames that answer.
    pub(crate) id: u64,
    /// First byte of the advertised buffer.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) len: u64,
}

impl Pull {
    /// The head's bytes.
    pub(crate) fn encode(&self) -> [u8; PULL_LEN] {
        let mut b = [0; PULL_LEN];
        b[..8].copy_from_slice(&self.id.to_le_bytes());
        b[8..16].copy_from_slice(&self.offset.to_le_bytes());
        b[16..].copy_from_slice(&self.len.to_le_bytes());
        b
    }

    /// Reads the head; its length was checked with the header.
    pub(crate) fn decode(b: &[u8]) -> Self {
        Self { id: word(b, 0), offset: word(b, 8), len: word(b, 16) }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadFrame {
    /// There is no such kind.
    Kind(u8),
    /// The lengths exceed the limits or do not suit the kind.
    Length { kind: Kind, head: u32, data: u64 },
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a frame of no known kind ({kind})"),
            Self::Length { kind, head, data } => {
                write!(f, "a {kind:?} frame with {head} bytes of head and {data} of data")
            }
        }
    }
}

/// The little-endian word at `at`.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

/// The little-endian half word at `at`.
pub(crate) fn half(bytes: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { head: 100, data: 1000 };

    #[test]
    fn headers_survive_the_wire() {
        for header in [
            Header::message(100, 1000),
            Header::data(Kind::Data, u64::MAX, 1 << 40),
            Header::data(Kind::PullRefused, 7, 0),
        ] {
            assert_eq!(Header::decode(&header.encode(), LIMITS), Ok(header));
        }
        let pull = Pull { id: 1, offset: u64::MAX, len: 3 };
        assert_eq!(Pull::decode(&pull.encode()), pull);
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused() {
        for header in [
            Header::message(101, 0),
            Header::message(0, 1001),
            Header::data(Kind::Data, 1, 0),
            Header::data(Kind::Pull, 1, 0),
            Header { head_len: 1, ..Header::data(Kind::PullData, 1, 5) },
        ] {
            let error = Header::decode(&header.encode(), LIMITS);
            assert!(matches!(error, Err(BadFrame::Length { .. })), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_within_limits(bytes in any::<[u8; HEADER_LEN]>()) {
            if let Ok(header) = Header::decode(&bytes, LIMITS) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.kind != Kind::Message || header.body_len() <= 1100);
            }
        }
    }
}

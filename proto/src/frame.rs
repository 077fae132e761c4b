//! The header in front of every message body.
//!
//! 24 bytes, little-endian:
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | magic u16 | [`MAGIC`] |
//! | 2 | version u8 | [`VERSION`] |
//! | 3 | kind u8 | [`Kind`] |
//! | 4 | op u16 | [`Op`] |
//! | 6 | status u16 | [`Status`]; 0 in requests |
//! | 8 | slot u16 | request slot |
//! | 10 | credits u16 | see [`Header::credits`] |
//! | 12 | sequence u32 | counts the requests of the slot |
//! | 16 | length u32 | bytes of the body |
//! | 20 | flags u32 | none is defined: 0 |
//!
//! The header is outside of the Protocol Buffers encoding so that a peer can route, refuse or
//! repeat a message without decoding its body.

use crate::bytes::{field, set_field};
use crate::op::Op;
use crate::status::Status;
use prost::Message;

/// The first two bytes of every message, as a little-endian number.
pub const MAGIC: u16 = 0xDAF5;

/// The version of the protocol that this crate speaks, in headers and in
/// [`ConnectRequest::version`](crate::msg::ConnectRequest::version).
pub const VERSION: u8 = 2;

/// Offsets of the header's fields.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 2;
    pub(super) const KIND: usize = 3;
    pub(super) const OP: usize = 4;
    pub(super) const STATUS: usize = 6;
    pub(super) const SLOT: usize = 8;
    pub(super) const CREDITS: usize = 10;
    pub(super) const SEQUENCE: usize = 12;
    pub(super) const BODY_LEN: usize = 16;
    pub(super) const FLAGS: usize = 20;
}

/// Who sends a message, and what it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// From the client; the server answers with a reply.
    Request = 1,
    /// From the server, to the request with the same slot and sequence number.
    Reply = 2,
    /// From the server, unasked; has no answer.
    Notice = 3,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Request),
            2 => Some(Self::Reply),
            3 => Some(Self::Notice),
            _ => None,
        }
    }
}

/// What stands in front of a message body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Request, reply or notice.
    pub kind: Kind,
    /// The operation; in a reply, that of the request.
    pub op: Op,
    /// How the operation went; [`Status::Ok`] in a request. The body of a reply with another status
    /// is an [`ErrorReply`](crate::msg::ErrorReply).
    pub status: Status,
    /// The request slot; in a reply, that of the request.
    pub slot: u16,
    /// In a request, how many request slots the client would like. In a reply, how many it may use
    /// from now on: never 0, or it could not go on.
    pub credits: u16,
    /// The request's number within its slot; in a reply, that of the request.
    pub sequence: u32,
    /// Length of the body in bytes.
    pub body_len: u32,
}

impl Header {
    /// Length of an encoded header in bytes.
    pub const LEN: usize = 24;

    /// The header of a request, yet without a body.
    #[must_use]
    pub const fn request(op: Op, slot: u16, sequence: u32, credits: u16) -> Self {
        Self { kind: Kind::Request, op, status: Status::Ok, slot, credits, sequence, body_len: 0 }
    }

    /// The header of the reply to `request`, yet without a body. `credits` must not be 0.
    #[must_use]
    pub const fn reply(request: &Self, status: Status, credits: u16) -> Self {
        let &Self { op, slot, sequence, .. } = request;
        Self { kind: Kind::Reply, op, status, slot, credits, sequence, body_len: 0 }
    }

    /// Appends the encoded header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; Self::LEN];
        set_field::<{ at::MAGIC }, 2, _>(&mut bytes, MAGIC.to_le_bytes());
        set_field::<{ at::VERSION }, 1, _>(&mut bytes, [VERSION]);
        set_field::<{ at::KIND }, 1, _>(&mut bytes, [self.kind as u8]);
        set_field::<{ at::OP }, 2, _>(&mut bytes, self.op.number().to_le_bytes());
        set_field::<{ at::STATUS }, 2, _>(&mut bytes, self.status.number().to_le_bytes());
        set_field::<{ at::SLOT }, 2, _>(&mut bytes, self.slot.to_le_bytes());
        set_field::<{ at::CREDITS }, 2, _>(&mut bytes, self.credits.to_le_bytes());
        set_field::<{ at::SEQUENCE }, 4, _>(&mut bytes, self.sequence.to_le_bytes());
        set_field::<{ at::BODY_LEN }, 4, _>(&mut bytes, self.body_len.to_le_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Takes a message apart into header and body. `message` is one whole message and nothing else.
    ///
    /// # Errors
    /// Whatever is wrong with the header, see [`FrameError`]. The body is not looked into.
    pub fn decode(message: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (bytes, body) = message
            .split_first_chunk::<{ Self::LEN }>()
            .ok_or(FrameError::Short { len: message.len() })?;

        // Magic and version come first: they say whether the rest means what is written above.
        let magic = u16::from_le_bytes(field::<{ at::MAGIC }, 2, _>(bytes));
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let [version] = field::<{ at::VERSION }, 1, _>(bytes);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let flags = u32::from_le_bytes(field::<{ at::FLAGS }, 4, _>(bytes));
        if flags != 0 {
            return Err(FrameError::Flags(flags));
        }
        let body_len = u32::from_le_bytes(field::<{ at::BODY_LEN }, 4, _>(bytes));
        if u32::try_from(body.len()) != Ok(body_len) {
            return Err(FrameError::BodyLen { said: body_len, is: body.len() });
        }

        let [kind] = field::<{ at::KIND }, 1, _>(bytes);
        let kind = Kind::from_u8(kind).ok_or(FrameError::Kind(kind))?;
        let op = u16::from_le_bytes(field::<{ at::OP }, 2, _>(bytes));
        let op = Op::from_u16(op).ok_or(FrameError::Op(op))?;
        let status = u16::from_le_bytes(field::<{ at::STATUS }, 2, _>(bytes));
        let status = Status::from_u16(status).ok_or(FrameError::Status(status))?;
        let slot = u16::from_le_bytes(field::<{ at::SLOT }, 2, _>(bytes));
        let credits = u16::from_le_bytes(field::<{ at::CREDITS }, 2, _>(bytes));
        let sequence = u32::from_le_bytes(field::<{ at::SEQUENCE }, 4, _>(bytes));
        match kind {
            Kind::Request if status != Status::Ok => {
                return Err(FrameError::RequestStatus(status));
            }
            Kind::Reply if credits == 0 => return Err(FrameError::NoCredits),
            Kind::Request | Kind::Reply | Kind::Notice => {}
        }
        Ok((Self { kind, op, status, slot, credits, sequence, body_len }, body))
    }
}

/// What is wrong with a message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is not there as a whole.
    #[error("a message of {len} bytes is shorter than its header of {} bytes", Header::LEN)]
    Short {
        /// Length of the message in bytes.
        len: usize,
    },
    /// It is no DAFS message.
    #[error("a message begins with {0:#06x} in place of {MAGIC:#06x}")]
    Magic(u16),
    /// It is of another version of the protocol.
    #[error("a message is of protocol version {0}, this side speaks version {VERSION}")]
    Version(u8),
    /// There is no such [`Kind`].
    #[error("there is no message kind {0}")]
    Kind(u8),
    /// There is no such [`Op`].
    #[error("there is no operation {0}")]
    Op(u16),
    /// There is no such [`Status`].
    #[error("there is no status {0}")]
    Status(u16),
    /// A request bears a status other than [`Status::Ok`].
    #[error("a request bears the status \"{0}\"")]
    RequestStatus(Status),
    /// A reply leaves the client no request slot.
    #[error("a reply leaves no credits")]
    NoCredits,
    /// The body is shorter or longer than the header says.
    #[error("a message body has {is} bytes, its header says {said}")]
    BodyLen {
        /// Length according to the header, in bytes.
        said: u32,
        /// Length of what is there, in bytes.
        is: usize,
    },
    /// Flags are set that this version does not define.
    #[error("a message bears the unknown flags {0:#010x}")]
    Flags(u32),
}

impl FrameError {
    /// The status that tells the peer.
    pub const fn status(self) -> Status {
        match self {
            Self::Version(_) => Status::Version,
            Self::Op(_) => Status::UnknownOperation,
            Self::Short { .. }
            | Self::Magic(_)
            | Self::Kind(_)
            | Self::Status(_)
            | Self::RequestStatus(_)
            | Self::NoCredits
            | Self::BodyLen { .. }
            | Self::Flags(_) => Status::BadMessage,
        }
    }
}

/// Encodes a message, in one allocation. `header.body_len` is taken from the body.
#[must_use]
pub fn encode_message(header: Header, body: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    append(header, body, body.encoded_len(), &mut out, Vec::reserve_exact);
    out
}

/// Appends an encoded message to `out`, for buffers that are used again and again.
/// `header.body_len` is taken from the body.
pub fn encode_message_into(header: Header, body: &impl Message, out: &mut Vec<u8>) {
    append(header, body, body.encoded_len(), out, Vec::reserve);
}

fn append(
    header: Header,
    body: &impl Message,
    len: usize,
    out: &mut Vec<u8>,
    reserve: fn(&mut Vec<u8>, usize),
) {
    // Transports limit messages to far less than 4 GiB. Should one be that long all the same, its
    // header fits no body, and the peer refuses it by name.
    let body_len = u32::try_from(len).unwrap_or(u32::MAX);
    reserve(out, Header::LEN.saturating_add(len));
    Header { body_len, ..header }.encode(out);
    body.encode(out).expect("encoding fails for want of room only, and a Vec grows");
}

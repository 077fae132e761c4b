//! Requests for pages and the replies, little-endian.
//!
//! A request is 16 bytes: number u64, count u16, kind u8, five zero bytes. What follows depends on
//! its kind.
//!
//! | kind | what follows |
//! |---|---|
//! | 0: plain | 40 bytes for each page |
//! | 1: tagged | 64 bytes for each page |
//! | 2: proof | 16 bytes, the proof; number and count are 0, and there is no reply |
//!
//! | offset | page |
//! |---|---|
//! | 0 | chunk u32, slot u32 |
//! | 8 | file u64, block u64, generation u64 |
//! | 32 | version floor u64 |
//! | 40 | tagged: epoch of the file's key u64 |
//! | 48 | tagged: tag, 16 bytes, over what is before it: see [`ReadKey::tag`] |
//!
//! A reply is 16 bytes: number u64, count u16, the status of a single page u8, a zero byte, and the
//! length u32 of what follows. That is: for several pages their statuses, a byte each and padded to
//! 8; where the request was tagged, a tag of 16 bytes for each page, good or not; the footers of
//! those that are good; their payloads.
//!
//! A good page's tag is over its status byte, its footer and its payload, another's over its status
//! byte: see [`ReplyKey`]. No tag is made twice for a page of a request. So a request whose number
//! came before, or on a connection that has not proved itself, is answered with the status `Revoked`
//! and tags of zeros.
//!
//! [`ReadKey::tag`]: dafs_keys::ReadKey::tag
//! [`ReplyKey`]: dafs_keys::ReplyKey

use crate::slot::FOOTER_LEN;
use crate::stream::frame::{half, word};
use crate::{AccessFault, RemoteRef};
use dafs_keys::tags::TAG_LEN;

/// A tag as it is on the wire.
pub(crate) type Tag = [u8; TAG_LEN];

/// Length of a request's and of a reply's header.
pub(crate) const HEADER_LEN: usize = 16;
/// Length of a plain request's entry.
pub(crate) const ENTRY_LEN: usize = 40;
/// What of a tagged request's entry is under the tag.
pub(crate) const FIELDS_LEN: usize = ENTRY_LEN + 8;
/// Length of a tagged request's entry.
pub(crate) const TAGGED_LEN: usize = FIELDS_LEN + TAG_LEN;
/// Most pages of one request.
pub(crate) const MOST_PAGES: usize = 64;
/// Payload bytes of one request that a client does not exceed, so that the reply to it fits into
/// what a connection usually buffers.
const MOST_BYTES: usize = 256 << 10;
/// Payload bytes of one tagged request, which the server holds a copy of until the reply is sent:
/// room for the largest page.
pub(crate) const MOST_TAGGED_BYTES: usize = 64 << 10;
/// Most pages of one tagged request: those of the smallest size.
pub(crate) const MOST_TAGGED: usize = MOST_TAGGED_BYTES / 4096;
/// The longest request.
pub(crate) const LONGEST_REQUEST: usize = HEADER_LEN + MOST_PAGES * ENTRY_LEN;
/// The longest reply, without its payloads.
pub(crate) const LONGEST_HEAD: usize = HEADER_LEN + MOST_PAGES * (1 + FOOTER_LEN);

// Tagged requests are for fewer pages, so that neither they nor the replies are longer.
const _: () = assert!(MOST_TAGGED * TAGGED_LEN <= MOST_PAGES * ENTRY_LEN);
const _: () = assert!(MOST_TAGGED * (TAG_LEN + FOOTER_LEN) <= MOST_PAGES * FOOTER_LEN);

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For pages.
    Plain,
    /// For pages, with tags.
    Tagged,
    /// None, but the proof that the connection is its session's.
    Proof,
}

impl Kind {
    /// The kind of a request with or without tags.
    pub(crate) fn of(tagged: bool) -> Self {
        if tagged { Self::Tagged } else { Self::Plain }
    }

    /// How many pages of this size at most one request is for.
    pub(crate) fn pages(self, page_size: usize) -> usize {
        let bytes = if self == Self::Tagged { MOST_TAGGED_BYTES } else { MOST_BYTES };
        (bytes / page_size).clamp(1, MOST_PAGES)
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
    pub(crate) count: usize,
}

impl Request {
    /// The header of a proof.
    pub(crate) const PROOF: Self = Self { kind: Kind::Proof, number: 0, count: 0 };

    /// The header's bytes.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..8].copy_from_slice(&self.number.to_le_bytes());
        b[8..10].copy_from_slice(&(self.count as u16).to_le_bytes());
        b[10] = match self.kind {
            Kind::Plain => 0,
            Kind::Tagged => 1,
            Kind::Proof => 2,
        };
        b
    }

    /// Reads a header. `None` where it is none.
    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        let kind = match b[10] {
            0 => Kind::Plain,
            1 => Kind::Tagged,
            2 => Kind::Proof,
            _ => return None,
        };
        let count = usize::from(u16::from_le_bytes([b[8], b[9]]));
        let request = Self { kind, number: word(b, 0), count };
        let sound = match kind {
            Kind::Plain => (1..=MOST_PAGES).contains(&count),
            Kind::Tagged => (1..=MOST_TAGGED).contains(&count),
            Kind::Proof => request == Self::PROOF,
        };
        (sound && b[11..HEADER_LEN] == [0; 5]).then_some(request)
    }

    /// Bytes that follow the header.
    pub(crate) fn rest(&self) -> usize {
        match self.kind {
            Kind::Plain => self.count * ENTRY_LEN,
            Kind::Tagged => self.count * TAGGED_LEN,
            Kind::Proof => TAG_LEN,
        }
    }
}

/// A plain request's entry.
pub(crate) fn entry(reference: &RemoteRef, floor: u64) -> [u8; ENTRY_LEN] {
    let mut b = [0; ENTRY_LEN];
    b[..4].copy_from_slice(&reference.chunk.to_le_bytes());
    b[4..8].copy_from_slice(&reference.slot.to_le_bytes());
    b[8..16].copy_from_slice(&reference.file.to_le_bytes());
    b[16..24].copy_from_slice(&reference.block.to_le_bytes());
    b[24..32].copy_from_slice(&reference.generation.to_le_bytes());
    b[32..].copy_from_slice(&floor.to_le_bytes());
    b
}

/// What of a tagged request's entry is under the tag.
pub(crate) fn fields(reference: &RemoteRef, floor: u64, epoch: u64) -> [u8; FIELDS_LEN] {
    let mut b = [0; FIELDS_LEN];
    b[..ENTRY_LEN].copy_from_slice(&entry(reference, floor));
    b[ENTRY_LEN..].copy_from_slice(&epoch.to_le_bytes());
    b
}

/// Reads an entry: the reference and the version floor.
pub(crate) fn read_entry(b: &[u8]) -> (RemoteRef, u64) {
    let reference = RemoteRef {
        chunk: half(b, 0),
        slot: half(b, 4),
        file: word(b, 8),
        block: word(b, 16),
        generation: word(b, 24),
    };
    (reference, word(b, 32))
}

/// The key's epoch in a tagged request's entry.
pub(crate) fn entry_epoch(b: &[u8]) -> u64 {
    word(b, ENTRY_LEN)
}

/// The byte that stands for an outcome.
pub(crate) fn status_byte(status: Result<(), AccessFault>) -> u8 {
    match status {
        Ok(()) => 0,
        Err(AccessFault::Stale) => 1,
        Err(AccessFault::Torn) => 2,
        Err(AccessFault::Bad) => 3,
        Err(AccessFault::Revoked) => 4,
        Err(AccessFault::Gone) => 5,
        Err(AccessFault::Unreachable) => 6,
    }
}

/// The outcome that a byte stands for; `None` where it stands for none.
pub(crate) fn status(byte: u8) -> Option<Result<(), AccessFault>> {
    match byte {
        0 => Some(Ok(())),
        n => AccessFault::ALL.into_iter().find(|fault| status_byte(Err(*fault)) == n).map(Err),
    }
}

/// Bytes of a reply's statuses.
pub(crate) fn statuses_len(count: usize) -> usize {
    if count == 1 { 0 } else { count.next_multiple_of(8) }
}

/// Bytes of a reply's tags.
pub(crate) fn tags_len(kind: Kind, count: usize) -> usize {
    if kind == Kind::Tagged { count * TAG_LEN } else { 0 }
}

/// Writes the header and the statuses of the reply to a request of some kind. Tags, and footers and
/// payloads of good pages, follow.
pub(crate) fn put_reply(
    out: &mut Vec<u8>,
    kind: Kind,
    number: u64,
    statuses: &[Result<(), AccessFault>],
    page_size: usize,
) {
    let (count, good) = (statuses.len(), statuses.iter().filter(|status| status.is_ok()).count());
    let rest = statuses_len(count) + tags_len(kind, count) + good * (FOOTER_LEN + page_size);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(statuses.len() as u16).to_le_bytes());
    let single = if let [status] = statuses { status_byte(*status) } else { 0 };
    out.extend_from_slice(&[single, 0]);
    out.extend_from_slice(&(rest as u32).to_le_bytes());
    if statuses.len() > 1 {
        let end = out.len() + statuses_len(statuses.len());
        out.extend(statuses.iter().map(|status| status_byte(*status)));
        out.resize(end, 0);
    }
}

/// A reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHeader {
    pub(crate) number: u64,
    pub(crate) count: usize,
    /// The status of a single page.
    pub(crate) single: u8,
    /// Bytes that follow the header.
    pub(crate) rest: usize,
}

impl ReplyHeader {
    /// Reads the header.
    pub(crate) fn decode(b: &[u8]) -> Self {
        Self {
            number: word(b, 0),
            count: usize::from(u16::from_le_bytes([b[8], b[9]])),
            single: b[10],
            rest: half(b, 12) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_the_wire() {
        let reference = RemoteRef { chunk: 1, slot: 2, file: 3, block: 4, generation: u64::MAX };
        for kind in [Kind::Plain, Kind::Tagged] {
            let request = Request { kind, number: 9, count: 1 };
            assert_eq!(Request::decode(&request.encode()), Some(request));
            for count in [0, kind.pages(4096) + 1, 1 << 15] {
                assert_eq!(Request::decode(&Request { count, ..request }.encode()), None);
            }
        }
        assert_eq!(Request::decode(&Request::PROOF.encode()), Some(Request::PROOF));
        assert_eq!(Request::decode(&Request { number: 1, ..Request::PROOF }.encode()), None);
        for at in 10..HEADER_LEN {
            let mut bytes = Request { kind: Kind::Plain, number: 9, count: 1 }.encode();
            bytes[at] = 3;
            assert_eq!(Request::decode(&bytes), None);
        }
        let fields = fields(&reference, 5, 6);
        assert_eq!(fields[..ENTRY_LEN], entry(&reference, 5));
        assert_eq!((read_entry(&fields), entry_epoch(&fields)), ((reference, 5), 6));
        let statuses = [Ok(()), Err(AccessFault::Gone), Ok(())];
        for (kind, tags) in [(Kind::Plain, 0), (Kind::Tagged, 48)] {
            let mut bytes = Vec::new();
            put_reply(&mut bytes, kind, 7, &statuses, 4096);
            let header = ReplyHeader::decode(&bytes);
            let rest = 8 + tags + 2 * 4160;
            assert_eq!(header, ReplyHeader { number: 7, count: 3, single: 0, rest });
            assert_eq!(bytes.len(), HEADER_LEN + 8);
            let read: Vec<_> = bytes[16..19].iter().map(|b| status(*b).unwrap()).collect();
            assert_eq!(read, statuses);
        }
        assert_eq!(status(7), None);
    }
}

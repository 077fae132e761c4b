//! Requests for pages and the replies, little-endian.
//!
//! A request is 16 bytes, then 40 for each page:
//!
//! | offset | request | | offset | page |
//! |---|---|---|---|---|
//! | 0 | number u64 | | 0 | chunk u32, slot u32 |
//! | 8 | count u16 | | 8 | file u64, block u64, generation u64 |
//! | 10 | six zero bytes | | 32 | version floor u64 |
//!
//! A reply is 16 bytes: number u64, count u16, the status of a single page u8, a zero byte, and the
//! length u32 of what follows. That is: for several pages their statuses, a byte each and padded to
//! 8; the footers of those that are good; their payloads.

use crate::slot::FOOTER_LEN;
use crate::stream::frame::{half, word};
use crate::{AccessFault, RemoteRef};

/// Length of a request's and of a reply's header.
pub(crate) const HEADER_LEN: usize = 16;
/// Length of a request's entry.
pub(crate) const ENTRY_LEN: usize = 40;
/// Most pages of one request.
pub(crate) const MOST_PAGES: usize = 64;
/// Payload bytes of one request that a client does not exceed, so that the reply to it fits into
/// what a connection usually buffers.
const MOST_BYTES: usize = 256 << 10;
/// The longest request.
pub(crate) const LONGEST_REQUEST: usize = HEADER_LEN + MOST_PAGES * ENTRY_LEN;
/// The longest reply, without its payloads.
pub(crate) const LONGEST_HEAD: usize = HEADER_LEN + MOST_PAGES * (1 + FOOTER_LEN);

/// How many pages of this size a client asks for in one request.
pub(crate) fn pages_per_request(page_size: usize) -> usize {
    (MOST_BYTES / page_size).clamp(1, MOST_PAGES)
}

/// Writes a request's header.
pub(crate) fn put_request(out: &mut Vec<u8>, number: u64, count: usize) {
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

/// Writes a request's entry.
pub(crate) fn put_entry(out: &mut Vec<u8>, reference: &RemoteRef, floor: u64) {
    let mut b = [0; ENTRY_LEN];
    b[..4].copy_from_slice(&reference.chunk.to_le_bytes());
    b[4..8].copy_from_slice(&reference.slot.to_le_bytes());
    b[8..16].copy_from_slice(&reference.file.to_le_bytes());
    b[16..24].copy_from_slice(&reference.block.to_le_bytes());
    b[24..32].copy_from_slice(&reference.generation.to_le_bytes());
    b[32..].copy_from_slice(&floor.to_le_bytes());
    out.extend_from_slice(&b);
}

/// Reads a request's header: number and count. `None` where it is none.
pub(crate) fn request(b: &[u8]) -> Option<(u64, usize)> {
    let count = usize::try_from(word(b, 8)).ok()?;
    (1..=MOST_PAGES).contains(&count).then(|| (word(b, 0), count))
}

/// Reads a request's entry: the reference and the version floor.
pub(crate) fn entry(b: &[u8]) -> (RemoteRef, u64) {
    let reference = RemoteRef {
        chunk: half(b, 0),
        slot: half(b, 4),
        file: word(b, 8),
        block: word(b, 16),
        generation: word(b, 24),
    };
    (reference, word(b, 32))
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

/// Writes a reply's header and statuses. Footers and payloads of `good` pages follow.
pub(crate) fn put_reply(
    out: &mut Vec<u8>,
    number: u64,
    statuses: &[Result<(), AccessFault>],
    page_size: usize,
) {
    let good = statuses.iter().filter(|status| status.is_ok()).count();
    let rest = statuses_len(statuses.len()) + good * (FOOTER_LEN + page_size);
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
        let mut bytes = Vec::new();
        put_request(&mut bytes, 9, 1);
        put_entry(&mut bytes, &reference, 5);
        assert_eq!(request(&bytes), Some((9, 1)));
        assert_eq!(entry(&bytes[HEADER_LEN..]), (reference, 5));
        for bad in [0, 65, 1 << 16] {
            let mut bytes = Vec::new();
            put_request(&mut bytes, 9, bad);
            assert_eq!(request(&bytes), None);
        }
        let statuses = [Ok(()), Err(AccessFault::Gone), Ok(())];
        let mut bytes = Vec::new();
        put_reply(&mut bytes, 7, &statuses, 4096);
        let header = ReplyHeader::decode(&bytes);
        assert_eq!(header, ReplyHeader { number: 7, count: 3, single: 0, rest: 8 + 2 * 4160 });
        assert_eq!(bytes.len(), HEADER_LEN + 8);
        let read: Vec<_> = bytes[16..19].iter().map(|b| status(*b).unwrap()).collect();
        assert_eq!(read, statuses);
        assert_eq!(status(7), None);
    }
}

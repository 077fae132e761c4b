//! Slots: what the server's exported memory holds of one page, and how a copy of it is judged.
//!
//! A slot is a page-aligned payload and a 64-byte [`Footer`]. A one-sided read is not atomic and no
//! NIC checks what it reads, so the bytes themselves must tell: the reader copies payload and
//! footer into private memory first and then asks [`verify`].

use crate::{AccessFault, RemoteRef};
use dafs_keys::clear_check;

/// Length of a footer in bytes.
pub const FOOTER_LEN: usize = 64;

const MAGIC: u16 = 0xDA05;
const FORMAT: u8 = 1;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A page of a file's data.
    Data,
}

/// What the footer says of its page.
///
/// Little-endian in memory: magic u16, format u8, kind u8, flags u16, key epoch u16, valid length
/// u32, zero u32, file u64, block u64, generation u64, version u64, check 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// What the slot holds.
    pub kind: Kind,
    /// The page holds the end of the file, which is after its valid length.
    pub last: bool,
    /// Bytes of the payload that belong to the file; those after it are zero.
    pub valid: u32,
    /// The server's number for the file.
    pub file: u64,
    /// The page's place in the file, in pages.
    pub block: u64,
    /// Changes each time a slot is filled; 0 is a dead slot.
    pub generation: u64,
    /// Counts the changes of the page within a generation; below 2^32.
    pub version: u64,
}

/// Flag: the page holds the end of the file.
const LAST: u16 = 1 << 1;

impl Footer {
    /// The footer's bytes, check included, for a page with this payload (of page size).
    #[must_use]
    pub fn encode(&self, payload: &[u8]) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let head = self.head();
        bytes[..48].copy_from_slice(&head);
        bytes[48..].copy_from_slice(&clear_check(&head, payload));
        bytes
    }

    fn head(&self) -> [u8; 48] {
        let mut b = [0; 48];
        b[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        b[2] = FORMAT;
        b[3] = match self.kind {
            Kind::Data => 1,
        };
        b[4..6].copy_from_slice(&if self.last { LAST } else { 0 }.to_le_bytes());
        b[8..12].copy_from_slice(&self.valid.to_le_bytes());
        b[16..24].copy_from_slice(&self.file.to_le_bytes());
        b[24..32].copy_from_slice(&self.block.to_le_bytes());
        b[32..40].copy_from_slice(&self.generation.to_le_bytes());
        b[40..48].copy_from_slice(&self.version.to_le_bytes());
        b
    }

    /// Reads a footer's fields; `None` where the bytes are no footer of this format. Says nothing
    /// of the payload: see [`verify`].
    #[must_use]
    pub fn decode(bytes: &[u8; FOOTER_LEN]) -> Option<Self> {
        let u16_at = |i| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let flags = u16_at(4);
        let unused = u16_at(6) != 0 || bytes[12..16] != [0; 4] || flags & !LAST != 0;
        if u16_at(0) != MAGIC || bytes[2] != FORMAT || bytes[3] != 1 || unused {
            return None;
        }
        Some(Self {
            kind: Kind::Data,
            last: flags & LAST != 0,
            valid: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            file: word(bytes, 16),
            block: word(bytes, 24),
            generation: word(bytes, 32),
            version: word(bytes, 40),
        })
    }
}

/// The generation in a footer's bytes, whatever else they hold.
#[must_use]
pub(crate) fn generation_of(bytes: &[u8; FOOTER_LEN]) -> u64 {
    word(bytes, 32)
}

/// The version in a footer's bytes, whatever else they hold.
pub(crate) fn version_of(bytes: &[u8; FOOTER_LEN]) -> u64 {
    word(bytes, 40)
}

/// Whether a footer names the page that a reference stands for: the cheap test, which an agent
/// makes before it sends and a reader makes first.
pub(crate) fn names(footer: &[u8; FOOTER_LEN], reference: &RemoteRef) -> bool {
    reference.generation != 0
        && generation_of(footer) == reference.generation
        && word(footer, 16) == reference.file
        && word(footer, 24) == reference.block
}

fn word(bytes: &[u8; FOOTER_LEN], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

/// Judges a private copy of a slot against the reference it was read by and the version floor.
///
/// The page is accepted only if the footer names the reference's file, block and generation, the
/// version is not below `floor`, and the check holds over footer and payload.
///
/// # Errors
/// [`AccessFault::Stale`] for a dead slot, another page or generation, or a version below the
/// floor; [`AccessFault::Torn`] where the check does not match. The copy is left as it is: the
/// caller must not hand it on, and zeroes it.
pub fn verify(
    footer: &[u8; FOOTER_LEN],
    payload: &[u8],
    reference: &RemoteRef,
    floor: u64,
) -> Result<Footer, AccessFault> {
    if !names(footer, reference) {
        return Err(AccessFault::Stale);
    }
    let footer = verify_unreferenced(footer, payload)?;
    if footer.version < floor {
        return Err(AccessFault::Stale);
    }
    Ok(footer)
}

/// Judges a copy of a page that came without a reference, in the reply to an RPC: the caller
/// compares file and block itself.
///
/// # Errors
/// [`AccessFault::Torn`] where the bytes are no footer, its valid length does not fit the payload,
/// or the check does not match.
pub fn verify_unreferenced(
    footer: &[u8; FOOTER_LEN],
    payload: &[u8],
) -> Result<Footer, AccessFault> {
    let fields = Footer::decode(footer).ok_or(AccessFault::Torn)?;
    let mut head = [0; 48];
    head.copy_from_slice(&footer[..48]);
    let fits = fields.valid as usize <= payload.len();
    if !fits || clear_check(&head, payload) != footer[48..] {
        return Err(AccessFault::Torn);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FOOTER: Footer = Footer {
        kind: Kind::Data,
        last: true,
        valid: 100,
        file: 0x1122_3344_5566_7788,
        block: 7,
        generation: 42,
        version: 3,
    };
    const REFERENCE: RemoteRef =
        RemoteRef { chunk: 0, slot: 0, file: FOOTER.file, block: 7, generation: 42 };

    #[test]
    fn a_good_copy_is_accepted_with_its_fields() {
        let payload = vec![9; 4096];
        let bytes = FOOTER.encode(&payload);
        assert_eq!(Footer::decode(&bytes), Some(FOOTER));
        assert_eq!(verify(&bytes, &payload, &REFERENCE, 3), Ok(FOOTER));
    }

    #[test]
    fn another_page_is_stale_and_a_changed_one_torn() {
        let payload = vec![9; 4096];
        let bytes = FOOTER.encode(&payload);
        let stale = Err(AccessFault::Stale);
        assert_eq!(verify(&bytes, &payload, &RemoteRef { file: 1, ..REFERENCE }, 0), stale);
        assert_eq!(verify(&bytes, &payload, &RemoteRef { block: 8, ..REFERENCE }, 0), stale);
        assert_eq!(verify(&bytes, &payload, &RemoteRef { generation: 41, ..REFERENCE }, 0), stale);
        assert_eq!(verify(&bytes, &payload, &REFERENCE, 4), stale);
        let dead = Footer { generation: 0, ..FOOTER }.encode(&payload);
        assert_eq!(verify(&dead, &payload, &RemoteRef { generation: 0, ..REFERENCE }, 0), stale);
        let mut torn = payload.clone();
        torn[4095] ^= 1;
        assert_eq!(verify(&bytes, &torn, &REFERENCE, 0), Err(AccessFault::Torn));
    }

    proptest! {
        #[test]
        fn no_single_bit_flip_passes(bit in 0usize..FOOTER_LEN * 8) {
            let payload = vec![5; 4096];
            let mut bytes = FOOTER.encode(&payload);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify(&bytes, &payload, &REFERENCE, 0).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<[u8; 32]>(), payload in any::<Vec<u8>>()) {
            let mut footer = [0; FOOTER_LEN];
            footer[..32].copy_from_slice(&bytes);
            footer[32..].copy_from_slice(&bytes);
            prop_assert!(verify(&footer, &payload, &REFERENCE, 0).is_err());
        }
    }
}

//! Slots: what the server's exported memory holds of one page, and how a copy of it is judged.
//!
//! A slot is a page-aligned payload and a 64-byte [`Footer`]. A one-sided read is not atomic and no
//! NIC checks what it reads, so the bytes themselves must tell: the reader copies payload and
//! footer into private memory first and then asks [`accept`].

use crate::{AccessFault, RemoteRef};
use dafs_keys::page::footer_epoch;
use dafs_keys::{FileKey, PageKey, clear_check};

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
    /// The payload is encrypted.
    pub sealed: bool,
    /// The page holds the end of the file, which is after its valid length.
    pub last: bool,
    /// The low bits of the epoch of the file's key; 0 at level `none`.
    pub epoch: u16,
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

/// Flag: the payload is encrypted.
const SEALED: u16 = 1 << 0;
/// Flag: the page holds the end of the file.
const LAST: u16 = 1 << 1;

impl Footer {
    /// The footer's bytes, check included, for a page in the clear with this payload (of page
    /// size). The flag `sealed` does not count.
    #[must_use]
    pub fn encode(&self, payload: &[u8]) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let head = Self { sealed: false, ..*self }.head();
        bytes[..48].copy_from_slice(&head);
        bytes[48..].copy_from_slice(&clear_check(&head, payload));
        bytes
    }

    /// Encrypts a payload (of page size) in place, and returns the footer's bytes, check included.
    /// Generation and version must never have been used together under the key, also where nothing
    /// came of it. The fields `sealed` and `epoch` do not count.
    ///
    /// # Panics
    /// If the version is not below 2^32.
    #[must_use]
    pub fn seal(&self, payload: &mut [u8], key: &PageKey) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let epoch = footer_epoch(key.epoch());
        let head = Self { sealed: true, epoch, ..*self }.head();
        bytes[..48].copy_from_slice(&head);
        bytes[48..].copy_from_slice(&key.seal(self.generation, self.version, &head, payload));
        bytes
    }

    fn head(&self) -> [u8; 48] {
        let mut b = [0; 48];
        b[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        b[2] = FORMAT;
        b[3] = match self.kind {
            Kind::Data => 1,
        };
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        let flags = flag(self.sealed, SEALED) | flag(self.last, LAST);
        b[4..6].copy_from_slice(&flags.to_le_bytes());
        b[6..8].copy_from_slice(&self.epoch.to_le_bytes());
        b[8..12].copy_from_slice(&self.valid.to_le_bytes());
        b[16..24].copy_from_slice(&self.file.to_le_bytes());
        b[24..32].copy_from_slice(&self.block.to_le_bytes());
        b[32..40].copy_from_slice(&self.generation.to_le_bytes());
        b[40..48].copy_from_slice(&self.version.to_le_bytes());
        b
    }

    /// Reads a footer's fields; `None` where the bytes are no footer of this format. Says nothing
    /// of the payload: see [`open`].
    #[must_use]
    pub fn decode(bytes: &[u8; FOOTER_LEN]) -> Option<Self> {
        let u16_at = |i| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let flags = u16_at(4);
        let unused = bytes[12..16] != [0; 4] || flags & !(SEALED | LAST) != 0;
        if u16_at(0) != MAGIC || bytes[2] != FORMAT || bytes[3] != 1 || unused {
            return None;
        }
        Some(Self {
            kind: Kind::Data,
            sealed: flags & SEALED != 0,
            last: flags & LAST != 0,
            epoch: u16_at(6),
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

/// The low bits of the key's epoch in a footer's bytes, whatever else they hold.
pub(crate) fn epoch_of(bytes: &[u8; FOOTER_LEN]) -> u16 {
    u16::from_le_bytes([bytes[6], bytes[7]])
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

/// Judges a private copy of a slot against the reference it was read by and the version floor, and
/// opens the payload in place where it is sealed.
///
/// The page is accepted only if the footer names the reference's file, block and generation, the
/// version is not below `floor`, and the check holds over footer and payload under `key`.
///
/// # Errors
/// [`AccessFault::Stale`] for a dead slot, another page or generation, or a version below the
/// floor; [`AccessFault::Revoked`] for a page under the key of another epoch;
/// [`AccessFault::Torn`] where the check does not match. What the payload holds then is of no
/// meaning: the caller must not hand it on, and zeroes it.
pub fn accept(
    footer: &[u8; FOOTER_LEN],
    payload: &mut [u8],
    reference: &RemoteRef,
    floor: u64,
    key: &FileKey,
) -> Result<Footer, AccessFault> {
    if !names(footer, reference) {
        return Err(AccessFault::Stale);
    }
    let footer = open(footer, payload, key)?;
    if footer.version < floor {
        return Err(AccessFault::Stale);
    }
    Ok(footer)
}

/// Judges and opens a private copy of a page that came without a reference, in the reply to an RPC:
/// the caller compares file and block itself.
///
/// # Errors
/// [`AccessFault::Torn`] where the bytes are no footer, its valid length does not fit the payload,
/// the page is sealed and should not be or the other way round, or the check does not match;
/// [`AccessFault::Revoked`] for a page under the key of another epoch. What the payload holds then
/// is of no meaning.
pub fn open(
    footer: &[u8; FOOTER_LEN],
    payload: &mut [u8],
    key: &FileKey,
) -> Result<Footer, AccessFault> {
    let fields = Footer::decode(footer).ok_or(AccessFault::Torn)?;
    if fields.valid as usize > payload.len() {
        return Err(AccessFault::Torn);
    }
    let (head, check) = footer.split_first_chunk::<48>().ok_or(AccessFault::Torn)?;
    let sealed = matches!(key, FileKey::Sealed(_));
    if fields.sealed != sealed {
        return Err(AccessFault::Torn);
    }
    if !matches!(key, FileKey::Clear) && fields.epoch != key.footer_epoch() {
        return Err(AccessFault::Revoked);
    }
    match key {
        FileKey::Clear | FileKey::Keyed(_) => {
            if clear_check(head, payload) != *check {
                return Err(AccessFault::Torn);
            }
        }
        FileKey::Sealed(key) => {
            let opened = key.open(fields.generation, fields.version, head, check, payload);
            opened.map_err(|_| AccessFault::Torn)?;
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FOOTER: Footer = Footer {
        kind: Kind::Data,
        sealed: false,
        last: true,
        epoch: 0,
        valid: 100,
        file: 0x1122_3344_5566_7788,
        block: 7,
        generation: 42,
        version: 3,
    };
    const REFERENCE: RemoteRef =
        RemoteRef { chunk: 0, slot: 0, file: FOOTER.file, block: 7, generation: 42 };

    fn judge(
        footer: &[u8; FOOTER_LEN],
        payload: &[u8],
        reference: &RemoteRef,
        floor: u64,
    ) -> Result<Footer, AccessFault> {
        accept(footer, &mut payload.to_vec(), reference, floor, &FileKey::Clear)
    }

    fn page_key(epoch: u64) -> PageKey {
        PageKey::derive(&dafs_keys::Secret::from_bytes([1; 32]), epoch, FOOTER.file)
    }

    #[test]
    fn a_sealed_page_opens_under_the_key_of_its_epoch_only() {
        let mut sealed = vec![9; 4096];
        let bytes = FOOTER.seal(&mut sealed, &page_key(0x1_0003));
        let open = |key: &FileKey, floor| {
            let mut payload = sealed.clone();
            accept(&bytes, &mut payload, &REFERENCE, floor, key).map(|footer| (footer, payload))
        };
        let key = FileKey::Sealed(page_key(0x1_0003));
        let (footer, payload) = open(&key, 3).unwrap();
        assert_eq!(footer, Footer { sealed: true, epoch: 3, ..FOOTER });
        assert_eq!(payload, [9; 4096]);
        assert_eq!(open(&key, 4), Err(AccessFault::Stale));
        assert_eq!(open(&FileKey::Sealed(page_key(4)), 0), Err(AccessFault::Revoked));
        assert_eq!(open(&FileKey::Sealed(page_key(3)), 0), Err(AccessFault::Torn));
        assert_eq!(open(&FileKey::Clear, 0), Err(AccessFault::Torn));
        let clear = FOOTER.encode(&[9; 4096]);
        let judged = accept(&clear, &mut [9; 4096], &REFERENCE, 0, &key);
        assert_eq!(judged, Err(AccessFault::Torn), "never the clear where sealed is expected");
    }

    #[test]
    fn a_good_copy_is_accepted_with_its_fields() {
        let payload = vec![9; 4096];
        let bytes = FOOTER.encode(&payload);
        assert_eq!(Footer::decode(&bytes), Some(FOOTER));
        assert_eq!(judge(&bytes, &payload, &REFERENCE, 3), Ok(FOOTER));
    }

    #[test]
    fn another_page_is_stale_and_a_changed_one_torn() {
        let payload = vec![9; 4096];
        let bytes = FOOTER.encode(&payload);
        let stale = Err(AccessFault::Stale);
        assert_eq!(judge(&bytes, &payload, &RemoteRef { file: 1, ..REFERENCE }, 0), stale);
        assert_eq!(judge(&bytes, &payload, &RemoteRef { block: 8, ..REFERENCE }, 0), stale);
        assert_eq!(judge(&bytes, &payload, &RemoteRef { generation: 41, ..REFERENCE }, 0), stale);
        assert_eq!(judge(&bytes, &payload, &REFERENCE, 4), stale);
        let dead = Footer { generation: 0, ..FOOTER }.encode(&payload);
        assert_eq!(judge(&dead, &payload, &RemoteRef { generation: 0, ..REFERENCE }, 0), stale);
        let mut torn = payload.clone();
        torn[4095] ^= 1;
        assert_eq!(judge(&bytes, &torn, &REFERENCE, 0), Err(AccessFault::Torn));
    }

    proptest! {
        #[test]
        fn no_single_bit_flip_passes(bit in 0usize..FOOTER_LEN * 8) {
            let payload = vec![5; 4096];
            let mut bytes = FOOTER.encode(&payload);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(judge(&bytes, &payload, &REFERENCE, 0).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<[u8; 32]>(), payload in any::<Vec<u8>>()) {
            let mut footer = [0; FOOTER_LEN];
            footer[..32].copy_from_slice(&bytes);
            footer[32..].copy_from_slice(&bytes);
            prop_assert!(judge(&footer, &payload, &REFERENCE, 0).is_err());
        }
    }
}

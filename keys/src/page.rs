//! Closing and opening pages.
//!
//! A sealed page is encrypted with AES-256-GCM under its file's page key. The nonce is the page's
//! generation and version, which come together once only under a key; what is authenticated besides
//! the payload is the footer's first 48 bytes, so that the tag, which is the footer's check, also
//! says which page this is.

pub use crate::aead::CheckFailed;

use crate::aead::Aead;
use crate::check::CHECK_LEN;
use crate::secret::Secret;
use crate::tags::ReadKey;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// Versions lie below this: they take 32 bits of the nonce.
pub const VERSIONS: u64 = 1 << 32;

/// The key that the pages of one file are sealed with, during one epoch of the file.
pub struct PageKey {
    epoch: u64,
    secret: Secret,
    aead: Aead,
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl PageKey {
    /// The key of a file in an epoch, under the secret of the server's boot.
    #[must_use]
    pub fn derive(boot: &Secret, epoch: u64, file: u64) -> Self {
        let context: [&[u8]; 2] = [&epoch.to_le_bytes(), &file.to_le_bytes()];
        Self::new(epoch, boot.derive("dafs page key", &context))
    }

    /// The key that came from the server.
    #[must_use]
    pub fn new(epoch: u64, secret: Secret) -> Self {
        let aead = Aead::new(&secret);
        Self { epoch, secret, aead }
    }

    /// The file's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The secret, to be sent to who may read.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Encrypts a payload in place and returns the check of the page. Generation and version must
    /// never have been used together under this key, also where nothing came of it.
    ///
    /// # Panics
    /// If the version is not below [`VERSIONS`].
    #[must_use]
    pub fn seal(
        &self,
        generation: u64,
        version: u64,
        footer: &[u8; 48],
        payload: &mut [u8],
    ) -> [u8; CHECK_LEN] {
        #[cfg(feature = "count-nonces")]
        crate::page::nonces::used(&self.secret, generation, version, footer, payload);
        let version = u32::try_from(version).expect("a version is below 2^32");
        self.aead.seal((generation, version), footer, payload)
    }

    /// Decrypts a private copy of a payload in place.
    ///
    /// # Errors
    /// Where the check does not match; the payload is garbage then, to be overwritten.
    pub fn open(
        &self,
        generation: u64,
        version: u64,
        footer: &[u8; 48],
        check: &[u8],
        payload: &mut [u8],
    ) -> Result<(), CheckFailed> {
        let version = u32::try_from(version).map_err(|_| CheckFailed)?;
        self.aead.open((generation, version), footer, check, payload)
    }
}

/// What a footer bears of the epoch that its page's key is of: the low bits.
#[must_use]
pub fn footer_epoch(epoch: u64) -> u16 {
    (epoch & 0xFFFF) as u16
}

/// What it takes to read the pages of one file.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "held by an Arc, one for each open file")]
pub enum FileKey {
    /// Nothing: level `none`.
    Clear,
    /// Pages are in the clear, and each one-sided request bears a tag: level `keyed`.
    Keyed(ReadKey),
    /// Pages are encrypted: level `sealed`.
    Sealed(PageKey),
}

impl FileKey {
    /// The key of files that need none.
    #[must_use]
    pub fn clear() -> Arc<Self> {
        static CLEAR: LazyLock<Arc<FileKey>> = LazyLock::new(|| Arc::new(FileKey::Clear));
        Arc::clone(&CLEAR)
    }

    /// The epoch of the file that the key belongs to; 0 at `none`.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Clear => 0,
            Self::Keyed(key) => key.epoch(),
            Self::Sealed(key) => key.epoch(),
        }
    }

    /// What the footers of pages under this key bear of the epoch.
    #[must_use]
    pub fn footer_epoch(&self) -> u16 {
        footer_epoch(self.epoch())
    }
}

/// Every use of a nonce in this process, for tests that count.
#[cfg(feature = "count-nonces")]
pub mod nonces {
    use crate::Secret;
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};

    type Key = ([u8; 32], u64, u64);

    static USED: LazyLock<Mutex<HashMap<Key, u128>>> = LazyLock::new(Mutex::default);

    /// A nonce is about to be used.
    ///
    /// # Panics
    /// If it was used before.
    pub(super) fn used(
        key: &Secret,
        generation: u64,
        version: u64,
        footer: &[u8; 48],
        payload: &[u8],
    ) {
        let print = u128::from_le_bytes(crate::clear_check(footer, payload));
        let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        let before = used.insert((*key.expose(), generation, version), print);
        assert!(
            before.is_none(),
            "generation {generation} and version {version} were used before under this key"
        );
    }

    /// How many nonces were used so far.
    #[must_use]
    pub fn count() -> usize {
        USED.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> PageKey {
        PageKey::derive(&Secret::from_bytes([7; 32]), 1, 2)
    }

    fn sealed(key: &PageKey) -> ([u8; 48], Vec<u8>, [u8; CHECK_LEN]) {
        let footer = [9; 48];
        let mut payload = vec![5; 4096];
        let check = key.seal(3, 4, &footer, &mut payload);
        (footer, payload, check)
    }

    #[test]
    fn what_was_sealed_is_opened_and_was_not_readable() {
        let key = key();
        let (footer, mut payload, check) = sealed(&key);
        assert!(!payload.windows(8).any(|bytes| bytes == [5; 8]));
        key.open(3, 4, &footer, &check, &mut payload).unwrap();
        assert_eq!(payload, [5; 4096]);
    }

    #[test]
    fn another_key_epoch_file_generation_or_version_does_not_open() {
        let (footer, payload, check) = sealed(&key());
        let boot = Secret::from_bytes([7; 32]);
        let other = Secret::from_bytes([8; 32]);
        for (key, generation, version) in [
            (PageKey::derive(&other, 1, 2), 3, 4),
            (PageKey::derive(&boot, 2, 2), 3, 4),
            (PageKey::derive(&boot, 1, 3), 3, 4),
            (key(), 4, 4),
            (key(), 3, 5),
            (key(), 3, 4 + VERSIONS),
        ] {
            let opened = key.open(generation, version, &footer, &check, &mut payload.clone());
            assert_eq!(opened, Err(CheckFailed));
        }
    }

    proptest! {
        #[test]
        fn no_bit_can_be_flipped(bit in 0usize..(48 + 16 + 4096) * 8) {
            let key = key();
            let (mut footer, mut payload, mut check) = sealed(&key);
            let (byte, mask) = (bit / 8, 1 << (bit % 8));
            match byte {
                0..48 => footer[byte] ^= mask,
                48..64 => check[byte - 48] ^= mask,
                _ => payload[byte - 64] ^= mask,
            }
            prop_assert!(key.open(3, 4, &footer, &check, &mut payload).is_err());
        }
    }
}

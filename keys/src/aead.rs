//! AES-256-GCM as everything here uses it: a key from a secret, a nonce of two numbers, the tag apart.

use crate::secret::Secret;
use crate::tags::TAG_LEN;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What was to be opened is not what was sealed: other bytes, another key, nonce or associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the check of a page does not match")]
pub struct CheckFailed;

/// A key. Each nonce may seal once.
pub(crate) struct Aead(LessSafeKey);

impl Aead {
    /// The key of a secret: AES-256-GCM takes any 32 bytes.
    pub(crate) fn new(secret: &Secret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret.expose());
        Self(LessSafeKey::new(key.expect("32 bytes are the length of the key")))
    }

    /// Encrypts data in place; the tag covers it and `associated`.
    pub(crate) fn seal(
        &self,
        nonce: (u64, u32),
        associated: &[u8],
        data: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let tag = self.0.seal_in_place_separate_tag(encode(nonce), Aad::from(associated), data);
        let mut bytes = [0; TAG_LEN];
        bytes.copy_from_slice(tag.expect("pages and transfers are short enough").as_ref());
        bytes
    }

    /// Decrypts data in place.
    ///
    /// # Errors
    /// Where the tag does not match; the data is garbage then, to be overwritten.
    pub(crate) fn open(
        &self,
        nonce: (u64, u32),
        associated: &[u8],
        tag: &[u8],
        data: &mut [u8],
    ) -> Result<(), CheckFailed> {
        let opened =
            self.0.open_in_place_separate_tag(encode(nonce), Aad::from(associated), tag, data);
        opened.map(drop).map_err(|_| CheckFailed)
    }
}

fn encode((first, second): (u64, u32)) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&first.to_le_bytes());
    nonce[8..].copy_from_slice(&second.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

//! The AEAD of pages by `ring`, to compare with.

use super::failed;
use crate::error::Result;
use dafs_client::keys::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::error::Unspecified;

/// What a page key is, and what a page tag key is, by the other library.
pub(super) struct RingKey(LessSafeKey);

impl RingKey {
    pub(super) fn new(secret: &Secret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret.expose());
        Self(LessSafeKey::new(key.expect("32 bytes are the length of the key")))
    }

    /// Encrypts in place; the tag.
    pub(super) fn seal(
        &self,
        generation: u64,
        version: u32,
        aad: &[u8],
        payload: &mut [u8],
    ) -> Result<[u8; 16]> {
        let nonce = nonce(generation, version);
        let sealed = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), payload);
        sealed.and_then(|tag| tag.as_ref().try_into().map_err(|_| Unspecified)).map_err(failed)
    }

    /// Decrypts in place.
    pub(super) fn open(
        &self,
        generation: u64,
        version: u32,
        aad: &[u8],
        tag: &[u8; 16],
        payload: &mut [u8],
    ) -> Result<()> {
        let (nonce, tag) = (nonce(generation, version), Tag::from(*tag));
        let opened = self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, payload, 0..);
        opened.map(drop).map_err(failed)
    }
}

fn nonce(generation: u64, version: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&generation.to_le_bytes());
    nonce[8..].copy_from_slice(&version.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dafs_client::keys::{PageKey, PageTagKey};

    #[test]
    fn both_libraries_do_the_same() {
        let secret = Secret::random().unwrap();
        let (ours, ring) = (PageKey::new(0, secret.clone()), RingKey::new(&secret));
        let (mut page, mut other) = (vec![1; 4096], vec![1; 4096]);
        let check = ours.seal(2, 3, &[4; 48], &mut page);
        assert_eq!(ring.seal(2, 3, &[4; 48], &mut other).unwrap(), check);
        assert_eq!(page, other);
        ring.open(2, 3, &[4; 48], &check, &mut page).unwrap();
        assert_eq!(page, [1; 4096]);
        let tag = PageTagKey::derive(&secret).tag(5, &page);
        let ring = RingKey::new(&secret.derive("dafs page tag", &[]));
        assert_eq!(ring.seal(5, 0, &page, &mut []).unwrap(), tag);
    }
}

//! Secrets, and how one is derived from another.

use aws_lc_rs::hmac;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 bytes that nobody else knows. Overwritten when dropped, and never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; Self::LEN]);

/// The system gave no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random numbers: {0}")]
pub struct NoRandom(getrandom::Error);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Fills an array with random bytes of the system.
///
/// # Errors
/// Where the system has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandom)?;
    Ok(bytes)
}

impl Secret {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// A new one.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn random() -> Result<Self, NoRandom> {
        random().map(Self)
    }

    /// The secret with these bytes. The caller overwrites its own copy.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, for where they have to be: on the way to the client, or in a file.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The secret derived for a purpose.
    #[must_use]
    pub fn derive(&self, label: &str, context: &[&[u8]]) -> Self {
        self.keyed().derive(label, context)
    }

    /// The secret made ready for many derivations.
    #[must_use]
    pub fn keyed(&self) -> MacKey {
        MacKey(hmac::Key::new(hmac::HMAC_SHA256, &self.0))
    }
}

/// A secret made ready for HMAC-SHA256.
#[derive(Clone)]
pub struct MacKey(hmac::Key);

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey")
    }
}

impl MacKey {
    /// The MAC over the label, a zero byte and the context.
    #[must_use]
    pub fn mac(&self, label: &str, context: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&self.0);
        mac.update(label.as_bytes());
        mac.update(&[0]);
        for part in context {
            mac.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(mac.sign().as_ref());
        bytes
    }

    /// The first 16 bytes of the MAC.
    #[must_use]
    pub fn tag(&self, label: &str, context: &[&[u8]]) -> [u8; 16] {
        let mut tag = [0; 16];
        tag.copy_from_slice(&self.mac(label, context)[..16]);
        tag
    }

    /// The secret derived for a purpose.
    #[must_use]
    pub fn derive(&self, label: &str, context: &[&[u8]]) -> Secret {
        Secret(self.mac(label, context))
    }
}

/// Whether two byte strings are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::from_bytes([0x41; 32]);
        for shown in [format!("{secret:?}"), format!("{:?}", secret.keyed())] {
            assert!(!shown.contains("41") && !shown.contains("65") && !shown.contains('A'));
        }
    }

    #[test]
    fn labels_and_contexts_keep_derived_secrets_apart() {
        let secret = Secret::from_bytes([1; 32]);
        let all = [
            secret.derive("a", &[]),
            secret.derive("b", &[]),
            secret.derive("a", &[&[0]]),
            secret.derive("a", &[&[1]]),
            secret.clone(),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a.expose(), b.expose());
            }
        }
        assert_ne!(Secret::random().unwrap().expose(), Secret::random().unwrap().expose());
    }
}

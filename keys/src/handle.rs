//! Handles that cannot be made up: what clients hold bears a check under a secret of the export.
//!
//! The handles of the kernel are guessable, and open what lies outside of the export as well.

use crate::secret::{MacKey, Secret, same};

/// Length of a handle's check in bytes.
pub const HANDLE_CHECK_LEN: usize = 16;

/// Signs the handles of one export.
#[derive(Clone, Debug)]
pub struct HandleKey(MacKey);

impl HandleKey {
    /// The key of the export with this id, under the secret of the server's state.
    #[must_use]
    pub fn derive(state: &Secret, export: &[u8]) -> Self {
        Self(state.derive("dafs handle", &[export]).keyed())
    }

    /// The handle as clients hold it: with its check behind it.
    #[must_use]
    pub fn sign(&self, handle: &[u8]) -> Vec<u8> {
        let mut wire = Vec::with_capacity(handle.len() + HANDLE_CHECK_LEN);
        wire.extend_from_slice(handle);
        wire.extend_from_slice(&self.check(handle));
        wire
    }

    /// The handle that a client holds, without its check; `None` where it was not signed with this
    /// key.
    #[must_use]
    pub fn verify<'a>(&self, wire: &'a [u8]) -> Option<&'a [u8]> {
        let (handle, check) = wire.split_last_chunk::<HANDLE_CHECK_LEN>()?;
        same(&self.check(handle), check).then_some(handle)
    }

    fn check(&self, handle: &[u8]) -> [u8; HANDLE_CHECK_LEN] {
        self.0.tag("dafs handle check", &[handle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_other_exports_servers_or_nobody_are_refused() {
        let state = Secret::from_bytes([1; 32]);
        let key = HandleKey::derive(&state, b"a");
        let wire = key.sign(b"handle");
        assert_eq!(key.verify(&wire), Some(&b"handle"[..]));
        for i in 0..wire.len() {
            let mut forged = wire.clone();
            forged[i] ^= 1;
            assert_eq!(key.verify(&forged), None);
        }
        assert_eq!(HandleKey::derive(&state, b"b").verify(&wire), None);
        assert_eq!(HandleKey::derive(&Secret::from_bytes([2; 32]), b"a").verify(&wire), None);
        assert_eq!(key.verify(&wire[..HANDLE_CHECK_LEN - 1]), None);
        assert_eq!(key.verify(&[]), None);
    }
}

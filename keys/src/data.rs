//! Write data on the wire: encrypted under a key of the connection, with a counter as the nonce.

use crate::aead::{Aead, CheckFailed};
use crate::secret::Secret;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Encrypts (client) and decrypts (server) write data.
pub struct WriteKey {
    aead: Aead,
    next: AtomicU64,
}

impl fmt::Debug for WriteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteKey")
    }
}

/// What the receiver of sealed data needs besides the key. Travels in the encrypted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The counter.
    pub number: u64,
    /// The tag.
    pub tag: [u8; 16],
}

impl Seal {
    /// Length of an encoded seal.
    pub const LEN: usize = 24;

    /// The seal's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tag);
        bytes
    }

    /// Reads a seal; `None` where it has not the length of one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (number, tag) = bytes.split_at(8);
        Some(Self {
            number: u64::from_le_bytes(number.try_into().ok()?),
            tag: tag.try_into().ok()?,
        })
    }
}

impl WriteKey {
    /// The key of a connection. One side only seals, the other only opens.
    #[must_use]
    pub fn derive(connection: &Secret) -> Self {
        let aead = Aead::new(&connection.derive("dafs write data", &[]));
        Self { aead, next: AtomicU64::new(0) }
    }

    /// Encrypts data in place.
    #[must_use]
    pub fn seal(&self, data: &mut [u8]) -> Seal {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Seal { number, tag: self.aead.seal((number, 0), &[], data) }
    }

    /// Decrypts data in place.
    ///
    /// # Errors
    /// Where it is not what was sealed; the data is garbage then.
    pub fn open(&self, seal: &Seal, data: &mut [u8]) -> Result<(), CheckFailed> {
        self.aead.open((seal.number, 0), &[], &seal.tag, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_opened_under_its_own_seal_only() {
        let connection = Secret::from_bytes([1; 32]);
        let (client, server) = (WriteKey::derive(&connection), WriteKey::derive(&connection));
        let (mut a, mut b) = (*b"some data", *b"some data");
        let (seal_a, seal_b) = (client.seal(&mut a), client.seal(&mut b));
        assert!(a != b && seal_a.number != seal_b.number);
        assert_eq!(Seal::decode(&seal_a.encode()), Some(seal_a));
        assert_eq!(Seal::decode(&[0; 23]), None);
        assert!(server.open(&seal_b, &mut a.clone()).is_err());
        server.open(&seal_a, &mut a).unwrap();
        assert_eq!(&a, b"some data");
    }
}

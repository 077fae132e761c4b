//! Tags at level `keyed`: of one-sided requests, of their replies, and of pages in replies to RPCs.
//!
//! Pages are in the clear there, so what the agent sends, and to whom, has to be shown to be right
//! by tags. A request's tag is under a key that the server gave with the open file; a page's on the
//! wire is under a key of the connection.

use crate::aead::{Aead, CheckFailed};
use crate::secret::{MacKey, Secret, same};
use std::fmt;

/// Length of a tag in bytes.
pub const TAG_LEN: usize = 16;

/// A fresh number that the server gives each connection; tags and counters begin anew from it.
pub type ConnectionNonce = [u8; 16];

/// Shows, on a second connection that was given this nonce, that its holder knows the secret of the
/// connection that the handshake was on. Compare with [`same`].
#[must_use]
pub fn second_connection_proof(connection: &Secret, nonce: &ConnectionNonce) -> [u8; TAG_LEN] {
    connection.keyed().tag("dafs second connection", &[nonce])
}

/// Shows that its holder may read one file, during one epoch of the file and in one session.
pub struct ReadKey {
    epoch: u64,
    secret: Secret,
    mac: MacKey,
}

impl fmt::Debug for ReadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl ReadKey {
    /// The key of a file in an epoch, under the secret of a session.
    #[must_use]
    pub fn derive(session: &MacKey, epoch: u64, file: u64) -> Self {
        let context: [&[u8]; 2] = [&epoch.to_le_bytes(), &file.to_le_bytes()];
        Self::new(epoch, session.derive("dafs read key", &context))
    }

    /// The key that came from the server.
    #[must_use]
    pub fn new(epoch: u64, secret: Secret) -> Self {
        let mac = secret.keyed();
        Self { epoch, secret, mac }
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

    /// The tag of a request: of page `index` of request `number` on a connection. `fields` are the
    /// reference and whatever else the request says of the page, as they are on the wire.
    #[must_use]
    pub fn tag(
        &self,
        nonce: &ConnectionNonce,
        number: u64,
        index: u32,
        fields: &[u8],
    ) -> [u8; TAG_LEN] {
        let (number, index) = (number.to_le_bytes(), index.to_le_bytes());
        self.mac.tag("dafs request", &[nonce, &number, &index, fields])
    }

    /// Whether a request's tag is right.
    #[must_use]
    pub fn verify(
        &self,
        nonce: &ConnectionNonce,
        number: u64,
        index: u32,
        fields: &[u8],
        tag: &[u8],
    ) -> bool {
        same(&self.tag(nonce, number, index, fields), tag)
    }
}

/// Tags the replies to one-sided requests on one connection, page by page.
pub struct ReplyKey(Aead);

impl fmt::Debug for ReplyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyKey")
    }
}

impl ReplyKey {
    /// The key of the connection that was given this nonce, under the secret of the connection that
    /// the handshake was on.
    #[must_use]
    pub fn derive(connection: &Secret, nonce: &ConnectionNonce) -> Self {
        Self(Aead::new(&connection.derive("dafs one-sided reply", &[nonce])))
    }

    /// The tag of the answer for page `index` of request `number`, which is made once only.
    #[must_use]
    pub fn tag(&self, number: u64, index: u32, bytes: &[u8]) -> [u8; TAG_LEN] {
        self.0.seal((number, index), bytes, &mut [])
    }

    /// Checks such a tag.
    ///
    /// # Errors
    /// Where it is wrong.
    pub fn verify(
        &self,
        number: u64,
        index: u32,
        bytes: &[u8],
        tag: &[u8],
    ) -> Result<(), CheckFailed> {
        self.0.open((number, index), bytes, tag, &mut [])
    }
}

/// Tags pages in the replies to RPCs on one connection.
pub struct PageTagKey(Aead);

impl fmt::Debug for PageTagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageTagKey")
    }
}

impl PageTagKey {
    /// The key of a connection.
    #[must_use]
    pub fn derive(connection: &Secret) -> Self {
        Self(Aead::new(&connection.derive("dafs page tag", &[])))
    }

    /// The tag of a page: footer, then payload. `number` serves once on the connection.
    #[must_use]
    pub fn tag(&self, number: u64, bytes: &[u8]) -> [u8; TAG_LEN] {
        self.0.seal((number, 0), bytes, &mut [])
    }

    /// Checks such a tag.
    ///
    /// # Errors
    /// Where it is wrong.
    pub fn verify(&self, number: u64, bytes: &[u8], tag: &[u8]) -> Result<(), CheckFailed> {
        self.0.open((number, 0), bytes, tag, &mut [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_tag_is_good_for_one_request_only() {
        let session = Secret::from_bytes([1; 32]).keyed();
        let key = ReadKey::derive(&session, 1, 2);
        let tag = key.tag(&[3; 16], 4, 5, b"reference");
        assert!(key.verify(&[3; 16], 4, 5, b"reference", &tag));
        assert!(!key.verify(&[4; 16], 4, 5, b"reference", &tag));
        assert!(!key.verify(&[3; 16], 5, 5, b"reference", &tag));
        assert!(!key.verify(&[3; 16], 4, 6, b"reference", &tag));
        assert!(!key.verify(&[3; 16], 4, 5, b"referencf", &tag));
        assert!(!key.verify(&[3; 16], 4, 5, b"reference", &tag[..15]));
        for other in [
            ReadKey::derive(&session, 2, 2),
            ReadKey::derive(&session, 1, 3),
            ReadKey::derive(&Secret::from_bytes([2; 32]).keyed(), 1, 2),
        ] {
            assert!(!other.verify(&[3; 16], 4, 5, b"reference", &tag));
        }
    }

    #[test]
    fn replies_are_tagged_by_connection_number_and_place() {
        let connection = Secret::from_bytes([1; 32]);
        let key = ReplyKey::derive(&connection, &[2; 16]);
        let tag = key.tag(1, 2, b"page");
        assert!(key.verify(1, 2, b"page", &tag).is_ok());
        for (number, index, bytes) in [(2, 2, &b"page"[..]), (1, 3, b"page"), (1, 2, b"pagf")] {
            assert!(key.verify(number, index, bytes, &tag).is_err());
        }
        assert!(ReplyKey::derive(&connection, &[3; 16]).verify(1, 2, b"page", &tag).is_err());
        let pages = PageTagKey::derive(&connection);
        assert!(pages.verify(1, b"page", &pages.tag(1, b"page")).is_ok());
        assert!(pages.verify(1, b"page", &tag).is_err());
    }
}

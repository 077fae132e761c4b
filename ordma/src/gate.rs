//! Whether the client of a second connection may read.
//!
//! A ticket shows that two connections are of one client only as long as nobody else has seen it. So
//! where the client was recognised by a handshake on the first connection, it also has to prove on
//! the second one that it knows the secret that came of it. The proof is sent after the handshake
//! and the permission is given when the session begins: either may be first.

use crate::engine::ReadAccess;
use dafs_keys::secret::same;
use dafs_keys::tags::{ConnectionNonce, TAG_LEN, second_connection_proof};
use std::fmt;
use std::sync::Arc;

/// The proof as it is on the wire.
pub(crate) type Proof = [u8; TAG_LEN];

/// What was permitted and what was shown. Plain data.
pub(crate) struct Gate {
    nonce: ConnectionNonce,
    access: Option<Arc<ReadAccess>>,
    proof: Option<Proof>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("access", &self.access).finish_non_exhaustive()
    }
}

/// Why a connection ends because of its proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongProof {
    /// It does not know the secret.
    Wrong,
    /// It came before.
    Twice,
}

impl fmt::Display for WrongProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrong => "its second connection's proof is wrong",
            Self::Twice => "its second connection proves itself twice",
        })
    }
}

impl Gate {
    /// Nothing permitted and nothing shown, on a connection with this nonce.
    pub(crate) fn new(nonce: ConnectionNonce) -> Self {
        Self { nonce, access: None, proof: None }
    }

    /// The connection's nonce.
    pub(crate) fn nonce(&self) -> &ConnectionNonce {
        &self.nonce
    }

    /// What the client may do from now on.
    pub(crate) fn allow(&mut self, access: Option<Arc<ReadAccess>>) -> Result<(), WrongProof> {
        self.access = access;
        self.judge()
    }

    /// The client's proof has come.
    pub(crate) fn prove(&mut self, proof: Proof) -> Result<(), WrongProof> {
        if self.proof.replace(proof).is_some() {
            return Err(WrongProof::Twice);
        }
        self.judge()
    }

    /// How the client's reads are checked; `None` where it may not read.
    pub(crate) fn access(&self) -> Option<&Arc<ReadAccess>> {
        let access = self.access.as_ref()?;
        // A proof that is there is right: see `judge`.
        (access.connection.is_none() || self.proof.is_some()).then_some(access)
    }

    /// Whether nothing but the proof is missing.
    pub(crate) fn waits(&self) -> bool {
        self.access.is_some() && self.access().is_none()
    }

    /// Holds the proof against the secret, where both are there.
    fn judge(&mut self) -> Result<(), WrongProof> {
        let secret = self.access.as_ref().and_then(|access| access.connection.as_ref());
        if let (Some(secret), Some(proof)) = (secret, &self.proof)
            && !same(&second_connection_proof(secret, &self.nonce), proof)
        {
            self.access = None;
            return Err(WrongProof::Wrong);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dafs_keys::Secret;

    fn access(secret: Option<u8>) -> Option<Arc<ReadAccess>> {
        let connection = secret.map(|byte| Secret::from_bytes([byte; 32]));
        Some(Arc::new(ReadAccess { connection, session: None }))
    }

    fn proof(secret: u8, nonce: u8) -> Proof {
        second_connection_proof(&Secret::from_bytes([secret; 32]), &[nonce; 16])
    }

    #[test]
    fn proof_and_permission_come_in_either_order() {
        let mut gate = Gate::new([1; 16]);
        assert!(gate.access().is_none());
        gate.allow(access(Some(7))).unwrap();
        assert!(gate.access().is_none() && gate.waits());
        gate.prove(proof(7, 1)).unwrap();
        assert!(gate.access().is_some() && !gate.waits());
        gate.allow(None).unwrap();
        assert!(gate.access().is_none());
        gate.allow(access(Some(7))).unwrap();
        assert!(gate.access().is_some());

        let mut gate = Gate::new([1; 16]);
        gate.prove(proof(7, 1)).unwrap();
        assert!(gate.access().is_none());
        gate.allow(access(Some(7))).unwrap();
        assert!(gate.access().is_some());
    }

    #[test]
    fn without_a_secret_none_is_needed() {
        let mut gate = Gate::new([1; 16]);
        gate.allow(access(None)).unwrap();
        assert!(gate.access().is_some());
    }

    #[test]
    fn a_wrong_proof_opens_nothing() {
        for wrong in [proof(8, 1), proof(7, 2), [0; 16]] {
            let mut gate = Gate::new([1; 16]);
            gate.allow(access(Some(7))).unwrap();
            assert_eq!(gate.prove(wrong), Err(WrongProof::Wrong));
            assert!(gate.access().is_none());
            let mut gate = Gate::new([1; 16]);
            gate.prove(wrong).unwrap();
            assert_eq!(gate.allow(access(Some(7))), Err(WrongProof::Wrong));
            assert!(gate.access().is_none());
        }
        let mut gate = Gate::new([1; 16]);
        gate.prove(proof(7, 1)).unwrap();
        assert_eq!(gate.prove(proof(7, 1)), Err(WrongProof::Twice));
    }
}

//! The chunks that a client was told of. Plain data.

use crate::arena::Geometry;
use crate::rdma::Remote;
use crate::{AccessFault, ChunkId, RemoteRef};
use std::collections::BTreeMap;

/// Most chunks that a server may tell of: 4 TiB of the default size.
const MOST: usize = 1 << 16;

/// What may be read.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    geometry: Geometry,
    allowed: bool,
    chunks: BTreeMap<ChunkId, Remote>,
}

/// Where a slot lies in the server's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) payload: Remote,
    pub(super) footer: Remote,
}

impl Chunks {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, allowed: false, chunks: BTreeMap::new() }
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.allowed
    }

    pub(super) fn allow(&mut self) {
        self.allowed = true;
    }

    /// Nothing may be read any more.
    pub(super) fn revoke(&mut self) {
        (self.allowed, self.chunks) = (false, BTreeMap::new());
    }

    pub(super) fn add(&mut self, id: ChunkId, remote: Remote) -> Result<(), String> {
        if self.chunks.len() >= MOST {
            return Err(format!("chunk {id} is too many"));
        }
        if self.chunks.contains_key(&id) {
            return Err(format!("chunk {id} is handed over twice"));
        }
        self.chunks.insert(id, remote);
        Ok(())
    }

    pub(super) fn retire(&mut self, id: ChunkId) {
        self.chunks.remove(&id);
    }

    /// Where the page of a reference lies.
    pub(super) fn find(&self, reference: &RemoteRef) -> Result<Place, AccessFault> {
        if !self.allowed {
            return Err(AccessFault::Revoked);
        }
        let chunk = self.chunks.get(&reference.chunk).ok_or(AccessFault::Gone)?;
        if reference.slot >= self.geometry.slots {
            return Err(AccessFault::Stale);
        }
        let at = |offset: usize| Remote {
            address: chunk.address.wrapping_add(offset as u64),
            key: chunk.key,
        };
        Ok(Place {
            payload: at(self.geometry.payload_at(reference.slot)),
            footer: at(self.geometry.footer_at(reference.slot)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_geometry() {
        let geometry = Geometry::new(4096, 8 * 4096).unwrap();
        let mut chunks = Chunks::new(geometry);
        let reference = RemoteRef { chunk: 5, slot: 2, file: 1, block: 1, generation: 1 };
        assert_eq!(chunks.find(&reference), Err(AccessFault::Revoked));
        chunks.allow();
        assert_eq!(chunks.find(&reference), Err(AccessFault::Gone));
        chunks.add(5, Remote { address: 1 << 20, key: 9 }).unwrap();
        assert!(chunks.add(5, Remote { address: 0, key: 0 }).is_err());
        let place = chunks.find(&reference).unwrap();
        assert_eq!(place.payload, Remote { address: (1 << 20) + 8192, key: 9 });
        assert_eq!(place.footer.address, (1 << 20) + 8 * 4096 + 128);
        assert_eq!(chunks.find(&RemoteRef { slot: 8, ..reference }), Err(AccessFault::Stale));
        chunks.retire(5);
        assert_eq!(chunks.find(&reference), Err(AccessFault::Gone));
        chunks.revoke();
        assert_eq!(chunks.find(&reference), Err(AccessFault::Revoked));
    }
}

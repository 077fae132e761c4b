//! Registered buffers of one size, as many as are needed up to a limit.

use crate::lock;
use crate::rdma::{Access, Block, Domain, Result, Slab};
use std::sync::{Arc, Mutex};

/// Buffers of one size. What is not in use is kept until it is [trimmed](Pool::trim).
#[derive(Debug)]
pub(super) struct Pool {
    domain: Arc<Domain>,
    access: Access,
    block: usize,
    /// Blocks of a slab.
    share: u32,
    /// Most slabs.
    limit: usize,
    slabs: Mutex<Vec<Arc<Slab>>>,
}

impl Pool {
    /// Buffers of `block` bytes, registered `share` bytes at a time, `limit` bytes in all; at least
    /// one slab of one buffer.
    pub(super) fn new(
        domain: &Arc<Domain>,
        access: Access,
        block: usize,
        share: usize,
        limit: usize,
    ) -> Self {
        let share = (share / block).max(1);
        let limit = (limit / (share * block)).max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Self { domain: Arc::clone(domain), access, block, share, limit, slabs: Mutex::default() }
    }

    /// Bytes of a buffer.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Most buffers.
    pub(super) fn most(&self) -> u32 {
        u32::try_from(self.limit).unwrap_or(u32::MAX).saturating_mul(self.share)
    }

    /// Takes a buffer, with anything in it; `None` where all are in use.
    ///
    /// # Errors
    /// When no more memory may be locked and nothing is registered yet.
    pub(super) fn take(&self) -> Result<Option<Block>> {
        let mut slabs = lock(&self.slabs);
        // The last that was used is the likeliest to have one.
        if let Some(block) = slabs.iter().rev().find_map(Slab::take) {
            return Ok(Some(block));
        }
        if slabs.len() >= self.limit {
            return Ok(None);
        }
        match Slab::new(&self.domain, self.block, self.share, self.access) {
            Ok(slab) => {
                let block = slab.take();
                slabs.push(slab);
                Ok(block)
            }
            Err(error) if slabs.is_empty() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "no more buffers; those in use have to come back first");
                Ok(None)
            }
        }
    }

    /// Gives back what is not in use, but for one slab.
    pub(super) fn trim(&self) {
        let mut slabs = lock(&self.slabs);
        let mut kept = false;
        let (keep, idle): (Vec<_>, Vec<_>) = slabs.drain(..).partition(|slab| {
            let idle = slab.available() == self.share as usize;
            !idle || !std::mem::replace(&mut kept, true)
        });
        *slabs = keep;
        drop(slabs);
        // Deregistering takes its time.
        drop(idle);
    }
}

//! What a server has on one RDMA device.

use super::pool::Pool;
use super::server::{FIRST_WINDOW, WINDOW};
use super::shares::Shares;
use crate::ChunkId;
use crate::arena::Chunk;
use crate::lock;
use crate::rdma::{Access, Device, DeviceInfo, Domain, Memory, Region, Remote, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Bytes of a packet.
pub(super) const PACKET: usize = 8 << 10;
/// Bytes of a transfer that are under way as one request.
const TRANSFER: usize = 256 << 10;
/// Bytes that are registered at a time.
const SHARE: usize = 1 << 20;
/// Most bytes of packets under way to clients, of receives posted for them, and of transfers. Receives
/// have their own, so that clients that say nothing take none from the replies to others.
const MOST_PACKETS: usize = 8 << 20;
const MOST_RECEIVES: usize = 16 << 20;
const MOST_TRANSFERS: usize = 16 << 20;
/// Bytes of a receive that never comes, and most bytes of all of them.
const CANARY: usize = 64;
const MOST_CANARIES: usize = 4 << 20;

/// A server's side of a device.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) info: DeviceInfo,
    pub(super) device: Device,
    /// Of the queue pairs for messages, and of the buffers that they use. No peer has rights in it.
    pub(super) messages: Arc<Domain>,
    /// Of the chunks, and of the queue pairs for READs.
    pub(super) chunks: Arc<Domain>,
    pub(super) packets: Arc<Pool>,
    pub(super) receives: Pool,
    /// Receives beyond the first of each client: a quarter of all.
    pub(super) shares: Shares,
    pub(super) canaries: Pool,
    pub(super) transfers: Arc<Pool>,
    regions: Mutex<BTreeMap<ChunkId, Arc<Region>>>,
}

// SAFETY: a chunk's mapping lives as long as the chunk.
unsafe impl Memory for Chunk {
    fn range(&self) -> (*const u8, usize) {
        self.memory_range()
    }
}

impl Adapter {
    pub(super) fn new(device: Device) -> Result<Self> {
        let messages = Domain::new(device)?;
        let pool = |block, limit| Pool::new(&messages, Access::Local, block, SHARE, limit);
        let (packets, transfers) = (pool(PACKET, MOST_PACKETS), pool(TRANSFER, MOST_TRANSFERS));
        let receives = pool(PACKET, MOST_RECEIVES);
        let extra = MOST_RECEIVES / PACKET / 4;
        let shares = Shares::new(extra as u32, WINDOW - FIRST_WINDOW);
        let canaries = Pool::new(&messages, Access::Local, CANARY, 64 << 10, MOST_CANARIES);
        // Fails here, where it can be told, and not with the first client.
        drop((packets.take()?, receives.take()?));
        Ok(Self {
            info: device.info()?,
            device,
            chunks: Domain::new(device)?,
            messages,
            packets: Arc::new(packets),
            receives,
            shares,
            canaries,
            transfers: Arc::new(transfers),
            regions: Mutex::default(),
        })
    }

    /// Where clients read a chunk, which is registered the first time that it is asked for. The error
    /// is told in the log once a chunk.
    pub(super) fn export(&self, chunk: &Arc<Chunk>) -> Option<Remote> {
        let mut regions = lock(&self.regions);
        if let Some(region) = regions.get(&chunk.id()) {
            return Some(region.remote(0));
        }
        let memory: Arc<dyn Memory> = Arc::<Chunk>::clone(chunk);
        match Region::new(&self.chunks, memory, Access::RemoteRead) {
            Ok(region) => {
                let remote = region.remote(0);
                regions.insert(chunk.id(), Arc::new(region));
                Some(remote)
            }
            Err(error) => {
                let id = chunk.id();
                tracing::error!(
                    %error, chunk = id, device = self.info.name,
                    "a chunk cannot be registered: its pages are served by RPC"
                );
                None
            }
        }
    }

    /// Deregisters a chunk: no byte of it is read by any client when this returns.
    pub(super) fn retire(&self, chunk: ChunkId) {
        let region = lock(&self.regions).remove(&chunk);
        drop(region);
    }

    /// Gives buffers back that are not in use.
    pub(super) fn trim(&self) {
        self.packets.trim();
        self.receives.trim();
        self.canaries.trim();
        self.transfers.trim();
    }

    /// Deregisters all chunks.
    pub(super) fn close(&self) {
        let regions = std::mem::take(&mut *lock(&self.regions));
        drop(regions);
    }
}

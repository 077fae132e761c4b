//! What a server has on one RDMA device.

use super::pool::Pool;
use super::registered::Registered;
use super::server::{FIRST_WINDOW, WINDOW};
use super::shares::Shares;
use super::transfer_buffers::TransferBuffers;
use crate::ChunkId;
use crate::arena::Chunk;
use crate::rdma::{
    Access, Block, Device, DeviceInfo, Domain, Error, Memory, Region, Remote, Result,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a packet.
pub(super) const PACKET: usize = 8 << 10;
/// Bytes of a transfer that are under way as one request.
const TRANSFER: usize = 256 << 10;
/// Bytes that are registered at a time.
const SHARE: usize = 1 << 20;
/// Most bytes of packets under way to clients, and of transfers. Receives have their own, so that
/// clients that say nothing take none from the replies to others.
const MOST_PACKETS: usize = 8 << 20;
const MOST_TRANSFERS: usize = 8 << 20;
/// Bytes of a receive that never comes, and most bytes of all of them.
const CANARY: usize = 64;
const MOST_CANARIES: usize = 4 << 20;
/// How long pages of a chunk that could not be registered are copied before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

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
    receives: Pool,
    /// Receives beyond the first of each client: a quarter of all.
    pub(super) shares: Shares,
    canaries: Pool,
    pub(super) transfers: Arc<TransferBuffers>,
    /// Where clients read chunks.
    exported: Registered<Region>,
    /// The chunks once more, where no peer has rights: what direct reads are placed from. Requests
    /// that are under way hold theirs.
    sources: Registered<Arc<Region>>,
}

// SAFETY: a chunk's mapping lives as long as the chunk.
unsafe impl Memory for Chunk {
    fn range(&self) -> (*const u8, usize) {
        self.memory_range()
    }
}

impl Adapter {
    /// With so many bytes of receives for all clients.
    pub(super) fn new(device: Device, receives: usize) -> Result<Self> {
        let messages = Domain::new(device)?;
        let pool = |block, limit| Pool::new(&messages, Access::Local, block, SHARE, limit);
        let (packets, transfers) = (pool(PACKET, MOST_PACKETS), pool(TRANSFER, MOST_TRANSFERS));
        let extra = u32::try_from(receives / PACKET / 4).unwrap_or(u32::MAX);
        let shares = Shares::new(extra, WINDOW - FIRST_WINDOW);
        let receives = pool(PACKET, receives);
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
            transfers: TransferBuffers::new(transfers),
            exported: Registered::new(Duration::ZERO),
            sources: Registered::new(TRY_AGAIN),
        })
    }

    /// A buffer for a message that may come.
    pub(super) fn receive(&self) -> Result<Block> {
        let short = "all that the setting `receives` allows are posted for other clients";
        taken(&self.receives, short)
    }

    /// A buffer for a receive that never comes.
    pub(super) fn canary(&self) -> Result<Block> {
        taken(&self.canaries, "all are posted for other clients")
    }

    /// Where clients read a chunk, which is registered the first time that it is asked for. The error
    /// is told in the log once a chunk.
    pub(super) fn export(&self, chunk: &Arc<Chunk>) -> Option<Remote> {
        let register = || {
            let register = || Region::new(&self.chunks, chunk.clone(), Access::RemoteRead);
            // Where memory for both may not be locked, what is read one-sidedly comes first.
            register().or_else(|error| if self.sources.clear() { register() } else { Err(error) })
        };
        let refused = |error| {
            tracing::error!(
                %error, chunk = chunk.id(), device = self.info.name,
                "a chunk cannot be registered: its pages are served by RPC"
            );
        };
        self.exported.make(chunk.id(), Instant::now(), register, refused, |region| region.remote(0))
    }

    /// Whether a chunk was registered for clients to read, or could not be.
    pub(super) fn was_exported(&self, chunk: ChunkId) -> bool {
        self.exported.was_tried(chunk)
    }

    /// The registration by which a chunk's pages are placed, where there is one.
    pub(super) fn source(&self, chunk: ChunkId) -> Option<Arc<Region>> {
        self.sources.get(chunk, Arc::clone)
    }

    /// Like [`source`](Self::source), and registers the chunk where it is not. The error is told in
    /// the log once a chunk.
    pub(super) fn make_source(&self, chunk: &Arc<Chunk>) -> Option<Arc<Region>> {
        let register = || Region::new(&self.messages, chunk.clone(), Access::Source).map(Arc::new);
        let refused = |error| {
            tracing::warn!(
                %error, chunk = chunk.id(), device = self.info.name,
                "a chunk cannot be registered once more: direct reads of its pages are copied"
            );
        };
        self.sources.make(chunk.id(), Instant::now(), register, refused, Arc::clone)
    }

    /// Deregisters a chunk: no byte of it is read by any client when this returns. Placing that is
    /// under way goes on; what it takes from the chunk are dead pages.
    pub(super) fn retire(&self, chunk: ChunkId) {
        drop(self.exported.remove(chunk));
        drop(self.sources.remove(chunk));
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
        self.exported.clear();
        self.sources.clear();
    }
}

/// A buffer of a pool of receives; the error says why there is none.
fn taken(pool: &Pool, short: &'static str) -> Result<Block> {
    let short = || Error::new("buffers for receives", std::io::Error::other(short));
    pool.take()?.ok_or_else(short)
}

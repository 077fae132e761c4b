//! The engine `verbs`: RDMA NICs, and soft-RoCE.
//!
//! A client has two queue pairs. One carries messages, under credits, and the server's transfers
//! into and out of memory that the client lends. On the other the client reads pages from the
//! server's chunks with one-sided READs, of which the server's CPU learns nothing. It lies in a
//! protection domain of its own with the chunks; its peer gets the right to read when the session
//! begins, and, where a handshake was on the first, has proved to be the same client's.
//!
//! What the server places it takes from the slots themselves: the device gathers it from the chunk,
//! which is registered once more where no peer has rights, and does not look whether it changes
//! meanwhile, as a READ does not. The client judges it alike.
//!
//! A READ that the server's device refuses fails that queue pair alone. Both sides bring it back
//! while reads go by RPC. Nothing is ever revoked by memory windows: soft-RoCE does not hold them to
//! their bounds. Rights are those of queue pairs, and a chunk that goes is deregistered.
//!
//! | module | what it does |
//! |---|---|
//! | `hello` | what is said when a connection is made |
//! | `packet`, `credits` | what one SEND carries, and when one may be sent |
//! | `wire` | the sending half of a connection, on both sides |
//! | `server`, `link`, `connection` | the server, and its side of a connection |
//! | `adapter`, `registered`, `shares`, `turns` | what it has on a device |
//! | `rearms` | how often it brings a client's queue pair back |
//! | `target`, `gather` | what its transfers go to, and come from |
//! | `connect`, `endpoint`, `reads`, `chunks`, `lent`, `adverts`, `keeper` | the client |
//!

mod adapter;
mod adverts;
mod chunks;
mod connect;
mod connection;
mod credits;
mod endpoint;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod gather;
mod hello;
mod keeper;
mod lent;
mod link;
mod packet;
mod pool;
mod reads;
mod rearms;
mod registered;
mod server;
mod shares;
mod target;
mod transfer_buffers;
mod wire;

use crate::ChunkId;
use crate::arena::{Arena, Chunk, Geometry};
use crate::engine::{Capabilities, Connector, Engine, LinkError, Listener, Service};
use crate::rdma::{EventChannel, Id};
use connect::VerbsConnector;
use server::{Server, cannot_listen};
use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use crate::stream::Settings;

/// Most pages worth posting at once: 4 MiB of small pages.
const READ_BATCH: usize = 1024;
/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;

/// The engine. Addresses are `host:port`, of an address that belongs to an RDMA device's port; port
/// 0 listens on any free one. To connect from a certain address of this host, where it has several
/// devices, add `@` and that address: `10.0.0.2:20490@10.0.0.1`.
#[derive(Clone, Debug, Default)]
pub struct Verbs {
    settings: Settings,
}

impl Verbs {
    /// The engine with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

fn capabilities(geometry: Geometry) -> Capabilities {
    Capabilities {
        engine: "verbs",
        geometry: Some(geometry),
        local_reads: false,
        read_batch: READ_BATCH,
        tags: false,
        places_slots: true,
    }
}

impl Engine for Verbs {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        let at = address.to_socket_addrs().map_err(|error| cannot_listen(address, error))?.next();
        let at = at.ok_or_else(|| cannot_listen(address, "the name has no address"))?;
        let listen = || {
            let id = Id::new(&EventChannel::new()?)?;
            id.bind(at)?;
            id.listen(BACKLOG)?;
            Ok(id)
        };
        let id = listen().map_err(|error: crate::rdma::Error| cannot_listen(address, error))?;
        let at = SocketAddr::new(at.ip(), id.port());
        let capabilities = capabilities(arena.geometry());
        let server = Server::start(self.settings.clone(), service, arena, capabilities)
            .map_err(|error| cannot_listen(address, error))?;
        // So that what is short is told now, where the address says which device it is.
        if let Some(device) = id.device()
            && let Err(error) = server.adapter(device)
        {
            server.stop();
            return Err(cannot_listen(address, error));
        }
        server.open(id);
        Ok(Arc::new(VerbsListening { server, at }))
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        let (address, settings) = (address.to_owned(), self.settings.clone());
        Arc::new(VerbsConnector { address, settings })
    }
}

#[derive(Debug)]
struct VerbsListening {
    server: Arc<Server>,
    at: SocketAddr,
}

impl Listener for VerbsListening {
    fn address(&self) -> String {
        self.at.to_string()
    }

    fn export(&self, chunk: &Arc<Chunk>) {
        self.server.exports.export(chunk);
    }

    /// Clients that have not let go by then are not closed: the chunk is deregistered, and a READ of
    /// it that is under way fails its queue pair.
    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let done = self.server.exports.retire(chunk, patience, self.server.clock());
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let _ = done.await;
            server.adapters().iter().for_each(|adapter| adapter.retire(chunk));
        })
    }

    fn stop(&self) {
        self.server.stop();
    }
}

impl Drop for VerbsListening {
    fn drop(&mut self) {
        self.stop();
    }
}

//! The engine `shm`: client and server on one host.
//!
//! Messages go over a Unix socket, in the same frames as those of `tcp`. Over a second connection to
//! the same path the server hands its chunks over, as sealed memory files that the client maps for
//! reading; a one-sided read is a copy by the client's own CPU. Where a handshake was on the first,
//! nothing is handed over before the second has proved to be the same client's. Chunks whose pages
//! are given against tags alone are never handed over.

mod boot;
mod chunks;
pub(crate) mod control;
mod exports;
mod path;

use crate::AccessFault;
use crate::ChunkId;
use crate::arena::{Arena, Chunk, Geometry};
use crate::client::{Core, connect_by};
use crate::engine::{
    Capabilities, Connector, Endpoint, Engine, Interest, LinkError, Listener, PageReads, ReadBatch,
    Receiver, Service, Tag,
};
use crate::region::Segment;
use crate::stream::endpoint::{greet, wait_readable};
use crate::stream::hello::{ClientHello, ServerHello};
use crate::stream::link::StreamLink;
use crate::stream::rpc::Rpc;
use crate::stream::server::{Counted, Server, Side};
use boot::PeerBoot;
use chunks::Chunks;
use control::{Message, Received};
use dafs_keys::Secret;
use dafs_keys::tags::ConnectionNonce;
use exports::{Control, Exports};
use path::SocketPath;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use crate::stream::Settings;

/// Most pages worth posting at once: reads complete while they are posted, and hold the caller.
const READ_BATCH: usize = 1024;

/// The engine. Addresses are paths of sockets.
#[derive(Clone, Debug, Default)]
pub struct Shm {
    settings: Settings,
}

impl Shm {
    /// The engine with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Engine for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        let failed = |reason: String| LinkError::Listen { address: address.to_owned(), reason };
        let (socket, path) = SocketPath::bind(address).map_err(failed)?;
        let start = || {
            let exports = Exports::new()?;
            let side = Box::new(ShmSide { exports: Arc::clone(&exports) });
            let settings = self.settings.clone();
            let capabilities = capabilities(arena.geometry());
            let server = Server::start(settings, service, arena, side, 0, capabilities)?;
            Ok((exports, server))
        };
        let (exports, server) = start().map_err(|error: std::io::Error| {
            path.remove();
            failed(error.to_string())
        })?;
        server.open(socket);
        Ok(Arc::new(ShmListening { server, exports, path }))
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        Arc::new(ShmConnector { path: address.to_owned(), settings: self.settings.clone() })
    }
}

fn capabilities(geometry: Geometry) -> Capabilities {
    Capabilities {
        engine: "shm",
        geometry: Some(geometry),
        local_reads: true,
        read_batch: READ_BATCH,
        tags: false,
        places_slots: false,
    }
}

/// What is particular to the server's side.
struct ShmSide {
    exports: Arc<Exports>,
}

impl Side for ShmSide {
    fn attach(
        &self,
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        nonce: ConnectionNonce,
    ) -> bool {
        Control::attach(&self.exports, server, link, socket, counted, nonce)
    }

    fn peer(&self, socket: &OwnedFd) -> String {
        match path::peer_of(socket) {
            // Of another namespace of processes, whose numbers mean nothing here.
            Ok((0, uid)) => format!("a process of user {uid}"),
            Ok((pid, uid)) => format!("process {pid} of user {uid}"),
            Err(_) => "an unknown process".to_owned(),
        }
    }

    fn prepare(&self, _socket: &OwnedFd) {}
}

/// The user at the other end of a Unix socket.
///
/// # Errors
/// The socket is none that was connected.
pub fn peer_user(socket: impl AsFd) -> std::io::Result<u32> {
    path::peer_of(socket).map(|(_, user)| user)
}

#[derive(Debug)]
struct ShmListening {
    server: Arc<Server>,
    exports: Arc<Exports>,
    path: SocketPath,
}

impl Listener for ShmListening {
    fn address(&self) -> String {
        self.path.as_str().to_owned()
    }

    fn export(&self, chunk: &Arc<Chunk>) {
        self.exports.chunks().export(chunk);
    }

    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let done = self.exports.chunks().retire(chunk, patience, self.server.clock());
        Box::pin(async move {
            let _ = done.await;
        })
    }

    fn stop(&self) {
        // First of all, so that no client accepts a page from now on.
        self.exports.stop();
        self.server.stop();
        self.path.remove();
    }
}

impl Drop for ShmListening {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct ShmConnector {
    path: String,
    settings: Settings,
}

impl ShmConnector {
    fn try_connect(
        &self,
        receiver: Arc<dyn Receiver>,
        deadline: Instant,
    ) -> Result<ShmEndpoint, String> {
        let socket = path::dial(&self.path, deadline)?;
        let first = greet(&socket, ClientHello::Messages, deadline)?;
        let ServerHello::Welcome { geometry, limits, ticket } = first else {
            return Err("the server's hello is not a welcome".to_owned());
        };
        let second = path::dial(&self.path, deadline)?;
        let welcome = greet(&second, ClientHello::Second(ticket), deadline)?;
        let ServerHello::Welcome { ticket: nonce, .. } = welcome else {
            return Err("the server's hello is not a welcome".to_owned());
        };
        wait_readable(&second, deadline)?;
        let boot = match control::receive(second.as_fd()).map_err(|error| error.to_string())? {
            Received::Message(Message::Boot, Some(file)) => {
                PeerBoot::map(file.as_fd()).map_err(|error| format!("boot page: {error}"))?
            }
            other => return Err(format!("no boot page, but {other:?}")),
        };
        let chunks =
            Chunks::new(second, boot, geometry, nonce).map_err(|error| error.to_string())?;
        let own_limits = self.settings.limits();
        let rpc = Rpc::new(socket, self.path.clone(), own_limits, limits, Arc::clone(&receiver));
        let core = Core::new(rpc, None, receiver, self.settings.spin);
        let core = core.map_err(|error| error.to_string())?;
        let capabilities = capabilities(geometry);
        let client = Arc::new(Client { core, chunks, capabilities });
        let served = Arc::clone(&client);
        let thread = std::thread::Builder::new().name("dafs-chunks".to_owned());
        let thread = thread.spawn(move || served.serve()).map_err(|error| error.to_string())?;
        Ok(ShmEndpoint { client, thread: Mutex::new(Some(thread)) })
    }
}

impl Connector for ShmConnector {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        connect_by(&self.path, timeout, |deadline| self.try_connect(receiver, deadline))
    }

    fn target(&self) -> String {
        self.path.clone()
    }
}

/// What a client's connection and its thread share.
#[derive(Debug)]
struct Client {
    core: Core<Rpc>,
    chunks: Chunks,
    capabilities: Capabilities,
}

impl Client {
    /// Keeps the chunks in step with the server while the application is idle.
    fn serve(&self) {
        if let Err(reason) = self.chunks.serve() {
            self.core.lose(self.core.rpc.lost(format_args!("control connection: {reason}")));
        }
        self.chunks.close();
    }
}

/// A client's connection.
#[derive(Debug)]
struct ShmEndpoint {
    client: Arc<Client>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Endpoint for ShmEndpoint {
    fn capabilities(&self) -> Capabilities {
        self.client.capabilities.clone()
    }

    fn peer(&self) -> String {
        self.client.core.rpc.peer().to_owned()
    }

    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        self.client.core.send(head, data)
    }

    fn advertise(&self, buffer: Vec<Segment>) -> Tag {
        self.client.core.rpc.advertise(buffer)
    }

    fn prove(&self, connection: &Secret) {
        self.client.chunks.prove(connection);
    }

    fn withdraw(&self, tag: Tag) -> u64 {
        self.client.core.rpc.withdraw(tag)
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        let Client { core, chunks, .. } = &*self.client;
        let batch = ReadBatch::new(reads);
        if core.is_dead() {
            batch.fail(AccessFault::Unreachable);
            return batch;
        }
        let outcomes = chunks.read(&batch.reads);
        // Looked at after the copies: whatever a dead server's successor has changed since, these
        // were copied before.
        if chunks.server_alive() {
            batch.complete(outcomes);
        } else {
            batch.fail(AccessFault::Unreachable);
            core.lose(core.rpc.lost("the server's process has ended"));
        }
        batch
    }

    fn drive(&self, interest: Interest, timeout: Duration) {
        self.client.core.drive(interest, timeout);
    }

    fn interrupt(&self) {
        self.client.core.interrupt();
    }

    fn close(&self) {
        self.client.core.close();
        self.end_thread();
    }
}

impl ShmEndpoint {
    fn end_thread(&self) {
        self.client.chunks.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It calls no one, so it cannot be this one.
            let _ = thread.join();
        }
    }
}

impl Drop for ShmEndpoint {
    fn drop(&mut self) {
        self.client.core.abandon();
        self.end_thread();
    }
}

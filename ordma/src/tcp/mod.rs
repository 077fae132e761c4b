//! The engine `tcp`: for hosts without RDMA, and an ORDMA-capable NIC in software.
//!
//! A client has two connections to the same port. One carries messages and transfers. On the other
//! it asks for pages, which agent threads of the server answer from the arena, without the
//! [`Service`]. Where a handshake was on the first, the second is only answered once it has proved to
//! be the same client's, and pages in the clear are given against a tag that each request bears.

mod agent;
mod posting;
mod race;
pub(crate) mod reads;
mod tagged;
pub(crate) mod wire;

use crate::ChunkId;
use crate::arena::{Arena, Chunk, Geometry};
use crate::client::{Core, connect_by};
use crate::engine::{
    Capabilities, Connector, Endpoint, Engine, Interest, LinkError, Listener, PageReads, ReadBatch,
    Receiver, Service, Tag,
};
use crate::region::Segment;
use crate::stream::endpoint::greet;
use crate::stream::hello::{ClientHello, ServerHello};
use crate::stream::link::StreamLink;
use crate::stream::rpc::Rpc;
use crate::stream::server::{Counted, Server, Side};
use agent::AgentConnection;
use dafs_keys::Secret;
use dafs_keys::tags::ConnectionNonce;
use reads::Reads;
use std::future::Future;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::stream::Settings;

/// Most pages worth posting at once: 4 MiB of small pages.
const READ_BATCH: usize = 1024;

/// The engine. Addresses are `host:port`; port 0 listens on any free one.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    settings: Settings,
}

impl Tcp {
    /// The engine with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Engine for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        let failed = |error: std::io::Error| LinkError::Listen {
            address: address.to_owned(),
            reason: error.to_string(),
        };
        let socket = TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        // The one that the standard library asks for is short where many clients come back at once.
        rustix::net::listen(&socket, 4096).map_err(|error| failed(error.into()))?;
        let at = socket.local_addr().map_err(failed)?;
        let settings = self.settings.clone();
        let agents = settings.agent_threads.max(1);
        let side = Box::new(TcpSide);
        let capabilities = capabilities(arena.geometry());
        let server = Server::start(settings, service, arena, side, agents, capabilities);
        let server = server.map_err(failed)?;
        server.open(socket.into());
        Ok(Arc::new(TcpListening { server, at }))
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        Arc::new(TcpConnector { address: address.to_owned(), settings: self.settings.clone() })
    }
}

fn capabilities(geometry: Geometry) -> Capabilities {
    Capabilities {
        engine: "tcp",
        geometry: Some(geometry),
        local_reads: false,
        read_batch: READ_BATCH,
        tags: true,
        places_slots: false,
    }
}

/// What is particular to the server's side.
struct TcpSide;

impl Side for TcpSide {
    fn attach(
        &self,
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        nonce: ConnectionNonce,
    ) -> bool {
        AgentConnection::attach(server, link, socket, counted, nonce)
    }

    fn peer(&self, socket: &OwnedFd) -> String {
        match rustix::net::getpeername(socket) {
            Ok(Some(address)) => SocketAddr::try_from(address)
                .map_or_else(|_| "an unknown address".to_owned(), |address| address.to_string()),
            _ => "a client that is gone".to_owned(),
        }
    }

    fn prepare(&self, socket: &OwnedFd) {
        // Fails only where the client is already gone.
        let _ = tune(socket);
    }
}

#[derive(Debug)]
struct TcpListening {
    server: Arc<Server>,
    at: SocketAddr,
}

impl Listener for TcpListening {
    fn address(&self) -> String {
        self.at.to_string()
    }

    /// Agents look chunks up in the arena: there is nothing to do.
    fn export(&self, _chunk: &Arc<Chunk>) {}

    /// Clients hold nothing of a chunk: there is nothing to wait for.
    fn retire(&self, _chunk: ChunkId, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }

    fn refused(&self) -> u64 {
        self.server.refused()
    }

    fn stop(&self) {
        self.server.stop();
    }
}

impl Drop for TcpListening {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct TcpConnector {
    address: String,
    settings: Settings,
}

impl TcpConnector {
    fn try_connect(
        &self,
        receiver: Arc<dyn Receiver>,
        deadline: Instant,
    ) -> Result<TcpEndpoint, String> {
        let addresses = race::resolve(&self.address, deadline)?;
        self.connect_to_first(addresses, receiver, deadline)
    }

    /// Connects to the first of these addresses where a server answers.
    fn connect_to_first(
        &self,
        addresses: Vec<SocketAddr>,
        receiver: Arc<dyn Receiver>,
        deadline: Instant,
    ) -> Result<TcpEndpoint, String> {
        let ((socket, first), address) = race::first(addresses, deadline, |address, deadline| {
            let socket = OwnedFd::from(dial(address, deadline)?);
            let first = greet(&socket, ClientHello::Messages, deadline)?;
            Ok((socket, first))
        })?;
        let ServerHello::Welcome { geometry, limits, ticket } = first else {
            return Err("the server's hello is not a welcome".to_owned());
        };
        let second = dial(address, deadline)?;
        let same_host = second.local_addr().is_ok_and(|local| local.ip() == address.ip());
        if same_host {
            hold_a_window(&second);
        }
        let second = OwnedFd::from(second);
        let welcome = greet(&second, ClientHello::Second(ticket), deadline)?;
        let ServerHello::Welcome { ticket: nonce, .. } = welcome else {
            return Err("the server's hello is not a welcome".to_owned());
        };
        let peer = address.to_string();
        let own_limits = self.settings.limits();
        let reads = Arc::new(Reads::new(second, peer.clone(), geometry, nonce, same_host));
        let rpc = Rpc::new(socket, peer, own_limits, limits, Arc::clone(&receiver));
        let lane = reads.clone();
        let core = Core::new(rpc, Some(lane), receiver, self.settings.spin);
        let core = core.map_err(|error| error.to_string())?;
        Ok(TcpEndpoint { core, reads, capabilities: capabilities(geometry) })
    }
}

fn dial(address: SocketAddr, deadline: Instant) -> Result<TcpStream, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err("no connection in time".to_owned());
    }
    let socket = TcpStream::connect_timeout(&address, left).map_err(|error| error.to_string())?;
    tune(&socket).map_err(|error| error.to_string())?;
    Ok(socket)
}

/// Sends small messages at once, and finds out within two minutes when the other host is gone
/// without a word.
fn tune(socket: impl AsFd) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(socket, 4)
}

/// Lets a connection on this host hold all that is asked for at a time, where the system allows as
/// much. The kernel's own estimate falls short of it as often as not, and then the server stands
/// still halfway through a reply: a batch of 1 MiB takes half as long again. A buffer that is set
/// does not grow by itself any more, hence only where it is large enough.
fn hold_a_window(socket: &TcpStream) {
    let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
    if most.trim().parse().is_ok_and(|most: usize| most >= posting::LOCAL_WINDOW) {
        let size = posting::LOCAL_WINDOW;
        // Without it the connection is slower, and nothing else.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(socket, size);
    }
}

impl Connector for TcpConnector {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        connect_by(&self.address, timeout, |deadline| self.try_connect(receiver, deadline))
    }

    fn target(&self) -> String {
        self.address.clone()
    }
}

/// A client's connection.
#[derive(Debug)]
struct TcpEndpoint {
    core: Core<Rpc>,
    reads: Arc<Reads>,
    capabilities: Capabilities,
}

impl Endpoint for TcpEndpoint {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn peer(&self) -> String {
        self.core.rpc.peer().to_owned()
    }

    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        self.core.send(head, data)
    }

    fn advertise(&self, buffer: Vec<Segment>) -> Tag {
        self.core.rpc.advertise(buffer)
    }

    fn prove(&self, connection: &Secret) {
        if self.reads.prove(connection) {
            self.core.nudge_reads();
        }
    }

    fn withdraw(&self, tag: Tag) -> u64 {
        self.core.rpc.withdraw(tag)
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        let (batch, queued) = self.reads.post(reads);
        if queued {
            self.core.nudge_reads();
        }
        batch
    }

    fn drive(&self, interest: Interest, timeout: Duration) {
        self.core.drive(interest, timeout);
    }

    fn interrupt(&self) {
        self.core.interrupt();
    }

    fn close(&self) {
        self.core.close();
    }
}

impl Drop for TcpEndpoint {
    fn drop(&mut self) {
        self.core.abandon();
    }
}

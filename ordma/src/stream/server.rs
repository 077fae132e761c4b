//! The server's side of a stream engine: its threads, its links, and the door.

use super::connection::RpcConnection;
use super::guests::Guests;
use super::hello::{ServerHello, Ticket};
use super::link::StreamLink;
use super::memory::ReceiveMemory;
use super::settings::Settings;
use super::untaken::Untaken;
use super::welcome::Door;
use crate::arena::Arena;
use crate::engine::{Capabilities, LinkError, Service};
use crate::reactor::Reactor;
use dafs_keys::tags::ConnectionNonce;
use foldhash::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What differs between the engines on the server's side.
pub(crate) trait Side: Send + Sync {
    /// Takes the second connection of `link`, and sends the welcome with the nonce on it; `false`
    /// where the link does not take it.
    fn attach(
        &self,
        server: &Arc<Server>,
        link: Arc<StreamLink>,
        socket: Arc<OwnedFd>,
        counted: Counted,
        nonce: ConnectionNonce,
    ) -> bool;
    /// A name for the peer of a connection.
    fn peer(&self, socket: &OwnedFd) -> String;
    /// Prepares a connection that was just accepted.
    fn prepare(&self, socket: &OwnedFd);
}

/// A server's shared state.
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) memory: Arc<ReceiveMemory>,
    pub(super) untaken: Untaken,
    pub(super) guests: Guests,
    pub(crate) capabilities: Capabilities,
    side: Box<dyn Side>,
    rpc: Vec<Arc<Reactor>>,
    agents: Vec<Arc<Reactor>>,
    tickets: Mutex<HashMap<Ticket, Weak<StreamLink>>>,
    connections: Connections,
    /// Pages that were not given for want of a right tag.
    refused: AtomicU64,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("engine", &self.capabilities.engine).finish_non_exhaustive()
    }
}

/// Distinguishes the links of this process.
static LINKS: AtomicU64 = AtomicU64::new(1);

/// The id of a new link.
pub(crate) fn next_link() -> u64 {
    LINKS.fetch_add(1, Ordering::Relaxed)
}

/// How many connections there are, and may be.
#[derive(Debug)]
pub(crate) struct Connections {
    most: usize,
    count: Arc<AtomicUsize>,
}

impl Connections {
    /// None yet, and at most so many.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, count: Arc::default() }
    }

    /// Counts a connection; `None` where there are too many.
    pub(crate) fn count(&self) -> Option<Counted> {
        let room = |n: usize| (n < self.most).then_some(n + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Counted(Arc::clone(&self.count)))
    }
}

/// Counts as one connection until dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Starts the threads.
    pub(crate) fn start(
        settings: Settings,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
        side: Box<dyn Side>,
        agents: usize,
        capabilities: Capabilities,
    ) -> std::io::Result<Arc<Self>> {
        let mut server = Self {
            memory: ReceiveMemory::new(settings.receive_memory),
            untaken: Untaken::default(),
            guests: Guests::default(),
            connections: Connections::new(settings.max_connections),
            settings,
            service,
            arena,
            capabilities,
            side,
            rpc: Vec::new(),
            agents: Vec::new(),
            tickets: Mutex::default(),
            refused: AtomicU64::new(0),
        };
        let spin = server.settings.spin;
        let started = (|| {
            for i in 0..server.settings.rpc_threads.max(1) {
                server.rpc.push(Reactor::start(&format!("dafs-rpc-{i}"), spin)?);
            }
            for i in 0..agents {
                server.agents.push(Reactor::start(&format!("dafs-agent-{i}"), spin)?);
            }
            Ok(())
        })();
        if let Err(error) = started {
            server.stop();
            return Err(error);
        }
        Ok(Arc::new(server))
    }

    /// Begins to take connections from a listening socket.
    pub(crate) fn open(self: &Arc<Self>, listener: OwnedFd) {
        self.rpc[0].adopt(Box::new(Door::new(listener, Arc::clone(self))));
    }

    /// Ends all links and threads.
    pub(crate) fn stop(&self) {
        for reactor in self.rpc.iter().chain(&self.agents) {
            reactor.stop();
        }
    }

    /// The first of the threads that receive messages, for timers.
    pub(crate) fn clock(&self) -> &Arc<Reactor> {
        &self.rpc[0]
    }

    /// The thread that answers the one-sided reads of a link; where there are none, one that
    /// receives messages.
    pub(crate) fn agent(&self, link: &StreamLink) -> &Arc<Reactor> {
        let threads = if self.agents.is_empty() { &self.rpc } else { &self.agents };
        let i = crate::Link::id(link) as usize % threads.len();
        &threads[i]
    }

    pub(crate) fn side(&self) -> &dyn Side {
        &*self.side
    }

    /// Counts a connection; `None` where there are too many.
    pub(crate) fn count(&self) -> Option<Counted> {
        self.connections.count()
    }

    /// Counts pages that are not given for want of a right tag.
    pub(crate) fn refuse(&self, pages: usize) {
        self.refused.fetch_add(pages as u64, Ordering::Relaxed);
    }

    /// Pages that were not given for want of a right tag.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The server's hello, with the ticket on a first connection and the nonce on a second one.
    pub(crate) fn welcome(&self, ticket: Ticket) -> ServerHello {
        let limits = self.settings.limits();
        ServerHello::Welcome { geometry: self.arena.geometry(), limits, ticket }
    }

    /// Makes a link of a connection whose client wants to exchange messages.
    pub(crate) fn link(
        self: &Arc<Self>,
        socket: Arc<OwnedFd>,
        counted: Counted,
    ) -> Result<(), LinkError> {
        let id = next_link();
        let peer = self.side.peer(&socket);
        let mut ticket = [0; 16];
        getrandom::fill(&mut ticket).map_err(|error| LinkError::Lost {
            peer: peer.clone(),
            reason: format!("no random numbers: {error}"),
        })?;
        let link = StreamLink::new(id, peer, ticket, Arc::clone(self), Arc::clone(&socket));
        self.tickets().insert(ticket, Arc::downgrade(&link));
        // The client sends nothing more before it has seen this, so nothing overtakes it.
        let hello = self.welcome(ticket).encode();
        super::welcome::say(&socket, &hello);
        let thread = &self.rpc[id as usize % self.rpc.len()];
        thread.adopt(Box::new(RpcConnection::new(socket, link, counted)));
        Ok(())
    }

    /// The link that has the ticket. Each ticket is good once.
    pub(crate) fn redeem(&self, ticket: &Ticket) -> Option<Arc<StreamLink>> {
        self.tickets().remove(ticket)?.upgrade()
    }

    /// Forgets what is kept of a link.
    pub(crate) fn forget(&self, link: &StreamLink) {
        self.tickets().remove(&link.ticket());
    }

    fn tickets(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Weak<StreamLink>>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

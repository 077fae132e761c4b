//! The server's side: what its threads share, and the door.

use super::adapter::{Adapter, PACKET};
use super::connection::MessageConnection;
use super::credits::{Credits, LEAST_WINDOW, SPARE};
use super::hello::{ClientHello, Refusal, Welcome, Wish};
use super::link::VerbsLink;
use super::reads::READ_DEPTH;
use super::wire::{INLINE, MessagePair, SENDS, Wire};
use crate::arena::Arena;
use crate::complaints;
use crate::engine::{Capabilities, LinkError, Service};
use crate::exports::Exports;
use crate::lock;
use crate::party::Party;
use crate::rdma::{
    self, Block, Cap, Channel, CompletionQueue, ConnectionParameters, Device, DeviceEvent, Event,
    EventChannel, EventKind, Id, IdKey, Parts, QueuePair, Tuning,
};
use crate::reactor::{Reactor, Room, Source, Step};
use crate::stream::Settings;
use crate::stream::hello::Ticket;
use crate::stream::memory::ReceiveMemory;
use crate::stream::server::{Connections, Counted};
use foldhash::HashMap;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Receives that a client may use before it has a session.
pub(super) const FIRST_WINDOW: u32 = 4;
/// Receives that a client may use once it may read, where there are enough.
pub(super) const WINDOW: u32 = 32;
/// Connections that are asked for before others get their turn.
const AT_ONCE: usize = 64;

/// The queue pair of a client's READs, at the server: it sends nothing, and one receive that never
/// comes tells of its failure.
pub(super) type ReadPair = QueuePair<(), Block>;

/// A server's shared state.
pub(super) struct Server {
    pub(super) settings: Settings,
    pub(super) service: Arc<dyn Service>,
    pub(super) arena: Arc<Arena>,
    pub(super) capabilities: Capabilities,
    pub(super) exports: Arc<Exports<VerbsLink>>,
    threads: Vec<Arc<Reactor>>,
    /// The thread that makes connections, which takes its time, and reads what devices tell.
    door: Arc<Reactor>,
    adapters: Mutex<BTreeMap<Device, Arc<Adapter>>>,
    tickets: Mutex<HashMap<Ticket, Weak<VerbsLink>>>,
    /// By the connections of the connection manager.
    links: Mutex<HashMap<IdKey, Weak<VerbsLink>>>,
    connections: Connections,
    /// Bytes of messages that wait for clients.
    untaken: Arc<AtomicUsize>,
    pub(super) memory: Arc<ReceiveMemory>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("engine", &"verbs").finish_non_exhaustive()
    }
}

impl Server {
    /// Starts the threads.
    pub(super) fn start(
        settings: Settings,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
        capabilities: Capabilities,
    ) -> std::io::Result<Arc<Self>> {
        let mut server = Self {
            door: Reactor::start("dafs-verbs-door", settings.spin)?,
            connections: Connections::new(settings.max_connections),
            untaken: Arc::default(),
            memory: ReceiveMemory::new(settings.receive_memory),
            settings,
            service,
            arena,
            capabilities,
            exports: Arc::default(),
            threads: Vec::new(),
            adapters: Mutex::default(),
            tickets: Mutex::default(),
            links: Mutex::default(),
        };
        for i in 0..server.settings.rpc_threads.max(1) {
            match Reactor::start(&format!("dafs-verbs-{i}"), server.settings.spin) {
                Ok(thread) => server.threads.push(thread),
                Err(error) => {
                    server.stop();
                    return Err(error);
                }
            }
        }
        Ok(Arc::new(server))
    }

    /// Begins to take connections.
    pub(super) fn open(self: &Arc<Self>, listener: Id) {
        self.door.adopt(Box::new(Door { listener, server: Arc::clone(self) }));
    }

    /// Ends all links and threads, and takes all rights in memory back.
    pub(super) fn stop(&self) {
        self.door.stop();
        self.threads.iter().for_each(|thread| thread.stop());
        self.adapters().iter().for_each(|adapter| adapter.close());
    }

    /// The first of the threads, for timers.
    pub(super) fn clock(&self) -> &Arc<Reactor> {
        &self.threads[0]
    }

    /// What there is on a device.
    pub(super) fn adapter(self: &Arc<Self>, device: Device) -> rdma::Result<Arc<Adapter>> {
        let mut adapters = lock(&self.adapters);
        if let Some(adapter) = adapters.get(&device) {
            return Ok(Arc::clone(adapter));
        }
        let adapter = Arc::new(Adapter::new(device, self.settings.receives)?);
        adapters.insert(device, Arc::clone(&adapter));
        self.door.adopt(Box::new(Watch { device, server: Arc::downgrade(self) }));
        Ok(adapter)
    }

    /// Ends all that there is on a device, which is gone.
    fn lose(&self, device: Device) {
        let adapter = lock(&self.adapters).remove(&device);
        let links: Vec<_> = lock(&self.links).values().filter_map(Weak::upgrade).collect();
        for link in links.iter().filter(|link| link.adapter().device == device) {
            link.fail(link.lost("the RDMA device is gone"));
        }
        if let Some(adapter) = adapter {
            adapter.close();
        }
    }

    /// Sees to it that no more bytes wait for clients than may: of the client for which most do, the link
    /// goes for which most do.
    pub(super) fn make_room(&self) {
        let most = self.settings.send_memory;
        if self.untaken.load(Ordering::Relaxed) <= most {
            return;
        }
        let mut waiting = BTreeMap::new();
        let mut parties: HashMap<Party, usize> = HashMap::default();
        let links: Vec<_> = lock(&self.links).values().filter_map(Weak::upgrade).collect();
        for link in links.into_iter().filter(|link| !link.is_closing()) {
            let bytes = link.wire.queued();
            // A link is there once for each of its connections.
            if bytes > 0 && waiting.insert(link.number(), (bytes, Arc::clone(&link))).is_none() {
                *parties.entry(link.party()).or_default() += bytes;
            }
        }
        let mut all: usize = parties.values().sum();
        while all > most {
            let richest = parties.iter().max_by_key(|(_, bytes)| **bytes).map(|(party, _)| *party);
            let theirs = waiting.values().filter(|(_, link)| Some(link.party()) == richest);
            let found = theirs.max_by_key(|(bytes, _)| *bytes).map(|(_, link)| link.number());
            let Some((bytes, link)) = found.and_then(|number| waiting.remove(&number)) else {
                return;
            };
            if let Some(theirs) = richest.and_then(|richest| parties.get_mut(&richest)) {
                *theirs -= bytes;
            }
            all -= bytes;
            link.fail(link.lost(format_args!(
                "the client does not take its replies: more than {most} bytes wait for all clients"
            )));
        }
    }

    /// What there is on all devices that clients came by.
    pub(super) fn adapters(&self) -> Vec<Arc<Adapter>> {
        lock(&self.adapters).values().cloned().collect()
    }

    /// Whose a connection is.
    pub(super) fn know(&self, id: IdKey, link: &Arc<VerbsLink>) {
        lock(&self.links).insert(id, Arc::downgrade(link));
    }

    /// Forgets what is kept of a link.
    pub(super) fn forget(&self, ticket: &Ticket, ids: impl IntoIterator<Item = IdKey>) {
        lock(&self.tickets).remove(ticket);
        let mut links = lock(&self.links);
        for id in ids {
            links.remove(&id);
        }
    }

    /// Answers a client that wants to connect.
    fn answer(self: &Arc<Self>, id: Id, hello: &[u8], depths: (u8, u8)) {
        let answer = ClientHello::decode(hello).and_then(|hello| {
            let counted = self.connections.count().ok_or(Refusal::Full)?;
            match hello.wish {
                Wish::Messages => self.link(&id, hello, counted),
                Wish::Reads(ticket) => self.attach(&id, ticket, hello, depths, counted),
            }
        });
        match answer {
            Ok(admitted) => admitted(id),
            Err(refusal) => {
                tracing::debug!(peer = ?id.peer(), %refusal, "connection refused");
                // Fails only where the client is gone.
                let _ = id.reject(&refusal.encode());
            }
        }
    }

    /// Prepares a link for a client that wants to exchange messages.
    fn link(
        self: &Arc<Self>,
        id: &Id,
        hello: ClientHello,
        counted: Counted,
    ) -> Result<Box<dyn FnOnce(Id)>, Refusal> {
        if u32::from(hello.window) < LEAST_WINDOW {
            return Err(Refusal::NotOurs);
        }
        let mut ticket = [0; 16];
        getrandom::fill(&mut ticket).map_err(|_| Refusal::Resources)?;
        let peer = id.peer().map_or_else(|| "an unknown address".to_owned(), |at| at.to_string());
        let made = self.make_link(id, hello, ticket, peer.clone());
        let (link, pair, spare) = made.map_err(|error| {
            if let Some(untold) = complaints::take("connection refused", &peer) {
                tracing::warn!(%error, peer, untold, "connection refused");
            }
            Refusal::Resources
        })?;
        let server = Arc::clone(self);
        Ok(Box::new(move |id: Id| {
            lock(&server.tickets).insert(ticket, Arc::downgrade(&link));
            server.know(id.key(), &link);
            link.keep(id);
            let thread = &server.threads[link.number() as usize % server.threads.len()];
            thread.adopt(Box::new(MessageConnection::new(link, pair, spare, counted)));
        }))
    }

    fn make_link(
        self: &Arc<Self>,
        id: &Id,
        hello: ClientHello,
        ticket: Ticket,
        peer: String,
    ) -> rdma::Result<(Arc<VerbsLink>, Arc<MessagePair>, Block)> {
        let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
        let device = id.device().ok_or_else(|| rdma::Error::new("rdma_get_cm_event", gone))?;
        let adapter = self.adapter(device)?;
        let channel = Channel::new(device)?;
        let sends = CompletionQueue::new(device, SENDS + 1, Some(&channel))?;
        let most = WINDOW + SPARE + 1;
        let receives = CompletionQueue::new(device, most, Some(&channel))?;
        let parts = adapter.info.parts.clamp(1, Parts::MOST as u32);
        let cap = Cap { sends: SENDS, receives: most, parts, inline: INLINE };
        let pair = Arc::new(MessagePair::new(&adapter.messages, &sends, &receives, cap)?);
        let mtu = adapter.info.mtu.min(hello.mtu.max(256).into());
        let tuning = Tuning {
            remote_read: false,
            remote_write: false,
            reads_in: 1,
            reads_out: adapter.info.reads_out.min(READ_DEPTH),
            ..tuning(mtu)
        };
        pair.init(id, &tuning)?;
        for _ in 0..FIRST_WINDOW + SPARE {
            pair.post_receive(adapter.receive()?)?;
        }
        let spare = adapter.receive()?;
        pair.connect(id, &tuning)?;
        let wire = Wire::new(
            Arc::clone(&pair),
            Credits::new(FIRST_WINDOW, hello.window.into()),
            Arc::clone(&adapter.packets),
            Some(adapter.transfers.seat()),
            Arc::clone(&self.untaken),
            PACKET,
            peer.clone(),
        );
        let limits = self.settings.limits();
        let welcome = Welcome {
            mtu: mtu as u16,
            window: FIRST_WINDOW as u16,
            limits,
            ticket,
            packet: PACKET as u32,
            geometry: self.arena.geometry(),
        };
        id.accept(ConnectionParameters {
            pair: pair.number(),
            reads_in: tuning.reads_in,
            reads_out: tuning.reads_out,
            private: &welcome.encode(),
        })?;
        let link = VerbsLink::new(self, adapter, channel, wire, ticket, peer, hello.limits);
        Ok((link, pair, spare))
    }

    /// Prepares the queue pair for the READs of the link that has the ticket.
    fn attach(
        self: &Arc<Self>,
        id: &Id,
        ticket: Ticket,
        hello: ClientHello,
        depths: (u8, u8),
        counted: Counted,
    ) -> Result<Box<dyn FnOnce(Id)>, Refusal> {
        // Each ticket is good once.
        let link = lock(&self.tickets).remove(&ticket).and_then(|link| link.upgrade());
        let link = link.filter(|link| id.device() == Some(link.adapter().device));
        let link = link.ok_or(Refusal::UnknownTicket)?;
        let reads = link.prepare_reads(id, hello, depths).map_err(|error| {
            tracing::warn!(%error, ?link, "no queue pair for READs");
            Refusal::Resources
        })?;
        Ok(Box::new(move |id: Id| link.attach(reads, id, counted)))
    }

    /// What has become of a connection.
    fn tell(self: &Arc<Self>, event: Event) {
        match event.kind {
            EventKind::Request { id, depths } => self.answer(id, &event.private, depths),
            EventKind::Disconnected | EventKind::Rejected | EventKind::Failed(_) => {
                let link = lock(&self.links).get(&event.id).and_then(Weak::upgrade);
                if let Some(link) = link {
                    link.fail(link.lost("closed by the client"));
                }
            }
            _ => {}
        }
    }
}

/// How queue pairs are connected, but for rights and depths.
pub(super) fn tuning(mtu: u32) -> Tuning {
    Tuning {
        remote_read: false,
        remote_write: false,
        // 268 ms, seven times: a link that is down for a second is borne, and one that stays down is
        // given up after two.
        timeout: 16,
        retries: 6,
        not_ready_retries: 6,
        // 640 us. Nobody waits for it where credits are kept.
        not_ready_timer: 12,
        mtu,
        reads_out: 1,
        reads_in: 1,
        packets: None,
    }
}

/// Where connections are asked for.
struct Door {
    listener: Id,
    server: Arc<Server>,
}

impl Door {
    fn channel(&self) -> &Arc<EventChannel> {
        self.listener.channel()
    }
}

impl Source for Door {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.channel().as_fd()
    }

    fn readable(&mut self, _room: &mut Room<'_>) -> Step {
        for _ in 0..AT_ONCE {
            match self.channel().next() {
                Ok(Some(event)) => self.server.tell(event),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot take connections for the moment");
                    break;
                }
            }
        }
        Step::Idle
    }

    fn end(&mut self, _stopping: bool) {}
}

/// What happens to a device.
struct Watch {
    device: Device,
    server: Weak<Server>,
}

impl Source for Watch {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn readable(&mut self, _room: &mut Room<'_>) -> Step {
        let device = self.device.name();
        for _ in 0..AT_ONCE {
            let event = match self.device.next_event() {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(error) => {
                    tracing::error!(%error, device, "an RDMA device tells nothing any more");
                    DeviceEvent::Gone
                }
            };
            // As often as others can make it happen.
            let untold = complaints::take("device", &device);
            match event {
                DeviceEvent::Gone => {
                    tracing::error!(
                        device,
                        "an RDMA device is gone: its clients are disconnected, and none can connect \
                         by it until it is back and this server is started again"
                    );
                    if let Some(server) = self.server.upgrade() {
                        server.lose(self.device);
                    }
                    return Step::Close;
                }
                event if untold.is_none() => tracing::debug!(device, ?event, "an RDMA device"),
                DeviceEvent::PortDown => {
                    tracing::warn!(device, untold, "a port of an RDMA device is down");
                }
                DeviceEvent::PortUp => {
                    tracing::info!(device, untold, "a port of an RDMA device is up");
                }
                DeviceEvent::Other(event) => {
                    tracing::info!(device, event, untold, "an RDMA device tells of an event");
                }
            }
        }
        Step::Idle
    }

    fn end(&mut self, _stopping: bool) {}
}

/// For a listener that could not be opened.
pub(super) fn cannot_listen(address: &str, reason: impl fmt::Display) -> LinkError {
    LinkError::Listen { address: address.to_owned(), reason: reason.to_string() }
}

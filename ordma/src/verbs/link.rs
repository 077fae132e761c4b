//! The server's side of one client's connection.
//!
//! Whatever makes a system call of the device is done on the thread of the link's event loop. The
//! kernel takes writes to a device's descriptor only from threads with the very credential that opened
//! it (`ib_safe_file_access`), and those of a file server act as its users now and then. What other
//! threads want is queued, and the event loop told.

use super::adapter::Adapter;
use super::gather::Gather;
use super::hello::{ClientHello, Welcome};
use super::packet::{Piece, Record};
use super::reads::READ_DEPTH;
use super::rearms::{Asked, Rearms};
use super::server::{ReadPair, Server, tuning};
use super::target::{Advert, Target};
use super::wire::{Moves, Offer, Stall, Wire, withdrawn};
use crate::ChunkId;
use crate::arena::{Chunk, Slot, copy_slots};
use crate::complaints;
use crate::engine::{Capabilities, Link, LinkError, ReadAccess, Tag, Transfer};
use crate::exports::Holder;
use crate::gate::{Gate, Proof};
use crate::lock;
use crate::party::{Party, PartyCell};
use crate::rdma::{self, Cap, Channel, CompletionQueue, ConnectionParameters, Id, Region, Tuning};
use crate::reactor::Registration;
use crate::stream::frame::Limits;
use crate::stream::hello::Ticket;
use crate::stream::server::{Counted, next_link};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Most buffers that a client may have advertised at a time.
pub(super) const MOST_ADVERTS: usize = 4096;
/// Transfers that wait for the client to say where a buffer is.
const MOST_EARLY: usize = 1024;

/// The server's side of one client's connection.
pub(super) struct VerbsLink {
    id: u64,
    peer: String,
    party: PartyCell,
    ticket: Ticket,
    server: Arc<Server>,
    adapter: Arc<Adapter>,
    pub(super) channel: Arc<Channel>,
    pub(super) wire: Wire,
    /// What the client takes in one message.
    limits: Limits,
    connection: Mutex<Option<Id>>,
    pub(super) registration: OnceLock<Registration>,
    /// Something was queued by another thread.
    wanted: AtomicBool,
    /// Rights or chunks have changed.
    stale: AtomicBool,
    /// Chunks that another thread wanted to place pages of, and that are not registered for it.
    unregistered: Mutex<BTreeMap<ChunkId, Arc<Chunk>>>,
    closing: AtomicBool,
    reason: OnceLock<LinkError>,
    adverts: Mutex<Adverts>,
    reads: Mutex<ReadState>,
}

/// Buffers of the client. Tags count up, so that one that is not there was withdrawn or is still to
/// come.
#[derive(Debug, Default)]
pub(super) struct Adverts {
    there: BTreeMap<Tag, Arc<Advert>>,
    last: Tag,
    /// Transfers to or from buffers that are still to come, and since when they wait.
    early: Vec<(Tag, Early, Instant)>,
    closed: bool,
}

#[derive(Debug)]
pub(super) enum Early {
    Place(Vec<u8>, Transfer),
    Fetch(u64, Vec<u8>, Transfer),
}

impl Early {
    fn transfer(&self) -> &Transfer {
        match self {
            Self::Place(_, transfer) | Self::Fetch(_, _, transfer) => transfer,
        }
    }

    /// Ends without a buffer: what was to be placed is not, which the client sees.
    fn give_up(self) {
        match self {
            Self::Place(data, transfer) => transfer.complete(Ok(data)),
            Self::Fetch(_, _, transfer) => transfer.complete(Err(withdrawn())),
        }
    }
}

impl Adverts {
    /// A buffer is there; the transfers that waited for it. The error says what is wrong with it.
    pub(super) fn add(&mut self, tag: Tag, advert: &Arc<Advert>) -> Result<Vec<Early>, String> {
        if tag <= self.last {
            return Err(format!("buffer {tag} is advertised after {}", self.last));
        }
        if self.there.len() >= MOST_ADVERTS {
            return Err(format!("more than {MOST_ADVERTS} buffers are advertised at a time"));
        }
        self.last = tag;
        self.there.insert(tag, Arc::clone(advert));
        Ok(self.early.extract_if(.., |(of, ..)| *of == tag).map(|(_, early, _)| early).collect())
    }

    /// The transfers whose buffers have not come for so long.
    fn overdue(&mut self, now: Instant, patience: Duration) -> Vec<Early> {
        let old = |since: Instant| now.saturating_duration_since(since) >= patience;
        self.early.extract_if(.., |(_, _, since)| old(*since)).map(|(_, early, _)| early).collect()
    }

    /// It is not any more; whether it was.
    pub(super) fn remove(&mut self, tag: Tag) -> bool {
        let advert = self.there.remove(&tag);
        advert.inspect(|advert| advert.withdraw()).is_some()
    }
}

/// What is known of the client's READs.
struct ReadState {
    gate: Option<Gate>,
    /// What was said before the queue pair was there.
    access: Option<Arc<ReadAccess>>,
    proof: Option<Proof>,
    /// The client was told that it may read.
    allowed: bool,
    /// It was, once.
    was_allowed: bool,
    /// Chunks that it was told of and has not let go.
    held: BTreeSet<ChunkId>,
    side: Option<ReadSide>,
    rearms: Rearms,
}

/// The queue pair of a client's READs.
pub(super) struct ReadSide {
    pair: ReadPair,
    tuning: Tuning,
    queue: Arc<CompletionQueue>,
    nonce: Ticket,
    id: Option<Id>,
    _counted: Option<Counted>,
}

impl fmt::Debug for VerbsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("peer", &self.peer).finish()
    }
}

impl VerbsLink {
    pub(super) fn new(
        server: &Arc<Server>,
        adapter: Arc<Adapter>,
        channel: Arc<Channel>,
        wire: Wire,
        ticket: Ticket,
        peer: String,
        limits: Limits,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            id: next_link(),
            party: PartyCell::of_peer(&peer),
            peer,
            ticket,
            server: Arc::clone(server),
            adapter,
            channel,
            wire,
            limits,
            connection: Mutex::default(),
            registration: OnceLock::new(),
            wanted: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            unregistered: Mutex::default(),
            closing: AtomicBool::new(false),
            reason: OnceLock::new(),
            adverts: Mutex::default(),
            reads: Mutex::new(ReadState {
                gate: None,
                access: None,
                proof: None,
                allowed: false,
                was_allowed: false,
                held: BTreeSet::new(),
                side: None,
                rearms: Rearms::new(Instant::now()),
            }),
        });
        // Known before it is asked what it may read, so that no export is missed in between.
        server.exports.join(link.id, Arc::clone(&link));
        link
    }

    pub(super) fn number(&self) -> u64 {
        self.id
    }

    /// Whose share of the server's memory it takes.
    pub(super) fn party(&self) -> Party {
        self.party.get()
    }

    pub(super) fn adapter(&self) -> &Arc<Adapter> {
        &self.adapter
    }

    pub(super) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Keeps the connection, to end it.
    pub(super) fn keep(&self, id: Id) {
        *lock(&self.connection) = Some(id);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether the client has been let in.
    pub(super) fn reads_allowed(&self) -> bool {
        lock(&self.reads).access.is_some()
    }

    /// Ends the connection, for the first reason that is given. The event loop does the rest.
    pub(super) fn fail(&self, reason: LinkError) {
        let _ = self.reason.set(reason);
        self.closing.store(true, Ordering::Release);
        if let Some(registration) = self.registration.get() {
            registration.poke();
        }
    }

    /// Why the connection ended.
    pub(super) fn reason(&self) -> LinkError {
        self.reason.get().cloned().unwrap_or_else(|| self.lost("no reason was given"))
    }

    pub(super) fn lost(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }

    pub(super) fn broken(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Protocol { peer: self.peer.clone(), reason: reason.to_string() }
    }

    /// Whether this is the event loop's thread.
    fn is_here(&self) -> bool {
        self.registration.get().is_some_and(Registration::is_here)
    }

    /// Has the event loop do what is queued.
    fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        if let Some(registration) = self.registration.get() {
            registration.poke();
        }
    }

    /// Sends what is queued, here or by the event loop.
    fn flush(&self) {
        if self.is_here() { self.sent(self.wire.flush()) } else { self.want() }
    }

    /// Does what others want; whether they did. Called by the event loop.
    pub(super) fn do_wanted(&self) -> Result<bool, LinkError> {
        let wanted = self.wanted.swap(false, Ordering::AcqRel);
        if wanted {
            self.refresh();
            for chunk in std::mem::take(&mut *lock(&self.unregistered)).into_values() {
                self.make_source(&chunk);
            }
            self.wire.flush()?;
        }
        Ok(wanted)
    }

    /// Deals with what came of sending.
    fn sent(&self, result: Result<Stall, LinkError>) {
        match result {
            // The event loop has to look when something completes, or to try again.
            Ok(Stall::Completions | Stall::Buffers) => self.want(),
            Ok(Stall::Done | Stall::Credits) => {}
            Err(error) => self.fail(error),
        }
    }

    /// Makes the queue pair for the client's READs, and accepts.
    pub(super) fn prepare_reads(
        &self,
        id: &Id,
        hello: ClientHello,
        depths: (u8, u8),
    ) -> rdma::Result<ReadSide> {
        let adapter = &self.adapter;
        let queue = CompletionQueue::new(adapter.device, 4, Some(&self.channel))?;
        let cap = Cap { sends: 1, receives: 1, parts: 1, inline: 0 };
        let pair = ReadPair::new(&adapter.chunks, &queue, &queue, cap)?;
        let mtu = adapter.info.mtu.min(hello.mtu.max(256).into());
        let reads_in = adapter.info.reads_in.min(READ_DEPTH).min(depths.0.max(1));
        let tuning = Tuning { reads_in, ..tuning(mtu) };
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)
            .map_err(|error| rdma::Error::new("getrandom", std::io::Error::other(error)))?;
        let side = ReadSide { pair, tuning, queue, nonce, id: None, _counted: None };
        side.begin(id, &tuning, adapter)?;
        let welcome = Welcome {
            mtu: mtu as u16,
            window: 0,
            limits: self.server.settings.limits(),
            ticket: nonce,
            packet: super::adapter::PACKET as u32,
            geometry: self.server.arena.geometry(),
        };
        id.accept(ConnectionParameters {
            pair: side.pair.number(),
            reads_in,
            reads_out: 1,
            private: &welcome.encode(),
        })?;
        Ok(side)
    }

    /// Takes the queue pair for the client's READs.
    pub(super) fn attach(self: &Arc<Self>, mut side: ReadSide, id: Id, counted: Counted) {
        let mut reads = lock(&self.reads);
        // Who tears the link down comes for this lock afterwards, and then forgets what is there.
        if self.is_closing() || reads.side.is_some() {
            return;
        }
        self.server.know(id.key(), self);
        let mut gate = Gate::new(side.nonce);
        // What was said of it before there was a gate.
        let allowed = gate.allow(reads.access.clone());
        let proved = reads.proof.take().map_or(Ok(()), |proof| gate.prove(proof));
        (side.id, side._counted) = (Some(id), Some(counted));
        (reads.gate, reads.side) = (Some(gate), Some(side));
        self.stale.store(true, Ordering::Release);
        drop(reads);
        match allowed.and(proved) {
            Ok(()) => self.want(),
            Err(wrong) => self.fail(self.broken(wrong)),
        }
    }

    /// Queues what the client has to be told of rights and chunks, where these have changed. To register
    /// a chunk takes the device long, so that others have their turn before the next one.
    fn refresh(&self) {
        if !self.stale.swap(false, Ordering::AcqRel) {
            return;
        }
        let registry = self.server.exports.lock();
        let mut reads = lock(&self.reads);
        self.update(&mut reads);
        let ReadState { allowed: true, held, .. } = &mut *reads else { return };
        let mut registered = false;
        for chunk in registry.chunks() {
            let is_new = !self.adapter.was_exported(chunk.id());
            if is_new && registered {
                self.stale.store(true, Ordering::Release);
                self.want();
                return;
            }
            registered |= is_new;
            self.show(held, chunk);
        }
    }

    /// Gives or takes the right to read, where that has changed.
    fn update(&self, reads: &mut ReadState) {
        let allow = reads.gate.as_ref().is_some_and(|gate| gate.access().is_some());
        if reads.allowed == allow {
            return;
        }
        reads.allowed = allow;
        reads.was_allowed |= allow;
        let Some(side) = &mut reads.side else { return };
        side.tuning.remote_read = allow;
        if let Err(error) = side.pair.allow(allow, false) {
            // It has failed before, and gets the right, or does not, when it is brought back.
            tracing::debug!(%error, link = self.id, "rights of a queue pair that is down");
        }
        if allow {
            self.wire.record(Record::Allow);
        } else {
            reads.held.clear();
            self.wire.record(Record::Revoke);
        }
    }

    fn show(&self, held: &mut BTreeSet<ChunkId>, chunk: &Arc<Chunk>) {
        if let Some(remote) = self.adapter.export(chunk)
            && held.insert(chunk.id())
        {
            self.wire.record(Record::Chunk(chunk.id(), remote));
        }
    }

    /// Acts upon what the client's engine says. The error says what is wrong with it.
    pub(super) fn hear(&self, record: Record) -> Result<(), String> {
        match record {
            Record::Advert(tag, pieces) => self.advertised(tag, pieces),
            Record::Withdraw(tag) => {
                lock(&self.adverts).remove(tag);
                self.wire.withdraw();
                self.wire.record(Record::Withdrawn(tag));
                Ok(())
            }
            Record::Proof(proof) => {
                let mut reads = lock(&self.reads);
                match &mut reads.gate {
                    Some(gate) => gate.prove(proof).map_err(|wrong| wrong.to_string())?,
                    None => reads.proof = Some(proof),
                }
                drop(reads);
                self.stale.store(true, Ordering::Release);
                self.refresh();
                self.flush();
                Ok(())
            }
            Record::LetGo(chunk) => {
                lock(&self.reads).held.remove(&chunk);
                self.server.exports.let_go(self.id, Some(chunk));
                Ok(())
            }
            Record::Rearm(life, packet) => self.ask_rearm((life, packet)),
            other => Err(format!("a server's record: {other:?}")),
        }
    }

    fn advertised(&self, tag: Tag, pieces: Vec<Piece>) -> Result<(), String> {
        let advert = Advert::new(pieces);
        let early = lock(&self.adverts).add(tag, &advert)?;
        for early in early {
            match early {
                Early::Place(data, transfer) => {
                    self.place(tag, &advert, Offer::Bytes(data), &transfer);
                }
                Early::Fetch(offset, buffer, transfer) => {
                    self.fetch(tag, &advert, offset, buffer, &transfer);
                }
            }
        }
        Ok(())
    }

    /// Where a buffer is; `None` where the transfer waits for it, or has ended for want of it.
    fn find(&self, tag: Tag, early: Early) -> Option<(Arc<Advert>, Early)> {
        let mut adverts = lock(&self.adverts);
        if let Some(advert) = adverts.there.get(&tag) {
            return Some((Arc::clone(advert), early));
        }
        let waits = tag > adverts.last && adverts.early.len() < MOST_EARLY && !adverts.closed;
        if waits {
            early.transfer().advance(0);
            adverts.early.push((tag, early, Instant::now()));
            drop(adverts);
            // Not for ever.
            self.want();
            return None;
        }
        let closed = adverts.closed;
        drop(adverts);
        match early {
            early if !closed => early.give_up(),
            Early::Place(_, transfer) | Early::Fetch(_, _, transfer) => {
                transfer.complete(Err(self.reason()));
            }
        }
        None
    }

    /// Whether transfers wait for buffers that are still to come.
    pub(super) fn waits(&self) -> bool {
        !lock(&self.adverts).early.is_empty()
    }

    /// Ends the transfers that wait for the client in vain: for a buffer that it does not name, or behind
    /// messages that it does not take, where nothing was sent since `before`. Whether to look again.
    ///
    /// # Errors
    /// As for [`Wire::give_up`].
    pub(super) fn give_up(&self, before: Moves, patience: Duration) -> Result<bool, LinkError> {
        let overdue = lock(&self.adverts).overdue(Instant::now(), patience);
        overdue.into_iter().for_each(Early::give_up);
        Ok(self.wire.give_up(before)? || self.waits())
    }

    /// The slots' bytes as the device reads them; `None` where a chunk is not registered for that.
    fn gather(&self, slots: &[Slot]) -> Option<Gather> {
        let mut found = Vec::with_capacity(slots.len());
        for slots in slots.chunk_by(|a, b| a.chunk.id() == b.chunk.id()) {
            let region = self.source(&slots[0].chunk)?;
            found.extend(slots.iter().map(|slot| (Arc::clone(&region), slot.index)));
        }
        Some(Gather::new(self.server.arena.geometry(), &found))
    }

    /// The registration by which pages of a chunk are placed. Where there is none it is made, here or
    /// by the event loop for the next time.
    fn source(&self, chunk: &Arc<Chunk>) -> Option<Arc<Region>> {
        let source = self.adapter.source(chunk.id());
        if source.is_some() || self.is_here() {
            return source.or_else(|| self.make_source(chunk));
        }
        lock(&self.unregistered).insert(chunk.id(), Arc::clone(chunk));
        self.want();
        None
    }

    fn make_source(&self, chunk: &Arc<Chunk>) -> Option<Arc<Region>> {
        // Locked meanwhile, so that no chunk is registered that was retired before.
        let registry = self.server.exports.lock();
        if registry.has(chunk.id()) { self.adapter.make_source(chunk) } else { None }
    }

    fn place(&self, tag: Tag, advert: &Arc<Advert>, offer: Offer<'_>, transfer: &Transfer) {
        transfer.advance(0);
        if advert.room() < offer.len() as u64 {
            return transfer.complete(Err(too_small(tag, advert.room(), offer.len())));
        }
        let target = Target::new(advert, 0);
        let here = self.is_here();
        match self.wire.place(tag, target, offer, transfer, here) {
            Ok(()) if here => {}
            Ok(()) => self.want(),
            Err(error) => self.fail(error),
        }
    }

    fn fetch(
        &self,
        tag: Tag,
        advert: &Arc<Advert>,
        offset: u64,
        buffer: Vec<u8>,
        transfer: &Transfer,
    ) {
        transfer.advance(0);
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > advert.room()) {
            return transfer.complete(Err(too_small(tag, advert.room(), buffer.len())));
        }
        let target = Target::new(advert, offset);
        match self.wire.fetch(target, buffer, transfer, self.is_here()) {
            // Its completion has to be told, too.
            Ok(()) => self.want(),
            Err(error) => self.fail(error),
        }
    }

    /// The client wants its queue pair for READs brought back. Not before it was let in: that costs
    /// calls of the device.
    fn ask_rearm(&self, asked: Asked) -> Result<(), String> {
        let mut reads = lock(&self.reads);
        if reads.side.is_none() {
            return Err("no queue pair to bring back".to_owned());
        }
        if !reads.was_allowed {
            return Err("its READs are to be brought back before READs are allowed".to_owned());
        }
        reads.rearms.ask(asked)?;
        drop(reads);
        self.want();
        Ok(())
    }

    /// Brings the queue pair for the client's READs back, where that is due; when to look again, where
    /// it is too early.
    pub(super) fn rearm(&self) -> Option<Instant> {
        let mut reads = lock(&self.reads);
        let (life, theirs) = match reads.rearms.due(Instant::now())? {
            Ok(asked) => asked,
            Err(later) => {
                drop(reads);
                if let Some(untold) = complaints::take("READs fail", &self.peer) {
                    let (link, peer) = (self.id, &self.peer);
                    tracing::info!(link, peer, untold, "READs of the client fail again and again");
                }
                return Some(later);
            }
        };
        let side = reads.side.as_ref()?;
        let id = side.id.as_ref()?;
        let ours = fastrand::u32(..1 << 24);
        let tuning = Tuning { packets: Some((ours, theirs & 0xFF_FFFF)), ..side.tuning };
        let cycled = side.pair.reset().and_then(|flushed| {
            drop(flushed);
            side.begin(id, &tuning, &self.adapter)
        });
        drop(reads);
        match cycled {
            Ok(()) => {
                tracing::debug!(link = self.id, life, "the client's READs are brought back");
                self.wire.record(Record::Rearmed(life, ours));
                self.flush();
            }
            Err(error) => {
                self.fail(self.lost(format_args!("READs cannot be brought back: {error}")))
            }
        }
        None
    }

    /// Looks whether the queue pair for READs has failed, of which nothing else tells the server.
    pub(super) fn look_at_reads(&self) {
        let reads = lock(&self.reads);
        let Some(side) = &reads.side else { return };
        let mut found = Vec::new();
        let polled = side.queue.poll(&mut found);
        let down = found.iter().any(|completion| side.pair.received(completion).is_some());
        if let Err(error) = side.queue.arm() {
            tracing::debug!(%error, link = self.id, "a device that is gone");
        }
        drop(reads);
        if (down || polled.is_err())
            && let Some(untold) = complaints::take("READ refused", &self.peer)
        {
            let (link, peer) = (self.id, &self.peer);
            tracing::info!(link, peer, untold, "a READ of the client was refused");
        }
    }

    /// Lets go of everything: the connection is over.
    pub(super) fn tear_down(&self) {
        self.closing.store(true, Ordering::Release);
        let reason = self.reason();
        self.server.exports.let_go(self.id, None);
        self.wire.close(&reason);
        let early = {
            let mut adverts = lock(&self.adverts);
            adverts.closed = true;
            adverts.there.clear();
            std::mem::take(&mut adverts.early)
        };
        for (_, early, _) in early {
            match early {
                Early::Place(_, transfer) | Early::Fetch(_, _, transfer) => {
                    transfer.complete(Err(reason.clone()));
                }
            }
        }
        let side = lock(&self.reads).side.take();
        let connection = lock(&self.connection).take();
        let ids = [connection.as_ref(), side.as_ref().and_then(|side| side.id.as_ref())];
        self.server.forget(&self.ticket, ids.into_iter().flatten().map(Id::key));
        // The client is told, where it was not first.
        drop((side, connection));
    }
}

impl ReadSide {
    /// From RESET to connected, with the receive that tells of a failure.
    fn begin(&self, id: &Id, tuning: &Tuning, adapter: &Adapter) -> rdma::Result<()> {
        self.pair.init(id, tuning)?;
        self.pair.post_receive(adapter.canary()?)?;
        self.pair.connect(id, tuning)?;
        self.queue.arm()
    }
}

fn too_small(tag: Tag, room: u64, len: usize) -> LinkError {
    LinkError::Closed(format!("{len} bytes do not lie in buffer {tag} of {room}"))
}

impl Holder for VerbsLink {
    fn announce(&self, _: &Arc<Chunk>) {
        self.stale.store(true, Ordering::Release);
        self.want();
    }

    fn retire(&self, chunk: ChunkId) -> bool {
        let holds = lock(&self.reads).held.contains(&chunk) && !self.is_closing();
        if holds {
            self.wire.record(Record::Retire(chunk));
            self.want();
        }
        holds
    }

    /// The chunk is deregistered all the same; a READ that is under way faults, and its queue pair
    /// with it.
    fn late(&self, chunk: ChunkId, patience: Duration) {
        tracing::info!(link = self.id, chunk, ?patience, "a client did not let go of a chunk");
        lock(&self.reads).held.remove(&chunk);
    }
}

impl Link for VerbsLink {
    fn id(&self) -> u64 {
        self.id
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.server.capabilities.clone()
    }

    fn send(&self, head: &[u8], data: &[u8]) {
        if let Err(over) = self.limits.check(head.len(), data.len()) {
            self.fail(LinkError::Closed(over));
            return;
        }
        if self.is_closing() {
            return;
        }
        let here = self.is_here();
        let sent = if here {
            // What is said may be of what has just changed.
            self.refresh();
            self.wire.send(head, &[data])
        } else {
            Ok(self.wire.enqueue(head, &[data]))
        };
        match sent {
            Ok(queued) if queued > self.server.settings.send_queue => {
                self.fail(self.lost(self.server.settings.not_taken()));
            }
            Ok(0) => {}
            Ok(_) => {
                self.want();
                self.server.make_room();
            }
            Err(error) => self.fail(error),
        }
    }

    fn write_to(&self, tag: Tag, data: Vec<u8>) -> Transfer {
        let transfer = Transfer::new();
        if data.is_empty() {
            transfer.complete(Ok(data));
        } else if let Some((advert, Early::Place(data, transfer))) =
            self.find(tag, Early::Place(data, transfer.clone()))
        {
            self.place(tag, &advert, Offer::Bytes(data), &transfer);
        }
        transfer
    }

    fn place_slots(&self, tag: Tag, slots: &[Slot]) -> Transfer {
        let advert = lock(&self.adverts).there.get(&tag).cloned();
        let found = advert.and_then(|advert| Some((advert, self.gather(slots)?)));
        let Some((advert, gather)) = found.filter(|_| !slots.is_empty()) else {
            // Nothing is there yet, or any more, or it cannot be read by the device.
            return self.write_to(tag, copy_slots(slots));
        };
        let transfer = Transfer::new();
        self.place(tag, &advert, Offer::Slots(gather, slots), &transfer);
        transfer
    }

    fn read_from(&self, tag: Tag, offset: u64, buffer: Vec<u8>) -> Transfer {
        let transfer = Transfer::new();
        if buffer.is_empty() {
            transfer.complete(Ok(buffer));
        } else if let Some((advert, Early::Fetch(offset, buffer, transfer))) =
            self.find(tag, Early::Fetch(offset, buffer, transfer.clone()))
        {
            self.fetch(tag, &advert, offset, buffer, &transfer);
        }
        transfer
    }

    fn allow_reads(&self, access: Option<ReadAccess>) {
        let access = access.map(Arc::new);
        let mut reads = lock(&self.reads);
        reads.access.clone_from(&access);
        let judged = reads.gate.as_mut().map_or(Ok(()), |gate| gate.allow(access));
        drop(reads);
        self.stale.store(true, Ordering::Release);
        match judged {
            // Before this returns where it can be.
            Ok(()) if self.is_here() => self.refresh(),
            Ok(()) => self.want(),
            Err(wrong) => self.fail(self.broken(wrong)),
        }
    }

    fn belongs_to(&self, party: Party) {
        self.party.set(party);
    }

    fn close(&self, reason: &str) {
        self.fail(LinkError::Closed(reason.to_owned()));
    }
}

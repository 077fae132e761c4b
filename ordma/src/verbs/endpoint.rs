//! The client's side of a connection.

use super::adverts::Adverts;
use super::keeper::Kick;
use super::packet::{Assembled, Assembly, Packet, Record};
use super::reads::Reads;
use super::wire::{MessagePair, Stall, Wire};
use crate::client::{Core, MessageLane};
use crate::engine::{
    Capabilities, Endpoint, Interest, LinkError, PageReads, ReadBatch, Receiver, Tag,
};
use crate::lock;
use crate::rdma::{Block, Channel, Completion, Id};
use crate::region::Segment;
use crate::stream::frame::Limits;
use crate::turn::{Handled, Lane, Turn};
use dafs_keys::Secret;
use dafs_keys::tags::{ConnectionNonce, second_connection_proof};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of messages that are queued before a sender waits.
const SEND_QUEUE: usize = 4 << 20;
/// How long what was sent last may take to arrive when the connection is closed.
const LINGER: Duration = Duration::from_millis(200);

/// The lane of messages.
pub(super) struct Messages {
    peer: String,
    channel: Arc<Channel>,
    wire: Arc<Wire>,
    /// What the server takes in one message, and what this side does.
    limits: Limits,
    own_limits: Limits,
    receiver: Arc<dyn Receiver>,
    receiving: Mutex<Receiving>,
    adverts: Adverts,
    reads: Arc<Reads>,
    nonce: ConnectionNonce,
    proved: AtomicBool,
    /// Threads that wait for credits.
    waiting: AtomicUsize,
    connection: Mutex<Option<Id>>,
}

struct Receiving {
    pair: Option<Arc<MessagePair>>,
    assembly: Assembly,
    /// Posted in place of a packet that has come, before that is handled.
    spare: Option<Block>,
    completions: Vec<Completion>,
    armed: bool,
    /// What was found when the queue was armed.
    early: Handled,
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What a connection is made of.
pub(super) struct Parts {
    pub(super) peer: String,
    pub(super) channel: Arc<Channel>,
    pub(super) pair: Arc<MessagePair>,
    pub(super) wire: Arc<Wire>,
    pub(super) limits: Limits,
    pub(super) own_limits: Limits,
    pub(super) receiver: Arc<dyn Receiver>,
    pub(super) spare: Block,
    pub(super) adverts: Adverts,
    pub(super) reads: Arc<Reads>,
    pub(super) nonce: ConnectionNonce,
    pub(super) connection: Id,
}

impl Messages {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { peer, channel, pair, wire, limits, own_limits, receiver, .. } = parts;
        let Parts { spare, adverts, reads, nonce, connection, .. } = parts;
        Self {
            peer,
            channel,
            wire,
            limits,
            own_limits,
            receiver,
            receiving: Mutex::new(Receiving {
                pair: Some(pair),
                assembly: Assembly::default(),
                spare: Some(spare),
                completions: Vec::new(),
                armed: false,
                early: Handled::default(),
            }),
            adverts,
            reads,
            nonce,
            proved: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            connection: Mutex::new(Some(connection)),
        }
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Shows that the queue pair for READs is the session's. Once only.
    fn prove(&self, connection: &Secret) {
        if !self.proved.swap(true, Ordering::Relaxed) {
            self.wire.record(Record::Proof(second_connection_proof(connection, &self.nonce)));
        }
    }

    fn broken(&self, reason: impl fmt::Display) -> LinkError {
        LinkError::Protocol { peer: self.peer.clone(), reason: reason.to_string() }
    }

    /// Takes what has come.
    fn take(&self, receiving: &mut Receiving) -> Result<Handled, LinkError> {
        let mut handled = std::mem::take(&mut receiving.early);
        let Some(pair) = receiving.pair.clone() else { return Ok(handled) };
        let mut completions = std::mem::take(&mut receiving.completions);
        completions.clear();
        let found = pair.receive_queue().poll(&mut completions);
        let found = found.map_err(|error| self.lost(&error))?;
        for completion in &completions {
            let Some(mut block) = pair.received(completion) else { continue };
            if !completion.status.is_success() {
                // What was sent tells more than that all receives are flushed.
                let cause = self.wire.progress().err();
                return Err(cause.unwrap_or_else(|| self.lost(&completion.status)));
            }
            // First, so that no credit is given for a receive that is not there.
            if let Some(spare) = receiving.spare.take() {
                pair.post_receive(spare).map_err(|error| self.lost(&error))?;
            }
            block.set_len(completion.len as usize);
            let progress = self.handle(&mut receiving.assembly, &block);
            block.set_len(block.capacity());
            receiving.spare = Some(block);
            handled.progress |= progress.map_err(|reason| self.broken(reason))?;
        }
        receiving.completions = completions;
        if found > 0 {
            self.wire.progress()?;
            // Those who wait for credits look whether there are some.
            handled.progress |= self.waiting.load(Ordering::Relaxed) > 0;
            handled.more = true;
        }
        Ok(handled)
    }

    /// Handles a packet; whether a message came with it.
    fn handle(&self, assembly: &mut Assembly, block: &Block) -> Result<bool, String> {
        let packet = Packet::decode(block.bytes()).map_err(|bad| bad.to_string())?;
        let told = self.wire.told(packet.header.told, packet.has_content(), true);
        told.map_err(|bad| bad.to_string())?;
        for record in packet.records() {
            self.hear(record.map_err(|bad| bad.to_string())?)?;
        }
        match assembly.take(&packet, self.own_limits)? {
            Assembled::Nothing => return Ok(false),
            Assembled::Here(head, data) => self.receiver.message(head, data),
            Assembled::Gathered(bytes, head) => {
                let (head, data) = bytes.split_at(head);
                self.receiver.message(head, data);
            }
        }
        Ok(true)
    }

    /// Acts upon what the server's engine says.
    fn hear(&self, record: Record) -> Result<(), String> {
        match record {
            Record::Chunk(id, remote) => self.reads.chunks(|chunks| chunks.add(id, remote))?,
            Record::Retire(id) => self.reads.leave(id),
            Record::Allow => self.reads.allow(),
            Record::Revoke => self.reads.chunks(|chunks| chunks.revoke()),
            Record::Placed(tag, len) => self.adverts.placed(tag, len),
            Record::Withdrawn(tag) => self.adverts.withdrawn(tag),
            Record::Rearmed(life, packet) => self.reads.rearmed(life, packet)?,
            other => return Err(format!("a client's record: {other:?}")),
        }
        Ok(())
    }
}

impl Lane for Messages {
    fn socket(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn receive(&self) -> Result<Handled, LinkError> {
        self.take(&mut lock(&self.receiving))
    }

    fn arm(&self) -> Result<bool, LinkError> {
        let mut receiving = lock(&self.receiving);
        let Some(pair) = receiving.pair.clone() else { return Ok(true) };
        if receiving.armed {
            let told = self.channel.take().map_err(|error| self.lost(&error))?;
            receiving.armed = told.is_none_or(|told| !told.is_of(pair.receive_queue()));
        }
        if !receiving.armed {
            pair.receive_queue().arm().map_err(|error| self.lost(&error))?;
            receiving.armed = true;
        }
        self.wire.flush()?;
        let stall = self.wire.rest()?;
        // What has come between the last look and now is not told.
        let handled = self.take(&mut receiving)?;
        receiving.early = handled;
        Ok(handled.progress || handled.more || stall == Stall::Buffers)
    }
}

/// A message on its way out.
pub(super) struct Outgoing<'a> {
    head: &'a [u8],
    data: &'a [Segment],
}

impl MessageLane for Messages {
    type Outgoing<'a> = Outgoing<'a>;

    fn outgoing<'a>(&self, head: &'a [u8], data: &'a [Segment]) -> Result<Outgoing<'a>, LinkError> {
        let len: usize = data.iter().map(|segment| segment.len).sum();
        self.limits.check(head.len(), len).map_err(LinkError::Closed)?;
        Ok(Outgoing { head, data })
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<bool, LinkError> {
        if self.wire.queued() > SEND_QUEUE {
            return Ok(false);
        }
        // Segments are locked one by one, so those of one region can be more than one.
        let mut copies = Vec::new();
        for segment in message.data {
            let gone = || LinkError::Closed("data to be sent was withdrawn".to_owned());
            copies.push(segment.with_ref(<[u8]>::to_vec).ok_or_else(gone)?);
        }
        let parts: Vec<&[u8]> = copies.iter().map(Vec::as_slice).collect();
        self.wire.send(message.head, &parts)?;
        Ok(true)
    }

    fn wait(&self, turn: &Turn) -> Result<(), LinkError> {
        const SLICE: Duration = Duration::from_millis(50);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = turn.drive([Some(self), None], [true, false], SLICE);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn shut_down(&self) {
        // What was sent last is to arrive.
        let until = Instant::now() + LINGER;
        while !self.wire.is_idle() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.wire.close(&LinkError::Closed("the connection is closed".to_owned()));
        // The server is told, where it was not first.
        let connection = lock(&self.connection).take();
        drop(connection);
    }

    fn lost(&self, reason: &dyn fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }
}

/// What a connection and its keeper share.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) core: Core<Messages>,
    pub(super) reads: Arc<Reads>,
    pub(super) capabilities: Capabilities,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct VerbsEndpoint {
    pub(super) client: Arc<Client>,
    pub(super) keeper: Arc<Kick>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Endpoint for VerbsEndpoint {
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
        self.client.core.rpc.adverts.fill(buffer)
    }

    fn offer(&self, data: Vec<Segment>) -> (Tag, Vec<u8>) {
        (self.client.core.rpc.adverts.fetch(&data), Vec::new())
    }

    fn prove(&self, connection: &Secret) {
        self.client.core.rpc.prove(connection);
    }

    fn withdraw(&self, tag: Tag) -> u64 {
        self.client.core.rpc.adverts.withdraw(tag)
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        self.client.reads.post(reads)
    }

    fn reads_now(&self) -> bool {
        self.client.reads.is_ready()
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

impl VerbsEndpoint {
    fn end_thread(&self) {
        self.keeper.stop();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // It calls no one, so it cannot be this one.
            let _ = thread.join();
        }
    }
}

impl Drop for VerbsEndpoint {
    fn drop(&mut self) {
        self.client.core.abandon();
        self.end_thread();
    }
}

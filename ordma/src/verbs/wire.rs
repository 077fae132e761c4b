//! The sending half of a connection for messages: what is queued becomes packets and transfers, as
//! far as credits, buffers and the queue pair allow.

use super::credits::{BadCredits, Credits, Told};
use super::gather::{Gather, Gathered};
use super::packet::{HEADER_LEN, Header, LONGEST_RECORD, Record};
use super::pool::Pool;
use super::target::Target;
use super::transfer_buffers::{Seat, Taken};
use crate::arena::{Slot, copy_slots};
use crate::engine::{LinkError, Transfer};
use crate::lock;
use crate::rdma::{Block, Completion, Local, Op, Parts, QueuePair, Remote, Status, Work};
use foldhash::{HashMap, HashMapExt};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The queue pair of a connection for messages.
pub(super) type MessagePair = QueuePair<Sent, Block>;

/// What is under way, with its memory.
#[derive(Debug)]
pub(super) enum Sent {
    /// A packet.
    Packet(Block),
    /// A copy of what is placed into the client's memory.
    Copy(Taken),
    /// What is placed there from slots.
    Slots(Gathered),
    /// Part of what is fetched from there: of which transfer, and where it goes in its buffer.
    Fetching(Taken, u64, usize),
}

// SAFETY: as for what it has.
unsafe impl Local for Sent {
    fn parts(&self, parts: &mut Parts) {
        match self {
            Self::Packet(block) => block.parts(parts),
            Self::Copy(taken) | Self::Fetching(taken, ..) => taken.parts(parts),
            Self::Slots(gathered) => gathered.parts(parts),
        }
    }
}

/// Requests that are posted at a time.
const AT_ONCE: usize = 32;
/// Buffers of transfers that are posted before others of the event loop get their turn: those of a MiB
/// and its footers. Soft-RoCE moves the data of what is posted while it is posted (rxe_verbs.c).
const TRANSFERS_AT_ONCE: usize = 5;
/// Work requests of a queue pair for messages. Each takes half a KiB of soft-RoCE's queue as long as the
/// connection lasts, and queues are rounded up to one less than a power of two, that of completions,
/// which is longer by one, too.
pub(super) const SENDS: u32 = 62;
/// Packets up to this length are sent from where they are.
pub(super) const INLINE: u32 = 256;

/// What is queued.
#[derive(Debug)]
enum Item {
    Message { bytes: Vec<u8>, head: usize, sent: usize },
    Place { tag: u64, from: Source, target: Target, transfer: Transfer },
    Fetch { id: u64, left: usize, at: usize, target: Target },
}

impl Item {
    /// Whether its next request takes a buffer of those for transfers.
    fn takes_buffer(&self) -> bool {
        match self {
            Self::Message { .. } | Self::Place { from: Source::Slots(_), .. } => false,
            Self::Place { from: Source::Bytes(..), .. } | Self::Fetch { .. } => true,
        }
    }
}

/// What is to be placed.
#[derive(Debug)]
pub(super) enum Offer<'a> {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Slots, as the device reads them. They are copied where others have to go first, so that a
    /// client that takes nothing keeps no chunk from going.
    Slots(Gather, &'a [Slot]),
}

impl Offer<'_> {
    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slots(gather, _) => gather.left(),
        }
    }

    /// The buffer that the transfer gives back where nothing is placed.
    fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Slots(..) => Vec::new(),
        }
    }
}

/// What is placed.
#[derive(Debug)]
enum Source {
    /// Bytes, and how many of them are under way.
    Bytes(Vec<u8>, usize),
    /// Slots, read by the device itself.
    Slots(Gather),
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes, _) => bytes.len(),
            Self::Slots(slots) => slots.len(),
        }
    }

    fn left(&self) -> usize {
        match self {
            Self::Bytes(bytes, at) => bytes.len() - at,
            Self::Slots(slots) => slots.left(),
        }
    }

    /// The buffer that the transfer gives back.
    fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes, _) => bytes,
            Self::Slots(_) => Vec::new(),
        }
    }
}

/// A fetch under way.
#[derive(Debug)]
struct Fetching {
    buffer: Vec<u8>,
    missing: usize,
    transfer: Transfer,
}

/// Why nothing more goes out at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stall {
    /// Nothing is left.
    Done,
    /// The peer has to post receives first.
    Credits,
    /// Something that was posted has to complete first.
    Completions,
    /// Others have to give buffers back first.
    Buffers,
}

/// Why something that is queued does not go on.
enum Stop {
    Stall(Stall),
    Lost(LinkError),
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) struct Wire {
    packets: Arc<Pool>,
    /// Buffers for transfers, where this side makes some.
    transfers: Option<Seat>,
    /// Bytes of messages that are queued, of all wires that share it.
    untaken: Arc<AtomicUsize>,
    /// Most bytes of a packet.
    packet: usize,
    peer: String,
    state: Mutex<State>,
}

/// How much has moved so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    /// Requests that were made of what was queued.
    made: u64,
    /// Requests that have completed.
    completed: u64,
    /// Others had been posted.
    under_way: bool,
}

#[derive(Debug)]
struct State {
    /// `None` once closed.
    pair: Option<Arc<MessagePair>>,
    credits: Credits,
    queue: VecDeque<Item>,
    /// Bytes of messages in it.
    queued: usize,
    moves: Moves,
    records: VecDeque<Record>,
    fetching: HashMap<u64, Fetching>,
    next_fetch: u64,
    completions: Vec<Completion>,
    done: Vec<(Option<Sent>, Status)>,
    /// To be posted with what follows.
    works: Vec<Work<Sent>>,
    scratch: Vec<u8>,
    /// Transfers that are done, to be completed once no lock is held, since that may run anything.
    ended: Vec<(Transfer, Result<Vec<u8>, LinkError>)>,
}

/// Data up to this length is not posted before the message that tells of it, but together with it.
const WITH_MESSAGE: usize = 64 << 10;

impl Wire {
    pub(super) fn new(
        pair: Arc<MessagePair>,
        credits: Credits,
        packets: Arc<Pool>,
        transfers: Option<Seat>,
        untaken: Arc<AtomicUsize>,
        packet: usize,
        peer: String,
    ) -> Self {
        let state = State {
            pair: Some(pair),
            credits,
            queue: VecDeque::new(),
            queued: 0,
            moves: Moves::default(),
            records: VecDeque::new(),
            fetching: HashMap::new(),
            next_fetch: 0,
            completions: Vec::new(),
            done: Vec::new(),
            works: Vec::new(),
            scratch: Vec::new(),
            ended: Vec::new(),
        };
        let packet = packet.min(packets.block());
        Self { packets, transfers, untaken, packet, peer, state: Mutex::new(state) }
    }

    /// Runs `f` on the state, and then completes the transfers that are done.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        if state.ended.is_empty() {
            return result;
        }
        let ended = std::mem::take(&mut state.ended);
        drop(state);
        ended.into_iter().for_each(|(transfer, result)| transfer.complete(result));
        result
    }

    fn lost(&self, reason: impl std::fmt::Display) -> LinkError {
        LinkError::Lost { peer: self.peer.clone(), reason: reason.to_string() }
    }

    /// Sends a message, or queues what does not go at once; how many bytes are queued now.
    pub(super) fn send(&self, head: &[u8], data: &[&[u8]]) -> Result<usize, LinkError> {
        self.with(|state| {
            if state.queue.is_empty() && self.send_at_once(state, head, data)? {
                return Ok(state.queued);
            }
            self.queue(state, head, data);
            self.pump(state, false)?;
            Ok(state.queued)
        })
    }

    /// Queues a message; how many bytes are queued now.
    pub(super) fn enqueue(&self, head: &[u8], data: &[&[u8]]) -> usize {
        self.with(|state| {
            if state.pair.is_some() {
                self.queue(state, head, data);
            }
            state.queued
        })
    }

    fn queue(&self, state: &mut State, head: &[u8], data: &[&[u8]]) {
        let len = state.enqueue(head, data);
        self.untaken.fetch_add(len, Ordering::Relaxed);
    }

    /// Sends a message that fits into a packet, without queueing it; whether that could be done.
    fn send_at_once(
        &self,
        state: &mut State,
        head: &[u8],
        data: &[&[u8]],
    ) -> Result<bool, LinkError> {
        let len = head.len() + data.iter().map(|part| part.len()).sum::<usize>();
        let records = state.records.len() * LONGEST_RECORD;
        if HEADER_LEN + records + len > self.packet || !state.credits.may_send() {
            return Ok(false);
        }
        self.reap_some(state)?;
        let enough = |pair: &Arc<MessagePair>| pair.room() > state.works.len() + 1;
        let Some(pair) = state.pair.clone().filter(enough) else { return Ok(false) };
        let data_len = (len - head.len()) as u32;
        let (mut packet, mut scratch) = (None, std::mem::take(&mut state.scratch));
        scratch.clear();
        let begins = Some((head.len() as u32, data_len));
        let withdrawn = |record: &Record| matches!(record, Record::Withdrawn(_));
        let fits = HEADER_LEN + records + len <= INLINE as usize && state.works.is_empty();
        if fits && !state.records.iter().any(withdrawn) {
            begin(state, &mut scratch, usize::MAX, begins);
            scratch.extend_from_slice(head);
            data.iter().for_each(|part| scratch.extend_from_slice(part));
        } else {
            match self.packets.take().map_err(|error| self.lost(error))? {
                Some(mut taken) => {
                    let op = begin(state, &mut scratch, usize::MAX, begins);
                    taken.set_len(scratch.len() + len);
                    let mut place = Place { to: taken.bytes_mut(), at: 0 };
                    place.put(&scratch);
                    place.put(head);
                    data.iter().for_each(|part| place.put(part));
                    packet = Some((op, taken));
                }
                None => {
                    state.scratch = scratch;
                    return Ok(false);
                }
            }
        }
        let posted = match packet {
            Some((op, block)) => {
                state.works.push(work(op, Sent::Packet(block)));
                pair.post(state.works.drain(..))
            }
            None => pair.post_inline(&scratch, true),
        };
        state.scratch = scratch;
        posted.map_err(|error| self.lost(error))?;
        Ok(true)
    }

    /// Queues what the engine has to say. It goes with the next message, or when [flushed](Self::flush).
    pub(super) fn record(&self, record: Record) {
        let mut state = lock(&self.state);
        if state.pair.is_some() {
            state.records.push_back(record);
        }
    }

    /// Records that are queued.
    pub(super) fn unsaid(&self) -> usize {
        lock(&self.state).records.len()
    }

    /// Sends all that is queued, as far as it goes.
    pub(super) fn flush(&self) -> Result<Stall, LinkError> {
        self.with(|state| self.pump(state, true))
    }

    /// Places data into the client's memory, now where `post` says so. The transfer is done when the
    /// data was copied, or is the device's to read; what was placed is told with the next message.
    pub(super) fn place(
        &self,
        tag: u64,
        target: Target,
        offer: Offer<'_>,
        transfer: &Transfer,
        post: bool,
    ) -> Result<(), LinkError> {
        self.transfer(transfer, post, |state, transfer| {
            if target.is_withdrawn() {
                state.ended.push((transfer, Ok(offer.into_buffer())));
                return Ok(true);
            }
            let first = state.queue.is_empty();
            let soon = post && first && offer.len() <= WITH_MESSAGE;
            let from = match offer {
                Offer::Bytes(bytes) => Source::Bytes(bytes, 0),
                Offer::Slots(gather, _) if first => Source::Slots(gather),
                Offer::Slots(_, slots) => Source::Bytes(copy_slots(slots), 0),
            };
            state.queue.push_back(Item::Place { tag, from, target, transfer });
            if soon {
                let room = state.room();
                while state.works.len() < room && !state.queue.is_empty() {
                    match self.fill_place(state) {
                        Ok(()) => {}
                        Err(Stop::Stall(_)) => break,
                        Err(Stop::Lost(error)) => return Err(error),
                    }
                }
            }
            Ok(soon && state.queue.is_empty())
        })
    }

    /// Fetches from the client's memory, now where `post` says so.
    pub(super) fn fetch(
        &self,
        target: Target,
        buffer: Vec<u8>,
        transfer: &Transfer,
        post: bool,
    ) -> Result<(), LinkError> {
        self.transfer(transfer, post, |state, transfer| {
            if target.is_withdrawn() {
                state.ended.push((transfer, Err(withdrawn())));
                return Ok(true);
            }
            let (id, left) = (state.next_fetch, buffer.len());
            state.next_fetch += 1;
            state.fetching.insert(id, Fetching { buffer, missing: left, transfer });
            state.queue.push_back(Item::Fetch { id, left, at: 0, target });
            Ok(false)
        })
    }

    /// Queues a transfer by `queue`, which says whether the next message is waited for. Where the
    /// connection is over the transfer is, too.
    fn transfer(
        &self,
        transfer: &Transfer,
        post: bool,
        queue: impl FnOnce(&mut State, Transfer) -> Result<bool, LinkError>,
    ) -> Result<(), LinkError> {
        self.with(|state| {
            let transfer = transfer.clone();
            if state.pair.is_none() {
                state.ended.push((transfer, Err(self.lost("closed"))));
                return Ok(());
            }
            let waits = queue(state, transfer)?;
            if post && !waits {
                self.pump(state, false)?;
            }
            Ok(())
        })
    }

    /// A buffer of the client was [withdrawn](super::target::Advert::withdraw): what was not posted
    /// yet is not any more.
    pub(super) fn withdraw(&self) {
        self.with(|state| {
            state.end(Target::is_withdrawn);
            self.leave_unless_waiting(state);
        });
    }

    /// Ends the transfers that are queued, where nothing was sent since `before`: the client takes
    /// nothing. Whether others are queued, or something is under way.
    ///
    /// # Errors
    /// Where nothing of what was under way has completed since then. The device gives up far earlier
    /// what is not answered; but soft-RoCE waits for ever for the rest of an answer to a READ where the
    /// client's packets are smaller than was agreed.
    pub(super) fn give_up(&self, before: Moves) -> Result<bool, LinkError> {
        self.with(|state| {
            self.reap(state)?;
            if before.under_way && state.moves.completed == before.completed {
                return Err(self.lost("what was asked of its device does not complete"));
            }
            if state.moves.made == before.made {
                state.end(|_| true);
            }
            Ok(self.leave_unless_waiting(state) || state.is_under_way())
        })
    }

    /// Waits for no buffer any more where no transfer is queued; whether one is.
    fn leave_unless_waiting(&self, state: &State) -> bool {
        let waits = state.queue.iter().any(|item| !matches!(item, Item::Message { .. }));
        if !waits {
            self.leave();
        }
        waits
    }

    /// No transfer waits for a buffer any more.
    fn leave(&self) {
        if let Some(seat) = &self.transfers {
            seat.leave();
        }
    }

    /// A packet has come that says this of credits; whether its receive was posted again.
    pub(super) fn told(&self, told: Told, content: bool, again: bool) -> Result<(), BadCredits> {
        lock(&self.state).credits.told(told, content, again)
    }

    /// So many receives more were posted.
    pub(super) fn grow(&self, more: u32) {
        lock(&self.state).credits.grow(more);
    }

    /// Takes what has completed, and sends what can go now.
    pub(super) fn progress(&self) -> Result<Stall, LinkError> {
        self.with(|state| {
            self.reap(state)?;
            self.pump(state, false)
        })
    }

    /// Like [`progress`](Self::progress), and has the channel tell of the next completion where
    /// something waits for one; whether something does.
    pub(super) fn rest(&self) -> Result<Stall, LinkError> {
        self.with(|state| {
            self.reap(state)?;
            let stall = self.pump(state, false)?;
            let waits = matches!(stall, Stall::Completions | Stall::Buffers);
            let Some(pair) = state.pair.clone().filter(|_| waits || !state.fetching.is_empty())
            else {
                return Ok(stall);
            };
            pair.send_queue().arm().map_err(|error| self.lost(error))?;
            // What has completed between the two.
            self.reap(state)?;
            self.pump(state, false)
        })
    }

    /// How much has moved so far.
    pub(super) fn moves(&self) -> Moves {
        let state = lock(&self.state);
        Moves { under_way: state.is_under_way(), ..state.moves }
    }

    /// Whether something was posted and is not known to have completed.
    pub(super) fn is_under_way(&self) -> bool {
        lock(&self.state).is_under_way()
    }

    /// Whether messages are queued, of which nothing was sent since `before`.
    pub(super) fn waits_since(&self, before: Moves) -> bool {
        let state = lock(&self.state);
        state.queued > 0 && state.moves.made == before.made
    }

    /// Bytes of messages that are queued.
    pub(super) fn queued(&self) -> usize {
        lock(&self.state).queued
    }

    /// Whether all that was queued is sent and has arrived.
    pub(super) fn is_idle(&self) -> bool {
        self.with(|state| {
            let failed = self.reap(state).is_err();
            failed || state.queue.is_empty() && state.works.is_empty() && !state.is_under_way()
        })
    }

    /// Ends it: nothing is sent any more, and transfers end with the reason.
    pub(super) fn close(&self, reason: &LinkError) {
        self.with(|state| {
            if let Some(pair) = state.pair.take() {
                // Nothing of what was posted is to arrive late.
                fail(&pair);
            }
            state.records.clear();
            state.works.clear();
            self.untaken.fetch_sub(std::mem::take(&mut state.queued), Ordering::Relaxed);
            for item in std::mem::take(&mut state.queue) {
                if let Item::Place { transfer, .. } = item {
                    state.ended.push((transfer, Err(reason.clone())));
                }
            }
            for (_, fetch) in state.fetching.drain() {
                state.ended.push((fetch.transfer, Err(reason.clone())));
            }
        });
        self.leave();
    }

    /// Takes what has completed where much is under way, so that buffers come back.
    fn reap_some(&self, state: &mut State) -> Result<(), LinkError> {
        let under_way = |pair: &Arc<MessagePair>| pair.cap().sends as usize - pair.room();
        if state.pair.as_ref().is_some_and(|pair| under_way(pair) >= 8) {
            self.reap(state)?;
        }
        Ok(())
    }

    /// Takes what has completed.
    fn reap(&self, state: &mut State) -> Result<(), LinkError> {
        let Some(pair) = state.pair.clone() else { return Ok(()) };
        loop {
            state.completions.clear();
            let found = pair.send_queue().poll(&mut state.completions);
            if found.map_err(|error| self.lost(error))? == 0 {
                return Ok(());
            }
            for completion in &state.completions {
                pair.sent(completion, &mut state.done);
            }
            let State { done, fetching, ended, moves, .. } = state;
            moves.completed += done.len() as u64;
            for (item, status) in done.drain(..) {
                if !status.is_success() {
                    return Err(self.lost(status));
                }
                let Some(Sent::Fetching(Taken { block, .. }, id, at)) = &item else { continue };
                let (id, at) = (*id, *at);
                // Where it is gone, the client has withdrawn the buffer meanwhile.
                let Some(fetch) = fetching.get_mut(&id) else { continue };
                fetch.buffer[at..at + block.len()].copy_from_slice(block.bytes());
                fetch.missing -= block.len();
                fetch.transfer.advance((fetch.buffer.len() - fetch.missing) as u64);
                if fetch.missing == 0
                    && let Some(fetch) = fetching.remove(&id)
                {
                    ended.push((fetch.transfer, Ok(fetch.buffer)));
                }
            }
        }
    }

    /// Sends what is queued, as far as it goes; records alone only where `flush` says so.
    fn pump(&self, state: &mut State, flush: bool) -> Result<Stall, LinkError> {
        let Some(pair) = state.pair.clone() else { return Ok(Stall::Done) };
        self.reap_some(state)?;
        let stall = loop {
            let filled = self.fill(state, flush);
            let full = state.works.len() >= AT_ONCE;
            pair.post(state.works.drain(..)).map_err(|error| self.lost(error))?;
            match filled {
                Err(Stop::Lost(error)) => return Err(error),
                Err(Stop::Stall(stall)) if !full => break stall,
                Err(Stop::Stall(_)) => {}
                Ok(()) => break Stall::Done,
            }
        };
        if state.credits.owes() && pair.room() > 0 {
            let told = state.credits.send(false);
            let bytes = Header { told, ..Header::default() }.encode();
            pair.post_inline(&bytes, true).map_err(|error| self.lost(error))?;
        }
        Ok(stall)
    }

    /// Makes work requests of what is queued, as many as there is room for.
    fn fill(&self, state: &mut State, flush: bool) -> Result<(), Stop> {
        let room = state.room();
        let mut transfers = 0;
        while !state.queue.is_empty() || flush && !state.records.is_empty() {
            // What was posted completes, and then it goes on.
            if state.works.len() >= room || transfers >= TRANSFERS_AT_ONCE {
                return Err(Stop::Stall(Stall::Completions));
            }
            transfers += usize::from(state.queue.front().is_some_and(Item::takes_buffer));
            match state.queue.front() {
                None | Some(Item::Message { .. }) => self.fill_packet(state)?,
                Some(Item::Place { .. }) => self.fill_place(state)?,
                Some(Item::Fetch { .. }) => self.fill_fetch(state)?,
            }
            state.moves.made += 1;
        }
        Ok(())
    }

    fn fill_packet(&self, state: &mut State) -> Result<(), Stop> {
        if !state.credits.may_send() {
            return Err(Stop::Stall(Stall::Credits));
        }
        let taken = self.packets.take().map_err(|error| self.lost(error))?;
        let mut block = taken.ok_or(Stop::Stall(Stall::Buffers))?;
        let begins = match state.queue.front() {
            Some(Item::Message { bytes, head, sent: 0 }) => {
                Some((*head as u32, (bytes.len() - head) as u32))
            }
            _ => None,
        };
        let mut scratch = std::mem::take(&mut state.scratch);
        scratch.clear();
        let op = begin(state, &mut scratch, self.packet, begins);
        let mut rest: &[u8] = &[];
        if let Some(Item::Message { bytes, sent, .. }) = state.queue.front_mut() {
            let len = (bytes.len() - *sent).min(self.packet - scratch.len());
            rest = &bytes[*sent..*sent + len];
            *sent += len;
        }
        block.set_len(scratch.len() + rest.len());
        let mut place = Place { to: block.bytes_mut(), at: 0 };
        place.put(&scratch);
        place.put(rest);
        state.scratch = scratch;
        if let Some(Item::Message { bytes, sent, .. }) = state.queue.front()
            && *sent == bytes.len()
        {
            state.queued -= bytes.len();
            self.untaken.fetch_sub(bytes.len(), Ordering::Relaxed);
            state.queue.pop_front();
        }
        state.works.push(work(op, Sent::Packet(block)));
        Ok(())
    }

    /// Makes a request of what is placed next, or ends it where all is under way.
    fn fill_place(&self, state: &mut State) -> Result<(), Stop> {
        let Some(Item::Place { from, target, transfer, .. }) = state.queue.front_mut() else {
            return Ok(());
        };
        if from.left() > 0 {
            let (remote, sent) = match from {
                Source::Bytes(bytes, at) => {
                    let mut taken = self.transfer_buffer(&state.works)?;
                    let block = &mut taken.block;
                    let (remote, len) =
                        self.next(target, block.capacity().min(bytes.len() - *at))?;
                    block.set_len(len);
                    block.bytes_mut().copy_from_slice(&bytes[*at..*at + len]);
                    *at += len;
                    (remote, Sent::Copy(taken))
                }
                Source::Slots(slots) => {
                    let parts = state.pair.as_ref().map_or(1, |pair| pair.cap().parts as usize);
                    let (remote, len) = self.next(target, slots.fitting(parts))?;
                    (remote, Sent::Slots(slots.take(len)))
                }
            };
            transfer.advance((from.len() - from.left()) as u64);
            state.works.push(work(Op::Write(remote), sent));
        }
        if from.left() == 0
            && let Some(Item::Place { tag, from, transfer, .. }) = state.queue.pop_front()
        {
            state.records.push_back(Record::Placed(tag, from.len() as u64));
            state.ended.push((transfer, Ok(from.into_buffer())));
        }
        Ok(())
    }

    fn fill_fetch(&self, state: &mut State) -> Result<(), Stop> {
        let Some(Item::Fetch { id, left, at, target, .. }) = state.queue.front_mut() else {
            return Ok(());
        };
        let mut taken = self.transfer_buffer(&state.works)?;
        let (remote, len) = self.next(target, taken.block.capacity().min(*left))?;
        taken.block.set_len(len);
        state.works.push(work(Op::Read(remote), Sent::Fetching(taken, *id, *at)));
        (*at, *left) = (*at + len, *left - len);
        if *left == 0 {
            state.queue.pop_front();
        }
        Ok(())
    }

    /// A buffer for part of a transfer. Where all are in use, those of the requests that wait to be
    /// posted come back first.
    fn transfer_buffer(&self, works: &[Work<Sent>]) -> Result<Taken, Stop> {
        let taken = match &self.transfers {
            Some(seat) => seat.take().map_err(|error| self.lost(error))?,
            None => None,
        };
        let stall = if works.is_empty() { Stall::Buffers } else { Stall::Completions };
        taken.ok_or(Stop::Stall(stall))
    }

    /// The next stretch of a transfer's memory. The caller has seen to it that there is one.
    fn next(&self, target: &mut Target, most: usize) -> Result<(Remote, usize), LinkError> {
        target.next(most).ok_or_else(|| self.lost("a transfer beyond its buffer"))
    }
}

impl State {
    /// Requests that may wait to be posted together, where one of the queue pair is kept for a packet
    /// without content.
    fn room(&self) -> usize {
        self.pair.as_ref().map_or(0, |pair| pair.room().saturating_sub(1).min(AT_ONCE))
    }

    fn is_under_way(&self) -> bool {
        let pair = self.pair.as_ref();
        pair.is_some_and(|pair| pair.room() < pair.cap().sends as usize)
    }

    /// Ends transfers that are queued. What of them was posted before goes on.
    fn end(&mut self, which: impl Fn(&Target) -> bool) {
        let Self { queue, fetching, ended, .. } = self;
        queue.retain_mut(|item| match item {
            Item::Place { target, from, transfer, .. } if which(target) => {
                let from = std::mem::replace(from, Source::Bytes(Vec::new(), 0));
                ended.push((transfer.clone(), Ok(from.into_buffer())));
                false
            }
            Item::Fetch { target, id, .. } if which(target) => {
                let fetch = fetching.remove(id);
                ended.extend(fetch.map(|fetch| (fetch.transfer, Err(withdrawn()))));
                false
            }
            _ => true,
        });
    }

    /// Queues a message; its bytes.
    fn enqueue(&mut self, head: &[u8], data: &[&[u8]]) -> usize {
        let len = head.len() + data.iter().map(|part| part.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(head);
        data.iter().for_each(|part| bytes.extend_from_slice(part));
        self.queued += len;
        self.queue.push_back(Item::Message { bytes, head: head.len(), sent: 0 });
        len
    }
}

/// Why a transfer ended whose buffer is not there any more.
pub(super) fn withdrawn() -> LinkError {
    LinkError::Closed("the client has withdrawn the buffer".to_owned())
}

fn work(op: Op, local: Sent) -> Work<Sent> {
    Work { op, local, signaled: true }
}

/// Puts header and records of a packet together, as many of these as fit; how the packet is sent. The
/// client uses a buffer for something else once it knows that nothing is done with it any more: that is
/// to be so.
fn begin(state: &mut State, out: &mut Vec<u8>, packet: usize, begins: Option<(u32, u32)>) -> Op {
    let mut op = Op::Send;
    out.resize(HEADER_LEN, 0);
    while let Some(record) = state.records.front() {
        if out.len() + LONGEST_RECORD > packet {
            break;
        }
        record.encode(out);
        if let Record::Withdrawn(_) = record {
            op = Op::SendAfterReads;
        }
        state.records.pop_front();
    }
    let told = state.credits.send(true);
    let records = (out.len() - HEADER_LEN) as u16;
    out[..HEADER_LEN].copy_from_slice(&Header { told, records, begins }.encode());
    op
}

/// Bytes that are put one after the other.
struct Place<'a> {
    to: &'a mut [u8],
    at: usize,
}

impl Place<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.to[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Fails a connection's queue pair, so that all its requests complete.
pub(super) fn fail(pair: &MessagePair) {
    if let Err(error) = pair.fail() {
        tracing::debug!(%error, "a queue pair that was gone already");
    }
}

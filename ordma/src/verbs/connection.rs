//! The event loop's side of a client's connection: what arrives.

use super::link::{MOST_ADVERTS, VerbsLink};
use super::packet::{Assembled, Assembly, Packet};
use super::wire::{MessagePair, Moves, Stall};
use crate::complaints;
use crate::engine::{Link, LinkError};
use crate::rdma::{Block, Completion};
use crate::reactor::{Room, Source, Step};
use crate::stream::link::stops;
use crate::stream::memory::{ASK_AGAIN, Gathering, May, STANDS_STILL};
use crate::stream::server::Counted;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long what was sent last may take to arrive before a connection that is closed ends.
const LINGER: Duration = Duration::from_millis(500);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(1);
/// Records that may wait for a client besides those that tell of chunks: one for each buffer that it can
/// have advertised.
const MOST_UNSAID: usize = MOST_ADVERTS;
/// When to try again where others have all buffers.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// The event loop's side of a link.
pub(super) struct MessageConnection {
    link: Arc<VerbsLink>,
    shown: Arc<dyn Link>,
    pair: Option<Arc<MessagePair>>,
    assembly: Assembly,
    /// Posted in place of a packet that has come, before that is handled.
    spare: Option<Block>,
    /// Packets that have come and are not taken yet.
    completions: VecDeque<Completion>,
    found: Vec<Completion>,
    gathering: Gathering,
    /// The channel will tell of the next receive.
    armed: bool,
    begun: bool,
    /// Receives beyond the first, once the client was let in.
    extra: Option<u32>,
    /// Since when nothing was sent of messages that wait for the client.
    untaken: Option<Instant>,
    /// When it will be looked whether something waits in vain, and what had moved when that began.
    watched: Option<(Moves, Instant)>,
    /// Since when it is to end.
    closing: Option<Instant>,
    _counted: Counted,
}

impl MessageConnection {
    pub(super) fn new(
        link: Arc<VerbsLink>,
        pair: Arc<MessagePair>,
        spare: Block,
        counted: Counted,
    ) -> Self {
        Self {
            shown: link.clone(),
            pair: Some(pair),
            link,
            assembly: Assembly::default(),
            spare: Some(spare),
            completions: VecDeque::new(),
            found: Vec::new(),
            gathering: Gathering::default(),
            armed: false,
            begun: false,
            extra: None,
            untaken: None,
            watched: None,
            closing: None,
            _counted: counted,
        }
    }

    /// Takes what has come; whether there was anything.
    fn receive(&mut self, room: &mut Room<'_>) -> Result<bool, LinkError> {
        let Some(pair) = self.pair.clone() else { return Ok(false) };
        if self.completions.is_empty() {
            let found = pair.receive_queue().poll(&mut self.found);
            found.map_err(|error| self.link.lost(error))?;
            self.completions.extend(self.found.drain(..));
        }
        let mut any = false;
        while !self.link.is_closing() && self.has_memory(room)? {
            let Some(completion) = self.completions.pop_front() else { break };
            any = true;
            let Some(mut block) = pair.received(&completion) else { continue };
            if !completion.status.is_success() {
                // What was sent tells more than that all receives are flushed.
                let cause = self.link.wire.progress().err();
                return Err(cause.unwrap_or_else(|| self.link.lost(completion.status)));
            }
            block.set_len(completion.len as usize);
            self.handle(&pair, &block)?;
            block.set_len(block.capacity());
            // Where the spare is still there, this is one that the client has too many.
            self.spare.get_or_insert(block);
        }
        if any {
            self.grow(&pair);
        }
        Ok(any)
    }

    /// Lets a client that was let in have its share of receives.
    fn grow(&mut self, pair: &MessagePair) {
        let adapter = self.link.adapter();
        if self.extra.is_none() && self.link.reads_allowed() {
            adapter.shares.join();
            self.extra = Some(0);
        }
        let Some(extra) = &mut self.extra else { return };
        let more = adapter.shares.take(*extra);
        let posted = (0..more)
            .take_while(|_| adapter.receive().and_then(|buffer| pair.post_receive(buffer)).is_ok())
            .count() as u32;
        adapter.shares.give_back(more - posted);
        *extra += posted;
        if posted > 0 {
            self.link.wire.grow(posted);
        }
    }

    /// Whether the client has one receive too many, which it has no longer then.
    fn shrink(&mut self) -> bool {
        let shares = &self.link.adapter().shares;
        let Some(extra) = self.extra.as_mut().filter(|extra| **extra > shares.share()) else {
            return false;
        };
        *extra -= 1;
        shares.give_back(1);
        true
    }

    /// Whether the message that is arriving has the memory that it takes. Where not, its client gets
    /// no new credits until it has.
    fn has_memory(&mut self, room: &mut Room<'_>) -> Result<bool, LinkError> {
        let server = self.link.server();
        let (memory, trusted) = (&server.memory, self.link.reads_allowed());
        let party = || self.link.party();
        match self.gathering.share(memory, trusted, party, self.assembly.gathering()) {
            May::Go => Ok(true),
            May::Begin => {
                room.wake_at(Instant::now() + server.settings.patience);
                Ok(true)
            }
            May::Wait => {
                room.wake_at(Instant::now() + ASK_AGAIN);
                Ok(false)
            }
            May::Never => Err(self.link.lost("the receive memory is exhausted")),
        }
    }

    fn handle(&mut self, pair: &MessagePair, block: &Block) -> Result<(), LinkError> {
        let packet = Packet::decode(block.bytes()).map_err(|bad| self.link.broken(bad))?;
        let content = packet.has_content();
        let again = !(content && self.shrink());
        // First, so that no credit is given for a receive that is not there.
        if again && let Some(spare) = self.spare.take() {
            pair.post_receive(spare).map_err(|error| self.link.lost(error))?;
        }
        let told = self.link.wire.told(packet.header.told, content, again);
        told.map_err(|bad| self.link.broken(bad))?;
        self.act(&packet).map_err(|reason| self.link.broken(reason))
    }

    /// Acts upon what a packet says.
    fn act(&mut self, packet: &Packet<'_>) -> Result<(), String> {
        for record in packet.records() {
            self.link.hear(record.map_err(|bad| bad.to_string())?)?;
        }
        let server = self.link.server();
        if packet.header.records > 0 {
            let unsaid = self.link.wire.unsaid();
            let most = || MOST_UNSAID + server.exports.lock().chunks().count();
            if unsaid > MOST_UNSAID && unsaid > most() {
                return Err("it asks for much and takes no answers".to_owned());
            }
        }
        match self.assembly.take(packet, server.settings.limits())? {
            Assembled::Nothing => {}
            Assembled::Here(head, data) => server.service.message(&self.shown, head, data),
            Assembled::Gathered(bytes, head) => {
                let (head, data) = bytes.split_at(head);
                server.service.message(&self.shown, head, data);
            }
        }
        Ok(())
    }

    fn close(&mut self, reason: LinkError, room: &mut Room<'_>) -> Step {
        // What broke is over; what is closed is given time for its last words.
        let lingers = matches!(reason, LinkError::Closed(_));
        self.link.fail(reason);
        if lingers { self.linger(room) } else { Step::Close }
    }

    /// Waits a little for what was sent last.
    fn linger(&mut self, room: &mut Room<'_>) -> Step {
        let since = *self.closing.get_or_insert_with(Instant::now);
        let lost = !matches!(self.link.reason(), LinkError::Closed(_));
        let done = lost || self.link.wire.progress().is_err() || self.link.wire.is_idle();
        if done || since.elapsed() >= LINGER {
            return Step::Close;
        }
        room.wake_at(Instant::now() + LOOK);
        Step::Idle
    }

    /// Takes what has come, and sends what can go.
    fn look(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return self.linger(room);
        }
        match self.link.do_wanted() {
            Ok(true) => {
                self.rearm(room);
                if self.link.waits() {
                    self.watch(room);
                }
                room.arm_later();
            }
            Ok(false) => {}
            Err(reason) => return self.close(reason, room),
        }
        match self.receive(room) {
            Ok(false) => Step::Idle,
            Ok(_) if self.link.is_closing() => self.linger(room),
            Ok(_) => {
                room.arm_later();
                match self.link.wire.progress() {
                    Ok(_) => Step::Served,
                    Err(reason) => self.close(reason, room),
                }
            }
            Err(reason) => self.close(reason, room),
        }
    }

    /// Sees to it that what waits for the client ends.
    fn watch(&mut self, room: &mut Room<'_>) {
        if self.watched.is_none() {
            let until = Instant::now() + self.link.server().settings.patience;
            self.watched = Some((self.link.wire.moves(), until));
            room.wake_at(until);
        }
    }

    /// Brings the queue pair for READs back, where the client wants that and it is due.
    fn rearm(&self, room: &mut Room<'_>) {
        if let Some(later) = self.link.rearm() {
            room.wake_at(later);
        }
    }

    /// Takes what the channel has told: of receives, of what was sent (which wants nothing but that one
    /// looks), or of the queue pair for READs.
    fn told(&mut self) -> Result<(), LinkError> {
        let told = self.link.channel.take().map_err(|error| self.link.lost(error))?;
        if let (Some(told), Some(pair)) = (told, &self.pair) {
            if told.is_of(pair.receive_queue()) {
                self.armed = false;
            } else if !told.is_of(pair.send_queue()) {
                self.link.look_at_reads();
            }
        }
        Ok(())
    }
}

impl Source for MessageConnection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.channel.as_fd()
    }

    fn begin(&mut self, room: &mut Room<'_>) -> Step {
        let _ = self.link.registration.set(room.registration());
        self.begun = true;
        self.link.server().service.connected(self.shown.clone());
        room.arm_later();
        Step::Idle
    }

    fn readable(&mut self, room: &mut Room<'_>) -> Step {
        if self.armed {
            if let Err(reason) = self.told() {
                return self.close(reason, room);
            }
            room.arm_later();
        }
        self.look(room)
    }

    fn arm(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return self.linger(room);
        }
        let arm = || {
            if !self.armed
                && let Some(pair) = &self.pair
            {
                pair.receive_queue().arm().map_err(|error| self.link.lost(error))?;
            }
            self.link.wire.rest()
        };
        match arm() {
            Ok(Stall::Buffers) => room.wake_at(Instant::now() + TRY_AGAIN),
            Ok(Stall::Credits) => self.watch(room),
            Ok(Stall::Done | Stall::Completions) => {}
            Err(reason) => return self.close(reason, room),
        }
        if self.watched.is_none() && self.link.wire.is_under_way() {
            self.watch(room);
        }
        self.armed = true;
        // What has come between the last look and now is not told.
        self.look(room)
    }

    fn expired(&mut self, room: &mut Room<'_>) -> Step {
        if self.link.is_closing() {
            return self.linger(room);
        }
        let patience = self.link.server().settings.patience;
        match self.gathering.stands_still(&self.link.server().memory) {
            Some(Some(still)) if still >= patience => {
                return self.close(self.link.lost(STANDS_STILL), room);
            }
            Some(_) => room.wake_at(Instant::now() + patience),
            None => {}
        }
        self.rearm(room);
        if let Some((moves, until)) = self.watched
            && Instant::now() >= until
        {
            self.watched = None;
            let waits = self.link.wire.waits_since(moves);
            let since = waits.then(|| *self.untaken.get_or_insert(until - patience));
            self.untaken = since;
            let time = self.link.server().settings.take_patience;
            if since.is_some_and(|since| since.elapsed() >= time) {
                let why = format!("the client has taken nothing in {time:?} of what waits for it");
                return self.close(self.link.lost(why), room);
            }
            match self.link.give_up(moves, patience) {
                Ok(more) if more || waits => self.watch(room),
                Ok(_) => {}
                Err(reason) => return self.close(reason, room),
            }
        }
        room.arm_later();
        self.look(room)
    }

    fn end(&mut self, stopping: bool) {
        if stopping {
            self.link.fail(stops());
        }
        (self.pair, self.spare) = (None, None);
        self.link.tear_down();
        if let Some(extra) = self.extra.take() {
            self.link.adapter().shares.leave(extra);
        }
        self.gathering = Gathering::default();
        self.link.adapter().trim();
        if self.begun {
            let reason = self.link.reason();
            let link = self.link.number();
            match &reason {
                LinkError::Protocol { peer, .. } => {
                    if let Some(untold) = complaints::take("closed", peer) {
                        tracing::warn!(link, %reason, untold, "closed");
                    }
                }
                _ => tracing::debug!(link, %reason, "closed"),
            }
            self.link.server().service.closed(&self.shown, &reason);
        }
    }
}

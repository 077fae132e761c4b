//! Messages there and back: SEND and RECV.

use super::{INLINE, Link, Plan, Side, slab, succeeded, taken};
use crate::data::Offsets;
use crate::error::{Context, Error, Result};
use crate::floor::hello::Hello;
use crate::floor::socket::Waiting;
use crate::floor::{Exchange, PLACE};
use crate::measure::{Block as Measured, Label, Recorder, Subject};
use crate::signals::Stop;
use dafs_client::ordma::rdma::{Access, Block, Completion, Kind, Op, Status, Work};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A ping-pong of messages as a row.
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    label: Label,
    stop: &'a Stop,
    link: Link,
    hello: Hello,
    requests: Outgoing,
    /// Where in the peer's memory replies come from; its beginning, if it does not say.
    offsets: Option<Offsets>,
}

impl<'a> Messages<'a> {
    /// Connects to the peer. The row counts `label.block` bytes for each round trip, and keeps
    /// `label.depth` of them under way.
    pub(crate) fn connect(
        address: SocketAddr,
        label: Label,
        exchange: Exchange,
        waiting: Waiting,
        offsets: Option<&Offsets>,
        stop: &'a Stop,
    ) -> Result<Self> {
        let depth = usize::try_from(label.depth).unwrap_or(1);
        let hello = Hello { exchange, depth, waiting };
        let link = Link::connect(address, hello, Outgoing::plan(depth))?;
        let requests = Outgoing::new(&link.side, exchange.request, Outgoing::least(depth))?;
        Ok(Self { label, stop, link, hello, requests, offsets: offsets.cloned() })
    }

    fn send(&mut self) -> Result<()> {
        let place = self.offsets.as_mut().map_or(0, Offsets::next);
        self.requests.send(0, Some(place))
    }
}

impl Subject for Messages<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Measured> {
        let mut recorder = Recorder::begin(time, self.stop);
        let mut sent = VecDeque::with_capacity(self.hello.depth);
        for _ in 0..self.hello.depth {
            sent.push_back(Instant::now());
            self.send()?;
        }
        while !sent.is_empty() {
            self.link.wait(self.hello.waiting)?;
            for at in 0..self.link.arrivals.found.len() {
                let completion = self.link.arrivals.found[at];
                succeeded("a reply", completion.status)?;
                let pair = &self.link.side.pair;
                let Some(block) = pair.received(&completion) else { continue };
                pair.post_receive(block).context(|| "posting a receive".into())?;
                let now = Instant::now();
                let Some(since) = sent.pop_front() else { continue };
                if recorder.done(since, now, self.label.block)? {
                    sent.push_back(now);
                    self.send()?;
                }
            }
        }
        Ok(recorder.end())
    }
}

/// Sends messages of one length.
#[derive(Debug)]
pub(super) struct Outgoing {
    side: Arc<Side>,
    /// What is sent from where it is, if it is short.
    short: Vec<u8>,
    /// What is sent else: a place is empty while the device has what lies there.
    places: Vec<Option<Block>>,
    /// The places of what is under way, in its order.
    under_way: VecDeque<usize>,
    found: Vec<Completion>,
    done: Vec<(Option<Block>, Status)>,
}

impl Outgoing {
    /// What a queue pair has to be able to hold that keeps so many round trips under way. The end
    /// of a send can come later than the reply.
    pub(super) fn plan(depth: usize) -> Plan {
        let sends = Self::least(depth);
        Plan { sends, receives: depth.max(1), awaited: Kind::Receive, readable: false }
    }

    /// Least places for as many round trips.
    pub(super) fn least(depth: usize) -> usize {
        2 * depth + 8
    }

    /// Sends messages of `length` bytes out of memory with so many places for them.
    pub(super) fn new(side: &Arc<Side>, length: usize, places: usize) -> Result<Self> {
        let (mut short, mut blocks) = (Vec::new(), Vec::new());
        if length <= INLINE {
            short = vec![0x5A; length];
        } else {
            let slab = slab(side.pair.domain(), length, places, Access::Source)?;
            for _ in 0..places {
                let mut block = taken(&slab)?;
                block.set_len(length);
                // Memory that was never written is one page of zeroes, wherever it is read.
                block.bytes_mut().fill(0x5A);
                blocks.push(Some(block));
            }
        }
        Ok(Self {
            side: Arc::clone(side),
            short,
            places: blocks,
            under_way: VecDeque::new(),
            found: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Sends a message from a place, or one near it, with `first` as its first bytes.
    pub(super) fn send(&mut self, place: usize, first: Option<u64>) -> Result<()> {
        self.collect()?;
        while self.side.pair.room() == 0 {
            self.collect()?;
        }
        let what = || "sending a message".to_owned();
        let write = |bytes: &mut [u8]| {
            if let (Some(first), Some(place)) = (first, bytes.first_chunk_mut::<PLACE>()) {
                *place = first.to_le_bytes();
            }
        };
        if self.places.is_empty() {
            write(&mut self.short);
            return self.side.pair.post_inline(&self.short, true).context(what);
        }
        let count = self.places.len();
        let mut near = (0..count).map(|near| (place + near) % count);
        let found = near.find_map(|place| Some((place, self.places[place].take()?)));
        // There are at least as many places as the queue has room for.
        let (place, mut local) =
            found.ok_or_else(|| Error::Peer("more messages are sent than there is room".into()))?;
        write(local.bytes_mut());
        self.under_way.push_back(place);
        self.side.pair.post([Work { op: Op::Send, local, signaled: true }]).context(what)
    }

    /// Takes back what has been sent.
    fn collect(&mut self) -> Result<()> {
        let Self { side, places, under_way, found, done, .. } = self;
        found.clear();
        side.pair.send_queue().poll(found).context(|| "looking for what was sent".into())?;
        for completion in found {
            side.pair.sent(completion, done);
        }
        for (block, status) in done.drain(..) {
            succeeded("sending a message", status)?;
            if let (Some(block), Some(place)) = (block, under_way.pop_front()) {
                places[place] = Some(block);
            }
        }
        Ok(())
    }
}

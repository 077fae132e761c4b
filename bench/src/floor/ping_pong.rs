//! The bench's side of a ping-pong.

use super::peer::{Peer, hello};
use super::socket::Stream;
use super::{Exchange, Transport, Waiting};
use crate::error::{Context, Result};
use crate::measure::{Block, Label, Recorder, Subject, one_by_one};
use crate::signals::Stop;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// A ping-pong as a row.
#[derive(Debug)]
pub(crate) struct PingPong<'a> {
    label: Label,
    stop: &'a Stop,
    stream: Stream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl<'a> PingPong<'a> {
    /// Connects to the peer. The row counts `label.block` bytes for each round trip, and keeps
    /// `label.depth` of them under way.
    pub(crate) fn connect(
        peer: &Peer,
        label: Label,
        exchange: Exchange,
        waiting: Waiting,
        stop: &'a Stop,
    ) -> Result<Self> {
        let connect = || -> io::Result<Stream> {
            let mut stream = Stream::connect(&peer.address)?;
            stream.write_all(&hello(exchange, waiting))?;
            stream.set_waiting(waiting)?;
            Ok(stream)
        };
        let stream = connect().context(|| "connecting to the ping-pong's peer".into())?;
        let (request, reply) = (vec![0xA5; exchange.request], vec![0; exchange.reply]);
        Ok(Self { label, stop, stream, request, reply })
    }

    /// The name of a row that holds such a ping-pong.
    pub(crate) fn name(transport: Transport, waiting: Waiting) -> &'static str {
        match (transport, waiting) {
            (Transport::Tcp, Waiting::Blocking) => "floor",
            (Transport::Tcp, Waiting::Spinning) => "floor-spin",
            (Transport::Unix, Waiting::Blocking) => "floor-socket",
            (Transport::Unix, Waiting::Spinning) => "floor-socket-spin",
        }
    }

    fn exchange(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.request)?;
        self.stream.read_exact(&mut self.reply)
    }

    /// Keeps several round trips under way: for each reply another request.
    fn several(&mut self, depth: usize, time: Duration) -> Result<Block> {
        let lost = || "the ping-pong's connection".to_owned();
        let mut recorder = Recorder::begin(time, self.stop);
        let mut sent = VecDeque::with_capacity(depth);
        for _ in 0..depth {
            sent.push_back(Instant::now());
            self.stream.write_all(&self.request).context(lost)?;
        }
        while let Some(since) = sent.pop_front() {
            self.stream.read_exact(&mut self.reply).context(lost)?;
            let now = Instant::now();
            if recorder.done(since, now, self.label.block)? {
                sent.push_back(now);
                self.stream.write_all(&self.request).context(lost)?;
            }
        }
        Ok(recorder.end())
    }
}

impl Subject for PingPong<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let depth = usize::try_from(self.label.depth).unwrap_or(1);
        if depth > 1 {
            return self.several(depth, time);
        }
        let (bytes, stop) = (self.label.block, self.stop);
        one_by_one(time, stop, || {
            self.exchange().context(|| "the ping-pong's connection".into())?;
            Ok(bytes)
        })
    }
}

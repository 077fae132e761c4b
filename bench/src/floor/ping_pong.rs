//! The bench's side of a ping-pong.

use super::hello::Hello;
use super::socket::{Address, Stream};
use super::{Exchange, PLACE, Waiting};
use crate::data::{Aligned, Offsets};
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
    /// Where in the peer's memory replies come from; its beginning, if it does not say.
    offsets: Option<Offsets>,
    /// As many as there are round trips under way, as the client has.
    replies: Vec<Aligned>,
}

impl<'a> PingPong<'a> {
    /// Connects to the peer. The row counts `label.block` bytes for each round trip, and keeps
    /// `label.depth` of them under way.
    pub(crate) fn connect(
        address: &Address,
        label: Label,
        exchange: Exchange,
        waiting: Waiting,
        offsets: Option<&Offsets>,
        stop: &'a Stop,
    ) -> Result<Self> {
        let depth = usize::try_from(label.depth).unwrap_or(1);
        let connect = || -> io::Result<Stream> {
            let mut stream = Stream::connect(address)?;
            stream.write_all(&Hello { exchange, depth, waiting }.encode())?;
            stream.set_waiting(waiting)?;
            Ok(stream)
        };
        let stream = connect().context(|| "connecting to the ping-pong's peer".into())?;
        let mut request = vec![0xA5; exchange.request];
        if let Some(place) = request.first_chunk_mut::<PLACE>() {
            *place = [0; PLACE];
        }
        let replies = (0..label.depth).map(|_| Aligned::new(exchange.reply)).collect();
        Ok(Self { label, stop, stream, request, offsets: offsets.cloned(), replies })
    }

    fn send(&mut self) -> io::Result<()> {
        if let (Some(offsets), Some(place)) = (&mut self.offsets, self.request.first_chunk_mut()) {
            *place = offsets.next().to_le_bytes();
        }
        self.stream.write_all(&self.request)
    }

    /// Receives into one of the buffers.
    fn receive(&mut self, number: usize) -> io::Result<()> {
        self.stream.read_exact(self.replies[number].get_mut())
    }

    /// Keeps several round trips under way: for each reply another request.
    fn several(&mut self, depth: usize, time: Duration) -> Result<Block> {
        let mut recorder = Recorder::begin(time, self.stop);
        let mut sent = VecDeque::with_capacity(depth);
        for _ in 0..depth {
            sent.push_back(Instant::now());
            self.send().context(lost)?;
        }
        let mut number = 0;
        while let Some(since) = sent.pop_front() {
            self.receive(number).context(lost)?;
            number = (number + 1) % depth;
            let now = Instant::now();
            if recorder.done(since, now, self.label.block)? {
                sent.push_back(now);
                self.send().context(lost)?;
            }
        }
        Ok(recorder.end())
    }
}

fn lost() -> String {
    "the ping-pong's connection".into()
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
            self.send().and_then(|()| self.receive(0)).context(lost)?;
            Ok(bytes)
        })
    }
}

//! READs, as `ib_read_lat` and `ib_read_bw` do them.

use super::{Link, Plan, slab, succeeded, taken};
use crate::data::{self, Offsets, STEP};
use crate::error::{Context, Error, Result};
use crate::floor::hello::Hello;
use crate::floor::socket::Waiting;
use crate::floor::{Exchange, PAGE};
use crate::measure::{Block as Measured, Label, Recorder, Subject};
use crate::signals::Stop;
use dafs_client::ordma::rdma::{Access, Block, Kind, Op, Remote, Status, Work};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most bytes of one READ: every device can do so many.
const MOST: usize = 1 << 20;

/// One of the READs that an access consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it begins in the peer's memory, for the access to the first page.
    pub(crate) start: u64,
    /// How much further that is for each page that follows.
    pub(crate) stride: u64,
    /// Its bytes.
    pub(crate) len: usize,
}

impl Part {
    /// Where it begins for the access to a page.
    pub(crate) fn at(&self, page: u64) -> u64 {
        self.start + page * self.stride
    }
}

/// What reads so many bytes of pages that lie side by side: one READ if it can be.
pub(crate) fn whole(block: usize) -> Vec<Part> {
    (0..block)
        .step_by(MOST)
        .map(|start| Part {
            start: start as u64,
            stride: PAGE as u64,
            len: MOST.min(block - start),
        })
        .collect()
}

/// READs as a row.
#[derive(Debug)]
pub(crate) struct RawReads<'a> {
    label: Label,
    stop: &'a Stop,
    link: Link,
    parts: Vec<Part>,
    offsets: Offsets,
    waiting: Waiting,
    /// For accesses that are not under way, one of each part.
    free: Vec<Vec<Block>>,
    done: Vec<(Option<Block>, Status)>,
}

impl<'a> RawReads<'a> {
    /// Connects to the peer. Each access is all READs of `parts`, under one doorbell, for the page
    /// that is next among `offsets`; `label.depth` accesses are under way.
    pub(crate) fn connect(
        address: SocketAddr,
        label: Label,
        parts: Vec<Part>,
        offsets: Offsets,
        waiting: Waiting,
        stop: &'a Stop,
    ) -> Result<Self> {
        let depth = usize::try_from(label.depth).unwrap_or(1);
        let sends = depth * parts.len();
        let plan = Plan { sends, receives: 0, awaited: Kind::Send, readable: false };
        let hello = Hello { exchange: Exchange { request: 0, reply: 0 }, depth, waiting };
        let link = Link::connect(address, hello, plan)?;
        let mut free = Vec::new();
        for part in &parts {
            let slab = slab(link.side.pair.domain(), part.len, depth, Access::Local)?;
            let blocks: Result<Vec<_>> = (0..depth).map(|_| taken(&slab)).collect();
            free.push(blocks?);
        }
        Ok(Self { label, stop, link, parts, offsets, waiting, free, done: Vec::new() })
    }

    /// Begins an access; the page's offset in the file.
    fn post(&mut self) -> Result<u64> {
        let Self { link, parts, offsets, free, .. } = self;
        let (offset, last) = (offsets.next(), parts.len() - 1);
        let works = parts.iter().zip(free).enumerate().filter_map(|(i, (part, free))| {
            let mut local = free.pop()?;
            local.set_len(part.len);
            let Remote { address, key } = link.memory;
            let remote = Remote { address: address + part.at(offset / PAGE as u64), key };
            Some(Work { op: Op::Read(remote), local, signaled: i == last })
        });
        link.side.pair.post(works).context(|| "posting READs".into())?;
        Ok(offset)
    }

    /// Takes back the buffers of an access that has ended, whose READs are in `done`. Pages that lie
    /// in the peer's memory as they do in the file have to hold what the file does.
    fn end(&mut self, offset: u64) -> Result<()> {
        for (i, (block, status)) in self.done.drain(..).enumerate() {
            succeeded("a READ", status)?;
            let (Some(block), Some(part)) = (block, self.parts.get(i)) else { continue };
            if part.stride == PAGE as u64 {
                data::check(block.bytes(), offset + part.start)?;
            }
            self.free[i].push(block);
        }
        Ok(())
    }
}

const _: () = assert!(PAGE == STEP);

impl Subject for RawReads<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Measured> {
        let mut recorder = Recorder::begin(time, self.stop);
        let mut flights = VecDeque::new();
        for _ in 0..self.label.depth {
            flights.push_back((Instant::now(), self.post()?));
        }
        while !flights.is_empty() {
            self.link.wait(self.waiting)?;
            for at in 0..self.link.arrivals.found.len() {
                let completion = self.link.arrivals.found[at];
                self.link.side.pair.sent(&completion, &mut self.done);
                // They end in the order in which they were begun.
                let (since, offset) = flights
                    .pop_front()
                    .ok_or_else(|| Error::Peer("a completion of no READ".into()))?;
                self.end(offset)?;
                let now = Instant::now();
                if recorder.done(since, now, self.label.block)? {
                    flights.push_back((now, self.post()?));
                }
            }
        }
        Ok(recorder.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_one_read_or_several_of_a_mebibyte() {
        assert_eq!(whole(4096), [Part { start: 0, stride: 4096, len: 4096 }]);
        assert_eq!(whole(MOST).len(), 1);
        let parts = whole(2 * MOST + 8192);
        assert_eq!(parts.iter().map(|part| part.len).sum::<usize>(), 2 * MOST + 8192);
        assert_eq!(parts[2].at(3), 2 * (1 << 20) + 3 * 4096);
    }
}

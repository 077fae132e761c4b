//! The other side: memory that can be read, and an answer to each message.

use super::messages::Outgoing;
use super::{Arrivals, Plan, Side, device, readable, succeeded};
use crate::data::{self, STEP};
use crate::error::{Context, Error, Result};
use crate::floor::hello::Hello;
use dafs_client::ordma::rdma::{
    Access, Buffer, Domain, EventChannel, EventKind, Id, IdKey, Kind, Region, Remote,
};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

/// What an acceptance says of the memory: its address and its key.
const WELCOME: usize = 12;

fn welcome(memory: Remote) -> [u8; WELCOME] {
    let mut bytes = [0; WELCOME];
    bytes[..8].copy_from_slice(&memory.address.to_le_bytes());
    bytes[8..].copy_from_slice(&memory.key.to_le_bytes());
    bytes
}

pub(super) fn understand(bytes: &[u8; WELCOME]) -> Remote {
    let address = bytes.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
    let key = bytes.last_chunk().map_or(0, |four| u32::from_le_bytes(*four));
    Remote { address, key }
}

/// A peer that listens.
#[derive(Debug)]
pub(crate) struct Listening {
    _id: Id,
    events: Arc<EventChannel>,
    domain: Arc<Domain>,
    memory: Region,
}

impl Listening {
    /// Listens at an address of an RDMA device, with so many bytes of memory that hold what the
    /// file does; where it can be reached.
    pub(crate) fn new(address: IpAddr, len: usize) -> Result<(Self, SocketAddr)> {
        let what = || format!("listening at {address}");
        let (device, _id) = device(address)?;
        let domain = Domain::new(device).context(what)?;
        let buffer = Buffer::new(len).context(what)?;
        let mut page = [0; STEP];
        for offset in (0..len).step_by(STEP) {
            data::fill(&mut page, offset as u64);
            buffer.copy_in(offset, &page[..STEP.min(len - offset)]);
        }
        let memory = Region::new(&domain, buffer, Access::RemoteRead).context(what)?;
        let events = EventChannel::new().context(what)?;
        let id = Id::new(&events).context(what)?;
        id.bind(SocketAddr::new(address, 0)).context(what)?;
        id.listen(16).context(what)?;
        let at = SocketAddr::new(address, id.port());
        Ok((Self { _id: id, events, domain, memory }, at))
    }

    /// Serves connections. Returns only on failure.
    pub(crate) fn serve(&self) -> Result<()> {
        let mut connections: HashMap<IdKey, Arc<Side>> = HashMap::new();
        loop {
            let Some(event) = self.events.next().context(|| "listening".into())? else {
                readable(&[Some(self.events.as_fd())])?;
                continue;
            };
            match event.kind {
                EventKind::Request { id, .. } => {
                    let key = id.key();
                    // The other side says what went wrong, too.
                    match self.accept(id, &event.private) {
                        Ok(side) => drop(connections.insert(key, side)),
                        Err(error) => eprintln!("dafs-bench: a peer's connection: {error}"),
                    }
                }
                EventKind::Disconnected => {
                    if let Some(side) = connections.remove(&event.id) {
                        // Its receives come back, and whoever waits for them ends.
                        side.pair.fail().context(|| "ending a connection".into())?;
                    }
                }
                _ => {}
            }
        }
    }

    fn accept(&self, id: Id, hello: &[u8]) -> Result<Arc<Side>> {
        let hello = hello.first_chunk().map(Hello::decode);
        let hello = hello.ok_or_else(|| Error::Peer("it does not say what it wants".into()))?;
        let reads = hello.exchange.request == 0;
        let plan = if reads {
            Plan { sends: 0, receives: 0, awaited: Kind::Send, readable: true }
        } else {
            Outgoing::plan(hello.depth)
        };
        let (side, arrivals) = Side::new(id, &self.domain, plan)?;
        let side = Arc::new(side);
        let replies = (!reads).then(|| {
            // What is sent from memory takes longer than what lies in the CPU's cache.
            let count = self.memory.len() / hello.exchange.reply.max(1);
            Outgoing::new(&side, hello.exchange.reply, count.max(Outgoing::least(hello.depth)))
        });
        let replies = replies.transpose()?;
        side.ready(plan.receives, hello.exchange.request)?;
        let welcome = welcome(self.memory.remote(0));
        side.id.accept(side.parameters(&welcome)).context(|| "accepting".into())?;
        if let Some(replies) = replies {
            let side = Arc::clone(&side);
            std::thread::spawn(move || answer(&side, arrivals, hello, replies));
        }
        Ok(side)
    }
}

/// Answers messages until the connection ends, in whatever way: the other side says what went
/// wrong.
fn answer(side: &Side, mut arrivals: Arrivals, hello: Hello, mut replies: Outgoing) -> Result<()> {
    loop {
        arrivals.wait(hello.waiting, None)?;
        for completion in arrivals.found.drain(..) {
            succeeded("a message", completion.status)?;
            let Some(mut block) = side.pair.received(&completion) else { continue };
            let place = block.bytes().first_chunk().map_or(0, |place| u64::from_le_bytes(*place));
            block.set_len(block.capacity());
            side.pair.post_receive(block).context(|| "posting a receive".into())?;
            let length = hello.exchange.reply.max(1);
            let place = if hello.exchange.request < 8 { 0 } else { place };
            replies.send(usize::try_from(place).unwrap_or(0) / length, None)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_welcome_is_understood() {
        let memory = Remote { address: 0x1234_5678_9ABC_D000, key: 0xFEDC_BA98 };
        assert_eq!(understand(&welcome(memory)), memory);
    }
}

//! Floors over verbs: READs as `ib_read_lat` and `ib_read_bw` do them, and ping-pongs of messages.
//!
//! Both ends lie behind one device, so what it can do need not be agreed upon.

mod messages;
mod peer;
mod reads;

pub(crate) use messages::Messages;
pub(super) use peer::Listening;
pub(crate) use reads::{Part, RawReads, whole};

use super::hello::Hello;
use super::socket::Waiting;
use crate::error::{Context, Error, Result};
use dafs_client::ordma::rdma::{
    Access, Block, Cap, Channel, Completion, CompletionQueue, ConnectionParameters, Device, Domain,
    Event, EventChannel, EventKind, Id, Kind, QueuePair, Remote, Slab, Status, Tuning,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything may take that takes microseconds, or with connections milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages up to this length are sent from where they are.
const INLINE: usize = 128;
/// READs under way on a queue pair, where the device can have so many.
const READS: u8 = 16;

/// The device behind an address of this host, and what keeps a port of it.
pub(crate) fn device(address: IpAddr) -> Result<(Device, Id)> {
    let what = || format!("looking for an RDMA device at {address} (see --address)");
    let id = EventChannel::new().and_then(|events| Id::new(&events)).context(what)?;
    id.bind(SocketAddr::new(address, 0)).context(what)?;
    // An address such as 0.0.0.0 is that of no device.
    let device = id.device().ok_or_else(|| Error::Usage(what() + ": it names none"))?;
    Ok((device, id))
}

/// What a queue pair is for.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Requests of its send queue, and of its receive queue.
    sends: usize,
    receives: usize,
    /// Which of the two are waited for.
    awaited: Kind,
    /// Whether the peer may read.
    readable: bool,
}

/// A side of a connection.
#[derive(Debug)]
struct Side {
    id: Id,
    pair: QueuePair<Block, Block>,
    tuning: Tuning,
}

impl Side {
    /// A queue pair for a connection, and what to wait with.
    fn new(id: Id, domain: &Arc<Domain>, plan: Plan) -> Result<(Self, Arrivals)> {
        let what = || "making a queue pair".to_owned();
        let device = domain.device();
        let length = |requests: usize| u32::try_from(requests.max(1)).unwrap_or(u32::MAX);
        let (sends, receives) = (length(plan.sends), length(plan.receives));
        let channel = Channel::new(device).context(what)?;
        let both = sends.saturating_add(receives);
        let queue = CompletionQueue::new(device, both, Some(&channel)).context(what)?;
        // The ends of sends wake nobody who waits for a message.
        let quiet = match plan.awaited {
            Kind::Send => Arc::clone(&queue),
            Kind::Receive => CompletionQueue::new(device, sends, None).context(what)?,
        };
        let cap = Cap { sends, receives, parts: 1, inline: INLINE as u32 };
        let pair = QueuePair::new(domain, &quiet, &queue, cap).context(what)?;
        let info = device.info().context(what)?;
        let reads = READS.min(info.reads_in).min(info.reads_out);
        let tuning = Tuning {
            remote_read: plan.readable,
            remote_write: false,
            timeout: 14,
            retries: 6,
            not_ready_retries: 6,
            not_ready_timer: 1,
            mtu: info.mtu,
            reads_out: reads,
            reads_in: reads,
            packets: None,
        };
        let arrivals = Arrivals { queue, channel, armed: false, found: Vec::new() };
        Ok((Self { id, pair, tuning }, arrivals))
    }

    fn parameters<'a>(&self, private: &'a [u8]) -> ConnectionParameters<'a> {
        let Tuning { reads_in, reads_out, .. } = self.tuning;
        ConnectionParameters { pair: self.pair.number(), reads_in, reads_out, private }
    }

    /// Makes it ready to send, with receives posted before the peer can send anything: `receives`
    /// of `length` bytes.
    fn ready(&self, receives: usize, length: usize) -> Result<()> {
        let what = || "making a queue pair ready".to_owned();
        self.pair.init(&self.id, &self.tuning).context(what)?;
        if receives > 0 {
            let blocks = slab(self.pair.domain(), length, receives, Access::Local)?;
            for _ in 0..receives {
                self.pair.post_receive(taken(&blocks)?).context(what)?;
            }
        }
        self.pair.connect(&self.id, &self.tuning).context(what)
    }
}

/// Registered buffers that each begin on a page boundary, as memory for pages should.
fn slab(domain: &Arc<Domain>, length: usize, count: usize, access: Access) -> Result<Arc<Slab>> {
    let (stride, count) = (length.max(1).next_multiple_of(4096), count.max(1));
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Slab::new(domain, stride, count, access)
        .context(|| format!("registering {count} buffers of {stride} bytes"))
}

fn taken(slab: &Arc<Slab>) -> Result<Block> {
    slab.take().ok_or_else(|| Error::Peer("more buffers were taken than there are".into()))
}

/// Fails unless it ended as it should.
fn succeeded(what: &str, status: Status) -> Result<()> {
    if status.is_success() { Ok(()) } else { Err(Error::Peer(format!("{what}: {status}"))) }
}

/// Where completions arrive that are waited for.
#[derive(Debug)]
struct Arrivals {
    queue: Arc<CompletionQueue>,
    channel: Arc<Channel>,
    /// The channel will tell of the next one, or has told already.
    armed: bool,
    /// What has arrived.
    found: Vec<Completion>,
}

impl Arrivals {
    /// Waits until something has arrived. Where there are `events`, those of the connection, it
    /// waits no longer than that lives, and not for ever.
    fn wait(&mut self, waiting: Waiting, events: Option<&Arc<EventChannel>>) -> Result<()> {
        let what = || "waiting for completions".to_owned();
        self.found.clear();
        if self.queue.poll(&mut self.found).context(what)? > 0 {
            return Ok(());
        }
        let begun = Instant::now();
        while begun.elapsed() < waiting.spin() {
            if self.queue.poll(&mut self.found).context(what)? > 0 {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        while events.is_none() || begun.elapsed() < PATIENCE {
            if !self.armed {
                self.queue.arm().context(what)?;
                self.armed = true;
                if self.queue.poll(&mut self.found).context(what)? > 0 {
                    return Ok(());
                }
            }
            readable(&[Some(self.channel.as_fd()), events.map(|events| events.as_fd())])?;
            self.armed &= self.channel.take().context(what)?.is_none();
            if self.queue.poll(&mut self.found).context(what)? > 0 {
                return Ok(());
            }
            if let Some(event) = events.map_or(Ok(None), EventChannel::next).context(what)? {
                return Err(Error::Peer(format!("the peer's connection: {:?}", event.kind)));
            }
        }
        Err(Error::Peer(format!("nothing has arrived for {} s", PATIENCE.as_secs())))
    }
}

/// Sleeps until one of the descriptors is readable, for a second at most.
fn readable(descriptors: &[Option<BorrowedFd<'_>>]) -> Result<()> {
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds: Vec<_> = descriptors
        .iter()
        .flatten()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&second)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context(|| "sleeping".into()),
    }
}

/// The bench's side of a connection, and what the peer has said of its memory.
#[derive(Debug)]
struct Link {
    side: Arc<Side>,
    arrivals: Arrivals,
    events: Arc<EventChannel>,
    memory: Remote,
}

impl Link {
    /// Connects to a peer, which it says `hello` to.
    fn connect(address: SocketAddr, hello: Hello, plan: Plan) -> Result<Self> {
        let what = || format!("connecting to the peer at {address}");
        let events = EventChannel::new().context(what)?;
        let id = Id::new(&events).context(what)?;
        id.resolve_address(address, PATIENCE).context(what)?;
        expect(&events, address, |kind| matches!(kind, EventKind::AddressResolved))?;
        id.resolve_route(PATIENCE).context(what)?;
        expect(&events, address, |kind| matches!(kind, EventKind::RouteResolved))?;
        let device = id.device().ok_or_else(|| Error::Peer(what() + ": no device"))?;
        let domain = Domain::new(device).context(what)?;
        let (side, arrivals) = Side::new(id, &domain, plan)?;
        side.id.connect(side.parameters(&hello.encode())).context(what)?;
        let accepted = expect(&events, address, |kind| matches!(kind, EventKind::Accepted { .. }))?;
        let memory = accepted.private.first_chunk().map(peer::understand);
        let memory = memory.ok_or_else(|| Error::Peer(what() + ": it says nothing"))?;
        side.ready(plan.receives, hello.exchange.reply)?;
        side.id.establish().context(what)?;
        Ok(Self { side: Arc::new(side), arrivals, events, memory })
    }

    fn wait(&mut self, waiting: Waiting) -> Result<()> {
        self.arrivals.wait(waiting, Some(&self.events))
    }
}

/// The next event of a connection, which has to be a certain one.
fn expect(
    events: &Arc<EventChannel>,
    address: SocketAddr,
    wanted: impl Fn(&EventKind) -> bool,
) -> Result<Event> {
    let what = || format!("connecting to the peer at {address}");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match events.next().context(what)? {
            Some(event) if wanted(&event.kind) => return Ok(event),
            Some(Event { kind, status, .. }) => {
                return Err(Error::Peer(format!("{}: {kind:?}, status {status}", what())));
            }
            None => readable(&[Some(events.as_fd())])?,
        }
    }
    Err(Error::Peer(format!("{}: no answer", what())))
}

/// On a device, with both ends in this process.
#[cfg(all(test, feature = "device-tests"))]
mod device_tests {
    use super::*;
    use crate::data::Offsets;
    use crate::floor::Exchange;
    use crate::measure::{Label, Subject};
    use crate::signals::Stop;

    const SIZE: usize = 1 << 21;
    const WAITS: [Waiting; 3] = [Waiting::Blocking, Waiting::Spinning, Waiting::Polling];

    fn peer() -> SocketAddr {
        let address = std::env::var("DAFS_RDMA_ADDRESS").unwrap_or_else(|_| "10.9.9.1".into());
        let address = address.parse().expect("DAFS_RDMA_ADDRESS is an IP address");
        let (listening, at) = Listening::new(address, SIZE + SIZE / 64).unwrap();
        std::thread::spawn(move || listening.serve().unwrap());
        at
    }

    fn label(block: usize, depth: u64) -> Label {
        Label { path: "floor", block: block as u64, depth, clients: 1 }
    }

    fn run(subject: &mut dyn Subject, block: usize) {
        for _ in 0..3 {
            let done = subject.block(Duration::from_millis(2)).unwrap();
            assert_eq!(done.bytes, done.ops * block as u64);
        }
    }

    #[test]
    fn reads_bring_what_the_file_holds() {
        let (at, stop) = (peer(), Stop::default());
        for (block, depth) in [(4096, 1), (4096, 64), (1 << 20, 1), (1 << 20, 4), (SIZE, 2)] {
            for waiting in WAITS {
                let offsets = Offsets::random(SIZE as u64, block);
                let label = label(block, depth);
                let mut reads =
                    RawReads::connect(at, label, whole(block), offsets, waiting, &stop).unwrap();
                run(&mut reads, block);
            }
        }
    }

    #[test]
    fn a_read_past_the_memorys_end_is_an_error() {
        let (at, stop) = (peer(), Stop::default());
        let parts = vec![Part { start: 2 * SIZE as u64, stride: 0, len: 4096 }];
        let offsets = Offsets::random(SIZE as u64, 4096);
        let reads = RawReads::connect(at, label(4096, 1), parts, offsets, WAITS[0], &stop);
        let error = reads.unwrap().block(Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("refuses the access"), "{error}");
    }

    #[test]
    fn messages_come_back() {
        let (at, stop) = (peer(), Stop::default());
        let offsets = Offsets::random(SIZE as u64, 4096);
        let exchanges = [Exchange::byte(), Exchange::read(4096), Exchange::read(1 << 20)];
        let writes = [Exchange::write(64), Exchange::write(4096), Exchange::write(1 << 20)];
        for exchange in exchanges.into_iter().chain(writes) {
            for depth in [1, 8] {
                let (label, offsets) = (label(4096, depth), Some(&offsets));
                let waiting = WAITS[0];
                let messages = Messages::connect(at, label, exchange, waiting, offsets, &stop);
                run(&mut messages.unwrap(), 4096);
            }
        }
    }

    #[test]
    fn without_a_device_at_the_address_it_is_said_so() {
        let error = device([127, 0, 0, 1].into()).map(drop).unwrap_err();
        assert!(error.to_string().contains("--address"), "{error}");
    }
}

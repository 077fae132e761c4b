//! Two connected queue pairs in one process.

use ordma::rdma::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

pub fn address() -> SocketAddr {
    let host = std::env::var("DAFS_RDMA_ADDRESS").unwrap_or_else(|_| "10.9.9.1".to_owned());
    SocketAddr::new(host.parse().expect("DAFS_RDMA_ADDRESS is an IP address"), 0)
}

pub type Pair = QueuePair<Block, Block>;

/// One side.
pub struct Side {
    pub id: Id,
    pub channel: Arc<Channel>,
    pub queue: Arc<CompletionQueue>,
    pub pair: Pair,
    pub tuning: Tuning,
    pub slab: Arc<Slab>,
}

pub const CAP: Cap = Cap { sends: 64, receives: 16, parts: 4, inline: 128 };
pub const BLOCK: usize = 8192;

impl Side {
    fn new(id: Id) -> Self {
        let device = id.device().unwrap();
        let domain = Domain::new(device).unwrap();
        let channel = Channel::new(device).unwrap();
        let queue = CompletionQueue::new(device, 128, Some(&channel)).unwrap();
        let pair = Pair::new(&domain, &queue, &queue, CAP).unwrap();
        let info = device.info().unwrap();
        let tuning = Tuning {
            remote_read: true,
            remote_write: false,
            timeout: 14,
            retries: 3,
            not_ready_retries: 6,
            not_ready_timer: 1,
            mtu: info.mtu,
            reads_out: 16,
            reads_in: 16,
            packets: None,
        };
        let slab = Slab::new(&domain, BLOCK, 32, Access::RemoteWrite).unwrap();
        Self { id, channel, queue, pair, tuning, slab }
    }

    pub fn block(&self, byte: u8, len: usize) -> Block {
        let mut block = self.slab.take().unwrap();
        block.set_len(len);
        block.bytes_mut().fill(byte);
        block
    }

    pub fn parameters<'a>(&self, private: &'a [u8]) -> ConnectionParameters<'a> {
        ConnectionParameters { pair: self.pair.number(), reads_in: 16, reads_out: 16, private }
    }

    /// The next completion.
    pub fn completion(&self) -> Completion {
        self.completion_within(PATIENCE).expect("a completion")
    }

    pub fn completion_within(&self, time: Duration) -> Option<Completion> {
        let deadline = Instant::now() + time;
        let mut found = Vec::new();
        loop {
            self.queue.arm().unwrap();
            self.queue.poll(&mut found).unwrap();
            if let Some(first) = found.first() {
                assert_eq!(found.len(), 1, "tests wait for one at a time");
                return Some(*first);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait(&*self.channel, left);
            let _ = self.channel.take().unwrap();
        }
    }

    /// The end of the last request of the send queue.
    pub fn sent(&self) -> (Option<Block>, Status) {
        let mut done = Vec::new();
        self.pair.sent(&self.completion(), &mut done);
        done.pop().expect("a completion of the send queue")
    }

    pub fn read(&self, remote: Remote, len: usize) -> (Option<Block>, Status) {
        let local = self.block(0, len);
        self.pair.post([Work { op: Op::Read(remote), local, signaled: true }]).unwrap();
        self.sent()
    }
}

fn wait(fd: impl AsFd, time: Duration) {
    let time = Timespec::try_from(time).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).unwrap();
}

pub fn event(channel: &Arc<EventChannel>) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(event) = channel.next().unwrap() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event in time");
        wait(&**channel, Duration::from_secs(1));
    }
}

/// A connected client and server.
pub struct Wire {
    pub client: Side,
    pub server: Side,
    pub server_events: Arc<EventChannel>,
    _client_events: Arc<EventChannel>,
    _listening: Id,
}

impl Wire {
    pub fn new() -> Self {
        let (server_events, client_events) =
            (EventChannel::new().unwrap(), EventChannel::new().unwrap());
        let listening = Id::new(&server_events).unwrap();
        listening.bind(address()).expect("an RDMA device at DAFS_RDMA_ADDRESS (10.9.9.1)");
        listening.listen(16).unwrap();
        let at = SocketAddr::new(address().ip(), listening.port());

        let id = Id::new(&client_events).unwrap();
        id.resolve_address(at, PATIENCE).unwrap();
        assert!(matches!(event(&client_events).kind, EventKind::AddressResolved));
        id.resolve_route(PATIENCE).unwrap();
        assert!(matches!(event(&client_events).kind, EventKind::RouteResolved));
        let client = Side::new(id);
        client.id.connect(client.parameters(b"hello")).unwrap();

        let request = event(&server_events);
        assert_eq!(&request.private[..5], b"hello");
        let EventKind::Request { id, depths } = request.kind else { panic!("{request:?}") };
        assert_eq!(depths, (16, 16));
        let server = Side::new(id);
        server.pair.init(&server.id, &server.tuning).unwrap();
        server.pair.connect(&server.id, &server.tuning).unwrap();
        server.id.accept(server.parameters(b"welcome")).unwrap();

        let accepted = event(&client_events);
        assert!(matches!(accepted.kind, EventKind::Accepted { depths: (16, 16) }), "{accepted:?}");
        assert_eq!(&accepted.private[..7], b"welcome");
        client.pair.init(&client.id, &client.tuning).unwrap();
        client.pair.connect(&client.id, &client.tuning).unwrap();
        client.id.establish().unwrap();
        assert!(matches!(event(&server_events).kind, EventKind::Established));
        Self { client, server, server_events, _client_events: client_events, _listening: listening }
    }

    /// Takes both sides through RESET, with new packet numbers.
    pub fn cycle(&mut self, packets: (u32, u32)) {
        self.client.pair.reset().unwrap();
        self.server.pair.reset().unwrap();
        let server = Tuning { packets: Some((packets.1, packets.0)), ..self.server.tuning };
        let client = Tuning { packets: Some(packets), ..self.client.tuning };
        self.server.pair.init(&self.server.id, &server).unwrap();
        self.server.pair.connect(&self.server.id, &server).unwrap();
        self.client.pair.init(&self.client.id, &client).unwrap();
        self.client.pair.connect(&self.client.id, &client).unwrap();
    }
}

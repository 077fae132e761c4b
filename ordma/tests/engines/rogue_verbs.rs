//! Clients with queue pairs of their own that keep to nothing.

use crate::harness::*;
use dafs_keys::Protection;
use dafs_keys::tags::second_connection_proof;
use ordma::rdma::{
    Access, Block, Cap, Completion, CompletionQueue, ConnectionParameters, Domain, Event,
    EventChannel, EventKind, Id, Op, QueuePair, Remote, Slab, Status, Tuning, Work,
};
use ordma::{LinkError, ReadAccess};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Pair = QueuePair<Block, Block>;

/// Receives that a rogue says to have posted.
const WINDOW: u16 = 32;
const BLOCK: usize = 64 << 10;

struct Connection {
    id: Id,
    pair: Pair,
    queue: Arc<CompletionQueue>,
    slab: Arc<Slab>,
    answer: Vec<u8>,
    tuning: Tuning,
    /// Completions that were found and not looked at yet.
    found: RefCell<VecDeque<Completion>>,
    /// Packets that came while something else was waited for.
    packets: RefCell<VecDeque<Vec<u8>>>,
}

/// A client without an engine behind it.
struct Rogue {
    events: Arc<EventChannel>,
    at: SocketAddr,
    /// Most bytes of its packets, where these are not those that were agreed upon.
    mtu: Option<u32>,
}

fn hello(kind: u8, ticket: &[u8]) -> Vec<u8> {
    let mut bytes = b"DAFr\x01".to_vec();
    bytes.push(kind);
    bytes.extend(4096u16.to_le_bytes());
    bytes.extend(WINDOW.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend((64u32 << 10).to_le_bytes());
    bytes.extend((2u32 << 20).to_le_bytes());
    bytes.extend(ticket);
    bytes.resize(36, 0);
    bytes
}

impl Rogue {
    fn new(world: &World) -> Self {
        let at = world.listener.address().parse().unwrap();
        Self { events: EventChannel::new().unwrap(), at, mtu: None }
    }

    /// The next event of a connection.
    fn event(&self, id: &Id) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.next().unwrap() {
                Some(event) if event.id == id.key() => return event,
                // Of one that is over.
                Some(_) => continue,
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no event in time");
            let time = Timespec::try_from(left).unwrap();
            poll(&mut [PollFd::new(&*self.events, PollFlags::IN)], Some(&time)).unwrap();
        }
    }

    /// Connects with this hello, and so many receives posted; what came of it.
    fn try_connect(&self, hello: &[u8], receives: usize) -> Result<Connection, Event> {
        let id = Id::new(&self.events).unwrap();
        id.resolve_address(self.at, PATIENCE).unwrap();
        assert!(matches!(self.event(&id).kind, EventKind::AddressResolved));
        id.resolve_route(PATIENCE).unwrap();
        assert!(matches!(self.event(&id).kind, EventKind::RouteResolved));
        let device = id.device().unwrap();
        let domain = Domain::new(device).unwrap();
        let queue = CompletionQueue::new(device, 512, None).unwrap();
        let cap = Cap { sends: 256, receives: 64, parts: 1, inline: 64 };
        let pair = Pair::new(&domain, &queue, &queue, cap).unwrap();
        // Little for those that there are hundreds of.
        let blocks = if receives == 0 { 8 } else { 80 };
        let slab = Slab::new(&domain, BLOCK, blocks, Access::RemoteWrite).unwrap();
        let (reads_in, reads_out) = (16, 16);
        let agreed = |answer: &[u8]| u16::from_le_bytes([answer[6], answer[7]]).into();
        let number = pair.number();
        id.connect(ConnectionParameters { pair: number, reads_in, reads_out, private: hello })
            .unwrap();
        let event = self.event(&id);
        let EventKind::Accepted { .. } = event.kind else { return Err(event) };
        let tuning = Tuning {
            remote_read: true,
            remote_write: true,
            timeout: 14,
            retries: 3,
            not_ready_retries: 3,
            not_ready_timer: 1,
            mtu: self.mtu.unwrap_or_else(|| agreed(&event.private)),
            reads_out,
            reads_in,
            packets: None,
        };
        pair.init(&id, &tuning).unwrap();
        for _ in 0..receives {
            pair.post_receive(slab.take().unwrap()).unwrap();
        }
        pair.connect(&id, &tuning).unwrap();
        id.establish().unwrap();
        let (found, packets) = (RefCell::default(), RefCell::default());
        Ok(Connection { id, pair, queue, slab, answer: event.private, tuning, found, packets })
    }

    fn connect(&self, receives: usize) -> Connection {
        self.try_connect(&hello(1, &[]), receives).expect("a connection")
    }

    /// The connection for READs beside another.
    fn reads(&self, ticket: &[u8]) -> Connection {
        self.try_connect(&hello(2, ticket), 0).expect("a connection for READs")
    }
}

impl Connection {
    fn ticket(&self) -> [u8; 16] {
        self.answer[20..36].try_into().unwrap()
    }

    fn block(&self, bytes: &[u8]) -> Block {
        let mut block = self.slab.take().expect("a block");
        block.set_len(bytes.len());
        block.bytes_mut().copy_from_slice(bytes);
        block
    }

    /// The next completion within a time.
    fn completion(&self, time: Duration) -> Option<Completion> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(first) = self.found.borrow_mut().pop_front() {
                return Some(first);
            }
            let mut found = Vec::new();
            if self.queue.poll(&mut found).unwrap() == 0 {
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            self.found.borrow_mut().extend(found);
        }
    }

    /// Posts one request and waits for its end.
    fn post(&self, op: Op, bytes: &[u8]) -> (Option<Block>, Status) {
        let local = self.block(bytes);
        self.pair.post([Work { op, local, signaled: true }]).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut done = Vec::new();
        loop {
            let completion = self.completion(PATIENCE).expect("a completion");
            self.pair.sent(&completion, &mut done);
            if let Some(last) = done.pop() {
                return last;
            }
            self.keep(&completion);
            assert!(Instant::now() < deadline);
        }
    }

    /// Keeps a packet that has come.
    fn keep(&self, completion: &Completion) {
        if let Some(mut block) = self.pair.received(completion)
            && completion.status.is_success()
        {
            block.set_len(completion.len as usize);
            self.packets.borrow_mut().push_back(block.bytes().to_vec());
        }
    }

    fn read(&self, remote: Remote, len: usize) -> (Vec<u8>, Status) {
        let (block, status) = self.post(Op::Read(remote), &vec![0; len]);
        (block.unwrap().bytes().to_vec(), status)
    }

    /// A packet from the server.
    fn packet(&self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.packets.borrow_mut().pop_front() {
                return packet;
            }
            let completion = self.completion(PATIENCE).expect("a packet");
            self.keep(&completion);
            self.pair.sent(&completion, &mut Vec::new());
            assert!(Instant::now() < deadline);
        }
    }

    fn say(&self, bytes: &[u8]) -> Status {
        self.post(Op::Send, bytes).1
    }
}

/// A packet with these records and, if any, a message.
fn packet(granted: u16, records: &[u8], message: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![1, u8::from(message.is_some())];
    bytes.extend(granted.to_le_bytes());
    bytes.extend((records.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend((message.map_or(0, <[u8]>::len) as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(records);
    bytes.extend(message.unwrap_or_default());
    bytes
}

/// The server's side of a rogue, by the name that it gives itself.
fn link_of(world: &World, rogue: &Connection) -> Arc<dyn ordma::Link> {
    let name = format!("n{}", fastrand::u64(..));
    assert_eq!(rogue.say(&packet(0, &[], Some(name.as_bytes()))), Status::Success);
    world.service.0.wait("the rogue", |seen| {
        let at = seen.messages.iter().position(|(_, head, _)| head == name.as_bytes())?;
        let (id, _, _) = seen.messages.remove(at)?;
        seen.connected.iter().find(|link| link.id() == id).cloned()
    })
}

/// What the server says of its chunks: the first one's address and key.
fn chunk_told(connection: &Connection) -> Remote {
    loop {
        let bytes = connection.packet();
        let records = u16::from_le_bytes([bytes[4], bytes[5]]) as usize;
        let mut records = &bytes[16..16 + records];
        while let Some((kind, rest)) = records.split_first() {
            records = match kind {
                18 | 19 => rest,
                16 => {
                    return Remote {
                        address: u64::from_le_bytes(rest[4..12].try_into().unwrap()),
                        key: u32::from_le_bytes(rest[12..16].try_into().unwrap()),
                    };
                }
                other => panic!("record {other}"),
            };
        }
    }
}

/// A rogue that is let in: its two connections, and where the first chunk is.
fn let_in(world: &World) -> (Rogue, Connection, Connection, Remote, Arc<dyn ordma::Link>) {
    let rogue = Rogue::new(world);
    let messages = rogue.connect(48);
    let link = link_of(world, &messages);
    let reads = rogue.reads(&messages.ticket());
    link.allow_reads(Some(ReadAccess::default()));
    let chunk = chunk_told(&messages);
    (rogue, messages, reads, chunk, link)
}

fn works(world: &World) {
    let (_slot, reference) = world.page(9);
    let client = world.client();
    client.echo(b"e", &pattern(20_000));
    assert_eq!(client.read_one(reference), Ok(9));
}

#[test]
fn nothing_is_read_before_it_may_be() {
    let world = World::new(&Row::verbs());
    let (slot, _) = world.page(0x5A);
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let reads = rogue.reads(&messages.ticket());
    // It knows where the memory is, from elsewhere.
    let (_other, _m, _r, chunk, _l) = let_in(&world);
    assert_eq!(reads.read(chunk, 4096).1, Status::RemoteInvalid);
    // Nor on the connection for messages, whose domain has no chunks, after it was let in.
    link.allow_reads(Some(ReadAccess::default()));
    let refused = messages.read(chunk, 4096).1;
    assert!(matches!(refused, Status::RemoteInvalid | Status::RemoteAccess), "{refused}");
    assert!(matches!(world.wait_closed(link.id()), LinkError::Lost { .. }));
    // Nor is anything ever written.
    let (_rogue, _messages, reads, chunk, _link) = let_in(&world);
    assert_eq!(reads.post(Op::Write(chunk), &[0; 64]).1, Status::RemoteInvalid);
    drop(slot);
    works(&world);
}

/// A ticket alone is not enough where there was a handshake.
#[test]
fn a_stolen_ticket_reads_nothing() {
    let world = World::new(&Row::verbs().sealed());
    world.page(3);
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let reads = rogue.reads(&messages.ticket());
    let secret = dafs_keys::Secret::random().unwrap();
    let access = ReadAccess { connection: Some(secret.clone()), session: None };
    link.allow_reads(Some(access.clone()));
    let (_other, _m, _r, chunk, _l) = let_in(&world);
    assert_eq!(reads.read(chunk, 4096).1, Status::RemoteInvalid);
    // With a proof over another nonce it is thrown out.
    let proof = second_connection_proof(&secret, &[7; 16]);
    messages.say(&packet(0, &[&[3][..], &proof].concat(), None));
    assert!(matches!(world.wait_closed(link.id()), LinkError::Protocol { .. }));
    // A ticket is good once, and those that were never given are good for nothing.
    for ticket in [messages.ticket(), [9; 16]] {
        let refused = rogue.try_connect(&hello(2, &ticket), 0).err().expect("refused");
        assert!(matches!(refused.kind, EventKind::Rejected), "{refused:?}");
    }
    // The right proof opens it.
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let reads = rogue.reads(&messages.ticket());
    link.allow_reads(Some(access));
    let nonce: [u8; 16] = reads.answer[20..36].try_into().unwrap();
    let proof = second_connection_proof(&secret, &nonce);
    messages.say(&packet(0, &[&[3][..], &proof].concat(), None));
    let chunk = chunk_told(&messages);
    assert_eq!(reads.read(chunk, 4096).1, Status::Success);
    works(&world);
}

/// Reads all memory that it is given; how often the marker, a page of one byte, is in it.
fn look_for_marker(row: &Row) -> usize {
    const MARK: u8 = 0xA7;
    let world = World::new(row);
    let pages: Vec<_> = (0..32).map(|_| world.page(MARK)).collect();
    let (_rogue, _messages, reads, chunk, _link) = let_in(&world);
    let len = world.arena.geometry().chunk_len();
    let mut memory = Vec::with_capacity(len);
    while memory.len() < len {
        let at = Remote { address: chunk.address + memory.len() as u64, ..chunk };
        let (bytes, status) = reads.read(at, BLOCK.min(len - memory.len()));
        assert_eq!(status, Status::Success);
        memory.extend(bytes);
    }
    // And not a byte beyond.
    let beyond = Remote { address: chunk.address + len as u64 - 63, ..chunk };
    assert_eq!(reads.read(beyond, 64).1, Status::RemoteAccess);
    drop(pages);
    works(&world);
    memory.windows(32).filter(|bytes| **bytes == [MARK; 32]).count()
}

#[test]
fn the_whole_arena_tells_nothing_at_sealed() {
    assert_eq!(look_for_marker(&Row::verbs().sealed()), 0);
}

#[test]
fn the_same_look_finds_it_at_none() {
    assert!(look_for_marker(&Row::verbs()) > 32 * 4000);
}

#[test]
fn guessed_keys_bring_nothing() {
    let row = Row::verbs();
    assert_eq!(row.level, Protection::None);
    let world = World::new(&row);
    let (_rogue, messages, mut reads, chunk, link) = let_in(&world);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 1..=40u32 {
        // Keys count up in their upper 24 bits, so these are of other regions of the server, those
        // that it receives messages in among them.
        let key = match round % 2 {
            0 => chunk.key.wrapping_add(random.u32(1..64) << 8) ^ random.u32(..256),
            _ => random.u32(..),
        };
        if key == chunk.key {
            continue;
        }
        let (bytes, status) = reads.read(Remote { key, ..chunk }, 4096);
        assert_eq!(status, Status::RemoteAccess, "key {key:#x}");
        assert!(bytes.iter().all(|byte| *byte == 0));
        // Its queue pair is down now; it asks politely for it to be brought back.
        std::thread::sleep(Duration::from_millis(6));
        let mut record = vec![5];
        record.extend(round.to_le_bytes());
        record.extend(77u32.to_le_bytes());
        assert_eq!(messages.say(&packet(8, &record, None)), Status::Success);
        let theirs = loop {
            let bytes = messages.packet();
            let records = u16::from_le_bytes([bytes[4], bytes[5]]) as usize;
            if records == 9 && bytes[16] == 22 {
                break u32::from_le_bytes(bytes[21..25].try_into().unwrap());
            }
        };
        reads.pair.reset().unwrap();
        reads.tuning.packets = Some((77, theirs));
        reads.pair.init(&reads.id, &reads.tuning).unwrap();
        reads.pair.connect(&reads.id, &reads.tuning).unwrap();
        messages.pair.post_receive(messages.slab.take().unwrap()).unwrap();
    }
    assert_eq!(reads.read(chunk, 64).1, Status::Success);
    assert!(world.service.0.change(|seen| seen.closed.is_empty()), "{link:?}");
    works(&world);
}

/// What makes the server's device fail a queue pair is that of who did it.
#[test]
fn invalidations_harm_nobody_else() {
    let world = World::new(&Row::verbs());
    let (_slot, reference) = world.page(4);
    let client = world.client();
    for reads_too in [false, true] {
        let (_rogue, messages, reads, chunk, link) = let_in(&world);
        let victim = if reads_too { &reads } else { &messages };
        for _ in 0..3 {
            victim.post(Op::SendInvalidate(chunk.key), &packet(0, &[], Some(b"d")));
        }
        if !reads_too {
            assert!(matches!(world.wait_closed(link.id()), LinkError::Lost { .. }));
        }
        client.echo(b"e", &pattern(9000));
        assert_eq!(client.read_one(reference), Ok(4));
    }
    works(&world);
}

#[test]
fn who_posts_no_receives_is_cut_off_alone() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(0);
    let link = link_of(&world, &messages);
    for _ in 0..64 {
        link.send(b"a reply that nobody takes", &[7; 1000]);
        client.echo(b"e", &[1; 100]);
    }
    let reason = world.wait_closed(link.id());
    assert!(reason.to_string().contains("posts no receives"), "{reason}");
    works(&world);
}

/// More than it has credits for, as fast as it goes.
#[test]
fn a_flood_is_its_own_harm() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let (_slot, reference) = world.page(4);
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let until = Instant::now() + Duration::from_secs(1);
    let (mut sent, mut answered) = (0u32, 0);
    let mut done = Vec::new();
    let mut found = Vec::new();
    'flood: while Instant::now() < until {
        let room = messages.pair.room().min(messages.slab.available());
        let works: Vec<_> = (0..room)
            .map(|_| {
                let local = messages.block(&packet(0, &[], Some(b"d flood")));
                Work { op: Op::Send, local, signaled: true }
            })
            .collect();
        sent += works.len() as u32;
        messages.pair.post(works).unwrap();
        found.clear();
        messages.queue.poll(&mut found).unwrap();
        for completion in &found {
            messages.pair.sent(completion, &mut done);
            messages.pair.received(completion);
        }
        if done.drain(..).any(|(_, status)| !status.is_success()) {
            break 'flood;
        }
        client.echo(b"e", &[1; 100]);
        assert_eq!(client.read_one(reference), Ok(4));
        answered += 1;
    }
    println!("{sent} packets were sent, while others did {answered} requests and reads");
    assert!(sent > 100 && answered > 10, "{sent} {answered}");
    link.close("the test says so");
    works(&world);
}

#[test]
fn garbage_ends_the_connection_with_a_name() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let rogue = Rogue::new(&world);
    let records = |bytes: &[u8]| packet(0, bytes, None);
    let advert = |tag: u64| [&[1][..], &tag.to_le_bytes(), &[0; 2]].concat();
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("a packet of 3 bytes", vec![1, 2, 3]),
        ("a packet of format 9", [&[9][..], &[0; 20]].concat()),
        ("unknown flags", [&[1, 8][..], &[0; 20]].concat()),
        ("records longer than", [&[1, 0, 0, 0, 200, 0][..], &[0; 20]].concat()),
        ("record kind 77", records(&[77])),
        ("half a record", records(&[2, 1])),
        ("a server's record", records(&[18])),
        (
            "a buffer of 60000 pieces",
            records(&[&[1][..], &[1; 8], &60000u16.to_le_bytes()].concat()),
        ),
        ("is advertised after", records(&[advert(5), advert(5)].concat())),
        ("no queue pair to bring back", records(&[&[5][..], &[0; 8]].concat())),
        ("it has handled packets that were not sent", {
            let mut bytes = packet(0, &[], Some(b"d"));
            bytes[6] = 9;
            bytes
        }),
        ("exceeds the limits", {
            let mut bytes = packet(0, &[], Some(b"d"));
            bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes
        }),
        ("without a beginning", [packet(0, &[], None), b"stray".to_vec()].concat()),
    ];
    for (why, bytes) in rows {
        let messages = rogue.connect(40);
        let link = link_of(&world, &messages);
        messages.say(&bytes);
        let reason = world.wait_closed(link.id());
        assert!(matches!(reason, LinkError::Protocol { .. }), "{why}: {reason}");
        assert!(reason.to_string().contains(why), "{why}: {reason}");
        client.echo(b"e", &[1; 100]);
    }
    // Credits without end, in two packets.
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    for _ in 0..2 {
        messages.say(&packet(u16::MAX, &[], Some(b"d")));
    }
    assert!(world.wait_closed(link.id()).to_string().contains("more credits"));
    // Longer than any receive: the device itself refuses.
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    assert!(!messages.say(&[1; 20_000]).is_success());
    world.wait_closed(link.id());
    works(&world);
}

#[test]
fn hellos_that_make_no_sense_are_refused() {
    let world = World::new(&Row::verbs());
    let rogue = Rogue::new(&world);
    let change = |at: usize, byte: u8| {
        let mut bytes = hello(1, &[]);
        bytes[at] = byte;
        bytes
    };
    for bytes in [Vec::new(), vec![7; 56], change(0, 0), change(4, 9), change(5, 3), change(8, 0)] {
        let refused = rogue.try_connect(&bytes, 1).err().expect("refused");
        assert!(matches!(refused.kind, EventKind::Rejected), "{refused:?}");
    }
    works(&world);
}

/// Connects until that is refused.
fn connect_all(rogue: &Rogue) -> Vec<Connection> {
    let mut taken = Vec::new();
    loop {
        match rogue.try_connect(&hello(1, &[]), 0) {
            Ok(connection) => taken.push(connection),
            Err(refused) => {
                assert!(matches!(refused.kind, EventKind::Rejected), "{refused:?}");
                return taken;
            }
        }
        assert!(taken.len() < 2000, "nobody is ever refused");
    }
}

/// Connections take receives of the server until there are none left.
#[test]
fn who_takes_all_receives_starves_nobody() {
    raise_descriptors();
    let world = World::new(&Row::verbs());
    let client = world.client();
    let rogue = Rogue::new(&world);
    let taken = connect_all(&rogue);
    // What is left over is too little for another one, but not for READs.
    let rest = taken.iter().take(16);
    let reads: Vec<_> =
        rest.map(|connection| rogue.try_connect(&hello(2, &connection.ticket()), 0)).collect();
    println!("{} connections, and {} for READs", taken.len(), reads.iter().flatten().count());
    let (_slot, reference) = world.page(4);
    for _ in 0..5 {
        client.echo(b"e", &pattern(100_000));
        assert_eq!(client.read_one(reference), Ok(4));
    }
    // Places that become free are taken.
    let count = taken.len();
    drop((taken, reads));
    world.service.0.wait("the ends", |seen| (seen.closed.len() >= count).then_some(()));
    works(&world);
}

/// 48 KiB of receives a client, and for each that is let in its share of a quarter more.
#[test]
fn how_many_can_connect_is_a_setting() {
    raise_descriptors();
    for (receives, expected) in [(1 << 20, 15..=21), (4 << 20, 60..=85)] {
        let settings = ordma::verbs::Settings { receives, ..Default::default() };
        let world = World::new(&Row::verbs_with(settings));
        let _client = world.client();
        let taken = connect_all(&Rogue::new(&world)).len();
        assert!(expected.contains(&taken), "{taken} connections with {receives} bytes");
    }
}

/// What is to be said to one who gives no credits is kept for it, but not without end.
#[test]
fn who_asks_and_takes_no_answers_is_cut_off() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let withdrawals: Vec<u8> =
        (1..800u64).flat_map(|tag| [&[2][..], &tag.to_le_bytes()].concat()).collect();
    for _ in 0..40 {
        if !messages.say(&packet(0, &withdrawals, None)).is_success() {
            break;
        }
    }
    let reason = world.wait_closed(link.id());
    assert!(matches!(reason, LinkError::Protocol { .. }), "{reason}");
    assert!(reason.to_string().contains("takes no answers"), "{reason}");
    client.echo(b"e", &[1; 100]);
    works(&world);
}

/// Failing and asking for the queue pair back, again and again.
#[test]
fn who_fails_too_often_is_thrown_out() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let (_rogue, messages, _reads, _chunk, link) = let_in(&world);
    // Twice at a time, without an answer in between.
    messages.say(&packet(8, &[5, 1, 0, 0, 0, 1, 0, 0, 0, 5, 2, 0, 0, 0, 1, 0, 0, 0], None));
    let reason = world.wait_closed(link.id());
    assert!(reason.to_string().contains("too often"), "{reason}");
    client.echo(b"e", &[1; 100]);
    works(&world);
}

/// Tells the server of a buffer, as number 8; when this returns, that is understood.
fn advertise(world: &World, messages: &Connection) -> Block {
    let block = messages.slab.take().unwrap();
    let advert = [
        &[1][..],
        &8u64.to_le_bytes(),
        &1u16.to_le_bytes(),
        &block.remote().address.to_le_bytes(),
        &block.remote().key.to_le_bytes(),
        &(BLOCK as u32).to_le_bytes(),
    ];
    assert_eq!(messages.say(&packet(0, &advert.concat(), None)), Status::Success);
    link_of(world, messages);
    block
}

/// What waits for all clients is bounded: who has most of it goes.
#[test]
fn replies_that_nobody_takes_share_a_bounded_memory() {
    let settings = ordma::verbs::Settings { send_memory: 512 << 10, ..Default::default() };
    let world = World::new(&Row::verbs_with(settings));
    let rogue = Rogue::new(&world);
    let connections = [rogue.connect(48), rogue.connect(48)];
    let links = connections.each_ref().map(|connection| link_of(&world, connection));
    // Part of it goes into the receives that the client has posted.
    for _ in 0..4 {
        links[1].send(b"what is not taken", &[1; 150_000]);
    }
    assert!(world.service.0.change(|seen| seen.closed.is_empty()), "there is room for that");
    for _ in 0..4 {
        links[0].send(b"what is not taken", &[1; 150_000]);
    }
    let reason = world.wait_closed(links[1].id());
    assert!(reason.to_string().contains("for all clients"), "{reason}");
    assert!(world.service.0.change(|seen| seen.closed.len()) == 1, "{links:?}");
    works(&world);
}

/// Who takes nothing of what waits is cut off, also where there is room.
#[test]
fn who_takes_nothing_for_long_is_cut_off() {
    let settings = ordma::verbs::Settings {
        patience: Duration::from_millis(200),
        take_patience: Duration::from_secs(1),
        ..Default::default()
    };
    let world = World::new(&Row::verbs_with(settings));
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(48);
    let link = link_of(&world, &messages);
    for _ in 0..usize::from(WINDOW) + 8 {
        link.send(b"what is not taken", &[]);
    }
    let reason = world.wait_closed(link.id());
    assert!(reason.to_string().contains("has taken nothing"), "{reason}");
    works(&world);
}

/// A READ whose answers do not fit together, so that the device waits for the rest for ever.
#[test]
fn a_read_without_an_end_ends_the_connection() {
    let settings =
        ordma::verbs::Settings { patience: Duration::from_secs(1), ..Default::default() };
    let world = World::new(&Row::verbs_with(settings));
    let rogue = Rogue { mtu: Some(1024), ..Rogue::new(&world) };
    let messages = rogue.connect(48);
    let link = link_of(&world, &messages);
    let _block = advertise(&world, &messages);
    // Some come to an end by chance.
    let ends = |_: &usize| block_on(link.read_from(8, 0, vec![1; 5000])).is_ok();
    assert!((0..100).take_while(ends).count() < 100, "all READs are answered");
    // A device may notice by itself.
    let reason = world.wait_closed(link.id());
    assert!(matches!(reason, LinkError::Lost { .. }), "{reason}");
    works(&world);
}

/// A buffer that is never named, and one behind messages that are never taken: what the server wants to
/// do with it ends, and goes another way.
#[test]
fn transfers_that_a_client_lets_wait_end() {
    let settings =
        ordma::verbs::Settings { patience: Duration::from_secs(1), ..Default::default() };
    let world = World::new(&Row::verbs_with(settings));
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(48);
    let link = link_of(&world, &messages);
    assert_eq!(block_on(link.write_to(7, vec![1; 5000])).unwrap(), [1; 5000]);
    assert!(block_on(link.read_from(7, 0, vec![1; 5000])).is_err());
    let _block = advertise(&world, &messages);
    assert!(block_on(link.read_from(8, 0, vec![1; 5000])).is_ok());
    for _ in 0..usize::from(WINDOW) + 8 {
        link.send(b"what is not taken", &[]);
    }
    let (place, fetch) = (link.write_to(8, vec![1; 5000]), link.read_from(8, 0, vec![1; 5000]));
    assert_eq!((place.moved(), fetch.moved()), (Some(0), Some(0)), "the engine says how far it is");
    assert_eq!(block_on(place).unwrap(), [1; 5000]);
    assert!(block_on(fetch).is_err());
    assert!(world.service.0.change(|seen| seen.closed.is_empty()), "{link:?}");
    works(&world);
}

fn rearm(life: u32) -> Vec<u8> {
    packet(8, &[&[5][..], &life.to_le_bytes(), &77u32.to_le_bytes()].concat(), None)
}

/// A stranger's queue pair is not worked upon.
#[test]
fn nothing_is_brought_back_before_reads_are_allowed() {
    let world = World::new(&Row::verbs().sealed());
    let client = world.stranger();
    let rogue = Rogue::new(&world);
    let messages = rogue.connect(40);
    let link = link_of(&world, &messages);
    let _reads = rogue.reads(&messages.ticket());
    messages.say(&rearm(1));
    let reason = world.wait_closed(link.id());
    assert!(matches!(reason, LinkError::Protocol { .. }), "{reason}");
    // It depends on which of the two connections the server hears of first.
    let why = ["before READs are allowed", "no queue pair to bring back"];
    assert!(why.iter().any(|why| reason.to_string().contains(why)), "{reason}");
    client.echo(b"e", &[1; 100]);
}

/// Who politely waits for each answer, and then asks again, gets ever fewer.
#[test]
fn bringing_back_again_and_again_takes_longer() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let (_rogue, messages, _reads, _chunk, link) = let_in(&world);
    let until = Instant::now() + Duration::from_secs(3);
    let mut answered = 0u32;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(6));
        assert_eq!(messages.say(&rearm(answered + 1)), Status::Success);
        while messages.packet().get(16) != Some(&22) {}
        messages.pair.post_receive(messages.slab.take().unwrap()).unwrap();
        answered += 1;
    }
    println!("{answered} in 3 s");
    assert!(answered <= 40, "{answered} times in 3 s");
    assert!(world.service.0.change(|seen| seen.closed.is_empty()), "{link:?}");
    client.echo(b"e", &[1; 100]);
    works(&world);
}

/// What the kernel knows of queue pairs, regions and the like.
fn resources() -> Vec<String> {
    let output = std::process::Command::new("rdma").args(["resource", "show"]).output();
    let output = output.expect("the command rdma (package iproute2)");
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn nothing_is_left_of_connections_that_are_over() {
    let world = World::new(&Row::verbs());
    // What the server keeps for the next ones.
    works(&world);
    drop(let_in(&world));
    let settle = |what: &str, expected: Option<&[String]>| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = resources();
            if expected.is_none_or(|expected| *expected == now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{what}: {now:?} instead of {expected:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    std::thread::sleep(Duration::from_millis(300));
    let before = settle("before", None);
    for round in 0..3 {
        let clients: Vec<_> = (0..4).map(|_| world.client()).collect();
        let rogues: Vec<_> = (0..2).map(|_| let_in(&world)).collect();
        let (during, before_text) = (resources(), &before);
        assert_ne!(during, *before_text);
        match round {
            0 => clients.iter().for_each(|client| client.endpoint.close()),
            1 => clients.iter().for_each(|client| client.link.close("the test says so")),
            _ => {}
        }
        drop((clients, rogues));
        world.service.0.change(|seen| seen.connected.clear());
        settle("after", Some(&before));
    }
}

//! Peers that do not keep to the protocol, over both stream engines.

use crate::harness::*;
use ordma::ReadAccess;
use ordma::{AccessFault, Link, LinkError, RemoteRef, shm, tcp};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A connection without an engine behind it.
pub trait Raw: Read + Write + Send {}
impl<T: Read + Write + Send> Raw for T {}

pub fn dial(world: &World) -> Box<dyn Raw> {
    let address = world.listener.address();
    if world.engine.name() == "tcp" {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Box::new(socket)
    } else {
        Box::new(dial_unix(&address))
    }
}

pub fn dial_unix(path: &str) -> UnixStream {
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn hello(ticket: Option<[u8; 16]>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(b"\xDAFSordma");
    bytes[8] = 1;
    bytes[10] = if ticket.is_some() { 2 } else { 1 };
    bytes[16..].copy_from_slice(&ticket.unwrap_or_default());
    bytes
}

/// Introduces itself, and returns the ticket.
pub fn greet(socket: &mut (impl Raw + ?Sized), ticket: Option<[u8; 16]>) -> [u8; 16] {
    socket.write_all(&hello(ticket)).unwrap();
    let mut answer = [0; 48];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[10], 0, "welcome");
    answer[32..].try_into().unwrap()
}

fn frame(kind: u8, head: u32, data: u64, tag: u64) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(head.to_le_bytes());
    bytes.extend(data.to_le_bytes());
    bytes.extend(tag.to_le_bytes());
    bytes
}

/// Waits for the other side to close.
pub fn expect_end(socket: &mut (impl Raw + ?Sized)) {
    let mut buffer = [0; 65536];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let kind = error.kind();
                assert_ne!(kind, std::io::ErrorKind::WouldBlock, "not closed in time");
                return;
            }
        }
    }
}

fn rows(patience: Duration, receive_memory: usize) -> [Row; 2] {
    rows_with(tcp::Settings { patience, receive_memory, ..Default::default() })
}

fn rows_with(settings: tcp::Settings) -> [Row; 2] {
    [Row::tcp_with(settings.clone()), Row::shm_with(shm::Settings { ..settings })]
}

fn both(test: impl Fn(&World)) {
    for row in rows(Duration::from_millis(300), 16 << 20) {
        let world = World::new(&row);
        let bystander = world.client();
        test(&world);
        bystander.echo(b"e", &pattern(100_000));
        let (_slot, reference) = world.page(8);
        assert_eq!(bystander.read_one(reference), Ok(8));
    }
}

#[test]
fn garbage_is_no_hello() {
    both(|world| {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xDA], &[0xFF; 5000]] {
            let mut socket = dial(world);
            socket.write_all(garbage).unwrap();
            expect_end(&mut *socket);
        }
        let connected = world.service.0.change(|seen| seen.connected.len());
        assert_eq!(connected, 1, "the service hears of none of them");
    });
}

#[test]
fn half_a_hello_runs_out_of_time() {
    both(|world| {
        let mut sockets: Vec<_> = (0..20).map(|_| dial(world)).collect();
        for (i, socket) in sockets.iter_mut().enumerate() {
            socket.write_all(&hello(None)[..i]).unwrap();
        }
        sockets.iter_mut().for_each(|socket| expect_end(&mut **socket));
    });
}

#[test]
fn tickets_are_good_once() {
    both(|world| {
        let mut first = dial(world);
        let ticket = greet(&mut *first, None);
        let mut stranger = dial(world);
        stranger.write_all(&hello(Some([7; 16]))).unwrap();
        let mut answer = [0; 48];
        stranger.read_exact(&mut answer).unwrap();
        assert_eq!(answer[10], 1, "unknown ticket");
        expect_end(&mut *stranger);
        let mut second = dial(world);
        greet(&mut *second, Some(ticket));
        let mut third = dial(world);
        third.write_all(&hello(Some(ticket))).unwrap();
        expect_end(&mut *third);
        // One of a session's connections does not outlive the other.
        drop(second);
        expect_end(&mut *first);
    });
}

#[test]
fn lengths_beyond_the_limits_close_the_link() {
    let bad = [
        frame(1, (65 << 10) + 1, 0, 0),
        frame(1, 0, (2 << 20) + 1, 0),
        frame(1, u32::MAX, u64::MAX, 0),
        frame(2, 0, 10, 1),
        frame(3, 24, 0, 1),
        frame(4, 0, 10, 99),
        frame(5, 0, 0, 99),
        frame(9, 0, 0, 0),
    ];
    both(|world| {
        for bytes in &bad {
            let mut socket = dial(world);
            greet(&mut *socket, None);
            // Kinds that are answered with a refusal need their head or data to be looked at.
            socket.write_all(&[&bytes[..], &[0; 24]].concat()).unwrap();
            expect_end(&mut *socket);
        }
        let told = world
            .service
            .0
            .wait("the ends", |seen| (seen.closed.len() == bad.len()).then(|| seen.closed.clone()));
        for (_, reason) in told {
            assert!(matches!(reason, LinkError::Protocol { .. }), "{reason}");
        }
    });
}

#[test]
fn nonsense_on_the_second_connection_closes_both() {
    both(|world| {
        let mut first = dial(world);
        let ticket = greet(&mut *first, None);
        let mut second = dial(world);
        greet(&mut *second, Some(ticket));
        second.write_all(&[0xFF; 64]).unwrap();
        expect_end(&mut *second);
        expect_end(&mut *first);
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    both(|world| {
        let mut socket = dial(world);
        greet(&mut *socket, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.get(1).cloned());
        // Not one that was told it may: this one is a stranger to the service.
        let piece = pattern(1 << 20);
        for _ in 0..40 {
            link.send(b"take this", &piece);
        }
        let reason = world.wait_closed(link.id()).to_string();
        assert!(reason.contains("does not take its replies"), "{reason}");
        assert!(block_on(link.write_to(1, vec![1])).is_err());
    });
}

#[test]
fn a_transfer_to_a_client_that_takes_nothing_ends_with_it() {
    both(|world| {
        let mut socket = dial(world);
        greet(&mut *socket, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.get(1).cloned());
        let transfers: Vec<_> = (0..20).map(|i| link.write_to(i, vec![1; 2 << 20])).collect();
        drop(socket);
        assert!(transfers.into_iter().map(block_on).any(|result| result.is_err()));
    });
}

#[test]
fn idle_and_half_idle_connections_disturb_no_one() {
    for row in rows(Duration::from_secs(60), 1 << 20) {
        let world = World::new(&row);
        let client = world.client();
        let mut idle = Vec::new();
        for i in 0..200 {
            let mut socket = dial(&world);
            if i % 4 > 0 {
                greet(&mut *socket, None);
            }
            match i % 4 {
                2 => socket.write_all(&frame(1, 10, 10, 0)[..12]).unwrap(),
                3 => {
                    // The most that may be announced, and little of it sent.
                    let start = [frame(1, 64 << 10, 2 << 20, 0), vec![1; 1000]].concat();
                    socket.write_all(&start).unwrap();
                }
                _ => {}
            }
            idle.push(socket);
        }
        // A large message of one that was let in is not kept waiting by them.
        for i in 0..20 {
            client.echo(&[b'e', i], &pattern(700_000));
        }
    }
}

#[test]
fn incomplete_messages_share_a_bounded_memory() {
    for row in rows(Duration::from_millis(200), 1 << 20) {
        let world = World::new(&row);
        let mut socket = dial(&world);
        greet(&mut *socket, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.first().cloned());
        link.allow_reads(Some(ReadAccess::default()));
        socket.write_all(&[frame(1, 0, 1 << 20, 0), vec![1; 100_000]].concat()).unwrap();
        // Waits for the memory that the other one has taken, until that one is cut off.
        let client = world.client();
        client.echo(b"e", &pattern(900_000));
        let reason = world.wait_closed(link.id()).to_string();
        assert!(reason.contains("stood still"), "{reason}");
    }
}

#[test]
fn a_byte_now_and_then_keeps_no_memory() {
    for row in rows(Duration::from_millis(500), 1 << 20) {
        let world = World::new(&row);
        let mut socket = dial(&world);
        greet(&mut *socket, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.first().cloned());
        link.allow_reads(Some(ReadAccess::default()));
        socket.write_all(&[frame(1, 0, 1 << 20, 0), vec![1; 100_000]].concat()).unwrap();
        let client = world.client();
        std::thread::scope(|scope| {
            // Until it is cut off.
            scope.spawn(|| {
                for _ in 0..PATIENCE.as_millis() / 20 {
                    if socket.write_all(&[1]).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            client.echo(b"e", &pattern(900_000));
            let reason = world.wait_closed(link.id()).to_string();
            assert!(reason.contains("stood still"), "{reason}");
        });
    }
}

/// Links of clients by hand, which take nothing.
fn links_of(world: &World, count: usize) -> Vec<(Box<dyn Raw>, Arc<dyn Link>)> {
    let known = world.service.0.change(|seen| seen.connected.len());
    let dial_one = |number| {
        let mut socket = dial(world);
        greet(&mut *socket, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.get(number).cloned());
        (socket, link)
    };
    (known..known + count).map(dial_one).collect()
}

#[test]
fn replies_that_nobody_takes_share_a_bounded_memory() {
    let settings = tcp::Settings { send_memory: 12 << 20, ..Default::default() };
    for row in rows_with(settings) {
        let world = World::new(&row);
        let links = links_of(&world, 20);
        // More than the kernel takes of what is for one of them, and less than may wait for one.
        let piece = pattern(1 << 20);
        for _ in 0..7 {
            links.iter().for_each(|(_, link)| link.send(b"take this", &piece));
        }
        let cut_off = || {
            let ended =
                |seen: &mut Seen| seen.closed.iter().map(|(_, why)| why.to_string()).collect();
            let ended: Vec<String> = world.service.0.change(ended);
            ended.iter().filter(|why| why.contains("wait for all clients")).count()
        };
        world.service.0.wait("the ends", |seen| (seen.closed.len() >= 10).then_some(()));
        assert!((10..20).contains(&cut_off()));
        // One that takes its replies is not among them, and gets more than may wait.
        let client = world.client();
        for i in 0..10 {
            client.echo(&[b'e', i], &pattern(1 << 20));
        }
    }
}

#[test]
fn who_takes_nothing_and_who_sends_nothing_is_cut_off_in_time() {
    let settings =
        tcp::Settings { take_patience: Duration::from_millis(300), ..Default::default() };
    for row in rows_with(settings) {
        let world = World::new(&row);
        let client = world.client();
        let [replies, placed, fetched] = &links_of(&world, 3)[..] else { panic!("three links") };
        let piece = pattern(1 << 20);
        (0..7).for_each(|_| replies.1.send(b"take this", &piece));
        let placing: Vec<_> = (0..4).map(|_| placed.1.write_to(1, vec![1; 2 << 20])).collect();
        let fetching = fetched.1.read_from(1, 0, vec![0; 1 << 20]);
        for (link, what) in [(replies, "replies"), (placed, "placings"), (fetched, "fetches")] {
            let reason = world.wait_closed(link.1.id()).to_string();
            assert!(reason.contains("has taken less"), "{what}: {reason}");
        }
        assert!(placing.into_iter().map(block_on).any(|result| result.is_err()));
        block_on(fetching).unwrap_err();
        client.echo(b"e", &pattern(100_000));
    }
}

#[test]
fn pages_that_are_not_taken_end_in_time() {
    let take_patience = Duration::from_millis(300);
    let world = World::new(&Row::tcp_with(tcp::Settings { take_patience, ..Default::default() }));
    let (_slot, reference) = world.page(5);
    let (mut first, mut second) = reader(&world, 0);
    second.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let request = request_of(&reference, 64);
    while second.write_all(&request).is_ok() {}
    expect_end(&mut *first);
}

/// A plain request for one page so many times.
fn request_of(reference: &RemoteRef, times: u64) -> Vec<u8> {
    let mut request = [1u64.to_le_bytes(), times.to_le_bytes()].concat();
    for _ in 0..times {
        request.extend(reference.chunk.to_le_bytes());
        request.extend(reference.slot.to_le_bytes());
        for word in [reference.file, reference.block, reference.generation, 0] {
            request.extend(word.to_le_bytes());
        }
    }
    request
}

/// The connections of a client by hand that may read: `number` others have connected before.
fn reader(world: &World, number: usize) -> (Box<dyn Raw>, TcpStream) {
    let mut first = dial(world);
    let ticket = greet(&mut *first, None);
    let link = world.service.0.wait("the link", |seen| seen.connected.get(number).cloned());
    link.allow_reads(Some(ReadAccess::default()));
    let mut second = TcpStream::connect(world.listener.address()).unwrap();
    greet(&mut second, Some(ticket));
    (first, second)
}

#[test]
fn an_agent_is_not_held_up_by_replies_that_are_not_taken() {
    let world = World::new(&Row::tcp());
    let (_slot, reference) = world.page(5);
    let client = world.client();
    let (first, mut second) = reader(&world, 1);
    let request = request_of(&reference, 64);
    // Asks for 256 KiB again and again and takes none of it, until no more requests are read.
    second.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while second.write_all(&request).is_ok() {}
    for _ in 0..100 {
        assert_eq!(client.read_one(reference), Ok(5));
    }
    // Once it takes them it gets them.
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reply = vec![0; 16 + 64 + 64 * (64 + PAGE)];
    for _ in 0..50 {
        second.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..10], [1, 0, 0, 0, 0, 0, 0, 0, 64, 0]);
        assert!(reply[16..80] == [0; 64] && reply[80 + 64 * 64..].iter().all(|byte| *byte == 5));
    }
    drop(first);
    expect_end(&mut second);
    assert_eq!(client.read_one(reference), Ok(5));
}

#[test]
fn a_stalled_reply_keeps_no_chunk() {
    let world = World::new(&Row::tcp());
    let (slot, reference) = world.page(5);
    let (_first, mut second) = reader(&world, 0);
    second.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = request_of(&reference, 64);
    while second.write_all(&request).is_ok() {}
    slot.kill();
    assert!(world.arena.begin_retire(reference.chunk));
    block_on(world.listener.retire(reference.chunk, Duration::from_millis(10)));
    world.arena.free(slot);
    world.arena.finish_retire(reference.chunk);
    assert_eq!(world.arena.bytes(), 0, "the chunk's memory is free");
    // What remains of the reply is no page, as its reader finds.
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reply = vec![0; 16 + 64 + 64 * (64 + PAGE)];
    let whole = loop {
        second.read_exact(&mut reply).unwrap();
        if reply[16] != 0 || reply[reply.len() - PAGE..] == [0; PAGE] {
            break reply[16] == 0;
        }
    };
    assert!(whole, "a reply that had begun ends as long as it was announced");
}

#[test]
fn a_page_that_changes_under_a_stalled_reply_is_caught() {
    let world = World::new(&Row::tcp());
    let client = world.client();
    let pages: Vec<_> = (0..256).map(|i| world.page(i as u8)).collect();
    let asked: Vec<_> = pages.iter().map(|(_, reference)| (*reference, 0)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::sync::atomic::Ordering::Relaxed;
            for version in 1.. {
                for (slot, reference) in &pages {
                    world.refill(slot, version as u8, reference.generation, version);
                }
                if done.load(Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..50 {
            // `read` checks that the bytes of each page are alike.
            for outcome in client.read(&asked) {
                match outcome {
                    Ok((byte, version)) => assert!(version == 0 || byte == version as u8),
                    Err(fault) => assert_eq!(fault, AccessFault::Torn),
                }
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

const CHILD: &str = "ORDMA_TEST_IDLE";

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Not a test of its own: runs alone in a process, whose memory it looks at.
#[test]
fn idle_process() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let limit = raise_descriptors();
    // Both ends are in this process.
    let count = limit.map_or(20_000, |limit| (limit as usize).saturating_sub(200) / 2).min(4000);
    for row in rows(Duration::from_secs(60), 1 << 20) {
        let world = World::new(&row);
        let client = world.client();
        client.echo(b"e", &pattern(100_000));
        let mut idle = Vec::with_capacity(count);
        // Of two halves the second is measured, when all that is taken once has been taken.
        let mut resident_then = 0;
        for half in [0, 1] {
            resident_then = if half == 0 { 0 } else { resident() };
            for i in 0..count / 2 {
                let mut socket = dial(&world);
                greet(&mut *socket, None);
                if i % 2 == 0 {
                    let message = [frame(1, 1, 5000, 0), vec![b'd'; 5001]].concat();
                    socket.write_all(&message).unwrap();
                }
                idle.push(socket);
            }
            // One of two has sent something, which no one keeps.
            let sent = (half + 1) * (count / 4);
            world.service.0.wait("the messages", |seen| (seen.calls > sent).then_some(()));
            client.echo(b"e", &pattern(100_000));
        }
        let each = resident().saturating_sub(resident_then) / (count / 2);
        println!("\n{}: {count} idle connections, {each} bytes each", row.engine.name());
        assert!(each < 1024, "{each} bytes for each idle connection");
    }
}

#[test]
fn idle_connections_hold_no_buffers() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::idle_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("idle connections"), "{text}");
}

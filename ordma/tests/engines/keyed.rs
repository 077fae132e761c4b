//! Tagged requests and replies over `tcp`, and proofs of second connections, by hand.

use crate::harness::*;
use crate::hostile::{dial, dial_unix, expect_end, greet};
use crate::simulated;
use dafs_keys::tags::second_connection_proof;
use dafs_keys::{FileKey, ReadKey, ReplayWindow, ReplyKey, Secret};
use ordma::arena::Guard;
use ordma::{AccessFault, FOOTER_LEN, LinkError, PageReads, ReadAccess, Region, RemoteRef};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const STALE: u8 = 1;
const REVOKED: u8 = 4;

/// A client without an engine, whose connections have been welcomed.
struct Raw {
    _first: TcpStream,
    second: TcpStream,
    nonce: [u8; 16],
    connection: Secret,
    link: Arc<dyn ordma::Link>,
}

/// What a reply says of a page.
struct Answer {
    status: u8,
    tag: [u8; 16],
    /// Status, footer and payload.
    bytes: Vec<u8>,
}

impl Raw {
    fn connect(world: &World) -> Self {
        let known = world.service.0.change(|seen| seen.connected.len());
        let mut first = TcpStream::connect(world.listener.address()).unwrap();
        let ticket = greet(&mut first, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.get(known).cloned());
        let mut second = TcpStream::connect(world.listener.address()).unwrap();
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        let nonce = greet(&mut second, Some(ticket));
        assert_ne!(nonce, [0; 16]);
        let connection = Secret::random().unwrap();
        Self { _first: first, second, nonce, connection, link }
    }

    /// One that has proved itself and may read.
    fn admitted(world: &World) -> Self {
        let mut raw = Self::connect(world);
        raw.prove(second_connection_proof(&raw.connection, &raw.nonce));
        raw.allow(world);
        raw
    }

    fn allow(&self, world: &World) {
        let (connection, session) = (self.connection.clone(), world.session.keyed());
        let access = ReadAccess { connection: Some(connection), session: Some(session) };
        self.link.allow_reads(Some(access));
    }

    fn prove(&mut self, proof: [u8; 16]) {
        let mut bytes = [0; 32];
        bytes[10] = 2;
        bytes[16..].copy_from_slice(&proof);
        self.second.write_all(&bytes).unwrap();
    }

    /// A tagged entry as it should be.
    fn entry(&self, world: &World, number: u64, index: u32, reference: RemoteRef) -> Vec<u8> {
        entry(&self.nonce, key(world), EPOCH, number, index, (reference, 0))
    }

    /// Sends a request, tagged or plain, and receives the reply.
    fn ask(&mut self, number: u64, tagged: bool, entries: &[Vec<u8>]) -> Vec<Answer> {
        self.second.write_all(&request(number, tagged, entries)).unwrap();
        self.answers(number, tagged, entries.len())
    }

    fn answers(&mut self, number: u64, tagged: bool, count: usize) -> Vec<Answer> {
        let mut header = [0; 16];
        self.second.read_exact(&mut header).unwrap();
        assert_eq!(header[..8], number.to_le_bytes());
        assert_eq!(header[8..10], (count as u16).to_le_bytes());
        let rest = u32::from_le_bytes(header[12..].try_into().unwrap()) as usize;
        let mut rest = vec![0; rest];
        self.second.read_exact(&mut rest).unwrap();
        let mut rest = &rest[..];
        let mut take = |len: usize| rest.split_off(..len).unwrap().to_vec();
        let statuses = if count == 1 { vec![header[10]] } else { take(count.next_multiple_of(8)) };
        let tags = if tagged { take(count * 16) } else { vec![0; count * 16] };
        let mut answers: Vec<_> = (statuses.iter().zip(tags.chunks(16)).take(count))
            .map(|(status, tag)| Answer {
                status: *status,
                tag: tag.try_into().unwrap(),
                bytes: vec![*status],
            })
            .collect();
        for len in [FOOTER_LEN, PAGE] {
            for answer in answers.iter_mut().filter(|answer| answer.status == 0) {
                answer.bytes.extend(take(len));
            }
        }
        assert!(rest.is_empty());
        answers
    }

    fn is_tagged(&self, number: u64, index: u32, answer: &Answer) -> bool {
        let key = ReplyKey::derive(&self.connection, &self.nonce);
        key.verify(number, index, &answer.bytes, &answer.tag).is_ok()
    }
}

fn request(number: u64, tagged: bool, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend([u8::from(tagged), 0, 0, 0, 0, 0]);
    bytes.extend(entries.concat());
    bytes
}

fn key(world: &World) -> &ReadKey {
    match &*world.key {
        FileKey::Keyed(key) => key,
        _ => panic!("not keyed"),
    }
}

fn plain(reference: RemoteRef, floor: u64) -> Vec<u8> {
    let mut bytes = reference.chunk.to_le_bytes().to_vec();
    bytes.extend(reference.slot.to_le_bytes());
    for word in [reference.file, reference.block, reference.generation, floor] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn entry(
    nonce: &[u8; 16],
    key: &ReadKey,
    epoch: u64,
    number: u64,
    index: u32,
    (reference, floor): (RemoteRef, u64),
) -> Vec<u8> {
    let fields = [plain(reference, floor), epoch.to_le_bytes().to_vec()].concat();
    let tag = key.tag(nonce, number, index, &fields);
    [&fields[..], &tag].concat()
}

fn world() -> World {
    World::new(&Row::tcp().keyed())
}

#[test]
fn a_page_is_given_against_a_right_tag() {
    let world = world();
    let mut raw = Raw::admitted(&world);
    let (slot, reference) = world.page(3);
    let answers = raw.ask(1, true, &[raw.entry(&world, 1, 0, reference)]);
    assert!(answers[0].status == 0 && answers[0].bytes[1 + FOOTER_LEN..] == [3; PAGE]);
    assert!(raw.is_tagged(1, 0, &answers[0]));
    // Several pages, of which one is dead.
    let (_other, second) = world.page(4);
    let entries = [reference, second, reference];
    slot.kill();
    let entries: Vec<_> =
        entries.iter().zip(0..).map(|(r, index)| raw.entry(&world, 2, index, *r)).collect();
    let answers = raw.ask(2, true, &entries);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [STALE, 0, STALE]);
    for (answer, index) in answers.iter().zip(0..) {
        assert!(raw.is_tagged(2, index, answer), "faults bear tags too");
    }
    assert_eq!(world.listener.refused(), 0);
}

#[test]
fn nothing_of_a_request_can_be_forged() {
    let world = world();
    let mut raw = Raw::admitted(&world);
    let (_slot, reference) = world.page(3);
    world.grow();
    let (_filler, _) = world.page(4);
    let mut number = 0;
    // Chunk, slot, file, block, generation, floor, epoch, tag: each byte of them.
    for at in 0..64 {
        number += 1;
        let mut forged = raw.entry(&world, number, 0, reference);
        forged[at] ^= 1;
        let answer = &raw.ask(number, true, &[forged])[0];
        assert_eq!(answer.status, REVOKED, "byte {at}");
        assert!(raw.is_tagged(number, 0, answer));
    }
    assert_eq!(world.listener.refused(), 64);
    // What is right for another request, page, connection, session, file, or epoch.
    let other = Raw::admitted(&world);
    let session = Secret::random().unwrap().keyed();
    let with = |session: &_, epoch, file, number| {
        let key = ReadKey::derive(session, epoch, file);
        entry(&raw.nonce, &key, epoch, number, 0, (reference, 0))
    };
    let own = world.session.keyed();
    let n = number + 1;
    let forged = [
        raw.entry(&world, n + 90, 0, reference),
        raw.entry(&world, n + 1, 1, reference),
        other.entry(&world, n + 2, 0, reference),
        with(&session, EPOCH, FILE, n + 3),
        with(&own, EPOCH, FILE + 1, n + 4),
        // A key that the server could have given, for an epoch that is not the page's.
        with(&own, EPOCH + 1, FILE, n + 5),
        // And today's key for one that is alike in the footer.
        entry(&raw.nonce, key(&world), EPOCH + (1 << 16), n + 6, 0, (reference, 0)),
    ];
    for (forged, number) in forged.into_iter().zip(n..) {
        assert_eq!(raw.ask(number, true, &[forged])[0].status, REVOKED, "{}", number - n);
    }
    // The connection goes on.
    let entry = raw.entry(&world, n + 9, 0, reference);
    assert_eq!(raw.ask(n + 9, true, &[entry])[0].status, 0);
    assert_eq!(world.listener.refused(), 64 + 7);
}

#[test]
fn each_number_is_answered_once() {
    let world = world();
    let mut raw = Raw::admitted(&world);
    let (_slot, reference) = world.page(3);
    let mut ask = |number: u64| {
        let entries = [raw.entry(&world, number, 0, reference)];
        let answer = raw.ask(number, true, &entries).remove(0);
        let tagged = raw.is_tagged(number, 0, &answer);
        assert!(tagged || (answer.status, answer.tag) == (REVOKED, [0; 16]));
        tagged && answer.status == 0
    };
    assert!(ask(7) && !ask(7), "a replay");
    assert!(ask(9) && ask(8) && !ask(8), "in another order");
    assert!(ask(8 + 2 * ReplayWindow::WIDTH) && !ask(10), "too old to tell");
    assert!(ask(9 + 2 * ReplayWindow::WIDTH));
    assert_eq!(world.listener.refused(), 3);
    // A number whose request was refused is spent too.
    let mut forged = raw.entry(&world, 5000, 0, reference);
    forged[63] ^= 1;
    assert_eq!(raw.ask(5000, true, &[forged])[0].status, REVOKED);
    let good = raw.entry(&world, 5000, 0, reference);
    let answer = &raw.ask(5000, true, &[good])[0];
    assert_eq!((answer.status, answer.tag), (REVOKED, [0; 16]));
}

#[test]
fn a_page_that_takes_a_tag_is_not_given_without() {
    let world = world();
    let mut raw = Raw::admitted(&world);
    let (_slot, reference) = world.page(3);
    world.listener.export(&world.arena.grow(Guard::None).unwrap());
    let free = world.arena.take(Guard::None).unwrap();
    let open = world.fill(&free, 4, 0);
    assert_eq!(raw.ask(1, false, &[plain(reference, 0)])[0].status, REVOKED);
    let answers = raw.ask(1, false, &[plain(open, 0), plain(reference, 0), plain(open, 0)]);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [0, REVOKED, 0]);
    assert_eq!(world.listener.refused(), 2);
    // A client of the engine, with and without keys, in turn.
    let client = world.client();
    let clear = FileKey::clear();
    let regions: Vec<_> = (0..40).map(|_| Region::owned(vec![0; PAGE])).collect();
    let post = |(i, region)| {
        let (reference, key) = if i % 3 == 0 { (open, &clear) } else { (reference, &world.key) };
        client.endpoint.read(one_page(region, key, reference))
    };
    let batches: Vec<_> = regions.iter().enumerate().map(post).collect();
    for (i, (batch, region)) in batches.iter().zip(&regions).enumerate() {
        // In the clear and with an epoch: fine where no key is expected.
        assert!(client.finish(batch)[0].is_ok(), "page {i}");
        assert!(region.take().unwrap() == [if i % 3 == 0 { 4 } else { 3 }; PAGE], "page {i}");
    }
    assert_eq!(client.read_with(FileKey::Clear, reference), Err(AccessFault::Revoked));
}

#[test]
fn a_session_that_has_no_secret_reads_nothing_keyed() {
    let world = world();
    let (_slot, reference) = world.page(3);
    let mut raw = Raw::admitted(&world);
    let mut number = 0;
    let connection = raw.connection.clone();
    let session = world.session.keyed();
    let mut status = |raw: &mut Raw, access| {
        raw.link.allow_reads(access);
        number += 1;
        let entry = raw.entry(&world, number, 0, reference);
        let answer = raw.ask(number, true, &[entry]).remove(0);
        (answer.status, raw.is_tagged(number, 0, &answer))
    };
    let access = |connection, session| Some(ReadAccess { connection, session });
    assert_eq!(status(&mut raw, access(Some(connection.clone()), None)), (REVOKED, true));
    assert_eq!(status(&mut raw, access(None, Some(session.clone()))), (REVOKED, false));
    assert_eq!(status(&mut raw, None), (REVOKED, false));
    assert_eq!(status(&mut raw, access(Some(connection), Some(session))), (0, true));
}

#[test]
fn a_client_that_never_proved_itself_asks_for_nothing_keyed() {
    let world = world();
    let (_slot, reference) = world.page(3);
    let client = world.client();
    assert_eq!(client.read_one(reference), Ok(3));
    let connector = world.engine.connector(&world.listener.address());
    let endpoint = connector.connect(Arc::new(Inbox::default()), PATIENCE).unwrap();
    let region = Region::owned(vec![9; PAGE]);
    let read = one_page(&region, &world.key, reference);
    let outcome = poll_batch(&endpoint.read(read)).expect("at once");
    assert_eq!(outcome, [Err(AccessFault::Revoked)]);
    assert!(region.take().unwrap() == [0; PAGE]);
    // Nor does another key help, or another epoch's.
    let key = |epoch, file| FileKey::Keyed(ReadKey::derive(&world.session.keyed(), epoch, file));
    let revoked = Err(AccessFault::Revoked);
    assert_eq!(client.read_with(key(EPOCH, FILE + 1), reference), revoked);
    assert_eq!(client.read_with(key(EPOCH + 1, FILE), reference), revoked);
}

#[test]
fn a_second_connection_without_a_proof_is_not_answered() {
    let world = World::new(&Row::tcp());
    let (_slot, reference) = world.page(3);
    let mut raw = Raw::connect(&world);
    raw.allow(&world);
    let entries = [plain(reference, 0), plain(reference, 0)];
    assert_eq!(raw.ask(1, false, &entries[..1])[0].status, REVOKED);
    assert!(raw.ask(2, false, &entries).iter().all(|answer| answer.status == REVOKED));
    raw.prove(second_connection_proof(&raw.connection, &raw.nonce));
    assert_eq!(raw.ask(3, false, &entries[..1])[0].status, 0);
    raw.prove(second_connection_proof(&raw.connection, &raw.nonce));
    let reason = world.wait_closed(raw.link.id()).to_string();
    assert!(reason.contains("twice"), "{reason}");
    expect_end(&mut raw.second);
}

#[test]
fn a_wrong_proof_ends_the_connection() {
    let world = World::new(&Row::tcp());
    for first_allowed in [true, false] {
        for wrong in 0..3 {
            let mut raw = Raw::connect(&world);
            let proof = match wrong {
                0 => [0; 16],
                1 => second_connection_proof(&Secret::random().unwrap(), &raw.nonce),
                _ => second_connection_proof(&raw.connection, &[7; 16]),
            };
            if first_allowed {
                raw.allow(&world);
                raw.prove(proof);
            } else {
                raw.prove(proof);
                // It has come when what is sent after it is answered.
                let nothing = RemoteRef { chunk: 0, slot: 0, file: 0, block: 0, generation: 0 };
                assert_eq!(raw.ask(1, false, &[plain(nothing, 0)])[0].status, REVOKED);
                raw.allow(&world);
            }
            let reason = world.wait_closed(raw.link.id());
            assert!(matches!(reason, LinkError::Protocol { .. }), "{reason}");
            assert!(reason.to_string().contains("proof is wrong"), "{reason}");
            expect_end(&mut raw.second);
        }
    }
}

#[test]
fn a_malformed_request_or_proof_ends_the_connection() {
    let world = world();
    let (_slot, reference) = world.page(3);
    let entry = |raw: &Raw| raw.entry(&world, 1, 0, reference);
    for wrong in 0..4 {
        let mut raw = Raw::admitted(&world);
        let mut bytes = match wrong {
            // More than a tagged request may ask for.
            0 => request(1, true, &vec![entry(&raw); 17]),
            1 => request(1, true, &[]),
            _ => request(1, true, &[entry(&raw)]),
        };
        match wrong {
            2 => bytes[10] = 3,
            3 => bytes[15] = 1,
            _ => {}
        }
        raw.second.write_all(&bytes).unwrap();
        let reason = world.wait_closed(raw.link.id());
        assert!(matches!(reason, LinkError::Protocol { .. }), "{wrong}: {reason}");
    }
}

#[test]
fn a_tagged_reply_that_waits_is_sent_as_it_was_tagged() {
    let world = world();
    let mut raw = Raw::admitted(&world);
    let (slot, reference) = world.page(3);
    let requests: Vec<_> = (0..400u64)
        .map(|number| {
            let entries = (0..16).map(|index| raw.entry(&world, number, index, reference));
            request(number, true, &entries.collect::<Vec<_>>())
        })
        .collect();
    // 25 MiB of replies, which no one takes at first.
    let mut writer = raw.second.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        requests.iter().for_each(|request| writer.write_all(request).unwrap());
    });
    std::thread::sleep(Duration::from_millis(50));
    let mut version = 0;
    for number in 0..400 {
        version += 1;
        world.refill(&slot, version as u8, reference.generation, version);
        for (index, answer) in (0..).zip(raw.answers(number, true, 16)) {
            assert_eq!(answer.status, 0);
            assert!(raw.is_tagged(number, index, &answer), "page {index} of reply {number}");
        }
    }
    sender.join().unwrap();
}

/// Sits between client and server, and flips a bit of what the server sends on the second
/// connection: the one at `at` bytes behind its welcome.
struct Proxy {
    address: String,
    at: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let at = Arc::new(AtomicUsize::new(0));
        let flip = Arc::clone(&at);
        std::thread::spawn(move || {
            for (nth, client) in listener.incoming().enumerate() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(up, server, usize::MAX));
                let at = if nth % 2 == 1 { 48 + flip.load(Ordering::SeqCst) } else { usize::MAX };
                std::thread::spawn(move || pass(down, client, at));
            }
        });
        Self { address, at }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, at: usize) {
    let (mut buffer, mut passed) = ([0; 8192], 0);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if (passed..passed + n).contains(&at) {
            buffer[at - passed] ^= 1;
        }
        passed += n;
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_reply_that_was_tampered_with_is_never_data() {
    let world = world();
    let (_slot, good) = world.page(3);
    let stale = RemoteRef { generation: 999, ..good };
    let proxy = Proxy::start(world.listener.address());
    // A page alone, a fault alone, and a page between two others; the bytes are those of the header,
    // statuses, tags, footers and payloads.
    let single = (0..16 + 16 + FOOTER_LEN).chain([500, 16 + 16 + FOOTER_LEN + PAGE - 1]);
    let fault = 0..16 + 16;
    let several = (0..16 + 8 + 48 + 2 * FOOTER_LEN).step_by(3).chain([1000, 5000]);
    let cases = (single.map(|at| (vec![good], at)))
        .chain(fault.map(|at| (vec![stale], at)))
        .chain(several.map(|at| (vec![good, stale, good], at)));
    for (pages, at) in cases {
        proxy.at.store(at, Ordering::SeqCst);
        let connector = world.engine.connector(&proxy.address);
        let inbox = Arc::new(Inbox::default());
        let known = world.service.0.change(|seen| seen.connected.len());
        let endpoint = connector.connect(inbox.clone(), PATIENCE).unwrap();
        let link = world.service.0.wait("the link", |seen| seen.connected.get(known).cloned());
        let connection = Secret::random().unwrap();
        endpoint.prove(&connection);
        let session = Some(world.session.keyed());
        link.allow_reads(Some(ReadAccess { connection: Some(connection), session }));
        let region = Region::owned(vec![9; pages.len() * PAGE]);
        let mut reads = PageReads::into(&region, PAGE, &world.key, pages.len());
        for (i, reference) in pages.iter().enumerate() {
            reads.push(*reference, 0, i * PAGE);
        }
        let batch = endpoint.read(reads);
        // The padding of statuses says nothing, and neither do bytes of the header that are zero.
        let harmless = at == 11 || (pages.len() > 1 && (at == 10 || (19..24).contains(&at)));
        let mut outcomes = None;
        let deadline = std::time::Instant::now() + Duration::from_millis(300);
        while outcomes.is_none() {
            endpoint.drive(BOTH, Duration::from_millis(20));
            outcomes = poll_batch(&batch);
            if std::time::Instant::now() > deadline {
                // A reply that claims to be longer than it is does not arrive.
                endpoint.close();
            }
        }
        let outcomes = outcomes.unwrap();
        if harmless {
            assert_eq!(outcomes[0].is_ok(), pages[0] == good, "byte {at}");
        } else {
            let unreachable = outcomes.iter().all(|o| *o == Err(AccessFault::Unreachable));
            assert!(unreachable, "byte {at} of {}: {outcomes:?}", pages.len());
            assert!(region.take().unwrap().iter().all(|byte| *byte == 0));
            assert!(!inbox.closed.lock().unwrap().is_empty());
        }
    }
}

#[test]
fn shm_hands_nothing_over_before_the_proof() {
    let world = World::new(&Row::shm().sealed());
    for wrong in [true, false] {
        let known = world.service.0.change(|seen| seen.connected.len());
        let mut first = dial(&world);
        let ticket = greet(&mut *first, None);
        let link = world.service.0.wait("the link", |seen| seen.connected.get(known).cloned());
        let mut second = dial_unix(&world.listener.address());
        let nonce = greet(&mut second, Some(ticket));
        let mut message = [0; 16];
        second.read_exact(&mut message).unwrap();
        assert_eq!(message[0], 1, "the boot page");
        let secret = Secret::random().unwrap();
        link.allow_reads(Some(ReadAccess { connection: Some(secret.clone()), session: None }));
        second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(second.read(&mut message).is_err(), "nothing comes");
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut proof = second_connection_proof(&secret, &nonce);
        proof[15] ^= u8::from(wrong);
        let mut header = [0; 16];
        header[0] = 7;
        second.write_all(&[header, proof].concat()).unwrap();
        if wrong {
            let reason = world.wait_closed(link.id()).to_string();
            assert!(reason.contains("proof is wrong"), "{reason}");
            expect_end(&mut second);
        } else {
            second.read_exact(&mut message).unwrap();
            assert_eq!(message[0], 2, "the permission");
            second.read_exact(&mut message).unwrap();
            assert_eq!(message[0], 4, "a chunk");
        }
    }
}

#[test]
fn engines_without_tags_give_nothing_keyed() {
    for row in [Row::shm(), simulated::row()] {
        let world = World::new(&row);
        let client = world.client();
        let (_open_slot, open) = world.page(3);
        let chunk = world.arena.grow(Guard::Tags).unwrap();
        world.listener.export(&chunk);
        client.echo(b"e", b"all that came before has arrived");
        let slot = world.arena.take(Guard::Tags).unwrap();
        assert_eq!(slot.chunk.id(), chunk.id());
        let reference = world.fill(&slot, 4, 0);
        assert_eq!(client.read_one(reference), Err(AccessFault::Gone));
        let key = || FileKey::Keyed(ReadKey::derive(&world.session.keyed(), EPOCH, FILE));
        assert_eq!(client.read_with(key(), reference), Err(AccessFault::Revoked));
        assert_eq!(client.read_with(key(), open), Err(AccessFault::Revoked));
        assert_eq!(client.read_one(open), Ok(3));
        assert!(!client.endpoint.capabilities().tags);
        // No one has it, so no one is waited for.
        world.arena.begin_retire(chunk.id());
        block_on(world.listener.retire(chunk.id(), PATIENCE));
    }
}

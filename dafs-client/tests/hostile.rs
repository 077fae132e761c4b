//! A server that says what it must not: a named error and a closed connection, never a panic, and
//! never wrong bytes.

mod common;

use common::{Meanwhile, PAGE, Server, Verdict, options, pattern, raw_reply};
use dafs_client::blocking::{Client, File};
use dafs_client::{Error, OpenOptions, Options, Path};
use dafs_proto::{
    DirEntry, ErrorReply, Header, Op, ReadReply, ReaddirReply, Status, encode_message,
};
use ordma::{Footer, Kind};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn opened() -> (Server, Client, File) {
    let server = Server::new();
    server.add_file("a", &pattern(8 * PAGE));
    let options = Options { timeout: Duration::from_secs(2), ..options() };
    let client = server.client_with(options);
    let file = client.open_with("a", OpenOptions::new().read(true).write(true)).unwrap();
    (server, client, file)
}

/// The READ is answered wrongly once: the read fails, its buffer keeps no byte of the answer, and
/// the client goes on with another connection.
fn read_fails(
    path: Path,
    change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) + Send + 'static,
) -> String {
    let (server, client, file) = opened();
    server.once(Op::Read, || Verdict::Change(Box::new(change)));
    let mut buf = vec![0; 4 * PAGE];
    let error = file.read_at_by(&mut buf, 0, path).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(buf.iter().all(|byte| *byte == 0), "bytes that were not accepted are left behind");
    assert_eq!(file.read_at_by(&mut buf, 0, path).unwrap().bytes, 4 * PAGE);
    assert_eq!(client.counters().reconnects, 1);
    error.to_string()
}

fn with_reply(head: &mut Vec<u8>, change: impl FnOnce(&mut Header, &mut ReadReply)) {
    let (mut header, body) = Header::decode(head).unwrap();
    let mut body = ReadReply::decode(body).unwrap();
    change(&mut header, &mut body);
    *head = encode_message(header, &body);
}

#[test]
fn wrong_counts_are_refused() {
    for path in [Path::Inline, Path::Direct] {
        let error = read_fails(path, |head, _| with_reply(head, |_, reply| reply.counts.clear()));
        assert!(error.contains("another number of extents"), "{error}");
        let error = read_fails(path, |head, _| with_reply(head, |_, reply| reply.counts[0] = 5));
        assert!(error.contains("more pages than were asked for"), "{error}");
        let error =
            read_fails(path, |head, _| with_reply(head, |_, reply| reply.counts[0] = u32::MAX));
        assert!(error.contains("more pages than were asked for"), "{error}");
        read_fails(path, |head, _| with_reply(head, |_, reply| reply.counts[0] = 3));
        read_fails(path, |head, _| with_reply(head, |_, reply| reply.file += 1));
        read_fails(path, |head, _| with_reply(head, |_, reply| reply.refs = vec![0; 25]));
    }
}

#[test]
fn wrong_data_is_refused() {
    read_fails(Path::Inline, |_, data| data.truncate(100));
    read_fails(Path::Inline, |_, data| data.extend([0; 4 * (PAGE + 64)]));
    read_fails(Path::Inline, |_, data| data.clear());
    let error = read_fails(Path::Inline, |_, data| data[4 * 64 + 5] ^= 1);
    assert!(error.contains("does not match its check"), "{error}");
    read_fails(Path::Inline, |_, data| data[3] ^= 1);
    read_fails(Path::Direct, |_, data| data.push(1));
    // A page that is good in itself but is another one, or a short one in the middle.
    for footer in [
        Footer { block: 1, ..page_zero() },
        Footer { file: 1, ..page_zero() },
        Footer { valid: 10, ..page_zero() },
    ] {
        read_fails(Path::Inline, move |_, data| {
            let payload = data[4 * 64..4 * 64 + PAGE].to_vec();
            data[..64].copy_from_slice(&footer.encode(&payload));
        });
    }
}

/// Puts a footer in the place of the first, with the right check.
fn replaced(footer: Footer) -> Meanwhile {
    Box::new(move |data| {
        let payload = data[4 * 64..4 * 64 + PAGE].to_vec();
        data[..64].copy_from_slice(&footer.encode(&payload));
    })
}

#[test]
fn what_is_wrong_with_slots_is_asked_for_once_more_and_then_refused() {
    let torn: [fn() -> Meanwhile; 7] = [
        || Box::new(|data| data[4 * 64 + 5] ^= 1),
        || Box::new(|data| data[3] ^= 1),
        // Killed.
        || Box::new(|data| data[64 + 32..64 + 40].fill(0)),
        || replaced(Footer { block: 1, ..page_zero() }),
        || replaced(Footer { file: 1, ..page_zero() }),
        || replaced(Footer { valid: 10, ..page_zero() }),
        // The end of the file, and pages behind it.
        || replaced(Footer { valid: 10, last: true, ..page_zero() }),
    ];
    for torn in torn {
        let (server, client, file) = opened();
        server.state().from_slots = [Box::new(|_: &mut Vec<u8>| ()) as Meanwhile, torn()].into();
        let mut buf = vec![0xee; 4 * PAGE];
        assert_eq!(file.read_at_by(&mut buf, 0, Path::Direct).unwrap().bytes, 4 * PAGE);
        assert_eq!(client.counters().direct_torn, 0, "what is good is good");
        buf.fill(0xee);
        assert_eq!(file.read_at_by(&mut buf, 0, Path::Direct).unwrap().bytes, 4 * PAGE);
        assert!(buf == pattern(8 * PAGE)[..4 * PAGE]);
        let counters = client.counters();
        assert_eq!((counters.direct_torn, counters.direct_reads), (1, 3));
        assert_eq!((counters.direct_pages, counters.reconnects), (8, 0));
        assert_eq!(server.state().whole_reads, 1);

        // Slots where copies were asked for.
        server.state().from_slots = [torn(), Box::new(|_: &mut Vec<u8>| ())].into();
        let error = file.read_at_by(&mut buf, 0, Path::Direct).unwrap_err();
        assert!(error.to_string().contains("where copies were asked for"), "{error}");
        assert!(buf.iter().all(|byte| *byte == 0), "bytes that were not accepted are left behind");
    }
    // What the reply itself says is wrong is the server's fault all the same.
    let lies: [fn(&mut ReadReply); 2] = [|reply| reply.counts.clear(), |reply| reply.file += 1];
    for lie in lies {
        read_fails(Path::Direct, move |head, _| {
            with_reply(head, |_, reply| {
                reply.from_slots = true;
                lie(reply);
            });
        });
    }
    // Data in the reply is no slots.
    let slots = |head: &mut Vec<u8>, _: &mut Vec<u8>| {
        with_reply(head, |_, reply| reply.from_slots = true);
    };
    read_fails(Path::Inline, slots);
}

#[test]
fn an_end_that_comes_with_the_copies_leaves_nothing_of_the_torn_pages() {
    let (server, client, file) = opened();
    server.state().from_slots.push_back(Box::new(|data| data[4 * 64 + 5] ^= 1));
    let (shrinks, mut reads) = (server.clone(), 0);
    server.script(move |header, _| {
        reads += u32::from(header.op == Op::Read);
        if header.op == Op::Read && reads == 2 {
            shrinks.state().change(2, |data| data.truncate(10));
        }
        Verdict::Serve
    });
    let mut buf = vec![0xee; 4 * PAGE];
    let read = file.read_at_by(&mut buf, 0, Path::Direct).unwrap();
    assert_eq!((read.bytes, client.counters().direct_torn), (10, 1));
    assert!(buf[..10] == pattern(10) && buf[10..].iter().all(|byte| *byte == 0));
}

/// A file of one page is said to end before it is looked at, and the steady READ that follows is
/// answered wrongly.
fn steady_read_fails(lie: fn(&mut ReadReply, &mut Vec<u8>)) -> String {
    let (server, client, file) = opened();
    let mut reads = 0;
    server.script(move |header, body| {
        if header.op != Op::Read {
            return Verdict::Serve;
        }
        reads += 1;
        let steady = dafs_proto::ReadRequest::decode(body).unwrap().steady;
        assert_eq!(steady, reads == 2);
        Verdict::Change(Box::new(move |head, data| match reads {
            // Without the last two pages, which is what a file that is being shortened looks like.
            1 => {
                with_reply(head, |_, reply| reply.counts[0] = 2);
                data.drain(4 * 64 + 2 * PAGE..);
                data.drain(2 * 64..4 * 64);
            }
            2 => with_reply(head, |_, reply| lie(reply, data)),
            _ => (),
        }))
    });
    let mut buf = vec![0; 4 * PAGE];
    let error = file.read_at_by(&mut buf, 0, Path::Inline).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    server.script(|_, _| Verdict::Serve);
    assert_eq!(file.read_at_by(&mut buf, 0, Path::Inline).unwrap().bytes, 4 * PAGE);
    assert_eq!(client.counters().reconnects, 1);
    error.to_string()
}

#[test]
fn an_end_that_is_nowhere_is_refused() {
    let error = steady_read_fails(|reply, data| {
        reply.counts[0] = 0;
        data.clear();
    });
    assert!(error.contains("brings no page"), "{error}");
    // The page before, as if it held the end, which it does not.
    let error = steady_read_fails(|reply, data| {
        reply.counts[0] = 1;
        *data = vec![1; 64 + PAGE];
        let footer = page_zero().encode(&data[64..]);
        data[..64].copy_from_slice(&footer);
    });
    assert!(error.contains("another page"), "{error}");
    // Behind those that were asked for.
    let error = steady_read_fails(|reply, data| {
        reply.counts[0] = 1;
        *data = vec![1; 64 + PAGE];
        let footer = Footer { block: 7, last: true, ..page_zero() }.encode(&data[64..]);
        data[..64].copy_from_slice(&footer);
    });
    assert!(error.contains("another page"), "{error}");
}

fn page_zero() -> Footer {
    Footer {
        kind: Kind::Data,
        sealed: false,
        epoch: 0,
        last: false,
        valid: PAGE as u32,
        file: 100 * 1_000_000 + 2,
        block: 0,
        generation: 1,
        version: 0,
    }
}

#[test]
fn wrong_headers_are_refused() {
    read_fails(Path::Inline, |head, _| head[0] ^= 1);
    read_fails(Path::Inline, |head, _| head.truncate(10));
    read_fails(Path::Inline, |head, _| head.push(0));
    // Credits 0.
    read_fails(Path::Inline, |head, _| head[10..12].fill(0));
    // Another operation, an unknown slot, a slot without a request, another sequence number.
    read_fails(Path::Inline, |head, _| with_reply(head, |header, _| header.op = Op::Write));
    read_fails(Path::Inline, |head, _| with_reply(head, |header, _| header.slot = 999));
    read_fails(Path::Inline, |head, _| with_reply(head, |header, _| header.slot = 3));
    read_fails(Path::Inline, |head, _| with_reply(head, |header, _| header.sequence += 1));
    // CONNECT's slot.
    read_fails(Path::Inline, |head, _| with_reply(head, |header, _| header.slot = u16::MAX));
    // A body that does not decode.
    read_fails(Path::Inline, |head, data| {
        let len = head.len();
        head[24..len].fill(0xff);
        data.clear();
    });
}

#[test]
fn a_reply_for_a_free_slot_closes_the_connection() {
    let (server, client, file) = opened();
    let links = server.state().links.clone();
    links[0].upgrade().unwrap().deliver(raw_reply(Op::Close, 5, 1, 16), Vec::new());
    let mut buf = vec![0; PAGE];
    // Whichever request is hit fails or is sent again; then all is well.
    let _ = file.read_at_by(&mut buf, 0, Path::Inline);
    assert_eq!(file.read_at_by(&mut buf, 0, Path::Inline).unwrap().bytes, PAGE);
    assert_eq!(client.counters().reconnects, 1);
}

#[test]
fn an_older_page_than_was_seen_is_refused() {
    let (server, _client, file) = opened();
    let mut buf = vec![0; PAGE];
    let id = 2;
    for _ in 0..3 {
        file.read_at(&mut buf, 0).unwrap();
        server.state().change(id, |data| data[0] ^= 1);
    }
    file.read_at(&mut buf, 0).unwrap();
    server.state().cached.get_mut(&(id, 0)).unwrap().version = 1;
    // One-sidedly it is below the floor. The RPC repeats it after the reference was dropped, so
    // that nothing is known of the page any more.
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.faults, report.inline), (1, 1));
}

#[test]
fn bogus_references_fault_and_are_dropped() {
    let (server, client, file) = opened();
    server.once(Op::Read, || {
        Verdict::Change(Box::new(|head, _| {
            with_reply(head, |_, reply| {
                let refs = std::mem::take(&mut reply.refs);
                for mut wire in dafs_proto::WireRef::iter(&refs).unwrap() {
                    wire.chunk = 77;
                    wire.push(&mut reply.refs);
                }
                for block in 0..100_000 {
                    let wire = dafs_proto::WireRef {
                        block,
                        generation: u64::MAX,
                        chunk: 1,
                        slot: u32::MAX,
                    };
                    wire.push(&mut reply.refs);
                }
            });
        }))
    });
    let mut buf = vec![0; PAGE];
    file.read_at(&mut buf, 0).unwrap();
    assert!(client.references() < 200, "no more than could have been asked for");
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.faults, report.inline, report.bytes), (1, 1, PAGE));
}

#[test]
fn what_connect_may_not_grant_is_refused() {
    type Change = fn(&mut dafs_proto::ConnectReply);
    let changes: [(Change, &str); 7] = [
        (|reply| reply.session.clear(), "session name"),
        (|reply| reply.page_size = 4097, "page size"),
        (|reply| reply.page_size = 1 << 30, "page size"),
        (|reply| reply.slots = 0, "request slots"),
        (|reply| reply.max_transfer = 100, "transfers of at most"),
        (|reply| reply.protection = 3, "protection level"),
        (|reply| reply.resumed = true, "another session"),
    ];
    for (change, what) in changes {
        let server = Server::new();
        server.once(Op::Connect, move || {
            Verdict::Change(Box::new(move |head, _| {
                let (header, body) = Header::decode(head).unwrap();
                let mut body = dafs_proto::ConnectReply::decode(body).unwrap();
                change(&mut body);
                *head = encode_message(header, &body);
            }))
        });
        let error = Client::connect_over(server.connector(), "data", options()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_refused_connect_says_why() {
    let server = Server::new();
    server.once(Op::Connect, || {
        let header = Header::request(Op::Connect, u16::MAX, 0, 1);
        let body = dafs_proto::ErrorReply { message: "no such export here".into() };
        Verdict::Answer(common::reply(&header, Status::NoExport, 1, &body), Vec::new())
    });
    let error = Client::connect_over(server.connector(), "data", options()).unwrap_err();
    assert_eq!(error.status(), Some(Status::NoExport));
    assert!(error.to_string().contains("no such export here"), "{error}");
}

#[test]
fn a_write_reply_that_cannot_be_is_refused() {
    type Change = fn(&mut dafs_proto::WriteReply);
    let changes: [Change; 4] = [
        |reply| reply.count = 6,
        |reply| reply.count = 0,
        |reply| reply.file += 1,
        |reply| reply.refs = vec![1],
    ];
    for change in changes {
        let (server, _client, file) = opened();
        server.once(Op::Write, move || {
            Verdict::Change(Box::new(move |head, _| {
                let (header, body) = Header::decode(head).unwrap();
                let mut body = dafs_proto::WriteReply::decode(body).unwrap();
                change(&mut body);
                *head = encode_message(header, &body);
            }))
        });
        let error = file.write_at(b"hello", 0).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert_eq!(file.write_at(b"hello", 0).unwrap(), 5);
    }
}

#[test]
fn a_directory_that_does_not_end_is_left() {
    let server = Server::new();
    let client = server.client();
    server.script(|header, _| {
        if header.op != Op::Readdir {
            return Verdict::Serve;
        }
        let body = dafs_proto::ReaddirReply { entries: Vec::new(), end: false };
        Verdict::Answer(common::reply(header, Status::Ok, 16, &body), Vec::new())
    });
    let error = client.read_dir("/").unwrap_err();
    assert!(error.to_string().contains("neither ends nor goes on"), "{error}");
}

#[test]
fn noise_on_the_connection_never_panics() {
    let (server, _client, file) = opened();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut buf = vec![0; 4 * PAGE];
    let expected = pattern(8 * PAGE);
    for _ in 0..300 {
        let mut noise = fastrand::Rng::with_seed(rng.u64(..));
        server.once(Op::Read, move || {
            Verdict::Change(Box::new(move |head, data| {
                for _ in 0..noise.usize(1..4) {
                    let bytes: &mut Vec<u8> =
                        if noise.bool() || data.is_empty() { &mut *head } else { &mut *data };
                    match noise.u8(0..3) {
                        0 => bytes.truncate(noise.usize(0..bytes.len())),
                        1 => bytes.push(noise.u8(..)),
                        _ => {
                            let at = noise.usize(0..bytes.len());
                            bytes[at] ^= 1 << noise.u8(0..8);
                        }
                    }
                    if head.is_empty() {
                        break;
                    }
                }
            }))
        });
        let path = [Path::Inline, Path::Direct][rng.usize(0..2)];
        if let Ok(report) = file.read_at_by(&mut buf, 0, path) {
            assert!(buf[..report.bytes] == expected[..report.bytes]);
        }
    }
    server.script(|_, _| Verdict::Serve);
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 4 * PAGE);
}

#[test]
fn what_a_server_says_is_shown_and_not_done() {
    let (server, client, _file) = opened();
    server.once(Op::Lookup, || {
        Verdict::Change(Box::new(|head, _| {
            let (header, _) = Header::decode(head).unwrap();
            let header = Header { status: Status::Io, ..header };
            let message = format!("\u{1b}]0;title\u{7}\u{202e}{}", "x".repeat(1 << 20));
            *head = encode_message(header, &ErrorReply { message });
        }))
    });
    let error = client.metadata("other").unwrap_err().to_string();
    assert!(error.contains("\\u{1b}]0;title\\u{7}\\u{202e}xxx"), "{error}");
    assert!(error.len() < 4096 && error.chars().all(dafs_client::keys::shown::is_harmless));
}

#[test]
fn a_directory_without_an_end_takes_bounded_memory() {
    let (server, client, _file) = opened();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    server.script(move |header, _| {
        if header.op != Op::Readdir {
            return Verdict::Serve;
        }
        let part = count.fetch_add(1, Ordering::Relaxed);
        let entry = |place: u64| DirEntry {
            name: format!("{part:0>120}-{place:0>120}").into_bytes(),
            cookie: (part << 32) | (place + 1),
            handle: vec![7; 100],
            attr: None,
        };
        let reply = ReaddirReply { entries: (0..20_000).map(entry).collect(), end: false };
        let header = Header::reply(header, Status::Ok, 1);
        Verdict::Answer(encode_message(header, &reply), Vec::new())
    });
    let error = client.read_dir("/").unwrap_err().to_string();
    assert!(error.contains("take more than 384 MiB"), "{error}");
    assert!(asked.load(Ordering::Relaxed) < 100, "{asked:?} parts of 20 000 entries");
}

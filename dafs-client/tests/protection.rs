//! Guarded exports: pages come under keys, keys come with opens and go with epochs, and what does
//! not fit ends the connection.

mod common;

use common::{PAGE, Server, Verdict, options, pattern};
use dafs_client::blocking::{Client, File};
use dafs_client::keys::{Identity, Protection};
use dafs_client::{Credential, Error, OpenOptions, Options, Path, Status};
use dafs_proto::{
    ConnectReply, GetRefsReply, Header, Op, OpenReply, ReadReply, WriteRequest, encode_message,
};
use ordma::AccessFault;
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const FILE: u64 = 2;
const GUARDED: [Protection; 2] = [Protection::Keyed, Protection::Sealed];

fn rw() -> OpenOptions {
    OpenOptions::new().read(true).write(true)
}

fn opened(level: Protection) -> (Server, Client, File) {
    let server = Server::protected(level);
    assert_eq!(server.add_file("a", &pattern(8 * PAGE)), FILE);
    let options = Options { protection: level, timeout: Duration::from_secs(2), ..options() };
    let client = server.client_with(options);
    let file = client.open_with("a", rw()).unwrap();
    (server, client, file)
}

/// Changes the next reply to an operation.
fn change<M: Message + Default>(
    server: &Server,
    op: Op,
    change: impl FnOnce(&mut M, &mut Vec<u8>) + Send + 'static,
) {
    server.once(op, || {
        Verdict::Change(Box::new(move |head, data| {
            let (header, body) = Header::decode(head).unwrap();
            let mut body = M::decode(body).unwrap();
            change(&mut body, data);
            *head = encode_message(header, &body);
        }))
    });
}

/// The next READ is answered wrongly: it fails, nothing of the answer stays behind, and the client
/// goes on over another connection.
#[track_caller]
fn read_fails(
    level: Protection,
    path: Path,
    wrong: impl FnOnce(&mut ReadReply, &mut Vec<u8>) + Send + 'static,
) -> String {
    let (server, client, file) = opened(level);
    change(&server, Op::Read, wrong);
    fails_then_goes_on(&client, &file, path)
}

#[track_caller]
fn fails_then_goes_on(client: &Client, file: &File, path: Path) -> String {
    let mut buf = vec![0xee; 4 * PAGE];
    let error = file.read_at_by(&mut buf, 0, path).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(buf.iter().all(|byte| *byte == 0), "bytes that were not accepted are left behind");
    file.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf == pattern(8 * PAGE)[..4 * PAGE]);
    assert_eq!(client.counters().reconnects, 1);
    error.to_string()
}

#[test]
fn every_path_reads_the_right_bytes() {
    for level in GUARDED {
        let (server, client, file) = opened(level);
        let data = pattern(8 * PAGE);
        assert_eq!(client.protection().unwrap(), level);
        assert_eq!(client.server_key().unwrap(), Some(server.state().identity.public()));
        for path in [Path::Inline, Path::Direct, Path::Ordma] {
            for (offset, len) in
                [(0, 8 * PAGE), (5, 10), (PAGE - 1, 3 * PAGE), (7 * PAGE, 2 * PAGE)]
            {
                let mut buf = vec![0xee; len];
                let read = file.read_at_by(&mut buf, offset as u64, path).unwrap();
                let expected = &data[offset..(offset + len).min(data.len())];
                assert_eq!(&buf[..read.bytes], expected, "{level} {path:?} {offset} {len}");
                if path == Path::Ordma {
                    assert_eq!((read.faults, read.inline + read.direct), (0, 0));
                }
            }
        }
    }
}

#[test]
fn sealed_pages_do_not_show_what_is_in_them() {
    let (server, _client, file) = opened(Protection::Sealed);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    change::<ReadReply>(&server, Op::Read, move |_, data| *into.lock().unwrap() = data.clone());
    let mut buf = vec![0; PAGE];
    file.read_at_by(&mut buf, 0, Path::Inline).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), PAGE + 64);
    assert!(!seen.windows(16).any(|bytes| bytes == &buf[..16]));
}

#[test]
fn changed_pages_and_pages_in_the_clear_are_refused() {
    for level in GUARDED {
        let error = read_fails(level, Path::Inline, |_, data| data[4 * 64 + 99] ^= 1);
        let what = if level == Protection::Keyed { "its tag" } else { "its check" };
        assert!(error.contains(what), "{error}");
        // Of a footer: its file, its version, its epoch.
        for at in [17, 40, 6] {
            read_fails(level, Path::Inline, move |_, data| data[at] ^= 1);
        }
    }
    let clear = |_: &mut ReadReply, data: &mut Vec<u8>| {
        let payload = pattern(8 * PAGE)[..PAGE].to_vec();
        let mut footer = [0; 64];
        footer.copy_from_slice(&data[..64]);
        let footer = ordma::Footer::decode(&footer).unwrap().encode(&payload);
        data[..64].copy_from_slice(&footer);
        data[4 * 64..4 * 64 + PAGE].copy_from_slice(&payload);
    };
    let error = read_fails(Protection::Sealed, Path::Inline, clear);
    assert!(error.contains("does not match its check"), "{error}");
}

#[test]
fn pages_under_another_key_are_refused() {
    for path in [Path::Inline, Path::Direct] {
        // The right epoch, but not the key that the pages are under.
        let (server, client, file) = opened(Protection::Sealed);
        server.state().bump(FILE);
        change::<ReadReply>(&server, Op::Read, |reply, _| {
            reply.key.as_mut().unwrap().secret[0] ^= 1;
        });
        // A new session follows, whose OPEN brings the right key: the wrong one does no harm.
        let error = fails_then_goes_on(&client, &file, path);
        assert!(error.contains("does not match its check"), "{error}");
    }
}

#[test]
fn a_new_epoch_refuses_the_old_key_and_the_next_reply_brings_the_new_one() {
    for level in GUARDED {
        for path in [Path::Inline, Path::Direct] {
            let (server, client, file) = opened(level);
            let mut buf = vec![0; 4 * PAGE];
            file.read_exact_at(&mut buf, 0).unwrap();
            server.state().bump(FILE);
            let mut page = vec![0; PAGE];
            let report = file.read_at_report(&mut page, 0).unwrap();
            assert_eq!((report.faults, report.inline), (1, 1), "{level}");
            assert_eq!(client.counters().fault(AccessFault::Revoked), 1, "{level}");
            assert_eq!(page, buf[..PAGE]);
            assert_eq!(file.read_at_report(&mut page, 0).unwrap().ordma, 1, "under the new key");
            // Also where the reply is the first to tell.
            server.state().bump(FILE);
            assert_eq!(file.read_at_by(&mut buf, 0, path).unwrap().bytes, 4 * PAGE);
            assert!(buf == pattern(8 * PAGE)[..4 * PAGE]);
            // Of which GET_REFS tells too.
            server.state().bump(FILE);
            file.prefetch(0, 8 * PAGE as u64, true).unwrap();
            assert_eq!(file.read_at_report(&mut buf, 0).unwrap().ordma, 4);
            assert_eq!(client.counters().reconnects, 0);
        }
    }
}

#[test]
fn keys_that_are_missing_or_malformed_end_the_connection() {
    let open_fails = |level, wrong: fn(&mut OpenReply)| {
        let server = Server::protected(level);
        server.add_file("a", &pattern(PAGE));
        let client = server.client();
        change::<OpenReply>(&server, Op::Open, move |reply, _| wrong(reply));
        let error = client.open("a").unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        client.open("a").unwrap();
        error.to_string()
    };
    let error = open_fails(Protection::Sealed, |reply| reply.key = None);
    assert!(error.contains("no key for an open that may read"), "{error}");
    open_fails(Protection::Keyed, |reply| reply.key = None);
    open_fails(Protection::Sealed, |reply| reply.key.as_mut().unwrap().secret.truncate(31));
    let error = open_fails(Protection::None, |reply| {
        reply.key = Some(dafs_proto::FileKey { epoch: 1, secret: vec![1; 32] });
    });
    assert!(error.contains("a key at protection level none"), "{error}");

    // A new epoch's pages without its key, and a key of an epoch that is over.
    let (server, client, file) = opened(Protection::Sealed);
    server.state().bump(FILE);
    change::<ReadReply>(&server, Op::Read, |reply, _| reply.key = None);
    let error = fails_then_goes_on(&client, &file, Path::Inline);
    assert!(error.contains("not under the key"), "{error}");
    let old = |reply: &mut ReadReply, _: &mut Vec<u8>| {
        reply.key = Some(dafs_proto::FileKey { epoch: 1, secret: vec![1; 32] });
    };
    let error = read_fails(Protection::Sealed, Path::Direct, old);
    assert!(error.contains("an epoch that is over"), "{error}");
    let (server, _client, file) = opened(Protection::Keyed);
    change::<GetRefsReply>(&server, Op::GetRefs, |reply, _| {
        reply.key = Some(dafs_proto::FileKey { epoch: 2, secret: vec![1; 5] });
    });
    let error = file.prefetch(0, PAGE as u64, true).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn tags_that_are_missing_or_wrong_end_the_connection() {
    for path in [Path::Inline, Path::Direct] {
        let fails = |wrong: fn(&mut ReadReply)| {
            read_fails(Protection::Keyed, path, move |reply, _| wrong(reply))
        };
        let error = fails(|reply| reply.tags.clear());
        assert!(error.contains("one tag for each page"), "{error}");
        fails(|reply| reply.tags.truncate(3 * 16));
        fails(|reply| reply.tags.push(0));
        let error = fails(|reply| reply.tags[20] ^= 1);
        assert!(error.contains("does not match its tag"), "{error}");
        fails(|reply| reply.tags.rotate_left(16));
        fails(|reply| reply.first_tag += 1);
        fails(|reply| reply.first_tag = u64::MAX);
    }
}

#[test]
fn an_open_that_may_not_read_has_no_key_and_reads_nothing() {
    for level in GUARDED {
        let (server, client, _file) = opened(level);
        let file = client.open_with("a", OpenOptions::new().write(true)).unwrap();
        file.write_all_at(&pattern(100 * PAGE), 0).unwrap();
        file.write_all_at(b"small", 3).unwrap();
        let error = file.read_at(&mut [0; 10], 0).unwrap_err();
        assert_eq!(error.errno(), 9);
        assert!(file.prefetch(0, 10, false).is_err());
        assert_eq!(server.state().one_sided, 0);
        // Even where the server would give one.
        change::<OpenReply>(&server, Op::Open, |reply, _| {
            reply.key = Some(dafs_proto::FileKey { epoch: 1, secret: vec![1; 32] });
        });
        let error = client.open_with("a", OpenOptions::new().write(true)).unwrap_err();
        assert!(error.to_string().contains("may not read"), "{error}");
    }
}

#[test]
fn large_writes_are_offered_with_a_seal_for_each_connection() {
    for level in GUARDED {
        let (server, client, file) = opened(level);
        for verdict in [|| Verdict::Cut, || Verdict::ServeAndCut] {
            let seals = Arc::new(Mutex::new(Vec::new()));
            let (into, mut verdict) = (Arc::clone(&seals), Some(verdict));
            server.script(move |header, body| {
                if header.op != Op::Write {
                    return Verdict::Serve;
                }
                into.lock().unwrap().push(WriteRequest::decode(body).unwrap().seal);
                verdict.take().map_or(Verdict::Serve, |verdict| verdict())
            });
            let data = pattern(50 * PAGE);
            assert_eq!(file.write_at(&data, 0).unwrap(), data.len());
            assert!(server.state().nodes[&FILE].data == data);
            let seals = seals.lock().unwrap();
            assert_eq!(seals.len(), 2, "sent again");
            assert!(seals[0].len() == 24 && seals[0] != seals[1], "under the new connection's key");
        }
        assert_eq!(client.counters().reconnects, 2);
        // What a restarted server has lost is offered again too.
        server.restart();
        let mut buf = vec![0; 50 * PAGE];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf == pattern(50 * PAGE));
        file.sync().unwrap();
    }
    // Without a handshake there is no seal.
    let (server, _client, file) = opened(Protection::None);
    file.write_all_at(&pattern(50 * PAGE), 0).unwrap();
    assert!(server.state().seals.iter().all(Vec::is_empty));
}

#[test]
fn reads_survive_lost_connections_and_restarts() {
    for level in GUARDED {
        let (server, client, file) = opened(level);
        let mut buf = vec![0; 8 * PAGE];
        for path in [Path::Inline, Path::Direct, Path::Auto] {
            for verdict in [|| Verdict::Cut, || Verdict::ServeAndCut] {
                server.once(Op::Read, verdict);
                buf.fill(0);
                file.read_at_by(&mut buf, 0, path).unwrap();
                assert!(buf == pattern(8 * PAGE), "{level} {path:?}");
            }
        }
        // The epoch moves while the request is on its way a second time.
        let moving = server.clone();
        server.once(Op::Read, move || {
            moving.state().bump(FILE);
            Verdict::Cut
        });
        file.read_at_by(&mut buf, 0, Path::Direct).unwrap();
        assert!(buf == pattern(8 * PAGE));
        // Another boot: other keys, and the epochs begin anew.
        server.restart();
        buf.fill(0);
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf == pattern(8 * PAGE));
        assert_eq!(file.read_at_report(&mut buf, 0).unwrap().ordma, 8);
        // Another session of the same boot.
        server.state().sessions.clear();
        file.read_at_by(&mut buf, 0, Path::Inline).unwrap();
        assert!(buf == pattern(8 * PAGE));
        assert_eq!(client.counters().sessions_lost, 2);
    }
}

#[test]
fn many_threads_read_while_keys_change() {
    let (server, client, _file) = opened(Protection::Sealed);
    let data = pattern(8 * PAGE);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                let (client, data) = (client.clone(), &data);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    let file = client.open("a").unwrap();
                    let mut buf = vec![0; 8 * PAGE];
                    for _ in 0..300 {
                        let path = [Path::Auto, Path::Inline, Path::Direct][rng.usize(0..3)];
                        file.read_at_by(&mut buf, 0, path).unwrap();
                        assert!(buf == *data);
                    }
                })
            })
            .collect();
        while !readers.iter().all(|reader| reader.is_finished()) {
            server.state().bump(FILE);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(client.counters().reconnects, 0);
}

#[test]
fn what_is_less_or_other_than_asked_for_is_refused() {
    // Plainly asked, plainly refused, and the text tells the level.
    let server = Server::protected(Protection::Sealed);
    let error = Client::connect_over(server.connector(), "data", options()).unwrap_err();
    assert_eq!(error.status(), Some(Status::Protection));
    assert!(error.to_string().contains("the export offers protection sealed"), "{error}");
    let least = |protection| Options { protection, ..options() };
    let server = Server::protected(Protection::Keyed);
    let connect = |server: &Server, protection| {
        Client::connect_over(server.connector(), "data", least(protection))
    };
    let error = connect(&server, Protection::Sealed).unwrap_err();
    assert_eq!(error.status(), Some(Status::Protection));
    // More than the least is fine.
    let server = Server::protected(Protection::Sealed);
    let client = connect(&server, Protection::Keyed).unwrap();
    assert_eq!(client.protection().unwrap(), Protection::Sealed);
    // Servers that grant what was not asked for.
    for (offered, least, granted, why) in [
        (Protection::Sealed, Protection::Sealed, 2, "at least sealed was asked for"),
        (Protection::Sealed, Protection::Sealed, 1, "at least sealed was asked for"),
        (Protection::None, Protection::None, 3, "where none was asked for"),
        (Protection::Sealed, Protection::Keyed, 9, "the unknown protection level 9"),
    ] {
        let server = Server::protected(offered);
        change::<ConnectReply>(&server, Op::Connect, move |reply, _| reply.protection = granted);
        let error = connect(&server, least).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    // Nothing is said over a connection without handshake.
    let server = Server::new();
    let error = connect(&server, Protection::Sealed).unwrap_err();
    assert!(matches!(error, Error::Protection(_)), "{error}");
    assert!(server.take_log().is_empty());
}

#[test]
fn a_session_never_goes_on_at_less_or_with_another_server() {
    let fails = |change: fn(&Server), why: &str| {
        let server = Server::protected(Protection::Sealed);
        server.add_file("a", &pattern(PAGE));
        let timeout = Duration::from_millis(200);
        let options = Options { protection: Protection::Keyed, timeout, ..options() };
        let client = server.client_with(options);
        let file = client.open("a").unwrap();
        change(&server);
        server.restart();
        let error = file.read_at(&mut [0; 10], 0).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    let keyed = |server: &Server| server.state().protection = Protection::Keyed;
    fails(keyed, "protection level keyed where it was sealed");
    let other = |server: &Server| {
        server.state().identity = Arc::new(Identity::generate().unwrap());
    };
    fails(other, "another key than the server had before");
    fails(|server| server.state().protection = Protection::None, "takes a handshake");
}

#[test]
fn the_credential_goes_with_every_connect() {
    let server = Server::protected(Protection::Sealed);
    let credential = Some(Credential { uid: 5, gid: 6, groups: vec![7] });
    let options =
        Options { protection: Protection::Sealed, credential: credential.clone(), ..options() };
    let client = server.client_with(options);
    server.cut();
    client.metadata("/").unwrap();
    assert_eq!(server.state().credentials, [credential.clone(), credential]);
}

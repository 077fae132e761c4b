//! Lost connections, lost sessions, restarted servers.

mod common;

use common::{PAGE, Server, Verdict, options, pattern};
use dafs_client::{Error, OpenOptions, Options, Path};
use dafs_proto::{ErrorReply, Op, Status};
use ordma::AccessFault;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn rw() -> OpenOptions {
    OpenOptions::new().read(true).write(true).create(true)
}

#[test]
fn a_request_whose_reply_was_lost_is_done_once() {
    let server = Server::new();
    let client = server.client();
    server.once(Op::Mkdir, || Verdict::ServeAndCut);
    client.mkdir("d", 0o755).expect("the kept reply, not EEXIST");
    let counters = client.counters();
    assert_eq!((counters.reconnects, counters.resent_requests), (1, 1));
    assert_eq!(counters.sessions_lost, 0);
}

#[test]
fn a_request_that_did_not_arrive_is_sent_again() {
    let server = Server::new();
    let client = server.client();
    server.once(Op::Mkdir, || Verdict::Cut);
    client.mkdir("d", 0o755).unwrap();
    assert_eq!(client.read_dir("/").unwrap().len(), 1);
}

#[test]
fn direct_transfers_survive_a_lost_connection() {
    let server = Server::new();
    let data = pattern(100 * PAGE);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open_with("a", rw()).unwrap();
    let mut buf = vec![0; data.len()];
    for verdict in [|| Verdict::ServeAndCut, || Verdict::Cut] {
        server.once(Op::Read, verdict);
        buf.fill(0);
        let report = file.read_at_by(&mut buf, 0, Path::Direct).unwrap();
        assert_eq!(report.direct, 100);
        assert!(buf == data);
    }
    for (byte, verdict) in [(1, (|| Verdict::ServeAndCut) as fn() -> Verdict), (2, || Verdict::Cut)]
    {
        server.once(Op::Write, verdict);
        let new = vec![byte; data.len()];
        assert_eq!(file.write_at(&new, 0).unwrap(), new.len());
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf == new);
    }
}

#[test]
fn after_a_lost_session_files_are_opened_again_and_reads_go_on() {
    let server = Server::new();
    let data = pattern(4 * PAGE);
    server.add_file("a", &data);
    server.add_file("b", &data);
    let client = server.client();
    // The numbers of opens begin anew in the new session: they must not be mixed up.
    let b = client.open("b").unwrap();
    let a = client.open("a").unwrap();
    drop(b);
    server.state().resume = false;
    server.once(Op::Read, || Verdict::Cut);
    let mut buf = vec![0; 4 * PAGE];
    a.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, data);
    assert_eq!(client.counters().sessions_lost, 1);
    // The same boot: references are good still.
    assert_eq!(a.read_at_report(&mut buf, 0).unwrap().ordma, 4);
}

#[test]
fn what_may_have_been_done_is_reported_and_not_done_again() {
    let server = Server::new();
    let client = server.client();
    server.state().resume = false;
    server.once(Op::Mkdir, || Verdict::ServeAndCut);
    let error = client.mkdir("d", 0o755).unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { op: Op::Mkdir, .. }), "{error}");
    assert_eq!(client.read_dir("/").unwrap().len(), 1);
    // The same for an open that creates exclusively; one that does not may be made again.
    server.once(Op::Open, || Verdict::ServeAndCut);
    let error = client.open_with("n", rw().create_new(true)).unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { op: Op::Open, .. }), "{error}");
    server.once(Op::Open, || Verdict::ServeAndCut);
    client.open_with("m", rw()).unwrap();
}

/// The request `op` is executed, its connection lost before the reply arrives, and what is sent again
/// is answered by `refusal`. How often `op` was sent.
fn refused_when_sent_again(server: &Server, op: Op, refusal: Status) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let state = server.clone();
    server.script(move |header, _| {
        if header.op != op {
            return Verdict::Serve;
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Verdict::ServeAndCut,
            1 => {
                state.state().sessions.clear();
                let message = ErrorReply::default();
                Verdict::Answer(common::reply(header, refusal, 1, &message), Vec::new())
            }
            _ => Verdict::Serve,
        }
    });
    sent
}

#[test]
fn a_refusal_of_what_was_sent_again_does_not_say_that_nothing_was_done() {
    for refusal in [Status::BadSession, Status::ServerStopping] {
        let server = Server::new();
        server.add_file("a", &pattern(PAGE));
        server.add_file("b", &pattern(PAGE));
        let client = server.client();
        let check = |op, act: &dyn Fn() -> dafs_client::Result<()>| {
            let sent = refused_when_sent_again(&server, op, refusal);
            let error = act().unwrap_err();
            assert!(matches!(error, Error::OutcomeUnknown { op: of, .. } if of == op), "{error}");
            assert_eq!(sent.load(Ordering::SeqCst), 2, "{op} was sent in a new session");
        };
        check(Op::Rename, &|| client.rename("b", "c"));
        check(Op::Unlink, &|| client.unlink("a"));
        check(Op::Mkdir, &|| client.mkdir("d", 0o755).map(drop));
        check(Op::Open, &|| client.open_with("n", rw().create_new(true)).map(drop));
        check(Op::Open, &|| client.open_with("c", rw().truncate(true)).map(drop));
        let mut names: Vec<_> = client.read_dir("/").unwrap().into_iter().map(|e| e.name).collect();
        names.sort();
        assert_eq!(names, ["c", "d", "n"].map(std::path::PathBuf::from));
        // What may be done twice goes on in the new session.
        let sent = refused_when_sent_again(&server, Op::Open, refusal);
        client.open_with("m", rw()).unwrap();
        assert_eq!(sent.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn a_reply_that_comes_twice_to_what_was_sent_again_is_taken_once() {
    let server = Server::new();
    let client = server.client();
    let (state, mut sent) = (server.clone(), 0);
    server.script(move |header, _| {
        if header.op != Op::Mkdir {
            return Verdict::Serve;
        }
        sent += 1;
        if sent == 1 {
            return Verdict::ServeAndCut;
        }
        if sent == 2 {
            // The request was still being executed when the client came back: its reply goes out
            // over the new connection, and once more when the request arrives again.
            let state = state.state();
            let session = state.sessions.values().next().unwrap();
            let (head, data) = session.replies[&header.slot].1.clone().unwrap();
            let link = state.links.last().unwrap().upgrade().unwrap();
            drop(state);
            link.deliver(head, data);
        }
        Verdict::Serve
    });
    client.mkdir("d", 0o755).unwrap();
    client.mkdir("e", 0o755).unwrap();
    assert_eq!(client.read_dir("/").unwrap().len(), 2);
    let counters = client.counters();
    assert_eq!((counters.reconnects, counters.sessions_lost), (1, 0));
}

#[test]
fn a_session_that_the_server_does_not_know_is_replaced() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    // Expired: the requests are refused although the connection stands.
    server.state().sessions.clear();
    let mut buf = vec![0; PAGE];
    file.read_exact_at(&mut buf, 0).unwrap();
    server.state().sessions.clear();
    client.mkdir("d", 0o755).expect("refused, so surely not done");
    assert_eq!(client.counters().sessions_lost, 2);
}

#[test]
fn a_new_boot_drops_the_directory_and_finds_the_files_again() {
    let server = Server::new();
    let data = pattern(4 * PAGE);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; 4 * PAGE];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(client.references(), 4);
    server.restart();
    buf.fill(0);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!(buf, data);
    assert_eq!(report.ordma, 0);
    assert_eq!(client.counters().fault(AccessFault::Unreachable), u64::from(report.faults));
    assert_eq!(client.references(), 4);
    assert_eq!(file.read_at_report(&mut buf, 0).unwrap().ordma, 4);
}

#[test]
fn a_file_that_is_gone_after_a_restart_fails_by_name() {
    let server = Server::new();
    let id = server.add_file("a", &pattern(PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    server.state().nodes.remove(&id);
    let ids = server.state().nodes.len();
    assert_eq!(ids, 1);
    server.restart();
    let error = file.read_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!(error.errno(), 116, "{error}");
    assert!(error.to_string().contains("\"a\""), "{error}");
}

#[test]
fn uncommitted_writes_are_sent_again_after_a_restart() {
    let server = Server::new();
    let client = server.client();
    let file = client.open_with("a", rw()).unwrap();
    let data = pattern(300 * PAGE + 5);
    file.write_all_at(&data, 0).unwrap();
    file.write_all_at(b"later", 10).unwrap();
    server.restart();
    let mut buf = vec![0; data.len()];
    file.read_exact_at(&mut buf, 0).unwrap();
    let mut expected = data;
    expected[10..15].copy_from_slice(b"later");
    assert!(buf == expected, "they are back before the first read");
    file.sync().unwrap();
    assert_eq!(file.uncommitted(), 0);
    server.restart();
    file.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf == expected);
}

#[test]
fn a_commit_under_another_verifier_sends_again_first() {
    let server = Server::new();
    let client = server.client();
    let file = client.open_with("a", rw()).unwrap();
    file.write_all_at(b"hello", 0).unwrap();
    {
        // The server lost its cache, for example by a failed disk, and says so by its verifier.
        let mut state = server.state();
        state.verifier += 1;
        let id = *state.nodes.keys().last().unwrap();
        state.change(id, Vec::clear);
    }
    file.sync().unwrap();
    let id = *server.state().nodes.keys().last().unwrap();
    assert_eq!(server.state().nodes[&id].stable, b"hello");
    assert_eq!(client.counters().resent_bytes, 5);
    assert_eq!(file.uncommitted(), 0);
}

#[test]
fn operations_fail_after_the_timeout_and_work_again_when_the_server_is_back() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let options = Options { timeout: Duration::from_millis(200), ..options() };
    let client = server.client_with(options);
    let file = client.open("a").unwrap();
    server.state().refuse = true;
    server.cut();
    let begun = Instant::now();
    let error = file.read_at(&mut [0; 10], 0).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("refused by the test"), "{error}");
    assert!((150..3000).contains(&begun.elapsed().as_millis()));
    // Each later operation gets its own time.
    assert!(matches!(client.mkdir("d", 0o755), Err(Error::Timeout { .. })));
    server.state().refuse = false;
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 10);
    client.mkdir("d", 0o755).unwrap();
}

#[test]
fn an_outstanding_request_fails_when_the_server_is_given_up() {
    let server = Server::new();
    let options = Options { timeout: Duration::from_millis(100), ..options() };
    let client = server.client_with(options);
    let refusing = server.clone();
    server.once(Op::Mkdir, move || {
        refusing.state().refuse = true;
        Verdict::ServeAndCut
    });
    let error = client.mkdir("d", 0o755).unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

#[test]
fn the_keeper_renews_the_lease_and_replaces_an_idle_connection() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    server.state().lease_ms = 90;
    let client = server.client();
    let renewals = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&renewals);
    server.script(move |header, _| {
        if header.op == Op::Renew {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Verdict::Serve
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while renewals.load(Ordering::SeqCst) < 3 {
        assert!(Instant::now() < deadline, "no renewals");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.cut();
    while client.counters().reconnects == 0 {
        assert!(Instant::now() < deadline, "not connected again");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_does_not_answer_renewals_is_left() {
    let server = Server::new();
    server.state().lease_ms = 60;
    let client = server.client();
    let mut ignored = false;
    server.script(move |header, _| {
        if header.op == Op::Renew && !std::mem::replace(&mut ignored, true) {
            Verdict::Ignore
        } else {
            Verdict::Serve
        }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.counters().reconnects == 0 {
        assert!(Instant::now() < deadline, "the connection was not replaced");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn dropping_the_last_handle_ends_the_session_promptly() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    drop(client);
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 10, "a file keeps its client");
    server.take_log();
    let begun = Instant::now();
    drop(file);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(server.take_log(), [Op::Close, Op::Disconnect]);
    assert!(server.state().sessions.is_empty());
}

#[test]
fn a_closed_client_refuses_further_use() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    client.close();
    assert!(matches!(file.read_at(&mut [0; 10], 0), Err(Error::Closed(_))));
    assert!(matches!(client.mkdir("d", 0), Err(Error::Closed(_))));
}

#[test]
fn many_threads_ride_out_many_lost_connections() {
    let server = Server::new();
    let data = pattern(64 * PAGE);
    server.add_file("a", &data);
    let client = server.client();
    let stop = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (client, data, stop) = (client.clone(), &data, Arc::clone(&stop));
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let file = client.open("a").unwrap();
                let mut buf = vec![0; 20 * PAGE];
                for _ in 0..300 {
                    let offset = rng.usize(0..data.len());
                    let len = rng.usize(1..buf.len());
                    let path = [Path::Auto, Path::Inline, Path::Direct][rng.usize(0..3)];
                    let to = &mut buf[..len];
                    let read = file.read_at_by(to, offset as u64, path).unwrap().bytes;
                    let end = (offset + len).min(data.len());
                    assert!(to[..read] == data[offset..end]);
                }
                stop.fetch_add(1, Ordering::SeqCst);
            });
        }
        let mut rng = fastrand::Rng::with_seed(9);
        while stop.load(Ordering::SeqCst) < 4 {
            std::thread::sleep(Duration::from_millis(rng.u64(1..20)));
            match rng.u8(0..3) {
                0 => server.restart(),
                1 => server.state().sessions.clear(),
                _ => server.cut(),
            }
        }
    });
}

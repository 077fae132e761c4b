//! Writing and committing.

mod common;

use common::{PAGE, Server, Verdict, options, pattern};
use dafs_client::blocking::{Client, File};
use dafs_client::{OpenOptions, Options, SetAttr, Stability, Status};
use dafs_proto::Op;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

fn opened(options: Options) -> (Server, Client, File) {
    let server = Server::new();
    let client = server.client_with(options);
    let file =
        client.open_with("a", OpenOptions::new().read(true).write(true).create(true)).unwrap();
    server.take_log();
    (server, client, file)
}

fn content(server: &Server) -> Vec<u8> {
    server.state().nodes[&2].data.clone()
}

#[test]
fn small_writes_travel_inline_and_large_ones_are_fetched_in_parts() {
    let (server, client, file) = opened(options());
    assert_eq!(file.write_at(b"hello", 3).unwrap(), 5);
    assert_eq!(content(&server), b"\0\0\0hello");
    let data = pattern((3 << 20) + 17);
    assert_eq!(file.write_at(&data, 0).unwrap(), data.len());
    assert!(content(&server) == data);
    let counters = client.counters();
    // The rest of 17 bytes is small again.
    assert_eq!((counters.inline_writes, counters.direct_writes), (2, 3));
    assert_eq!(counters.written_bytes, 5 + data.len() as u64);
    assert_eq!(server.take_log(), [Op::Write; 5]);
}

#[test]
fn where_no_direct_transfer_succeeds_data_travels_inline() {
    let (server, client, file) = opened(options());
    server.state().no_direct = true;
    let data = pattern((1 << 20) + 17);
    file.write_all_at(&data, 3).unwrap();
    assert!(content(&server)[3..] == data);
    let counters = client.counters();
    assert!((1..=2).contains(&counters.direct_failed), "{}", counters.direct_failed);
    assert_eq!(counters.written_bytes, data.len() as u64);
    // What is kept until the commit can be sent again, and is.
    server.restart();
    file.sync().unwrap();
    assert!(content(&server)[3..] == data);
    assert_eq!((client.counters().resent_bytes, file.uncommitted()), (data.len() as u64, 0));
}

#[test]
fn a_written_page_is_read_at_once_and_one_sidedly() {
    let (_server, _client, file) = opened(options());
    let data = pattern(2 * PAGE);
    file.write_all_at(&data, 0).unwrap();
    let mut buf = vec![0; 2 * PAGE];
    file.read_exact_at(&mut buf, 0).unwrap();
    file.write_all_at(b"new", PAGE as u64 - 1).unwrap();
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!(report.ordma, 2);
    assert_eq!(&buf[PAGE - 1..PAGE + 2], b"new");
}

#[test]
fn uncommitted_bytes_are_kept_until_the_commit() {
    let (server, _client, file) = opened(options());
    file.write_all_at(b"hello", 0).unwrap();
    file.write_all_at(b"world", 100).unwrap();
    assert!(file.uncommitted() >= 10);
    file.commit(0, 50).unwrap();
    let rest = file.uncommitted();
    assert!((5..200).contains(&rest), "only what lies in the range is let go");
    file.sync().unwrap();
    assert_eq!(file.uncommitted(), 0);
    assert_eq!(server.state().nodes[&2].stable.len(), 105);
}

#[test]
fn stable_writes_keep_nothing() {
    let (server, _client, file) = opened(options());
    for stability in [Stability::Data, Stability::File] {
        file.write_at_stable(b"hello", 0, stability).unwrap();
        assert_eq!(file.uncommitted(), 0);
    }
    assert_eq!(server.state().nodes[&2].stable, b"hello");
}

#[test]
fn the_budget_of_uncommitted_bytes_is_kept_by_committing() {
    let budget = 1 << 20;
    let (server, client, file) = opened(Options { retained_bytes: budget, ..options() });
    let other = client.open_with("b", OpenOptions::new().write(true).create(true)).unwrap();
    other.write_all_at(&pattern(budget / 2), 0).unwrap();
    let data = pattern(100 << 10);
    for i in 0..50u64 {
        file.write_all_at(&data, i * data.len() as u64).unwrap();
        assert!(file.uncommitted() + other.uncommitted() <= budget);
    }
    assert!(server.take_log().contains(&Op::Commit));
    // More than the budget at once.
    let large = pattern(3 * budget);
    file.write_all_at(&large, 0).unwrap();
    assert!(file.uncommitted() <= budget);
}

#[test]
fn attributes_and_size_can_be_set() {
    let (server, client, file) = opened(options());
    file.write_all_at(&pattern(3 * PAGE), 0).unwrap();
    let mut buf = vec![0; 4 * PAGE];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3 * PAGE);
    file.set_len(PAGE as u64 + 10).unwrap();
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), PAGE + 10);
    assert_eq!(file.attr().unwrap().size, PAGE as u64 + 10);
    assert_eq!(client.metadata("a").unwrap().size, PAGE as u64 + 10);
    assert_eq!(content(&server).len(), PAGE + 10);
}

#[test]
fn a_refused_write_says_what_and_why() {
    let (server, _client, file) = opened(options());
    server.once(Op::Write, || {
        common::Verdict::Change(Box::new(|head, _| {
            let (header, _) = dafs_proto::Header::decode(head).unwrap();
            let body = dafs_proto::ErrorReply { message: "the disk is full".into() };
            *head = common::reply(&header, Status::NoSpace, 16, &body);
        }))
    });
    let error = file.write_at(b"hello", 0).unwrap_err();
    assert_eq!(error.errno(), 28);
    let text = error.to_string();
    assert!(text.contains("\"a\"") && text.contains("the disk is full"), "{text}");
}

#[test]
fn what_a_truncation_cut_off_does_not_come_back() {
    for by_path in [false, true] {
        let (server, client, file) = opened(options());
        file.write_all_at(&pattern(PAGE), 0).unwrap();
        if by_path {
            let set = SetAttr { size: Some(10), ..SetAttr::default() };
            client.set_attr("a", set).unwrap();
        } else {
            client.open_with("a", OpenOptions::new().write(true).truncate(true)).unwrap();
        }
        server.restart();
        let size = file.read_at(&mut [0; 100], 0).unwrap();
        assert!(size <= 10);
    }
}

/// Files that are closed are committed in the background, and before too many of them are open. An
/// open that does that may be given up at any time.
#[test]
fn an_open_that_is_given_up_leaves_what_it_was_committing_to_the_next_one() {
    let server = Server::new();
    let client = server.client_with(Options { background: false, ..options() });
    let create = OpenOptions::new().write(true).create(true);
    let names: Vec<String> = (0..70).map(|number| format!("file {number}")).collect();
    for name in &names[..65] {
        client.open_with(name, create).unwrap().write_all_at(b"precious", 0).unwrap();
    }
    // Not one commit is answered.
    let asked = Arc::new(AtomicBool::new(false));
    let told = asked.clone();
    server.script(move |header, _| match header.op {
        Op::Commit => {
            told.store(true, Ordering::Relaxed);
            Verdict::Ignore
        }
        _ => Verdict::Serve,
    });
    let asking = client.clone().into_async();
    let mut open = Box::pin(asking.open_with(&names[65], create));
    let mut cx = Context::from_waker(Waker::noop());
    let end = Instant::now() + Duration::from_secs(10);
    while !asked.load(Ordering::Relaxed) {
        assert!(open.as_mut().poll(&mut cx).is_pending() && Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(open);
    server.script(|_, _| Verdict::Serve);
    let all_are_stable = || {
        let state = server.state();
        let files = state.nodes.values().filter(|node| !node.data.is_empty());
        files.filter(|node| node.stable == b"precious").count() == 65
    };
    while !all_are_stable() {
        assert!(Instant::now() < end, "some files are not committed any more");
        client.tend();
        std::thread::sleep(Duration::from_millis(5));
    }
}

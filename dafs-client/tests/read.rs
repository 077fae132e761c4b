//! Reading: which path serves a page, and what is counted.

mod common;

use common::{PAGE, Server, Verdict, options, pattern};
use dafs_client::{Error, OpenOptions, Options, Path, Status};
use dafs_proto::Op;
use ordma::AccessFault;

#[test]
fn the_second_read_of_a_page_is_one_sided() {
    let server = Server::new();
    let data = pattern(3 * PAGE + 100);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];

    let first = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((first.bytes, first.inline, first.ordma), (PAGE, 1, 0));
    assert_eq!(buf, data[..PAGE]);
    server.take_log();

    buf.fill(0);
    let second = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((second.bytes, second.inline, second.ordma, second.copied), (PAGE, 0, 1, 0));
    assert_eq!(buf, data[..PAGE]);
    assert!(server.take_log().is_empty(), "no request may be sent");
    let counters = client.counters();
    assert_eq!((counters.directory_hits, counters.directory_misses), (1, 1));
    assert_eq!((counters.ordma_pages, counters.inline_pages), (1, 1));
}

#[test]
fn every_offset_and_length_reads_the_right_bytes_by_every_path() {
    let server = Server::new();
    let data = pattern(5 * PAGE + 17);
    server.add_file("a", &data);
    for local_reads in [false, true] {
        server.state().local_reads = local_reads;
        let client = server.client();
        let file = client.open("a").unwrap();
        for path in [Path::Auto, Path::Ordma, Path::Inline, Path::Direct] {
            for offset in [0, 1, PAGE - 1, PAGE, 2 * PAGE + 5, 5 * PAGE, 5 * PAGE + 17, 9 * PAGE] {
                for len in [1, 100, PAGE, PAGE + 1, 3 * PAGE, 8 * PAGE] {
                    let mut buf = vec![0xee; len];
                    let report = file.read_at_by(&mut buf, offset as u64, path).unwrap();
                    let expected = &data[offset.min(data.len())..(offset + len).min(data.len())];
                    assert_eq!(report.bytes, expected.len(), "{path:?} {offset} {len}");
                    assert_eq!(&buf[..report.bytes], expected, "{path:?} {offset} {len}");
                }
            }
        }
    }
}

#[test]
fn where_no_direct_transfer_succeeds_pages_come_inline() {
    let server = Server::new();
    let data = pattern((1 << 20) + 5);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    server.state().no_direct = true;
    let mut buf = vec![0; data.len()];
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.bytes, report.direct), (data.len(), 0));
    assert!(buf == data);
    let refused = client.counters().direct_failed;
    assert!(
        (1..=2).contains(&refused),
        "{refused}: all that were under way together, and no other"
    );
    // Who asks for it by name is told.
    let error = file.read_at_by(&mut buf, 0, Path::Direct).unwrap_err();
    assert_eq!(error.status(), Some(Status::Transfer), "{error}");
}

#[test]
fn where_neither_direct_nor_inline_will_do_it_is_said_so() {
    let server = Server::new();
    server.add_file("a", &pattern(1 << 20));
    server.state().max_inline = 0;
    server.state().no_direct = true;
    let client = server.client();
    let file = client.open_with("a", OpenOptions::new().read(true).write(true)).unwrap();
    for _ in 0..2 {
        let error = file.read_at(&mut vec![0; 1 << 20], 0).unwrap_err();
        assert_eq!(error.status(), Some(Status::Transfer), "{error}");
        let error = file.write_at(&pattern(1 << 20), 0).unwrap_err();
        assert_eq!(error.status(), Some(Status::Transfer), "{error}");
    }
}

#[test]
fn a_large_read_is_direct_and_then_one_sided_in_batches() {
    let server = Server::new();
    let data = pattern(3 << 20);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; data.len()];
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.bytes, report.direct as usize), (data.len(), data.len() / PAGE));
    assert_eq!(report.copied, 0, "whole pages land in the caller's buffer");
    assert!(buf == data);
    buf.fill(0);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!(report.ordma as usize, data.len() / PAGE);
    assert!(buf == data);
}

#[test]
fn a_first_sequential_pass_warms_the_directory_with_neighbours() {
    let server = Server::new();
    let id = server.add_file("a", &pattern(40 * PAGE));
    for block in 0..40 {
        server.state().fill(id, block);
    }
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    for block in 0..40 {
        file.read_at(&mut buf, block * PAGE as u64).unwrap();
    }
    assert_eq!(client.counters().inline_reads, 1);
    assert_eq!(client.counters().ordma_pages, 39);
}

#[test]
fn each_fault_falls_back_to_an_rpc_and_is_counted() {
    for fault in AccessFault::ALL {
        let server = Server::new();
        let data = pattern(PAGE);
        server.add_file("a", &data);
        let client = server.client();
        let file = client.open("a").unwrap();
        let mut buf = vec![0; PAGE];
        file.read_at(&mut buf, 0).unwrap();
        server.state().faults.push_back(Some(fault));
        buf.fill(0xee);
        let report = file.read_at_report(&mut buf, 0).unwrap();
        assert_eq!(buf, data);
        assert_eq!(report.faults, 1);
        let counters = client.counters();
        assert_eq!(counters.fault(fault), 1, "{fault}");
        if fault == AccessFault::Torn {
            // Tried once more, with success.
            assert_eq!((report.ordma, report.inline, counters.torn_retries), (1, 0, 1));
        } else {
            assert_eq!((report.ordma, report.inline), (0, 1));
        }
    }
}

#[test]
fn a_page_torn_twice_goes_by_rpc_and_keeps_its_reference() {
    let server = Server::new();
    let id = server.add_file("a", &pattern(2 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    file.read_at(&mut buf, 0).unwrap();
    server.state().change(id, |data| data[0] ^= 1);
    server.state().faults.extend([Some(AccessFault::Torn), Some(AccessFault::Torn)]);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.faults, report.inline), (2, 1));
    assert_eq!(client.counters().fault(AccessFault::Bad), 0, "the page did change");
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!(report.ordma, 1);
}

#[test]
fn a_page_torn_twice_that_did_not_change_is_bad() {
    let server = Server::new();
    server.add_file("a", &pattern(2 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    file.read_at(&mut buf, 0).unwrap();
    server.state().faults.extend([Some(AccessFault::Torn), Some(AccessFault::Torn)]);
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(client.counters().fault(AccessFault::Bad), 1);
}

#[test]
fn pages_go_by_rpc_while_one_sided_reads_are_set_up_again() {
    let server = Server::new();
    let data = pattern(4 * PAGE + 10);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; 5 * PAGE];
    file.read_at(&mut buf, 0).unwrap();
    let (references, before) = (client.references(), client.counters());
    server.state().rearming = true;
    // A page, a part of one, several, and the end of the file.
    for (offset, len, pages) in [(0, PAGE, 1), (PAGE + 5, 100, 1), (PAGE, 3 * PAGE, 3)] {
        let buf = &mut buf[..len];
        buf.fill(0xee);
        let report = file.read_at_report(buf, offset as u64).unwrap();
        assert_eq!(buf, &data[offset..offset + len]);
        assert_eq!((report.ordma, report.inline + report.direct), (0, pages));
        assert_eq!((report.rearming, report.faults), (pages, 0));
    }
    assert_eq!(file.read_at(&mut buf, 6 * PAGE as u64).unwrap(), 0);
    let after = client.counters();
    assert_eq!(server.state().one_sided, 0, "no attempt");
    assert_eq!((after.rearming_pages, after.faults), (5, before.faults));
    assert_eq!(client.references(), references);

    server.state().rearming = false;
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.ordma, report.rearming, report.faults), (5, 0, 0));
    assert_eq!(buf[..data.len()], data);
    assert_eq!(client.counters().rearming_pages, 5);
}

#[test]
fn several_pages_with_a_fault_each_come_out_right() {
    let server = Server::new();
    let data = pattern(64 * PAGE);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; data.len()];
    file.read_at(&mut buf, 0).unwrap();
    for (place, fault) in AccessFault::ALL.iter().enumerate() {
        let mut state = server.state();
        state.faults.extend(std::iter::repeat_n(None, place));
        state.faults.push_back(Some(*fault));
    }
    buf.fill(0xee);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert!(buf == data);
    assert_eq!(report.faults as usize, AccessFault::ALL.len());
    assert_eq!(report.ordma as usize + report.inline as usize + report.direct as usize, 64);
}

#[test]
fn changed_and_evicted_pages_show_their_newest_bytes() {
    let server = Server::new();
    let id = server.add_file("a", &pattern(2 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    file.read_at(&mut buf, 0).unwrap();
    server.state().change(id, |data| data[5] = 99);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.ordma, buf[5]), (1, 99), "changed in place, the reference stays good");
    server.state().evict(id, 0);
    server.state().change(id, |data| data[5] = 100);
    let report = file.read_at_report(&mut buf, 0).unwrap();
    assert_eq!((report.faults, report.inline, buf[5]), (1, 1, 100));
}

#[test]
fn the_end_of_the_file_is_found_without_an_rpc() {
    let server = Server::new();
    let id = server.add_file("a", &pattern(2 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; 4 * PAGE];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 2 * PAGE);
    server.take_log();
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 2 * PAGE, "stops at the last page");
    assert_eq!(file.read_at(&mut buf, 2 * PAGE as u64).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf[..10], 7 * PAGE as u64).unwrap(), 0);
    assert!(server.take_log().is_empty());
    assert_eq!(client.counters().ends_without_rpc, 2);
    // The file grows: the last page says so.
    server.state().change(id, |data| data.resize(3 * PAGE + 1, 9));
    assert_eq!(file.read_at(&mut buf, 2 * PAGE as u64).unwrap(), PAGE + 1);
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3 * PAGE + 1);
}

#[test]
fn an_empty_file_has_an_empty_last_page() {
    let server = Server::new();
    server.add_file("a", b"");
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 0);
    server.take_log();
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf, 3 * PAGE as u64).unwrap(), 0);
    assert!(server.take_log().is_empty());
}

#[test]
fn references_can_be_fetched_beforehand() {
    let server = Server::new();
    server.add_file("a", &pattern(20 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    file.prefetch(0, 20 * PAGE as u64, false).unwrap();
    assert_eq!(client.references(), 0, "nothing is cached yet");
    file.prefetch(0, u64::MAX, true).unwrap();
    assert_eq!(client.references(), 20);
    let mut buf = vec![0; 20 * PAGE];
    assert_eq!(file.read_at_report(&mut buf, 0).unwrap().ordma, 20);
}

#[test]
fn heat_is_reported_when_the_lease_is_renewed() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = server.client_with(Options { background: false, ..options() });
    let file = client.open("a").unwrap();
    let mut buf = vec![0; PAGE];
    for _ in 0..9 {
        file.read_at(&mut buf, 0).unwrap();
    }
    client.tend();
    let heat = server.state().heat.clone();
    let blocks: Vec<u64> = dafs_proto::WireHeat::iter(&heat).unwrap().map(|h| h.block).collect();
    assert_eq!(blocks, [0, 0]);
}

#[test]
fn forced_paths_do_not_look_at_the_directory() {
    let server = Server::new();
    server.add_file("a", &pattern(2 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut buf = vec![0; 2 * PAGE];
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(file.read_at_by(&mut buf, 0, Path::Inline).unwrap().inline, 2);
    assert_eq!(file.read_at_by(&mut buf, 0, Path::Direct).unwrap().direct, 2);
    assert_eq!(file.read_at_by(&mut buf, 0, Path::Ordma).unwrap().ordma, 2);
    assert_eq!(client.counters().directory_misses, 2);
}

#[test]
fn what_cannot_be_is_refused_without_a_request() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    server.take_log();
    let mut buf = vec![0; PAGE];
    let beyond = file.read_at(&mut buf, u64::MAX - 3).unwrap_err();
    assert!(matches!(beyond, Error::InvalidArgument(_)), "{beyond}");
    assert_eq!(file.write_at(b"x", 0).unwrap_err().errno(), 9);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
    file.close().unwrap();
    assert!(file.read_at(&mut buf, 0).is_err());
    assert_eq!(server.take_log(), [Op::Close]);
}

/// While a file of 8 pages is read, the first 4 of them one-sidedly, its data become `first` before
/// the first READ and `then` before the second: how many bytes are read, and by how many READs.
fn read_while_the_end_moves(path: Path, first: usize, then: usize) -> (usize, usize) {
    let server = Server::new();
    let data = pattern(8 * PAGE);
    let id = server.add_file("a", &data);
    let client = server.client_with(Options { neighbours: 0, ..options() });
    let file = client.open("a").unwrap();
    let mut buf = vec![0; 9 * PAGE];
    file.read_at(&mut buf[..4 * PAGE], 0).unwrap();
    // The one-sided reads are done before the READs are sent.
    server.state().local_reads = true;
    server.take_log();
    let (changed, bytes) = (server.clone(), data.clone());
    let mut sizes = vec![then, first];
    server.script(move |header, _| {
        if header.op == Op::Read
            && let Some(size) = sizes.pop()
        {
            let bytes = bytes[..size].to_vec();
            changed.state().change(id, |data| *data = bytes);
        }
        Verdict::Serve
    });
    buf.fill(0xee);
    let report = file.read_at_by(&mut buf, 0, path).unwrap();
    assert!(buf[..report.bytes] == data[..report.bytes]);
    assert_eq!(client.counters().reconnects, 0, "the server did nothing wrong");
    (report.bytes, server.take_log().len())
}

#[test]
fn a_read_ends_where_the_file_does_although_it_ended_elsewhere_before() {
    // It is short by then, and a page that was read before holds the end.
    assert_eq!(read_while_the_end_moves(Path::Auto, 10, 10), (10, 2));
    assert_eq!(read_while_the_end_moves(Path::Auto, PAGE, PAGE), (PAGE, 2));
    assert_eq!(read_while_the_end_moves(Path::Auto, 0, 0), (0, 2));
    // It is as long as before, or ends elsewhere, when that is looked at once more.
    assert_eq!(read_while_the_end_moves(Path::Auto, 10, 8 * PAGE), (8 * PAGE, 2));
    assert_eq!(read_while_the_end_moves(Path::Auto, 10, 6 * PAGE + 5), (6 * PAGE + 5, 2));
    // The end is among the pages that are still to come: nothing is asked twice.
    assert_eq!(read_while_the_end_moves(Path::Auto, 5 * PAGE + 7, 10), (5 * PAGE + 7, 1));
}

#[test]
fn a_read_that_ends_before_the_end_of_the_file_goes_on() {
    for path in [Path::Inline, Path::Direct] {
        let server = Server::new();
        let data = pattern(8 * PAGE);
        let id = server.add_file("a", &data);
        let client = server.client();
        let file = client.open("a").unwrap();
        // The server had delivered 3 pages when the file became shorter; then it is long again.
        let mut reads = 0;
        let state = server.clone();
        let bytes = data.clone();
        server.script(move |header, _| {
            if header.op != Op::Read {
                return Verdict::Serve;
            }
            reads += 1;
            let size = if reads == 1 { 3 * PAGE } else { 8 * PAGE };
            let bytes = bytes[..size].to_vec();
            state.state().change(id, |data| *data = bytes);
            if reads > 1 {
                return Verdict::Serve;
            }
            // Its last page was taken before.
            state.state().without_last = true;
            Verdict::Serve
        });
        let mut buf = vec![0xee; 8 * PAGE];
        let report = file.read_at_by(&mut buf, 0, path).unwrap();
        assert_eq!(report.bytes, 8 * PAGE, "{path:?}");
        assert!(buf == data);
        assert_eq!(client.counters().reconnects, 0, "the server did nothing wrong");
    }
}

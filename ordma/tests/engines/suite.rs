//! What every engine must do.

use crate::harness::*;
use dafs_keys::Protection;
use ordma::{AccessFault, FOOTER_LEN, LinkError, PageReads, Region, RemoteRef, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub fn echo_of_many_sizes(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    for len in [0, 1, 24, 4095, 4096, 4097, 65_536, 300_000, 1 << 20, 2 << 20] {
        client.echo(b"e", &pattern(len));
    }
    client.echo(&[b'e'; 64 << 10], &pattern(100_000));
    let capabilities = client.endpoint.capabilities();
    assert_eq!(capabilities.engine, row.engine.name());
    assert_eq!(capabilities.geometry, Some(world.arena.geometry()));
    assert_eq!(client.link.capabilities(), capabilities);
}

pub fn many_clients_at_once(row: &Row) {
    let world = World::new(row);
    let (slot, reference) = world.page(9);
    std::thread::scope(|scope| {
        for t in 0..8u8 {
            let (world, reference) = (&world, reference);
            scope.spawn(move || {
                let clients: Vec<_> = (0..4).map(|_| world.client()).collect();
                for i in 0..50 {
                    for client in &clients {
                        client.echo(&[b'e', t, i], &pattern(usize::from(i) * 700));
                        assert_eq!(client.read_one(reference), Ok(9));
                    }
                }
            });
        }
    });
    drop(slot);
}

pub fn messages_keep_their_order(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    for i in 0..300u32 {
        let head = [b"e", &i.to_le_bytes()[..]].concat();
        client.endpoint.send(&head, &[segment(pattern(i as usize * 50))]).unwrap();
    }
    for i in 0..300u32 {
        let (head, data) = client.message();
        assert_eq!(head[1..], i.to_le_bytes());
        assert!(data == pattern(i as usize * 50));
    }
}

pub fn messages_beyond_the_limits_are_refused(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    assert!(client.endpoint.send(&[0; (65 << 10) + 1], &[]).is_err());
    let client = world.client();
    assert!(client.endpoint.send(&[], &[segment(vec![0; (2 << 20) + 1])]).is_err());
    let client = world.client();
    client.link.send(&[0; (65 << 10) + 1], &[]);
    client.closed();
}

pub fn placing_into_advertised_memory(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    for len in [0, 1, 5000, 16_384, 65_536, 1 << 20] {
        let data = pattern(len);
        let region = Region::owned(vec![0; len + 10]);
        let tag = client.endpoint.advertise(vec![region.segment(5, len)]);
        let back = client.transfer(client.link.write_to(tag, data.clone())).unwrap();
        assert!(back == data, "the buffer comes back");
        // A message that is sent later arrives later.
        client.link.send(b"done", &[]);
        assert_eq!(client.message().0, b"done");
        assert_eq!(client.endpoint.withdraw(tag), len as u64);
        let got = region.take().unwrap();
        assert!(got[5..len + 5] == data && got[..5] == [0; 5] && got[len + 5..] == [0; 5]);
    }
    // Into scattered memory of several regions, more than one system call takes.
    let regions: Vec<_> = (0..5).map(|_| Region::owned(vec![0; 50_000])).collect();
    let pieces = (0..500).map(|i| regions[i % 5].segment(i / 5 * 500, 400)).collect();
    let tag = client.endpoint.advertise(pieces);
    let data = pattern(500 * 400);
    client.transfer(client.link.write_to(tag, data.clone())).unwrap();
    client.link.send(b"done", &[]);
    client.message();
    client.endpoint.withdraw(tag);
    let got: Vec<_> = regions.iter().map(|region| region.take().unwrap()).collect();
    for (i, piece) in data.chunks(400).enumerate() {
        assert!(got[i % 5][i / 5 * 500..][..400] == *piece, "piece {i}");
    }
}

pub fn placing_slots(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let page = |i| (world.page(i as u8 | 1), i as u8 | 1);
    let mut pages: Vec<_> = (0..300).map(page).collect();
    world.grow();
    pages.extend((300..600).map(page));
    let expect = |pages: &[((Slot, RemoteRef), u8)]| {
        let (pages, bytes): (Vec<_>, Vec<_>) = pages.iter().cloned().unzip();
        let expected: Vec<_> = bytes.into_iter().map(|byte| Ok((byte, 0))).collect();
        assert!(client.place(&pages) == expected, "{} slots", pages.len());
    };
    // Where the engine makes ready for it the first time, it is another way from the second on.
    for _ in 0..3 {
        for count in [1, 2, 15, 16, 17, 256, 600] {
            expect(&pages[..count]);
        }
        // None is another's neighbour.
        let scattered: Vec<_> = pages.iter().step_by(2).cloned().collect();
        for count in [2, 7, 8, 9, 16, 17, 100, 300] {
            expect(&scattered[..count]);
        }
    }
    assert!(client.place(&[]).is_empty());
    // Once the buffer is withdrawn there is nothing to be placed into.
    let region = Region::owned(vec![1; FOOTER_LEN + PAGE]);
    let tag = client.endpoint.advertise(vec![region.segment(0, region.len())]);
    client.endpoint.withdraw(tag);
    client.catch_up();
    let _ = client.transfer(client.link.place_slots(tag, &[pages[0].0.0.clone()]));
    client.echo(b"e still there", &[]);
    assert!(region.take().unwrap() == [1; FOOTER_LEN + PAGE], "nothing was written");
}

pub fn a_slot_that_changes_is_placed_whole_or_judged(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let page = world.page(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut version = 0;
            while !done.load(Ordering::Relaxed) {
                version += 1;
                world.refill(&page.0, version as u8, page.1.generation, version);
                if version % 64 == 0 {
                    // A rest, so that something is whole.
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        let end = Instant::now() + Duration::from_millis(300);
        let (mut good, mut torn, mut last) = (0, 0, 0);
        while Instant::now() < end || good < 3 {
            // `place` checks that all bytes are alike.
            for outcome in client.place(&[page.clone(), page.clone()]) {
                match outcome {
                    Ok((byte, version)) => {
                        assert_eq!(byte, version as u8);
                        assert!(version >= last, "from before the call");
                        (good, last) = (good + 1, version);
                    }
                    Err(AccessFault::Torn) => torn += 1,
                    Err(fault) => panic!("{fault}"),
                }
            }
            assert!(Instant::now() < end + PATIENCE, "only {good} good, {torn} torn");
        }
        done.store(true, Ordering::Relaxed);
    });
}

pub fn retiring_a_chunk_that_is_placed_from(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let pages: Vec<_> = (0..64).map(|i| world.page(i as u8 | 1)).collect();
    assert!(client.place(&pages).iter().all(Result::is_ok));
    assert!(client.place(&pages).iter().all(Result::is_ok));
    world.grow();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (client, done) = (&client, &done);
        let placing = scope.spawn(move || {
            let mut found = Vec::new();
            while !done.load(Ordering::Relaxed) {
                found.extend(client.place(&pages));
            }
            // None is accepted that was killed before.
            assert!(client.place(&pages).iter().all(|outcome| *outcome == STALE));
            found
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(world.arena.begin_retire(0));
        let chunk = world.arena.chunk(0).unwrap();
        (0..SLOTS as u32).for_each(|slot| chunk.kill(slot));
        drop(chunk);
        block_on(world.listener.retire(0, PATIENCE));
        world.arena.finish_retire(0);
        done.store(true, Ordering::Relaxed);
        let found = placing.join().unwrap();
        assert!(
            found.iter().all(|outcome| outcome.is_ok() || *outcome == STALE || *outcome == TORN)
        );
    });
    client.catch_up();
    let until = Instant::now() + PATIENCE;
    while world.arena.bytes() != world.arena.geometry().chunk_len() {
        assert!(Instant::now() < until, "someone still has the chunk");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const STALE: Result<(u8, u64), AccessFault> = Err(AccessFault::Stale);
const TORN: Result<(u8, u64), AccessFault> = Err(AccessFault::Torn);

pub fn fetching_from_advertised_memory(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let data = pattern((1 << 20) + 100);
    let region = Region::owned(data.clone());
    let tag = client.lend(vec![region.segment(0, data.len())]);
    for (offset, len) in [(0, 0), (0, 1), (7, 5000), (100, 1 << 20), (0, 300_000)] {
        let got = client.transfer(client.link.read_from(tag, offset as u64, vec![0; len])).unwrap();
        assert!(got == data[offset..offset + len], "{len} bytes from {offset}");
    }
    let beyond = client.link.read_from(tag, data.len() as u64 - 5, vec![0; 6]);
    assert!(client.transfer(beyond).is_err());
    client.endpoint.withdraw(tag);

    let pieces = (0..1000).map(|i| region.segment(i * 1000, 300)).collect();
    let tag = client.lend(pieces);
    let got = client.transfer(client.link.read_from(tag, 150, vec![0; 299_000])).unwrap();
    let expected: Vec<u8> = data.chunks(1000).take(1000).flat_map(|c| &c[..300]).copied().collect();
    assert!(got == expected[150..299_150]);
    client.endpoint.withdraw(tag);
    client.echo(b"e still there", &[]);
}

pub fn transfers_of_a_withdrawn_buffer(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let region = Region::owned(vec![1; 100_000]);
    let tag = client.endpoint.advertise(vec![region.segment(0, 100_000)]);
    assert_eq!(client.endpoint.withdraw(tag), 0);
    client.catch_up();
    let _ = client.transfer(client.link.write_to(tag, vec![2; 100_000]));
    assert!(client.transfer(client.link.read_from(tag, 0, vec![0; 100_000])).is_err());
    client.echo(b"e still there", &[]);
    assert!(region.take().unwrap() == [1; 100_000], "nothing was written");
    // The region ends before the buffer is withdrawn.
    let region = Region::owned(vec![1; 100_000]);
    let tag = client.endpoint.advertise(vec![region.segment(0, 100_000)]);
    assert!(region.take().is_some());
    let _ = client.transfer(client.link.write_to(tag, vec![2; 100_000]));
    client.echo(b"e still there", &[]);
    // What was offered may have been copied before its region ended, or is not to be had.
    let region = Region::owned(vec![1; 100_000]);
    let tag = client.lend(vec![region.segment(0, 100_000)]);
    assert!(region.take().is_some());
    let fetched = client.transfer(client.link.read_from(tag, 0, vec![0; 100_000]));
    assert!(fetched.is_err() || fetched.unwrap() == [1; 100_000]);
    client.endpoint.withdraw(tag);
    client.catch_up();
    assert!(client.transfer(client.link.read_from(tag, 0, vec![0; 100_000])).is_err());
    client.echo(b"e still there", &[]);
}

pub fn transfers_end_with_the_link(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let region = Region::owned(vec![1; 100]);
    let tag = client.lend(vec![region.segment(0, 100)]);
    // The client is not driven, so this one cannot be done.
    let pending = client.link.read_from(tag, 0, vec![0; 100]);
    client.link.close("the test says so");
    assert!(block_on(pending).is_err());
    world.wait_closed(client.link.id());
    assert!(block_on(client.link.read_from(tag, 0, vec![0; 100])).is_err());
    assert!(block_on(client.link.write_to(tag, vec![0; 100])).is_err());
}

pub fn pages_are_read(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let pages: Vec<_> = (0..300).map(|i| world.page(i as u8 | 1)).collect();
    let calls = world.calls();
    for count in [1, 2, 3, 63, 64, 65, 128, 300] {
        let asked: Vec<_> = pages[..count].iter().map(|(_, r)| (*r, 0)).collect();
        let got = client.read(&asked);
        for (i, outcome) in got.into_iter().enumerate() {
            assert_eq!(outcome, Ok((i as u8 | 1, 0)), "page {i} of {count}");
        }
    }
    assert!(client.read(&[]).is_empty());
    // Each page into a region of its own, several batches at a time.
    let post = |(_, reference): &(ordma::Slot, RemoteRef)| {
        let region = Region::owned(vec![0; PAGE]);
        (client.endpoint.read(one_page(&region, &client.key, *reference)), region)
    };
    let batches: Vec<_> = pages.iter().map(post).collect();
    for (i, (batch, region)) in batches.iter().enumerate() {
        assert!(client.finish(batch)[0].is_ok());
        assert!(region.take().unwrap() == [i as u8 | 1; PAGE]);
    }
    assert_eq!(world.calls(), calls, "the service is not asked");
}

pub fn reads_fault(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let (slot, reference) = world.page(3);
    assert_eq!(client.read_one(reference), Ok(3));
    let stale = Err(AccessFault::Stale);
    assert_eq!(client.read_one(RemoteRef { generation: 999, ..reference }), stale);
    assert_eq!(client.read_one(RemoteRef { generation: 0, ..reference }), stale);
    // The tag says which file it is for.
    let keyed = world.level == Protection::Keyed;
    let other = if keyed { Err(AccessFault::Revoked) } else { stale };
    assert_eq!(client.read_one(RemoteRef { file: 1, ..reference }), other);
    assert_eq!(client.read_one(RemoteRef { block: 999, ..reference }), stale);
    assert_eq!(client.read_one(RemoteRef { slot: u32::MAX, ..reference }), stale);
    assert_eq!(client.read_one(RemoteRef { chunk: 999, ..reference }), Err(AccessFault::Gone));
    slot.kill();
    assert_eq!(client.read_one(reference), stale);
    let newer = world.fill(&slot, 4, 0);
    assert_eq!(client.read_one(reference), stale);
    assert_eq!(client.read_one(newer), Ok(4));
}

pub fn reads_are_refused_until_allowed(row: &Row) {
    let world = World::new(row);
    let (_slot, reference) = world.page(3);
    let client = world.stranger();
    let revoked = Err(AccessFault::Revoked);
    assert_eq!(client.read_one(reference), revoked);
    client.allow();
    // What follows the permission is not overtaken by it.
    client.echo(b"e", &[]);
    assert_eq!(client.read_one(reference), Ok(3));
    client.link.allow_reads(None);
    client.until(BOTH, "the refusal", || (client.read_one(reference) == revoked).then_some(()));
    client.allow();
    client.until(BOTH, "the permission", || (client.read_one(reference) == Ok(3)).then_some(()));
}

pub fn batches_with_faults_in_the_middle(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let mut pages: Vec<_> = (0..300).map(|i| world.page(i as u8 | 1)).collect();
    for (i, (slot, reference)) in pages.iter_mut().enumerate() {
        match i % 7 {
            2 => slot.kill(),
            3 | 4 => reference.chunk = 50,
            _ => {}
        }
    }
    let expected = |i: usize| match i % 7 {
        2 => Err(AccessFault::Stale),
        3 | 4 => Err(AccessFault::Gone),
        _ => Ok((i as u8 | 1, 0)),
    };
    for (first, count) in [(0, 300), (0, 64), (1, 2), (2, 1), (2, 3), (2, 100)] {
        let asked: Vec<_> = pages[first..first + count].iter().map(|(_, r)| (*r, 0)).collect();
        for (i, outcome) in client.read(&asked).into_iter().enumerate() {
            assert_eq!(outcome, expected(first + i), "page {i} of {count}");
        }
    }
    // Many single reads at once, most of them faults.
    let mut batches = Vec::new();
    for (i, (_, reference)) in pages.iter().enumerate() {
        let read = one_page(&Region::owned(vec![9; PAGE]), &client.key, *reference);
        batches.push((i, client.endpoint.read(read)));
    }
    for (i, batch) in batches {
        let got = client.finish(&batch)[0].map(|footer| footer.version);
        assert_eq!(got, expected(i).map(|(_, version)| version), "single read {i}");
    }
}

pub fn version_floors(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let (slot, reference) = world.page(1);
    world.refill(&slot, 2, reference.generation, 5);
    let got = client.read(&[(reference, 5), (reference, 6), (reference, 0)]);
    assert_eq!(got, [Ok((2, 5)), Err(AccessFault::Stale), Ok((2, 5))]);
    assert_eq!(client.read(&[(reference, 6)]), [Err(AccessFault::Stale)]);
}

pub fn places_of_another_size(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let (_slot, reference) = world.page(2);
    for size in [PAGE / 2, 2 * PAGE, 0] {
        let region = Region::owned(vec![9; size]);
        let batch = client.endpoint.read(one_page(&region, &client.key, reference));
        assert_eq!(client.finish(&batch), [Err(AccessFault::Stale)], "{size}");
        assert!(region.take().unwrap() == vec![0; size], "zeroed, as after each fault");
    }
    assert_eq!(client.read_one(reference), Ok(2));
}

pub fn several_regions_of_one_batch(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let pages: Vec<_> = (0..7).map(|i| world.page(i + 1)).collect();
    let regions: Vec<_> = (0..3).map(|_| Region::owned(vec![9; 3 * PAGE])).collect();
    // Region and place of each page; the first page's is left and come back to.
    let places = [(0, 1), (1, 0), (1, 2), (0, 0), (2, 2), (2, 0), (2, 1)];
    let mut reads = PageReads::into(&regions[0], PAGE, &client.key, pages.len());
    for ((_, reference), (region, place)) in pages.iter().zip(places) {
        reads.turn_to(&regions[region]);
        reads.push(*reference, 0, place * PAGE);
    }
    // And one that is taken back before.
    let gone = Region::owned(vec![9; PAGE]);
    reads.turn_to(&gone);
    reads.push(pages[0].1, 0, 0);
    assert!(gone.take().is_some());
    let outcomes = client.finish(&client.endpoint.read(reads));
    assert!(outcomes[..7].iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(outcomes[7], Err(AccessFault::Unreachable));
    let bytes: Vec<_> = regions.iter().map(|region| region.take().unwrap()).collect();
    for (i, (region, place)) in places.into_iter().enumerate() {
        assert!(bytes[region][place * PAGE..][..PAGE] == [i as u8 + 1; PAGE], "page {i}");
    }
    assert!(bytes[0][2 * PAGE..] == [9; PAGE] && bytes[1][PAGE..2 * PAGE] == [9; PAGE]);
}

pub fn a_changing_page_is_never_mixed(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let (slot, reference) = world.page(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut version = 0;
            while !done.load(Ordering::Relaxed) {
                version += 1;
                world.refill(&slot, version as u8, reference.generation, version);
            }
        });
        let end = Instant::now() + Duration::from_millis(300);
        let (mut good, mut floor) = (0, 0);
        while Instant::now() < end || good < 10 {
            // `read` checks that all bytes are alike.
            for outcome in client.read(&[(reference, floor), (reference, floor)]) {
                match outcome {
                    Ok((byte, version)) => {
                        assert_eq!(byte, version as u8);
                        assert!(version >= floor);
                        (good, floor) = (good + 1, version);
                    }
                    Err(fault) => {
                        assert!(matches!(fault, AccessFault::Torn | AccessFault::Stale), "{fault}");
                    }
                }
            }
            assert!(Instant::now() < end + PATIENCE, "only {good} good reads");
        }
        done.store(true, Ordering::Relaxed);
    });
}

pub fn several_threads_drive_one_endpoint(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let pages: Vec<_> = (0..64).map(|i| world.page(i + 1)).collect();
    let echoes = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (client, pages, echoes) = (&client, &pages, &echoes);
        let readers: Vec<_> = (0..4usize)
            .map(|t| {
                scope.spawn(move || {
                    for i in 0..400 {
                        let at = (i * 7 + t) % 60;
                        if i % 10 == 0 {
                            let asked: Vec<_> =
                                pages[at..at + 4].iter().map(|(_, r)| (*r, 0)).collect();
                            assert!(client.read(&asked).iter().all(Result::is_ok));
                        } else {
                            assert_eq!(client.read_one(pages[at].1), Ok(at as u8 + 1));
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            for i in 0..200 {
                client.echo(b"e", &pattern(i * 100));
            }
        });
        scope.spawn(move || {
            while echoes.load(Ordering::Relaxed) {
                client.endpoint.drive(BOTH, Duration::from_millis(1));
                client.endpoint.interrupt();
            }
        });
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        echoes.store(false, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
}

pub fn a_stopped_server_is_unreachable(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    let (_slot, reference) = world.page(3);
    assert_eq!(client.read_one(reference), Ok(3));
    world.listener.stop();
    let reason = world.wait_closed(client.link.id());
    assert!(matches!(reason, LinkError::Closed(_)), "{reason}");
    assert_eq!(client.read_one(reference), Err(AccessFault::Unreachable));
    client.closed();
    assert_eq!(client.read_one(reference), Err(AccessFault::Unreachable));
    assert!(client.endpoint.send(b"e", &[]).is_err());
    assert_eq!(client.receiver.closed.lock().unwrap().len(), 1);
    let connector = row.engine.connector(&world.listener.address());
    assert!(connector.connect(Arc::new(Inbox::default()), Duration::from_secs(1)).is_err());
}

pub fn a_closed_link_is_told_once_on_both_sides(row: &Row) {
    let world = World::new(row);
    let (a, b) = (world.client(), world.client());
    a.endpoint.close();
    world.wait_closed(a.link.id());
    assert_eq!(a.receiver.closed.lock().unwrap().len(), 1);
    b.link.close("the test says so");
    b.closed();
    match world.wait_closed(b.link.id()) {
        LinkError::Closed(reason) => assert_eq!(reason, "the test says so"),
        other => panic!("{other}"),
    }
    for client in [&a, &b] {
        client.endpoint.close();
        client.link.close("again");
        client.endpoint.drive(BOTH, Duration::ZERO);
        assert_eq!(client.receiver.closed.lock().unwrap().len(), 1);
    }
    let c = world.client();
    c.echo(b"e", &[]);
    let told = world.service.0.change(|seen| seen.closed.len());
    assert_eq!(told, 2);
}

pub fn retiring_a_chunk(row: &Row) {
    let world = World::new(row);
    let clients = [world.client(), world.client()];
    let (slot, old) = world.page(3);
    clients.iter().for_each(|client| assert_eq!(client.read_one(old), Ok(3)));
    world.grow();
    clients.iter().for_each(Client::catch_up);
    assert!(world.arena.begin_retire(0));
    let (_newer_slot, newer) = world.page(4);
    slot.kill();
    drop(slot);
    block_on(world.listener.retire(0, PATIENCE));
    world.arena.finish_retire(0);
    for client in &clients {
        assert_eq!(client.read_one(newer), Ok(4));
        assert_eq!(client.read_one(old), Err(AccessFault::Gone));
    }
    assert_eq!(world.arena.bytes(), world.arena.geometry().chunk_len(), "no one has it any more");
}

pub fn an_interrupt_ends_a_wait(row: &Row) {
    let world = World::new(row);
    let client = world.client();
    client.echo(b"e", &[]);
    for interest in [MESSAGES, READS, BOTH] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let start = Instant::now();
                        while !done.load(Ordering::Relaxed) {
                            client.endpoint.drive(interest, PATIENCE);
                        }
                        assert!(start.elapsed() < PATIENCE);
                    })
                })
                .collect();
            std::thread::yield_now();
            done.store(true, Ordering::Relaxed);
            client.endpoint.interrupt();
            for wait in waits {
                wait.join().unwrap();
            }
        });
    }
}

pub fn no_server_no_connection(row: &Row) {
    let world = World::new(row);
    let address = world.listener.address();
    world.listener.stop();
    let connector = row.engine.connector(&address);
    let error = connector.connect(Arc::new(Inbox::default()), PATIENCE).unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

pub fn one_thread_looks_after_several_endpoints(row: &Row) {
    let world = World::new(row);
    let clients: Vec<_> = (0..3).map(|_| world.client()).collect();
    let (_slot, reference) = world.page(3);
    for client in &clients {
        client.endpoint.send(b"e", &[]).unwrap();
    }
    let region = || Region::owned(vec![0; PAGE]);
    let post = |client: &Client| client.endpoint.read(one_page(&region(), &client.key, reference));
    let batches: Vec<_> = clients.iter().map(post).collect();
    let mut missing: Vec<_> = batches.iter().collect();
    let deadline = Instant::now() + PATIENCE;
    // Without ever waiting, and at each one for the first time since it was at another.
    while !missing.is_empty()
        || clients.iter().any(|client| client.receiver.messages.lock().unwrap().is_empty())
    {
        assert!(Instant::now() < deadline, "{} batches are missing", missing.len());
        clients.iter().for_each(|client| client.endpoint.drive(BOTH, Duration::ZERO));
        missing.retain(|batch| poll_batch(batch).is_none());
    }
}

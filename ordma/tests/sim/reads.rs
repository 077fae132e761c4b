//! One-sided reads, their faults, and the chunks they go to.

use crate::harness::{Client, SECOND, Stage, one_page, write};
use dafs_keys::FileKey;
use ordma::ReadAccess;
use ordma::arena::Guard;
use ordma::sim::Faults;
use ordma::{AccessFault, PageReads, Region, RemoteRef};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[test]
fn pages_are_read_without_the_server_hearing_of_it() {
    let stage = Stage::new(1);
    let (_, first) = stage.page(3);
    let (_, second) = stage.page(4);
    let client = Client::connect(&stage.world).unwrap();
    let region = Region::owned(vec![0; 2 * 4096]);
    let mut reads = PageReads::into(&region, 4096, &FileKey::clear(), 2);
    reads.push(first, 0, 0);
    reads.push(second, 0, 4096);
    let batch = client.endpoint.read(reads);
    stage.world.run_until_idle();
    let Poll::Ready(outcome) = batch.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("not done");
    };
    assert!(outcome.iter().all(Result::is_ok));
    let bytes = region.take().unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == 3) && bytes[4096..].iter().all(|b| *b == 4));
    assert!(stage.server.told().values().all(|told| told.messages.is_empty()));
}

#[test]
fn every_refusal_has_its_name() {
    let stage = Stage::new(2);
    let (slot, reference) = stage.page(3);
    let client = Client::connect(&stage.world).unwrap();
    let link = stage.server.links().pop().unwrap();
    assert!(client.read(reference).is_ok());

    assert_eq!(client.read(RemoteRef { file: 9, ..reference }), Err(AccessFault::Stale));
    assert_eq!(client.read(RemoteRef { slot: 8, ..reference }), Err(AccessFault::Stale));
    assert_eq!(client.read(RemoteRef { chunk: 1, ..reference }), Err(AccessFault::Gone));
    stage.world.revoke(link.id());
    assert_eq!(client.read(reference), Err(AccessFault::Revoked));
    link.allow_reads(Some(ReadAccess::default()));
    assert!(client.read(reference).is_ok());
    slot.kill();
    assert_eq!(client.read(reference), Err(AccessFault::Stale));

    link.close("enough");
    assert_eq!(client.read(reference), Err(AccessFault::Unreachable));
    assert_eq!(client.read(reference), Err(AccessFault::Unreachable));
}

#[test]
fn a_page_below_the_floor_is_stale() {
    let stage = Stage::new(3);
    let (_, reference) = stage.page(3);
    let client = Client::connect(&stage.world).unwrap();
    let region = Region::owned(vec![1; 4096]);
    let mut reads = PageReads::into(&region, 4096, &FileKey::clear(), 1);
    reads.push(reference, 1, 0);
    let batch = client.endpoint.read(reads);
    stage.world.run_until_idle();
    let outcome = batch.poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(outcome, Poll::Ready(vec![Err(AccessFault::Stale)]));
    assert_eq!(region.with_ref(|bytes| bytes.iter().all(|b| *b == 0)), Some(true));
}

#[test]
fn torn_copies_appear_and_are_never_accepted() {
    let (mut torn, mut good) = (0, 0);
    for seed in 0..20 {
        let stage = Stage::new(seed);
        stage.world.set_faults(Faults { tear: true, ..Faults::default() });
        let (slot, reference) = stage.page(0);
        let client = Client::connect(&stage.world).unwrap();
        for n in 0..200u64 {
            let slot = slot.clone();
            stage.world.after(Duration::from_micros(40 * n), move || {
                write(&slot, reference.generation, n, n as u8);
            });
        }
        let mut last = 0;
        for _ in 0..50 {
            match client.read(reference) {
                Ok((footer, bytes)) => {
                    assert!(bytes.iter().all(|byte| *byte == footer.version as u8));
                    assert!(footer.version >= last, "a read that began later saw less");
                    last = footer.version;
                    good += 1;
                }
                Err(AccessFault::Torn) => torn += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(torn > 100 && good > 100, "{torn} torn, {good} good");
}

#[test]
fn without_tearing_no_copy_is_torn() {
    let stage = Stage::new(4);
    let (slot, reference) = stage.page(0);
    let client = Client::connect(&stage.world).unwrap();
    for n in 1..100u64 {
        let slot = slot.clone();
        stage.world.after(Duration::from_micros(10 * n), move || {
            write(&slot, reference.generation, n, n as u8);
        });
    }
    (0..20).for_each(|_| assert!(client.read(reference).is_ok()));
}

#[test]
fn stray_faults_come_as_often_as_they_should() {
    let stage = Stage::new(5);
    stage.world.set_faults(Faults { stray_fault: 0.5, ..Faults::default() });
    let (_, reference) = stage.page(3);
    let client = Client::connect(&stage.world).unwrap();
    let faults = (0..200).filter(|_| client.read(reference).is_err()).count();
    assert!((50..150).contains(&faults), "{faults}");
}

#[test]
fn a_new_chunk_is_known_before_the_first_message_that_refers_to_it() {
    let stage = Stage::new(6);
    let client = Client::connect(&stage.world).unwrap();
    (0..8).for_each(|_| drop(stage.arena.take(Guard::None)));
    stage.listener.export(&stage.arena.grow(Guard::None).unwrap());
    let (_, reference) = stage.page(9);
    assert_eq!(reference.chunk, 1);
    stage.server.links()[0].send(&[0; 17], &[]);
    while client.inbox.len() == 0 {
        client.endpoint.drive(crate::harness::ANYTHING, SECOND);
    }
    assert!(client.read(reference).is_ok());
}

#[test]
fn a_retired_chunk_is_let_go_by_all() {
    let stage = Stage::new(7);
    let (slot, reference) = stage.page(9);
    let clients: Vec<_> = (0..3).map(|_| Client::connect(&stage.world).unwrap()).collect();
    assert!(stage.arena.begin_retire(0));
    slot.kill();
    let start = stage.world.elapsed();
    let retired = stage.listener.retire(0, SECOND);
    assert_eq!(clients[0].read(reference), Err(AccessFault::Stale));
    assert!(stage.world.block_on(10 * SECOND, retired).is_some());
    assert!(stage.world.elapsed() - start < SECOND);
    drop(slot);
    stage.arena.finish_retire(0);
    assert_eq!(clients[1].read(reference), Err(AccessFault::Gone));
    assert_eq!(stage.arena.bytes(), 0);
    assert_eq!(stage.world.links().len(), 3);
}

#[test]
fn who_does_not_let_go_in_time_is_closed() {
    let stage = Stage::new(8);
    let (deaf, good) =
        (Client::connect(&stage.world).unwrap(), Client::connect(&stage.world).unwrap());
    let link = stage.world.links()[0];
    stage.world.deafen(link);
    let start = stage.world.elapsed();
    let (_, reference) = stage.page(1);
    let retired = stage.listener.retire(0, 5 * SECOND);
    stage.world.advance(SECOND);
    assert_eq!(good.read(reference), Err(AccessFault::Gone), "it has let go");
    assert!(deaf.read(reference).is_ok(), "it has not, and the chunk is still there");
    let late = Client::connect(&stage.world).unwrap();
    assert_eq!(late.read(reference), Err(AccessFault::Gone), "it never learns of it");
    assert!(stage.world.block_on(10 * SECOND, retired).is_some());
    assert_eq!(stage.world.elapsed() - start, 5 * SECOND);
    stage.world.run_until_idle();
    assert!(deaf.inbox.is_closed() && !good.inbox.is_closed());
    let told = stage.server.told();
    assert!(told[&link].closed[0].contains("did not let go of chunk 0"));
}

#[test]
fn a_lost_link_does_not_hold_up_a_retirement() {
    let stage = Stage::new(9);
    let client = Client::connect(&stage.world).unwrap();
    let link = stage.world.links()[0];
    stage.world.deafen(link);
    let retired = stage.listener.retire(0, 60 * SECOND);
    stage.world.after(SECOND, {
        let world = stage.world.clone();
        move || world.cut(link)
    });
    assert!(stage.world.block_on(2 * SECOND, retired).is_some());
    stage.world.run_until_idle();
    assert!(client.inbox.is_closed());
    // With nobody there it is over at once.
    assert!(stage.world.block_on(Duration::ZERO, stage.listener.retire(0, SECOND)).is_some());
    let listener = Arc::clone(&stage.listener);
    listener.stop();
    assert!(stage.world.block_on(Duration::ZERO, listener.retire(0, SECOND)).is_some());
}

#[test]
fn reads_end_with_the_world() {
    let stage = Stage::new(10);
    let (_, reference) = stage.page(1);
    let client = Client::connect(&stage.world).unwrap();
    let batch = client.endpoint.read(one_page(&Region::owned(vec![1; 4096]), reference));
    drop((client, stage));
    let outcome = batch.poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(outcome, Poll::Ready(vec![Err(AccessFault::Unreachable)]));
}

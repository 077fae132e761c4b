//! What the engine rests on.

use crate::wire::*;
use ordma::rdma::*;
use std::time::Duration;

#[test]
fn devices_are_listed() {
    let devices = devices().unwrap();
    assert!(devices.iter().any(|device| device.active && device.mtu >= 1024), "{devices:?}");
}

#[test]
fn messages_arrive() {
    let wire = Wire::new();
    wire.server.pair.post_receive(wire.server.slab.take().unwrap()).unwrap();
    wire.server.pair.post_receive(wire.server.slab.take().unwrap()).unwrap();
    let local = wire.client.block(7, 5000);
    wire.client.pair.post([Work { op: Op::Send, local, signaled: true }]).unwrap();
    assert_eq!(wire.client.sent().1, Status::Success);
    let completion = wire.server.completion();
    assert_eq!((completion.status, completion.len), (Status::Success, 5000));
    let mut block = wire.server.pair.received(&completion).unwrap();
    block.set_len(5000);
    assert_eq!(block.bytes(), [7; 5000]);
    wire.client.pair.post_inline(b"short", true).unwrap();
    assert_eq!(wire.client.sent().1, Status::Success);
    let completion = wire.server.completion();
    let block = wire.server.pair.received(&completion).unwrap();
    assert_eq!((completion.len, &block.bytes()[..5]), (5, &b"short"[..]));
    assert!(wire.client.pair.post_inline(&[0; 129], true).is_err());
}

#[test]
fn requests_under_one_doorbell_end_with_the_last() {
    let wire = Wire::new();
    let source = wire.server.block(9, BLOCK);
    let remote = source.remote();
    let works = (0..8).map(|i| Work {
        op: Op::Read(remote),
        local: wire.client.block(0, 100 + i),
        signaled: i == 7,
    });
    wire.client.pair.post(works).unwrap();
    let mut done = Vec::new();
    wire.client.pair.sent(&wire.client.completion(), &mut done);
    assert_eq!(done.len(), 8);
    for (i, (block, status)) in done.into_iter().enumerate() {
        assert_eq!(status, Status::Success);
        assert_eq!(block.unwrap().bytes(), vec![9; 100 + i]);
    }
    assert_eq!(wire.client.pair.room(), CAP.sends as usize);
}

#[test]
fn rights_are_those_of_the_queue_pair_and_of_the_region() {
    let mut wire = Wire::new();
    let source = wire.server.block(9, BLOCK);
    assert_eq!(wire.client.read(source.remote(), 4096).1, Status::Success);
    // The server's pair does not allow it, though the region does.
    let local = wire.client.block(1, 8);
    wire.client
        .pair
        .post([Work { op: Op::Write(source.remote()), local, signaled: true }])
        .unwrap();
    assert_eq!(wire.client.sent().1, Status::RemoteInvalid);
    assert_eq!(source.bytes()[..8], [9; 8]);
    wire.cycle((100, 200));
    assert_eq!(wire.client.read(source.remote(), 4096).1, Status::Success);
    // Rights are taken and given while connected.
    wire.server.pair.allow(false, false).unwrap();
    assert_eq!(wire.client.read(source.remote(), 4096).1, Status::RemoteInvalid);
    assert_eq!(wire.client.read(source.remote(), 4096).1, Status::Flushed);
    wire.cycle((300, 400));
    let Remote { address, key } = source.remote();
    assert_eq!(wire.client.read(Remote { address, key: key ^ 1 }, 64).1, Status::RemoteAccess);
    wire.cycle((500, 600));
    // A region of another domain of the same process.
    let foreign = wire.client.block(3, BLOCK);
    assert_eq!(wire.client.read(foreign.remote(), 64).1, Status::RemoteAccess);
}

#[test]
fn a_reset_gives_back_what_was_posted_and_forgets_its_completions() {
    let mut wire = Wire::new();
    for _ in 0..3 {
        wire.server.pair.post_receive(wire.server.slab.take().unwrap()).unwrap();
    }
    let before = wire.server.slab.available();
    wire.server.pair.fail().unwrap();
    let flushed = wire.server.pair.reset().unwrap();
    assert_eq!(flushed.receives.len(), 3);
    drop(flushed);
    assert_eq!(wire.server.slab.available(), before + 3);
    // The flushes of the former life are still in the queue, or are not: of nothing either way.
    wire.cycle((7, 8));
    wire.server.pair.post_receive(wire.server.slab.take().unwrap()).unwrap();
    let mut old = Vec::new();
    wire.server.queue.poll(&mut old).unwrap();
    assert!(old.iter().all(|completion| wire.server.pair.received(completion).is_none()));
    let source = wire.server.block(4, 64);
    assert_eq!(wire.client.read(source.remote(), 64).1, Status::Success);
}

/// How a server learns that a client's reads have failed (facts of rxe: no event tells it).
#[test]
fn a_posted_receive_tells_of_a_refused_read() {
    let wire = Wire::new();
    wire.server.pair.post_receive(wire.server.slab.take().unwrap()).unwrap();
    let refused = wire.client.read(Remote { address: 4096, key: 0x1234 }, 64);
    assert_eq!(refused.1, Status::RemoteAccess);
    let completion = wire.server.completion();
    assert_eq!(completion.status, Status::Flushed);
    assert!(wire.server.pair.received(&completion).is_some());
}

#[test]
fn the_end_of_a_connection_is_told() {
    let Wire { client, server, server_events, .. } = Wire::new();
    drop(client);
    let ended = event(&server_events);
    assert!(matches!(ended.kind, EventKind::Disconnected), "{ended:?}");
    assert_eq!(ended.id, server.id.key());
    server.pair.fail().unwrap();
    assert!(server.completion_within(Duration::from_millis(50)).is_none());
}

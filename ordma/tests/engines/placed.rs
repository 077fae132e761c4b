//! How the engine `verbs` places slots: from the chunk itself, which is registered once more.

use crate::harness::*;
use ordma::FOOTER_LEN;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_chunk_is_registered_once_more_when_it_is_first_placed_from() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let page = world.page(3);
    let holders = || Arc::strong_count(&page.0.chunk);
    let before = holders();
    // Not the event loop's thread: this one is copied, and the event loop told.
    assert_eq!(client.place(from_ref(&page)), [Ok((3, 0))]);
    client.catch_up();
    assert_eq!(holders(), before + 1, "registered");
    for _ in 0..3 {
        assert_eq!(client.place(from_ref(&page)), [Ok((3, 0))]);
        let other = world.client();
        assert_eq!(other.place(from_ref(&page)), [Ok((3, 0))]);
    }
    assert_eq!(holders(), before + 1, "for all clients");
    world.listener.stop();
    assert_eq!(holders(), before - 1, "neither of the two registrations is left");
}

#[test]
fn a_client_that_takes_nothing_keeps_no_chunk() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let pages: Vec<_> = (0..16).map(|i| world.page(i + 1)).collect();
    let slots: Vec<_> = pages.iter().map(|(slot, _)| slot.clone()).collect();
    for _ in 0..2 {
        assert!(client.place(&pages).iter().all(Result::is_ok));
    }
    let len = slots.len() * (FOOTER_LEN + PAGE);
    let tag = client.endpoint.advertise(vec![segment(vec![0; len])]);
    client.catch_up();
    // Into a buffer that is never advertised, and behind messages that it does not take.
    let never = client.link.place_slots(tag + 1000, &slots);
    (0..1000).for_each(|_| client.link.send(b"not taken", &[]));
    let behind = client.link.place_slots(tag, &slots);
    drop((pages, slots));
    world.grow();
    assert!(world.arena.begin_retire(0));
    block_on(world.listener.retire(0, Duration::from_millis(100)));
    world.arena.finish_retire(0);
    let until = Instant::now() + PATIENCE;
    while world.arena.bytes() != world.arena.geometry().chunk_len() {
        assert!(Instant::now() < until, "the chunk is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop((never, behind));
}

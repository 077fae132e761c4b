//! How the engine `verbs` places slots: from the chunk itself, which is registered once more.

use crate::harness::*;
use std::sync::Arc;

#[test]
fn a_chunk_is_registered_once_more_when_it_is_first_placed_from() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let page = world.page(3);
    let holders = || Arc::strong_count(&page.0.chunk);
    let before = holders();
    // Not the event loop's thread: this one is copied, and the event loop told.
    assert_eq!(client.place(&[page.clone()]), [Ok((3, 0))]);
    client.catch_up();
    assert_eq!(holders(), before + 1, "registered");
    for _ in 0..3 {
        assert_eq!(client.place(&[page.clone()]), [Ok((3, 0))]);
        let other = world.client();
        assert_eq!(other.place(&[page.clone()]), [Ok((3, 0))]);
    }
    assert_eq!(holders(), before + 1, "for all clients");
    world.listener.stop();
    assert_eq!(holders(), before - 1, "neither of the two registrations is left");
}

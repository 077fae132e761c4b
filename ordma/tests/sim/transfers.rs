//! Direct transfers into and out of advertised buffers.

use crate::harness::{Client, FETCH, PLACE, SECOND, Stage, request};
use ordma::Region;
use ordma::sim::Faults;
use std::time::Duration;

#[test]
fn data_is_there_before_the_message_that_tells_of_it() {
    for tear in [false, true] {
        let stage = Stage::new(1);
        stage.world.set_faults(Faults { tear, ..Faults::default() });
        let client = Client::connect(&stage.world).unwrap();
        let region = Region::owned(vec![0; 1000]);
        let segments = vec![region.segment(900, 50), region.segment(0, 500)];
        let tag = client.endpoint.advertise(segments);
        client.call(&request(PLACE, tag, 301)).unwrap();
        assert_eq!(client.endpoint.withdraw(tag), 301);
        assert_eq!(client.endpoint.withdraw(tag), 0);
        let bytes = region.take().unwrap();
        assert!(bytes[900..950].iter().all(|b| *b == 7) && bytes[..251].iter().all(|b| *b == 7));
        assert!(bytes[251..900].iter().all(|b| *b == 0));
        stage.world.run_until_idle();
        assert_eq!(*stage.server.transfers.lock().unwrap(), [1, 1, 0]);
    }
}

#[test]
fn nothing_is_written_after_the_buffer_was_withdrawn() {
    for seed in 0..50 {
        let stage = Stage::new(seed);
        stage.world.set_faults(Faults { tear: true, ..Faults::default() });
        let client = Client::connect(&stage.world).unwrap();
        let region = Region::owned(vec![0; 1000]);
        let tag = client.endpoint.advertise(vec![region.segment(0, 1000)]);
        client.endpoint.send(&request(PLACE, tag, 1000), &[]).unwrap();
        stage.world.advance(Duration::from_micros(seed * 2));
        let placed = client.endpoint.withdraw(tag);
        stage.world.run_until_idle();
        let bytes = region.take().unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == 7).count() as u64, placed);
        assert_eq!(*stage.server.transfers.lock().unwrap(), [1, 1, 0]);
    }
}

#[test]
fn the_server_fetches_what_the_client_offers() {
    let stage = Stage::new(2);
    let client = Client::connect(&stage.world).unwrap();
    let region = Region::owned((0..200).collect());
    let tag = client.endpoint.advertise(vec![region.segment(100, 100), region.segment(0, 100)]);
    let (_, data) = client.call(&request(FETCH, tag, 150)).unwrap();
    assert!(data.into_iter().eq((100..200).chain(0..50)));
    let (_, error) = client.call(&request(FETCH, tag, 201)).unwrap();
    assert!(String::from_utf8(error).unwrap().contains("has no 201 bytes"));
    client.endpoint.withdraw(tag);
    let (_, error) = client.call(&request(FETCH, tag, 1)).unwrap();
    assert!(String::from_utf8(error).unwrap().contains("has withdrawn the buffer"));
}

#[test]
fn transfers_end_with_the_link() {
    let stage = Stage::new(3);
    let client = Client::connect(&stage.world).unwrap();
    let link = stage.server.links().pop().unwrap();
    let (place, fetch) = (link.write_to(1, vec![1; 10]), link.read_from(1, 0, vec![0; 10]));
    stage.world.cut(link.id());
    let results = stage.world.block_on(SECOND, async move { (place.await, fetch.await) }).unwrap();
    assert!(results.0.is_err() || results.1.is_err());
    stage.world.run_until_idle();
    let late = stage.world.block_on(SECOND, link.write_to(1, vec![1; 10])).unwrap();
    assert!(late.is_err());
    drop(client);
}

#[test]
fn transfers_end_with_the_world() {
    let stage = Stage::new(4);
    let client = Client::connect(&stage.world).unwrap();
    let link = stage.server.links().pop().unwrap();
    let transfer = link.write_to(1, vec![1; 10]);
    drop((client, stage));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = std::future::Future::poll(std::pin::pin!(transfer), &mut cx);
    assert!(matches!(polled, std::task::Poll::Ready(Err(_))));
}

#[test]
fn more_than_the_buffer_holds_ends_the_connection() {
    let stage = Stage::new(5);
    let client = Client::connect(&stage.world).unwrap();
    let region = Region::owned(vec![0; 1000]);
    let tag = client.endpoint.advertise(vec![region.segment(0, 10)]);
    assert!(client.call(&request(PLACE, tag, 11)).is_none());
    assert!(region.take().unwrap().iter().all(|byte| *byte == 0));
    let closed = client.inbox.closed.lock().unwrap();
    assert!(matches!(&closed[..], [ordma::LinkError::Protocol { .. }]));
}

//! Connections: messages, their order, and how they end.

use crate::harness::{ANYTHING, Client, ECHO, Inbox, NOTE, SECOND, Stage, number, request, serve};
use ordma::sim::{Faults, MOST_DATA, MOST_HEAD, Outstanding, Sim};
use ordma::{Engine, LinkError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

#[test]
fn a_message_comes_back_after_the_time_it_takes() {
    let stage = Stage::new(1);
    let client = Client::connect(&stage.world).unwrap();
    assert_eq!(client.endpoint.capabilities().engine, "sim");
    assert_eq!(client.endpoint.capabilities().geometry, Some(stage.arena.geometry()));
    let start = stage.world.elapsed();
    let head = request(ECHO, 0, 42);
    assert_eq!(client.call(&head).unwrap().0, head);
    let took = stage.world.elapsed() - start;
    assert!(took >= 2 * Duration::from_micros(5) && took <= 2 * Duration::from_micros(50));
}

#[test]
fn messages_keep_their_order_whatever_each_takes() {
    let stage = Stage::new(2);
    let weather = Faults { latency_max: Duration::from_millis(20), ..Faults::default() };
    stage.world.set_faults(weather);
    let client = Client::connect(&stage.world).unwrap();
    for n in 0..200 {
        client.endpoint.send(&request(ECHO, 0, n), &[]).unwrap();
        if n % 50 == 7 {
            stage.world.partition("client", Duration::from_millis(30));
            stage.world.advance(Duration::from_millis(9));
        }
    }
    stage.world.run_until_idle();
    let heard = client.inbox.messages.lock().unwrap();
    assert!(heard.iter().map(|(head, _)| number(head)).eq(0..200));
}

#[test]
fn a_cut_shows_on_both_sides_with_and_without_the_message_having_arrived() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let stage = Stage::new(seed);
        let client = Client::connect(&stage.world).unwrap();
        let link = stage.world.links()[0];
        client.endpoint.send(&request(ECHO, 0, 1), &[]).unwrap();
        stage.world.cut(link);
        stage.world.run_until_idle();
        let told = stage.server.told();
        let told = &told[&link];
        assert_eq!((told.connected, told.closed.len()), (1, 1));
        assert_eq!(client.inbox.closed.lock().unwrap().len(), 1);
        assert!(client.endpoint.send(b"late", &[]).is_err());
        // What the server sends after the cut is lost even if the client has not noticed.
        assert_eq!(client.inbox.len(), 0);
        outcomes.insert(told.messages.len());
        assert_eq!(stage.world.outstanding(), Outstanding::default());
    }
    assert_eq!(outcomes, BTreeSet::from([0, 1]));
}

#[test]
fn a_reply_under_way_arrives_or_does_not() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let stage = Stage::new(seed);
        let client = Client::connect(&stage.world).unwrap();
        let link = stage.world.links()[0];
        client.endpoint.send(&request(ECHO, 0, 1), &[]).unwrap();
        let arrived = || !stage.server.told()[&link].messages.is_empty();
        assert!(stage.world.run_until(SECOND, arrived));
        stage.world.cut(link);
        stage.world.run_until_idle();
        outcomes.insert(client.inbox.len());
    }
    assert_eq!(outcomes, BTreeSet::from([0, 1]));
}

#[test]
fn either_side_can_close_and_both_are_told_once() {
    for by_client in [true, false] {
        let stage = Stage::new(3);
        let client = Client::connect(&stage.world).unwrap();
        let link = stage.server.links().pop().unwrap();
        if by_client {
            client.endpoint.close();
            assert!(client.endpoint.send(b"late", &[]).is_err());
        } else {
            link.close("enough");
        }
        stage.world.run_until_idle();
        assert_eq!(stage.server.told()[&link.id()].closed.len(), 1);
        let closed = client.inbox.closed.lock().unwrap();
        assert_eq!(closed.len(), 1);
        assert_eq!(matches!(closed[0], LinkError::Closed(_)), by_client);
        // Time passes even on a connection that is over.
        let before = stage.world.now();
        client.endpoint.drive(ANYTHING, SECOND);
        assert!(stage.world.now() > before);
    }
}

#[test]
fn what_was_sent_before_the_end_arrives_whole_or_from_the_front() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let stage = Stage::new(seed);
        let client = Client::connect(&stage.world).unwrap();
        (0..10).for_each(|n| client.endpoint.send(&request(NOTE, 0, n), &[]).unwrap());
        client.endpoint.close();
        stage.world.run_until_idle();
        let told = stage.server.told();
        let heard = &told.values().next().unwrap().messages;
        assert!(heard.iter().map(|head| number(head)).eq(0..heard.len() as u64));
        outcomes.insert(heard.len() == 10);
    }
    assert_eq!(outcomes, BTreeSet::from([false, true]));
}

#[test]
fn no_one_answers_where_no_one_listens() {
    let stage = Stage::new(4);
    let error = Sim::new(&stage.world)
        .connector("elsewhere")
        .connect(Arc::new(Inbox::default()), SECOND)
        .unwrap_err();
    assert!(error.to_string().contains("no one listens"), "{error}");
    let again = Sim::new(&stage.world);
    let arena = Arc::clone(&stage.arena);
    struct Nothing;
    impl ordma::Service for Nothing {
        fn connected(&self, _: Arc<dyn ordma::Link>) {}
        fn message(&self, _: &Arc<dyn ordma::Link>, _: &[u8], _: &[u8]) {}
        fn closed(&self, _: &Arc<dyn ordma::Link>, _: &LinkError) {}
    }
    assert!(again.listen("server", Arc::new(Nothing), arena).is_err());
}

#[test]
fn a_server_that_restarts_is_found_again() {
    let stage = Stage::new(5);
    let client = Client::connect(&stage.world).unwrap();
    stage.world.restart("server");
    stage.world.run_until_idle();
    assert!(client.inbox.is_closed());
    assert_eq!(stage.server.told().values().next().unwrap().closed.len(), 1);
    assert!(Client::connect(&stage.world).is_err());
    let (_server, _listener) = serve(&stage.world, &stage.arena);
    let client = Client::connect(&stage.world).unwrap();
    assert!(client.call(&request(ECHO, 0, 1)).is_some());
}

#[test]
fn a_server_that_crashes_hears_nothing_of_it() {
    let stage = Stage::new(6);
    let client = Client::connect(&stage.world).unwrap();
    client.endpoint.send(&request(ECHO, 0, 1), &[]).unwrap();
    stage.world.crash("server");
    stage.world.run_until_idle();
    assert_eq!(client.inbox.closed.lock().unwrap().len(), 1);
    let told = stage.server.told();
    let told = told.values().next().unwrap();
    assert!(told.closed.is_empty() && told.messages.is_empty());
    assert_eq!(stage.world.outstanding(), Outstanding::default());
}

#[test]
fn a_partition_delays_and_a_long_one_ends_the_link() {
    let stage = Stage::new(7);
    let (alice, bob) = (
        Client::named(&stage.world, "alice").unwrap(),
        Client::named(&stage.world, "bob").unwrap(),
    );
    stage.world.partition("alice", 3 * SECOND);
    let start = stage.world.elapsed();
    assert!(bob.call(&request(ECHO, 0, 1)).is_some());
    assert!(stage.world.elapsed() - start < SECOND);
    let error = Client::named(&stage.world, "alice").err().unwrap();
    assert!(error.to_string().contains("no answer in time"), "{error}");
    assert!(alice.call(&request(ECHO, 0, 2)).is_some());
    assert!(stage.world.elapsed() - start >= 3 * SECOND);

    stage.world.partition("server", 60 * SECOND);
    assert!(alice.call(&request(ECHO, 0, 3)).is_none());
    assert!(bob.call(&request(ECHO, 0, 4)).is_none());
    stage.world.advance(60 * SECOND);
    assert!(Client::named(&stage.world, "alice").is_ok());
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let stage = Stage::new(8);
    stage.world.set_faults(Faults { queue_limit: 1000, ..Faults::default() });
    let client = Client::connect(&stage.world).unwrap();
    let link = stage.server.links().pop().unwrap();
    stage.world.partition_link(link.id(), SECOND);
    (0..10).for_each(|_| link.send(&[0; 90], &[0; 10]));
    stage.world.advance(SECOND / 2);
    assert!(stage.server.told()[&link.id()].closed.is_empty());
    link.send(&[0], &[]);
    stage.world.run_until_idle();
    assert_eq!(stage.server.told()[&link.id()].closed.len(), 1);
    assert!(client.inbox.is_closed());
}

#[test]
fn an_interrupt_ends_a_wait() {
    let stage = Stage::new(9);
    let client = Client::connect(&stage.world).unwrap();
    let (endpoint, start) = (Arc::clone(&client.endpoint), stage.world.elapsed());
    stage.world.after(SECOND, move || endpoint.interrupt());
    client.endpoint.drive(ANYTHING, 60 * SECOND);
    assert_eq!(stage.world.elapsed() - start, SECOND);
}

#[test]
fn several_threads_may_drive() {
    let stage = Stage::new(10);
    let client = Arc::new(Client::connect(&stage.world).unwrap());
    let other = Client::connect(&stage.world).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                // Whose answer is whose is not told here: as many as were asked for must come.
                (0..100).for_each(|n| client.endpoint.send(&request(ECHO, 0, n), &[]).unwrap());
                while client.inbox.len() < 300 {
                    client.endpoint.drive(ANYTHING, SECOND);
                }
            });
        }
        scope.spawn(|| (0..100).for_each(|n| drop(other.call(&request(ECHO, 0, n)).unwrap())));
    });
    assert_eq!((client.inbox.len(), other.inbox.len()), (300, 100));
}

#[test]
fn waiting_within_a_callback_goes_on() {
    let stage = Stage::new(11);
    let client = Arc::new(Client::connect(&stage.world).unwrap());
    let inner = Arc::clone(&client);
    let answered = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&answered);
    stage.world.after(SECOND, move || {
        let answer = inner.call(&request(ECHO, 0, 1));
        flag.store(answer.is_some(), Ordering::Relaxed);
    });
    stage.world.advance(2 * SECOND);
    assert!(answered.load(Ordering::Relaxed));
}

#[test]
fn a_world_tells_its_seed() {
    let stage = Stage::new(12345);
    Client::connect(&stage.world).unwrap();
    let text = stage.world.to_string();
    assert!(text.contains("seed 12345") && text.contains("accepted"), "{text}");
}

#[test]
fn what_another_thread_delivered_is_not_waited_for() {
    let stage = Stage::new(13);
    let client = Client::connect(&stage.world).unwrap();
    client.endpoint.send(&request(ECHO, 0, 1), &[]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| stage.world.run_until_idle()).join().unwrap();
    });
    let before = stage.world.now();
    client.endpoint.drive(ANYTHING, SECOND);
    assert_eq!((stage.world.now(), client.inbox.len()), (before, 1));
    client.endpoint.drive(ANYTHING, SECOND);
    assert_eq!(stage.world.now() - before, SECOND);
}

#[test]
fn a_hook_that_waits_is_not_entered_again() {
    let stage = Stage::new(14);
    let client = Client::connect(&stage.world).unwrap();
    let (inside, calls) = (AtomicBool::new(false), AtomicU32::new(0));
    let hook = stage.world.on_pump(Box::new(move || {
        assert!(!inside.swap(true, Ordering::Relaxed), "entered again");
        let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
        if first {
            client.call(&request(ECHO, 0, 1)).unwrap();
        }
        inside.store(false, Ordering::Relaxed);
        first
    }));
    stage.world.advance(SECOND);
    stage.world.remove_pump(hook);
    assert_eq!(stage.server.told().values().next().unwrap().messages.len(), 1);
}

#[test]
fn a_client_that_gives_up_connecting_leaves_nothing_behind() {
    let stage = Stage::new(15);
    let slow = Duration::from_millis(600);
    let weather = Faults { latency_min: slow, latency_max: slow, ..Faults::default() };
    stage.world.set_faults(weather);
    assert!(Client::connect(&stage.world).is_err());
    stage.world.run_until_idle();
    let told = stage.server.told();
    let told = told.values().next().unwrap();
    assert_eq!((told.connected, told.closed.len()), (1, 1));
    assert_eq!(stage.world.outstanding(), Outstanding::default());
}

#[test]
fn a_connection_that_is_given_up_while_it_is_made_ends_on_both_sides() {
    for seed in 0..200 {
        let stage = Stage::new(seed);
        let millisecond = Duration::from_millis(1);
        let weather =
            Faults { latency_max: millisecond, give_up: millisecond, ..Faults::default() };
        stage.world.set_faults(weather);
        let world = stage.world.clone();
        stage.world.after(Duration::from_micros(seed), move || {
            world.partition("client", millisecond + Duration::from_micros(seed));
        });
        if let Ok(client) = Client::connect(&stage.world) {
            client.endpoint.close();
        }
        stage.world.run_until_idle();
        assert!(stage.server.told().values().all(|told| told.closed.len() == 1), "seed {seed}");
        assert_eq!(stage.world.outstanding(), Outstanding::default(), "seed {seed}");
    }
}

#[test]
fn messages_beyond_the_limits_are_not_sent() {
    let stage = Stage::new(16);
    let client = Client::connect(&stage.world).unwrap();
    assert!(client.endpoint.send(&[0; MOST_HEAD + 1], &[]).is_err());
    let link = stage.server.links().pop().unwrap();
    link.send(&[0; 17], &[0; MOST_DATA]);
    stage.world.run_until_idle();
    assert_eq!(client.inbox.len(), 1);
    link.send(&[0; 17], &[0; MOST_DATA + 1]);
    stage.world.run_until_idle();
    assert!(client.inbox.is_closed());
}

#[test]
fn a_lost_connection_ends_a_wait() {
    let stage = Stage::new(17);
    let client = Client::connect(&stage.world).unwrap();
    let (world, link) = (stage.world.clone(), stage.world.links()[0]);
    stage.world.after(SECOND, move || world.cut(link));
    client.endpoint.drive(ANYTHING, 60 * SECOND);
    assert!(client.inbox.is_closed() && stage.world.elapsed() < 2 * SECOND);
}

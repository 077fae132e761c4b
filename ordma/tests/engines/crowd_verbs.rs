//! More clients than there are buffers for: who is in stays served, and who comes late is served or
//! told why not.

use crate::harness::*;
use ordma::LinkError;
use std::sync::Arc;

/// Messages of many packets in both directions, and a one-sided read.
fn served(world: &World, client: &Client) {
    let (_slot, reference) = world.page(6);
    client.echo(b"e", &pattern(100_000));
    assert_eq!(client.read_one(reference), Ok(6));
}

#[test]
fn idle_clients_keep_nobody_out() {
    raise_descriptors();
    let world = World::new(&Row::verbs());
    let idle: Vec<_> = (0..200).map(|_| world.client()).collect();
    for _ in 0..3 {
        served(&world, &world.client());
    }
    for client in [&idle[0], &idle[100], &idle[199]] {
        served(&world, client);
    }
}

#[test]
fn when_buffers_run_out_newcomers_are_told_and_the_others_are_served() {
    raise_descriptors();
    let world = World::new(&Row::verbs());
    let connector = world.engine.connector(&world.listener.address());
    let mut clients = Vec::new();
    let refused = loop {
        // As many as there are buffers for, and one of four says nothing at all.
        if clients.len() % 4 == 3 {
            match connector.connect(Arc::new(Inbox::default()), PATIENCE) {
                Ok(endpoint) => clients.push(Err(endpoint)),
                Err(refused) => break refused,
            }
        } else {
            match world.try_stranger() {
                Ok(client) => {
                    client.allow();
                    client.catch_up();
                    clients.push(Ok(client));
                }
                Err(refused) => break refused,
            }
        }
        assert!(clients.len() < 1000, "nobody is ever refused");
    };
    println!("{} clients, then: {refused}", clients.len());
    assert!(clients.len() >= 200, "{} clients", clients.len());
    assert!(matches!(refused, LinkError::Connect { .. }), "{refused}");
    assert!(refused.to_string().contains("lacks resources"), "{refused}");
    for client in clients.iter().flatten().step_by(20) {
        served(&world, client);
    }
    // Places that become free are taken.
    clients.truncate(clients.len() - 8);
    world.service.0.wait("the ends", |seen| (seen.closed.len() >= 8).then_some(()));
    served(&world, &world.client());
}

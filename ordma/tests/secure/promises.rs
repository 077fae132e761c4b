//! What secure links promise over every engine.

use crate::guarded::{Guarded, identity};
use crate::harness::*;
use dafs_keys::Protection;
use ordma::secure::ask_key;
use ordma::{Connector, LinkError, ReadAccess, Region};
use std::collections::HashMap;
use std::sync::Arc;

pub fn messages_and_data_of_many_sizes(row: &Row) {
    let (guarded, world) = start(row);
    let client = world.client();
    for len in [0, 1, 4096, 4097, 100_000, 2 << 20, 4096, 7] {
        client.echo(
            &pattern(len / 32).iter().fold(vec![b'e'], |mut head, byte| {
                head.push(*byte);
                head
            }),
            &pattern(len),
        );
    }
    let (here, there) = (client.endpoint.channel().unwrap(), client.link.channel().unwrap());
    assert_eq!((here.peer, there.peer), (guarded.server.public(), guarded.client.public()));
    assert_eq!((here.least, there.least), (Protection::Sealed, Protection::Sealed));
    assert_eq!(here.secret.expose(), there.secret.expose());
    let counts = guarded.gate().counts();
    assert_eq!((counts.secured, counts.refused, counts.broken), (1, 0, 0));
}

pub fn offers_are_sealed(row: &Row) {
    let (_guarded, world) = start(row);
    let client = world.client();
    for len in [0, 1, 4096, 300_000, 1 << 20, 300_000] {
        let data = pattern(len);
        let region = Region::owned([&data[..], &data[..]].concat());
        let pieces = [(0, len / 3), (len + len / 3, len - len / 3)];
        let pieces = pieces.map(|(start, len)| region.segment(start, len));
        let (tag, seal) = client.endpoint.offer(pieces.to_vec());
        // The copy is the endpoint's own.
        drop(region.take());
        let fetched = client.transfer(client.link.read_from(tag, 0, vec![0; len])).unwrap();
        assert!(len < 16 || fetched != data, "not in the clear");
        let mut open = fetched.clone();
        client.link.open_data(&seal, &mut open).unwrap();
        assert!(open == data);
        assert_eq!(client.endpoint.withdraw(tag), 0);

        let mut changed = seal.clone();
        changed[20] ^= 1;
        for wrong in [&[][..], &seal[1..], &changed] {
            let error = client.link.open_data(wrong, &mut fetched.clone()).unwrap_err();
            assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
        }
        if len > 0 {
            assert!(client.link.open_data(&seal, &mut fetched[1..].to_vec()).is_err());
            client.catch_up();
            let late = client.link.read_from(tag, 0, vec![0; len]);
            assert!(client.transfer(late).is_err(), "withdrawn");
        }
    }
    client.echo(b"e still there", &[]);
}

pub fn withdrawn_memory_is_not_sent(row: &Row) {
    let (_guarded, world) = start(row);
    let client = world.client();
    let region = Region::owned(pattern(5000));
    let pieces = [segment(pattern(10)), region.segment(0, 5000)];
    drop(region.take());
    assert!(client.endpoint.send(b"e", &pieces).is_err());
    let (tag, _) = client.endpoint.offer(pieces.to_vec());
    assert!(client.transfer(client.link.read_from(tag, 0, vec![0; 5010])).is_err());
    client.endpoint.withdraw(tag);
    client.echo(b"e still there", &pattern(5000));
}

pub fn plain_links_stand_beside_secure_ones(row: &Row) {
    let (guarded, world) = start(row);
    let secure = world.client();
    let address = world.listener.address();
    let plain = connect_as(&world, &*guarded.inner.engine.connector(&address));
    assert!(plain.link.channel().is_none() && plain.endpoint.channel().is_none());
    for len in [0, 1, 5000] {
        plain.echo(b"e", &pattern(len));
        secure.echo(b"e", &pattern(len));
    }
    let (tag, seal) = plain.endpoint.offer(vec![segment(pattern(100))]);
    let mut data = plain.transfer(plain.link.read_from(tag, 0, vec![0; 100])).unwrap();
    plain.link.open_data(&seal, &mut data).unwrap();
    assert!(data == pattern(100));
    assert!(plain.link.open_data(&[1; 24], &mut data).is_err());
    // Later it is too late for a handshake.
    plain.endpoint.send(&dafs_keys::handshake::ask(), &[]).unwrap();
    world.service.0.wait("the message", |seen| {
        seen.messages.pop_front().filter(|(_, head, _)| *head == dafs_keys::handshake::ask())
    });
    assert_eq!(guarded.gate().counts().secured, 1);
}

pub fn a_server_with_another_key_is_no_server(row: &Row) {
    let (guarded, world) = start(row);
    let address = world.listener.address();
    let asked = ask_key(&*guarded.inner.engine.connector(&address), PATIENCE);
    assert_eq!(asked.unwrap(), guarded.server.public());

    let expected = identity().public();
    let error = failure(&guarded.connector_as(&guarded.client, expected, &address));
    for part in [&address, &expected.to_string(), &guarded.server.public().to_string()] {
        assert!(error.contains(part), "{error}");
    }
    assert!(error.contains("known_servers"), "{error}");
    world.service.0.change(|seen| assert!(seen.messages.is_empty()));
}

pub fn refused_clients_are_told_why(row: &Row) {
    let (guarded, world) = start(row);
    let stranger = identity();
    let address = world.listener.address();
    let error = failure(&guarded.connector_as(&stranger, guarded.server.public(), &address));
    assert!(error.contains(&format!("{} is not in authorized_clients", stranger.public())));
    let counts = guarded.gate().counts();
    assert_eq!((counts.secured, counts.refused, counts.busy), (0, 1, 0));
    world.client().echo(b"e", &[]);
    // Its name, the echo by which it knows what it may do, and this one.
    world.service.0.wait("the name and the echoes", |seen| (seen.calls == 3).then_some(()));
}

pub fn sends_of_many_threads_keep_their_order(row: &Row) {
    const THREADS: u8 = 6;
    const EACH: u8 = 100;
    let (_guarded, world) = start(row);
    let client = world.client();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                for i in 0..EACH {
                    let data = pattern(usize::from(i % 7) * 1500 * usize::from(thread % 3));
                    let segments = [segment(data.clone())];
                    client.endpoint.send(&[b'k', thread, i], &segments).unwrap();
                    client.link.send(&[b'k', thread, i], &data);
                }
            });
        }
        let mut next = HashMap::new();
        for _ in 0..u32::from(THREADS) * u32::from(EACH) {
            let (head, data) = client.message();
            let next: &mut u8 = next.entry(head[1]).or_default();
            assert_eq!(head[2], *next);
            assert!(data == pattern(usize::from(*next % 7) * 1500 * usize::from(head[1] % 3)));
            *next += 1;
        }
    });
    let total = usize::from(THREADS) * usize::from(EACH);
    let messages = world.service.0.wait("all messages", |seen| {
        (seen.messages.len() == total).then(|| std::mem::take(&mut seen.messages))
    });
    let mut next = HashMap::new();
    for (_, head, data) in messages {
        let next: &mut u8 = next.entry(head[1]).or_default();
        assert_eq!(head[2], *next);
        assert!(data == pattern(usize::from(*next % 7) * 1500 * usize::from(head[1] % 3)));
        *next += 1;
    }
}

pub fn messages_beyond_the_limits_end_the_connection(row: &Row) {
    let (guarded, world) = start(row);
    for (head, data) in [(66 << 10, 0), (0, (2 << 20) + 1)] {
        let client = world.client();
        assert!(client.endpoint.send(&vec![b'k'; head], &[segment(vec![0; data])]).is_err());
        client.closed();
        world.wait_closed(client.link.id());
        assert!(client.endpoint.send(b"k", &[]).is_err());
        assert_eq!(client.receiver.closed.lock().unwrap().len(), 1);
    }
    world.service.0.change(|seen| assert!(seen.messages.is_empty()));
    assert_eq!(guarded.gate().counts().broken, 0);
}

pub fn clients_come_back(row: &Row) {
    let (guarded, world) = start(row);
    let mut secrets = Vec::new();
    for i in 0..10u8 {
        let client = world.client();
        client.echo(&[b'e', i], &pattern(5000));
        secrets.push(*client.link.channel().unwrap().secret.expose());
        if i % 2 == 0 {
            client.endpoint.close();
        } else {
            client.link.close("the test says so");
            client.closed();
        }
        world.wait_closed(client.link.id());
    }
    secrets.sort_unstable();
    secrets.dedup();
    assert_eq!((secrets.len(), guarded.gate().counts().secured), (10, 10));
    world.service.0.change(|seen| assert_eq!((seen.connected.len(), seen.closed.len()), (10, 10)));
}

fn start(row: &Row) -> (Arc<Guarded>, World) {
    let inner = Row {
        engine: Arc::clone(&row.engine),
        address: row.address.clone(),
        directory: row.directory.clone(),
        level: row.level,
    };
    let guarded = Guarded::new(inner);
    let world = World::new(&guarded.row());
    (guarded, world)
}

fn failure(connector: &dyn Connector) -> String {
    let inbox = Arc::new(Inbox::default());
    let error = connector.connect(inbox.clone(), PATIENCE).unwrap_err();
    assert!(matches!(error, LinkError::Connect { .. }));
    assert!(inbox.closed.lock().unwrap().is_empty(), "nobody was connected");
    error.to_string()
}

/// Connects, and finds the server's side of the connection.
fn connect_as(world: &World, connector: &dyn Connector) -> Client {
    let receiver = Arc::new(Inbox::default());
    let endpoint = connector.connect(receiver.clone(), PATIENCE).unwrap();
    endpoint.send(b"which one?", &[]).unwrap();
    let link = world.service.0.wait("the link", |seen| {
        let (id, ..) = seen.messages.pop_front()?;
        seen.connected.iter().find(|link| link.id() == id).cloned()
    });
    let key = Arc::clone(&world.key);
    Client { endpoint, receiver, link, key, access: ReadAccess::default() }
}

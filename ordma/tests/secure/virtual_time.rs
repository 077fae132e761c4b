//! What depends on time, where time is the test's.

use crate::guarded::{identity, only};
use crate::harness::{Inbox, MESSAGES, PAGE, TestService};
use dafs_keys::handshake::{ask, is_packet};
use dafs_keys::{Identity, Protection};
use ordma::arena::Geometry;
use ordma::secure::{Gate, SecureConnector, Settings, ask_key};
use ordma::sim::{Faults, Sim, World};
use ordma::{Arena, Connector, Endpoint, Engine, LinkError, Listener, Service};
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

struct Stage {
    world: World,
    service: Arc<TestService>,
    gate: Arc<Gate>,
    server: Arc<Identity>,
    client: Arc<Identity>,
    _listener: Arc<dyn Listener>,
}

fn listen(world: &World, service: Arc<dyn Service>) -> Arc<dyn Listener> {
    let arena = Arc::new(Arena::new(Geometry::new(PAGE, 8 * PAGE).unwrap()));
    Sim::new(world).listen("server", service, arena).unwrap()
}

impl Stage {
    fn new(settings: Settings) -> Self {
        let world = World::new(fastrand::u64(..));
        let (server, client) = (identity(), identity());
        let service = Arc::new(TestService::default());
        let clock = world.clone();
        let clock = Box::new(move || clock.now());
        let inner: Arc<dyn Service> = service.clone();
        let gate = Gate::new(inner, Arc::clone(&server), only(&client), settings, clock);
        let _listener = listen(&world, gate.clone());
        Self { world, service, gate, server, client, _listener }
    }

    fn raw(&self) -> Arc<dyn Connector> {
        Sim::new(&self.world).connector("server")
    }

    fn connector(&self) -> SecureConnector {
        secure(self.raw(), &self.client, &self.server)
    }

    fn connect(&self) -> Result<(Arc<dyn Endpoint>, Arc<Inbox>), LinkError> {
        let inbox = Arc::new(Inbox::default());
        let endpoint = self.connector().connect(inbox.clone(), SECOND)?;
        Ok((endpoint, inbox))
    }

    fn told(&self) -> (usize, usize, usize) {
        self.service.0.change(|seen| (seen.connected.len(), seen.calls, seen.closed.len()))
    }
}

fn secure(inner: Arc<dyn Connector>, client: &Arc<Identity>, server: &Identity) -> SecureConnector {
    SecureConnector::new(inner, Arc::clone(client), server.public(), Protection::Sealed)
}

#[test]
fn links_that_say_nothing_or_half_of_it_are_the_services_to_close() {
    let stage = Stage::new(Settings::default());
    let heads = [&[][..], &ask()];
    let silent: Vec<_> = heads
        .map(|head| {
            let inbox = Arc::new(Inbox::default());
            let endpoint = stage.raw().connect(inbox.clone(), SECOND).unwrap();
            if is_packet(head) {
                endpoint.send(head, &[]).unwrap();
            }
            (endpoint, inbox)
        })
        .into();
    // A whole handshake, and nothing after it.
    let (endpoint, _inbox) = stage.connect().unwrap();
    stage.world.advance(3600 * SECOND);
    assert_eq!(stage.told(), (3, 0, 0), "told at once, and of no message");
    let links = stage.service.0.change(|seen| seen.connected.clone());
    assert!(links.iter().all(|link| link.channel().is_none()));
    assert_eq!(stage.gate.counts().secured, 0);
    links.iter().for_each(|link| link.close("said nothing for too long"));
    stage.world.run_until_idle();
    assert_eq!(stage.told(), (3, 0, 3));
    assert!(silent.iter().all(|(_, inbox)| inbox.closed.lock().unwrap().len() == 1));
    assert!(endpoint.send(b"k", &[]).is_err());
}

#[test]
fn the_service_does_not_speak_first() {
    let stage = Stage::new(Settings::default());
    let (_a, _) = stage.connect().unwrap();
    let (_b, _) = stage.connect().unwrap();
    let links = stage.service.0.change(|seen| seen.connected.clone());
    links[0].allow_reads(None);
    stage.world.run_until_idle();
    assert_eq!(stage.told(), (2, 0, 0));
    links[0].send(b"too early", &[]);
    links[1].allow_reads(Some(ordma::ReadAccess::default()));
    stage.world.run_until_idle();
    assert_eq!(stage.told(), (2, 0, 2));
}

/// Takes messages and says nothing, or says it in another way.
struct Other(Option<Vec<u8>>);

impl Service for Other {
    fn connected(&self, _: Arc<dyn ordma::Link>) {}
    fn message(&self, link: &Arc<dyn ordma::Link>, _: &[u8], _: &[u8]) {
        if let Some(answer) = &self.0 {
            link.send(answer, &[]);
        }
    }
    fn closed(&self, _: &Arc<dyn ordma::Link>, _: &LinkError) {}
}

#[test]
fn servers_that_do_not_answer_or_do_not_know_how() {
    let later = {
        let mut ask = ask();
        ask[3] = 9;
        ask
    };
    let cases = [
        (None, "in time"),
        (Some(b"HTTP/1.1 400".to_vec()), "does not speak the handshake"),
        (Some(later), "version 9"),
    ];
    for (answer, expected) in cases {
        let world = World::new(1);
        let _listener = listen(&world, Arc::new(Other(answer)));
        let raw = Sim::new(&world).connector("server");
        let (client, server) = (identity(), identity());
        for ask in [false, true] {
            let before = world.elapsed();
            let error = if ask {
                ask_key(&*raw, 3 * SECOND).unwrap_err()
            } else {
                let connector = secure(Arc::clone(&raw), &client, &server);
                connector.connect(Arc::new(Inbox::default()), 3 * SECOND).unwrap_err()
            };
            assert!(matches!(error, LinkError::Connect { .. }));
            assert!(error.to_string().contains(expected), "{error}");
            let took = world.elapsed() - before;
            assert!(took <= 3 * SECOND + Duration::from_millis(1), "{took:?}");
            assert_eq!(took >= 3 * SECOND, expected == "in time");
        }
        world.run_until_idle();
        assert_eq!(world.outstanding().connections, 0, "nothing is left behind");
    }
}

#[test]
fn a_server_that_hangs_up_is_named() {
    struct Deaf;
    impl Service for Deaf {
        fn connected(&self, _: Arc<dyn ordma::Link>) {}
        fn message(&self, link: &Arc<dyn ordma::Link>, _: &[u8], _: &[u8]) {
            link.close("what was that?");
        }
        fn closed(&self, _: &Arc<dyn ordma::Link>, _: &LinkError) {}
    }
    let world = World::new(2);
    let _listener = listen(&world, Arc::new(Deaf));
    let raw = Sim::new(&world).connector("server");
    let inbox = Arc::new(Inbox::default());
    let error = secure(Arc::clone(&raw), &identity(), &identity());
    let error = error.connect(inbox.clone(), SECOND).unwrap_err().to_string();
    assert!(error.contains("closed by the server") && error.contains("identity"), "{error}");
    assert!(ask_key(&*raw, SECOND).is_err());
    world.run_until_idle();
    assert!(inbox.closed.lock().unwrap().is_empty());
}

#[test]
fn a_flood_of_handshakes_is_limited() {
    let stage = Stage::new(Settings { handshakes: 10, burst: 50 });
    let flood = || {
        let busy = |result: Result<_, LinkError>| match result {
            Ok(connection) => Some(connection),
            Err(error) => {
                assert!(error.to_string().contains("busy, try again"), "{error}");
                None
            }
        };
        (0..200).filter_map(|_| busy(stage.connect())).collect::<Vec<_>>()
    };
    let first = flood();
    assert!((50..60).contains(&first.len()), "{}", first.len());
    let counts = stage.gate.counts();
    assert_eq!(counts.busy, 200 - first.len() as u64);
    assert_eq!(counts.refused, counts.busy);
    // Others are not disturbed, and the key can be asked for.
    let (endpoint, inbox) = &first[0];
    endpoint.send(b"e", &[]).unwrap();
    assert!(stage.world.run_until(SECOND, || !inbox.messages.lock().unwrap().is_empty()));
    assert_eq!(ask_key(&*stage.raw(), SECOND).unwrap(), stage.server.public());
    stage.world.advance(2 * SECOND);
    let second = flood();
    assert!((20..30).contains(&second.len()), "{}", second.len());
    assert_eq!(stage.gate.counts().broken, 0);
}

#[test]
fn connections_that_are_lost_at_any_time_end_once() {
    let stage = Stage::new(Settings::default());
    stage.world.set_faults(Faults { drop_connection: 0.02, ..Faults::foul() });
    let (mut connected, mut echoed) = (0, 0);
    for _ in 0..300 {
        let Ok((endpoint, inbox)) = stage.connect() else { continue };
        connected += 1;
        for i in 0..20u8 {
            if endpoint.send(&[b'e', i], &[]).is_err() {
                break;
            }
            endpoint.drive(MESSAGES, SECOND);
        }
        stage.world.advance(SECOND);
        endpoint.close();
        stage.world.run_until_idle();
        let came = inbox.messages.lock().unwrap();
        echoed += came.len();
        assert!(came.iter().enumerate().all(|(i, (head, _))| head[1] == i as u8), "a gap");
        assert_eq!(inbox.closed.lock().unwrap().len(), 1);
    }
    assert!(connected > 100 && echoed > connected, "{connected} {echoed}");
    stage.world.run_until_idle();
    let (links, _, closed) = stage.told();
    assert_eq!(links, closed);
    assert_eq!(stage.gate.counts().broken, 0, "a lost connection is nobody's fault");
}

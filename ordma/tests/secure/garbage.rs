//! Any bytes at any time, without an engine.

use crate::guarded::{identity, only};
use crate::harness::{Inbox, TestService};
use dafs_keys::handshake::{Incoming, Initiator, Responder, ask, is_packet};
use dafs_keys::{Identity, Protection};
use ordma::secure::{Gate, SecureConnector, Settings};
use ordma::{
    Capabilities, Connector, Endpoint, Interest, Link, LinkError, PageReads, ReadAccess, ReadBatch,
    Receiver, Segment, Service, Tag, Transfer,
};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

fn capabilities() -> Capabilities {
    let engine = "none";
    Capabilities {
        engine,
        geometry: None,
        local_reads: false,
        read_batch: 1,
        tags: false,
        places_slots: false,
    }
}

/// A link that keeps what is sent.
#[derive(Debug, Default)]
struct Wire {
    sent: Mutex<Vec<Vec<u8>>>,
    closed: Mutex<Vec<String>>,
}

impl Link for Wire {
    fn id(&self) -> u64 {
        1
    }
    fn peer(&self) -> String {
        "peer".to_owned()
    }
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }
    fn send(&self, head: &[u8], _: &[u8]) {
        self.sent.lock().unwrap().push(head.to_vec());
    }
    fn write_to(&self, _: Tag, _: Vec<u8>) -> Transfer {
        Transfer::new()
    }
    fn read_from(&self, _: Tag, _: u64, _: Vec<u8>) -> Transfer {
        Transfer::new()
    }
    fn allow_reads(&self, _: Option<ReadAccess>) {}
    fn close(&self, reason: &str) {
        self.closed.lock().unwrap().push(reason.to_owned());
    }
}

static SERVER: LazyLock<Arc<Identity>> = LazyLock::new(identity);
static CLIENT: LazyLock<Arc<Identity>> = LazyLock::new(identity);

type Messages = Vec<(Vec<u8>, Vec<u8>)>;

fn messages() -> impl Strategy<Value = Messages> {
    let head = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        prop::collection::vec(any::<u8>(), 0..120)
            .prop_map(|tail| [&[0x5A, 0xDA][..], &tail].concat()),
        (0..7u8, 0..3u8).prop_map(|(kind, version)| vec![0x5A, 0xDA, kind, version]),
    ];
    prop::collection::vec((head, prop::collection::vec(any::<u8>(), 0..40)), 1..6)
}

proptest! {
    #[test]
    fn a_server_takes_anything(garbage in messages(), handshake: bool, good: bool) {
        let service = Arc::new(TestService::default());
        let clock = Box::new(Instant::now);
        let (server, policy) = (Arc::clone(&SERVER), only(&CLIENT));
        let gate = Gate::new(service.clone(), server, policy, Settings::default(), clock);
        let wire = Arc::new(Wire::default());
        let link: Arc<dyn Link> = wire.clone();
        gate.message(&link, b"before it is connected", &[]);
        gate.connected(link.clone());
        let mut expected = 0;
        if handshake {
            let (initiator, begin) =
                Initiator::begin(&CLIENT, &SERVER.public(), Protection::None).unwrap();
            gate.message(&link, &begin, &[]);
            let answer = wire.sent.lock().unwrap().pop().unwrap();
            let (channel, _) = initiator.finish(&answer).unwrap();
            if good {
                let mut sealed = Vec::new();
                channel.seal(b"\0kept", &mut sealed);
                gate.message(&link, &sealed, &[]);
                expected = 1;
            }
        }
        // A link is plain if what follows a few questions for the key is no packet.
        let is_ask = |(head, data): &&(Vec<u8>, Vec<u8>)| *head == ask() && data.is_empty();
        let asks = garbage.iter().take_while(is_ask).count();
        let plain =
            !handshake && asks <= 4 && garbage.get(asks).is_some_and(|(head, _)| !is_packet(head));
        for (head, data) in &garbage {
            gate.message(&link, head, data);
        }
        if plain {
            expected = garbage.len() - asks;
        } else if handshake {
            prop_assert_eq!(wire.closed.lock().unwrap().len(), 1);
            prop_assert_eq!(gate.counts().broken, 1, "once, however much comes");
        }
        prop_assert!(wire.sent.lock().unwrap().len() <= garbage.len());
        for _ in 0..2 {
            gate.closed(&link, &LinkError::Closed("the end".to_owned()));
        }
        gate.message(&link, b"after the end", &[]);
        service.0.change(|seen| {
            prop_assert_eq!((seen.connected.len(), seen.closed.len()), (1, 1));
            // An echo is not kept, but counts.
            prop_assert_eq!(seen.calls, expected);
            Ok(())
        })?;
    }

    #[test]
    fn a_client_takes_anything(garbage in messages(), handshake: bool) {
        let script = Arc::new(Script { garbage, handshake });
        let connector = SecureConnector::new(
            Arc::<Script>::clone(&script),
            Arc::clone(&CLIENT),
            SERVER.public(),
            Protection::Keyed,
        );
        let inbox = Arc::new(Inbox::default());
        let connected = connector.connect(inbox.clone(), Duration::from_millis(1));
        prop_assert_eq!(connected.is_ok(), handshake);
        prop_assert!(inbox.messages.lock().unwrap().is_empty());
        let closed = inbox.closed.lock().unwrap();
        prop_assert_eq!(closed.len(), usize::from(handshake));
        let protocol = matches!(closed.first(), Some(LinkError::Protocol { .. }));
        prop_assert_eq!(protocol, handshake);
    }
}

/// A server that answers well or not, and goes on with garbage.
#[derive(Debug)]
struct Script {
    garbage: Messages,
    handshake: bool,
}

impl Connector for Script {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        _: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        let (garbage, handshake) = (self.garbage.clone(), self.handshake);
        Ok(Arc::new(Player { receiver, garbage, handshake, closed: Mutex::default() }))
    }
    fn target(&self) -> String {
        "script".to_owned()
    }
}

struct Player {
    receiver: Arc<dyn Receiver>,
    garbage: Messages,
    handshake: bool,
    closed: Mutex<bool>,
}

impl std::fmt::Debug for Player {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("player")
    }
}

impl Endpoint for Player {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }
    fn peer(&self) -> String {
        "player".to_owned()
    }
    fn send(&self, head: &[u8], _: &[Segment]) -> Result<(), LinkError> {
        if self.handshake {
            let Ok(Incoming::Begun(responder)) = Responder::receive(&SERVER, head) else {
                panic!("no handshake begins")
            };
            self.receiver.message(&responder.accept().unwrap().0, &[]);
        }
        for (head, data) in &self.garbage {
            self.receiver.message(head, data);
        }
        Ok(())
    }
    fn advertise(&self, _: Vec<Segment>) -> Tag {
        0
    }
    fn withdraw(&self, _: Tag) -> u64 {
        0
    }
    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        ReadBatch::new(reads)
    }
    fn drive(&self, _: Interest, _: Duration) {}
    fn interrupt(&self) {}
    fn close(&self) {
        let mut closed = self.closed.lock().unwrap();
        if !std::mem::replace(&mut *closed, true) {
            drop(closed);
            self.receiver.closed(LinkError::Closed("by this side".to_owned()));
        }
    }
}

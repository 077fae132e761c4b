//! The transport: requests are served while they are sent, and what comes back waits until somebody
//! drives.

use super::{PAGE, Server, Verdict, ops};
use dafs_keys::handshake::{Incoming, Initiator, Responder};
use dafs_keys::{FileKey, Identity, PageTagKey, Protection, Seal, WriteKey};
use dafs_proto::Header;
use ordma::engine::{Established, PageRead, PageReads};
use ordma::{
    AccessFault, Capabilities, Connector, Endpoint, Footer, Interest, LinkError, ReadBatch,
    Receiver, Region, Segment, Tag,
};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub struct FakeConnector(pub Server);

impl fmt::Debug for FakeConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeConnector")
    }
}

impl Connector for FakeConnector {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        _: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        let mut state = self.0.state();
        if state.refuse {
            let reason = "refused by the test".into();
            return Err(LinkError::Connect { target: self.target(), reason });
        }
        state.connects += 1;
        let keys = (state.protection != Protection::None)
            .then(|| Keys::shake_hands(&state.identity, state.protection));
        let endpoint = Arc::new(FakeEndpoint {
            server: self.0.clone(),
            receiver,
            keys,
            inner: Mutex::default(),
            arrived: Condvar::new(),
        });
        state.links.push(Arc::downgrade(&endpoint));
        Ok(endpoint)
    }

    fn target(&self) -> String {
        "the fake server".into()
    }
}

/// What both sides of a connection have since the handshake.
struct Keys {
    client: Arc<Established>,
    /// The server's side.
    writes: WriteKey,
    tags: PageTagKey,
    last_tag: AtomicU64,
}

impl Keys {
    fn shake_hands(server: &Identity, least: Protection) -> Self {
        let client = Identity::generate().unwrap();
        let (initiator, begin) = Initiator::begin(&client, &server.public(), least).unwrap();
        let Ok(Incoming::Begun(responder)) = Responder::receive(server, &begin) else {
            panic!("no handshake");
        };
        let (answer, _, secret) = responder.accept().unwrap();
        let (_, same) = initiator.finish(&answer).unwrap();
        Self {
            client: Arc::new(Established::new(server.public(), least, same)),
            writes: WriteKey::derive(&secret),
            tags: PageTagKey::derive(&secret),
            last_tag: AtomicU64::new(0),
        }
    }
}

pub struct FakeEndpoint {
    server: Server,
    receiver: Arc<dyn Receiver>,
    keys: Option<Keys>,
    inner: Mutex<Inner>,
    arrived: Condvar,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<(Vec<u8>, Vec<u8>)>,
    reads: VecDeque<Arc<ReadBatch>>,
    advertised: HashMap<Tag, (Vec<Segment>, u64)>,
    session: Option<Vec<u8>>,
    tags: u64,
    cut: bool,
    told: bool,
    interrupts: u64,
}

impl fmt::Debug for FakeEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeEndpoint")
    }
}

impl FakeEndpoint {
    pub fn cut(&self) {
        let reads = {
            let mut inner = self.inner.lock().unwrap();
            inner.cut = true;
            std::mem::take(&mut inner.reads)
        };
        reads.iter().for_each(|batch| batch.fail(AccessFault::Unreachable));
        self.arrived.notify_all();
    }

    /// Delivers a message that the server did not think of.
    pub fn deliver(&self, head: Vec<u8>, data: Vec<u8>) {
        self.inner.lock().unwrap().messages.push_back((head, data));
        self.arrived.notify_all();
    }

    /// Places bytes into an advertised buffer.
    pub fn place(&self, tag: Tag, data: &[u8]) -> bool {
        let mut inner = self.inner.lock().unwrap();
        let Some((segments, placed)) = inner.advertised.get_mut(&tag) else { return false };
        let mut rest = data;
        for segment in segments {
            let (now, later) = rest.split_at(rest.len().min(segment.len));
            segment.with(|bytes| bytes[..now.len()].copy_from_slice(now));
            rest = later;
        }
        assert!(rest.is_empty(), "the buffer is too small");
        *placed += data.len() as u64;
        true
    }

    /// Whether there was a handshake.
    pub fn is_known(&self) -> bool {
        self.keys.is_some()
    }

    /// The next tag for a page in a reply, and its number.
    pub fn tag(&self, page: &[u8]) -> (u64, [u8; 16]) {
        let keys = self.keys.as_ref().unwrap();
        let number = keys.last_tag.fetch_add(1, Ordering::Relaxed) + 1;
        (number, keys.tags.tag(number, page))
    }

    /// Fetches the bytes of a lent buffer, and opens them where they are sealed.
    pub fn fetch(&self, tag: Tag, seal: &[u8]) -> Option<Vec<u8>> {
        let mut data = self.fetch_raw(tag)?;
        match &self.keys {
            None => assert!(seal.is_empty()),
            Some(keys) => {
                let seal = Seal::decode(seal).expect("a seal");
                keys.writes.open(&seal, &mut data).expect("sealed for this connection");
            }
        }
        Some(data)
    }

    fn fetch_raw(&self, tag: Tag) -> Option<Vec<u8>> {
        let inner = self.inner.lock().unwrap();
        let (segments, _) = inner.advertised.get(&tag)?;
        let mut data = Vec::new();
        for segment in segments {
            segment.with_ref(|bytes| data.extend_from_slice(bytes))?;
        }
        Some(data)
    }

    fn read_slot(&self, page: &PageRead, key: &FileKey) -> Result<(Footer, Vec<u8>), AccessFault> {
        self.server.state().read_slot(&page.reference, page.floor, key)
    }

    fn complete(&self, batch: &ReadBatch) {
        let reads = &batch.reads;
        let outcome = reads.pages().iter().map(|page| {
            let (footer, payload) = self.read_slot(page, reads.key())?;
            reads.with_place(page, |bytes| bytes.copy_from_slice(&payload));
            Ok(footer)
        });
        let outcome = outcome.collect();
        batch.complete(outcome);
    }
}

impl Endpoint for FakeEndpoint {
    fn capabilities(&self) -> Capabilities {
        let local_reads = self.server.state().local_reads;
        Capabilities {
            engine: "fake",
            geometry: None,
            local_reads,
            read_batch: 16,
            tags: false,
            places_slots: false,
        }
    }

    fn peer(&self) -> String {
        "the fake server".into()
    }

    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        let lost = || LinkError::Lost { peer: self.peer(), reason: "cut by the test".into() };
        let mut inline = Vec::new();
        for segment in data {
            segment.with_ref(|bytes| inline.extend_from_slice(bytes)).expect("lent");
        }
        let (header, body) = Header::decode(head).expect("a good message");
        let session = {
            let inner = self.inner.lock().unwrap();
            if inner.cut {
                return Err(lost());
            }
            inner.session.clone()
        };
        let mut script = self.server.state().script.take();
        let verdict = script.as_mut().map_or(Verdict::Serve, |script| script(&header, body));
        self.server
            .state()
            .script
            .get_or_insert_with(|| script.unwrap_or_else(|| Box::new(|_, _| Verdict::Serve)));
        let serve = || {
            let served = ops::serve(&self.server, self, session, &header, body, &inline);
            if let Some(session) = served.session {
                self.inner.lock().unwrap().session = Some(session);
            }
            (served.head, served.data)
        };
        let (head, data) = match verdict {
            Verdict::Serve => serve(),
            Verdict::Ignore => return Ok(()),
            Verdict::Answer(head, data) => (head, data),
            Verdict::Change(change) => {
                let (mut head, mut data) = serve();
                change(&mut head, &mut data);
                (head, data)
            }
            Verdict::ServeAndCut => {
                serve();
                self.cut();
                return Ok(());
            }
            Verdict::Cut => {
                self.cut();
                return Err(lost());
            }
        };
        self.deliver(head, data);
        Ok(())
    }

    fn advertise(&self, buffer: Vec<Segment>) -> Tag {
        let mut inner = self.inner.lock().unwrap();
        inner.tags += 1;
        let tag = inner.tags;
        inner.advertised.insert(tag, (buffer, 0));
        tag
    }

    fn offer(&self, data: Vec<Segment>) -> (Tag, Vec<u8>) {
        let Some(keys) = &self.keys else { return (self.advertise(data), Vec::new()) };
        let mut copy = Vec::new();
        for segment in data {
            segment.with_ref(|bytes| copy.extend_from_slice(bytes)).expect("lent");
        }
        let seal = keys.client.writes.seal(&mut copy);
        let region = Region::owned(copy);
        (self.advertise(vec![region.segment(0, region.len())]), seal.encode().to_vec())
    }

    fn channel(&self) -> Option<&Arc<Established>> {
        self.keys.as_ref().map(|keys| &keys.client)
    }

    fn withdraw(&self, tag: Tag) -> u64 {
        let inner = &mut self.inner.lock().unwrap();
        inner.advertised.remove(&tag).map_or(0, |(_, placed)| placed)
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        assert_eq!(reads.page_size(), PAGE);
        let batch = ReadBatch::new(reads);
        let local_reads = self.capabilities().local_reads;
        let mut inner = self.inner.lock().unwrap();
        if inner.cut {
            batch.fail(AccessFault::Unreachable);
        } else if local_reads {
            drop(inner);
            self.complete(&batch);
        } else {
            inner.reads.push_back(Arc::clone(&batch));
            self.arrived.notify_all();
        }
        batch
    }

    fn reads_now(&self) -> bool {
        !self.server.state().rearming
    }

    fn drive(&self, interest: Interest, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut inner = self.inner.lock().unwrap();
        let interrupts = inner.interrupts;
        loop {
            if inner.cut {
                let told = std::mem::replace(&mut inner.told, true);
                drop(inner);
                if !told {
                    let reason = "cut by the test".into();
                    self.receiver.closed(LinkError::Lost { peer: self.peer(), reason });
                }
                return;
            }
            if interest.reads
                && let Some(batch) = inner.reads.pop_front()
            {
                drop(inner);
                return self.complete(&batch);
            }
            if interest.messages
                && let Some((head, data)) = inner.messages.pop_front()
            {
                drop(inner);
                return self.receiver.message(&head, &data);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.interrupts != interrupts {
                return;
            }
            // Another thread may have taken what this one waits for.
            inner = self.arrived.wait_timeout(inner, left.min(Duration::from_millis(2))).unwrap().0;
        }
    }

    fn interrupt(&self) {
        self.inner.lock().unwrap().interrupts += 1;
        self.arrived.notify_all();
    }

    fn close(&self) {
        self.cut();
    }
}

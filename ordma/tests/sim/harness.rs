//! A server and a client that do what the tests ask for, and keep count of what they are told.

use dafs_keys::FileKey;
use ordma::ReadAccess;
use ordma::arena::Geometry;
use ordma::arena::Guard;
use ordma::sim::{Sim, World};
use ordma::{
    Arena, Endpoint, Engine, Footer, Interest, Kind, Link, LinkError, Listener, PageReads,
    Receiver, Region, RemoteRef, Service, Slot, Tag,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub const PAGE: usize = 4096;
pub const SECOND: Duration = Duration::from_secs(1);
pub const ANYTHING: Interest = Interest { messages: true, reads: true };

/// What the first byte of a message asks the server for.
pub const ECHO: u8 = b'e';
/// Place `number` bytes of 7 into the buffer that the tag names, then answer.
pub const PLACE: u8 = b'p';
/// Fetch `number` bytes and answer with them.
pub const FETCH: u8 = b'f';
/// No answer.
pub const NOTE: u8 = b'n';

/// A message of the tests.
pub fn request(op: u8, tag: Tag, number: u64) -> Vec<u8> {
    [&[op][..], &tag.to_le_bytes(), &number.to_le_bytes()].concat()
}

/// The number in a message.
pub fn number(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[9..17].try_into().unwrap())
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
pub struct Server {
    tasks: Mutex<Vec<Task>>,
    pub told: Mutex<BTreeMap<u64, Told>>,
    /// Transfers that were begun, ended well, and ended with an error.
    pub transfers: Mutex<[u64; 3]>,
}

/// What the server was told of one link.
#[derive(Default)]
pub struct Told {
    pub link: Option<Arc<dyn Link>>,
    pub connected: u32,
    pub closed: Vec<String>,
    pub messages: Vec<Vec<u8>>,
}

impl Server {
    pub fn told(&self) -> MutexGuard<'_, BTreeMap<u64, Told>> {
        self.told.lock().unwrap()
    }

    /// The links that are there, oldest first.
    pub fn links(&self) -> Vec<Arc<dyn Link>> {
        let told = self.told();
        let open = told.values().filter(|told| told.closed.is_empty());
        open.filter_map(|told| told.link.clone()).collect()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().push(Box::pin(task));
    }

    /// Polls all tasks; whether any has ended.
    pub fn run_queued(&self) -> bool {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        let before = tasks.len();
        let mut left: Vec<Task> = tasks
            .into_iter()
            .filter_map(|mut task| {
                let pending = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                (pending == Poll::Pending).then_some(task)
            })
            .collect();
        let ended = left.len() < before;
        self.tasks.lock().unwrap().append(&mut left);
        ended
    }

    pub fn ended(&self, well: bool) {
        self.transfers.lock().unwrap()[if well { 1 } else { 2 }] += 1;
    }
}

/// The server as the engine sees it.
struct Front(Arc<Server>);

impl Service for Front {
    fn connected(&self, link: Arc<dyn Link>) {
        link.allow_reads(Some(ReadAccess::default()));
        let mut told = self.0.told();
        let told = told.entry(link.id()).or_default();
        told.connected += 1;
        told.link = Some(link);
    }

    fn message(&self, link: &Arc<dyn Link>, head: &[u8], data: &[u8]) {
        {
            let mut told = self.0.told();
            let told = told.get_mut(&link.id()).expect("connected comes first");
            assert!(told.closed.is_empty(), "a message after the end");
            told.messages.push(head.to_vec());
        }
        let tag = Tag::from_le_bytes(head[1..9].try_into().unwrap());
        let (server, answer) = (Arc::clone(&self.0), Arc::clone(link));
        let head = head.to_vec();
        match head[0] {
            ECHO => link.send(&head, data),
            PLACE => {
                server.transfers.lock().unwrap()[0] += 1;
                let transfer = link.write_to(tag, vec![7; number(&head) as usize]);
                // Ordered behind the data, so it need not wait for the transfer's end.
                link.send(&head, &[]);
                let task = async move { server.ended(transfer.await.is_ok()) };
                self.0.spawn(task);
            }
            FETCH => {
                server.transfers.lock().unwrap()[0] += 1;
                let transfer = link.read_from(tag, 0, vec![0; number(&head) as usize]);
                let task = async move {
                    let result = transfer.await;
                    server.ended(result.is_ok());
                    match result {
                        Ok(bytes) => answer.send(&head, &bytes),
                        Err(error) => answer.send(&head, error.to_string().as_bytes()),
                    }
                };
                self.0.spawn(task);
            }
            _ => {}
        }
    }

    fn closed(&self, link: &Arc<dyn Link>, reason: &LinkError) {
        let mut told = self.0.told();
        let told = told.get_mut(&link.id()).expect("connected comes first");
        told.closed.push(reason.to_string());
        told.link = None;
    }
}

/// A client's ear.
#[derive(Default)]
pub struct Inbox {
    pub messages: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    pub closed: Mutex<Vec<LinkError>>,
}

impl Receiver for Inbox {
    fn message(&self, head: &[u8], data: &[u8]) {
        assert!(!self.is_closed(), "a message after the end");
        self.messages.lock().unwrap().push((head.to_vec(), data.to_vec()));
    }

    fn closed(&self, error: LinkError) {
        self.closed.lock().unwrap().push(error);
    }
}

impl Inbox {
    pub fn is_closed(&self) -> bool {
        !self.closed.lock().unwrap().is_empty()
    }

    pub fn len(&self) -> usize {
        self.messages.lock().unwrap().len()
    }
}

pub struct Client {
    pub endpoint: Arc<dyn Endpoint>,
    pub inbox: Arc<Inbox>,
}

impl Client {
    pub fn connect(world: &World) -> Result<Self, LinkError> {
        Self::named(world, "client")
    }

    pub fn named(world: &World, name: &str) -> Result<Self, LinkError> {
        let inbox = Arc::new(Inbox::default());
        let connector = Sim::named(world, name).connector("server");
        let receiver: Arc<dyn Receiver> = Arc::<Inbox>::clone(&inbox);
        Ok(Self { endpoint: connector.connect(receiver, SECOND)?, inbox })
    }

    /// Sends a request and waits for its answer; `None` if the connection is lost.
    pub fn call(&self, head: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let before = self.inbox.len();
        self.endpoint.send(head, &[]).ok()?;
        while self.inbox.len() == before {
            if self.inbox.is_closed() {
                return None;
            }
            self.endpoint.drive(ANYTHING, SECOND);
        }
        self.inbox.messages.lock().unwrap().last().cloned()
    }

    /// Reads one page and waits for the outcome.
    pub fn read(&self, reference: RemoteRef) -> Result<(Footer, Vec<u8>), ordma::AccessFault> {
        let region = Region::owned(vec![0xEE; PAGE]);
        let batch = self.endpoint.read(one_page(&region, reference));
        let mut cx = Context::from_waker(Waker::noop());
        let outcome = loop {
            match batch.poll(&mut cx) {
                Poll::Ready(outcome) => break outcome,
                Poll::Pending => {
                    self.endpoint.drive(Interest { messages: false, reads: true }, SECOND);
                }
            }
        };
        let bytes = region.take().unwrap();
        if outcome[0].is_err() {
            assert!(bytes.iter().all(|byte| *byte == 0), "a fault leaves bytes behind");
        }
        outcome[0].map(|footer| (footer, bytes))
    }
}

/// A world with a server in it.
pub struct Stage {
    pub world: World,
    pub server: Arc<Server>,
    pub arena: Arc<Arena>,
    pub listener: Arc<dyn Listener>,
}

impl Stage {
    pub fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let arena = Arc::new(Arena::new(Geometry::new(PAGE, 8 * PAGE).unwrap()));
        arena.grow(Guard::None).unwrap();
        let (server, listener) = serve(&world, &arena);
        Self { world, server, arena, listener }
    }

    /// Fills a slot with a page of the file 5.
    pub fn page(&self, byte: u8) -> (Slot, RemoteRef) {
        let slot = self.arena.take(Guard::None).unwrap();
        let generation = self.arena.next_generation();
        write(&slot, generation, 0, byte);
        let reference =
            RemoteRef { chunk: slot.chunk.id(), slot: slot.index, file: 5, block: 6, generation };
        (slot, reference)
    }
}

/// Has a new server listen at `server`, with all chunks of the arena.
pub fn serve(world: &World, arena: &Arc<Arena>) -> (Arc<Server>, Arc<dyn Listener>) {
    let server = Arc::new(Server::default());
    let service = Arc::new(Front(Arc::clone(&server)));
    let listener = Sim::new(world).listen("server", service, Arc::clone(arena)).unwrap();
    arena.chunks().iter().for_each(|chunk| listener.export(chunk));
    let queue = Arc::clone(&server);
    world.on_pump(Box::new(move || queue.run_queued()));
    (server, listener)
}

/// Writes a page whose bytes and version tell the same number.
pub fn write(slot: &Slot, generation: u64, version: u64, byte: u8) {
    let valid = PAGE as u32;
    let kind = Kind::Data;
    let footer = Footer {
        kind,
        sealed: false,
        epoch: 0,
        last: false,
        valid,
        file: 5,
        block: 6,
        generation,
        version,
    };
    let payload = [byte; PAGE];
    slot.write(&payload, &footer.encode(&payload));
}

/// A page to be read into a region of its size.
pub fn one_page(region: &Region, reference: RemoteRef) -> PageReads {
    let mut reads = PageReads::into(region, PAGE, &FileKey::clear(), 1);
    reads.push(reference, 0, 0);
    reads
}

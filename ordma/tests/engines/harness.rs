//! A server and clients of some engine, and ways to wait for them.

use dafs_keys::{FileKey, PageKey, Protection, ReadKey, Secret};
use ordma::ReadAccess;
use ordma::arena::Geometry;
use ordma::arena::Guard;
use ordma::{
    AccessFault, Arena, Endpoint, Engine, FOOTER_LEN, Footer, Interest, Kind, Link, LinkError,
    Listener, PageReads, ReadBatch, Receiver, Region, RemoteRef, Segment, Service, Slot, Transfer,
};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Longest that any step of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const PAGE: usize = 4096;
/// Slots of the chunks in these tests.
pub const SLOTS: usize = 512;

/// An engine under test.
pub struct Row {
    pub engine: Arc<dyn Engine>,
    pub address: String,
    /// Kept for the time of the test.
    pub directory: Option<Arc<Directory>>,
    pub level: Protection,
}

impl Row {
    pub fn new(engine: impl Engine + 'static, address: &str) -> Self {
        let (address, level) = (address.to_owned(), Protection::None);
        Self { engine: Arc::new(engine), address, directory: None, level }
    }

    pub fn at(self, level: Protection) -> Self {
        Self { level, ..self }
    }

    pub fn sealed(self) -> Self {
        self.at(Protection::Sealed)
    }

    pub fn keyed(self) -> Self {
        self.at(Protection::Keyed)
    }

    pub fn tcp() -> Self {
        Self::tcp_with(ordma::tcp::Settings::default())
    }

    pub fn tcp_with(settings: ordma::tcp::Settings) -> Self {
        Self::new(ordma::tcp::Tcp::new(settings), "127.0.0.1:0")
    }

    /// On an RDMA device, which there has to be.
    #[cfg(feature = "device-tests")]
    pub fn verbs() -> Self {
        Self::verbs_with(ordma::verbs::Settings::default())
    }

    #[cfg(feature = "device-tests")]
    pub fn verbs_with(settings: ordma::verbs::Settings) -> Self {
        let host = std::env::var("DAFS_RDMA_ADDRESS").unwrap_or_else(|_| "10.9.9.1".to_owned());
        Self::new(ordma::verbs::Verbs::new(settings), &format!("{host}:0"))
    }

    pub fn shm() -> Self {
        Self::shm_with(ordma::shm::Settings::default())
    }

    pub fn shm_with(settings: ordma::shm::Settings) -> Self {
        let directory = Directory::new();
        let address = directory.0.join("socket");
        let row = Self::new(ordma::shm::Shm::new(settings), address.to_str().unwrap());
        Self { directory: Some(Arc::new(directory)), ..row }
    }
}

/// A directory that is removed at the end.
pub struct Directory(pub std::path::PathBuf);

impl Directory {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ordma-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A value that several threads watch.
#[derive(Default)]
pub struct Watched<T>(Mutex<T>, Condvar);

impl<T> Watched<T> {
    pub fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let result = f(&mut self.0.lock().unwrap());
        self.1.notify_all();
        result
    }

    pub fn wait<R>(&self, what: &str, mut f: impl FnMut(&mut T) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        let mut guard = self.0.lock().unwrap();
        loop {
            if let Some(result) = f(&mut guard) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}");
            guard = self.1.wait_timeout(guard, left).unwrap().0;
        }
    }
}

/// The server's side: echoes messages whose head begins with `e`, drops those with `d`, and keeps the
/// others. It is held up by one that begins with `h`, until it is let go on.
#[derive(Default)]
pub struct TestService(pub Watched<Seen>);

#[derive(Default)]
pub struct Seen {
    pub connected: Vec<Arc<dyn Link>>,
    pub closed: Vec<(u64, LinkError)>,
    pub messages: VecDeque<(u64, Vec<u8>, Vec<u8>)>,
    pub calls: usize,
    pub hold: Hold,
}

/// Whether the thread that handles messages is held up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    #[default]
    No,
    Held,
    /// It is to go on.
    Over,
}

impl Service for TestService {
    fn connected(&self, link: Arc<dyn Link>) {
        self.0.change(|seen| seen.connected.push(link));
    }

    fn message(&self, link: &Arc<dyn Link>, head: &[u8], data: &[u8]) {
        // Counted first: who has the echo may look.
        self.0.change(|seen| {
            seen.calls += 1;
            if !matches!(head.first(), Some(b'e' | b'd' | b'h')) {
                seen.messages.push_back((link.id(), head.to_vec(), data.to_vec()));
            }
        });
        match head.first() {
            Some(b'e') => link.send(head, data),
            Some(b'h') => {
                self.0.change(|seen| seen.hold = Hold::Held);
                self.0.wait("the end of a hold", |seen| (seen.hold == Hold::Over).then_some(()));
                self.0.change(|seen| seen.hold = Hold::No);
            }
            _ => {}
        }
    }

    fn closed(&self, link: &Arc<dyn Link>, reason: &LinkError) {
        self.0.change(|seen| seen.closed.push((link.id(), reason.clone())));
    }
}

/// A server.
pub struct World {
    pub engine: Arc<dyn Engine>,
    pub service: Arc<TestService>,
    pub arena: Arc<Arena>,
    pub listener: Arc<dyn Listener>,
    pub level: Protection,
    /// Of the file that all pages are of.
    pub key: Arc<FileKey>,
    /// Of all sessions.
    pub session: Secret,
    _directory: Option<Arc<Directory>>,
}

/// The file that all pages are of.
pub const FILE: u64 = 77;
/// Its epoch: one that does not fit into a footer.
pub const EPOCH: u64 = 0x5_0003;

impl World {
    pub fn new(row: &Row) -> Self {
        let service = Arc::new(TestService::default());
        let arena = Arc::new(Arena::new(Geometry::new(PAGE, SLOTS * PAGE).unwrap()));
        let listener =
            row.engine.listen(&row.address, service.clone(), Arc::clone(&arena)).unwrap();
        let engine = Arc::clone(&row.engine);
        let _directory = row.directory.clone();
        let (level, session) = (row.level, Secret::random().unwrap());
        let key = Arc::new(match level {
            Protection::None => FileKey::Clear,
            Protection::Keyed => FileKey::Keyed(ReadKey::derive(&session.keyed(), EPOCH, FILE)),
            Protection::Sealed => FileKey::Sealed(PageKey::derive(&session, EPOCH, FILE)),
        });
        let world = Self { engine, service, arena, listener, level, key, session, _directory };
        world.grow();
        world
    }

    pub fn guard(&self) -> Guard {
        if self.level == Protection::Keyed { Guard::Tags } else { Guard::None }
    }

    pub fn grow(&self) {
        self.listener.export(&self.arena.grow(self.guard()).unwrap());
    }

    /// Connects a client that may read.
    pub fn client(&self) -> Client {
        let client = self.stranger();
        client.allow();
        client.catch_up();
        // Where reads have a connection of their own, the server may have it a moment later.
        let (slot, reference) = self.page(0);
        let deadline = Instant::now() + PATIENCE;
        while client.read_one(reference) == Err(AccessFault::Revoked) {
            assert!(Instant::now() < deadline, "it is not let in");
            client.catch_up();
        }
        self.arena.free(slot);
        client
    }

    /// Connects a client that may not read yet.
    pub fn stranger(&self) -> Client {
        self.try_stranger().unwrap()
    }

    pub fn try_stranger(&self) -> Result<Client, LinkError> {
        let known: Vec<_> = self.service.0.change(|s| s.connected.iter().map(|l| l.id()).collect());
        let connector = self.engine.connector(&self.listener.address());
        let receiver = Arc::new(Inbox::default());
        let endpoint = connector.connect(receiver.clone(), PATIENCE)?;
        // Others may connect at the same time: ours is the one that answers to its name.
        let name = format!("n{}", fastrand::u64(..));
        endpoint.send(name.as_bytes(), &[]).unwrap();
        let link = self.service.0.wait("the link", |seen| {
            let at = seen.messages.iter().position(|(_, head, _)| head == name.as_bytes())?;
            let (id, _, _) = seen.messages.remove(at)?;
            assert!(!known.contains(&id));
            seen.connected.iter().find(|link| link.id() == id).cloned()
        });
        let mut access = ReadAccess::default();
        if self.level > Protection::None {
            let connection = Secret::random().unwrap();
            endpoint.prove(&connection);
            // Only the first counts.
            endpoint.prove(&connection);
            access = ReadAccess {
                connection: Some(connection),
                session: (self.level == Protection::Keyed).then(|| self.session.keyed()),
            };
        }
        Ok(Client { endpoint, receiver, link, key: Arc::clone(&self.key), access })
    }

    /// Fills a slot with a page of this byte.
    pub fn page(&self, byte: u8) -> (Slot, RemoteRef) {
        let slot = self.arena.take(self.guard()).expect("a free slot");
        let reference = self.fill(&slot, byte, 0);
        (slot, reference)
    }

    pub fn fill(&self, slot: &Slot, byte: u8, version: u64) -> RemoteRef {
        let generation = self.arena.next_generation();
        self.refill(slot, byte, generation, version)
    }

    pub fn refill(&self, slot: &Slot, byte: u8, generation: u64, version: u64) -> RemoteRef {
        let block = u64::from(slot.index);
        let mut payload = [byte; PAGE];
        let footer = self.footer(block, generation, version, &mut payload);
        slot.write(&payload, &footer);
        RemoteRef { chunk: slot.chunk.id(), slot: slot.index, file: FILE, block, generation }
    }

    /// Makes a page's footer, and seals the payload where pages are sealed.
    pub fn footer(
        &self,
        block: u64,
        generation: u64,
        version: u64,
        payload: &mut [u8],
    ) -> [u8; FOOTER_LEN] {
        let footer = Footer {
            kind: Kind::Data,
            sealed: false,
            epoch: self.key.footer_epoch(),
            last: false,
            valid: PAGE as u32,
            file: FILE,
            block,
            generation,
            version,
        };
        match &*self.key {
            FileKey::Sealed(key) => footer.seal(payload, key),
            _ => footer.encode(payload),
        }
    }

    /// Calls of [`Service::message`].
    pub fn calls(&self) -> usize {
        self.service.0.change(|seen| seen.calls)
    }

    pub fn wait_closed(&self, link: u64) -> LinkError {
        self.service.0.wait("the closing of a link", |seen| {
            seen.closed.iter().find(|(id, _)| *id == link).map(|(_, reason)| reason.clone())
        })
    }
}

/// What a client receives.
#[derive(Default)]
pub struct Inbox {
    pub messages: Mutex<VecDeque<(Vec<u8>, Vec<u8>)>>,
    pub closed: Mutex<Vec<LinkError>>,
}

impl Receiver for Inbox {
    fn message(&self, head: &[u8], data: &[u8]) {
        self.messages.lock().unwrap().push_back((head.to_vec(), data.to_vec()));
    }

    fn closed(&self, error: LinkError) {
        self.closed.lock().unwrap().push(error);
    }
}

/// A connected client and the server's side of it.
pub struct Client {
    pub endpoint: Arc<dyn Endpoint>,
    pub receiver: Arc<Inbox>,
    pub link: Arc<dyn Link>,
    pub key: Arc<FileKey>,
    /// What it may do once it may.
    pub access: ReadAccess,
}

pub const MESSAGES: Interest = Interest { messages: true, reads: false };
pub const READS: Interest = Interest { messages: false, reads: true };
pub const BOTH: Interest = Interest { messages: true, reads: true };

impl Client {
    /// Lets it read.
    pub fn allow(&self) {
        self.link.allow_reads(Some(self.access.clone()));
    }

    /// Lends memory to be read as it is: what is offered after a handshake is sealed.
    pub fn lend(&self, data: Vec<Segment>) -> ordma::Tag {
        match self.endpoint.channel() {
            None => self.endpoint.offer(data).0,
            Some(_) => self.endpoint.advertise(data),
        }
    }

    /// Returns when all that the server has said so far, permissions and chunks included, is known.
    pub fn catch_up(&self) {
        self.echo(b"e", &[]);
    }

    /// Drives until `f` has a result.
    pub fn until<R>(&self, interest: Interest, what: &str, f: impl FnMut() -> Option<R>) -> R {
        drive_until(&*self.endpoint, interest, what, f)
    }

    pub fn message(&self) -> (Vec<u8>, Vec<u8>) {
        self.until(MESSAGES, "a message", || self.receiver.messages.lock().unwrap().pop_front())
    }

    pub fn closed(&self) -> LinkError {
        self.until(MESSAGES, "the end", || self.receiver.closed.lock().unwrap().first().cloned())
    }

    pub fn echo(&self, head: &[u8], data: &[u8]) {
        let segments = [segment(data.to_vec())];
        self.endpoint.send(head, if data.is_empty() { &[] } else { &segments }).unwrap();
        assert!(self.message() == (head.to_vec(), data.to_vec()), "an echo of {}", data.len());
    }

    pub fn transfer(&self, transfer: Transfer) -> Result<Vec<u8>, LinkError> {
        let mut transfer = pin!(transfer);
        self.until(MESSAGES, "a transfer", || {
            let mut cx = Context::from_waker(Waker::noop());
            match transfer.as_mut().poll(&mut cx) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            }
        })
    }

    /// Reads pages: the byte that each is filled with, or the fault.
    pub fn read(&self, pages: &[(RemoteRef, u64)]) -> Vec<Result<(u8, u64), AccessFault>> {
        let region = Region::owned(vec![0xEE; pages.len() * PAGE]);
        let mut reads = PageReads::into(&region, PAGE, &self.key, pages.len());
        for (i, (reference, floor)) in pages.iter().enumerate() {
            reads.push(*reference, *floor, i * PAGE);
        }
        let batch = self.endpoint.read(reads);
        let outcomes = self.finish(&batch);
        let bytes = region.take().unwrap();
        let pages = bytes.chunks(PAGE).zip(outcomes);
        pages
            .map(|(page, outcome)| {
                assert!(page.iter().all(|b| *b == page[0]), "a mixed page");
                match outcome {
                    Ok(footer) => Ok((page[0], footer.version)),
                    Err(fault) => {
                        assert_eq!(page[0], 0, "the place of a faulted page is zeroed");
                        Err(fault)
                    }
                }
            })
            .collect()
    }

    /// Has the server place slots, and judges them: the byte that each page is filled with and its
    /// version, or the fault.
    pub fn place(&self, pages: &[(Slot, RemoteRef)]) -> Vec<Result<(u8, u64), AccessFault>> {
        let len = pages.len() * (FOOTER_LEN + PAGE);
        let region = Region::owned(vec![0xEE; len]);
        let tag = self.endpoint.advertise(vec![region.segment(0, len)]);
        let slots: Vec<Slot> = pages.iter().map(|(slot, _)| slot.clone()).collect();
        // The server knows the buffer, as it does where a request names it.
        self.catch_up();
        self.transfer(self.link.place_slots(tag, &slots)).unwrap();
        self.link.send(b"placed", &[]);
        assert_eq!(self.message().0, b"placed");
        assert_eq!(self.endpoint.withdraw(tag), len as u64);
        let mut bytes = region.take().unwrap();
        let (footers, payloads) = bytes.split_at_mut(pages.len() * FOOTER_LEN);
        let found = footers.as_chunks::<FOOTER_LEN>().0.iter().zip(payloads.chunks_mut(PAGE));
        let judged = found.zip(pages).map(|((footer, payload), (_, reference))| {
            let footer = ordma::slot::accept(footer, payload, reference, 0, &self.key)?;
            assert!(payload.iter().all(|byte| *byte == payload[0]), "a mixed page");
            Ok((payload[0], footer.version))
        });
        judged.collect()
    }

    pub fn read_one(&self, reference: RemoteRef) -> Result<u8, AccessFault> {
        self.read(&[(reference, 0)])[0].map(|(byte, _)| byte)
    }

    /// Reads a page with another key than the right one.
    pub fn read_with(&self, key: FileKey, reference: RemoteRef) -> Result<u8, AccessFault> {
        let region = Region::owned(vec![0xEE; PAGE]);
        let read = one_page(&region, &Arc::new(key), reference);
        let outcome = self.finish(&self.endpoint.read(read))[0];
        let bytes = region.take().unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixed page");
        assert!(outcome.is_ok() || bytes[0] == 0, "the place of a faulted page is zeroed");
        outcome.map(|_| bytes[0])
    }

    pub fn finish(&self, batch: &Arc<ReadBatch>) -> Vec<Result<Footer, AccessFault>> {
        self.until(READS, "a batch", || poll_batch(batch))
    }
}

/// A page to be read into a region of its size.
pub fn one_page(region: &Region, key: &Arc<FileKey>, reference: RemoteRef) -> PageReads {
    let mut reads = PageReads::into(region, region.len(), key, 1);
    reads.push(reference, 0, 0);
    reads
}

pub fn poll_batch(batch: &ReadBatch) -> Option<Vec<Result<Footer, AccessFault>>> {
    match batch.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcomes) => Some(outcomes),
        Poll::Pending => None,
    }
}

pub fn drive_until<R>(
    endpoint: &dyn Endpoint,
    interest: Interest,
    what: &str,
    mut f: impl FnMut() -> Option<R>,
) -> R {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = f() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        // Short, since a test may also wait for what no drive call is told of.
        endpoint.drive(interest, Duration::from_millis(20));
    }
}

/// A segment that is a whole buffer of its own.
pub fn segment(bytes: Vec<u8>) -> Segment {
    let len = bytes.len();
    Region::owned(bytes).segment(0, len)
}

/// Waits for a future that other threads complete.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited in vain for a future");
        std::thread::park_timeout(left);
    }
}

/// Lets this process have as many descriptors as it can, for both ends of many connections; how many.
pub fn raise_descriptors() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    limit
}

/// Bytes that are not all alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

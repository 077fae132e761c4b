//! What every engine offers.
//!
//! An engine carries messages both ways, moves bulk data into and out of buffers that the client
//! advertised, and reads the server's slots one-sidedly. The server side is driven by the engine's
//! own threads, which call a [`Service`]; the client side is driven by whoever waits, through
//! [`Endpoint::drive`], so that a blocking caller needs no other thread.

use crate::arena::{Arena, Chunk, Geometry, Slot, copy_slots};
use crate::party::Party;
use crate::region::{Region, Segment};
use crate::slot::Footer;
use crate::{AccessFault, ChunkId, RemoteRef};
use dafs_keys::secret::MacKey;
use dafs_keys::{FileKey, PageTagKey, Protection, PublicKey, Secret, WriteKey};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What an engine, on this connection, can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The engine's name: `tcp`, `shm`, `sim`.
    pub engine: &'static str,
    /// Sizes of the server's chunks, or `None` before the peer told.
    pub geometry: Option<Geometry>,
    /// One-sided reads complete while they are posted, at the cost of a copy.
    pub local_reads: bool,
    /// Most pages worth posting in one [`Endpoint::read`].
    pub read_batch: usize,
    /// One-sided requests bear tags that the server's side checks: exports at level `keyed` can be
    /// served.
    pub tags: bool,
    /// The server places slots without copying them first: [`Link::place_slots`] is worth it.
    pub places_slots: bool,
}

/// Why a connection ended or was not made. Says what happened and to what.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection could be made.
    #[error("cannot connect to {target}: {reason}")]
    Connect {
        /// What was tried.
        target: String,
        /// Why not.
        reason: String,
    },
    /// No listener could be opened.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The connection was lost.
    #[error("connection to {peer} lost: {reason}")]
    Lost {
        /// The other side.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The peer broke the engine's protocol.
    #[error("{peer} broke the protocol: {reason}")]
    Protocol {
        /// The other side.
        peer: String,
        /// How.
        reason: String,
    },
    /// This side closed the connection.
    #[error("connection closed: {0}")]
    Closed(String),
}

/// Names a buffer that the client advertised.
pub type Tag = u64;

// ---------------------------------------------------------------------------------------------
// Server side

/// The server, as an engine sees it. Called from the engine's threads; must not block.
pub trait Service: Send + Sync {
    /// A client connected.
    fn connected(&self, link: Arc<dyn Link>);
    /// A message arrived. `data` is the bulk part that came with it, empty where there is none.
    fn message(&self, link: &Arc<dyn Link>, head: &[u8], data: &[u8]);
    /// The connection is gone. Called once, after which the engine forgets the link.
    fn closed(&self, link: &Arc<dyn Link>, reason: &LinkError);
}

/// The server's side of one client's connection.
pub trait Link: Send + Sync + fmt::Debug {
    /// Distinguishes the link from all others of this process.
    fn id(&self) -> u64;
    /// What the handshake showed, where there was one.
    fn channel(&self) -> Option<&Arc<Established>> {
        None
    }
    /// The client, for logs.
    fn peer(&self) -> String;
    /// What the connection can do.
    fn capabilities(&self) -> Capabilities;
    /// Queues a message. Never blocks: a client that does not take its replies is cut off once the
    /// queue exceeds the engine's limit.
    fn send(&self, head: &[u8], data: &[u8]);
    /// Places `data` into the client's advertised buffer, from its start. Ordered before messages
    /// that are sent later, the next of which also tells the client what was placed. Done when the
    /// engine no longer needs the server's memory.
    fn write_to(&self, tag: Tag, data: Vec<u8>) -> Transfer;
    /// Like [`write_to`](Self::write_to) with the bytes of these slots: first all footers, then all
    /// payloads. Nothing looks whether the slots change meanwhile: what arrives of each may be torn, or
    /// of another page, and is for the client to judge. It is of a time between this call and the
    /// client's receiving a message that was sent after the transfer was done. The buffer that comes
    /// back is empty, or anything.
    fn place_slots(&self, tag: Tag, slots: &[Slot]) -> Transfer {
        self.write_to(tag, copy_slots(slots))
    }
    /// Fetches `buffer.len()` bytes from the client's advertised buffer at `offset`; the buffer
    /// comes back filled.
    fn read_from(&self, tag: Tag, offset: u64, buffer: Vec<u8>) -> Transfer;
    /// Opens what was fetched from a buffer that the client [offered](Endpoint::offer), in place,
    /// with the seal that it told. Where there was no handshake the data lies open, and the seal
    /// must be empty.
    ///
    /// # Errors
    /// [`LinkError::Protocol`] where the data is not what was sealed, which is garbage then, or the
    /// seal is not one for this link. The link stays as it is.
    fn open_data(&self, seal: &[u8], _data: &mut [u8]) -> Result<(), LinkError> {
        if seal.is_empty() {
            return Ok(());
        }
        let reason = "sealed data on a connection without a handshake".to_owned();
        Err(LinkError::Protocol { peer: self.peer(), reason })
    }
    /// Lets the client read one-sidedly, or (`None`) refuses it from now on with
    /// [`AccessFault::Revoked`]. Refused until allowed.
    fn allow_reads(&self, access: Option<ReadAccess>);
    /// Whose share of the server's memory the link takes from now on. Before, it is that of everyone
    /// at its address.
    fn belongs_to(&self, _party: Party) {}
    /// Ends the connection; [`Service::closed`] follows.
    fn close(&self, reason: &str);
}

/// What a handshake showed of the peer, and what both sides know since.
#[derive(Debug)]
pub struct Established {
    /// The peer's public key.
    pub peer: PublicKey,
    /// The least protection level that the client accepts.
    pub least: Protection,
    /// The connection's secret.
    pub secret: Secret,
    /// Seals write data (client) and opens it (server).
    pub writes: WriteKey,
    page_tags: OnceLock<PageTagKey>,
    /// Numbers of page tags given so far.
    tagged: AtomicU64,
}

impl Established {
    /// What follows from a handshake.
    #[must_use]
    pub fn new(peer: PublicKey, least: Protection, secret: Secret) -> Self {
        let writes = WriteKey::derive(&secret);
        let (page_tags, tagged) = (OnceLock::new(), AtomicU64::new(0));
        Self { peer, least, secret, writes, page_tags, tagged }
    }

    /// Tags pages in replies (server) and checks them (client), at level `keyed`.
    pub fn page_tags(&self) -> &PageTagKey {
        self.page_tags.get_or_init(|| PageTagKey::derive(&self.secret))
    }

    /// The first of `count` numbers for page tags that have not been used on the connection.
    pub fn take_tag_numbers(&self, count: u64) -> u64 {
        self.tagged.fetch_add(count, Ordering::Relaxed)
    }
}

/// How the one-sided reads of a link's client are checked.
#[derive(Clone, Debug, Default)]
pub struct ReadAccess {
    /// Where there was a handshake, the connection's secret: only a second connection that proves
    /// to know it is answered.
    pub connection: Option<Secret>,
    /// The session's secret, under which requests for pages of chunks with [`Guard::Tags`] bear
    /// tags; without it those pages are refused.
    ///
    /// [`Guard::Tags`]: crate::arena::Guard::Tags
    pub session: Option<MacKey>,
}

/// A transfer under way: resolves to the buffer it was given.
#[derive(Clone, Debug, Default)]
pub struct Transfer(Arc<UnderWay>);

#[derive(Debug)]
struct UnderWay {
    outcome: Completion<Result<Vec<u8>, LinkError>>,
    moved: AtomicU64,
}

impl Default for UnderWay {
    fn default() -> Self {
        Self { outcome: Completion::default(), moved: AtomicU64::new(UNTOLD) }
    }
}

/// Nobody has said how far a transfer is.
const UNTOLD: u64 = u64::MAX;

impl Transfer {
    /// A transfer that is not done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the transfer. Only the first call counts.
    pub fn complete(&self, result: Result<Vec<u8>, LinkError>) {
        self.0.outcome.complete(result);
    }

    /// Whether it is the same one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Says how far the transfer is: how many bytes of it have been moved.
    pub fn advance(&self, moved: u64) {
        self.0.moved.store(moved, Ordering::Relaxed);
    }

    /// How many bytes of it have been moved; `None` where the engine does not say.
    #[must_use]
    pub fn moved(&self) -> Option<u64> {
        let moved = self.0.moved.load(Ordering::Relaxed);
        (moved != UNTOLD).then_some(moved)
    }
}

impl Future for Transfer {
    type Output = Result<Vec<u8>, LinkError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.outcome.poll_take(cx)
    }
}

/// A listening engine.
pub trait Listener: Send + Sync + fmt::Debug {
    /// Where clients reach it, in a form that [`Engine::connector`] takes.
    fn address(&self) -> String;
    /// Makes a chunk readable to the links that may read. Must come before the first message that
    /// refers to the chunk.
    fn export(&self, chunk: &Arc<Chunk>);
    /// Tells all links to let go of a chunk whose slots are dead. Resolves when each has, or after
    /// `patience`, when those that have not are closed.
    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Pages asked for one-sidedly that were not given because the request bore no right tag, or
    /// came twice.
    fn refused(&self) -> u64 {
        0
    }
    /// Stops listening and closes all links.
    fn stop(&self);
}

// ---------------------------------------------------------------------------------------------
// Client side

/// What a client does with what arrives. Called while someone is in [`Endpoint::drive`].
pub trait Receiver: Send + Sync {
    /// A message arrived.
    fn message(&self, head: &[u8], data: &[u8]);
    /// The connection is lost; no message and no one-sided read succeeds from now on.
    fn closed(&self, error: LinkError);
}

/// What a caller of [`Endpoint::drive`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// A message or a direct transfer.
    pub messages: bool,
    /// The completion of one-sided reads.
    pub reads: bool,
}

/// The client's side of a connection.
pub trait Endpoint: Send + Sync + fmt::Debug {
    /// What the connection can do.
    fn capabilities(&self) -> Capabilities;
    /// The server, for logs.
    fn peer(&self) -> String;
    /// Sends a message with `data` behind it. Blocks only while the peer does not take what was
    /// sent, and keeps receiving meanwhile.
    ///
    /// # Errors
    /// When the connection is lost.
    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError>;
    /// Advertises memory, the segments as one buffer, for the server to write into until
    /// [`withdraw`](Self::withdraw).
    fn advertise(&self, buffer: Vec<Segment>) -> Tag;
    /// Advertises the data, or a copy of it, for the server to read until
    /// [`withdraw`](Self::withdraw): sealed under a key of the connection where there was a handshake. Also returns the seal, empty where there is none, which the
    /// server needs to open what it has read.
    fn offer(&self, data: Vec<Segment>) -> (Tag, Vec<u8>) {
        (self.advertise(data), Vec::new())
    }
    /// What the handshake showed, where there was one.
    fn channel(&self) -> Option<&Arc<Established>> {
        None
    }
    /// The handshake is done: proves to the server that the connection for one-sided reads is the
    /// same client's. Only the first call counts. Nothing where reads need no connection of their
    /// own.
    fn prove(&self, _connection: &Secret) {}
    /// Ends what [`advertise`](Self::advertise) or [`offer`](Self::offer) began. After it returns no
    /// byte of the buffer is written or read under the tag. Returns how many bytes the server had
    /// placed, as far as it has said so: what was placed before a message was sent is known when
    /// that message has arrived.
    fn withdraw(&self, tag: Tag) -> u64;
    /// Posts one-sided reads. The batch completes while someone drives the endpoint, or at once
    /// (see [`Capabilities::local_reads`]).
    fn read(&self, reads: PageReads) -> Arc<ReadBatch>;
    /// Whether one-sided reads are worth posting now. `false` while what carries them is being set up
    /// again after a fault that a NIC met: they would fault, each, and say nothing of the pages that
    /// they are for. Messages and direct transfers go on meanwhile.
    fn reads_now(&self) -> bool {
        true
    }
    /// Waits, at most `timeout`, until something of interest has arrived or another thread has made
    /// progress, and handles what has arrived. Returns early without a reason at times: callers
    /// loop. Of several callers one drives; the others sleep until it has made progress or stops.
    fn drive(&self, interest: Interest, timeout: Duration);
    /// Ends every [`drive`](Self::drive) call under way, early.
    fn interrupt(&self);
    /// Closes the connection.
    fn close(&self);
}

/// One page to be read one-sidedly, of those in [`PageReads`].
#[derive(Clone, Copy, Debug)]
pub struct PageRead {
    /// Which page.
    pub reference: RemoteRef,
    /// The least version that is acceptable.
    pub floor: u64,
    /// Which of the regions the payload goes to, and where in it it begins.
    region: u32,
    start: usize,
}

/// Pages of one file to be read one-sidedly together: all under one key, and most of them into one
/// region, so that neither is named for each.
#[derive(Clone, Debug)]
pub struct PageReads {
    key: Arc<FileKey>,
    page_size: usize,
    pages: Vec<PageRead>,
    first: Region,
    /// The other regions.
    more: Vec<Region>,
}

impl PageReads {
    /// No pages yet, of what will be about so many, to be put into `region`. `key` is what it takes to
    /// read pages of the file.
    #[must_use]
    pub fn into(region: &Region, page_size: usize, key: &Arc<FileKey>, count: usize) -> Self {
        let (key, pages) = (Arc::clone(key), Vec::with_capacity(count));
        Self { key, page_size, pages, first: region.clone(), more: Vec::new() }
    }

    /// Pages that follow go to this region.
    pub fn turn_to(&mut self, region: &Region) {
        if !self.more.last().unwrap_or(&self.first).same(region) {
            self.more.push(region.clone());
        }
    }

    /// One more page: `floor` is the least version that is acceptable, and `start` where in the region
    /// its payload begins, which is zeroed on a fault.
    ///
    /// # Panics
    /// If a page has no room there.
    pub fn push(&mut self, reference: RemoteRef, floor: u64, start: usize) {
        let room = self.more.last().unwrap_or(&self.first).len();
        assert!(start.checked_add(self.page_size).is_some_and(|end| end <= room));
        // There are fewer regions than pages, and those fit into memory.
        let region = u32::try_from(self.more.len()).unwrap_or(u32::MAX);
        self.pages.push(PageRead { reference, floor, region, start });
    }

    /// The pages, in the order in which they were asked for.
    #[must_use]
    pub fn pages(&self) -> &[PageRead] {
        &self.pages
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// What it takes to read pages of the file.
    #[must_use]
    pub fn key(&self) -> &FileKey {
        &self.key
    }

    /// Runs `f` on the place of one of the pages, or returns `None` if the region was withdrawn. Must not
    /// block.
    pub fn with_place<R>(&self, page: &PageRead, f: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        self.region(page).with_part(page.start, self.page_size, f)
    }

    /// The region that a page goes to.
    pub(crate) fn region(&self, page: &PageRead) -> &Region {
        match page.region.checked_sub(1) {
            None => &self.first,
            Some(at) => &self.more[at as usize],
        }
    }

    /// Where a page goes: the region, the first byte, and how many there are.
    pub(crate) fn place(&self, page: &PageRead) -> (&Region, usize, usize) {
        (self.region(page), page.start, self.page_size)
    }

    /// Whether requests for the pages have to bear tags.
    pub(crate) fn is_tagged(&self) -> bool {
        matches!(*self.key, FileKey::Keyed(_))
    }

    /// Why no page can be read from a server with pages of this size, which can be shown tags or
    /// not.
    pub(crate) fn unfit(&self, page_size: usize, tags: bool) -> Option<AccessFault> {
        if self.is_tagged() && !tags {
            return Some(AccessFault::Revoked);
        }
        // Places of another size are the caller's mistake: nothing can be put there.
        (self.page_size != page_size).then_some(AccessFault::Stale)
    }

    /// Puts some of the pages into their places, those that go to the same region under one lock. `put`
    /// is told the place that the outcome will have in `outcomes`.
    pub(crate) fn put(
        &self,
        pages: &[PageRead],
        outcomes: &mut Vec<Outcome>,
        mut put: impl FnMut(usize, &PageRead, &mut [u8]) -> Outcome,
    ) {
        for pages in pages.chunk_by(|a, b| a.region == b.region) {
            let start = outcomes.len();
            if let Some(mut memory) = self.region(&pages[0]).writable() {
                outcomes.extend(pages.iter().enumerate().map(|(at, page)| {
                    let place = memory.part(page.start, self.page_size);
                    place.map_or(Err(AccessFault::Stale), |place| put(start + at, page, place))
                }));
            }
            // A place that is gone gets nothing.
            outcomes.resize(start + pages.len(), Err(AccessFault::Unreachable));
        }
    }
}

/// What came of a page.
pub type Outcome = Result<Footer, AccessFault>;

/// One-sided reads posted together.
#[derive(Debug)]
pub struct ReadBatch {
    /// What was asked for.
    pub reads: PageReads,
    ended: AtomicBool,
    outcome: Completion<Vec<Outcome>>,
}

impl ReadBatch {
    /// A batch that is not done yet.
    #[must_use]
    pub fn new(reads: PageReads) -> Arc<Self> {
        Arc::new(Self { reads, ended: AtomicBool::new(false), outcome: Completion::default() })
    }

    /// Ends the batch: one outcome per page, in order; payloads of faulted pages are zeroed here.
    /// Only the first call counts: after it the buffers are the caller's again.
    ///
    /// # Panics
    /// If the counts differ.
    pub fn complete(&self, outcome: Vec<Outcome>) {
        assert_eq!(outcome.len(), self.reads.pages.len());
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        for (page, result) in self.reads.pages.iter().zip(&outcome) {
            if result.is_err() {
                self.reads.with_place(page, |bytes| bytes.fill(0));
            }
        }
        self.outcome.complete(outcome);
    }

    /// Ends the batch with the same fault for each page, unless it has ended.
    pub fn fail(&self, fault: AccessFault) {
        self.complete(vec![Err(fault); self.reads.pages.len()]);
    }

    /// The outcomes, once.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Vec<Outcome>> {
        self.outcome.poll_take(cx)
    }
}

/// Makes connections to one server.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached within `timeout` or speaks another protocol.
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError>;
    /// The server's address, for messages.
    fn target(&self) -> String;
    /// The current time, on the engine's clock.
    fn now(&self) -> std::time::Instant {
        std::time::Instant::now()
    }
}

/// A transport.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The engine's name in configuration and addresses.
    fn name(&self) -> &'static str;
    /// Listens for clients of `service`, whose pages lie in `arena`.
    ///
    /// # Errors
    /// When the address cannot be used.
    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError>;
    /// A connector to the server at `address`.
    fn connector(&self, address: &str) -> Arc<dyn Connector>;
}

// ---------------------------------------------------------------------------------------------

/// A result that one side sets and the other awaits.
#[derive(Debug)]
struct Completion<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    Taken,
}

impl<T> Default for Completion<T> {
    fn default() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }
}

impl<T> Completion<T> {
    fn complete(&self, value: T) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Done(value);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(value) => Poll::Ready(value),
            State::Waiting(_) => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            // Polled again after it was ready: stays pending, as futures may.
            State::Taken => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    #[test]
    fn a_batch_that_has_ended_leaves_its_buffers_alone() {
        let region = Region::owned(vec![7; 16]);
        let reference = RemoteRef { chunk: 0, slot: 0, file: 1, block: 2, generation: 3 };
        let mut reads = PageReads::into(&region, 16, &FileKey::clear(), 1);
        reads.push(reference, 0, 0);
        let batch = ReadBatch::new(reads);
        batch.fail(AccessFault::Torn);
        assert_eq!(region.with(|bytes| bytes.to_vec()), Some(vec![0; 16]));
        // The caller gets the page in another way now.
        region.with(|bytes| bytes.fill(9));
        batch.fail(AccessFault::Unreachable);
        let polled = batch.poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(vec![Err(AccessFault::Torn)]));
        assert_eq!(region.take(), Some(vec![9; 16]));
    }
}

//! The server: exports, sessions, page cache, and what ends them.

mod fencing;
mod links;

pub use fencing::{CutOff, FenceError};

use crate::access::Access;
use crate::buffers::Buffers;
use crate::cache::{Cache, Flush, Standstill};
use crate::counters::Counters;
use crate::keyed_locks::KeyedLocks;
use crate::live::LiveSession;
use crate::ops::OpError;
use crate::runtime::{Disk, Runtime};
use crate::session::SessionLimits;
use crate::sessions::Sessions;
use crate::store::{Handle, Identity, ReadOnlyStore, Store};
use crate::sync::{Mutex, RwLock};
use crate::transfers::Transfers;
use dafs_keys::{HandleKey, Protection};
use dafs_proto::Status;
use foldhash::fast::RandomState;
use ordma::{Link, Party, Share, Shares};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// A directory tree the server offers.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name clients ask for.
    pub name: String,
    /// Where its files are.
    pub store: Arc<dyn Store>,
    /// Nothing is changed.
    pub read_only: bool,
    /// How its pages are guarded.
    pub protection: Protection,
    /// Signs the handles that clients get, so that they can send no other ones.
    pub handles: HandleKey,
}

impl Export {
    /// The same export for a client that may change nothing in it: its store refuses what would.
    pub(crate) fn for_reading(&self) -> Self {
        let store = Arc::new(ReadOnlyStore::new(Arc::clone(&self.store)));
        Self { read_only: true, store, ..self.clone() }
    }

    /// What calls of its store wait for.
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk::of_export(&self.name)
    }

    /// The handle that a client sent. It is not used for anything before its check has been found
    /// right.
    ///
    /// # Errors
    /// [`Status::StaleHandle`] where this export has not given it out.
    pub fn handle(&self, wire: &[u8]) -> Result<Handle, OpError> {
        match self.handles.verify(wire) {
            Some(handle) => Ok(Handle::from_wire(handle)?),
            None => {
                let what = format!(
                    "the handle was not given out by export {:?} of this server: look the name up \
                     again",
                    self.name
                );
                Err(OpError::new(Status::StaleHandle, what))
            }
        }
    }

    /// A handle as clients get it.
    #[must_use]
    pub fn wire(&self, handle: &Handle) -> Vec<u8> {
        self.handles.sign(handle.as_bytes())
    }
}

/// Largest sizes of what a client may send and ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a page.
    pub page_size: usize,
    /// Bytes of the data part of an inline request or reply, footers included.
    pub max_inline: u32,
    /// Bytes of the data part of a direct transfer, footers included.
    pub max_transfer: u32,
}

/// What the server is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Largest sizes in requests and replies.
    pub limits: Limits,
    /// Sizes of a session.
    pub session: SessionLimits,
    /// Most sessions.
    pub max_sessions: usize,
    /// How long a connection may live without a session.
    pub connect_timeout: Duration,
    /// Most bytes of inline data of requests that are being executed.
    pub data_in_flight: usize,
    /// Direct transfers under way at the same time: half of them from clients, half to them.
    pub transfers: usize,
}

/// Buffers that are kept for the next direct transfer: enough for a few at a time, and little enough
/// to keep when there is none.
const KEPT_BUFFERS: usize = 8;

/// The time now. A function, for engines with a clock of their own.
pub type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// The server.
pub struct Server {
    settings: Settings,
    runtime: Runtime,
    cache: Arc<Cache>,
    exports: Vec<Arc<Export>>,
    access: Access,
    clock: Clock,
    sessions: Mutex<Sessions<LiveSession>>,
    /// Sessions that have ended, some with requests that are still being executed. Locked after
    /// `sessions`, and both while a session goes from there to here.
    ended: Mutex<Vec<Arc<LiveSession>>>,
    links: RwLock<HashMap<u64, Connection, RandomState>>,
    counters: Counters,
    /// Held while the attributes of a file are looked at and changed.
    attributes: KeyedLocks<Identity>,
    fetches: Arc<Transfers>,
    placings: Arc<Transfers>,
    buffers: Buffers,
    shm_socket: OnceLock<String>,
    verbs_address: OnceLock<String>,
    /// All listeners have all chunks: from now on a reply may refer to one.
    ready: (Mutex<bool>, Condvar),
    stopping: AtomicBool,
    /// Requests being executed.
    running: AtomicUsize,
    /// Bytes of their inline data.
    data: Arc<Shares>,
}

/// A link and what is known of it.
#[derive(Debug)]
struct Connection {
    link: Arc<dyn Link>,
    /// Whose share it takes as long as it has no session: that of its address.
    party: Party,
    session: Option<Arc<LiveSession>>,
    since: Instant,
    /// A CONNECT is being executed.
    connecting: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("boot", &self.boot()).finish_non_exhaustive()
    }
}

/// A request that is being executed, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    server: Arc<Server>,
    /// What its inline data takes.
    data: Option<Share>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.data = None;
        self.server.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why a session could not take its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindError {
    /// The connection is gone.
    Gone,
    /// The connection has a session already.
    Link,
    /// The connection is getting one.
    Connecting,
    /// The session has ended.
    Session,
}

/// How long a disk may take to say where files lie that could not be written.
const NAMES_PATIENCE: Duration = Duration::from_secs(1);

/// What was written and is lost, since it could not be made stable before the end.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", errors.join("; "), listed(files))]
pub struct NotWritten {
    /// Why, of each export.
    pub errors: Vec<String>,
    /// The files that have lost something: where they lie, and how many bytes at most.
    pub files: Vec<(String, usize)>,
}

/// Names some files.
fn listed(files: &[(String, usize)]) -> String {
    const MOST: usize = 20;
    let mut text: String = files
        .iter()
        .take(MOST)
        .map(|(place, bytes)| format!("\n  not written: up to {bytes} bytes of {place:?}"))
        .collect();
    if files.len() > MOST {
        text += &format!("\n  and of {} other files", files.len() - MOST);
    }
    text
}

impl Server {
    /// A server that nobody is connected to yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        exports: Vec<Export>,
        access: Access,
        cache: Arc<Cache>,
        runtime: Runtime,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            cache,
            exports: exports.into_iter().map(Arc::new).collect(),
            access,
            clock,
            sessions: Mutex::new(Sessions::new(settings.max_sessions)),
            ended: Mutex::default(),
            links: RwLock::default(),
            counters: Counters::default(),
            attributes: KeyedLocks::default(),
            fetches: Transfers::new(settings.transfers / 2),
            placings: Transfers::new(settings.transfers.div_ceil(2)),
            buffers: Buffers::new(KEPT_BUFFERS),
            shm_socket: OnceLock::new(),
            verbs_address: OnceLock::new(),
            ready: (Mutex::new(false), Condvar::new()),
            stopping: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            data: Shares::new(settings.data_in_flight),
            settings,
        })
    }

    /// Largest sizes in requests and replies.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.settings.limits
    }

    /// Sizes of sessions.
    #[must_use]
    pub fn session_limits(&self) -> SessionLimits {
        self.settings.session
    }

    /// Distinguishes this run of the server from all others.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.cache.boots().boot()
    }

    /// Where work runs.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The page cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What is offered.
    #[must_use]
    pub fn exports(&self) -> &[Arc<Export>] {
        &self.exports
    }

    /// Who may do what.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Counters of requests.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The lock under which the attributes of a file are changed: what they were before is known only
    /// to who changes them alone.
    pub(crate) fn attributes(&self) -> &KeyedLocks<Identity> {
        &self.attributes
    }

    /// Bounds the direct transfers to clients that are under way, and with them the memory they
    /// take.
    #[must_use]
    pub fn placings(&self) -> &Arc<Transfers> {
        &self.placings
    }

    /// Bounds the direct transfers from clients, whose data may wait for a disk. They have permits
    /// of their own, so that no reader waits for that.
    #[must_use]
    pub fn fetches(&self) -> &Arc<Transfers> {
        &self.fetches
    }

    /// Buffers of direct transfers, for the next one.
    #[must_use]
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Path of the socket of the engine `shm`, or empty.
    #[must_use]
    pub fn shm_socket(&self) -> &str {
        self.shm_socket.get().map_or("", String::as_str)
    }

    /// Tells clients of this host where the engine `shm` listens. Only the first call counts.
    pub fn set_shm_socket(&self, path: String) {
        // A second socket serves as well as the first.
        let _ = self.shm_socket.set(path);
    }

    /// Where the engine `verbs` listens, or empty: `host:port`, and a wildcard for any host of the
    /// server's.
    #[must_use]
    pub fn verbs_address(&self) -> &str {
        self.verbs_address.get().map_or("", String::as_str)
    }

    /// Tells clients where the engine `verbs` listens. Only the first call counts.
    pub fn set_verbs_address(&self, address: String) {
        // As with the socket.
        let _ = self.verbs_address.set(address);
    }

    /// All listeners are there. Until then nobody gets beyond connecting.
    pub fn set_ready(&self) {
        *self.ready.0.lock() = true;
        self.ready.1.notify_all();
    }

    fn wait_ready(&self) {
        let mut ready = self.ready.0.lock();
        while !*ready {
            ready = self.ready.1.wait(ready).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the server is stopping.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// How many sessions there are, and files open in them.
    #[must_use]
    pub fn session_counts(&self) -> (usize, usize) {
        let sessions = self.sessions.lock();
        (sessions.len(), sessions.iter().map(|session| session.open_count()).sum())
    }

    /// How many connections there are.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links.read().len()
    }

    /// A request of `party` with this much inline data begins.
    ///
    /// # Errors
    /// The server is stopping, or too much data is under way.
    pub(crate) fn begin_request(
        self: &Arc<Self>,
        party: Party,
        data: usize,
    ) -> Result<Running, OpError> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let mut running = Running { server: Arc::clone(self), data: None };
        if self.stopping() {
            return Err(OpError::new(Status::ServerStopping, "the server is stopping"));
        }
        if data == 0 {
            return Ok(running);
        }
        match self.data.take(party, data) {
            Ok(share) => {
                running.data = Some(share);
                Ok(running)
            }
            Err(before) => {
                crate::counters::count(&self.counters.refused);
                let what = format!("{before} bytes of write data are waiting for the disk");
                Err(OpError::new(Status::TooManyRequests, what))
            }
        }
    }

    /// Refuses what is new, and waits at most `patience` until what is under way is done. `false`
    /// where some of it is not.
    pub fn drain(&self, patience: Duration) -> bool {
        self.stopping.store(true, Ordering::SeqCst);
        let end = Instant::now() + patience;
        while self.running.load(Ordering::SeqCst) > 0 {
            if Instant::now() >= end {
                return false;
            }
            if !self.runtime.run_queued() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        true
    }

    /// Makes everything stable, then kills all slots, so that nobody who still maps a chunk takes
    /// what is in it for the truth. Comes after [`drain`](Self::drain).
    ///
    /// # Errors
    /// When some data could not be written, or a disk has taken nothing for `patience`; the server must
    /// not pretend that it is.
    pub fn flush_and_kill(&self, patience: Duration) -> Result<(), NotWritten> {
        let flushes = self.cache.start_flush();
        let errors = self.end_of(flushes, patience);
        let files = if errors.is_empty() { Vec::new() } else { self.unstable_files() };
        if let Err(error) = self.cache.record_stable() {
            tracing::error!(%error, "clients will send again what is stable");
        }
        self.cache.close();
        if errors.is_empty() { Ok(()) } else { Err(NotWritten { errors, files }) }
    }

    /// Waits until the files of exports are stable, of each as long as its disk gets on: why they are
    /// not.
    fn end_of(&self, flushes: Vec<Arc<Flush>>, patience: Duration) -> Vec<String> {
        let mut errors = Vec::new();
        let watched = |flush: Arc<Flush>| (Standstill::new(flush.progress()), flush);
        let mut waiting: Vec<_> = flushes.into_iter().map(watched).collect();
        while !waiting.is_empty() {
            waiting.retain_mut(|(standstill, flush)| {
                if let Some(result) = flush.result() {
                    let failed = |error| format!("export {:?}: {error}", flush.export());
                    errors.extend(result.err().map(failed));
                    return false;
                }
                let gets_on = standstill.look(flush.progress()) < patience;
                if !gets_on {
                    let seconds = patience.as_secs();
                    let export = flush.export();
                    errors.push(format!(
                        "export {export:?}: its disk has taken nothing for {seconds} s"
                    ));
                }
                gets_on
            });
            if !self.runtime.run_queued() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        errors
    }

    /// The files that have something which is not stable, as far as the disks say in time where they
    /// lie.
    fn unstable_files(&self) -> Vec<(String, usize)> {
        let (sender, receiver) = mpsc::channel();
        let cache = Arc::clone(&self.cache);
        let asking = std::thread::Builder::new().name("dafs-names".to_owned()).spawn(move || {
            // The receiver may have lost patience.
            let _ = sender.send(cache.unstable_files());
        });
        match asking {
            Ok(_) => receiver.recv_timeout(NAMES_PATIENCE).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the files that were not written are not named");
                Vec::new()
            }
        }
    }
}

//! A session with a server: the pump around the plain data of slots, directory and heat.
//!
//! Operations are futures whose leaves wait for a reply or for one-sided reads. What arrives is
//! handled by whichever thread is in [`Endpoint::drive`]; see [`pump`] for who that is.
//!
//! Order of locks: `state` before a file's own; `table` and reply cells are taken alone. No lock is
//! held across a call into the endpoint.

pub(crate) mod batch;
mod connect;
mod direct;
mod keeper;
pub(crate) mod outstanding;
mod protected;
pub(crate) mod pump;
mod receive;
pub(crate) mod rpc;

use crate::counters::Counters;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::heat::Heat;
use crate::options::Options;
use crate::slots::Slots;
use crate::sync::lock;
use dafs_keys::{Protection, PublicKey};
use dafs_proto::{Attr, WireHeat};
use direct::Detour;
pub(crate) use keeper::Owner;
use ordma::{Connector, Endpoint, Footer, LinkError, Region};
use outstanding::Outstanding;
pub(crate) use protected::Protected;
use pump::Pump;
use rpc::CallError;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

/// Of how many one-sided page reads one is recorded as heat.
const HEAT_SAMPLING: u32 = 4;
/// Bounce pages kept for reuse.
const POOLED_PAGES: usize = 64;

/// What the server granted with the session.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) id: Vec<u8>,
    pub(crate) boot: u64,
    /// Counts the starts of the server's machine.
    pub(crate) machine_boot: u64,
    pub(crate) page_size: usize,
    pub(crate) max_inline: usize,
    pub(crate) max_transfer: usize,
    pub(crate) lease: Duration,
    pub(crate) read_only: bool,
    pub(crate) root: Vec<u8>,
    pub(crate) root_attr: Attr,
    pub(crate) shm_socket: String,
    pub(crate) verbs_address: String,
    pub(crate) level: Protection,
    /// The server's key, where there was a handshake.
    pub(crate) server_key: Option<PublicKey>,
}

/// The reference directory and the record of heat, which are used together.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) directory: Directory,
    pub(crate) heat: Heat,
}

/// A session with a server.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) options: Options,
    pub(crate) export: String,
    pub(crate) table: Mutex<Table>,
    pub(crate) counters: Counters,
    pub(crate) files: Files,
    pub(crate) pump: Pump,
    /// Bytes of uncommitted writes kept, over all files.
    pub(crate) retained: AtomicUsize,
    /// Names this client to the server, in all of its sessions.
    instance: [u8; 16],
    state: Mutex<State>,
    this: Weak<Session>,
    heat_tick: AtomicU32,
    bounce: Mutex<Vec<Region>>,
    detour: Mutex<Detour>,
    closing: AtomicBool,
    /// Whether to stop, for threads that sleep.
    stop: Mutex<bool>,
    stopped: Condvar,
}

#[derive(Debug)]
struct State {
    link: Link,
    /// Counts connections: what a former connection still says is ignored.
    epoch: u64,
    /// Counts sessions: opens of a former session mean nothing.
    session: u64,
    grant: Option<Arc<Grant>>,
    /// How the connection that `grant` came over is protected.
    protected: Protected,
    /// Whether the session of `grant` may be taken over by the next connection.
    resumable: bool,
    slots: Slots<Outstanding>,
    waiters: VecDeque<(u64, Waker)>,
    last_waiter: u64,
    /// Counts the times that the server was given up.
    given_up: u64,
    hello: Option<connect::Hello>,
}

#[derive(Debug)]
enum Link {
    /// Requests may be sent.
    Up(Arc<dyn Endpoint>),
    /// A new session: files are being opened again; nothing else may be sent.
    Recovering(Arc<dyn Endpoint>),
    /// There is no connection.
    Down(Outage),
    /// The client was closed.
    Closed,
}

#[derive(Debug)]
struct Outage {
    /// The connection that was lost, to be closed.
    old: Option<Arc<dyn Endpoint>>,
    since: Instant,
    /// When to give up; `None` after that, until an operation asks again.
    deadline: Option<Instant>,
    reason: String,
}

/// What is needed to send: the connection and what the server granted.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) epoch: u64,
    pub(crate) session: u64,
}

impl Session {
    /// A session that is not connected yet.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        export: &str,
        options: Options,
    ) -> Result<Arc<Self>> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance)
            .map_err(|error| Error::InvalidArgument(format!("random numbers: {error}")))?;
        let directory = Directory::new(options.directory_entries, options.replacement);
        let now = connector.now();
        let outage = Outage {
            old: None,
            since: now,
            deadline: Some(now + options.timeout),
            reason: "not connected yet".into(),
        };
        let state = State {
            link: Link::Down(outage),
            epoch: 0,
            session: 0,
            grant: None,
            protected: Protected::default(),
            resumable: false,
            slots: Slots::new(0),
            waiters: VecDeque::new(),
            last_waiter: 0,
            given_up: 0,
            hello: None,
        };
        Ok(Arc::new_cyclic(|this| Self {
            connector,
            options,
            export: export.into(),
            table: Mutex::new(Table { directory, heat: Heat::new() }),
            counters: Counters::default(),
            files: Files::default(),
            pump: Pump::new(),
            retained: AtomicUsize::new(0),
            instance,
            state: Mutex::new(state),
            this: this.clone(),
            heat_tick: AtomicU32::new(0),
            bounce: Mutex::default(),
            detour: Mutex::default(),
            closing: AtomicBool::new(false),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        }))
    }

    pub(crate) fn now(&self) -> Instant {
        self.connector.now()
    }

    /// The server, for messages.
    pub(crate) fn peer(&self) -> String {
        self.connector.target()
    }

    /// What the server granted last.
    ///
    /// # Errors
    /// Before the first connection.
    pub(crate) fn grant(&self) -> Result<Arc<Grant>> {
        lock(&self.state).grant.clone().ok_or_else(|| self.closed_error())
    }

    /// Counts sessions; the current one.
    pub(crate) fn number(&self) -> u64 {
        lock(&self.state).session
    }

    /// The connection, with the grant; `None` where there is none now.
    pub(crate) fn live(&self) -> Option<(Live, Arc<Grant>)> {
        let state = lock(&self.state);
        match (&state.link, &state.grant) {
            (Link::Up(endpoint), Some(grant)) => {
                let live = Live {
                    endpoint: Arc::clone(endpoint),
                    epoch: state.epoch,
                    session: state.session,
                };
                Some((live, Arc::clone(grant)))
            }
            _ => None,
        }
    }

    /// The same, where one-sided reads can be posted over it now.
    pub(crate) fn live_for_reads(&self) -> Option<(Live, Arc<Grant>)> {
        self.live().filter(|(live, _)| live.endpoint.reads_now())
    }

    /// The error after the client was closed.
    pub(crate) fn closed_error(&self) -> Error {
        Error::Closed(self.peer())
    }

    /// Whether the client was closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Records so many pages that were read one-sidedly; one of a few is kept.
    pub(crate) fn record_heat<'p>(&self, count: usize, pages: impl Iterator<Item = &'p Footer>) {
        // At most as many as fit a window.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let before = self.heat_tick.fetch_add(count, Ordering::Relaxed);
        let to_next = (HEAT_SAMPLING - before % HEAT_SAMPLING) % HEAT_SAMPLING;
        let mut sampled = pages.skip(to_next as usize).step_by(HEAT_SAMPLING as usize);
        let Some(first) = sampled.next() else { return };
        let mut table = lock(&self.table);
        for &Footer { file, block, generation, .. } in std::iter::once(first).chain(sampled) {
            table.heat.record(WireHeat { file, block, generation });
        }
    }

    /// A page of private memory, its content undefined.
    pub(crate) fn take_bounce(&self, page_size: usize) -> Region {
        let pooled = lock(&self.bounce).pop();
        match pooled {
            Some(region) if region.len() == page_size => region,
            _ => Region::owned(vec![0; page_size]),
        }
    }

    /// Gives a page back. Nothing may be under way into it.
    pub(crate) fn give_bounce(&self, region: Region) {
        let mut pool = lock(&self.bounce);
        if pool.len() < POOLED_PAGES {
            pool.push(region);
        }
    }

    /// A connection was lost. Outstanding requests stay, to be sent again.
    pub(crate) fn lost(&self, epoch: u64, error: &LinkError) {
        let mut state = lock(&self.state);
        if let Some(hello) = &mut state.hello
            && hello.epoch == epoch
        {
            hello.lost.get_or_insert_with(|| error.clone());
        }
        if self.go_down(&mut state, epoch, error.to_string()) {
            tracing::info!(server = %self.peer(), %error, "connection lost");
        }
    }

    /// Leaves the connection `epoch`, if it is the current one.
    fn go_down(&self, state: &mut State, epoch: u64, reason: String) -> bool {
        if state.epoch != epoch {
            return false;
        }
        let old = match &state.link {
            Link::Up(endpoint) => Arc::clone(endpoint),
            Link::Recovering(endpoint) => {
                // Half of the files may be open again in that session: begin with another one.
                state.resumable = false;
                Arc::clone(endpoint)
            }
            Link::Down(_) | Link::Closed => return false,
        };
        let now = self.now();
        state.link = Link::Down(Outage {
            old: Some(old),
            since: now,
            deadline: Some(now + self.options.timeout),
            reason,
        });
        true
    }

    /// The server broke the protocol on connection `epoch`: the connection is left, the session is
    /// not taken up again, and what was outstanding fails.
    pub(crate) fn violation(&self, epoch: u64, reason: &str) -> Error {
        let error = Error::Protocol { peer: self.peer(), reason: reason.into() };
        let mut state = lock(&self.state);
        if let Some(hello) = &mut state.hello
            && hello.epoch == epoch
        {
            let lost = LinkError::Protocol { peer: self.peer(), reason: reason.into() };
            hello.lost.get_or_insert(lost);
        }
        if self.go_down(&mut state, epoch, error.to_string()) {
            tracing::warn!(%error, "closing the connection");
            state.resumable = false;
            let outstanding = state.slots.end();
            drop(state);
            for request in outstanding {
                request.cell.complete(Err(CallError::Failed(error.clone())));
            }
        }
        error
    }

    /// The server does not know the session any more: the next connection begins a new one.
    fn session_lost(&self, epoch: u64, reason: &str) {
        let mut state = lock(&self.state);
        if self.go_down(&mut state, epoch, reason.into()) {
            tracing::info!(server = %self.peer(), reason, "session lost");
            state.resumable = false;
            let outstanding = state.slots.end();
            drop(state);
            for request in outstanding {
                request.lost();
            }
        }
    }

    /// Nobody waits for the server any longer: outstanding operations fail.
    fn give_up(&self) {
        let mut state = lock(&self.state);
        let now = self.now();
        let Link::Down(outage) = &mut state.link else { return };
        outage.deadline = None;
        let error = self.timeout(now.saturating_duration_since(outage.since), &outage.reason);
        tracing::warn!(%error, "operations fail");
        state.given_up += 1;
        // What was outstanding is reported as failed and must not be done behind the caller's back
        // by sending it again later.
        state.resumable = false;
        let outstanding = state.slots.end();
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        for request in outstanding {
            let unknown = request.sent && !rpc::repeatable(request.op);
            let error = if unknown {
                Error::OutcomeUnknown { op: request.op, what: format!("at {}", self.peer()) }
            } else {
                error.clone()
            };
            request.cell.complete(Err(CallError::Failed(error)));
        }
        waiters.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn timeout(&self, waited: Duration, reason: &str) -> Error {
        Error::Timeout { target: self.peer(), waited, reason: reason.into() }
    }

    /// Sleeps, unless the client is closed meanwhile.
    fn nap(&self, time: Duration) {
        let stop = lock(&self.stop);
        drop(self.stopped.wait_timeout_while(stop, time, |stop| !*stop));
    }
}

impl State {
    /// Wakes as many of those that wait for a slot as there are slots.
    fn wakeable(&mut self) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let count = self.slots.available().min(self.waiters.len());
        self.waiters.drain(..count).map(|(_, waker)| waker).collect()
    }
}

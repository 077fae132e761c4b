//! A session of the running server: its state under one lock.

use crate::access::Permit;
use crate::cache::{CachedFile, Standing, Told, Writer};
use crate::ops::{OpError, Open};
use crate::reply_cache::{Abandoned, Arrival, Begin, Ticket};
use crate::server::Export;
use crate::session::{Session, SessionLimits};
use crate::sessions::SessionId;
use crate::sharing::Owner;
use crate::store::Credential;
use crate::sync::Mutex;
use crate::transfers::Asking;
use crate::turns::Whose;
use dafs_keys::PublicKey;
use dafs_keys::secret::MacKey;
use dafs_proto::Status;
use event_listener::Event;
use foldhash::fast::RandomState;
use ordma::{Link, Party};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// An encoded reply, header and body.
pub type Message = Vec<u8>;

/// A session.
pub struct LiveSession {
    id: SessionId,
    export: Arc<Export>,
    client: String,
    permit: Option<Permit>,
    party: Party,
    reads: MacKey,
    writer: Writer,
    began: Instant,
    state: Mutex<Session<Message, Arc<dyn Link>, Arc<Open>>>,
    /// Requests being executed. Goes up under the lock of `state`, and not after the end.
    executing: AtomicUsize,
    /// It has come down to 0, or the session has ended.
    idle: Event,
    /// What the client knows once it uses a slot again. Locked alone.
    told: Mutex<HashMap<u16, Vec<Told>, RandomState>>,
    /// Files that it has removed while they were open.
    removed: Mutex<Vec<Weak<CachedFile>>>,
}

impl fmt::Debug for LiveSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSession")
            .field("id", &self.id)
            .field("client", &self.client_name().unwrap_or(&self.client))
            .field("export", &self.export.name)
            .field("credential", self.credential())
            .finish_non_exhaustive()
    }
}

/// Whose session it is.
#[derive(Debug)]
pub(crate) struct SessionClient {
    /// What the client calls itself.
    pub name: String,
    /// What it was granted, where it is known.
    pub permit: Option<Permit>,
    /// Whose share of the server it takes.
    pub party: Party,
    /// Whose its changes are until they are stable.
    pub owner: Arc<Owner>,
}

/// What a request meets.
#[derive(Debug)]
pub enum Admission {
    /// The session's slots have an answer. Also its credits.
    Slots(Begin<Message>, u16),
    /// The session has gone on over another link, or has ended.
    NotThisLink,
}

impl LiveSession {
    pub(crate) fn new(
        id: SessionId,
        export: Arc<Export>,
        client: SessionClient,
        reads: MacKey,
        limits: SessionLimits,
        now: Instant,
    ) -> Self {
        let SessionClient { name: client, permit, party, owner } = client;
        Self {
            id,
            export,
            client,
            permit,
            party,
            reads,
            writer: Writer { owner, standing: Arc::new(Standing::default()) },
            began: now,
            state: Mutex::new(Session::new(limits, now)),
            executing: AtomicUsize::new(0),
            idle: Event::new(),
            told: Mutex::default(),
            removed: Mutex::default(),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The export it is connected to.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// What the client calls itself.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.client
    }

    /// On whose behalf its work is done.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        self.permit.as_ref().map_or(&Credential::Server, |permit| &permit.credential)
    }

    /// Whose share of the server it takes.
    #[must_use]
    pub fn party(&self) -> Party {
        self.party
    }

    /// Whose its work is.
    #[must_use]
    pub fn whose(&self) -> Whose {
        Whose { party: self.party, session: self.id.number() }
    }

    /// Who asks for a permit, where the session wants to transfer something.
    #[must_use]
    pub fn asking(&self) -> Asking {
        Asking { session: self.id, party: self.party }
    }

    /// What the read keys that its client is given are derived from.
    #[must_use]
    pub fn reads(&self) -> &MacKey {
        &self.reads
    }

    /// Whose its changes are.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// The reply to the request in a slot tells the client that something is stable.
    pub(crate) fn will_tell(&self, slot: u16, what: Vec<Told>) {
        if !what.is_empty() {
            self.told.lock().insert(slot, what);
        }
    }

    /// What its client was granted. `None` where the export has no protection, and nobody knows
    /// who the client is.
    #[must_use]
    pub fn permit(&self) -> Option<&Permit> {
        self.permit.as_ref()
    }

    /// The client's name in `authorized_clients`.
    #[must_use]
    pub fn client_name(&self) -> Option<&str> {
        self.permit().map(|permit| &*permit.name)
    }

    /// The client's key.
    #[must_use]
    pub fn key(&self) -> Option<PublicKey> {
        self.permit().map(|permit| permit.key)
    }

    /// When it began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// When its client was heard of last.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.state.lock().renewed()
    }

    /// Request slots it was granted.
    #[must_use]
    pub fn credits(&self) -> u16 {
        self.state.lock().credits()
    }

    /// The open file with this number.
    #[must_use]
    pub fn open(&self, id: u64) -> Option<Arc<Open>> {
        self.state.lock().open(id).cloned()
    }

    /// How many files are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.state.lock().open_count()
    }

    /// It has taken the last name of a file away that is open.
    pub(crate) fn note_removed(&self, file: &Arc<CachedFile>) {
        self.removed.lock().push(Arc::downgrade(file));
    }

    /// How many files are open that it has removed. Where it looks like fewer than `most`, that is not
    /// looked at.
    pub(crate) fn removed_open(&self, most: usize) -> usize {
        let mut removed = self.removed.lock();
        if removed.len() >= most {
            removed.retain(|file| file.upgrade().is_some_and(|file| file.is_open()));
        }
        removed.len()
    }

    /// Adds an open file.
    ///
    /// # Errors
    /// [`Status::TooManyOpenFiles`], or [`Status::BadSession`] where the session has ended.
    pub fn add_open(&self, open: Arc<Open>) -> Result<u64, OpError> {
        let mut state = self.state.lock();
        if state.ended() {
            return Err(OpError::new(Status::BadSession, "the session has ended"));
        }
        state
            .add_open(open)
            .map_err(|error| OpError::new(Status::TooManyOpenFiles, error.to_string()))
    }

    /// Whether another file can be opened.
    ///
    /// # Errors
    /// As [`add_open`](Self::add_open).
    pub fn check_opens(&self) -> Result<(), OpError> {
        let check = self.state.lock().check_opens();
        check.map_err(|error| OpError::new(Status::TooManyOpenFiles, error.to_string()))
    }

    /// Forgets an open file. The caller drops it, which may take time, under no lock.
    pub fn remove_open(&self, id: u64) -> Option<Arc<Open>> {
        self.state.lock().remove_open(id)
    }

    /// Whether a report of heat counts now.
    pub fn take_heat(&self, now: Instant) -> bool {
        self.state.lock().take_heat(now)
    }

    /// Whether the session is over.
    pub(crate) fn expired(&self, now: Instant) -> bool {
        self.state.lock().expired(now)
    }

    /// A request arrived: renews the lease and asks the slots.
    pub(crate) fn admit(&self, arrival: Arrival, now: Instant) -> Admission {
        let mut state = self.state.lock();
        if state.link_id() != Some(arrival.link) {
            return Admission::NotThisLink;
        }
        state.renew(now);
        let begin = state.slots.begin(arrival);
        let executes = matches!(begin, Begin::Execute(_));
        if executes {
            self.executing.fetch_add(1, Ordering::SeqCst);
        }
        let credits = state.credits();
        drop(state);
        if executes {
            // A client that uses the slot again has the reply to its last request.
            let told = self.told.lock().remove(&arrival.slot);
            told.into_iter().flatten().for_each(Told::confirm);
        }
        Admission::Slots(begin, credits)
    }

    /// A request was executed; the link its reply goes to, if it has to be sent. `kept` is the
    /// reply of a request that is not idempotent.
    pub(crate) fn finish(
        &self,
        ticket: &Ticket,
        kept: Option<Arc<Message>>,
        own: &Arc<dyn Link>,
    ) -> Option<Arc<dyn Link>> {
        let mut state = self.state.lock();
        self.end_execution();
        if !state.slots.finish(ticket, kept) {
            return None;
        }
        // Of a request that may be executed again, parts may have gone over its own link only.
        let current = if ticket.idempotent() { None } else { state.link() };
        Some(Arc::clone(current.unwrap_or(own)))
    }

    /// A request was not executed; see [`RequestSlots::abandon`](crate::reply_cache::RequestSlots).
    pub(crate) fn abandon(&self, ticket: &Ticket) -> Abandoned {
        self.end_execution();
        self.state.lock().slots.abandon(ticket)
    }

    fn end_execution(&self) {
        if self.executing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify(usize::MAX);
        }
    }

    /// Whether it has ended, and none of its requests is being executed any more.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended() && self.executing.load(Ordering::SeqCst) == 0
    }

    /// Blocks until it [is over](Self::is_over); `false` where it is not by then.
    pub(crate) fn over_by(&self, end: Instant) -> bool {
        use event_listener::Listener as _;
        while !self.is_over() {
            let idle = self.idle.listen();
            if !self.is_over() && idle.wait_deadline(end).is_none() {
                return self.is_over();
            }
        }
        true
    }

    /// Takes a new link; the old one, if any, is to be closed. `None` where the session has ended
    /// meanwhile.
    pub(crate) fn attach(
        &self,
        link: &Arc<dyn Link>,
        now: Instant,
    ) -> Option<Option<Arc<dyn Link>>> {
        let mut state = self.state.lock();
        (!state.ended()).then(|| state.attach(link.id(), Arc::clone(link), now))
    }

    /// The link is gone.
    pub(crate) fn detach(&self, link: u64, now: Instant) {
        self.state.lock().detach(link, now);
    }

    /// The link where the client can be reached.
    pub(crate) fn link(&self) -> Option<Arc<dyn Link>> {
        self.state.lock().link().cloned()
    }

    /// Ends the session: its files are closed, it reads no more, and nothing of it is applied any
    /// more. Also whether it had not ended before.
    pub(crate) fn end(&self) -> (Option<Arc<dyn Link>>, bool) {
        let mut state = self.state.lock();
        let first = !state.ended();
        let (link, opens) = state.end();
        drop(state);
        self.writer.standing.end();
        self.idle.notify(usize::MAX);
        drop(opens);
        if let Some(link) = &link {
            link.allow_reads(None);
        }
        (link, first)
    }
}

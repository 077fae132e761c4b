//! Connections and sessions: who speaks over what, and what ends either.

use super::{BindError, Connection, Export, Server};
use crate::access::Permit;
use crate::authorized::AskedCredential;
use crate::live::{LiveSession, SessionClient};
use crate::ops::OpError;
use crate::session::SessionLimits;
use crate::sessions::{SessionId, Sessions};
use crate::sharing::OwnerId;
use dafs_keys::{Protection, PublicKey, Secret};
use dafs_proto::Status;
use foldhash::fast::RandomState;
use ordma::{Link, Party, ReadAccess, complaints};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many leases a client may be away until what it was not told is stable is forgotten.
const LEASES_AWAY: u32 = 10;
/// How long a connection may be without a session until another one from its address gets its place.
const SILENCE: Duration = Duration::from_secs(1);
/// Request slots of all sessions of one client, in sessions that have all that there are.
const SLOTS_OF_ALL: usize = 16;

/// The connection that makes room for one of `party`: of the address with the most connections that
/// have no session, where those are more than this one's will be, or of this one's own where it has
/// been silent for some time. The oldest of them: who means to speak does so at once.
fn in_the_way(
    links: &HashMap<u64, Connection, RandomState>,
    party: Party,
    now: Instant,
) -> Option<u64> {
    let silent = || links.values().filter(|connection| connection.session.is_none());
    let mut counts: HashMap<Party, usize, RandomState> = HashMap::default();
    silent().for_each(|connection| *counts.entry(connection.party).or_default() += 1);
    let own = counts.get(&party).copied().unwrap_or(0);
    let richest = counts.into_iter().max_by_key(|(_, count)| *count);
    let richer = richest.filter(|(_, count)| *count > own + 1).map(|(richest, _)| richest);
    let mut theirs: Vec<_> =
        silent().filter(|connection| connection.party == richer.unwrap_or(party)).collect();
    theirs.retain(|connection| {
        richer.is_some() || now.saturating_duration_since(connection.since) >= SILENCE
    });
    theirs.iter().min_by_key(|connection| connection.since).map(|connection| connection.link.id())
}

impl Server {
    /// A client connected; refused where there are too many, or the server is stopping.
    pub(crate) fn add_link(&self, link: Arc<dyn Link>) {
        self.wait_ready();
        // Room for every session, and as many again that are connecting anew.
        let max = self.settings.max_sessions.saturating_mul(2);
        let (peer, since) = (link.peer(), self.now());
        let party = Party::of_peer(&peer);
        let mut links = self.links.write();
        let is_full = links.len() >= max;
        let idle = if is_full { in_the_way(&links, party, since) } else { None };
        if self.stopping() || is_full && idle.is_none() {
            drop(links);
            let reason =
                if self.stopping() { "the server is stopping" } else { "too many connections" };
            if let Some(untold) = complaints::take(reason, &peer) {
                tracing::warn!(peer, reason, untold, "connection refused");
            }
            return link.close(reason);
        }
        let displaced = idle.and_then(|idle| links.remove(&idle));
        let connection = Connection { link, party, session: None, since, connecting: false };
        links.insert(connection.link.id(), connection);
        drop(links);
        if let Some(Connection { link, .. }) = displaced {
            let peer = link.peer();
            let reason = "it asked for no session, and others wanted its place";
            if let Some(untold) = complaints::take(reason, &peer) {
                tracing::warn!(peer, reason, untold, "connection closed");
            }
            link.close(reason);
        }
    }

    /// A CONNECT came over a link. Until [`end_connect`](Self::end_connect) there is no other, since
    /// the work for it is bounded by nothing else.
    pub(crate) fn begin_connect(&self, link: u64) -> Result<(), BindError> {
        let mut links = self.links.write();
        let connection = links.get_mut(&link).ok_or(BindError::Gone)?;
        if connection.session.is_some() {
            return Err(BindError::Link);
        }
        if std::mem::replace(&mut connection.connecting, true) {
            return Err(BindError::Connecting);
        }
        Ok(())
    }

    /// A CONNECT was answered.
    pub(crate) fn end_connect(&self, link: u64) {
        if let Some(connection) = self.links.write().get_mut(&link) {
            connection.connecting = false;
        }
    }

    /// A connection is gone; its session waits for the client's return.
    pub(crate) fn remove_link(&self, id: u64) {
        let connection = self.links.write().remove(&id);
        if let Some(session) = connection.and_then(|connection| connection.session) {
            session.detach(id, self.now());
        }
    }

    /// The session that speaks over a link.
    pub(crate) fn session_of(&self, link: u64) -> Option<Arc<LiveSession>> {
        self.links.read().get(&link)?.session.clone()
    }

    /// The session with this id, if it is still there.
    pub(crate) fn session(&self, id: &SessionId) -> Option<Arc<LiveSession>> {
        let now = self.now();
        self.sessions.lock().get(id).filter(|session| !session.expired(now)).cloned()
    }

    /// What the owner of `key` is granted in an export; `None` where the export has no protection.
    ///
    /// # Errors
    /// [`Status::Protection`] where nobody knows who the client is; [`Status::Access`] where such a
    /// client asks for a user; those of [`permit`](crate::access::Access::permit).
    pub(crate) fn permit(
        &self,
        export: &Export,
        key: Option<&PublicKey>,
        asked: Option<&AskedCredential>,
    ) -> Result<Option<Permit>, OpError> {
        let offered = export.protection;
        match key {
            _ if offered == Protection::None => match asked {
                None => Ok(None),
                Some(asked) => Err(OpError::new(
                    Status::Access,
                    format!(
                        "export {:?} has no protection: its clients are not known, and none of \
                         them may ask to act as uid {}",
                        export.name, asked.uid
                    ),
                )),
            },
            Some(key) => self.access.permit(key, &export.name, asked).map(Some),
            None => Err(OpError::new(
                Status::Protection,
                format!(
                    "export {:?} offers protection {offered}, which begins with a handshake: the \
                     client has not shown who it is",
                    export.name
                ),
            )),
        }
    }

    /// Makes a session for the owner of `key`, which gets at most so many request slots. It speaks over a link once it is
    /// [bound](Self::bind) to it.
    ///
    /// # Errors
    /// [`Status::TooManySessions`]; those of [`permit`](Self::permit).
    pub(crate) fn add_session(
        &self,
        export: &Arc<Export>,
        client: String,
        (key, party): (Option<&PublicKey>, Party),
        instance: &[u8],
        asked: Option<&AskedCredential>,
        slots: u16,
    ) -> Result<Arc<LiveSession>, OpError> {
        self.expire();
        let no_random = |error: &dyn std::fmt::Display| OpError::new(Status::Io, error.to_string());
        let id = SessionId::random().map_err(|error| no_random(&error))?;
        let reads = Secret::random().map_err(|error| no_random(&error))?.keyed();
        let instance = if instance.is_empty() { id.as_bytes() } else { instance };
        let owner = OwnerId::new(key, instance).ok_or_else(|| {
            let what = format!("a client's instance of {} bytes, not 16", instance.len());
            OpError::invalid(what)
        })?;
        // Under the lock: whoever takes a right away does that first, and then looks for sessions.
        let mut sessions = self.sessions.lock();
        let permit = self.permit(export, key, asked)?;
        // The export as this client may use it.
        let export = if permit.as_ref().is_some_and(|permit| permit.read_only) {
            Arc::new(export.for_reading())
        } else {
            Arc::clone(export)
        };
        let (owners, now) = (self.cache.owners(), self.now());
        let owner = owners.begin(owner);
        let client = SessionClient { name: client, permit, party, owner: Arc::clone(&owner) };
        let most = usize::from(self.settings.session.slots).saturating_mul(SLOTS_OF_ALL);
        let slots = sessions.slots_for(party, slots, most);
        let limits = SessionLimits { slots, ..self.settings.session };
        let session = Arc::new(LiveSession::new(id, export, client, reads, limits, now));
        let heard = |session: &LiveSession| session.heard();
        let added = sessions.insert(id, (party, slots), Arc::clone(&session), heard);
        let displaced = added.map_err(|error| {
            owners.end(&owner, false, now);
            OpError::new(Status::TooManySessions, error.to_string())
        })?;
        if let Some(displaced) = displaced {
            self.keep_ended(&[Arc::clone(&displaced)]);
            drop(sessions);
            self.displace(&displaced);
        }
        Ok(session)
    }

    /// Ends a session whose place another client gets.
    fn displace(&self, session: &LiveSession) {
        let link = self.disconnect(session, false);
        let peer = link.as_ref().map(|link| link.peer()).unwrap_or_default();
        if let Some(untold) = complaints::take("displaced", &peer) {
            tracing::warn!(
                ?session,
                untold,
                "ended, for another client: the server has as many sessions as it may have, and \
                 this one's client the most of them; raise sessions.max"
            );
        }
        if let Some(link) = link {
            link.close("its session's place went to a client with fewer sessions");
        }
    }

    /// From now on the session speaks over the link.
    pub(crate) fn bind(
        &self,
        link: &Arc<dyn Link>,
        session: &Arc<LiveSession>,
    ) -> Result<(), BindError> {
        // Under the lock, or a link that is lost just now would stay the session's for ever.
        let mut links = self.links.write();
        let connection = links.get_mut(&link.id()).ok_or(BindError::Gone)?;
        if connection.session.is_some() {
            return Err(BindError::Link);
        }
        let old = session.attach(link, self.now()).ok_or(BindError::Session)?;
        connection.session = Some(Arc::clone(session));
        drop(links);
        if let Some(old) = old {
            old.allow_reads(None);
            old.close("the client has connected anew");
        }
        link.belongs_to(session.party());
        let keyed = session.export().protection == Protection::Keyed;
        let tags = keyed.then(|| session.reads().clone());
        link.allow_reads(Some(ReadAccess { connection: None, session: tags }));
        Ok(())
    }

    /// Ends a session and closes its files. The link, if any, stays. `farewell`: its client will not
    /// come back.
    pub(crate) fn end_session(&self, session: &LiveSession, farewell: bool) {
        self.take_sessions(|sessions| sessions.remove(&session.id()).into_iter().collect());
        self.disconnect(session, farewell);
    }

    /// Takes sessions out of the table. They have still to be [ended](Self::disconnect).
    pub(super) fn take_sessions(
        &self,
        take: impl FnOnce(&mut Sessions<LiveSession>) -> Vec<Arc<LiveSession>>,
    ) -> Vec<Arc<LiveSession>> {
        let mut sessions = self.sessions.lock();
        let taken = take(&mut sessions);
        self.keep_ended(&taken);
        taken
    }

    /// Keeps sessions in mind that go from the table, whose lock is held.
    fn keep_ended(&self, taken: &[Arc<LiveSession>]) {
        let mut ended = self.ended.lock();
        ended.retain(|session| !session.is_over());
        ended.extend(taken.iter().cloned());
    }

    /// Ends a session that is not in the table any more. Its link, if any, is returned.
    pub(super) fn disconnect(
        &self,
        session: &LiveSession,
        farewell: bool,
    ) -> Option<Arc<dyn Link>> {
        let (link, first) = session.end();
        if first {
            self.cache.owners().end(&session.writer().owner, farewell, self.now());
        }
        let link = link?;
        if let Some(connection) = self.links.write().get_mut(&link.id()) {
            connection.session = None;
            connection.since = self.now();
        }
        Some(link)
    }

    fn expire(&self) {
        let now = self.now();
        for session in self.take_sessions(|all| all.take_expired(|session| session.expired(now))) {
            // Its address is not known any more.
            if let Some(untold) = complaints::take("lease", session.client()) {
                tracing::info!(?session, untold, "the lease of a lost client has run out");
            }
            self.disconnect(&session, false);
        }
    }

    /// Forgets what clients have changed and were not told is stable, where they have been away for
    /// too long. Should they come back after a restart, they cannot send it again.
    fn forget_gone(&self) {
        let patience = self.settings.session.lease.saturating_mul(LEASES_AWAY);
        self.cache.forget_gone(patience, self.now());
    }

    /// Does what time asks for: ends leases, closes connections that never asked for a session,
    /// and takes note of changes to the authorized clients. Called about once a second.
    pub fn tick(self: &Arc<Self>) {
        self.reload(false);
        self.expire();
        self.forget_gone();
        let now = self.now();
        self.fetches.tick(now);
        self.placings.tick(now);
        let is_idle = |connection: &Connection| {
            let age = now.saturating_duration_since(connection.since);
            connection.session.is_none() && age >= self.settings.connect_timeout
        };
        let idle: Vec<_> = {
            let links = self.links.read();
            links.values().filter(|c| is_idle(c)).map(|c| Arc::clone(&c.link)).collect()
        };
        for link in idle {
            link.close("connected, but asked for no session in time");
        }
    }
}

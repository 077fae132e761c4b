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
use ordma::{Link, ReadAccess, complaints};
use std::sync::Arc;

/// How many leases a client may be away until what it was not told is stable is forgotten.
const LEASES_AWAY: u32 = 10;

impl Server {
    /// A client connected; refused where there are too many, or the server is stopping.
    pub(crate) fn add_link(&self, link: Arc<dyn Link>) {
        self.wait_ready();
        // Room for every session, and as many again that are connecting anew.
        let max = self.settings.max_sessions.saturating_mul(2);
        let since = self.now();
        let mut links = self.links.write();
        if self.stopping() || links.len() >= max {
            drop(links);
            let reason =
                if self.stopping() { "the server is stopping" } else { "too many connections" };
            let peer = link.peer();
            if let Some(untold) = complaints::take(reason, &peer) {
                tracing::warn!(peer, reason, untold, "connection refused");
            }
            return link.close(reason);
        }
        links.insert(link.id(), Connection { link, session: None, since });
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

    /// Makes a session for the owner of `key`. It speaks over a link once it is
    /// [bound](Self::bind) to it.
    ///
    /// # Errors
    /// [`Status::TooManySessions`]; those of [`permit`](Self::permit).
    pub(crate) fn add_session(
        &self,
        export: &Arc<Export>,
        client: String,
        key: Option<&PublicKey>,
        instance: &[u8],
        asked: Option<&AskedCredential>,
        slots: u16,
    ) -> Result<Arc<LiveSession>, OpError> {
        self.expire();
        let no_random = |error: &dyn std::fmt::Display| OpError::new(Status::Io, error.to_string());
        let id = SessionId::random().map_err(|error| no_random(&error))?;
        let reads = Secret::random().map_err(|error| no_random(&error))?.keyed();
        let limits = SessionLimits { slots, ..self.settings.session };
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
        let client = SessionClient { name: client, permit, owner: Arc::clone(&owner) };
        let session = Arc::new(LiveSession::new(id, export, client, reads, limits, now));
        sessions.insert(id, Arc::clone(&session)).map_err(|error| {
            owners.end(&owner, false, now);
            OpError::new(Status::TooManySessions, error.to_string())
        })?;
        Ok(session)
    }

    /// From now on the session speaks over the link.
    pub(crate) fn bind(
        &self,
        link: &Arc<dyn Link>,
        session: &Arc<LiveSession>,
    ) -> Result<(), BindError> {
        // Under the lock, or a link that is lost just now would stay the session's for ever.
        let mut links = self.links.write();
        let connection = links.get_mut(&link.id()).filter(|c| c.session.is_none());
        let connection = connection.ok_or(BindError::Link)?;
        let old = session.attach(link, self.now()).ok_or(BindError::Session)?;
        connection.session = Some(Arc::clone(session));
        drop(links);
        if let Some(old) = old {
            old.allow_reads(None);
            old.close("the client has connected anew");
        }
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
        let mut ended = self.ended.lock();
        ended.retain(|session| !session.is_over());
        ended.extend(taken.iter().cloned());
        taken
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
            tracing::info!(?session, "the lease of a lost client has run out");
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

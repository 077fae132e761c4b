//! Connections and sessions: who speaks over what, and what ends either.

use super::{BindError, Connection, Export, Server};
use crate::live::LiveSession;
use crate::ops::OpError;
use crate::session::SessionLimits;
use crate::sessions::SessionId;
use crate::store::Credential;
use dafs_proto::Status;
use ordma::{Link, ReadAccess};
use std::sync::Arc;

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
            tracing::warn!(peer = link.peer(), reason, "connection refused");
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

    /// Makes a session, whose work is done as `credential`. It speaks over a link once it is
    /// [bound](Self::bind) to it.
    ///
    /// # Errors
    /// [`Status::TooManySessions`].
    pub(crate) fn add_session(
        &self,
        export: &Arc<Export>,
        client: String,
        credential: Credential,
        slots: u16,
    ) -> Result<Arc<LiveSession>, OpError> {
        self.expire();
        let id = SessionId::random()
            .map_err(|error| OpError::new(Status::Io, format!("no random numbers: {error}")))?;
        let limits = SessionLimits { slots, ..self.settings.session };
        let session =
            LiveSession::new(id, Arc::clone(export), client, credential, limits, self.now());
        let session = Arc::new(session);
        self.sessions
            .lock()
            .insert(id, Arc::clone(&session))
            .map_err(|error| OpError::new(Status::TooManySessions, error.to_string()))?;
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
        link.allow_reads(Some(ReadAccess::default()));
        Ok(())
    }

    /// Ends a session and closes its files. The link, if any, stays.
    pub(crate) fn end_session(&self, session: &LiveSession) {
        self.sessions.lock().remove(&session.id());
        if let Some(link) = session.end()
            && let Some(connection) = self.links.write().get_mut(&link.id())
        {
            connection.session = None;
            connection.since = self.now();
        }
    }

    fn expire(&self) {
        let now = self.now();
        let expired = self.sessions.lock().take_expired(|session| session.expired(now));
        for session in expired {
            tracing::info!(?session, "the lease of a lost client has run out");
            session.end();
        }
    }

    /// Does what time asks for: ends leases, closes connections that never asked for a session.
    /// Called about once a second.
    pub fn tick(&self) {
        self.expire();
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

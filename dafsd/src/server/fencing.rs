//! Taking away what clients were granted: their sessions and their keys.

use super::Server;
use crate::fence::FenceFileError;
use crate::live::LiveSession;
use crate::store::StoreError;
use dafs_keys::Protection;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Why a client was not cut off, or let in again.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// There is no such client.
    #[error(
        "no client {0:?} is authorized, has a session, or is fenced off; `dafsd sessions` lists \
         those that have one"
    )]
    Unknown(String),
    /// It is not fenced off.
    #[error("client {0:?} is not fenced off")]
    NotFenced(String),
    /// It cannot be remembered; nothing has changed.
    #[error(transparent)]
    File(#[from] FenceFileError),
    /// Its sessions have ended, but it may still have keys that open pages of an export.
    #[error("the keys of export {export:?} are still the old ones: {error}; try again")]
    Keys {
        /// The export.
        export: String,
        /// Why they were not changed.
        error: StoreError,
    },
}

/// What was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// How many sessions were ended.
    pub sessions: usize,
    /// The exports that have new keys.
    pub exports: Vec<String>,
}

impl Server {
    /// All sessions.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<LiveSession>> {
        self.sessions.lock().iter().cloned().collect()
    }

    /// Fences a client off, for good: when it returns, the client is refused, also after a restart;
    /// its sessions have ended and none of its requests is being executed any more; and nothing
    /// that is stored from then on can be read with the keys it has.
    ///
    /// # Errors
    /// [`FenceError::Unknown`] and [`FenceError::File`], where nothing has changed;
    /// [`FenceError::Keys`], after all the rest was done. It may be called again.
    pub async fn fence(self: &Arc<Self>, name: &str) -> Result<CutOff, FenceError> {
        let is_theirs = |session: &LiveSession| session.client_name() == Some(name);
        let client = self.access.client(name);
        let mut exports: BTreeSet<String> = {
            let sessions = self.sessions.lock();
            let theirs = sessions.iter().filter(|session| is_theirs(session));
            theirs.map(|session| session.export().name.clone()).collect()
        };
        if client.is_none() && exports.is_empty() && !self.access.is_fenced(name) {
            return Err(FenceError::Unknown(name.to_owned()));
        }
        if let Some(client) = client {
            let all = self.exports.iter().map(|export| &export.name);
            exports.extend(all.filter(|export| client.rights(export).is_some()).cloned());
        }
        let (server, owned) = (Arc::clone(self), name.to_owned());
        self.runtime.blocking(move || server.access.fence(&owned)).await?;
        let why = "the server's operator has fenced this client off";
        let cut_off = self.cut_off(is_theirs, &exports, why).await?;
        tracing::warn!(client = name, sessions = cut_off.sessions, "fenced off");
        Ok(cut_off)
    }

    /// Lets a client in again that was fenced off.
    ///
    /// # Errors
    /// [`FenceError::NotFenced`], [`FenceError::File`]; nothing has changed.
    pub async fn unfence(self: &Arc<Self>, name: &str) -> Result<(), FenceError> {
        let (server, owned) = (Arc::clone(self), name.to_owned());
        if !self.runtime.blocking(move || server.access.unfence(&owned)).await? {
            return Err(FenceError::NotFenced(name.to_owned()));
        }
        tracing::warn!(client = name, "not fenced off any more");
        Ok(())
    }

    /// Reads the authorized clients anew where their file has changed, or in any case where
    /// `forced`, and cuts off those that lost rights. What others gained is for sessions to come. A
    /// file that cannot be used changes nothing, and is told of in the log.
    pub fn reload(self: &Arc<Self>, forced: bool) {
        let exports = self.exports.iter().map(|export| &*export.name);
        let revoked = match self.access.reload(forced, exports) {
            None => return,
            Some(Err(error)) => {
                return tracing::error!(
                    "{error}. Nothing of it counts: who was authorized before stays so"
                );
            }
            Some(Ok(revoked)) => revoked,
        };
        tracing::info!("the authorized clients were read anew");
        if revoked.is_empty() {
            return;
        }
        for client in &revoked {
            tracing::warn!(%client, "rights were taken away");
        }
        let server = Arc::clone(self);
        self.runtime.run(async move {
            let exports: BTreeSet<String> =
                revoked.iter().flat_map(|client| client.exports.iter().cloned()).collect();
            let lost: HashSet<_> = revoked
                .iter()
                .flat_map(|client| client.exports.iter().map(|export| (client.key, &**export)))
                .collect();
            let is_theirs = |session: &LiveSession| {
                session.key().is_some_and(|key| lost.contains(&(key, &*session.export().name)))
            };
            let why = "the server's operator has changed what this client may do";
            match server.cut_off(is_theirs, &exports, why).await {
                Ok(cut_off) => tracing::warn!(sessions = cut_off.sessions, "cut off"),
                Err(error) => tracing::error!(%error, "clients may still read what they could"),
            }
        });
    }

    /// Ends sessions, waits for what they are doing, and gives exports new keys. Whoever has the
    /// sessions must be refused new ones before.
    async fn cut_off(
        &self,
        is_theirs: impl Fn(&LiveSession) -> bool,
        exports: &BTreeSet<String>,
        why: &str,
    ) -> Result<CutOff, FenceError> {
        let taken = self.take_sessions(|all| all.take_expired(&is_theirs));
        for session in &taken {
            if let Some(link) = self.disconnect(session, false) {
                link.close(why);
            }
        }
        // Among them those that ended by themselves with requests under way.
        let ended: Vec<_> = {
            let ended = self.ended.lock();
            ended.iter().filter(|session| is_theirs(session)).cloned().collect()
        };
        for session in &ended {
            session.over().await;
        }
        let mut renewed = Vec::new();
        for export in self.exports.iter().filter(|e| e.protection != Protection::None) {
            if exports.contains(&export.name) {
                let export = export.name.clone();
                if let Err(error) = self.cache.revoke_export(&export).await {
                    return Err(FenceError::Keys { export, error });
                }
                renewed.push(export);
            }
        }
        Ok(CutOff { sessions: taken.len(), exports: renewed })
    }
}

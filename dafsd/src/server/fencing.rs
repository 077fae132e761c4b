//! Taking away what clients were granted: their sessions and their keys.

use super::Server;
use crate::fence::FenceFileError;
use crate::live::LiveSession;
use crate::store::StoreError;
use dafs_keys::Protection;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long those whose rights are taken away hold up the thread that does it.
const PATIENCE: Duration = Duration::from_secs(2);

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
    /// How many of the sessions that have ended had begun something on a disk that has not answered
    /// yet. It may still be done: a name be changed, a size be set. No bytes of a file are changed any
    /// more.
    pub unfinished: usize,
}

impl Server {
    /// All sessions.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<LiveSession>> {
        self.sessions.lock().iter().cloned().collect()
    }

    /// Fences a client off, for good: when it returns, the client is refused, also after a restart;
    /// its sessions have ended and none of its requests is being executed any more, but for those of
    /// which it says so; and nothing that is stored from then on can be read with the keys it has.
    /// Blocks, for a disk that does not answer no longer than `patience`.
    ///
    /// # Errors
    /// [`FenceError::Unknown`] and [`FenceError::File`], where nothing has changed;
    /// [`FenceError::Keys`], after all the rest was done. It may be called again.
    pub fn fence(&self, name: &str, patience: Duration) -> Result<CutOff, FenceError> {
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
        self.access.fence(name)?;
        let why = "the server's operator has fenced this client off";
        let cut_off = self.cut_off(is_theirs, &exports, why, patience)?;
        let CutOff { sessions, unfinished, .. } = cut_off;
        tracing::warn!(client = name, sessions, unfinished, "fenced off");
        Ok(cut_off)
    }

    /// Lets a client in again that was fenced off. Blocks.
    ///
    /// # Errors
    /// [`FenceError::NotFenced`], [`FenceError::File`]; nothing has changed.
    pub fn unfence(&self, name: &str) -> Result<(), FenceError> {
        if !self.access.unfence(name)? {
            return Err(FenceError::NotFenced(name.to_owned()));
        }
        tracing::warn!(client = name, "not fenced off any more");
        Ok(())
    }

    /// Reads the authorized clients anew where their file has changed, or in any case where
    /// `forced`, and cuts off those that lost rights. What others gained is for sessions to come. A
    /// file that cannot be used changes nothing, and is told of in the log. Blocks.
    pub fn reload(&self, forced: bool) {
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
        match self.cut_off(is_theirs, &exports, why, PATIENCE) {
            Ok(CutOff { sessions, unfinished, .. }) => {
                tracing::warn!(sessions, unfinished, "cut off");
            }
            Err(error) => tracing::error!(%error, "clients may still read what they could"),
        }
    }

    /// Ends sessions, waits for what they are doing, and gives exports new keys. Whoever has the
    /// sessions must be refused new ones before.
    fn cut_off(
        &self,
        is_theirs: impl Fn(&LiveSession) -> bool,
        exports: &BTreeSet<String>,
        why: &str,
        patience: Duration,
    ) -> Result<CutOff, FenceError> {
        let end = Instant::now() + patience;
        let taken = self.take_sessions(|all| all.take_expired(&is_theirs));
        for session in &taken {
            if let Some(link) = self.disconnect(session, false) {
                link.close(why);
            }
        }
        self.cache.wake_waiters();
        // Among them those that ended by themselves with requests under way.
        let ended: Vec<_> = {
            let ended = self.ended.lock();
            ended.iter().filter(|session| is_theirs(session)).cloned().collect()
        };
        let unfinished = ended.iter().filter(|session| !session.over_by(end)).count();
        let mut renewed = Vec::new();
        for export in self.exports.iter().filter(|e| e.protection != Protection::None) {
            if exports.contains(&export.name) {
                let export = export.name.clone();
                if let Err(error) = self.cache.revoke_export(&export) {
                    return Err(FenceError::Keys { export, error });
                }
                renewed.push(export);
            }
        }
        Ok(CutOff { sessions: taken.len(), exports: renewed, unfinished })
    }
}

//! Keeping a session alive while nobody uses it, and ending it.

use super::rpc::{CallError, Lane};
use super::{Link, Session, lock};
use crate::error::{Error, Result};
use crate::write;
use dafs_proto::{DisconnectRequest, RenewRequest};
use ordma::LinkError;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the keeper looks at what has arrived while nobody waited.
const TICK: Duration = Duration::from_millis(200);
/// How often it tries to reach a server that was given up.
const RETRY: Duration = Duration::from_secs(2);
/// How long the end of a client waits until what was written to closed files is committed.
const LAST_COMMITS: Duration = Duration::from_secs(5);
/// How long closing waits for the server's answer, and for the keeper.
const FAREWELL: Duration = Duration::from_millis(250);

/// Owns a session: when the last one that holds it lets go, the session ends.
#[derive(Debug)]
pub(crate) struct Owner {
    session: Arc<Session>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Deref for Owner {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Owner {
    /// Takes a connected session and, if `background`, starts its keeper thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn new(session: Arc<Session>, background: bool) -> Result<Arc<Self>> {
        let owner = Self { session, keeper: Mutex::new(None) };
        if !background {
            return Ok(Arc::new(owner));
        }
        let kept = Arc::clone(&owner.session);
        let thread = std::thread::Builder::new().name("dafs-keeper".into());
        let keeper = thread.spawn(move || kept.keep()).map_err(|error| {
            Error::InvalidArgument(format!("cannot start the client's keeper thread: {error}"))
        })?;
        *lock(&owner.keeper) = Some(keeper);
        Ok(Arc::new(owner))
    }

    /// Ends the session: operations under way fail, opens are closed. Tells the server if that is
    /// possible at once.
    pub(crate) fn close(&self) {
        self.session.close();
        let Some(keeper) = lock(&self.keeper).take() else { return };
        // The keeper may itself let go of the last open file.
        if keeper.thread().id() == std::thread::current().id() {
            return;
        }
        let deadline = std::time::Instant::now() + FAREWELL;
        while !keeper.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // One that is in the middle of connecting ends on its own.
        if keeper.is_finished() && keeper.join().is_err() {
            tracing::error!("the keeper thread panicked");
        }
    }
}

impl Drop for Owner {
    /// What was written to closed files is committed first, if the server can be reached and it does
    /// not take too long.
    fn drop(&mut self) {
        let session = &self.session;
        let deadline = session.now() + LAST_COMMITS;
        for file in session.files.take_lingering() {
            let committed = write::commit(&file, 0, 0);
            let late =
                || session.is_closing() || session.now() >= deadline || session.live().is_none();
            match session.block_on_unless(committed, late) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::error!(%error, file = %file.name, "not committed at the end");
                }
                None => tracing::error!(
                    file = %file.name,
                    "not committed at the end: the server cannot be reached, or takes too long"
                ),
            }
        }
        self.close();
    }
}

impl Session {
    fn keep(&self) {
        let third = |session: &Self| session.grant().map_or(TICK, |grant| grant.lease / 3);
        let mut renew_at = self.now() + third(self);
        let mut retry_at = self.now();
        loop {
            self.nap(TICK.min(third(self)));
            if self.is_closing() {
                return;
            }
            self.tend_idle();
            let now = self.now();
            if now >= retry_at {
                self.tend_outage();
                retry_at = self.now() + RETRY;
            }
            if now >= renew_at {
                self.renew();
                renew_at = self.now() + third(self);
            }
        }
    }

    /// Does what is due although nobody waits.
    pub(crate) fn tend_idle(&self) {
        self.tend();
        self.files.close_dropped(self);
        // For no longer than the lease can do without being renewed.
        let third = self.grant().map_or(TICK, |grant| grant.lease / 3);
        let deadline = self.now() + third;
        if self.live().is_some() {
            let settled = write::settle(self);
            self.block_on_unless(settled, || self.is_closing() || self.now() >= deadline);
        }
    }

    /// Renews the lease and reports heat. A server that does not answer for a whole lease is taken
    /// to be gone.
    pub(crate) fn renew(&self) {
        let Some((live, grant)) = self.live() else { return };
        let heat = lock(&self.table).heat.drain();
        let deadline = self.now() + grant.lease;
        let make = || RenewRequest { heat: heat.clone() };
        let call = self.call_once::<RenewRequest>(Lane::Normal, "the lease", &make);
        match self.block_on_unless(call, || self.is_closing() || self.now() >= deadline) {
            Some(Ok(_)) | Some(Err(CallError::SessionLost { .. })) => {}
            Some(Err(CallError::Failed(error))) => {
                tracing::warn!(%error, "the lease was not renewed");
            }
            None if self.is_closing() => {}
            None => {
                let reason = "no answer to RENEW for a whole lease".into();
                self.lost(live.epoch, &LinkError::Lost { peer: self.peer(), reason });
            }
        }
    }

    fn close(&self) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        *lock(&self.stop) = true;
        self.stopped.notify_all();
        self.stop_reactor();
        if self.live().is_some() {
            let deadline = self.now() + FAREWELL;
            let make = DisconnectRequest::default;
            let call = self.call_once::<DisconnectRequest>(Lane::Normal, "the session", &make);
            self.block_on_unless(call, || self.now() >= deadline || self.live().is_none());
        }
        let mut state = lock(&self.state);
        let link = std::mem::replace(&mut state.link, Link::Closed);
        let outstanding = state.slots.end();
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        for request in outstanding {
            request.cell.complete(Err(CallError::Failed(self.closed_error())));
        }
        waiters.into_iter().for_each(|(_, waker)| waker.wake());
        let endpoint = match link {
            Link::Up(endpoint) | Link::Recovering(endpoint) => Some(endpoint),
            Link::Down(outage) => outage.old,
            Link::Closed => None,
        };
        if let Some(endpoint) = endpoint {
            endpoint.interrupt();
            endpoint.close();
        }
        self.pump.kick();
    }
}

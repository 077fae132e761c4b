//! Open files, and what it takes to open them again in a new session.

use crate::error::{Error, Result};
use crate::files::FileState;
use crate::keyring::{self, Keyring};
use crate::session::outstanding::Reply;
use crate::session::rpc::{Body, CallError, Lane, Request, repeatable};
use crate::session::{Owner, Session};
use crate::sync::lock;
use dafs_keys::FileKey;
use dafs_proto::{Call, CloseRequest, Op, OpenRequest, encode_message};
use ordma::{LinkError, Segment};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Access bit: reading.
pub(crate) const READ: u32 = 1;
/// Access bit: writing.
pub(crate) const WRITE: u32 = 2;

/// No block.
const UNKNOWN: u64 = u64::MAX;

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    client: Arc<Session>,
    /// Keeps the client. `None` for a file that is closed and lingers, which the client keeps.
    owner: Option<Arc<Owner>>,
    pub(crate) handle: Vec<u8>,
    pub(crate) access: u32,
    /// What the file was opened as, for messages.
    pub(crate) name: String,
    /// What is the same for all opens of the file.
    pub(crate) state: Arc<FileState>,
    /// Losses that this open has been told of.
    seen: AtomicU64,
    pub(crate) keyring: Keyring,
    key: u64,
    /// The server's number for this open, in `session`.
    open: AtomicU64,
    session: AtomicU64,
    /// The number in footers and references.
    number: AtomicU64,
    /// The block that held the end of the file when it was last seen.
    last_block: AtomicU64,
    closed: AtomicBool,
    /// Why the file could not be opened again in a new session.
    broken: Mutex<Option<Error>>,
}

/// The server's names for an open file, and its key.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) open: u64,
    pub(crate) number: u64,
    /// The session in which they hold.
    pub(crate) session: u64,
    /// What its pages are read with; `None` where the open may not read.
    pub(crate) key: Option<Arc<FileKey>>,
    /// The file, whatever session it is open in.
    pub(crate) identity: Vec<u8>,
}

impl OpenFile {
    /// Takes a file that was just opened, to be opened again when the session is replaced.
    pub(crate) fn new(
        owner: &Arc<Owner>,
        handle: Vec<u8>,
        access: u32,
        name: String,
        opened: Opened,
        size: Option<u64>,
    ) -> Arc<Self> {
        // A server that names no identities has one handle for each file.
        let identity = if opened.identity.is_empty() { &handle } else { &opened.identity };
        let (state, seen) = owner.files.state(identity);
        if access & WRITE != 0 {
            state.add_writer();
        }
        let file = owner.files.register(|key| {
            Arc::new(Self {
                client: Arc::clone(owner),
                owner: Some(Arc::clone(owner)),
                handle,
                access,
                name,
                state,
                seen: AtomicU64::new(seen),
                keyring: Keyring::new(opened.session, opened.key),
                key,
                open: AtomicU64::new(opened.open),
                session: AtomicU64::new(opened.session),
                number: AtomicU64::new(opened.number),
                last_block: AtomicU64::new(UNKNOWN),
                closed: AtomicBool::new(false),
                broken: Mutex::default(),
            })
        });
        if let (Some(size), Ok(grant)) = (size, owner.grant()) {
            file.saw_size(size, grant.page_size);
        }
        file
    }

    /// What goes on in place of this open, which is closed, until the file's writes are committed.
    /// Nobody is told what it sees.
    fn successor(&self) -> Arc<Self> {
        self.state.add_writer();
        let current = |number: &AtomicU64| AtomicU64::new(number.load(Ordering::Acquire));
        let session = self.session.load(Ordering::Acquire);
        self.client.files.register(|key| {
            Arc::new(Self {
                client: Arc::clone(&self.client),
                owner: None,
                handle: self.handle.clone(),
                access: self.access,
                name: self.name.clone(),
                state: Arc::clone(&self.state),
                seen: AtomicU64::new(u64::MAX),
                keyring: Keyring::new(session, None),
                key,
                open: current(&self.open),
                session: AtomicU64::new(session),
                number: current(&self.number),
                last_block: AtomicU64::new(UNKNOWN),
                closed: AtomicBool::new(true),
                broken: Mutex::new(lock(&self.broken).clone()),
            })
        })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.client
    }

    /// Whether it is closed and goes on only until the file's writes are committed.
    pub(crate) fn lingers(&self) -> bool {
        self.owner.is_none()
    }

    /// Whether it has to be open at the server.
    fn is_wanted(&self) -> bool {
        self.lingers() || !self.closed.load(Ordering::Acquire)
    }

    /// The news of a loss that this open has not been told.
    pub(crate) fn news(&self) -> Option<Error> {
        if self.lingers() { None } else { self.state.news(&self.seen) }
    }

    /// Why it could not be opened again.
    pub(crate) fn broken(&self) -> Option<Error> {
        lock(&self.broken).clone()
    }

    /// The server's number for this open. Read it where the session cannot change: while a request
    /// is put into its slot.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Acquire)
    }

    /// The number in footers and references.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Whether what came in `session` is about this file as it is open now.
    pub(crate) fn is_of(&self, session: u64) -> bool {
        self.session.load(Ordering::Acquire) == session
    }

    /// Refuses what the file is not open for, or not any more.
    pub(crate) fn check(&self, access: u32) -> Result<()> {
        if !self.is_wanted() {
            return Err(Error::InvalidArgument(format!("{} is closed", self.name)));
        }
        if let Some(error) = self.broken() {
            return Err(error);
        }
        if access & !self.access != 0 {
            let access = if access & READ & !self.access != 0 { "reading" } else { "writing" };
            return Err(Error::Access { what: self.name.clone(), access });
        }
        Ok(())
    }

    /// The block that held the end of the file when it was last seen.
    pub(crate) fn last_block(&self) -> Option<u64> {
        Some(self.last_block.load(Ordering::Relaxed)).filter(|block| *block != UNKNOWN)
    }

    /// Notes where the end of the file was seen; `None`: it is not where it was.
    pub(crate) fn set_last_block(&self, block: Option<u64>) {
        self.last_block.store(block.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// Notes the file's size in bytes.
    pub(crate) fn saw_size(&self, size: u64, page_size: usize) {
        self.set_last_block(Some(size.saturating_sub(1) / page_size as u64));
    }

    /// Marks the file closed. `None` if it was; else what has to go on in its place, if the file has
    /// writes that are not committed and no other open to commit them.
    pub(crate) fn set_closed(&self) -> Option<Option<Arc<Self>>> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return None;
        }
        let last = self.access & WRITE != 0 && self.state.remove_writer();
        let lingers = last && !lock(&self.state.uncommitted).is_empty();
        Some(lingers.then(|| self.successor()))
    }

    /// A file that lingered has nothing left to commit: closes it at the server, unless writes came
    /// meanwhile that no other open commits.
    pub(crate) fn let_go(self: &Arc<Self>) {
        if self.state.remove_writer() && !lock(&self.state.uncommitted).is_empty() {
            let now = self.client.now();
            return self.client.files.linger(self.successor(), now);
        }
        let (session, open) = (self.session.load(Ordering::Acquire), self.open());
        if !self.client.forget(session, open) {
            self.client.files.note_dropped(session, open);
        }
    }

    /// Closes the open at the server, in the session where it is open.
    pub(crate) async fn close_open(&self) -> std::result::Result<(), CallError> {
        let encode = |header| encode_message(header, &CloseRequest { open: self.open() });
        let body = Body::Plain(&encode);
        let request =
            Request { op: Op::Close, file: Some(self), body, data: Vec::new(), sink: None };
        let reply = self.client.request(Lane::Normal, request).await?;
        self.client.decode::<CloseRequest>(&reply, &self.name).map(drop)
    }

    /// Opens the file again in the current session.
    async fn reopen(&self, lane: Lane) -> Result<()> {
        let make = || OpenRequest {
            handle: self.handle.clone(),
            access: self.access,
            ..OpenRequest::default()
        };
        match self.client.call_once::<OpenRequest>(lane, &self.name, &make).await {
            Ok((message, mut reply)) => {
                let key = keyring::of_open(self.access & READ != 0, message.key, &mut reply);
                let key = key.map_err(|reason| self.client.violation(reply.epoch, reason))?;
                self.open.store(message.open, Ordering::Release);
                self.number.store(message.file, Ordering::Release);
                self.keyring.opened(reply.session, key);
                self.session.store(reply.session, Ordering::Release);
                self.set_last_block(None);
                *lock(&self.broken) = None;
                Ok(())
            }
            Err(CallError::Failed(error @ Error::Status { .. })) => {
                tracing::warn!(%error, "a file could not be opened again");
                *lock(&self.broken) = Some(error);
                Ok(())
            }
            Err(CallError::Failed(error)) => Err(error),
            // The next connection, or the next attempt, opens it.
            Err(CallError::SessionLost { .. }) => Ok(()),
        }
    }

    /// After the session was lost: sees to it that the file is open in the current one, unless
    /// recovery did or will do that.
    async fn refresh(&self) -> Result<()> {
        if self.is_of(self.client.number()) { Ok(()) } else { self.reopen(Lane::Normal).await }
    }

    /// Does an operation on the open file, again in a new session where that can do no harm. `make`
    /// gets the server's number for the open. Also gives the reply as it came.
    pub(crate) async fn call_in<C: Call>(
        &self,
        lane: Lane,
        data: Vec<Segment>,
        make: impl Fn(u64) -> C + Send + Sync,
    ) -> Result<(C::Reply, Reply)> {
        loop {
            self.check(0)?;
            let encode = |header| encode_message(header, &make(self.open()));
            let body = Body::Plain(&encode);
            let data = data.clone();
            let request = Request { op: C::OP, file: Some(self), body, data, sink: None };
            let result = self.client.request(lane, request).await;
            match self.take_reply::<C>(lane, result).await? {
                Came::Reply(message, reply) => return Ok((message, reply)),
                Came::Again { sent } if sent && !repeatable(C::OP) => {
                    return Err(Error::OutcomeUnknown { op: C::OP, what: self.name.clone() });
                }
                Came::Again { .. } => {}
            }
        }
    }

    /// Takes a reply's message out, or sees to it that the file is open in the present session, so
    /// that the request can be made again.
    pub(crate) async fn take_reply<C: Call>(
        &self,
        lane: Lane,
        result: std::result::Result<Reply, CallError>,
    ) -> Result<Came<C::Reply>> {
        let result = result.and_then(|reply| {
            let message = self.client.decode::<C>(&reply, &self.name)?;
            if self.is_of(reply.session) {
                Ok(Came::Reply(message, reply))
            } else {
                Err(CallError::SessionLost { sent: true })
            }
        });
        match (result, lane) {
            (Ok(taken), _) => Ok(taken),
            (Err(CallError::Failed(error)), _) => Err(error),
            (Err(CallError::SessionLost { .. }), Lane::Recovery { .. }) => Err(LinkError::Lost {
                peer: self.client.peer(),
                reason: "lost again while files were being opened".into(),
            }
            .into()),
            (Err(CallError::SessionLost { sent }), Lane::Normal) => {
                self.refresh().await?;
                Ok(Came::Again { sent })
            }
        }
    }
}

/// What came of a request.
pub(crate) enum Came<T> {
    /// Its reply.
    Reply(T, Reply),
    /// The session was lost. `sent`: the server may have done what was asked.
    Again { sent: bool },
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        match self.set_closed() {
            None => {}
            Some(Some(successor)) => self.client.files.linger(successor, self.client.now()),
            Some(None) => {
                let (session, open) = (self.session.load(Ordering::Acquire), self.open());
                if !self.client.forget(session, open) {
                    self.client.files.note_dropped(session, open);
                }
            }
        }
        self.client.files.unregister(self.key, &self.state);
    }
}

impl Session {
    /// Sends CLOSE for an open of session `number` without waiting for the reply; `false` if that
    /// is not possible now.
    pub(crate) fn forget(&self, number: u64, open: u64) -> bool {
        self.send_unawaited(number, &CloseRequest { open })
    }
}

/// In a new session, opens the files again, then sends again what a restarted server has lost.
pub(crate) async fn recover(session: &Session, epoch: u64, number: u64) -> Result<()> {
    let files: Vec<_> = session.files.all().into_iter().filter(|f| f.is_wanted()).collect();
    for file in &files {
        if !file.is_of(number) {
            file.reopen(Lane::Recovery { epoch }).await?;
        }
    }
    for file in files.iter().filter(|file| file.access & WRITE != 0 && file.is_of(number)) {
        crate::write::send_lost(file, epoch).await?;
    }
    Ok(())
}

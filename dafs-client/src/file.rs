//! Open files, and what it takes to open them again in a new session.

use crate::error::{Error, Result};
use crate::keyring::{self, Keyring};
use crate::session::outstanding::Reply;
use crate::session::rpc::{Body, CallError, Lane, Request, repeatable};
use crate::session::{Owner, Session};
use crate::sync::lock;
use crate::write::Uncommitted;
use dafs_keys::FileKey;
use dafs_proto::{Call, CloseRequest, Op, OpenRequest, encode_message};
use ordma::{LinkError, Segment};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Access bit: reading.
pub(crate) const READ: u32 = 1;
/// Access bit: writing.
pub(crate) const WRITE: u32 = 2;

/// No block.
const UNKNOWN: u64 = u64::MAX;

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) owner: Arc<Owner>,
    pub(crate) handle: Vec<u8>,
    pub(crate) access: u32,
    /// What the file was opened as, for messages.
    pub(crate) name: String,
    pub(crate) uncommitted: Mutex<Uncommitted>,
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
        let key = owner.files.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(Self {
            owner: Arc::clone(owner),
            handle,
            access,
            name,
            uncommitted: Mutex::default(),
            keyring: Keyring::new(opened.session, opened.key),
            key,
            open: AtomicU64::new(opened.open),
            session: AtomicU64::new(opened.session),
            number: AtomicU64::new(opened.number),
            last_block: AtomicU64::new(UNKNOWN),
            closed: AtomicBool::new(false),
            broken: Mutex::default(),
        });
        if let (Some(size), Ok(grant)) = (size, owner.grant()) {
            file.saw_size(size, grant.page_size);
        }
        lock(&owner.files.open).insert(key, Arc::downgrade(&file));
        file
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.owner
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
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::InvalidArgument(format!("{} is closed", self.name)));
        }
        if let Some(error) = &*lock(&self.broken) {
            return Err(error.clone());
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

    /// Lets go of what was written and is not committed.
    pub(crate) fn forget_writes(&self) {
        let freed = lock(&self.uncommitted).clear();
        self.owner.retained.fetch_sub(freed, Ordering::Relaxed);
    }

    /// Marks the file closed; `false` if it was.
    pub(crate) fn set_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Closes the open at the server, in the session where it is open.
    pub(crate) async fn close_open(&self) -> std::result::Result<(), CallError> {
        let encode = |header| encode_message(header, &CloseRequest { open: self.open() });
        let body = Body::Plain(&encode);
        let request =
            Request { op: Op::Close, file: Some(self), body, data: Vec::new(), sink: None };
        let reply = self.owner.request(Lane::Normal, request).await?;
        self.owner.decode::<CloseRequest>(&reply, &self.name).map(drop)
    }

    /// Opens the file again in the current session.
    async fn reopen(&self, lane: Lane) -> Result<()> {
        let make = || OpenRequest {
            handle: self.handle.clone(),
            access: self.access,
            ..OpenRequest::default()
        };
        match self.owner.call_once::<OpenRequest>(lane, &self.name, &make).await {
            Ok((message, mut reply)) => {
                let key = keyring::of_open(self.access & READ != 0, message.key, &mut reply);
                let key = key.map_err(|reason| self.owner.violation(reply.epoch, reason))?;
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
        if self.is_of(self.owner.number()) { Ok(()) } else { self.reopen(Lane::Normal).await }
    }

    /// Does an operation on the open file, again in a new session where that can do no harm. `make`
    /// gets the server's number for the open.
    pub(crate) async fn call<C: Call>(
        &self,
        make: impl Fn(u64) -> C + Send + Sync,
    ) -> Result<C::Reply> {
        self.call_in(Lane::Normal, Vec::new(), make).await.map(|(reply, _)| reply)
    }

    /// The same with data behind the message; also gives the reply as it came.
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
            let result = self.owner.request(lane, request).await;
            match self.take_reply::<C>(lane, result).await? {
                Some(taken) => return Ok(taken),
                None => continue,
            }
        }
    }

    /// Takes a reply's message out; `None` where the session was lost and the request, which can do
    /// no harm, is to be made again.
    pub(crate) async fn take_reply<C: Call>(
        &self,
        lane: Lane,
        result: std::result::Result<Reply, CallError>,
    ) -> Result<Option<(C::Reply, Reply)>> {
        let result = result.and_then(|reply| {
            let message = self.owner.decode::<C>(&reply, &self.name)?;
            if self.is_of(reply.session) {
                Ok((message, reply))
            } else {
                Err(CallError::SessionLost { sent: true })
            }
        });
        match (result, lane) {
            (Ok(taken), _) => Ok(Some(taken)),
            (Err(CallError::Failed(error)), _) => Err(error),
            (Err(CallError::SessionLost { .. }), Lane::Recovery { .. }) => Err(LinkError::Lost {
                peer: self.owner.peer(),
                reason: "lost again while files were being opened".into(),
            }
            .into()),
            (Err(CallError::SessionLost { sent }), Lane::Normal) => {
                if sent && !repeatable(C::OP) {
                    return Err(Error::OutcomeUnknown { op: C::OP, what: self.name.clone() });
                }
                self.refresh().await?;
                Ok(None)
            }
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        lock(&self.owner.files.open).remove(&self.key);
        self.forget_writes();
        if self.set_closed() {
            let close = (self.session.load(Ordering::Acquire), self.open());
            if !self.owner.forget(close.0, close.1) {
                lock(&self.owner.files.dropped).push(close);
            }
        }
    }
}

/// The open files of a client.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: Mutex<HashMap<u64, Weak<OpenFile>>>,
    next: AtomicU64,
    /// Session and number of opens that nobody has any more and that are still to be closed.
    dropped: Mutex<Vec<(u64, u64)>>,
}

impl Files {
    pub(crate) fn all(&self) -> Vec<Arc<OpenFile>> {
        lock(&self.open).values().filter_map(Weak::upgrade).collect()
    }

    /// Closes what could not be closed when it was dropped.
    pub(crate) fn close_dropped(&self, session: &Session) {
        let dropped = std::mem::take(&mut *lock(&self.dropped));
        for (number, open) in dropped {
            if !session.forget(number, open) {
                lock(&self.dropped).push((number, open));
            }
        }
    }
}

impl Session {
    /// Sends CLOSE for an open of session `number` without waiting for the reply; `false` if that
    /// is not possible now.
    fn forget(&self, number: u64, open: u64) -> bool {
        self.send_unawaited(number, &CloseRequest { open })
    }
}

/// In a new session, opens the files again, then sends again the writes that a restarted server
/// has lost.
pub(crate) async fn recover(session: &Session, epoch: u64, number: u64) -> Result<()> {
    let files: Vec<_> =
        session.files.all().into_iter().filter(|f| !f.closed.load(Ordering::Acquire)).collect();
    for file in &files {
        if !file.is_of(number) {
            file.reopen(Lane::Recovery { epoch }).await?;
        }
    }
    for file in &files {
        if file.is_of(number) {
            crate::write::send_lost(file, Lane::Recovery { epoch }).await?;
        }
    }
    Ok(())
}

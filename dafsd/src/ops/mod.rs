//! The operations a client can ask for, one file each.
//!
//! Every operation is an `async fn name(cx: &OpContext, request) -> Result<reply, OpError>`. It
//! starts on the thread that received the request; what may block goes through
//! [`Runtime::blocking`](crate::runtime::Runtime::blocking). Most return their reply message
//! alone; those with a data part return a [`Reply`].

use crate::cache::{Moment, OpenFile};
use crate::live::LiveSession;
use crate::server::{Export, Server};
use crate::store::{Access, Credential, Handle, Node, Store, StoreError};
use dafs_proto::{Attr, Status};
use ordma::{Link, LinkError};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub mod close;
pub mod commit;
pub mod connect;
pub mod disconnect;
pub mod get_refs;
pub mod getattr;
pub mod link;
pub mod lookup;
pub mod mkdir;
pub mod open;
pub mod read;
pub mod readdir;
pub mod readlink;
pub mod rename;
pub mod renew;
mod rights;
pub mod rmdir;
pub mod setattr;
pub mod stability;
pub mod statfs;
pub mod stats;
pub mod symlink;
pub mod unlink;
pub mod write;

/// How often a file that is not cached is looked at anew because others were written back meanwhile.
const MOST_READS: usize = 2;

/// What an operation works with.
#[derive(Debug)]
pub struct OpContext {
    /// The server.
    pub server: Arc<Server>,
    /// Whose request it is.
    pub session: Arc<LiveSession>,
    /// The connection it came over: the one for direct transfers. The reply finds its own way.
    pub link: Arc<dyn Link>,
    /// The request slot it came in.
    pub slot: u16,
    /// The inline data of the request, at most `max_inline` bytes.
    pub data: Vec<u8>,
}

impl OpContext {
    /// The open file that the client calls `id`.
    ///
    /// # Errors
    /// [`Status::BadOpen`] where the session has no such open.
    pub fn open(&self, id: u64) -> Result<Arc<Open>, OpError> {
        self.session.open(id).ok_or_else(|| {
            OpError::new(Status::BadOpen, format!("open {id} is not one of this session"))
        })
    }

    /// The export this session connected to.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        self.session.export()
    }

    /// The handle that a client sent.
    ///
    /// # Errors
    /// As [`Export::handle`].
    pub fn handle(&self, wire: &[u8]) -> Result<Handle, OpError> {
        self.export().handle(wire)
    }

    /// A handle as the client gets it.
    #[must_use]
    pub fn wire(&self, handle: &Handle) -> Vec<u8> {
        self.export().wire(handle)
    }

    /// Runs a call of the export's store, which may block, on a worker thread. The call gets the
    /// session's credential, and is made with it.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn store<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Store, &Credential) -> crate::store::Result<T> + Send + 'static,
    ) -> Result<T, OpError> {
        let session = Arc::clone(&self.session);
        let call = move || call(&*session.export().store, session.credential());
        Ok(self.server.runtime().blocking(self.export().disk(), call).await?)
    }

    /// Refuses what would change a read-only export, before any of it is done. The export's
    /// [store](Self::store) refuses it as well, whatever an operation asks it for.
    ///
    /// # Errors
    /// [`Status::ReadOnly`], naming the export.
    pub fn check_writable(&self) -> Result<(), OpError> {
        let export = self.export();
        if export.read_only {
            let what = format!("export {:?} is read-only", export.name);
            return Err(OpError::new(Status::ReadOnly, what));
        }
        Ok(())
    }
}

/// Attributes with what is not on disk yet. The node was read after the moment `since`.
///
/// # Errors
/// The store's, where it has to be read anew.
async fn overlaid(cx: &OpContext, mut since: Moment, mut node: Node) -> Result<Attr, OpError> {
    let cache = cx.server.cache();
    for _ in 0..MOST_READS {
        if let Some(file) = cache.find(&node.identity) {
            return Ok(file.attributes(since, node.attr).await?);
        }
        let now = cache.moment();
        if now == since {
            break;
        }
        // It may have been cached when it was read, and written back and forgotten since.
        since = now;
        let handle = node.handle.clone();
        node = cx.store(move |store, who| store.node(who, &handle)).await?;
    }
    Ok(node.attr)
}

/// A file that a session has open.
#[derive(Debug)]
pub struct Open {
    /// The file in the page cache.
    pub file: OpenFile,
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// The epoch of the file in which it was last looked at that it may be read.
    checked: AtomicU64,
    /// The handle it was opened by.
    pub handle: Handle,
}

impl Open {
    /// An open that may not read until [`OpContext::check_right`](OpContext) has seen it.
    fn new(file: OpenFile, access: Access, handle: Handle) -> Self {
        let (read, write) = (access.reads(), access.writes());
        Self { file, read, write, checked: AtomicU64::new(u64::MAX), handle }
    }

    /// Whether it was looked at in this epoch of the file that it may be read.
    fn is_checked_in(&self, epoch: u64) -> bool {
        self.checked.load(Ordering::Relaxed) == epoch
    }
}

/// A reply message and the data that follows it.
#[derive(Debug)]
pub struct Reply<T> {
    /// The message.
    pub body: T,
    /// Inline data, at most `max_inline` bytes.
    pub data: Vec<u8>,
}

impl<T> From<T> for Reply<T> {
    fn from(body: T) -> Self {
        Self { body, data: Vec::new() }
    }
}

/// Why an operation was not done. The message goes to the client.
#[derive(Debug, Clone)]
pub struct OpError {
    /// The status of the reply.
    pub status: Status,
    /// What was tried, to what, and why it was not done.
    pub message: String,
    /// The connection broke under a transfer and nothing was changed. The client has to send the
    /// request again, so that is what the slot waits for.
    pub unexecuted: bool,
}

impl OpError {
    /// An error with this status.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), unexecuted: false }
    }

    /// A request that its sender should not have made.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::Invalid, message)
    }

    /// A direct transfer that failed before the operation changed anything.
    #[must_use]
    pub fn transfer(error: &LinkError) -> Self {
        Self { status: Status::Transfer, message: error.to_string(), unexecuted: true }
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.status)
    }
}

impl std::error::Error for OpError {}

impl From<StoreError> for OpError {
    fn from(error: StoreError) -> Self {
        Self::new(error.status, error.what)
    }
}

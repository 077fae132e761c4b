//! Opening files.

use super::{Core, walk};
use crate::error::{Error, Result};
use crate::file::{OpenFile, Opened, READ, WRITE};
use crate::files::Turn;
use crate::keyring;
use crate::session::outstanding::Reply;
use crate::session::rpc::{CallError, Lane};
use crate::write::{install, receipt};
use dafs_proto::{Create, Op, OpenReply, OpenRequest, SetAttr, Status};
use std::path::Path;
use std::sync::Arc;

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    create: bool,
    exclusive: bool,
    truncate: bool,
    mode: Option<u32>,
}

impl OpenOptions {
    /// For nothing yet: at least reading or writing has to be added.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    #[must_use]
    pub fn read(mut self, read: bool) -> Self {
        self.read = read;
        self
    }

    /// For writing.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Creates the file if it is not there. Needs writing.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Creates the file and fails if the name is taken, be it by a symbolic link. Needs writing.
    #[must_use]
    pub fn create_new(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Empties the file. Needs writing.
    #[must_use]
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// Permission bits of a file that is created; default 0o666. The server applies no mask.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    fn check(self) -> Result<()> {
        let wrong = if !self.read && !self.write {
            "open for neither reading nor writing"
        } else if !self.write && (self.create || self.exclusive || self.truncate) {
            "creating or truncating needs opening for writing"
        } else {
            return Ok(());
        };
        Err(Error::InvalidArgument(wrong.into()))
    }

    fn access(self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.read, READ) | bit(self.write, WRITE)
    }

    /// The request may be made twice: it changes nothing, or what it changes stays the same.
    fn repeatable(self) -> bool {
        !self.exclusive && !self.truncate
    }
}

impl Core {
    pub(crate) async fn open(&self, path: &Path, options: OpenOptions) -> Result<Arc<OpenFile>> {
        options.check()?;
        let what = walk::show(path);
        if walk::is_root(path) {
            let message = "it is the export's root".into();
            return Err(Error::Status { op: Op::Open, status: Status::IsDirectory, message, what });
        }
        let (directory, name) = self.parent_of_file(path, Op::Open).await?;
        match self.open_name(&directory, &name, options, &what).await {
            // The last component is a symbolic link.
            Err(error) if error.status() == Some(Status::Loop) && !options.exclusive => {
                let (directory, name) = self.parent_of_target(path).await?;
                self.open_name(&directory, &name, options, &what).await
            }
            result => result,
        }
    }

    /// Opens a name in a directory; a symbolic link is not followed.
    pub(crate) async fn open_in(
        &self,
        directory: &[u8],
        name: &[u8],
        options: OpenOptions,
        what: &str,
    ) -> Result<Arc<OpenFile>> {
        options.check()?;
        self.open_name(directory, name, options, what).await
    }

    async fn open_name(
        &self,
        directory: &[u8],
        name: &[u8],
        options: OpenOptions,
        what: &str,
    ) -> Result<Arc<OpenFile>> {
        let create = match (options.create, options.exclusive) {
            (_, true) => Create::Exclusive,
            (true, false) => Create::Unchecked,
            (false, false) => Create::No,
        };
        let creates = create != Create::No;
        let mode = creates.then(|| options.mode.unwrap_or(0o666));
        let request = OpenRequest {
            directory: directory.to_vec(),
            name: name.to_vec(),
            handle: Vec::new(),
            access: options.access(),
            create: create.into(),
            truncate: options.truncate,
            attr: Some(SetAttr { mode, ..SetAttr::default() }),
            want_refs: if options.read { self.owner.options.neighbours } else { 0 },
        };
        // A file that is truncated is known by name only: nothing may be sent again meanwhile.
        let _turn = match options.truncate {
            true => Some(self.owner.files.turns.take(Turn::New, 0..1).await),
            false => None,
        };
        if self.owner.files.are_too_many_lingering() {
            crate::write::settle(&self.owner).await;
        }
        let make = || request.clone();
        let (message, reply) = loop {
            match self.owner.call_once::<OpenRequest>(Lane::Normal, what, &make).await {
                Ok(taken) => break taken,
                Err(CallError::Failed(error)) => return Err(error),
                Err(CallError::SessionLost { sent }) if sent && !options.repeatable() => {
                    return Err(Error::OutcomeUnknown { op: Op::Open, what: what.into() });
                }
                Err(CallError::SessionLost { .. }) => {}
            }
        };
        self.opened(message, reply, options, what)
    }

    fn opened(
        &self,
        message: OpenReply,
        mut reply: Reply,
        options: OpenOptions,
        what: &str,
    ) -> Result<Arc<OpenFile>> {
        let key = keyring::of_open(options.read, message.key, &mut reply);
        let key = key.map_err(|reason| self.owner.violation(reply.epoch, reason))?;
        let Reply { session, epoch, .. } = reply;
        let OpenReply { open, file: number, identity, .. } = message;
        let opened = Opened { open, number, session, key, identity };
        let size = message.attr.as_ref().map(|attr| attr.size);
        let name = what.to_owned();
        let file = OpenFile::new(&self.owner, message.handle, options.access(), name, opened, size);
        if let Some(change) = message.truncated {
            let receipt = receipt(Some(change), &reply)?;
            file.state.keep(&self.owner, |uncommitted| uncommitted.keep_size(0, 0, receipt));
        }
        if message.created || message.truncated.is_some() {
            let machine_boot = reply.grant.as_ref().map_or(0, |grant| grant.machine_boot);
            file.state.rest_on(machine_boot);
        }
        if options.read && self.owner.number() == session {
            install(&file, &message.refs, 0, epoch)?;
        }
        Ok(file)
    }
}

//! The blocking interface: the calling thread drives the connection.

mod directory;
mod file;
mod queue;

pub use directory::Directory;
pub use file::File;
pub use queue::{Completion, Outcome, Queue};

use crate::client;
use crate::counters::Snapshot;
use crate::error::Result;
use crate::location::Location;
use crate::ops::{Core, DirEntry, OpenOptions};
use crate::options::Options;
use crate::start::{self, Connectors, PathChoice};
use dafs_keys::{Protection, PublicKey};
use dafs_proto::{Attr, SetAttr, StatfsReply};
use ordma::Connector;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A client of one export, which several threads may use at the same time. Clones are the same
/// client; it ends, and tells the server, when the last of them and of its files is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    core: Core,
    choice: Arc<PathChoice>,
}

impl Client {
    /// Connects to a location such as `dafs://host/export`.
    ///
    /// # Errors
    /// What is wrong with the location; [`Trust`](crate::Error::Trust) where client and server do not
    /// come to know each other; the server cannot be reached or refuses.
    pub fn connect(location: &str, options: Options) -> Result<Self> {
        Self::connect_with(&location.parse()?, options, Connectors::default())
    }

    /// Connects to a location with engines of the caller's choice.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connect_with(
        location: &Location,
        options: Options,
        connectors: Connectors,
    ) -> Result<Self> {
        let (core, choice) = start::connect(location, options, connectors)?;
        Ok(Self { core, choice: Arc::new(choice) })
    }

    /// Connects over a transport of the caller's choice. For levels above `none` its connections
    /// begin with a handshake of their own, and so know both sides' keys: identity, known servers
    /// and first contact are not looked at.
    ///
    /// # Errors
    /// The server cannot be reached or refuses; [`Protection`](crate::Error::Protection) where the
    /// transport makes no handshake and the level needs one.
    pub fn connect_over(
        connector: Arc<dyn Connector>,
        export: &str,
        options: Options,
    ) -> Result<Self> {
        let core = start::begin(connector, export, options)?;
        let engine = core.owner.live().map(|(live, _)| live.endpoint.capabilities().engine);
        let engine = engine.unwrap_or("unknown").to_owned();
        let choice = PathChoice { engine, why: "the application chose it".into() };
        Ok(Self { core, choice: Arc::new(choice) })
    }

    pub(crate) fn from_parts(core: Core, choice: Arc<PathChoice>) -> Self {
        Self { core, choice }
    }

    /// The same client with the asynchronous interface.
    #[must_use]
    pub fn into_async(self) -> client::Client {
        client::Client::from_parts(self.core, self.choice)
    }

    /// Which engine the client uses, and why.
    #[must_use]
    pub fn path_choice(&self) -> &PathChoice {
        &self.choice
    }

    /// The client's counters.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        self.core.owner.counters.snapshot()
    }

    /// References in the directory.
    #[must_use]
    pub fn references(&self) -> usize {
        crate::sync::lock(&self.core.owner.table).directory.len()
    }

    /// The protection level that the server granted.
    ///
    /// # Errors
    /// None once connected.
    pub fn protection(&self) -> Result<Protection> {
        Ok(self.core.owner.grant()?.level)
    }

    /// The server's key; none at level `none`.
    ///
    /// # Errors
    /// None once connected.
    pub fn server_key(&self) -> Result<Option<PublicKey>> {
        Ok(self.core.owner.grant()?.server_key)
    }

    /// Bytes of a page.
    ///
    /// # Errors
    /// None once connected.
    pub fn page_size(&self) -> Result<usize> {
        Ok(self.core.owner.grant()?.page_size)
    }

    /// Whether the server takes no changes from this client.
    ///
    /// # Errors
    /// None once connected.
    pub fn is_read_only(&self) -> Result<bool> {
        Ok(self.core.owner.grant()?.read_only)
    }

    /// How long the session outlives a lost connection.
    ///
    /// # Errors
    /// None once connected.
    pub fn lease(&self) -> Result<Duration> {
        Ok(self.core.owner.grant()?.lease)
    }

    /// Handles what has arrived while nobody waited, and renews the lease. Only needed where
    /// [`Options::background`] is false.
    pub fn tend(&self) {
        self.core.owner.tend_idle();
        self.core.owner.renew();
    }

    /// Ends the client at once, with all its clones and files: operations under way fail, and
    /// writes that were not committed may be lost if the server fails.
    pub fn close(&self) {
        self.core.owner.close();
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// The server's, such as [`NoEntry`](crate::Status::NoEntry); those of the connection.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_with(path, OpenOptions::new().read(true))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As for [`open`](Self::open); options that contradict each other.
    pub fn open_with(&self, path: impl AsRef<Path>, options: OpenOptions) -> Result<File> {
        let file = self.core.owner.block_on(self.core.open(path.as_ref(), options))?;
        Ok(File::from_parts(self.core.clone(), file))
    }

    /// Attributes of what the path leads to.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.core.owner.block_on(self.core.metadata(path.as_ref(), true))
    }

    /// Attributes of what the path leads to; a symbolic link at its end is not followed.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        self.core.owner.block_on(self.core.metadata(path.as_ref(), false))
    }

    /// Sets attributes; gives the new ones.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn set_attr(&self, path: impl AsRef<Path>, set: SetAttr) -> Result<Attr> {
        self.core.owner.block_on(self.core.set_attr(path.as_ref(), set))
    }

    /// The entries of a directory, in the server's order, without `.` and `..`.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        self.core.owner.block_on(self.core.read_dir(path.as_ref()))
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// The server's; those of the connection; [`OutcomeUnknown`](crate::Error::OutcomeUnknown).
    pub fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<Attr> {
        self.core.owner.block_on(self.core.mkdir(path.as_ref(), mode))
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        self.core.owner.block_on(self.core.unlink(path.as_ref()))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.core.owner.block_on(self.core.rmdir(path.as_ref()))
    }

    /// Moves a name, replacing what bears the new one.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.core.owner.block_on(self.core.rename(from.as_ref(), to.as_ref()))
    }

    /// Creates a symbolic link at `path`.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Attr> {
        self.core.owner.block_on(self.core.symlink(target.as_ref(), path.as_ref()))
    }

    /// What a symbolic link holds.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        self.core.owner.block_on(self.core.readlink(path.as_ref()))
    }

    /// Gives an existing file another name.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub fn link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Attr> {
        self.core.owner.block_on(self.core.link(existing.as_ref(), path.as_ref()))
    }

    /// How much space the file system has that holds `path`.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn statfs(&self, path: impl AsRef<Path>) -> Result<StatfsReply> {
        self.core.owner.block_on(self.core.statfs(path.as_ref()))
    }

    /// The server's own counters, by name.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn server_stats(&self) -> Result<Vec<(String, u64)>> {
        self.core.owner.block_on(self.core.server_stats())
    }
}

//! The asynchronous interface: buffers are handed over and come back.

use crate::counters::{ReadReport, Snapshot};
use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::location::Location;
use crate::ops::{Core, DirEntry, OpenOptions};
use crate::options::{Options, Path as ReadPath, Stability};
use crate::session::pump::Driven;
use crate::start::{self, Connectors, PathChoice};
use crate::sync::lock;
use crate::{blocking, read, write};
use dafs_keys::{Protection, PublicKey};
use dafs_proto::{Attr, SetAttr, StatfsReply};
use ordma::{Connector, Region};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

/// A client of one export. Clones are the same client; it ends, and tells the server, when the last
/// of them and of its files is dropped.
///
/// Futures need no particular runtime: while any of them waits, a thread of the client's drives the
/// connection. A future that is dropped leaves its request to finish on its own.
#[derive(Clone, Debug)]
pub struct Client {
    core: Core,
    choice: Arc<PathChoice>,
}

/// An open file. Clones are the same open; it is closed when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct File {
    core: Core,
    file: Arc<OpenFile>,
}

impl Client {
    /// Connects to a location such as `dafs://host/export`.
    ///
    /// # Errors
    /// What is wrong with the location; [`Error::Trust`] where client and server do not come to know
    /// each other; the server cannot be reached or refuses.
    pub async fn connect(location: &str, options: Options) -> Result<Self> {
        let location: Location = location.parse()?;
        let connect = move || start::connect(&location, options, Connectors::default());
        let (core, choice) = in_thread(connect).await?;
        Ok(Self { core, choice: Arc::new(choice) })
    }

    /// Connects over a transport of the caller's choice. For levels above `none` its connections
    /// begin with a handshake of their own, and so know both sides' keys: identity, known servers
    /// and first contact are not looked at.
    ///
    /// # Errors
    /// The server cannot be reached or refuses; [`Error::Protection`] where the transport makes no
    /// handshake and the level needs one.
    pub async fn connect_over(
        connector: Arc<dyn Connector>,
        export: &str,
        options: Options,
    ) -> Result<Self> {
        let export = export.to_owned();
        in_thread(move || {
            let client = blocking::Client::connect_over(connector, &export, options)?;
            Ok(client.into_async())
        })
        .await
    }

    pub(crate) fn from_parts(core: Core, choice: Arc<PathChoice>) -> Self {
        Self { core, choice }
    }

    /// The same client with the blocking interface.
    #[must_use]
    pub fn to_blocking(&self) -> blocking::Client {
        blocking::Client::from_parts(self.core.clone(), Arc::clone(&self.choice))
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

    fn driven<'a, T>(&self, future: impl Future<Output = T> + 'a) -> impl Future<Output = T> + 'a {
        Driven::new(&self.core.owner, future)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// The server's, such as [`NoEntry`](crate::Status::NoEntry); those of the connection.
    pub async fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_with(path, OpenOptions::new().read(true)).await
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As for [`open`](Self::open); options that contradict each other.
    pub async fn open_with(&self, path: impl AsRef<Path>, options: OpenOptions) -> Result<File> {
        let file = self.driven(self.core.open(path.as_ref(), options)).await?;
        Ok(File { core: self.core.clone(), file })
    }

    /// Attributes of what the path leads to; `follow` decides about a symbolic link at its end.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn metadata(&self, path: impl AsRef<Path>, follow: bool) -> Result<Attr> {
        self.driven(self.core.metadata(path.as_ref(), follow)).await
    }

    /// Sets attributes; gives the new ones.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn set_attr(&self, path: impl AsRef<Path>, set: SetAttr) -> Result<Attr> {
        self.driven(self.core.set_attr(path.as_ref(), set)).await
    }

    /// The entries of a directory, in the server's order.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        self.driven(self.core.read_dir(path.as_ref())).await
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// The server's; those of the connection; [`Error::OutcomeUnknown`].
    pub async fn mkdir(&self, path: impl AsRef<Path>, mode: u32) -> Result<Attr> {
        self.driven(self.core.mkdir(path.as_ref(), mode)).await
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub async fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        self.driven(self.core.unlink(path.as_ref())).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub async fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.driven(self.core.rmdir(path.as_ref())).await
    }

    /// Moves a name, replacing what bears the new one.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.driven(self.core.rename(from.as_ref(), to.as_ref())).await
    }

    /// Creates a symbolic link at `path`.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub async fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Attr> {
        self.driven(self.core.symlink(target.as_ref(), path.as_ref())).await
    }

    /// What a symbolic link holds.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        self.driven(self.core.readlink(path.as_ref())).await
    }

    /// Gives an existing file another name.
    ///
    /// # Errors
    /// As for [`mkdir`](Self::mkdir).
    pub async fn link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Attr> {
        self.driven(self.core.link(existing.as_ref(), path.as_ref())).await
    }

    /// How much space the file system has that holds `path`.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn statfs(&self, path: impl AsRef<Path>) -> Result<StatfsReply> {
        self.driven(self.core.statfs(path.as_ref())).await
    }

    /// The server's own counters, by name.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn server_stats(&self) -> Result<Vec<(String, u64)>> {
        self.driven(self.core.server_stats()).await
    }
}

impl File {
    pub(crate) fn from_parts(core: Core, file: Arc<OpenFile>) -> Self {
        Self { core, file }
    }

    /// The same open with the blocking interface.
    #[must_use]
    pub fn to_blocking(&self) -> blocking::File {
        blocking::File::from_parts(self.core.clone(), Arc::clone(&self.file))
    }

    fn driven<'a, T>(&self, future: impl Future<Output = T> + 'a) -> impl Future<Output = T> + 'a {
        Driven::new(&self.core.owner, future)
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file. Bytes of the
    /// buffer after those read are undefined.
    ///
    /// If the future is dropped the buffer is lost; nothing is written to it by then.
    ///
    /// # Errors
    /// The server's; those of the connection. The buffer comes back in any case.
    pub async fn read_at(&self, buf: Vec<u8>, offset: u64) -> (Result<ReadReport>, Vec<u8>) {
        self.read_at_by(buf, offset, ReadPath::Auto).await
    }

    /// The same by a path of the caller's choice.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub async fn read_at_by(
        &self,
        buf: Vec<u8>,
        offset: u64,
        path: ReadPath,
    ) -> (Result<ReadReport>, Vec<u8>) {
        let region = Region::owned(buf);
        let to = region.segment(0, region.len());
        let result = self.driven(read::read(&self.file, &to, offset, path)).await;
        (result, region.take().unwrap_or_default())
    }

    /// Writes the buffer at `offset`; how many bytes were written, which is fewer only where an
    /// error hit a later part. Not on stable storage before [`commit`](Self::commit).
    ///
    /// # Errors
    /// The server's; those of the connection. Nothing was written then, as far as is known. The
    /// buffer comes back in any case.
    pub async fn write_at(&self, buf: Vec<u8>, offset: u64) -> (Result<usize>, Vec<u8>) {
        self.write_at_stable(buf, offset, Stability::Unstable).await
    }

    /// The same with a stability of the caller's choice.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub async fn write_at_stable(
        &self,
        buf: Vec<u8>,
        offset: u64,
        stability: Stability,
    ) -> (Result<usize>, Vec<u8>) {
        let region = Region::owned(buf);
        let from = region.segment(0, region.len());
        let result = self.driven(write::write(&self.file, &from, offset, stability)).await;
        (result, region.take().unwrap_or_default())
    }

    /// Brings a range to stable storage, and with it every write to it that returned before;
    /// `length` 0 means to the end of the file. What the server lost meanwhile is sent again first.
    ///
    /// # Errors
    /// The server's; those of the connection. What was not committed is kept, for the next commit.
    pub async fn commit(&self, offset: u64, length: u64) -> Result<()> {
        self.driven(write::commit(&self.file, offset, length)).await
    }

    /// The file's attributes, from the server.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn attr(&self) -> Result<Attr> {
        self.driven(self.core.getattr_of(&self.file.handle, &self.file.name)).await
    }

    /// Sets attributes; gives the new ones.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn set_attr(&self, set: SetAttr) -> Result<Attr> {
        self.driven(self.core.set_attr_of(&self.file, set)).await
    }

    /// Cuts the file off or extends it with zeros.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn set_len(&self, size: u64) -> Result<()> {
        self.set_attr(SetAttr { size: Some(size), ..SetAttr::default() }).await.map(drop)
    }

    /// Fetches references of a range, so that its pages can be read one-sidedly; with `fill` the
    /// server brings those in that are not cached.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub async fn prefetch(&self, offset: u64, length: u64, fill: bool) -> Result<()> {
        self.driven(read::prefetch(&self.file, offset, length, fill)).await
    }

    /// Closes the file and waits for the server's word. Does not commit. All clones are closed.
    ///
    /// # Errors
    /// The server's; those of the connection. The file is closed in any case.
    pub async fn close(&self) -> Result<()> {
        self.driven(self.core.close(&self.file)).await
    }
}

/// Runs what blocks in a thread of its own.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    struct Shared<T> {
        result: Option<Result<T>>,
        waker: Option<Waker>,
    }
    let shared = Arc::new(Mutex::new(Shared { result: None, waker: None }));
    let theirs = Arc::clone(&shared);
    let thread = std::thread::Builder::new().name("dafs-connect".into());
    let spawned = thread.spawn(move || {
        let result = work();
        let mut shared = lock(&theirs);
        shared.result = Some(result);
        let waker = shared.waker.take();
        drop(shared);
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    if let Err(error) = spawned {
        return Err(Error::InvalidArgument(format!("cannot start a thread to connect: {error}")));
    }
    std::future::poll_fn(move |cx| {
        let mut shared = lock(&shared);
        match shared.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                shared.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

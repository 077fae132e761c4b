//! The store: where files lie when they are not in the page cache.
//!
//! Nothing outside the store touches a path. Every call may block and is made from the runtime's
//! blocking threads.

use dafs_proto::{Attr, SetAttr, Status};
use std::fmt;
use std::sync::Arc;

mod local;

pub use local::{HandleReport, LocalOptions, LocalStore};

/// An opaque, stable name of a file or directory: what clients hold. At most 64 bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Handle(Arc<[u8]>);

impl Handle {
    /// Longest handle in bytes.
    pub const MAX: usize = 64;

    /// A handle from the wire.
    ///
    /// # Errors
    /// [`Status::StaleHandle`] where it is empty or too long to be one of ours.
    pub fn from_wire(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() || bytes.len() > Self::MAX {
            let what = format!("a handle of {} bytes", bytes.len());
            return Err(StoreError::new(Status::StaleHandle, what));
        }
        Ok(Self(bytes.into()))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// What makes two opens the same file in the page cache, whatever name or export led there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device the file system is on.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Inode generation, so that a reused inode number is another file; 0 where the file system
    /// does not tell.
    pub generation: u64,
}

/// Why the store did not do what was asked. Nothing was changed unless the operation says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {status}")]
pub struct StoreError {
    /// The status for the client.
    pub status: Status,
    /// What was tried, to what.
    pub what: String,
}

impl StoreError {
    /// An error with this status.
    pub fn new(status: Status, what: impl Into<String>) -> Self {
        Self { status, what: what.into() }
    }

    /// The error of a system call.
    pub fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let status = error.raw_os_error().map_or(Status::Io, Status::from_errno);
        Self::new(status, what)
    }
}

/// A file or directory, as the disk has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its handle.
    pub handle: Handle,
    /// Its identity in the page cache.
    pub identity: Identity,
    /// Its attributes.
    pub attr: Attr,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Where to go on after this entry.
    pub cookie: u64,
    /// What it leads to.
    pub node: Node,
}

/// What a name that went away led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The file.
    pub identity: Identity,
    /// It has no name any more.
    pub last: bool,
}

/// What a rename did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The file that bears the new name now.
    pub moved: Identity,
    /// What bore it before, if that was another file.
    pub replaced: Option<Removed>,
}

/// How to create a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateOptions {
    /// Fail with [`Status::Exists`] if the name is taken.
    pub exclusive: bool,
    /// Attributes of a new file.
    pub attr: SetAttr,
}

/// Type alias of the store's results.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A file tree.
pub trait Store: Send + Sync + fmt::Debug {
    /// The root directory.
    fn root(&self) -> Handle;
    /// Looks a name up; `.` and `..` are ordinary names that are not found, symlinks are not
    /// followed.
    fn lookup(&self, directory: &Handle, name: &[u8]) -> Result<Node>;
    /// Creates a regular file, or finds what is there. What was created comes open, since its mode
    /// need not let its creator open it again.
    fn create(
        &self,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)>;
    /// Opens a regular file for data I/O. `write` asks for a file that can be written.
    fn open(&self, handle: &Handle, write: bool) -> Result<Arc<dyn StoreFile>>;
    /// Identity and attributes.
    fn node(&self, handle: &Handle) -> Result<Node>;
    /// Sets owner, mode and times; never the size (see [`StoreFile::set_len`]).
    fn set_attr(&self, handle: &Handle, attr: &SetAttr) -> Result<Node>;
    /// Makes a directory.
    fn mkdir(&self, directory: &Handle, name: &[u8], attr: &SetAttr) -> Result<Node>;
    /// Removes a name that is not a directory.
    fn unlink(&self, directory: &Handle, name: &[u8]) -> Result<Removed>;
    /// Removes an empty directory.
    fn rmdir(&self, directory: &Handle, name: &[u8]) -> Result<()>;
    /// Renames.
    fn rename(&self, from: (&Handle, &[u8]), to: (&Handle, &[u8])) -> Result<Renamed>;
    /// Entries after `cookie` (0 to begin), about `max_bytes` of names and handles; the flag says
    /// there are no more.
    fn readdir(
        &self,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, bool)>;
    /// Makes a symbolic link.
    fn symlink(&self, directory: &Handle, name: &[u8], target: &[u8]) -> Result<Node>;
    /// Reads a symbolic link.
    fn readlink(&self, handle: &Handle) -> Result<Vec<u8>>;
    /// Makes a hard link to a file that is not a directory.
    fn link(&self, handle: &Handle, directory: &Handle, name: &[u8]) -> Result<Node>;
    /// Space and inodes of the file system.
    fn statfs(&self, handle: &Handle) -> Result<dafs_proto::StatfsReply>;
}

/// A regular file open for data I/O. Independent of the names it has.
pub trait StoreFile: Send + Sync + fmt::Debug {
    /// The cache identity.
    fn identity(&self) -> Identity;
    /// Whether it can be written. What can be read only was opened for reading.
    fn writable(&self) -> bool;
    /// Attributes, as the disk has them.
    fn attr(&self) -> Result<Attr>;
    /// Reads until `buffer` is full or the file ends; the count.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// Sets the length.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Makes what was written stable; `data_only` may leave times behind.
    fn sync(&self, data_only: bool) -> Result<()>;
    /// Sets the modification time, after the pages that were written at that time have been.
    fn set_mtime(&self, mtime: std::time::SystemTime) -> Result<()>;
}

//! The store: where files lie when they are not in the page cache.
//!
//! Nothing outside the store touches a path. Every call may block and is made from the runtime's
//! blocking threads. What a call does for a client it does as a [`Credential`]: whose rights decide
//! whether it is done, and who owns what is made.

use dafs_proto::{Attr, SetAttr, Status};
use std::fmt;
use std::sync::Arc;

mod local;
mod read_only;

pub use local::{Descriptors, HandleReport, LocalOptions, LocalStore};
pub use read_only::ReadOnlyStore;

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The server's own: its own work, and that of exports that know no users.
    Server,
    /// A user's. That user's rights on this host decide, and what is made belongs to that user.
    User {
        /// The user.
        uid: u32,
        /// The user's group.
        gid: u32,
        /// Supplementary groups.
        groups: Arc<[u32]>,
    },
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be read.
    Read,
    /// To be written.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Whether it includes reading.
    #[must_use]
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether it includes writing.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// An opaque, stable name of a file or directory, at most 64 bytes. Clients hold it with a check
/// behind it; see [`Export`](crate::server::Export).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Handle(Arc<[u8]>);

impl Handle {
    /// Longest handle in bytes.
    pub const MAX: usize = 64;

    /// The handle with these bytes.
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

impl Identity {
    /// As clients have it, who only compare it.
    #[must_use]
    pub fn to_wire(&self) -> Vec<u8> {
        [self.device, self.inode, self.generation].iter().flat_map(|n| n.to_le_bytes()).collect()
    }
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

/// A file tree. `who` is on whose behalf a call is made; it fails with [`Status::Access`] or
/// [`Status::Permission`] where that credential does not suffice, and changes nothing then.
pub trait Store: Send + Sync + fmt::Debug {
    /// Tells this tree from others, and is the same after a restart.
    fn id(&self) -> [u8; 8];
    /// The root directory.
    fn root(&self) -> Handle;
    /// Looks a name up; `.` and `..` are ordinary names that are not found, symlinks are not
    /// followed.
    fn lookup(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Node>;
    /// Creates a regular file, or finds what is there. What was created comes open, since its mode
    /// need not let its creator open it again.
    fn create(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)>;
    /// Opens a regular file for data I/O. `who` must have the right to all of `access`; the file
    /// that is returned can be shared with others, and may allow more. Opened by a user for writing,
    /// it loses its set-id bits, as one does that is written.
    fn open(&self, who: &Credential, handle: &Handle, access: Access)
    -> Result<Arc<dyn StoreFile>>;
    /// As [`open`](Self::open), for a file that `who` has had open, or could have: its owner may,
    /// whatever its mode is by now, as a descriptor goes on working on one host.
    fn reopen(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>>;
    /// Whether a file may have set-id bits that were set while it was open. Never blocks.
    fn may_have_set_id(&self, _identity: &Identity) -> bool {
        false
    }
    /// `who` writes a file that it has open: set-id bits go, where they do on one host. Whether there
    /// were any.
    fn drop_set_id(&self, _who: &Credential, _handle: &Handle) -> Result<bool> {
        Ok(false)
    }
    /// Whether a file that `who` has open may still be read: its owner may always, others as long as
    /// they could open it.
    fn may_read(&self, who: &Credential, handle: &Handle) -> Result<()>;
    /// Identity and attributes. Takes no right but to have the handle.
    fn node(&self, who: &Credential, handle: &Handle) -> Result<Node>;
    /// Sets owner, mode and times; never the size (see [`StoreFile::set_len`]).
    fn set_attr(&self, who: &Credential, handle: &Handle, attr: &SetAttr) -> Result<Node>;
    /// Makes a directory.
    fn mkdir(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Node>;
    /// Removes a name that is not a directory.
    fn unlink(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Removed>;
    /// Removes an empty directory.
    fn rmdir(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<()>;
    /// Renames.
    fn rename(
        &self,
        who: &Credential,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Result<Renamed>;
    /// Entries after `cookie` (0 to begin), about `max_bytes` of names and handles; the flag says
    /// there are no more. Takes the right to read and to search the directory, for entries come with
    /// what they lead to.
    fn readdir(
        &self,
        who: &Credential,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, bool)>;
    /// Makes a symbolic link.
    fn symlink(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        target: &[u8],
    ) -> Result<Node>;
    /// Reads a symbolic link. Takes no right but to have the handle.
    fn readlink(&self, who: &Credential, handle: &Handle) -> Result<Vec<u8>>;
    /// Makes a hard link to a file that is not a directory.
    fn link(
        &self,
        who: &Credential,
        handle: &Handle,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node>;
    /// Most files that one session may have open that it has removed the last names of.
    fn most_removed_open(&self) -> usize {
        usize::MAX
    }
    /// Space and inodes of the file system. Takes no right but to have the handle.
    fn statfs(&self, who: &Credential, handle: &Handle) -> Result<dafs_proto::StatfsReply>;
}

/// A regular file open for data I/O. Independent of the names it has.
pub trait StoreFile: Send + Sync + fmt::Debug {
    /// The cache identity.
    fn identity(&self) -> Identity;
    /// Whether it can be written. What can be read only was opened for reading.
    fn writable(&self) -> bool;
    /// Most bytes the file can have: what the file system, or the server's own limit of file sizes,
    /// allows. No byte behind it can be written.
    fn max_size(&self) -> u64 {
        i64::MAX as u64
    }
    /// Attributes, as the disk has them.
    fn attr(&self) -> Result<Attr>;
    /// Reads until `buffer` is full or the file ends; the count.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;
    /// Bytes that are free on its file system for those who write the file. Where that is not known,
    /// as many as there can be.
    fn available(&self) -> Result<u64> {
        Ok(u64::MAX)
    }
    /// Takes the space that writing these bytes will need, and leaves size and bytes as they are. Does
    /// nothing where the file system cannot. Where it fails, some of the space may have been taken.
    fn reserve(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    /// Where the file lies, for the operator: a path on the server, as far as one is known.
    fn place(&self) -> String {
        let Identity { device, inode, .. } = self.identity();
        format!("inode {inode} on device {device}")
    }
    /// Sets the length.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Makes what was written stable; `data_only` may leave times behind.
    fn sync(&self, data_only: bool) -> Result<()>;
    /// That many clients more have it open. What they have open stays, whatever becomes of its names.
    fn hold(&self, _count: usize) {}
    /// That many have closed it.
    fn release(&self, _count: usize) {}
    /// It is not needed for now: nobody has it open, and all that was written is stable.
    fn rest(&self) {}
    /// Whether it has no name any more and nobody can reach it: what is not written need not be.
    fn is_gone(&self) -> bool {
        false
    }
    /// Sets the modification time, after the pages that were written at that time have been. Where the
    /// server may write the file and not set its times, as another user owns it, sets it to now.
    fn set_mtime(&self, mtime: std::time::SystemTime) -> Result<()>;
}

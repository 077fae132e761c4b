//! Handles that are the kernel's own, for file systems that have them.
//!
//! Wire form: version 1, export id (8 bytes), length and type of the kernel's handle, its bytes;
//! for what is not a directory, the same three of the directory where it was found. The kernel
//! opens any inode of the file system by its handle, so each one is checked to lie in the export
//! before it is used. That is read from its path, or by climbing from a directory to the root where the
//! path is too long to be told. A file that nobody has looked up since the kernel forgot it has no
//! path yet: it is then sought in the directory where it was found, where it was moved to, and at last
//! [everywhere](super::search).

use super::Object;
use super::descriptors::with_room;
use super::search::{self, Found, Moving, Search};
use super::sys::{self, failed, identity_with};
use crate::store::{Handle, Identity, Result, StoreError};
use crate::sync::Mutex;
use dafs_proto::{FileType, Status};
use foldhash::fast::RandomState;
use rustix::fs::{self, Mode, OFlags, RawDir, Statx};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// First byte of a wire handle of this kind.
const VERSION: u8 = 1;
/// Most files of which it is known where they were moved.
const MAX_MOVED: usize = 1 << 16;
/// Deepest directory whose place is looked up.
const MAX_DEPTH: usize = 1 << 16;

/// A kernel handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Raw<'a> {
    fn generation(&self) -> u64 {
        sys::handle_generation(self.kind.into(), self.bytes)
    }

    /// Splits one off the front of `wire`.
    fn split(wire: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[len, kind], rest) = wire.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(len.into())?;
        (len > 0).then_some((Self { kind, bytes }, rest))
    }

    fn append(&self, wire: &mut Vec<u8>) {
        wire.extend([self.bytes.len() as u8, self.kind]);
        wire.extend(self.bytes);
    }
}

/// Directories, as type and bytes of their kernel handles, by the key of the handle of what is there.
type Places = HashMap<Handle, (u8, Box<[u8]>), RandomState>;

/// Makes and opens such handles.
#[derive(Debug)]
pub struct KernelHandles {
    export: [u8; 8],
    /// Open for more than its path: the kernel resolves handles relative to its mount.
    root: OwnedFd,
    root_identity: Identity,
    /// Where files were moved through this server, or found.
    moved: Mutex<Places>,
    search: Search,
}

/// What is the same in all handles of one file: without the place where it was found.
pub fn key(handle: &Handle) -> Handle {
    let bytes = handle.as_bytes();
    let len = match bytes {
        [VERSION, rest @ ..] => rest.get(8).map_or(bytes.len(), |len| 11 + usize::from(*len)),
        _ => bytes.len(),
    };
    match bytes.get(..len) {
        Some(key) if len < bytes.len() => Handle(key.into()),
        _ => handle.clone(),
    }
}

fn stale(why: &str) -> StoreError {
    StoreError::new(Status::StaleHandle, format!("handle: {why}"))
}

impl KernelHandles {
    /// Finds out whether handles of the root's file system can be made and opened.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn probe(root: BorrowedFd<'_>, export: [u8; 8]) -> std::result::Result<Self, String> {
        let root = sys::open_beneath(root, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0.into())
            .map_err(|error| format!("the root cannot be opened: {error}"))?;
        let (kind, bytes) = ordma::os::file_handle(root.as_fd()).map_err(|error| {
            let overlay = fs::fstatfs(&root).is_ok_and(|fs| fs.f_type as u64 == 0x794c_7630);
            let hint = if overlay { "; mount the overlayfs with nfs_export=on" } else { "" };
            format!("the file system makes no file handles: {error}{hint}")
        })?;
        if u8::try_from(kind).is_err() || 12 + bytes.len() > Handle::MAX {
            return Err(format!("its file handles are too long: {} bytes", bytes.len()));
        }
        let flags = OFlags::PATH.bits() as i32;
        let again =
            ordma::os::open_file_handle(root.as_fd(), kind, &bytes, flags).map_err(|error| {
                let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::PERM) => "; it takes the capability CAP_DAC_READ_SEARCH",
                    _ => "",
                };
                format!("file handles cannot be opened: {error}{hint}")
            })?;
        let identity = |fd: &OwnedFd| sys::stat(fd).map(|stat| sys::identity(fd.as_fd(), &stat));
        match (identity(&root), identity(&again)) {
            (Ok(root_identity), Ok(other)) if root_identity == other => {
                fs::readlink(sys::proc_path(&root), Vec::new())
                    .map_err(|error| format!("/proc is not there: {error}"))?;
                let (moved, search) = (Mutex::default(), Search::default());
                Ok(Self { export, root, root_identity, moved, search })
            }
            _ => Err("the root's file handle leads elsewhere".to_owned()),
        }
    }

    /// The wire handle and identity of what was found in `parent`.
    pub fn make(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Statx,
        parent: Option<&Handle>,
    ) -> Result<(Handle, Identity)> {
        let (kind, bytes) = ordma::os::file_handle(fd)
            .map_err(|error| StoreError::io("making a file handle", &error))?;
        let too_long = || failed("making a file handle: it is too long", Errno::OVERFLOW);
        let raw = Raw { kind: u8::try_from(kind).map_err(|_| too_long())?, bytes: &bytes };
        let mut wire = vec![VERSION];
        wire.extend(self.export);
        raw.append(&mut wire);
        if wire.len() > Handle::MAX {
            return Err(too_long());
        }
        if sys::file_type(stat) != FileType::Directory
            && let Some((parent, _)) = parent.and_then(|parent| self.parse(parent))
            && wire.len() + 2 + parent.bytes.len() <= Handle::MAX
        {
            parent.append(&mut wire);
        }
        Ok((Handle::from_wire(&wire)?, identity_with(stat, raw.generation())))
    }

    fn parse<'a>(&self, handle: &'a Handle) -> Option<(Raw<'a>, Option<Raw<'a>>)> {
        let rest = handle.as_bytes().strip_prefix(&[VERSION])?.strip_prefix(&self.export)?;
        let (raw, rest) = Raw::split(rest)?;
        if rest.is_empty() {
            return Some((raw, None));
        }
        let (parent, rest) = Raw::split(rest)?;
        rest.is_empty().then_some((raw, Some(parent)))
    }

    /// Opens what a wire handle names, if that lies in the export. The flag says that it has a name
    /// yet: the kernel opens also what somebody still has open.
    pub fn open(&self, handle: &Handle) -> Result<(Object, bool)> {
        let (raw, parent) = self.parse(handle).ok_or_else(|| stale("not one of this export"))?;
        let fd = self.open_raw(raw)?;
        let stat = sys::stat(&fd).map_err(|error| failed("handle", error))?;
        let identity = identity_with(&stat, raw.generation());
        let kind = sys::file_type(&stat);
        let fd = match self.is_inside(&fd, identity) {
            Some(true) => fd,
            Some(false) => return Err(stale("it leads out of the export")),
            None if kind == FileType::Directory => return Err(stale("it leads out of the export")),
            // No name is left to be found by.
            None if stat.stx_nlink == 0 => return Err(stale("it has no name any more")),
            None => self.locate(handle, parent, identity)?,
        };
        let handle = handle.clone();
        let object = Object { fd, handle, identity, kind };
        Ok((object, stat.stx_nlink > 0))
    }

    fn open_raw(&self, raw: Raw<'_>) -> Result<OwnedFd> {
        self.open_raw_for(raw, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn open_raw_for(&self, raw: Raw<'_>, flags: OFlags) -> Result<OwnedFd> {
        let open = || {
            let (mount, flags) = (self.root.as_fd(), flags.bits() as i32);
            ordma::os::open_file_handle(mount, raw.kind.into(), raw.bytes, flags)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::STALE))
        };
        with_room(open).map_err(|error| match error {
            // Bytes that no file system made are as good as a file that is gone.
            Errno::STALE | Errno::INVAL | Errno::NOENT => stale("there is no such file any more"),
            error => failed("opening a handle", error),
        })
    }

    /// Opens a file once more that was open. Wherever it is by now, those who have it open may go on.
    pub fn reopen(&self, handle: &Handle, flags: OFlags) -> Result<OwnedFd> {
        let (raw, _) = self.parse(handle).ok_or_else(|| stale("not one of this export"))?;
        self.open_raw_for(raw, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK)
    }

    /// Finds a file that has no path yet.
    pub(super) fn locate(
        &self,
        handle: &Handle,
        parent: Option<Raw<'_>>,
        identity: Identity,
    ) -> Result<OwnedFd> {
        let seek = |parent| self.seek(self.open_raw(parent)?, identity);
        if let Some(Ok(fd)) = parent.map(seek) {
            return Ok(fd);
        }
        let key = key(handle);
        let moved = self.moved.lock().get(&key).cloned();
        if let Some((kind, bytes)) = &moved
            && let Ok(fd) = seek(Raw { kind: *kind, bytes })
        {
            return Ok(fd);
        }
        let found = self.search.find(&self.root, identity)?;
        let Some(Found { fd, names }) = found else { return Err(stale("it is not in the export")) };
        let directory = search::open(&self.root, &names[..names.len() - 1])?;
        if let Ok((kind, bytes)) = ordma::os::file_handle(directory.as_fd())
            && let Ok(kind) = u8::try_from(kind)
        {
            self.note_place(key, kind, &bytes);
        }
        Ok(fd)
    }

    /// What moves or makes names holds this meanwhile.
    pub fn moving(&self) -> Moving<'_> {
        self.search.moving()
    }

    /// An object was moved into this directory, or got a name there.
    pub fn moved(&self, object: &Object, directory: &Handle) {
        let is_directory = object.kind == FileType::Directory;
        self.search.moved(&object.identity, is_directory);
        if let Some((parent, _)) = self.parse(directory).filter(|_| !is_directory) {
            self.note_place(key(&object.handle), parent.kind, parent.bytes);
        }
    }

    fn note_place(&self, key: Handle, kind: u8, directory: &[u8]) {
        let mut moved = self.moved.lock();
        if moved.len() >= MAX_MOVED {
            moved.clear();
        }
        moved.insert(key, (kind, directory.into()));
    }

    /// Whether an object lies in the export: by its path, or `None` where that cannot be told.
    fn is_inside(&self, fd: &OwnedFd, identity: Identity) -> Option<bool> {
        if identity == self.root_identity {
            return Some(true);
        }
        let path = |fd| fs::readlink(sys::proc_path(fd), Vec::new());
        let (path, root) = match (path(fd), path(&self.root)) {
            (Ok(path), Ok(root)) => (path.into_bytes(), root.into_bytes()),
            (Err(Errno::NAMETOOLONG), _) | (_, Err(Errno::NAMETOOLONG)) => return self.climb(fd),
            _ => return None,
        };
        let root = if root == b"/" { &[][..] } else { &root[..] };
        match path.strip_prefix(root) {
            Some([b'/', _, ..]) => Some(true),
            // Without a place in the tree, an inode is its own root.
            _ if path == b"/" || !path.starts_with(b"/") => None,
            _ => Some(false),
        }
    }

    /// Whether a directory lies in the export, looked up from it to the root.
    fn climb(&self, fd: &OwnedFd) -> Option<bool> {
        let up = |from: &OwnedFd| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            with_room(|| fs::openat(from, "..", flags, Mode::empty()))
        };
        let place = |fd: &OwnedFd| sys::stat(fd).map(|stat| (sys::device(&stat), stat.stx_ino));
        let root = (self.root_identity.device, self.root_identity.inode);
        let (mut here, mut at) = (place(fd).ok()?, up(fd).ok()?);
        for _ in 0..MAX_DEPTH {
            let above = place(&at).ok()?;
            if above == root {
                return Some(true);
            }
            if above == here {
                return Some(false);
            }
            (here, at) = (above, up(&at).ok()?);
        }
        None
    }

    /// Looks for a file in the directory where it was found when its handle was made.
    pub(super) fn seek(&self, parent: OwnedFd, wanted: Identity) -> Result<OwnedFd> {
        let lost = || stale("it is no longer where it was found");
        let stat = sys::stat(&parent).map_err(|error| failed("handle", error))?;
        let identity = sys::identity(parent.as_fd(), &stat);
        if self.is_inside(&parent, identity) != Some(true) {
            return Err(lost());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = sys::open_beneath(&parent, b".", flags, 0.into())
            .map_err(|error| failed("handle", error))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| failed("handle", error))?;
            if entry.ino() != wanted.inode {
                continue;
            }
            if let Ok(fd) = sys::open_path(&parent, entry.file_name().to_bytes())
                && let Ok(stat) = sys::stat(&fd)
                && sys::identity(fd.as_fd(), &stat) == wanted
            {
                return Ok(fd);
            }
        }
        Err(lost())
    }
}

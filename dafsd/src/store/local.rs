//! The store that is a directory of this host.
//!
//! | module | what it does |
//! |---|---|
//! | [`setup`] | how a directory is offered, and which handles that takes |
//! | [`kernel`] | handles that are the kernel's own |
//! | [`table`], [`journal`] | handles by number, where those cannot be used |
//! | [`descriptors`], [`fds`] | descriptors that are kept open |
//! | [`caller`] | what is done as the caller |
//! | [`entries`] | directories: looking up, creating, removing, renaming, listing |
//! | [`metadata`] | attributes, and what sets them |
//! | [`mounts`] | where another file system begins |
//! | [`search`] | what was moved, and nobody knows where |
//! | [`names`] | names that are being changed |
//! | [`file`] | data I/O |
//! | [`set_id`] | files whose set-id bits go with a write |
//! | [`sys`] | system calls, one name at a time |
//!
//! Handles are resolved as the server's own user, and lead to descriptors that allow nothing yet.
//! What is done with those is done as the caller. Data I/O goes by descriptors of the server's own,
//! shared by all who have proven their right by opening the file themselves, so that what one wrote
//! can be written back whoever opened it first.

use super::{Access, Credential, Handle, Identity, Node, Result, Store, StoreError, StoreFile};
use caller::Owner;
use dafs_proto::{FileType, Status};
use file::{LocalFile, Origin};
use kernel::KernelHandles;
use ordma::complaints;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use set_id::SetId;
use setup::{handle_table, kernel_handles, open_root, table_path};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use sys::failed;
use table::ObjectTable;

mod caller;
mod descriptors;
mod entries;
mod fds;
mod file;
mod journal;
mod kernel;
mod metadata;
mod mounts;
mod names;
mod search;
mod set_id;
mod setup;
mod sys;
mod table;
#[cfg(test)]
mod tests;

pub use descriptors::Descriptors;
pub use setup::{HandleReport, LocalOptions};

/// A directory of this host.
#[derive(Debug)]
pub struct LocalStore {
    options: LocalOptions,
    export: [u8; 8],
    /// What it was opened by.
    path: PathBuf,
    /// The log says that it is not there any more.
    told_gone: AtomicBool,
    origin: Arc<Origin>,
    root: Arc<Object>,
    /// Files that were given set-id bits, which go with the next write of a user's.
    set_id: SetId,
    report: HandleReport,
}

#[derive(Debug)]
enum Handles {
    Kernel(KernelHandles),
    Table(ObjectTable),
}

/// What a handle names, open as `O_PATH`.
#[derive(Debug)]
struct Object {
    fd: OwnedFd,
    handle: Handle,
    identity: Identity,
    kind: FileType,
}

impl Handle {
    /// What is the same in all handles of one file, wherever that was found.
    fn key(&self) -> Self {
        kernel::key(self)
    }
}

impl LocalStore {
    /// Offers the directory `path`. Which handles it can use is probed here; see
    /// [`report`](Self::report).
    ///
    /// # Errors
    /// When `path` is not a directory that can be opened, or the handle table cannot be.
    pub fn new(path: &Path, options: LocalOptions) -> Result<Self> {
        let (fd, export) = open_root(path)?;
        let (handles, report) = match kernel_handles(&fd, export, &options) {
            Ok(handles) => (Handles::Kernel(handles), HandleReport::Kernel),
            Err(why) => {
                let (table, report) = handle_table(&fd, export, &options, why)?;
                (Handles::Table(table), report)
            }
        };
        let stat = sys::stat(&fd).map_err(|error| failed("export root", error))?;
        let (handle, identity) = handles.make(&fd, &stat, None)?;
        let kind = FileType::Directory;
        let root = Arc::new(Object { fd, handle, identity, kind });
        let origin = Arc::new(Origin::new(handles, Arc::clone(&options.descriptors)));
        let set_id = SetId::default();
        let (path, told_gone) = (path.to_owned(), AtomicBool::new(false));
        Ok(Self { options, export, path, told_gone, origin, root, set_id, report })
    }

    /// Finds out which handles a store of the directory `path` would use, and changes nothing.
    ///
    /// # Errors
    /// When `path` is not a directory that can be opened.
    pub fn probe(path: &Path, options: &LocalOptions) -> Result<HandleReport> {
        let (fd, export) = open_root(path)?;
        Ok(match (kernel_handles(&fd, export, options), &options.state) {
            (Ok(_), _) => HandleReport::Kernel,
            (Err(why), Some(state)) => {
                HandleReport::Table { why, path: table_path(state, export), known: None }
            }
            (Err(why), None) => HandleReport::Memory { why },
        })
    }

    /// Which handles are in use, and what other ones would have needed.
    #[must_use]
    pub fn report(&self) -> &HandleReport {
        &self.report
    }

    /// What a handle names.
    fn object(&self, handle: &Handle) -> Result<Arc<Object>> {
        if *handle == self.root.handle {
            return Ok(Arc::clone(&self.root));
        }
        // Descriptors are kept for all exports together.
        if handle.as_bytes().get(1..9) != Some(&self.export) {
            return Err(StoreError::new(Status::StaleHandle, "handle: not one of this export"));
        }
        let Origin { handles, descriptors, .. } = &*self.origin;
        if let Some(object) = descriptors.paths.get(handle) {
            return Ok(object);
        }
        if self.is_mount_point(handle) {
            return Err(mounts::crossing("a mount point"));
        }
        if let Some(file) = descriptors.nameless(handle)
            && let Some(fd) = file.path()
        {
            let fd = fd.map_err(|error| failed("handle", error))?;
            let (handle, identity, kind) = (handle.clone(), file.identity(), FileType::Regular);
            return Ok(Arc::new(Object { fd, handle, identity, kind }));
        }
        let (object, named) = match handles {
            Handles::Kernel(handles) => handles.open(handle)?,
            Handles::Table(table) => (table.open(handle)?, true),
        };
        let object = Arc::new(object);
        if !named {
            if descriptors.known(&object.identity).is_some() {
                return Ok(object);
            }
            let what = "handle: the file has no name any more";
            return Err(StoreError::new(Status::StaleHandle, what));
        }
        descriptors.paths.insert(&object);
        Ok(object)
    }

    /// The object that was found in `parent` under `name`, and its attributes.
    fn found(&self, fd: OwnedFd, parent: &Object, name: &[u8]) -> Result<(Object, Node)> {
        let stat = sys::stat(&fd).map_err(|error| failed(sys::show(name), error))?;
        let (handle, identity) =
            self.origin.handles.make(&fd, &stat, Some((&parent.handle, name)))?;
        let node = Node { handle: handle.clone(), identity, attr: sys::attributes(&stat) };
        Ok((Object { fd, handle, identity, kind: sys::file_type(&stat) }, node))
    }

    /// As [`found`](Self::found), for an object that will be used again.
    fn keep(&self, fd: OwnedFd, parent: &Object, name: &[u8]) -> Result<Node> {
        let (object, node) = self.found(fd, parent, name)?;
        self.origin.descriptors.paths.insert(&Arc::new(object));
        Ok(node)
    }

    fn check_writable(&self, what: &str) -> Result<()> {
        if self.options.read_only {
            return Err(failed(format!("{what}: the export is read-only"), Errno::ROFS));
        }
        Ok(())
    }

    /// A regular file that a handle names.
    fn regular(&self, handle: &Handle, what: &str) -> Result<Arc<Object>> {
        let object = self.object(handle)?;
        let what = || format!("{what} inode {}", object.identity.inode);
        match object.kind {
            FileType::Regular => Ok(object),
            FileType::Directory => Err(failed(what(), Errno::ISDIR)),
            FileType::Symlink => Err(failed(what(), Errno::LOOP)),
            kind => {
                let what =
                    format!("{}: it is no regular file but a {}", what(), sys::kind_name(kind));
                Err(failed(what, Errno::INVAL))
            }
        }
    }

    fn open_file(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
        owner: Owner,
    ) -> Result<Arc<LocalFile>> {
        let write = access.writes();
        if write {
            self.check_writable("open for writing")?;
        }
        let object = self.regular(handle, "open of")?;
        let what = format!("open of inode {}", object.identity.inode);
        caller::prove(who, &object, access, owner, &what)?;
        if write {
            caller::drop_set_id(who, &object, &what)?;
        }
        if let Some(file) = self.origin.descriptors.known(&object.identity) {
            if write {
                file.allow_writing(&object).map_err(|error| failed(what, error))?;
            }
            return Ok(file);
        }
        self.check_room(&what)?;
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = caller::reopen(&object, flags).map_err(|error| failed(&*what, error))?;
        self.opened(&object, fd, write, &what)
    }

    /// Refuses to open another file where none of those that are open can be closed.
    fn check_room(&self, what: &str) -> Result<()> {
        if self.origin.descriptors.has_room() {
            return Ok(());
        }
        let what = format!("{what}: those that are open could not be opened again");
        Err(StoreError::new(Status::TooManyOpenFiles, what))
    }

    /// A file that was opened just now, or by another one meanwhile.
    fn opened(
        &self,
        object: &Object,
        fd: OwnedFd,
        write: bool,
        what: &str,
    ) -> Result<Arc<LocalFile>> {
        let Object { handle, identity, .. } = object;
        let new = || LocalFile::new(&self.origin, handle.clone(), *identity, fd, write);
        let (file, is_new) = self.origin.descriptors.make_known(identity, new);
        if !is_new && write {
            file.allow_writing(object).map_err(|error| failed(what, error))?;
        }
        Ok(file)
    }

    /// Refuses to take the last name of an object away where a client has it open and the server can
    /// keep no more such files open.
    fn check_removal(&self, object: &Object, what: &str) -> Result<()> {
        let known = || self.origin.descriptors.known(&object.identity);
        let is_open = || known().is_some_and(|file| file.is_in_use());
        let is_last = || sys::stat(&object.fd).is_ok_and(|stat| stat.stx_nlink == 1);
        if object.kind != FileType::Regular || !is_open() || !is_last() {
            return Ok(());
        }
        if self.origin.descriptors.may_lose_name() {
            return Ok(());
        }
        let what = format!("{what}: it is open, and so are many files that were removed");
        Err(StoreError::new(Status::TooManyOpenFiles, what))
    }

    /// An object has lost its last name. No descriptor is kept for it, or it would keep its space;
    /// who has it open still reaches it.
    fn lost(&self, object: &Object) {
        let Origin { handles, descriptors, .. } = &*self.origin;
        descriptors.paths.remove(&object.handle);
        if let Handles::Table(table) = handles {
            table.removed(&object.handle);
        }
        let Some(file) = descriptors.known(&object.identity) else { return };
        descriptors.lost_name(&object.handle, &file);
        if file.is_in_use()
            && let Err(error) = file.keep_open(object)
            && let Some(untold) = complaints::take("not kept open", "")
        {
            let inode = object.identity.inode;
            tracing::warn!(%error, inode, untold, "removed, and cannot be kept open");
        }
    }
}

impl Handles {
    fn make(
        &self,
        fd: &OwnedFd,
        stat: &fs::Statx,
        place: Option<(&Handle, &[u8])>,
    ) -> Result<(Handle, Identity)> {
        match self {
            Self::Kernel(handles) => {
                handles.make(fd.as_fd(), stat, place.map(|(parent, _)| parent))
            }
            Self::Table(table) => table.make(fd.as_fd(), stat, place),
        }
    }

    /// What moves or makes names holds this meanwhile.
    fn moving(&self) -> search::Moving<'_> {
        match self {
            Self::Kernel(handles) => handles.moving(),
            Self::Table(table) => table.moving(),
        }
    }

    /// An object has this name now.
    fn moved(&self, object: &Object, to: (&Handle, &[u8])) {
        match self {
            Self::Kernel(handles) => handles.moved(object, to.0),
            Self::Table(table) => table.moved(object, to),
        }
    }

    /// Opens a file once more that was open, as the server.
    fn reopen(&self, handle: &Handle, identity: Identity, flags: OFlags) -> Result<OwnedFd> {
        match self {
            Self::Kernel(handles) => handles.reopen(handle, flags),
            Self::Table(table) => table.reopen(handle, identity, flags),
        }
    }
}

impl Store for LocalStore {
    fn id(&self) -> [u8; 8] {
        self.export
    }

    fn root(&self) -> Handle {
        self.root.handle.clone()
    }

    fn lookup(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Node> {
        self.look_up(who, directory, name)
    }

    fn create(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &super::CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)> {
        let (node, file) = self.create_file(who, directory, name, options)?;
        Ok((node, file.map(|file| file as Arc<dyn StoreFile>)))
    }

    fn open(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>> {
        Ok(self.open_file(who, handle, access, Owner::AsMode)?)
    }

    fn reopen(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>> {
        Ok(self.open_file(who, handle, access, Owner::Always)?)
    }

    fn may_have_set_id(&self, identity: &Identity) -> bool {
        self.set_id.may_have(identity)
    }

    fn drop_set_id(&self, who: &Credential, handle: &Handle) -> Result<bool> {
        let object = self.regular(handle, "writing of")?;
        let what = format!("writing of inode {}", object.identity.inode);
        self.set_id.dropping(&object.identity, || caller::drop_set_id(who, &object, &what))
    }

    fn may_read(&self, who: &Credential, handle: &Handle) -> Result<()> {
        let object = self.regular(handle, "reading of")?;
        let what = format!("reading of inode {}", object.identity.inode);
        caller::prove(who, &object, Access::Read, Owner::Always, &what)
    }

    fn node(&self, _: &Credential, handle: &Handle) -> Result<Node> {
        self.get_node(handle)
    }

    fn set_attr(
        &self,
        who: &Credential,
        handle: &Handle,
        attr: &dafs_proto::SetAttr,
    ) -> Result<Node> {
        self.set_attributes(who, handle, attr)
    }

    fn mkdir(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        attr: &dafs_proto::SetAttr,
    ) -> Result<Node> {
        self.make_directory(who, directory, name, attr)
    }

    fn unlink(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<super::Removed> {
        self.remove_file(who, directory, name)
    }

    fn rmdir(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<()> {
        self.remove_directory(who, directory, name)
    }

    fn rename(
        &self,
        who: &Credential,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Result<super::Renamed> {
        self.move_name(who, from, to)
    }

    fn readdir(
        &self,
        who: &Credential,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<super::Entry>, bool)> {
        self.list(who, directory, cookie, max_bytes)
    }

    fn symlink(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        target: &[u8],
    ) -> Result<Node> {
        self.make_symlink(who, directory, name, target)
    }

    fn readlink(&self, _: &Credential, handle: &Handle) -> Result<Vec<u8>> {
        self.read_symlink(handle)
    }

    fn link(
        &self,
        who: &Credential,
        handle: &Handle,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node> {
        self.make_link(who, handle, directory, name)
    }

    fn most_removed_open(&self) -> usize {
        self.origin.descriptors.most_nameless_each()
    }

    fn statfs(&self, _: &Credential, handle: &Handle) -> Result<dafs_proto::StatfsReply> {
        self.file_system(handle)
    }
}

//! The store that is a directory of this host.
//!
//! | module | what it does |
//! |---|---|
//! | [`setup`] | how a directory is offered, and which handles that takes |
//! | [`kernel`] | handles that are the kernel's own |
//! | [`table`], [`journal`] | handles by number, where those cannot be used |
//! | [`fds`] | descriptors of what was used lately |
//! | [`caller`] | what is done as the caller |
//! | [`entries`] | directories: looking up, creating, removing, renaming, listing |
//! | [`metadata`] | attributes, and what sets them |
//! | [`mounts`] | where another file system begins |
//! | [`file`] | data I/O |
//! | [`set_id`] | files whose set-id bits go with a write |
//! | [`sys`] | system calls, one name at a time |
//!
//! Handles are resolved as the server's own user, and lead to descriptors that allow nothing yet.
//! What is done with those is done as the caller. Data I/O goes by descriptors of the server's own,
//! shared by all who have proven their right by opening the file themselves, so that what one wrote
//! can be written back whoever opened it first.

use super::{Access, Credential, Handle, Identity, Node, Result, Store, StoreError, StoreFile};
use crate::sync::Mutex;
use caller::Owner;
use dafs_proto::{FileType, Status};
use fds::FdCache;
use file::{KnownSize, LocalFile};
use foldhash::fast::RandomState;
use kernel::KernelHandles;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use set_id::SetId;
use setup::{handle_table, kernel_handles, open_root, table_path};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use sys::failed;
use table::ObjectTable;

mod caller;
mod entries;
mod fds;
mod file;
mod journal;
mod kernel;
mod metadata;
mod mounts;
mod set_id;
mod setup;
mod sys;
mod table;
#[cfg(test)]
mod tests;

pub use setup::{HandleReport, LocalOptions};

/// A directory of this host.
#[derive(Debug)]
pub struct LocalStore {
    options: LocalOptions,
    export: [u8; 8],
    handles: Handles,
    root: Arc<Object>,
    objects: FdCache,
    /// Open files, so that opening one twice takes one descriptor.
    files: Mutex<HashMap<Identity, Weak<LocalFile>, RandomState>>,
    /// Open files without a name, by the handle that clients know them by.
    nameless: Mutex<HashMap<Handle, Weak<LocalFile>, RandomState>>,
    /// Files that were given set-id bits, which go with the next write of a user's.
    set_id: SetId,
    /// How large files can be, as far as is known.
    max_size: Arc<KnownSize>,
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
        let objects = FdCache::new(options.descriptors);
        let (files, nameless) = (Mutex::default(), Mutex::default());
        let (set_id, max_size) = (SetId::default(), Arc::default());
        Ok(Self {
            options,
            export,
            handles,
            root,
            objects,
            files,
            nameless,
            set_id,
            max_size,
            report,
        })
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
        if let Some(object) = self.objects.get(handle) {
            return Ok(object);
        }
        if self.is_mount_point(handle) {
            return Err(mounts::crossing("a mount point"));
        }
        let nameless = self.nameless.lock().get(handle).and_then(Weak::upgrade);
        if let Some(file) = nameless {
            let fd = sys::path_of(&*file).map_err(|error| failed("handle", error))?;
            let (handle, identity, kind) = (handle.clone(), file.identity(), FileType::Regular);
            return Ok(Arc::new(Object { fd, handle, identity, kind }));
        }
        let (object, named) = match &self.handles {
            Handles::Kernel(handles) => handles.open(handle)?,
            Handles::Table(table) => (table.open(handle)?, true),
        };
        let object = Arc::new(object);
        if !named {
            let is_open = |file: &Weak<LocalFile>| file.strong_count() > 0;
            if self.files.lock().get(&object.identity).is_some_and(is_open) {
                return Ok(object);
            }
            let what = "handle: the file has no name any more";
            return Err(StoreError::new(Status::StaleHandle, what));
        }
        self.objects.insert(&object);
        Ok(object)
    }

    /// The object that was found in `parent` under `name`, and its attributes.
    fn found(&self, fd: OwnedFd, parent: &Object, name: &[u8]) -> Result<(Object, Node)> {
        let stat = sys::stat(&fd).map_err(|error| failed(sys::show(name), error))?;
        let (handle, identity) = self.handles.make(&fd, &stat, Some((&parent.handle, name)))?;
        let node = Node { handle: handle.clone(), identity, attr: sys::attributes(&stat) };
        Ok((Object { fd, handle, identity, kind: sys::file_type(&stat) }, node))
    }

    /// As [`found`](Self::found), for an object that will be used again.
    fn keep(&self, fd: OwnedFd, parent: &Object, name: &[u8]) -> Result<Node> {
        let (object, node) = self.found(fd, parent, name)?;
        self.objects.insert(&Arc::new(object));
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
        let known = self.files.lock().get(&object.identity).and_then(Weak::upgrade);
        if let Some(file) = known.filter(|file| file.writable() || !write) {
            return Ok(file);
        }
        let reopen = |flags| caller::reopen(&object, flags);
        // Writable where it can be, whatever was asked for, so that pages can be written back by
        // whoever opened the file first.
        let (fd, writable) =
            match reopen(if self.options.read_only { OFlags::RDONLY } else { OFlags::RDWR }) {
                Ok(fd) => (fd, !self.options.read_only),
                // Also where a lease of a local process lets readers in alone.
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY | Errno::AGAIN)
                    if !write =>
                {
                    (reopen(OFlags::RDONLY).map_err(|error| failed(what, error))?, false)
                }
                Err(error) => return Err(failed(what, error)),
            };
        Ok(self.opened(LocalFile::new(fd, object.identity, writable, &self.max_size)))
    }

    /// An object has lost its last name. No descriptor is kept for it, or it would keep its space;
    /// who has it open still reaches it.
    fn lost(&self, object: &Object) {
        self.objects.remove(&object.handle);
        if let Handles::Table(table) = &self.handles {
            table.removed(&object.handle);
        }
        let file =
            self.files.lock().get(&object.identity).filter(|f| f.strong_count() > 0).cloned();
        let mut nameless = self.nameless.lock();
        nameless.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = file {
            nameless.insert(object.handle.clone(), file);
        }
    }

    fn opened(&self, file: LocalFile) -> Arc<LocalFile> {
        let file = Arc::new(file);
        let mut files = self.files.lock();
        if files.len() == files.capacity() {
            files.retain(|_, file| file.strong_count() > 0);
        }
        files.insert(file.identity(), Arc::downgrade(&file));
        file
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

    fn statfs(&self, _: &Credential, handle: &Handle) -> Result<dafs_proto::StatfsReply> {
        self.file_system(handle)
    }
}

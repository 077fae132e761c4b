//! Directories: looking up, creating, removing, renaming, listing.

use super::metadata::{Changes, check_target};
use super::mounts::crossing;
use super::names;
use super::sys::{self, check_name, failed, show};
use super::{LocalFile, LocalStore, Object};
use crate::store::{
    CreateOptions, Credential, Entry, Handle, Node, Removed, Renamed, Result, StoreError,
};
use dafs_proto::{FileType, SetAttr, Status};
use ordma::schedule_point;
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Modes of what is created without one.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// Bytes of kernel entries read at once.
const LIST_BUFFER: usize = 32 << 10;
/// What an entry's attributes take in a reply, about.
const ENTRY_BYTES: usize = 128;
/// How often a name may come and go between two calls before that is an error.
const RACES: usize = 16;

impl LocalStore {
    /// The directory that a handle names.
    fn directory(&self, handle: &Handle, what: &str, name: &[u8]) -> Result<Arc<Object>> {
        let directory = self.object(handle)?;
        if directory.kind != FileType::Directory {
            return Err(failed(format!("{what} {}", show(name)), Errno::NOTDIR));
        }
        Ok(directory)
    }

    /// The error of a call about a name; a directory that was removed makes its handle stale.
    fn error(&self, directory: &Object, what: &str, name: &[u8], error: Errno) -> StoreError {
        let what = format!("{what} {}", show(name));
        if error == Errno::XDEV {
            return crossing(&what);
        }
        let is_gone = || sys::stat(&directory.fd).is_ok_and(|stat| stat.stx_nlink == 0);
        if error == Errno::NOENT && is_gone() {
            if directory.identity == self.root.identity {
                return self.root_is_gone(&what);
            }
            let what = format!("{what}: the directory was removed");
            return StoreError::new(Status::StaleHandle, what);
        }
        failed(what, error)
    }

    /// The error of whatever is asked for after somebody has removed the export's directory. The server
    /// goes on with the directory that it opened, which nobody can put anything into any more.
    fn root_is_gone(&self, what: &str) -> StoreError {
        let path = self.path.display();
        let again = match self.path.symlink_metadata() {
            Ok(_) => ", and there is another one: start dafsd anew to serve that",
            Err(_) => ": make it again and start dafsd anew, or take the export away",
        };
        let why = format!("the export's directory {path} was removed on the server{again}");
        if !self.told_gone.swap(true, Ordering::Relaxed) {
            tracing::error!("{why}");
        }
        StoreError::new(Status::StaleHandle, format!("{what}: {why}"))
    }

    /// The owner that new objects are given, where it is not who makes them.
    fn owner(&self, who: &Credential) -> Option<(u32, u32)> {
        match who {
            Credential::Server => self.options.owner,
            Credential::User { .. } => None,
        }
    }

    pub(super) fn look_up(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node> {
        let what = "looking up";
        if name == b"." || name == b".." {
            return Err(failed(format!("{what} {}", show(name)), Errno::NOENT));
        }
        check_name(what, name)?;
        let directory = self.directory(directory, what, name)?;
        match who.run(|| Ok(sys::open_path(&directory.fd, name)))? {
            Ok(fd) => self.keep(fd, &directory, name),
            Err(Errno::XDEV) => Ok(self.mount_point(&directory, 0)),
            Err(error) => Err(self.error(&directory, what, name, error)),
        }
    }

    pub(super) fn create_file(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<LocalFile>>)> {
        let what = "creating";
        check_name(what, name)?;
        let changes = Changes::parse(&options.attr, &show(name))?;
        let changes = changes.for_new(FILE_MODE, self.owner(who));
        let directory = self.directory(directory, what, name)?;
        let fail = |error| self.error(&directory, what, name, error);
        for _ in 0..RACES {
            if !options.exclusive {
                match who.run(|| Ok(sys::open_path(&directory.fd, name)))? {
                    Ok(fd) => return Ok((self.keep(fd, &directory, name)?, None)),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(fail(error)),
                }
            }
            self.check_writable(what)?;
            self.check_room(&format!("{what} {}", show(name)))?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
            let mode = Mode::RUSR | Mode::WUSR;
            match who.run(|| Ok(sys::open_beneath(&directory.fd, name, flags, mode)))? {
                Ok(fd) => {
                    let path = sys::path_of(&fd).map_err(fail)?;
                    let (object, node) = self.created(who, path, &directory, name, &changes)?;
                    self.set_id.mode_set(&node.identity, node.attr.mode);
                    return Ok((node, Some(self.opened(&object, fd, true, what)?)));
                }
                Err(Errno::EXIST) if !options.exclusive => {}
                // What is removed gives its space back first.
                Err(Errno::NOSPC | Errno::DQUOT) if self.origin.descriptors.discard_removed() => {}
                Err(error) => return Err(fail(error)),
            }
        }
        let what = format!("creating {}: it comes and goes", show(name));
        Err(StoreError::new(Status::TryAgain, what))
    }

    /// Gives a new object its attributes; takes it away again where they are refused.
    fn created(
        &self,
        who: &Credential,
        fd: OwnedFd,
        directory: &Object,
        name: &[u8],
        changes: &Changes,
    ) -> Result<(Arc<Object>, Node)> {
        let (object, _) = self.found(fd, directory, name)?;
        who.run(|| {
            changes.apply(&object, &show(name)).inspect_err(|_| {
                let flags = match object.kind {
                    FileType::Directory => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                if let Err(error) = fs::unlinkat(&directory.fd, name, flags) {
                    tracing::warn!(%error, name = show(name), "cannot take back what was created");
                }
            })
        })?;
        let node = self.node_of(&object)?;
        let object = Arc::new(object);
        self.origin.descriptors.paths.insert(&object);
        Ok((object, node))
    }

    pub(super) fn make_directory(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Node> {
        let what = "making directory";
        self.check_writable(what)?;
        check_name(what, name)?;
        let changes = Changes::parse(attr, &show(name))?;
        let directory = self.directory(directory, what, name)?;
        let fd = who.run(|| {
            fs::mkdirat(&directory.fd, name, Mode::RWXU)
                .and_then(|()| sys::open_path(&directory.fd, name))
                .map_err(|error| self.error(&directory, what, name, error))
        })?;
        let changes = changes.for_new(DIRECTORY_MODE, self.owner(who));
        Ok(self.created(who, fd, &directory, name, &changes)?.1)
    }

    pub(super) fn make_symlink(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        target: &[u8],
    ) -> Result<Node> {
        let what = "making symbolic link";
        self.check_writable(what)?;
        check_name(what, name)?;
        check_target(what, target)?;
        let directory = self.directory(directory, what, name)?;
        let fd = who.run(|| {
            fs::symlinkat(target, &directory.fd, name)
                .and_then(|()| sys::open_path(&directory.fd, name))
                .map_err(|error| self.error(&directory, what, name, error))
        })?;
        let changes = Changes::parse(&SetAttr::default(), &show(name))?;
        let changes = changes.for_new_symlink(self.owner(who));
        Ok(self.created(who, fd, &directory, name, &changes)?.1)
    }

    pub(super) fn make_link(
        &self,
        who: &Credential,
        handle: &Handle,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node> {
        let what = "making link";
        self.check_writable(what)?;
        check_name(what, name)?;
        let object = self.object(handle)?;
        if object.kind == FileType::Directory {
            return Err(failed(format!("{what} {} to a directory", show(name)), Errno::PERM));
        }
        let directory = self.directory(directory, what, name)?;
        // By way of /proc, because linking a descriptor itself takes a capability.
        let path = sys::proc_path(&object.fd);
        let _moving = self.origin.handles.moving();
        who.run(|| {
            fs::linkat(CWD, path, &directory.fd, name, AtFlags::SYMLINK_FOLLOW)
                .map_err(|error| self.error(&directory, what, name, error))
        })?;
        self.origin.handles.moved(&object, (&directory.handle, name));
        self.node_of(&object)
    }

    /// What a name leads to, before it is taken away.
    fn doomed(&self, who: &Credential, directory: &Object, name: &[u8]) -> Result<Option<Object>> {
        match who.run(|| Ok(sys::open_path(&directory.fd, name)))? {
            Ok(fd) => Ok(Some(self.found(fd, directory, name)?.0)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error(directory, "removing", name, error)),
        }
    }

    /// What became of an object whose name was taken away.
    fn removed(&self, object: &Object) -> Result<Removed> {
        let stat = sys::stat(&object.fd).map_err(|error| failed("a removed file", error))?;
        // A directory has links of its own, so only its absence from the tree counts.
        let last = stat.stx_nlink == 0 || object.kind == FileType::Directory;
        if last {
            self.lost(object);
        }
        Ok(Removed { identity: object.identity, last })
    }

    pub(super) fn remove_file(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Removed> {
        let what = "removing";
        self.check_writable(what)?;
        check_name(what, name)?;
        let directory = self.directory(directory, what, name)?;
        let fail = |error| self.error(&directory, what, name, error);
        let _held = names::hold(&[(&directory, name)]);
        let object = self.doomed(who, &directory, name)?.ok_or_else(|| fail(Errno::NOENT))?;
        self.check_removal(&object, &format!("{what} {}", show(name)))?;
        who.run(|| fs::unlinkat(&directory.fd, name, AtFlags::empty()).map_err(fail))?;
        self.removed(&object)
    }

    pub(super) fn remove_directory(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
    ) -> Result<()> {
        let what = "removing directory";
        self.check_writable(what)?;
        check_name(what, name)?;
        let directory = self.directory(directory, what, name)?;
        let fail = |error| self.error(&directory, what, name, error);
        let _held = names::hold(&[(&directory, name)]);
        let object = self.doomed(who, &directory, name)?.ok_or_else(|| fail(Errno::NOENT))?;
        who.run(|| fs::unlinkat(&directory.fd, name, AtFlags::REMOVEDIR).map_err(fail))?;
        self.removed(&object).map(drop)
    }

    pub(super) fn move_name(
        &self,
        who: &Credential,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Result<Renamed> {
        let what = "renaming";
        self.check_writable(what)?;
        check_name(what, from.1)?;
        check_name(what, to.1)?;
        let source = self.directory(from.0, what, from.1)?;
        let target = self.directory(to.0, what, to.1)?;
        let what = format!("renaming {} to", show(from.1));
        let _held = names::hold(&[(&source, from.1), (&target, to.1)]);
        schedule_point("rename: before the look");
        let moved = self.doomed(who, &source, from.1)?;
        let moved = moved.ok_or_else(|| self.error(&source, "renaming", from.1, Errno::NOENT))?;
        let replaced = self.doomed(who, &target, to.1)?;
        if let Some(replaced) = replaced.as_ref().filter(|it| it.identity != moved.identity) {
            self.check_removal(replaced, &format!("{what} {}", show(to.1)))?;
        }
        let _moving = self.origin.handles.moving();
        schedule_point("rename: before the deed");
        who.run(|| {
            fs::renameat(&source.fd, from.1, &target.fd, to.1)
                .map_err(|error| self.error(&target, &what, to.1, error))
        })?;
        schedule_point("rename: after the deed");
        // Two names of one file: the kernel leaves both.
        let replaced = replaced.filter(|replaced| replaced.identity != moved.identity);
        self.origin.handles.moved(&moved, (&target.handle, to.1));
        let replaced = replaced.map(|replaced| self.removed(&replaced)).transpose()?;
        Ok(Renamed { moved: moved.identity, replaced })
    }

    pub(super) fn list(
        &self,
        who: &Credential,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        let what = "listing";
        if self.is_mount_point(directory) {
            return Ok((Vec::new(), true));
        }
        let directory = self.directory(directory, what, b".")?;
        let fail = |error| match error {
            Errno::NOENT => self.error(&directory, what, b".", error),
            error => failed(format!("listing inode {}", directory.identity.inode), error),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        // To open `.` takes the rights to read and to search, so that the entries can then be
        // opened as the server.
        let fd =
            who.run(|| sys::open_beneath(&directory.fd, b".", flags, Mode::empty()).map_err(fail))?;
        if cookie != 0 {
            // A cookie that no entry had is the file system's to refuse or to place.
            if i64::try_from(cookie).is_err() {
                return Err(fail(Errno::INVAL));
            }
            fs::seek(&fd, SeekFrom::Start(cookie)).map_err(fail)?;
        }
        let mut buffer = Vec::with_capacity(LIST_BUFFER);
        let mut kernel_entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = kernel_entries.next() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let node = match sys::open_path(&directory.fd, name) {
                Ok(fd) => self.found(fd, &directory, name)?.1,
                Err(Errno::XDEV) => self.mount_point(&directory, entry.ino()),
                // Gone since.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(self.error(&directory, what, name, error)),
            };
            bytes += name.len() + node.handle.as_bytes().len() + ENTRY_BYTES;
            if bytes > max_bytes && !entries.is_empty() {
                return Ok((entries, false));
            }
            entries.push(Entry { name: name.to_vec(), cookie: entry.next_entry_cookie(), node });
        }
        Ok((entries, true))
    }
}

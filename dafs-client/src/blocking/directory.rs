//! A directory that is held, so that nobody walks to it again.

use super::{Client, File};
use crate::error::{Error, Result};
use crate::ops::{Core, DirEntry, OpenOptions};
use crate::sync::for_each;
use dafs_proto::{Attr, FileType, Op, SetAttr, Status};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Requests of one call that are under way at a time.
const IN_FLIGHT: usize = 32;

/// A directory of an export. What is done to names in it costs no walk from the root, however deep it
/// lies, and goes on in the same directory when that is moved. Clones are the same directory.
///
/// Names are single ones, without a slash; a symbolic link is never followed.
#[derive(Clone, Debug)]
pub struct Directory {
    core: Core,
    handle: Arc<[u8]>,
    /// For messages.
    path: Arc<Path>,
}

impl Client {
    /// The directory that a path leads to.
    ///
    /// # Errors
    /// The server's; [`NotDirectory`](Status::NotDirectory) where it is something else; those of the
    /// connection.
    pub fn directory(&self, path: impl AsRef<Path>) -> Result<Directory> {
        let path = path.as_ref();
        let node = self.core.owner.block_on(self.core.walk(path, true))?;
        Directory::new(&self.core, node.handle, &node.attr, path.into())
    }
}

impl Directory {
    fn new(core: &Core, handle: Vec<u8>, attr: &Attr, path: PathBuf) -> Result<Self> {
        if !matches!(attr.r#type(), FileType::Directory | FileType::MountPoint) {
            return Err(Error::Status {
                op: Op::Lookup,
                status: Status::NotDirectory,
                message: String::new(),
                what: format!("{path:?}"),
            });
        }
        Ok(Self { core: core.clone(), handle: handle.into(), path: path.into() })
    }

    /// A name in it, for messages.
    fn what(&self, name: &Path) -> String {
        format!("{:?}", self.path.join(name))
    }

    /// Its own attributes.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn attr(&self) -> Result<Attr> {
        let what = format!("{:?}", self.path);
        self.core.owner.block_on(self.core.getattr_of(&self.handle, &what))
    }

    /// Sets its own attributes; gives the new ones.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn set_attr(&self, set: SetAttr) -> Result<Attr> {
        let what = format!("{:?}", self.path);
        self.core.owner.block_on(self.core.setattr_of(&self.handle, set, &what))
    }

    /// Sets attributes of several directories of one client, of which this is one, a bounded number of
    /// them at a time; each with what came of it.
    pub fn set_attr_each(&self, wanted: &[(&Self, SetAttr)]) -> Vec<Result<Attr>> {
        let sets = for_each(wanted, IN_FLIGHT, |(directory, set)| {
            Box::pin(async move {
                let what = format!("{:?}", directory.path);
                self.core.setattr_of(&directory.handle, *set, &what).await
            })
        });
        self.core.owner.block_on(sets)
    }

    /// Its entries, in the server's order, without `.` and `..`.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
        let what = format!("{:?}", self.path);
        self.core.owner.block_on(self.core.entries_of(&self.handle, &what))
    }

    /// Hands its entries out one by one, for as long as `take` wants more.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn each_entry(&self, take: impl FnMut(DirEntry) -> bool) -> Result<()> {
        let what = format!("{:?}", self.path);
        self.core.owner.block_on(self.core.each_entry(&self.handle, &what, take))
    }

    /// A name in it.
    ///
    /// # Errors
    /// The server's, such as [`NoEntry`](Status::NoEntry); those of the connection.
    pub fn entry(&self, name: impl AsRef<Path>) -> Result<DirEntry> {
        let name = name.as_ref();
        let what = self.what(name);
        let lookup = self.core.lookup(&self.handle, bytes(name)?, &what);
        let node = self.core.owner.block_on(lookup)?;
        Ok(DirEntry { name: name.into(), attr: Some(node.attr), handle: node.handle })
    }

    /// A directory in it. Costs no request where the entry came with all that is needed.
    ///
    /// # Errors
    /// As for [`Client::directory`].
    pub fn directory(&self, entry: &DirEntry) -> Result<Self> {
        let path = self.path.join(&entry.name);
        match &entry.attr {
            Some(attr) if !entry.handle.is_empty() => {
                Self::new(&self.core, entry.handle.clone(), attr, path)
            }
            _ => {
                let DirEntry { attr, handle, .. } = self.entry(&entry.name)?;
                Self::new(&self.core, handle, &attr.unwrap_or_default(), path)
            }
        }
    }

    /// Opens a file in it.
    ///
    /// # Errors
    /// As for [`Client::open_with`]; [`Loop`](Status::Loop) for a symbolic link.
    pub fn open(&self, name: impl AsRef<Path>, options: OpenOptions) -> Result<File> {
        let name = name.as_ref();
        let what = self.what(name);
        let open = self.core.open_in(&self.handle, bytes(name)?, options, &what);
        let file = self.core.owner.block_on(open)?;
        Ok(File::from_parts(self.core.clone(), file))
    }

    /// Creates a directory in it; also gives the attributes that it has got.
    ///
    /// # Errors
    /// As for [`Client::mkdir`].
    pub fn mkdir(&self, name: impl AsRef<Path>, mode: u32) -> Result<(Self, Attr)> {
        let name = name.as_ref();
        let what = self.what(name);
        let mkdir = self.core.mkdir_in(&self.handle, bytes(name)?, mode, &what);
        let node = self.core.owner.block_on(mkdir)?;
        let made = Self::new(&self.core, node.handle, &node.attr, self.path.join(name))?;
        Ok((made, node.attr))
    }

    /// Removes a name in it that is not a directory's.
    ///
    /// # Errors
    /// As for [`Client::unlink`].
    pub fn unlink(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        let what = self.what(name);
        self.core.owner.block_on(self.core.unlink_in(&self.handle, bytes(name)?, &what))
    }

    /// The same for several names, a bounded number of them at a time; each with what came of it.
    pub fn unlink_all<P: AsRef<Path>>(&self, names: &[P]) -> Vec<Result<()>> {
        let names: Vec<_> = names.iter().map(|name| (self, name.as_ref())).collect();
        self.unlink_each(&names)
    }

    /// The same for names in several directories of one client, of which this is one.
    pub fn unlink_each(&self, names: &[(&Self, &Path)]) -> Vec<Result<()>> {
        let unlinks = for_each(names, IN_FLIGHT, |(directory, name)| {
            Box::pin(async move {
                let what = directory.what(name);
                self.core.unlink_in(&directory.handle, bytes(name)?, &what).await
            })
        });
        self.core.owner.block_on(unlinks)
    }

    /// Directories in it, each with its entries, a bounded number of them asked for at a time. A
    /// handle that is stale by now, since something else has got the name, say, is looked up once
    /// more.
    pub fn enter_all(&self, entries: &[&DirEntry]) -> Vec<Result<(Self, Vec<DirEntry>)>> {
        let all = for_each(entries, IN_FLIGHT, |entry| Box::pin(self.entered(entry)));
        self.core.owner.block_on(all)
    }

    /// The same for one.
    ///
    /// # Errors
    /// As for [`Client::directory`] and [`entries`](Self::entries).
    pub fn enter(&self, entry: &DirEntry) -> Result<(Self, Vec<DirEntry>)> {
        self.core.owner.block_on(self.entered(entry))
    }

    async fn entered(&self, entry: &DirEntry) -> Result<(Self, Vec<DirEntry>)> {
        let path = self.path.join(&entry.name);
        let what = format!("{path:?}");
        if let Some(attr) = &entry.attr
            && !entry.handle.is_empty()
        {
            let entered = Self::new(&self.core, entry.handle.clone(), attr, path.clone())?;
            match self.core.entries_of(&entered.handle, &what).await {
                Err(error) if error.status() == Some(Status::StaleHandle) => {}
                entries => return Ok((entered, entries?)),
            }
        }
        let node = self.core.lookup(&self.handle, bytes(&entry.name)?, &what).await?;
        let entered = Self::new(&self.core, node.handle, &node.attr, path)?;
        let entries = self.core.entries_of(&entered.handle, &what).await?;
        Ok((entered, entries))
    }

    /// Removes an empty directory in it.
    ///
    /// # Errors
    /// As for [`Client::rmdir`].
    pub fn rmdir(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        let what = self.what(name);
        self.core.owner.block_on(self.core.rmdir_in(&self.handle, bytes(name)?, &what))
    }

    /// The same for several names, a bounded number of them at a time; each with what came of it.
    pub fn rmdir_all<P: AsRef<Path>>(&self, names: &[P]) -> Vec<Result<()>> {
        let removals = for_each(names, IN_FLIGHT, |name| {
            let name = name.as_ref();
            Box::pin(async move {
                self.core.rmdir_in(&self.handle, bytes(name)?, &self.what(name)).await
            })
        });
        self.core.owner.block_on(removals)
    }

    /// Gives what has one name in it another one, replacing what bears that.
    ///
    /// # Errors
    /// As for [`Client::rename`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let what = format!("{} to {}", self.what(from), self.what(to));
        let (from, to) = ((&*self.handle, bytes(from)?), (&*self.handle, bytes(to)?));
        self.core.owner.block_on(self.core.rename_in(from, to, &what))
    }

    /// Creates a symbolic link in it.
    ///
    /// # Errors
    /// As for [`Client::symlink`].
    pub fn symlink(&self, target: impl AsRef<Path>, name: impl AsRef<Path>) -> Result<Attr> {
        let name = name.as_ref();
        let what = self.what(name);
        let link = self.core.symlink_in(target.as_ref(), &self.handle, bytes(name)?, &what);
        self.core.owner.block_on(link)
    }

    /// Gives something that is no directory a name in it; `existing` comes from this or another
    /// directory of the same client.
    ///
    /// # Errors
    /// As for [`Client::link`].
    pub fn link(&self, existing: &DirEntry, name: impl AsRef<Path>) -> Result<Attr> {
        let name = name.as_ref();
        let what = self.what(name);
        let link = self.core.link_in(&existing.handle, &self.handle, bytes(name)?, &what);
        self.core.owner.block_on(link)
    }

    /// What symbolic links in it hold, a bounded number of them asked for at a time; each with what
    /// came of it.
    pub fn read_links(&self, entries: &[&DirEntry]) -> Vec<Result<PathBuf>> {
        let reads = for_each(entries, IN_FLIGHT, |entry| {
            Box::pin(async move {
                let what = self.what(&entry.name);
                let target = if entry.handle.is_empty() {
                    let node = self.core.lookup(&self.handle, bytes(&entry.name)?, &what).await?;
                    self.core.readlink_of(&node.handle, &what).await?
                } else {
                    self.core.readlink_of(&entry.handle, &what).await?
                };
                Ok(std::ffi::OsStr::from_bytes(&target).into())
            })
        });
        self.core.owner.block_on(reads)
    }
}

/// The bytes of a single name.
fn bytes(name: &Path) -> Result<&[u8]> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&b'/') || bytes == b"." || bytes == b".." {
        return Err(Error::InvalidArgument(format!("{name:?} is no name in a directory")));
    }
    Ok(bytes)
}

//! Operations on names and attributes.

mod inside;
mod open;
mod walk;

pub use open::OpenOptions;

use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::session::Owner;
use crate::session::rpc::CallError;
use dafs_proto::{
    Attr, FileType, GetAttrRequest, LookupRequest, Op, ReadlinkRequest, SetAttr, SetAttrRequest,
    StatfsReply, StatfsRequest, StatsRequest, Status,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walk::show;

/// A client, as both interfaces use it.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) owner: Arc<Owner>,
}

/// Something that a path led to.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) handle: Vec<u8>,
    pub(crate) attr: Attr,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name, without a path.
    pub name: PathBuf,
    /// The attributes, if the server gave them.
    pub attr: Option<Attr>,
    /// What the server calls it; empty if it did not say.
    pub(crate) handle: Vec<u8>,
}

impl DirEntry {
    /// What the entry is, if the server said so.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        self.attr.as_ref().map_or(FileType::Unknown, Attr::r#type)
    }
}

impl Core {
    /// Attributes are not optional in the replies that must bring them.
    fn attr(&self, attr: Option<Attr>, op: Op) -> Result<Attr> {
        attr.ok_or_else(|| Error::Protocol {
            peer: self.owner.peer(),
            reason: format!("a reply to {op} without attributes"),
        })
    }

    pub(crate) async fn lookup(&self, directory: &[u8], name: &[u8], what: &str) -> Result<Node> {
        let make = || LookupRequest { directory: directory.to_vec(), name: name.to_vec() };
        let reply = self.owner.call(what, make).await?;
        Ok(Node { handle: reply.handle, attr: self.attr(reply.attr, Op::Lookup)? })
    }

    pub(crate) async fn readlink_of(&self, handle: &[u8], what: &str) -> Result<Vec<u8>> {
        let make = || ReadlinkRequest { handle: handle.to_vec() };
        Ok(self.owner.call(what, make).await?.target)
    }

    pub(crate) async fn getattr_of(&self, handle: &[u8], what: &str) -> Result<Attr> {
        let make = || GetAttrRequest { handle: handle.to_vec() };
        let reply = self.owner.call(what, make).await?;
        self.attr(reply.attr, Op::GetAttr)
    }

    pub(crate) async fn setattr_of(&self, handle: &[u8], set: SetAttr, what: &str) -> Result<Attr> {
        let make = || SetAttrRequest {
            handle: handle.to_vec(),
            attr: Some(set),
            ..SetAttrRequest::default()
        };
        let reply = self.owner.call(what, make).await?;
        self.attr(reply.attr, Op::SetAttr)
    }

    /// Sets attributes of an open file.
    pub(crate) async fn set_attr_of(&self, file: &Arc<OpenFile>, set: SetAttr) -> Result<Attr> {
        if set.size.is_some() {
            let attr = crate::write::set_size(file, set).await?;
            return self.attr(attr, Op::SetAttr);
        }
        let attr = self.setattr_of(&file.handle, set, &file.name).await?;
        file.state.rest_on(self.owner.grant()?.machine_boot);
        Ok(attr)
    }

    /// Closes a file, whatever the server says. Where it has writes that are not committed, and no
    /// other open to commit them, that is done in the background first.
    pub(crate) async fn close(&self, file: &Arc<OpenFile>) -> Result<()> {
        match file.set_closed() {
            None => return Ok(()),
            Some(Some(successor)) => {
                self.owner.files.linger(successor, self.owner.now());
                return Ok(());
            }
            Some(None) => {}
        }
        match file.close_open().await {
            // An open goes with its session.
            Ok(()) | Err(CallError::SessionLost { .. }) => Ok(()),
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    pub(crate) async fn metadata(&self, path: &Path, follow: bool) -> Result<Attr> {
        let node = self.walk(path, follow).await?;
        // The walk's last LOOKUP told; the root's attributes may be as old as the connection.
        if walk::is_root(path) {
            return self.getattr_of(&node.handle, &show(path)).await;
        }
        Ok(node.attr)
    }

    pub(crate) async fn set_attr(&self, path: &Path, set: SetAttr) -> Result<Attr> {
        let node = self.walk(path, true).await?;
        if set.size.is_some() {
            let what = show(path);
            let attr = crate::write::set_size_of(&self.owner, &node.handle, set, &what).await?;
            return self.attr(attr, Op::SetAttr);
        }
        self.setattr_of(&node.handle, set, &show(path)).await
    }

    pub(crate) async fn mkdir(&self, path: &Path, mode: u32) -> Result<Attr> {
        let (directory, name) = self.parent(path).await?;
        Ok(self.mkdir_in(&directory, &name, mode, &show(path)).await?.attr)
    }

    pub(crate) async fn unlink(&self, path: &Path) -> Result<()> {
        let (directory, name) = self.parent_of_file(path, Op::Unlink).await?;
        self.unlink_in(&directory, &name, &show(path)).await
    }

    pub(crate) async fn rmdir(&self, path: &Path) -> Result<()> {
        let (directory, name) = self.parent(path).await?;
        self.rmdir_in(&directory, &name, &show(path)).await
    }

    pub(crate) async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        if walk::ends_with_slash(from) || walk::ends_with_slash(to) {
            let node = self.walk(from, false).await?;
            if node.attr.r#type() != FileType::Directory {
                return Err(Error::Status {
                    op: Op::Rename,
                    status: Status::NotDirectory,
                    message: "a slash ends the name that it is to get".into(),
                    what: format!("{} to {}", show(from), show(to)),
                });
            }
        }
        let (from_directory, from_name) = self.parent(from).await?;
        let (to_directory, to_name) = self.parent(to).await?;
        let what = format!("{} to {}", show(from), show(to));
        self.rename_in((&from_directory, &from_name), (&to_directory, &to_name), &what).await
    }

    pub(crate) async fn symlink(&self, target: &Path, path: &Path) -> Result<Attr> {
        let (directory, name) = self.parent_of_file(path, Op::Symlink).await?;
        self.symlink_in(target, &directory, &name, &show(path)).await
    }

    pub(crate) async fn readlink(&self, path: &Path) -> Result<PathBuf> {
        let node = self.walk(path, false).await?;
        self.readlink_of(&node.handle, &show(path)).await.map(walk::path_buf)
    }

    pub(crate) async fn link(&self, existing: &Path, path: &Path) -> Result<Attr> {
        let node = self.walk(existing, false).await?;
        let (directory, name) = self.parent_of_file(path, Op::Link).await?;
        let what = format!("{} as {}", show(existing), show(path));
        self.link_in(&node.handle, &directory, &name, &what).await
    }

    pub(crate) async fn statfs(&self, path: &Path) -> Result<StatfsReply> {
        let node = self.walk(path, true).await?;
        let make = || StatfsRequest { handle: node.handle.clone() };
        self.owner.call(&show(path), make).await
    }

    pub(crate) async fn server_stats(&self) -> Result<Vec<(String, u64)>> {
        let reply = self.owner.call("the server", StatsRequest::default).await?;
        Ok(reply.counters.into_iter().map(|counter| (counter.name, counter.value)).collect())
    }

    pub(crate) async fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let directory = self.walk(path, true).await?.handle;
        self.entries_of(&directory, &show(path)).await
    }
}

//! Operations on names and attributes.

mod open;
mod walk;

pub use open::OpenOptions;

use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::session::Owner;
use crate::session::rpc::CallError;
use dafs_proto::{
    Attr, FileType, GetAttrRequest, LinkRequest, LookupRequest, MkdirRequest, Op, ReaddirRequest,
    ReadlinkRequest, RenameRequest, RmdirRequest, SetAttr, SetAttrRequest, StatfsReply,
    StatfsRequest, StatsRequest, SymlinkRequest, UnlinkRequest,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walk::show;

/// Bytes of directory entries to ask for at a time.
const READDIR_BYTES: u32 = 32 << 10;
/// Most entries of a directory that are listed.
const MAX_ENTRIES: usize = 1 << 24;

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
        let attr = Some(SetAttr { mode: Some(mode), ..SetAttr::default() });
        let make = || MkdirRequest { directory: directory.clone(), name: name.clone(), attr };
        let reply = self.owner.call(&show(path), make).await?;
        self.attr(reply.attr, Op::Mkdir)
    }

    pub(crate) async fn unlink(&self, path: &Path) -> Result<()> {
        let (directory, name) = self.parent(path).await?;
        let make = || UnlinkRequest { directory: directory.clone(), name: name.clone() };
        self.owner.call(&show(path), make).await.map(drop)
    }

    pub(crate) async fn rmdir(&self, path: &Path) -> Result<()> {
        let (directory, name) = self.parent(path).await?;
        let make = || RmdirRequest { directory: directory.clone(), name: name.clone() };
        self.owner.call(&show(path), make).await.map(drop)
    }

    pub(crate) async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from_directory, from_name) = self.parent(from).await?;
        let (to_directory, to_name) = self.parent(to).await?;
        let make = || RenameRequest {
            from_directory: from_directory.clone(),
            from_name: from_name.clone(),
            to_directory: to_directory.clone(),
            to_name: to_name.clone(),
        };
        self.owner.call(&format!("{} to {}", show(from), show(to)), make).await.map(drop)
    }

    pub(crate) async fn symlink(&self, target: &Path, path: &Path) -> Result<Attr> {
        let (directory, name) = self.parent(path).await?;
        let target = walk::bytes(target).to_vec();
        let make = || SymlinkRequest {
            directory: directory.clone(),
            name: name.clone(),
            target: target.clone(),
        };
        let reply = self.owner.call(&show(path), make).await?;
        self.attr(reply.attr, Op::Symlink)
    }

    pub(crate) async fn readlink(&self, path: &Path) -> Result<PathBuf> {
        let node = self.walk(path, false).await?;
        self.readlink_of(&node.handle, &show(path)).await.map(walk::path_buf)
    }

    pub(crate) async fn link(&self, existing: &Path, path: &Path) -> Result<Attr> {
        let node = self.walk(existing, false).await?;
        let (directory, name) = self.parent(path).await?;
        let make = || LinkRequest {
            handle: node.handle.clone(),
            directory: directory.clone(),
            name: name.clone(),
        };
        let what = format!("{} as {}", show(existing), show(path));
        let reply = self.owner.call(&what, make).await?;
        self.attr(reply.attr, Op::Link)
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
        let what = show(path);
        let broken = |reason: &str| Error::Protocol {
            peer: self.owner.peer(),
            reason: format!("READDIR {what}: {reason}"),
        };
        let mut entries = Vec::new();
        let mut cookie = 0;
        loop {
            let make = || ReaddirRequest {
                directory: directory.clone(),
                cookie,
                max_bytes: READDIR_BYTES,
            };
            let reply = self.owner.call(&what, make).await?;
            let before = cookie;
            for entry in reply.entries {
                if !walk::is_name(&entry.name) {
                    return Err(broken("an entry's name is empty or holds a slash or a zero byte"));
                }
                if entries.len() == MAX_ENTRIES {
                    return Err(broken("the directory does not end"));
                }
                cookie = entry.cookie;
                if entry.name != b"." && entry.name != b".." {
                    entries.push(DirEntry { name: walk::path_buf(entry.name), attr: entry.attr });
                }
            }
            if reply.end {
                return Ok(entries);
            }
            if cookie == before {
                return Err(broken("a part of the list neither ends nor goes on"));
            }
        }
    }
}

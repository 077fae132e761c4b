//! Operations on names in a directory whose handle is known.

use super::{Core, DirEntry, Node, walk};
use crate::error::{Error, Result};
use dafs_proto::{
    Attr, LinkRequest, MkdirRequest, Op, ReaddirRequest, RenameRequest, RmdirRequest, SetAttr,
    SymlinkRequest, UnlinkRequest,
};
use std::path::Path;

/// Bytes of directory entries to ask for at a time.
const READDIR_BYTES: u32 = 32 << 10;
/// Most entries of a directory that are handed out one by one.
const MAX_ENTRIES: usize = 1 << 24;
/// Most bytes of memory that a list of entries takes: enough for about a million of them.
const MAX_LIST: usize = 384 << 20;
/// Bytes that an allocation takes besides what is asked for, about.
const OVERHEAD: usize = 16;

impl Core {
    pub(crate) async fn mkdir_in(
        &self,
        directory: &[u8],
        name: &[u8],
        mode: u32,
        what: &str,
    ) -> Result<Node> {
        let attr = Some(SetAttr { mode: Some(mode), ..SetAttr::default() });
        let make = || MkdirRequest { directory: directory.to_vec(), name: name.to_vec(), attr };
        let reply = self.owner.call(what, make).await?;
        Ok(Node { handle: reply.handle, attr: self.attr(reply.attr, Op::Mkdir)? })
    }

    pub(crate) async fn unlink_in(&self, directory: &[u8], name: &[u8], what: &str) -> Result<()> {
        let make = || UnlinkRequest { directory: directory.to_vec(), name: name.to_vec() };
        self.owner.call(what, make).await.map(drop)
    }

    pub(crate) async fn rmdir_in(&self, directory: &[u8], name: &[u8], what: &str) -> Result<()> {
        let make = || RmdirRequest { directory: directory.to_vec(), name: name.to_vec() };
        self.owner.call(what, make).await.map(drop)
    }

    pub(crate) async fn rename_in(
        &self,
        from: (&[u8], &[u8]),
        to: (&[u8], &[u8]),
        what: &str,
    ) -> Result<()> {
        let make = || RenameRequest {
            from_directory: from.0.to_vec(),
            from_name: from.1.to_vec(),
            to_directory: to.0.to_vec(),
            to_name: to.1.to_vec(),
        };
        self.owner.call(what, make).await.map(drop)
    }

    pub(crate) async fn symlink_in(
        &self,
        target: &Path,
        directory: &[u8],
        name: &[u8],
        what: &str,
    ) -> Result<Attr> {
        let target = walk::bytes(target);
        let make = || SymlinkRequest {
            directory: directory.to_vec(),
            name: name.to_vec(),
            target: target.to_vec(),
        };
        let reply = self.owner.call(what, make).await?;
        self.attr(reply.attr, Op::Symlink)
    }

    pub(crate) async fn link_in(
        &self,
        handle: &[u8],
        directory: &[u8],
        name: &[u8],
        what: &str,
    ) -> Result<Attr> {
        let make = || LinkRequest {
            handle: handle.to_vec(),
            directory: directory.to_vec(),
            name: name.to_vec(),
        };
        let reply = self.owner.call(what, make).await?;
        self.attr(reply.attr, Op::Link)
    }

    pub(crate) async fn entries_of(&self, directory: &[u8], what: &str) -> Result<Vec<DirEntry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let all = |entry: DirEntry| {
            let name = entry.name.as_os_str().len();
            bytes += size_of::<DirEntry>() + name + entry.handle.len() + 2 * OVERHEAD;
            entries.push(entry);
            bytes <= MAX_LIST
        };
        self.each_entry(directory, what, all).await?;
        if bytes > MAX_LIST {
            let peer = self.owner.peer();
            let (count, most) = (entries.len(), MAX_LIST >> 20);
            let reason = format!("READDIR {what}: {count} entries take more than {most} MiB");
            return Err(Error::Protocol { peer, reason });
        }
        Ok(entries)
    }

    /// Hands out a directory's entries one by one, for as long as `take` wants more.
    pub(crate) async fn each_entry(
        &self,
        directory: &[u8],
        what: &str,
        mut take: impl FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let broken = |reason: &str| Error::Protocol {
            peer: self.owner.peer(),
            reason: format!("READDIR {what}: {reason}"),
        };
        let (mut count, mut cookie) = (0, 0);
        loop {
            let make = || ReaddirRequest {
                directory: directory.to_vec(),
                cookie,
                max_bytes: READDIR_BYTES,
            };
            let reply = self.owner.call(what, make).await?;
            let before = cookie;
            for entry in reply.entries {
                if !walk::is_name(&entry.name) {
                    return Err(broken("an entry's name is empty or holds a slash or a zero byte"));
                }
                if count == MAX_ENTRIES {
                    return Err(broken("the directory does not end"));
                }
                count += 1;
                cookie = entry.cookie;
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let name = walk::path_buf(entry.name);
                if !take(DirEntry { name, attr: entry.attr, handle: entry.handle }) {
                    return Ok(());
                }
            }
            if reply.end {
                return Ok(());
            }
            if cookie == before {
                return Err(broken("a part of the list neither ends nor goes on"));
            }
        }
    }
}

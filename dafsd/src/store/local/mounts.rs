//! Places where another file system is mounted. What is in it is no part of the export, but the name is
//! there, and nothing else can have it: it is shown as an empty directory of its own kind.
//!
//! Wire form of the handle: version 3, export id (8 bytes), a mark (which no other handle has there), the
//! directory's device, inode and generation (8 bytes each). It leads nowhere, and nothing of the other file system is asked, which may not answer.

use super::sys::failed;
use super::{LocalStore, Object};
use crate::store::{Handle, Identity, Node, StoreError};
use dafs_proto::{Attr, FileType};
use rustix::io::Errno;

/// First byte of a wire handle of this kind.
const VERSION: u8 = 3;
/// Behind the export id, where the kernel's handles have a length.
const MARK: u8 = 0xff;
/// Why a mount point can be listed, and nothing more.
const WHY: &str = "another file system is mounted there, which is no part of the export";

/// The error of whatever would lead into the other file system.
pub fn crossing(what: &str) -> StoreError {
    failed(format!("{what}: {WHY}"), Errno::XDEV)
}

impl LocalStore {
    /// A mount point in a directory; its inode, where it is known.
    pub(super) fn mount_point(&self, directory: &Object, inode: u64) -> Node {
        let Identity { device, inode: parent, generation } = directory.identity;
        let mut wire = vec![VERSION];
        wire.extend(self.export);
        wire.push(MARK);
        for number in [device, parent, generation] {
            wire.extend(number.to_le_bytes());
        }
        let handle = Handle(wire.into());
        let attr = Attr { r#type: FileType::MountPoint.into(), nlink: 1, inode, ..Attr::default() };
        // No file has this identity: a device has a number.
        Node { handle, identity: Identity { device: 0, inode, generation: 0 }, attr }
    }

    /// Whether a handle is a mount point's.
    pub(super) fn is_mount_point(&self, handle: &Handle) -> bool {
        let rest = handle.as_bytes().strip_prefix(&[VERSION]);
        let rest = rest.and_then(|rest| rest.strip_prefix(&self.export));
        rest.is_some_and(|rest| rest.len() == 25 && rest[0] == MARK)
    }
}

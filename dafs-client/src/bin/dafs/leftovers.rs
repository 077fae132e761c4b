//! What copies that were killed have left at the server.

use crate::local::is_temporary;
use dafs_client::blocking::Directory;
use dafs_client::{Attr, DirEntry, FileType};

/// Seconds after which nobody works on an incomplete copy any more.
const DEAD: i64 = 86400;
/// Entries of a directory that are looked at: enough for most, and no burden where there are
/// millions.
const LOOKED_AT: usize = 10_000;

/// Removes incomplete copies that nobody has touched for a day from a directory in which something
/// was made just now. What goes wrong is no trouble of the copy that is being made.
pub fn remove(directory: &Directory) {
    // The server's clock, which made the others' times too, has just set this.
    let Some(now) = directory.attr().ok().and_then(|attr| attr.mtime) else { return };
    let (mut seen, mut dead) = (0, Vec::new());
    let looked = directory.each_entry(|entry| {
        seen += 1;
        if is_dead(&entry, now.seconds) {
            dead.push(entry.name);
        }
        seen < LOOKED_AT
    });
    if looked.is_ok() {
        directory.unlink_all(&dead);
    }
}

fn is_dead(entry: &DirEntry, now: i64) -> bool {
    let kind = entry.file_type();
    if !matches!(kind, FileType::Regular | FileType::Symlink) || !is_temporary(&entry.name) {
        return false;
    }
    // A copy gets the time of change of what it was copied from just before its name, but the time
    // of access stays that of its making.
    let touched = |attr: &Attr| [attr.atime, attr.mtime].iter().flatten().map(|t| t.seconds).max();
    let touched = entry.attr.as_ref().and_then(touched);
    touched.is_some_and(|touched| touched < now.saturating_sub(DEAD))
}

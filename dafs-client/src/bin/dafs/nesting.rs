//! Copies of a directory into itself, by way of the server that exports it. Such a copy would find
//! what it has just made, and not end.
//!
//! A directory of the server and a local one are the same if device, inode and time of the last change
//! agree to the nanosecond. Numbers alone would not tell: those of two hosts are often alike.

use crate::failure::{Failure, Result};
use crate::names;
use crate::target::Target;
use dafs_client::blocking::Client;
use dafs_client::{Attr, Time};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether the two sides have shown the same directory.
pub fn is_same(local: &Metadata, remote: &Attr) -> bool {
    let ctime = Time {
        seconds: local.ctime(),
        nanoseconds: u32::try_from(local.ctime_nsec()).unwrap_or(0),
    };
    local.is_dir()
        && (local.dev(), local.ino()) == (remote.device, remote.inode)
        && Some(ctime) == remote.ctime
}

/// The same for a local path.
pub fn is_same_get(local: &Path, remote: &Attr) -> bool {
    local.symlink_metadata().is_ok_and(|local| is_same(&local, remote))
}

/// The failure of such a copy.
pub fn inside(from: impl std::fmt::Display) -> Failure {
    let why = "the copy would be inside of what is copied";
    Failure::new("copy", from, why, "give the copy another place")
}

/// Refuses to copy a local directory to somewhere in itself.
pub fn refuse_put(client: &Client, from: &Path, local: &Metadata, to: &Target) -> Result {
    let mut above = Some(to.path.as_path());
    while let Some(path) = above {
        // What is not there yet is no part of anything.
        if client.metadata(path).is_ok_and(|attr| is_same(local, &attr)) {
            return Err(inside(names::show_path(from)));
        }
        above = path.parent();
    }
    Ok(())
}

/// Refuses to copy a directory of the server to somewhere in itself.
pub fn refuse_get(from: &Target, attr: &Attr, to: &Path) -> Result {
    let Ok(to) = std::path::absolute(to) else { return Ok(()) };
    // From the first directory that is there on, links do not hide where they lead.
    let there = to.ancestors().find_map(|path| path.canonicalize().ok());
    let there = there.unwrap_or_else(|| PathBuf::from("/"));
    if there.ancestors().any(|path| is_same_get(path, attr)) {
        return Err(inside(from));
    }
    Ok(())
}

//! Going down a tree of the server by handles, so that a step costs the same however deep it is.

use dafs_client::blocking::Directory;
use dafs_client::{DirEntry, Result, Status};

/// A directory that was found in another one, and its entries.
///
/// A handle that is stale by now, since something else has got the name, say, is looked up once more.
pub fn enter(above: &Directory, entry: &DirEntry) -> Result<(Directory, Vec<DirEntry>)> {
    let entered = enter_by_handle(above, entry);
    match &entered {
        Err(error) if error.status() == Some(Status::StaleHandle) => {
            let entry = above.entry(&entry.name)?;
            enter_by_handle(above, &entry)
        }
        _ => entered,
    }
}

fn enter_by_handle(above: &Directory, entry: &DirEntry) -> Result<(Directory, Vec<DirEntry>)> {
    let directory = above.directory(entry)?;
    let entries = directory.entries()?;
    Ok((directory, entries))
}

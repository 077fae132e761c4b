//! The content of one file, from the server.

use crate::copy::{Flags, Tally, changed};
use crate::failure::{Failure, Result};
use crate::landing::Landing;
use crate::names;
use crate::sparse::{self, Sparse};
use crate::target::Target;
use crate::verify::compare;
use dafs_client::blocking::{Client, Directory, File};
use dafs_client::{Attr, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file to be copied.
pub struct Job {
    /// Where it is.
    pub source: Source,
    /// Its name, for messages and where it is opened by that.
    pub from: Target,
    /// The copy's name.
    pub to: PathBuf,
    /// Its attributes when it was found.
    pub attr: Attr,
}

/// How a file is reached.
pub enum Source {
    /// By the path that the user gave.
    Named(Client),
    /// By its name in a directory where it was found.
    In(Directory),
}

impl Source {
    fn open(&self, from: &Target) -> dafs_client::Result<File> {
        match self {
            Self::Named(client) => client.open(&from.path),
            Self::In(directory) => {
                let name = names::last_name(&from.path).unwrap_or_default();
                directory.open(Path::new(name), OpenOptions::new().read(true))
            }
        }
    }
}

/// Copies a file.
pub fn file(tally: &Tally, flags: &Flags, block: &mut [u8], job: &Job) -> Result {
    let Job { source, from, to, attr } = job;
    let fail = |error: &_| Failure::client("copy", from, error);
    let fail_local = |error: &_| Failure::local("write", to, error);
    let file = source.open(from).map_err(|error| fail(&error))?;
    let named = matches!(source, Source::Named(_));
    let landing = Landing::begin(to, named).map_err(|error| fail_local(&error))?;
    let mut attr = *attr;
    if !landing.is_regular() {
        // What has gone through a pipe does not come back to be copied again.
        attr = file.attr().map_err(|error| fail(&error))?;
    }
    let mut again = landing.is_regular();
    loop {
        let filled = fill(tally, flags.sparse, block, &file, from, &landing, to, &attr);
        let now = file.attr().map_err(|error| fail(&error))?;
        let is_same = (now.size, now.change) == (attr.size, attr.change);
        match filled {
            Ok(size) if is_same && size == attr.size => break,
            // One that was cut off while it was read is no failure of the server's.
            Err(failure) if is_same => return Err(failure),
            _ => {}
        }
        if !std::mem::take(&mut again) {
            return Err(changed(from));
        }
        attr = now;
        landing.file().set_len(0).map_err(|error| fail_local(&error))?;
    }
    if flags.verify && landing.is_regular() {
        compare(block, &file, from, landing.file(), to)?;
    }
    // The answer to CLOSE would tell nothing of what was read; dropping the file closes it.
    drop(file);
    landing.land(&attr, flags.archive).map_err(|error| fail_local(&error))?;
    tally.file(from);
    Ok(())
}

/// Writes what can be read to the local file; how much that is.
#[allow(clippy::too_many_arguments)]
fn fill(
    tally: &Tally,
    sparse: Sparse,
    block: &mut [u8],
    file: &File,
    from: &Target,
    landing: &Landing,
    to: &Path,
    attr: &Attr,
) -> Result<u64> {
    let fail_local = |error: &_| Failure::local("write", to, error);
    let holes = match sparse {
        Sparse::Auto => attr.used < attr.size,
        Sparse::Always => true,
        Sparse::Never => false,
    };
    let (mut at, mut written) = (0, 0);
    loop {
        let count =
            file.read_at(block, at).map_err(|error| Failure::client("copy", from, &error))?;
        let read = &block[..count];
        let result = if !landing.is_regular() {
            std::io::Write::write_all(&mut landing.file(), read)
        } else if holes {
            sparse::data(read).into_iter().try_for_each(|range| {
                written = at + range.end as u64;
                landing.file().write_all_at(&read[range.clone()], at + range.start as u64)
            })
        } else {
            written = at + count as u64;
            landing.file().write_all_at(read, at)
        };
        result.map_err(|error| fail_local(&error))?;
        tally.moved(count);
        at += count as u64;
        if count == 0 || count < block.len() && at >= attr.size {
            break;
        }
    }
    if landing.is_regular() && written < at {
        landing.file().set_len(at).map_err(|error| fail_local(&error))?;
    }
    Ok(at)
}

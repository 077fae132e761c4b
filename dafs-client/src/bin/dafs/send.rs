//! One file, or link, to the server.

use crate::copy::{Flags, Tally, changed};
use crate::failure::{Failure, Result};
use crate::interrupt::{self, Part};
use crate::local::{self, KEPT_MODE, temporary_beside};
use crate::names;
use crate::sparse::{self, Sparse};
use crate::target::Target;
use crate::verify::compare;
use dafs_client::blocking::{Directory, File};
use dafs_client::{OpenOptions, SetAttr};
use rustix::fs::OFlags;
use std::fs::Metadata;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Zeros of fewer bytes are sent as they are: leaving them out would take another request.
const LEAST_HOLE: usize = 64 << 10;

/// A name of the server's.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub directory: Directory,
    /// The name in it.
    pub name: PathBuf,
    /// Both, for messages.
    pub to: Target,
}

/// A file to be copied.
pub struct Job {
    /// The local file.
    pub from: PathBuf,
    /// The copy's name.
    pub place: Place,
    /// It may be a symbolic link, or no file.
    pub follow: bool,
}

/// A copy in the making.
struct Making<'a> {
    place: &'a Place,
    temporary: PathBuf,
    _part: Part,
}

impl<'a> Making<'a> {
    /// Announces a copy, so that a signal takes away what is made of it.
    fn begin(place: &'a Place) -> Result<Self> {
        let temporary = temporary_beside(&place.name);
        let (directory, name) = (place.directory.clone(), temporary.clone());
        // Nobody is left to be told.
        let part = interrupt::part(move || _ = directory.unlink(&name))?;
        Ok(Self { place, temporary, _part: part })
    }

    /// Moves a complete copy to its name; where that fails, it goes.
    fn land(self, result: Result) -> Result {
        let Place { directory, name, to } = self.place;
        let renamed = result.and_then(|()| {
            let renamed = directory.rename(&self.temporary, name);
            renamed.map_err(|error| Failure::client("write", to, &error))
        });
        if renamed.is_err() {
            // What went wrong first is the thing to tell.
            _ = directory.unlink(&self.temporary);
        }
        renamed
    }
}

/// Copies a symbolic link.
pub fn symlink(from: &Path, place: &Place) -> Result {
    let target = from.read_link().map_err(|error| Failure::local("copy", from, &error))?;
    let making = Making::begin(place)?;
    let made = place.directory.symlink(target, &making.temporary).map(drop);
    made.map_err(|error| Failure::client("make link", &place.to, &error))?;
    making.land(Ok(()))
}

/// Gives a copy a further name.
pub fn link(first: &Place, place: &Place) -> Result {
    let fail = |error: &_| Failure::client("make link", &place.to, error);
    let entry = first.directory.entry(&first.name).map_err(|error| fail(&error))?;
    let making = Making::begin(place)?;
    let made = place.directory.link(&entry, &making.temporary).map(drop);
    made.map_err(|error| fail(&error))?;
    let temporary = making.temporary.clone();
    making.land(Ok(()))?;
    // Where both are names of one file already, the rename has left both.
    _ = place.directory.unlink(temporary);
    Ok(())
}

/// Copies a file.
pub fn file(tally: &Tally, flags: &Flags, block: &mut [u8], job: &Job) -> Result {
    let Job { from, place, follow } = job;
    let to = &place.to;
    let fail = |error: &_| Failure::client("write", to, error);
    let fail_local = |error: &_| Failure::local("copy", from, error);
    // What a directory's listing said was a file may be a link or a pipe by now.
    let open = if *follow { OFlags::empty() } else { OFlags::NOFOLLOW | OFlags::NONBLOCK };
    // The flags of open(2) all fit.
    let open = i32::try_from(open.bits()).unwrap_or(0);
    let local = std::fs::File::options().read(true).custom_flags(open).open(from);
    let local = local.map_err(|error| fail_local(&error))?;
    let mut metadata = local.metadata().map_err(|error| fail_local(&error))?;
    if metadata.is_dir() {
        return Err(Failure::local("copy", from, &ErrorKind::IsADirectory.into()));
    }
    let making = Making::begin(place)?;
    let options = OpenOptions::new().read(flags.verify).write(true).create_new(true).mode(0o600);
    let remote = place.directory.open(&making.temporary, options).map_err(|error| fail(&error))?;
    let mut again = metadata.is_file();
    let result = loop {
        let filled = if metadata.is_file() {
            fill(tally, flags.sparse, block, &local, from, &remote, to)
        } else {
            pour(tally, block, &local, from, &remote, to)
        };
        if filled.is_err() || !metadata.is_file() {
            break filled;
        }
        let before = match local.metadata() {
            Ok(now) => std::mem::replace(&mut metadata, now),
            Err(error) => break Err(fail_local(&error)),
        };
        if is_unchanged(&before, &metadata) {
            break filled;
        }
        if !std::mem::take(&mut again) {
            break Err(changed(names::show_path(from)));
        }
        if let Err(error) = remote.set_len(0) {
            break Err(fail(&error));
        }
    };
    let result = result.and_then(|()| {
        if flags.verify && metadata.is_file() {
            compare(block, &remote, to, &local, from)?;
        }
        let attr = if metadata.is_file() {
            SetAttr {
                mode: Some(metadata.mode() & KEPT_MODE),
                mtime: Some(local::mtime(&metadata)),
                ..SetAttr::default()
            }
        } else {
            SetAttr { mode: Some(0o666 & !local::umask()), ..SetAttr::default() }
        };
        let finished = remote.set_attr(attr).and_then(|_| remote.close());
        finished.map_err(|error| fail(&error))
    });
    making.land(result)?;
    tally.file(to);
    Ok(())
}

fn is_unchanged(before: &Metadata, after: &Metadata) -> bool {
    let seen = |metadata: &Metadata| {
        let times =
            (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        (metadata.len(), times)
    };
    seen(before) == seen(after)
}

/// Writes a file to the new one, but for its holes, and commits it.
fn fill(
    tally: &Tally,
    sparse: Sparse,
    block: &mut [u8],
    local: &std::fs::File,
    from: &Path,
    remote: &File,
    to: &Target,
) -> Result {
    let fail = |error: &_| Failure::client("write", to, error);
    let fail_local = |error: &_| Failure::local("copy", from, error);
    let (mut at, mut written) = (0, 0);
    // One that claims to be empty, as those of /proc do, is read to see.
    let is_empty = local.metadata().map_err(|error| fail_local(&error))?.len() == 0;
    let whole = sparse == Sparse::Never || is_empty;
    let mut data = if whole { 0..u64::MAX } else { 0..0 };
    loop {
        if at >= data.end {
            let Some(next) = sparse::next_data(local, at).map_err(|error| fail_local(&error))?
            else {
                break;
            };
            (at, data) = (next.start, next);
        }
        // At the end of the data, not of the block, a hole begins.
        let most = (data.end - at).min(block.len() as u64) as usize;
        let mut filled = 0;
        while filled < most {
            match local.read_at(&mut block[filled..most], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(fail_local(&error)),
            }
        }
        let read = &block[..filled];
        let ranges = match sparse {
            Sparse::Always => large_holes(sparse::data(read), filled),
            Sparse::Auto | Sparse::Never => std::iter::once(0..filled).collect(),
        };
        for range in ranges {
            written = at + range.end as u64;
            let result = remote.write_all_at(&read[range.clone()], at + range.start as u64);
            result.map_err(|error| fail(&error))?;
        }
        tally.moved(filled);
        at += filled as u64;
        if filled < most {
            break;
        }
    }
    let size = local.metadata().map_err(|error| fail_local(&error))?.len();
    if !whole && written < size {
        remote.set_len(size).map_err(|error| fail(&error))?;
    }
    if size == 0 && written == 0 {
        return Ok(());
    }
    remote.sync().map_err(|error| fail(&error))
}

/// Leaves out only those holes that are worth it.
fn large_holes(ranges: Vec<std::ops::Range<usize>>, end: usize) -> Vec<std::ops::Range<usize>> {
    let mut large: Vec<std::ops::Range<usize>> = Vec::new();
    for range in ranges {
        match large.last_mut() {
            Some(last) if range.start - last.end < LEAST_HOLE => last.end = range.end,
            None if range.start < LEAST_HOLE => large.push(0..range.end),
            _ => large.push(range),
        }
    }
    if let Some(last) = large.last_mut()
        && end - last.end < LEAST_HOLE
    {
        last.end = end;
    }
    large
}

/// Writes what can be read of something that is no file, and commits it.
fn pour(
    tally: &Tally,
    block: &mut [u8],
    mut local: &std::fs::File,
    from: &Path,
    remote: &File,
    to: &Target,
) -> Result {
    let fail = |error: &_| Failure::client("write", to, error);
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match local.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::local("copy", from, &error)),
            }
        }
        remote.write_all_at(&block[..filled], at).map_err(|error| fail(&error))?;
        tally.moved(filled);
        at += filled as u64;
        if filled < block.len() {
            break;
        }
    }
    if at == 0 {
        return Ok(());
    }
    remote.sync().map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_holes_are_filled() {
        let (small, large) = (LEAST_HOLE - 1, LEAST_HOLE);
        assert!(large_holes(vec![], 10).is_empty());
        let both = large_holes(vec![small..small + 5, small + 7..small + 8], small + 9);
        assert_eq!(both.first(), Some(&(0..small + 9)));
        let ranges = vec![large..large + 4, 2 * large..2 * large + 4, 4 * large..4 * large + 1];
        let kept = [large..2 * large + 4, 4 * large..4 * large + 1];
        assert_eq!(large_holes(ranges, 6 * large), kept);
    }
}

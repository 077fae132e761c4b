//! `dafs get`: copies from the server.

use crate::context::Context;
use crate::copy::{Flags, Tally, in_parallel};
use crate::failure::{Failure, Result};
use crate::local::{self, Landing};
use crate::names;
use crate::target::Target;
use dafs_client::blocking::{Client, File};
use dafs_client::{Attr, FileType};
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Copy files and directories from the server
///
/// Mode and time of change are kept, owners and setuid bits are not. A copy gets its name when it
/// is complete, and replaces what has the name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy, and last the local copy's name, or a directory to copy to
    #[arg(required = true, num_args = 2.., value_names = ["REMOTE", "LOCAL"])]
    paths: Vec<OsString>,
    #[command(flatten)]
    flags: Flags,
}

/// A file to be copied.
struct Job {
    client: Client,
    from: Target,
    to: PathBuf,
    attr: Attr,
    /// Named by the user rather than found in a directory.
    named: bool,
}

/// Directories that were made, with the attributes they are to have in the end.
type Made = Vec<(PathBuf, Attr)>;

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let Some((to, remote)) = args.paths.split_last() else {
        return Ok(());
    };
    let to = Path::new(to);
    let flags = &args.flags;
    let into = to.is_dir() && !flags.no_target_directory;
    if remote.len() > 1 && !into {
        let advice = "name a directory last, or copy one thing at a time";
        let what = names::show_path(to);
        return Err(Failure::new("copy to", what, "it is no directory to hold several", advice));
    }
    let targets = remote.iter().map(|remote| {
        let target = cx.target(remote)?;
        Ok((cx.client(&target)?, target))
    });
    let targets = targets.collect::<Result<Vec<_>>>()?;
    let tally = Tally::new();
    let mut made = Made::new();
    in_parallel(
        &tally,
        flags.jobs,
        |feed| {
            for (client, from) in targets {
                let Some(to) = local::place(&from.path, to, into) else {
                    let advice = "name what is in it, or give the copy's name with -T";
                    let why = "it has no name of its own";
                    tally.failed(Failure::new("copy", &from, why, advice));
                    continue;
                };
                let result = operand(&tally, &client, from, to, flags, &mut made, feed);
                tally.note(result);
            }
        },
        |block, job| file(&tally, flags.verify, block, &job),
    );
    // The last made first: what is in a directory changes its time.
    for (path, attr) in made.iter().rev() {
        let finished = local::finish_directory(path, attr);
        tally.note(finished.map_err(|error| Failure::local("set attributes of", path, &error)));
    }
    tally.finish(flags.verbose)
}

fn operand(
    tally: &Tally,
    client: &Client,
    from: Target,
    to: PathBuf,
    flags: &Flags,
    made: &mut Made,
    feed: &mut dyn FnMut(Job),
) -> Result {
    let fail = |error: &_| Failure::client("copy", &from, error);
    let attr = if flags.recursive {
        client.symlink_metadata(&from.path)
    } else {
        client.metadata(&from.path)
    };
    let attr = attr.map_err(|error| fail(&error))?;
    if attr.r#type() == FileType::Directory && !flags.recursive {
        let advice = "add -r to copy it with all that is in it";
        return Err(Failure::new("copy", &from, "it is a directory", advice));
    }
    let mut waiting = vec![(from, to, attr, true)];
    while let Some((from, to, attr, named)) = waiting.pop() {
        if tally.is_hopeless() {
            break;
        }
        match attr.r#type() {
            FileType::Regular => {
                tally.found(attr.size);
                feed(Job { client: client.clone(), from, to, attr, named });
            }
            FileType::Symlink => {
                tally.note(link(client, &from, &to, &attr).inspect(|()| tally.link()));
            }
            FileType::Directory => match directory(client, &from, &to, attr, named, made) {
                Ok(entries) => {
                    tally.directory();
                    waiting.extend(entries);
                }
                Err(failure) => tally.failed(failure),
            },
            kind => {
                let why = format!("it is a {}", crate::format::type_name(kind));
                let advice = "only files, directories and symbolic links are copied";
                tally.failed(Failure::new("copy", &from, why, advice));
            }
        }
    }
    Ok(())
}

fn link(client: &Client, from: &Target, to: &Path, attr: &Attr) -> Result {
    let target = client.read_link(&from.path);
    let target = target.map_err(|error| Failure::client("copy", from, &error))?;
    local::symlink(&target, to, attr.mtime).map_err(|error| Failure::local("make link", to, &error))
}

type Found = (Target, PathBuf, Attr, bool);

/// Makes a directory; what is to be copied to it.
fn directory(
    client: &Client,
    from: &Target,
    to: &Path,
    attr: Attr,
    named: bool,
    made: &mut Made,
) -> Result<Vec<Found>> {
    match std::fs::create_dir(to) {
        Ok(()) => made.push((to.into(), attr)),
        Err(error) => {
            // Nothing that the server sends leads out of the copy through a link: only a directory
            // that the user named may be one.
            let there = if named { to.metadata() } else { to.symlink_metadata() };
            if !there.is_ok_and(|there| there.is_dir()) {
                return Err(Failure::local("make directory", to, &error));
            }
        }
    }
    let fail = |error: &_| Failure::client("copy", from, error);
    let entries = client.read_dir(&from.path).map_err(|error| fail(&error))?;
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let (from, to) = (from.join(&entry.name), to.join(&entry.name));
        let attr = match entry.attr {
            Some(attr) => attr,
            None => client.symlink_metadata(&from.path).map_err(|error| fail(&error))?,
        };
        found.push((from, to, attr, false));
    }
    Ok(found)
}

fn file(tally: &Tally, verify: bool, block: &mut [u8], job: &Job) -> Result {
    let Job { client, from, to, attr, named } = job;
    let fail = |error: &_| Failure::client("copy", from, error);
    let fail_local = |error: &_| Failure::local("write", to, error);
    let file = client.open(&from.path).map_err(|error| fail(&error))?;
    let landing = Landing::begin(to, *named).map_err(|error| fail_local(&error))?;
    let mut at = 0;
    loop {
        let count = file.read_at(block, at).map_err(|error| fail(&error))?;
        if count == 0 {
            break;
        }
        let result = if landing.is_regular() {
            landing.file().write_all_at(&block[..count], at)
        } else {
            std::io::Write::write_all(&mut landing.file(), &block[..count])
        };
        result.map_err(|error| fail_local(&error))?;
        tally.moved(count);
        at += count as u64;
        if count < block.len() && at >= attr.size {
            break;
        }
    }
    if verify && landing.is_regular() {
        compare(block, &file, from, landing.file(), to)?;
    }
    // The answer to CLOSE would tell nothing of what was read; dropping the file closes it.
    drop(file);
    landing.land(attr).map_err(|error| fail_local(&error))?;
    tally.file(from);
    Ok(())
}

/// Compares a file of the server, read by RPC, with a local one.
pub fn compare(
    block: &mut [u8],
    remote: &File,
    target: &Target,
    local: &std::fs::File,
    path: &Path,
) -> Result {
    let fail = |error: &_| Failure::client("verify", target, error);
    let (theirs, ours) = block.split_at_mut(block.len() / 2);
    let mut at = 0;
    loop {
        let mut read = remote.read_at_by(theirs, at, dafs_client::Path::Direct);
        if let Err(error) = &read
            && error.status() == Some(dafs_client::Status::Transfer)
        {
            // There is no memory for it here, say.
            read = remote.read_at_by(theirs, at, dafs_client::Path::Inline);
        }
        let count = read.map_err(|error| fail(&error))?.bytes;
        let mut filled = 0;
        while filled < ours.len() {
            let read = local.read_at(&mut ours[filled..], at + filled as u64);
            match read.map_err(|error| Failure::local("verify", path, &error))? {
                0 => break,
                count => filled += count,
            }
        }
        if count != filled || theirs[..count] != ours[..filled] {
            let same = theirs[..count].iter().zip(&ours[..filled]).take_while(|(a, b)| a == b);
            let why = format!("the copy differs from byte {} on", at + same.count() as u64);
            let advice = "copy it again while nobody changes it";
            return Err(Failure::new("verify", target, why, advice));
        }
        if count == 0 {
            return Ok(());
        }
        at += count as u64;
    }
}

//! `dafs put`: copies to the server.

use crate::context::Context;
use crate::copy::{Flags, Tally, in_parallel};
use crate::failure::{Failure, Result};
use crate::get::compare;
use crate::local::{self, KEPT_MODE, temporary_beside};
use crate::mv::is_target_directory;
use crate::target::Target;
use dafs_client::blocking::{Client, File};
use dafs_client::{FileType, OpenOptions, SetAttr, Status};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Copy files and directories to the server
///
/// Mode and time of change are kept, owners and setuid bits are not. A copy gets its name when it
/// is complete and on stable storage, and replaces what has the name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy, and last the copy's name, or a directory to copy to
    #[arg(required = true, num_args = 2.., value_names = ["LOCAL", "REMOTE"])]
    paths: Vec<OsString>,
    #[command(flatten)]
    flags: Flags,
}

/// A file to be copied.
struct Job {
    from: PathBuf,
    to: Target,
    /// Named by the user rather than found in a directory.
    named: bool,
}

/// Directories that were made, with the attributes they are to have in the end.
type Made = Vec<(Target, SetAttr)>;

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let Some((to, paths)) = args.paths.split_last() else {
        return Ok(());
    };
    let flags = &args.flags;
    let to = cx.target(to)?;
    let client = cx.client(&to)?;
    let into =
        is_target_directory(&client, &to, paths.len(), flags.no_target_directory, "copy to")?;
    let tally = Tally::new();
    let mut made = Made::new();
    in_parallel(
        &tally,
        flags.jobs,
        |feed| {
            for from in paths {
                let from = Path::new(from);
                let Some(path) = local::place(from, &to.path, into) else {
                    let what = crate::names::show_path(from);
                    let advice = "name what is in it, or give the copy's name with -T";
                    let why = "it has no name of its own";
                    tally.failed(Failure::new("copy", what, why, advice));
                    continue;
                };
                let result =
                    operand(&tally, &client, from.into(), to.at(path), flags, &mut made, feed);
                tally.note(result);
            }
        },
        |block, job| file(&tally, flags.verify, &client, block, &job),
    );
    // The last made first: what is in a directory changes its time.
    for (target, attr) in made.iter().rev() {
        let set = client.set_attr(&target.path, *attr).map(drop);
        tally.note(set.map_err(|error| Failure::client("set attributes of", target, &error)));
    }
    tally.finish(flags.verbose)
}

fn attributes(metadata: &Metadata) -> SetAttr {
    SetAttr {
        mode: Some(metadata.mode() & KEPT_MODE),
        mtime: Some(local::mtime(metadata)),
        ..SetAttr::default()
    }
}

fn operand(
    tally: &Tally,
    client: &Client,
    from: PathBuf,
    to: Target,
    flags: &Flags,
    made: &mut Made,
    feed: &mut dyn FnMut(Job),
) -> Result {
    let mut waiting = vec![(from, to, true)];
    while let Some((from, to, named)) = waiting.pop() {
        if tally.is_hopeless() {
            break;
        }
        let follow = named && !flags.recursive;
        let metadata = if follow { from.metadata() } else { from.symlink_metadata() };
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                tally.failed(Failure::local("copy", &from, &error));
                continue;
            }
        };
        let what = || crate::names::show_path(&from);
        let kind = metadata.file_type();
        if kind.is_dir() && flags.recursive {
            match directory(client, &from, &to, &metadata, named, made) {
                Ok(entries) => {
                    tally.directory();
                    waiting.extend(entries);
                }
                Err(failure) => tally.failed(failure),
            }
        } else if kind.is_dir() {
            let advice = "add -r to copy it with all that is in it";
            tally.failed(Failure::new("copy", what(), "it is a directory", advice));
        } else if kind.is_symlink() {
            tally.note(link(client, &from, &to).inspect(|()| tally.link()));
        } else if kind.is_file() || follow {
            tally.found(metadata.len());
            feed(Job { from, to, named });
        } else {
            let why = "it is neither file nor directory nor symbolic link";
            tally.failed(Failure::new("copy", what(), why, "leave it out"));
        }
    }
    Ok(())
}

type Found = (PathBuf, Target, bool);

/// Makes a directory; what is to be copied to it.
fn directory(
    client: &Client,
    from: &Path,
    to: &Target,
    metadata: &Metadata,
    named: bool,
    made: &mut Made,
) -> Result<Vec<Found>> {
    match client.mkdir(&to.path, 0o700) {
        Ok(_) => made.push((to.clone(), attributes(metadata))),
        Err(error) => {
            let there =
                if named { client.metadata(&to.path) } else { client.symlink_metadata(&to.path) };
            let is_there = there.is_ok_and(|attr| attr.r#type() == FileType::Directory);
            // The root cannot be made, and is always there.
            if !is_there {
                return Err(Failure::client("make directory", to, &error));
            }
        }
    }
    let fail = |error: &_| Failure::local("copy", from, error);
    let entries = std::fs::read_dir(from).map_err(|error| fail(&error))?;
    let entries = entries.map(|entry| {
        let name = entry.map_err(|error| fail(&error))?.file_name();
        Ok((from.join(&name), to.join(&name), false))
    });
    entries.collect()
}

/// Moves a complete copy to its name; where that fails, it goes.
fn land(client: &Client, temporary: &Target, to: &Target, result: Result) -> Result {
    let renamed = result.and_then(|()| {
        let renamed = client.rename(&temporary.path, &to.path);
        renamed.map_err(|error| Failure::client("write", to, &error))
    });
    if renamed.is_err() {
        // What went wrong first is the thing to tell.
        _ = client.unlink(&temporary.path);
    }
    renamed
}

fn link(client: &Client, from: &Path, to: &Target) -> Result {
    let target = from.read_link().map_err(|error| Failure::local("copy", from, &error))?;
    let temporary = to.at(temporary_beside(&to.path));
    let made = client.symlink(target, &temporary.path).map(drop);
    made.map_err(|error| Failure::client("make link", to, &error))?;
    land(client, &temporary, to, Ok(()))
}

fn file(tally: &Tally, verify: bool, client: &Client, block: &mut [u8], job: &Job) -> Result {
    let Job { from, to, named } = job;
    let fail_local = |error: &_| Failure::local("copy", from, error);
    // What a directory's listing said was a file may be a link or a pipe by now.
    let flags = if *named {
        0
    } else {
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits()
    };
    // The flags of open(2) all fit.
    let flags = i32::try_from(flags).unwrap_or(0);
    let local = std::fs::File::options().read(true).custom_flags(flags).open(from);
    let local = local.map_err(|error| fail_local(&error))?;
    let metadata = local.metadata().map_err(|error| fail_local(&error))?;
    let temporary = to.at(temporary_beside(&to.path));
    let options = OpenOptions::new().read(verify).write(true).create_new(true).mode(0o600);
    let remote = client.open_with(&temporary.path, options);
    let remote = remote.map_err(|error| match error.status() {
        // It is the directory that is missing, not the file.
        Some(Status::NoEntry) => {
            let advice = "make the directory first with dafs mkdir -p";
            Failure::new("write", to, "its directory is not there", advice)
        }
        _ => Failure::client("write", to, &error),
    })?;
    let result = fill(tally, block, &local, from, &remote, to).and_then(|()| {
        if verify && metadata.is_file() {
            compare(block, &remote, to, &local, from)?;
        }
        let mut attr = attributes(&metadata);
        if !metadata.is_file() {
            attr = SetAttr { mode: Some(0o666 & !local::umask()), ..SetAttr::default() };
        }
        let finished = remote.set_attr(attr).and_then(|_| remote.close());
        finished.map_err(|error| Failure::client("write", to, &error))
    });
    land(client, &temporary, to, result)?;
    tally.file(to);
    Ok(())
}

/// Writes what can be read to the new file, and commits it.
fn fill(
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

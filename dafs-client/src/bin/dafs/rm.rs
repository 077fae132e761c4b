//! `dafs rm`: removes names.

use crate::context::Context;
use crate::descent;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::names;
use crate::target::Target;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{DirEntry, Error, FileType, Status};
use std::ffi::OsString;

/// Remove files, and directories with what is in them
///
/// Symbolic links are removed, never what they lead to. What names a directory as its own, as . and ..
/// and the export itself do, is refused.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to remove
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Directories too, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Say nothing of what is not there
    #[arg(short, long)]
    force: bool,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    each(&args.paths, |path| {
        let target = cx.target(path)?;
        if names::last_name(&target.path).is_none() {
            let advice = "name what is in it";
            return Err(Failure::new("remove", &target, "it is no name in a directory", advice));
        }
        let (target, slash) = target.without_slash();
        remove(&cx.client(&target)?, &target, slash, args)
    })
}

fn failed(target: &Target, error: &Error) -> Failure {
    Failure::client("remove", target, error)
}

/// What is not there any more need not be removed.
fn forgive(result: dafs_client::Result<()>, target: &Target, missing_is_fine: bool) -> Result {
    match result {
        Err(error) if missing_is_fine && error.status() == Some(Status::NoEntry) => Ok(()),
        result => result.map_err(|error| failed(target, &error)),
    }
}

/// `slash`: it was named as a directory.
fn remove(client: &Client, target: &Target, slash: bool, args: &Args) -> Result {
    let found = target.find(client);
    let (directory, entry) = match found {
        Err(error) if args.force && error.status() == Some(Status::NoEntry) => return Ok(()),
        found => found.map_err(|error| failed(target, &error))?,
    };
    if entry.file_type() != FileType::Directory {
        if slash {
            let advice = "leave the slash at its end out to remove it";
            let why = format!("it is a {}, no directory", format::type_name(entry.file_type()));
            return Err(Failure::new("remove", target, why, advice));
        }
        return forgive(directory.unlink(&entry.name), target, args.force);
    }
    if !args.recursive {
        let advice = "add -r to remove it with all that is in it";
        return Err(Failure::new("remove", target, "it is a directory", advice));
    }
    remove_tree(directory, entry, target)
}

/// A directory on the way, with the one that it is in.
struct Doomed {
    above: Directory,
    entry: DirEntry,
    target: Target,
    /// What was in it was removed as far as that is possible.
    emptied: bool,
}

/// Goes down by handles, so that a step costs the same however deep it is.
fn remove_tree(above: Directory, entry: DirEntry, root: &Target) -> Result {
    let mut steps = vec![Doomed { above, entry, target: root.clone(), emptied: false }];
    let mut failed_any = false;
    let mut note = |result: Result| {
        if let Err(failure) = result {
            _ = failure.tell();
            failed_any = true;
        }
    };
    while let Some(step) = steps.pop() {
        if step.emptied {
            note(forgive(step.above.rmdir(&step.entry.name), &step.target, true));
            continue;
        }
        let (within, entries) = match descent::enter(&step.above, &step.entry) {
            Ok(found) => found,
            Err(error) => {
                note(forgive(Err(error), &step.target, true));
                continue;
            }
        };
        let target = step.target.clone();
        steps.push(Doomed { emptied: true, ..step });
        let (directories, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.file_type() == FileType::Directory);
        let names: Vec<_> = others.iter().map(|entry| &entry.name).collect();
        for (name, result) in names.iter().zip(within.unlink_all(&names)) {
            note(forgive(result, &target.join(name), true));
        }
        steps.extend(directories.into_iter().map(|entry| {
            let target = target.join(&entry.name);
            Doomed { above: within.clone(), entry, target, emptied: false }
        }));
    }
    if failed_any { Err(Failure::Told) } else { Ok(()) }
}

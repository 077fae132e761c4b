//! `dafs rm`: removes names.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::names;
use crate::target::Target;
use dafs_client::blocking::Client;
use dafs_client::{Error, FileType, Status};
use std::ffi::OsString;

/// Remove files, and directories with what is in them
///
/// Symbolic links are removed, never what they lead to.
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
        remove(&cx.client(&target)?, &target, args)
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

fn remove(client: &Client, target: &Target, args: &Args) -> Result {
    let attr = match client.symlink_metadata(&target.path) {
        Err(error) if args.force && error.status() == Some(Status::NoEntry) => return Ok(()),
        attr => attr.map_err(|error| failed(target, &error))?,
    };
    if attr.r#type() != FileType::Directory {
        return forgive(client.unlink(&target.path), target, args.force);
    }
    if !args.recursive {
        let advice = "add -r to remove it with all that is in it";
        return Err(Failure::new("remove", target, "it is a directory", advice));
    }
    remove_tree(client, target)
}

/// A directory on the way, or one whose content was removed as far as that is possible.
enum Step {
    Empty(Target),
    Remove(Target),
}

fn remove_tree(client: &Client, root: &Target) -> Result {
    let mut steps = vec![Step::Empty(root.clone())];
    let mut failed_any = false;
    let mut note = |result: Result| {
        if let Err(failure) = result {
            _ = failure.tell();
            failed_any = true;
        }
    };
    while let Some(step) = steps.pop() {
        let directory = match step {
            Step::Empty(directory) => directory,
            Step::Remove(directory) => {
                note(forgive(client.rmdir(&directory.path), &directory, true));
                continue;
            }
        };
        let entries = match client.read_dir(&directory.path) {
            Ok(entries) => entries,
            Err(error) => {
                note(Err(failed(&directory, &error)));
                continue;
            }
        };
        steps.push(Step::Remove(directory.clone()));
        for entry in entries {
            let target = directory.join(&entry.name);
            match entry.file_type() {
                FileType::Directory => steps.push(Step::Empty(target)),
                _ => note(forgive(client.unlink(&target.path), &target, true)),
            }
        }
    }
    if failed_any { Err(Failure::Told) } else { Ok(()) }
}

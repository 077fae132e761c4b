//! `dafs rm`: removes names.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::names;
use crate::target::Target;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{DirEntry, Error, FileType, Status};
use std::ffi::OsString;
use std::path::PathBuf;

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

/// Directories that are emptied beside each other: their lists are held at the same time.
const BESIDE: usize = 32;
/// Entries of those together from which on the next ones are emptied one by one.
const MANY: usize = 50_000;

/// What is left to do in a directory.
enum Step {
    /// To empty and remove these directories in it.
    Empty { above: Directory, target: Target, entries: Vec<DirEntry> },
    /// To remove this one, which was emptied as far as that is possible.
    Remove { above: Directory, target: Target, name: PathBuf },
}

/// Tells of what fails, and goes on.
struct Removal {
    steps: Vec<Step>,
    /// How many directories to empty at a time.
    beside: usize,
    failed: bool,
}

/// Goes down by handles, so that a step costs the same however deep it is; what lies side by side is
/// removed side by side.
fn remove_tree(above: Directory, entry: DirEntry, root: &Target) -> Result {
    let target = root.at(root.path.parent().unwrap_or(&root.path).into());
    let first = Step::Empty { above, target, entries: vec![entry] };
    let mut removal = Removal { steps: vec![first], beside: BESIDE, failed: false };
    while let Some(step) = removal.steps.pop() {
        match step {
            Step::Remove { above, target, name } => {
                removal.note(forgive(above.rmdir(&name), &target.join(&name), true));
            }
            Step::Empty { above, target, mut entries } => {
                let now = entries.split_off(entries.len().saturating_sub(removal.beside));
                if !entries.is_empty() {
                    let (above, target) = (above.clone(), target.clone());
                    removal.steps.push(Step::Empty { above, target, entries });
                }
                removal.empty(&above, &target, &now);
            }
        }
    }
    if removal.failed { Err(Failure::Told) } else { Ok(()) }
}

impl Removal {
    fn note(&mut self, result: Result) {
        if let Err(failure) = result {
            _ = failure.tell();
            self.failed = true;
        }
    }

    /// Empties directories of one directory, and removes those that hold no others. Those that do
    /// come later.
    fn empty(&mut self, parent: &Directory, target: &Target, entries: &[DirEntry]) {
        let listed = parent.enter_all(&entries.iter().collect::<Vec<_>>());
        let count: usize = listed.iter().flatten().map(|(_, found)| found.len()).sum();
        self.beside = if count > MANY { 1 } else { BESIDE };
        let (mut places, mut files) = (Vec::new(), Vec::new());
        let (mut leaves, mut below) = (Vec::new(), Vec::new());
        for (entry, listed) in entries.iter().zip(listed) {
            let target = target.join(&entry.name);
            let (within, found) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    self.note(forgive(Err(error), &target, true));
                    continue;
                }
            };
            let (directories, others): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|entry| entry.file_type() == FileType::Directory);
            files.extend(others.into_iter().map(|entry| (places.len(), entry.name)));
            if directories.is_empty() {
                leaves.push(&entry.name);
            } else {
                below.push((&entry.name, places.len(), directories));
            }
            places.push((within, target));
        }
        let names: Vec<_> =
            files.iter().map(|(place, name)| (&places[*place].0, name.as_path())).collect();
        for ((place, name), result) in files.iter().zip(parent.unlink_each(&names)) {
            // The name in full only where there is something to tell.
            if let Err(error) = result {
                self.note(forgive(Err(error), &places[*place].1.join(name), true));
            }
        }
        for (name, result) in leaves.iter().zip(parent.rmdir_all(&leaves)) {
            self.note(forgive(result, &target.join(name), true));
        }
        for (name, place, entries) in below {
            let (above, inside) = places[place].clone();
            let name = name.clone();
            self.steps.push(Step::Remove { above: parent.clone(), target: target.clone(), name });
            self.steps.push(Step::Empty { above, target: inside, entries });
        }
    }
}

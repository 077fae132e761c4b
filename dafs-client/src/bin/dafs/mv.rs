//! `dafs mv`: renames and moves within an export.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::names;
use crate::target::Target;
use dafs_client::blocking::Client;
use dafs_client::{FileType, Status};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// Rename or move files and directories within an export
///
/// What has the new name is replaced, at once and without asking.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to move, and last the new name, or a directory to move to
    #[arg(required = true, num_args = 2.., value_names = ["FROM", "TO"])]
    paths: Vec<OsString>,
    /// Take the last one as the new name even if it is a directory
    #[arg(short = 'T', long)]
    no_target_directory: bool,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let Some((last, from)) = args.paths.split_last() else {
        return Ok(());
    };
    let to = cx.target(last)?;
    let client = cx.client(&to)?;
    let into = is_target_directory(&client, &to, from.len(), args.no_target_directory, "move to")?;
    let mut places = Places::default();
    each(from, |from| {
        let from = cx.target(from)?;
        let to = place(&from, &to, into, "move")?;
        places.take("move", &to.path, &from)?;
        for target in [&from, &to] {
            if names::last_name(&target.path).is_none() {
                let why = "it is no name in a directory";
                return Err(Failure::new("move", target, why, "name what is in it"));
            }
        }
        if !cx.same_export(&from, &to)? {
            let advice = "copy it with dafs get and dafs put, then remove it with dafs rm";
            return Err(Failure::new("move", &from, format!("{to} is in another export"), advice));
        }
        let what = format!("{from} to {to}");
        let renamed = client.rename(&from.path, &to.path);
        renamed.map_err(|error| match error.status() {
            // The only thing that the system finds invalid between two good names.
            Some(Status::Invalid) => {
                let why = "a directory cannot be moved to somewhere in itself";
                Failure::new("move", what, why, "choose another place")
            }
            _ => Failure::client("move", what, &error),
        })
    })
}

/// Whether something goes into a directory rather than getting its name. `count` things go there.
pub fn is_target_directory(
    client: &Client,
    to: &Target,
    count: usize,
    never: bool,
    verb: &'static str,
) -> Result<bool> {
    let attr = client.metadata(&to.path);
    let is_directory = attr.is_ok_and(|attr| attr.r#type() == FileType::Directory);
    if count > 1 && (never || !is_directory) {
        let advice = "name a directory last, or move and copy one thing at a time";
        return Err(Failure::new(verb, to, "it is no directory to hold several", advice));
    }
    Ok(is_directory && !never)
}

/// The places that operands go to: none shall replace what an operand before it has put there.
#[derive(Debug, Default)]
pub struct Places(HashSet<PathBuf>);

impl Places {
    /// Takes a place for an operand.
    pub fn take(&mut self, verb: &'static str, place: &Path, from: impl fmt::Display) -> Result {
        if self.0.insert(place.into()) {
            return Ok(());
        }
        let why = "something else on the command line gets the same name there";
        Err(Failure::new(verb, from, why, "name it by itself, with another name for it there"))
    }
}

/// What `from` is to be called at `to`.
pub fn place(from: &Target, to: &Target, into: bool, verb: &'static str) -> Result<Target> {
    if !into {
        return Ok(to.clone());
    }
    match names::last_name(&from.path) {
        Some(name) => Ok(to.join(name)),
        None => Err(Failure::new(
            verb,
            from,
            "it has no name of its own",
            "name what is in it, or give the new name with -T",
        )),
    }
}

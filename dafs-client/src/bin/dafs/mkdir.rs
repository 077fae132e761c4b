//! `dafs mkdir`: makes directories.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::local;
use crate::target::Target;
use dafs_client::blocking::Client;
use dafs_client::{FileType, SetAttr, Status};
use std::ffi::OsString;
use std::path::{Component, PathBuf};

/// Make directories
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to make
    #[arg(required = true, value_name = "DIRECTORY")]
    directories: Vec<OsString>,
    /// Make the directories on the way too, and accept those that are there
    #[arg(short, long)]
    parents: bool,
    /// Permission bits in octal; 777 less the umask if not given
    #[arg(short, long, value_parser = octal)]
    mode: Option<u32>,
}

/// Permission bits.
fn octal(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(mode),
        _ => Err("must be an octal number from 0 to 7777".into()),
    }
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let default = 0o777 & !local::umask();
    each(&args.directories, |argument| {
        let target = cx.target(argument)?;
        let client = cx.client(&target)?;
        let mode = args.mode.unwrap_or(default);
        if args.parents {
            // Whoever makes a directory must be able to make another one in it.
            parents(&client, &target, default | 0o300)?;
        }
        make(&client, &target, mode, args.parents)?;
        Ok(())
    })
}

/// Makes what is missing above a target.
fn parents(client: &Client, target: &Target, mode: u32) -> Result {
    let Some(above) = target.path.parent() else {
        return Ok(());
    };
    if client.metadata(above).is_ok_and(|attr| attr.r#type() == FileType::Directory) {
        return Ok(());
    }
    let mut path = PathBuf::new();
    for part in above.components() {
        path.push(part);
        if let Component::Normal(_) = part {
            make(client, &target.at(path.clone()), mode, true)?;
        }
    }
    Ok(())
}

/// Makes a directory. `accept`: it may be there.
fn make(client: &Client, target: &Target, mode: u32, accept: bool) -> Result {
    let fail = |error: &_| Failure::client("make directory", target, error);
    let is_there =
        || client.metadata(&target.path).is_ok_and(|attr| attr.r#type() == FileType::Directory);
    if accept && is_there() {
        return Ok(());
    }
    match client.mkdir(&target.path, mode) {
        Err(error) if accept && error.status() == Some(Status::Exists) && is_there() => Ok(()),
        Err(error) => Err(fail(&error)),
        Ok(attr) if attr.mode == mode => Ok(()),
        // The system sets no special bits of a directory that is being made.
        Ok(_) => {
            let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
            client.set_attr(&target.path, set).map(drop).map_err(|error| fail(&error))
        }
    }
}

//! `dafs ln`: gives files further names, and makes symbolic links.

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::mv;
use crate::names;
use dafs_client::{Attr, FileType};
use std::ffi::OsString;
use std::path::Path;

/// Give a file another name, or make a symbolic link
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file; with -s, what the link shall contain, taken as it is
    #[arg(value_name = "FILE")]
    file: OsString,
    /// The new name, or a directory for it
    #[arg(value_name = "LINK")]
    link: OsString,
    /// Make a symbolic link
    #[arg(short, long)]
    symbolic: bool,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let link = cx.target(&args.link)?;
    let client = cx.client(&link)?;
    let into = mv::is_target_directory(&client, &link, 1, false, "link to")?;
    if args.symbolic && args.file.is_empty() {
        return Err(Failure::Usage("a symbolic link must contain something".into()));
    }
    if args.symbolic {
        let target = Path::new(&args.file);
        let link = match names::last_name(target) {
            Some(name) if into => link.join(name),
            _ => link,
        };
        let made = client.symlink(target, &link.path);
        return made.map(drop).map_err(|error| Failure::client("make link", &link, &error));
    }
    let file = cx.target(&args.file)?;
    let link = mv::place(&file, &link, into, "link")?;
    if !cx.same_export(&file, &link)? {
        let why = format!("{link} is in another export");
        return Err(Failure::new("link", &file, why, "make a symbolic link with -s, or copy it"));
    }
    let what = format!("{file} as {link}");
    let made = client.link(&file.path, &link.path);
    made.map(drop).map_err(|error| {
        let is_directory = |attr: Attr| attr.r#type() == FileType::Directory;
        if client.symlink_metadata(&file.path).is_ok_and(is_directory) {
            let why = "a directory has one name alone";
            return Failure::new("link", what, why, "make a symbolic link with -s");
        }
        Failure::client("link", what, &error)
    })
}

//! `dafs put`: copies to the server.

use crate::context::Context;
use crate::copy::{Flags, Tally, in_parallel};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::leftovers;
use crate::local::{self, kept_of_directory};
use crate::mv::{Places, is_target_directory};
use crate::names;
use crate::nesting;
use crate::send::{self, Job, Place};
use crate::target::Target;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{Attr, FileType, SetAttr, Status};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Copy files and directories to the server
///
/// Mode and time of change are kept, owners and setuid bits are not. A copy gets its name when it
/// is complete and on stable storage, and replaces what has the name; a file that changes while it
/// is copied is copied once more. Until then it is called .dafs-*.part, as ls -a shows; what a copy
/// that was killed has left of these is removed by a put into the same directory a day later.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy, and last the copy's name, or a directory to copy to
    #[arg(required = true, num_args = 2.., value_names = ["LOCAL", "REMOTE"])]
    paths: Vec<OsString>,
    #[command(flatten)]
    flags: Flags,
}

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
    interrupt::watch();
    let tally = Tally::new();
    let mut walk = Walk {
        tally: &tally,
        client: &client,
        flags,
        made: Vec::new(),
        made_as: HashMap::new(),
        there: Vec::new(),
        several: HashMap::new(),
        links: Vec::new(),
    };
    let mut places = Places::default();
    in_parallel(
        &tally,
        flags.jobs,
        |feed| {
            for from in paths {
                let from = Path::new(from);
                let Some(path) = local::place(from, &to.path, into) else {
                    let what = names::show_path(from);
                    let advice = "name what is in it, or give the copy's name with -T";
                    let why = "it has no name of its own";
                    tally.failed(Failure::new("copy", what, why, advice));
                    continue;
                };
                let result = places.take("copy", &path, names::show_path(from));
                tally.note(result.and_then(|()| walk.operand(from.into(), to.at(path), feed)));
            }
        },
        |block, job| send::file(&tally, flags, block, &job),
    );
    let Walk { made, there, links, .. } = walk;
    for (first, place) in &links {
        tally.note(send::link(first, place).inspect(|()| tally.file(&place.to)));
    }
    // Now that nothing more is put into them, which changes their times. By handles, the order is of no
    // account.
    let wanted: Vec<_> = made.iter().map(|(directory, _, attr)| (directory, *attr)).collect();
    if let Some((first, ..)) = made.first() {
        for ((_, target, _), set) in made.iter().zip(first.set_attr_each(&wanted)) {
            let failed = |error| Failure::client("set attributes of", target, &error);
            tally.note(set.map(drop).map_err(failed));
        }
    }
    if !tally.is_hopeless() {
        there.iter().for_each(leftovers::remove);
    }
    tally.finish(flags.verbose)
}

/// Something that was found in a local directory.
struct Found {
    from: PathBuf,
    place: Place,
}

/// What is known on the way through the local directories.
struct Walk<'a> {
    tally: &'a Tally,
    client: &'a Client,
    flags: &'a Flags,
    /// Directories that were made, with the attributes they are to have in the end.
    made: Vec<(Directory, Target, SetAttr)>,
    /// Those directories by device and inode, as they were when they had been made.
    made_as: HashMap<(u64, u64), Directory>,
    /// Directories that were there before, to which something is copied.
    there: Vec<Directory>,
    /// The copies of files that have several names, by device and inode.
    several: HashMap<(u64, u64), Place>,
    /// Copies of one file: the first, and a further name for it.
    links: Vec<(Place, Place)>,
}

impl Walk<'_> {
    fn operand(&mut self, from: PathBuf, to: Target, feed: &mut dyn FnMut(Job)) -> Result {
        let follow = !self.flags.recursive();
        let metadata = if follow { from.metadata() } else { from.symlink_metadata() };
        let metadata = metadata.map_err(|error| Failure::local("copy", &from, &error))?;
        if !metadata.is_dir() {
            if names::ends_with_slash(&to.path) {
                return Err(local::no_directory(&to));
            }
            let place = self.place(&to)?;
            self.there.push(place.directory.clone());
            return self.file(from, place, &metadata, true, feed);
        }
        if !self.flags.recursive() {
            let advice = "add -r to copy it with all that is in it";
            let what = names::show_path(&from);
            return Err(Failure::new("copy", what, "it is a directory", advice));
        }
        nesting::refuse_put(self.client, &from, &metadata, &to)?;
        let root = self.root(&to, &metadata)?;
        let mut waiting = self.entries(&root, &from, &to)?;
        while let Some(Found { from, place }) = waiting.pop() {
            if self.tally.is_hopeless() {
                break;
            }
            let metadata = from.symlink_metadata();
            let metadata = metadata.map_err(|error| Failure::local("copy", &from, &error));
            let result = metadata.and_then(|metadata| {
                if !metadata.is_dir() {
                    return self.file(from, place, &metadata, false, feed);
                }
                let directory = self.directory(&from, &place, &metadata)?;
                waiting.extend(self.entries(&directory, &from, &place.to)?);
                Ok(())
            });
            self.tally.note(result);
        }
        Ok(())
    }

    /// Where a copy that the user named goes.
    fn place(&self, to: &Target) -> Result<Place> {
        let place = to.parent(self.client).map(|(directory, name)| Place {
            directory,
            name: name.into(),
            to: to.clone(),
        });
        place.map_err(|error| match error.status() {
            // It is the directory that is missing, not the file.
            Some(Status::NoEntry) => {
                let advice = "make the directory first with dafs mkdir -p";
                Failure::new("write", to, "its directory is not there", advice)
            }
            _ => Failure::client("write", to, &error),
        })
    }

    /// What is no directory.
    fn file(
        &mut self,
        from: PathBuf,
        place: Place,
        metadata: &Metadata,
        named: bool,
        feed: &mut dyn FnMut(Job),
    ) -> Result {
        let kind = metadata.file_type();
        let follow = named && !self.flags.recursive();
        if kind.is_symlink() {
            return send::symlink(&from, &place).inspect(|()| self.tally.link());
        }
        if !kind.is_file() && !follow {
            let why = "it is neither file nor directory nor symbolic link";
            return Err(Failure::new("copy", names::show_path(&from), why, "leave it out"));
        }
        if kind.is_file() && metadata.nlink() > 1 {
            let first = self.several.get(&(metadata.dev(), metadata.ino()));
            match first {
                Some(first) if self.flags.archive => {
                    self.links.push((first.clone(), place));
                    return Ok(());
                }
                Some(_) => self.tally.parted(),
                None => {
                    self.several.insert((metadata.dev(), metadata.ino()), place.clone());
                }
            }
        }
        self.tally.found(metadata.len());
        feed(Job { from, place, follow });
        Ok(())
    }

    /// The copy of a directory that the user named: made, or there before, be it through a link.
    fn root(&mut self, to: &Target, metadata: &Metadata) -> Result<Directory> {
        if names::last_name(&to.path).is_some() {
            let Place { directory, name, .. } = self.place(to)?;
            match directory.mkdir(name, 0o700) {
                Ok((made, attr)) => {
                    self.new_directory(&made, to, metadata, &attr);
                    return Ok(made);
                }
                Err(error) if error.status() != Some(Status::Exists) => {
                    return Err(Failure::client("make directory", to, &error));
                }
                Err(_) => {}
            }
        }
        // The root cannot be made, and is always there.
        let there = self.client.directory(&to.path);
        let there = there.map_err(|error| Failure::client("make directory", to, &error))?;
        self.there.push(there.clone());
        Ok(there)
    }

    /// The copy of a directory that was found.
    fn directory(&mut self, from: &Path, place: &Place, metadata: &Metadata) -> Result<Directory> {
        let Place { directory, name, to } = place;
        let made = self.made_as.get(&(metadata.dev(), metadata.ino()));
        let is_made = made.and_then(|made| made.attr().ok());
        if is_made.is_some_and(|attr| nesting::is_same(metadata, &attr)) {
            return Err(nesting::inside(names::show_path(from)));
        }
        match directory.mkdir(name, 0o700) {
            Ok((made, attr)) => {
                self.new_directory(&made, to, metadata, &attr);
                Ok(made)
            }
            Err(error) => {
                let there = directory.entry(name).ok();
                let there = there.filter(|there| there.file_type() == FileType::Directory);
                let there = there.and_then(|there| directory.directory(&there).ok());
                let there = there.ok_or_else(|| Failure::client("make directory", to, &error))?;
                self.there.push(there.clone());
                Ok(there)
            }
        }
    }

    fn new_directory(&mut self, made: &Directory, to: &Target, metadata: &Metadata, attr: &Attr) {
        let wanted = SetAttr {
            mode: Some(metadata.mode() & kept_of_directory(self.flags.archive)),
            mtime: Some(local::mtime(metadata)),
            ..SetAttr::default()
        };
        self.made.push((made.clone(), to.clone(), wanted));
        self.made_as.insert((attr.device, attr.inode), made.clone());
        if metadata.mode() & 0o2000 != 0 && !self.flags.archive {
            self.tally.without_setgid();
        }
    }

    /// What is to be copied to a directory.
    fn entries(&self, directory: &Directory, from: &Path, to: &Target) -> Result<Vec<Found>> {
        let fail = |error: &_| Failure::local("copy", from, error);
        let entries = std::fs::read_dir(from).map_err(|error| fail(&error))?;
        let entries = entries.map(|entry| {
            let name = entry.map_err(|error| fail(&error))?.file_name();
            let (directory, to) = (directory.clone(), to.join(&name));
            let from = from.join(&name);
            Ok(Found { from, place: Place { directory, name: name.into(), to } })
        });
        let entries = entries.collect::<Result<Vec<_>>>()?;
        self.tally.directory();
        Ok(entries)
    }
}

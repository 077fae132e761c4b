//! `dafs get`: copies from the server.

use crate::context::Context;
use crate::copy::{Flags, Tally, in_parallel};
use crate::failure::{Failure, Result};
use crate::fetch::{self, Job, Source};
use crate::interrupt;
use crate::local;
use crate::mv::Places;
use crate::names;
use crate::nesting;
use crate::target::Target;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{Attr, DirEntry, FileType};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Copy files and directories from the server
///
/// Mode, as far as the umask lets it, and time of change are kept, owners and setuid bits are not.
/// A copy gets its name when it is complete, and replaces what has the name; a file that changes
/// while it is copied is copied once more. What is no file, such as a fifo, a device or /dev/stdout, is written to as it stands.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy, and last the local copy's name, or a directory to copy to
    #[arg(required = true, num_args = 2.., value_names = ["REMOTE", "LOCAL"])]
    paths: Vec<OsString>,
    #[command(flatten)]
    flags: Flags,
}

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
    interrupt::watch();
    local::umask();
    let tally = Tally::new();
    let mut walk = Walk {
        tally: &tally,
        flags,
        made: Vec::new(),
        made_as: HashMap::new(),
        several: HashMap::new(),
        links: Vec::new(),
    };
    let mut places = Places::default();
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
                let result = places.take("copy", &to, &from);
                tally.note(result.and_then(|()| walk.operand(&client, from, to, feed)));
            }
        },
        |block, job| fetch::file(&tally, flags, block, &job),
    );
    let Walk { made, links, .. } = walk;
    for (first, to) in links {
        let linked =
            local::link(&first, &to).map_err(|error| Failure::local("make link", &to, &error));
        tally.note(linked.inspect(|()| tally.file(names::show_path(&to))));
    }
    // The last made first: what is in a directory changes its time.
    for (path, attr) in made.iter().rev() {
        let finished = local::finish_directory(path, attr, flags.archive);
        tally.note(finished.map_err(|error| Failure::local("set attributes of", path, &error)));
    }
    tally.finish(flags.verbose)
}

/// Something that was found in a directory of the server.
struct Found {
    above: Directory,
    entry: DirEntry,
    from: Target,
    to: PathBuf,
}

/// What is known on the way through the server's directories.
struct Walk<'a> {
    tally: &'a Tally,
    flags: &'a Flags,
    /// Directories that were made, with the attributes they are to have in the end.
    made: Vec<(PathBuf, Attr)>,
    /// Those directories by device and inode.
    made_as: HashMap<(u64, u64), PathBuf>,
    /// The copies of files that have several names, by device and inode.
    several: HashMap<(u64, u64), PathBuf>,
    /// Copies of one file: the first, and a further name for it.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Walk<'_> {
    fn operand(
        &mut self,
        client: &Client,
        from: Target,
        to: PathBuf,
        feed: &mut dyn FnMut(Job),
    ) -> Result {
        let fail = |error: &_| Failure::client("copy", &from, error);
        let attr = if self.flags.recursive() {
            client.symlink_metadata(&from.path)
        } else {
            client.metadata(&from.path)
        };
        let attr = attr.map_err(|error| fail(&error))?;
        if attr.r#type() != FileType::Directory {
            if names::ends_with_slash(&to) {
                return Err(local::no_directory(names::show_path(&to)));
            }
            if attr.r#type() == FileType::Symlink {
                let target = client.read_link(&from.path).map_err(|error| fail(&error))?;
                return self.link(&target, &to, &attr);
            }
            let source = Source::Named(client.clone());
            return self.file(source, from, to, attr, feed);
        }
        if !self.flags.recursive() {
            let advice = "add -r to copy it with all that is in it";
            return Err(Failure::new("copy", &from, "it is a directory", advice));
        }
        nesting::refuse_get(&from, &attr, &to)?;
        let root = client.directory(&from.path).map_err(|error| fail(&error))?;
        let entries = root.entries().map_err(|error| fail(&error))?;
        let mut waiting = self.directory((root, entries), &from, &to, attr, true)?;
        while let Some(Found { above, entry, from, to }) = waiting.pop() {
            if self.tally.is_hopeless() {
                break;
            }
            let attr = entry.attr.unwrap_or_default();
            let result = match attr.r#type() {
                FileType::Directory => {
                    let entered = above.enter(&entry);
                    entered
                        .map_err(|error| Failure::client("copy", &from, &error))
                        .and_then(|entered| self.directory(entered, &from, &to, attr, false))
                        .map(|entries| waiting.extend(entries))
                }
                FileType::Symlink => {
                    let target = above.read_links(&[&entry]).pop().unwrap_or(Ok(PathBuf::new()));
                    let target = target.map_err(|error| Failure::client("copy", &from, &error));
                    target.and_then(|target| self.link(&target, &to, &attr))
                }
                _ => self.file(Source::In(above), from, to, attr, feed),
            };
            self.tally.note(result);
        }
        Ok(())
    }

    /// What is no directory and no link.
    fn file(
        &mut self,
        source: Source,
        from: Target,
        to: PathBuf,
        attr: Attr,
        feed: &mut dyn FnMut(Job),
    ) -> Result {
        if attr.r#type() == FileType::MountPoint {
            let why = "another file system is mounted there, which is no part of the export";
            let advice = "export it by itself to copy what is in it";
            return Err(Failure::new("copy", &from, why, advice));
        }
        if attr.r#type() != FileType::Regular {
            let why = format!("it is a {}", crate::format::type_name(attr.r#type()));
            let advice = "only files, directories and symbolic links are copied";
            return Err(Failure::new("copy", &from, why, advice));
        }
        if attr.nlink > 1 {
            let first = self.several.get(&(attr.device, attr.inode));
            match first {
                Some(first) if self.flags.archive => {
                    self.links.push((first.clone(), to));
                    return Ok(());
                }
                Some(_) => self.tally.parted(),
                None => _ = self.several.insert((attr.device, attr.inode), to.clone()),
            }
        }
        self.tally.found(attr.size);
        feed(Job { source, from, to, attr });
        Ok(())
    }

    fn link(&self, target: &Path, to: &Path, attr: &Attr) -> Result {
        local::symlink(target, to, attr.mtime)
            .map_err(|error| Failure::local("make link", to, &error))
            .inspect(|()| self.tally.link())
    }

    /// Makes a directory; what is to be copied to it.
    fn directory(
        &mut self,
        (directory, entries): (Directory, Vec<DirEntry>),
        from: &Target,
        to: &Path,
        attr: Attr,
        named: bool,
    ) -> Result<Vec<Found>> {
        let made = self.made_as.get(&(attr.device, attr.inode));
        if made.is_some_and(|made| nesting::is_same_get(made, &attr)) {
            return Err(nesting::inside(from));
        }
        match std::fs::create_dir(to) {
            Ok(()) => {
                self.made.push((to.into(), attr));
                if let Ok(made) = to.symlink_metadata() {
                    self.made_as.insert((made.dev(), made.ino()), to.into());
                }
                if attr.mode & 0o2000 != 0 && !self.flags.archive {
                    self.tally.without_setgid();
                }
            }
            Err(error) => {
                // Nothing that the server sends leads out of the copy through a link: only a
                // directory that the user named may be one.
                let there = if named { to.metadata() } else { to.symlink_metadata() };
                if !there.is_ok_and(|there| there.is_dir()) {
                    return Err(Failure::local("make directory", to, &error));
                }
            }
        }
        let fail = |error: &_| Failure::client("copy", from, error);
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let (from, to) = (from.join(&entry.name), to.join(&entry.name));
            let entry = match entry.attr {
                Some(_) => entry,
                None => directory.entry(&entry.name).map_err(|error| fail(&error))?,
            };
            found.push(Found { above: directory.clone(), entry, from, to });
        }
        self.tally.directory();
        Ok(found)
    }
}

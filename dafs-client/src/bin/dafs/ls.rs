//! `dafs ls`: directories and what is in them.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::json::Json;
use crate::names;
use crate::output::Output;
use crate::target::Target;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{Attr, DirEntry, FileType};
use std::ffi::OsString;

/// List directories, sorted by name
///
/// Names go to a terminal with escapes for what could confuse it, to files and pipes as they are.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to list; the default server's directory if nothing is given
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Type and mode, links, owner, group, size and time of change (UTC) too
    #[arg(short, long)]
    long: bool,
    /// Names that begin with a dot too
    #[arg(short, long)]
    all: bool,
    /// What is in the directories too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Directories themselves, not what is in them
    #[arg(short, long, conflicts_with = "recursive")]
    directory: bool,
    /// One JSON object a line for each entry, with all attributes
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

/// Something to be listed.
struct Entry {
    name: Vec<u8>,
    attr: Attr,
    /// Where a symbolic link leads to.
    link: Option<Vec<u8>>,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let paths: Vec<_> = args.paths.iter().map(|path| Some(path.as_os_str())).collect();
    let paths = if paths.is_empty() { vec![None] } else { paths };
    let mut output = Output::new();
    let mut lister = Lister { args, raw: !output.is_terminal(), output: &mut output, lists: 0 };
    let headings = paths.len() > 1 || args.recursive;
    let result = each(&paths, |path| {
        let target = cx.target_or_default(*path)?;
        lister.operand(&cx.client(&target)?, &target, headings)
    });
    output.finish()?;
    result
}

struct Lister<'a> {
    args: &'a Args,
    raw: bool,
    output: &'a mut Output,
    /// Directories listed so far.
    lists: usize,
}

impl Lister<'_> {
    fn operand(&mut self, client: &Client, target: &Target, headings: bool) -> Result {
        let fail = |error: &_| Failure::client("list", target, error);
        // A link is itself of interest where its attributes are shown.
        let follow = !self.args.long && !self.args.json && !self.args.directory;
        let attr = if follow {
            client.metadata(&target.path)
        } else {
            client.symlink_metadata(&target.path)
        };
        let attr = match attr {
            // A link that leads nowhere can still be listed.
            Err(error) if follow => {
                client.symlink_metadata(&target.path).map_err(|_| fail(&error))?
            }
            attr => attr.map_err(|error| fail(&error))?,
        };
        if !is_directory(&attr) || self.args.directory {
            let name = names::bytes(&target.path).to_vec();
            let wants_link = self.wants_link() && attr.r#type() == FileType::Symlink;
            // Without it the rest of the entry is still worth listing.
            let link = wants_link.then(|| client.read_link(&target.path).ok()).flatten();
            let link = link.map(|link| names::bytes(&link).to_vec());
            return self.show(target, &[Entry { name, attr, link }]);
        }
        let root = client.directory(&target.path).map_err(|error| fail(&error))?;
        // By handles, so that a directory costs the same however deep it is.
        let mut waiting = vec![(root, None, target.clone())];
        let mut failed = false;
        while let Some((above, entry, target)) = waiting.pop() {
            let entered = match entry {
                Some(entry) => above.enter(&entry),
                None => above.entries().map(|entries| (above, entries)),
            };
            let entered = entered.map_err(|error| Failure::client("list", &target, &error));
            let below = entered.and_then(|(directory, entries)| {
                let below = self.list(&directory, entries, &target, headings)?;
                Ok(below.into_iter().map(move |entry| (directory.clone(), entry)))
            });
            match below {
                Ok(below) if self.args.recursive => {
                    waiting.extend(below.rev().map(|(above, entry)| {
                        let target = target.join(&entry.name);
                        (above, Some(entry), target)
                    }))
                }
                Ok(_) => {}
                Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
                Err(failure) => {
                    _ = failure.tell();
                    failed = true;
                }
            }
        }
        if failed { Err(Failure::Told) } else { Ok(()) }
    }

    /// Lists a directory; the directories in it.
    fn list(
        &mut self,
        directory: &Directory,
        mut entries: Vec<DirEntry>,
        target: &Target,
        heading: bool,
    ) -> Result<Vec<DirEntry>> {
        let fail = |error: &_| Failure::client("list", target, error);
        entries.retain(|entry| self.args.all || !names::bytes(&entry.name).starts_with(b"."));
        entries.sort_by(|a, b| names::bytes(&a.name).cmp(names::bytes(&b.name)));
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry = match entry.attr {
                Some(_) => entry,
                None => match directory.entry(&entry.name) {
                    Ok(entry) => entry,
                    // It has gone since.
                    Err(error) if error.errno() == 2 => continue,
                    Err(error) => return Err(fail(&error)),
                },
            };
            found.push(entry);
        }
        if heading && !self.args.json {
            let path = names::bytes(&target.path);
            let gap = if self.lists > 0 { "\n" } else { "" };
            self.output.bytes(gap.as_bytes())?;
            let path = self.name(path);
            self.output.bytes(&[&path[..], b":\n"].concat())?;
        }
        self.lists += 1;
        let shown = self.entries(directory, &found);
        self.show(target, &shown)?;
        found.retain(|entry| entry.attr.as_ref().is_some_and(is_directory));
        Ok(found)
    }

    fn wants_link(&self) -> bool {
        self.args.long || self.args.json
    }

    fn entries(&self, directory: &Directory, found: &[DirEntry]) -> Vec<Entry> {
        let is_link = |entry: &&DirEntry| entry.file_type() == FileType::Symlink;
        let links = found.iter().filter(|entry| self.wants_link() && is_link(entry));
        let mut links = directory.read_links(&links.collect::<Vec<_>>()).into_iter();
        let entry = |entry: &DirEntry| {
            let link = if self.wants_link() && is_link(&entry) { links.next() } else { None };
            // Without it the rest of the entry is still worth listing.
            let link = link.and_then(dafs_client::Result::ok);
            Entry {
                name: names::bytes(&entry.name).to_vec(),
                attr: entry.attr.unwrap_or_default(),
                link: link.map(|link| names::bytes(&link).to_vec()),
            }
        };
        found.iter().map(entry).collect()
    }

    fn name(&self, name: &[u8]) -> Vec<u8> {
        if self.raw { name.to_vec() } else { names::show(name).into_bytes() }
    }

    fn show(&mut self, directory: &Target, entries: &[Entry]) -> Result {
        if self.args.json {
            return entries.iter().try_for_each(|entry| self.output.line(json(directory, entry)));
        }
        let width = |number: fn(&Attr) -> u64| {
            entries.iter().map(|entry| number(&entry.attr).to_string().len()).max().unwrap_or(0)
        };
        let links = width(|attr| attr.nlink.into());
        let (uid, gid) = (width(|attr| attr.uid.into()), width(|attr| attr.gid.into()));
        let size = width(|attr| attr.size);
        for Entry { name, attr, link } in entries {
            let mut line = Vec::new();
            if self.args.long {
                let columns = format!(
                    "{} {:links$} {:uid$} {:gid$} {:size$} {} ",
                    format::mode(attr),
                    attr.nlink,
                    attr.uid,
                    attr.gid,
                    attr.size,
                    format::time(attr.mtime),
                );
                line.extend_from_slice(columns.as_bytes());
            }
            line.extend(self.name(name));
            if let Some(link) = link {
                line.extend_from_slice(b" -> ");
                line.extend(self.name(link));
            }
            line.push(b'\n');
            self.output.bytes(&line)?;
        }
        Ok(())
    }
}

/// Whether something can be listed: a mount point too, as empty.
fn is_directory(attr: &Attr) -> bool {
    matches!(attr.r#type(), FileType::Directory | FileType::MountPoint)
}

fn json(directory: &Target, entry: &Entry) -> Json {
    let mut fields: Vec<_> = format::name_json(&entry.name).into();
    fields.push(("directory".into(), Json::text(names::encode(names::bytes(&directory.path)))));
    fields.extend(format::attr_json(&entry.attr));
    let link = entry.link.as_ref().map_or(Json::Null, |link| Json::text(names::encode(link)));
    fields.push(("link".into(), link));
    Json::Object(fields)
}

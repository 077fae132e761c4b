//! What clients do: open files, write, read, truncate, sync, close, move names.

use super::model::{CELLS, NOBODY, Writer, begin, cell_at};
use super::run::{NAMES, OPENS, Run, Verdict, read_whole};
use dafs_client::blocking::File;
use dafs_client::{Error, OpenOptions, Path, Stability};
use dafs_proto::SetAttr;
use std::ops::Range;

impl Run<'_> {
    /// A few cells of a file.
    pub(super) fn cells(&mut self, most: usize) -> Range<usize> {
        let first = self.random.usize(0..CELLS);
        let count = self.random.usize(1..=most.min(CELLS - first));
        first..first + count
    }

    pub(super) fn pick(&mut self, peer: usize) -> Option<(File, usize)> {
        let count = self.peers[peer].opens.len();
        (count > 0).then(|| self.peers[peer].opens[self.random.usize(0..count)].clone())
    }

    pub(super) fn writer(&self, peer: usize) -> Writer {
        self.peers[peer].writer
    }

    pub(super) fn open(&mut self, peer: usize, name: &'static str) -> Verdict {
        if self.peers[peer].opens.len() >= OPENS {
            return Ok(());
        }
        let options = OpenOptions::new().read(true).write(true).create(true);
        let result = self.peers[peer].client.open_with(name, options);
        let writer = self.writer(peer);
        match result {
            Ok(file) => {
                let known = self.names.get(name).copied();
                let number = known.unwrap_or_else(|| self.model.add_file(writer));
                self.names.insert(name, number);
                if known.is_none() {
                    self.numbers.push(self.site.disk.number(name).expect("it was created"));
                }
                self.note(format!("client {writer} opens {name}, which is file {number}"));
                self.peers[peer].opens.push((file, number));
                Ok(())
            }
            Err(error) => {
                self.note(format!("client {writer} cannot open {name}: {error}"));
                self.check_error("open", &error)
            }
        }
    }

    pub(super) fn write(&mut self, peer: usize, stability: Stability) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let most = if self.random.u8(0..4) == 0 { CELLS } else { 6 };
        let cells = self.cells(most);
        let writer = self.writer(peer);
        self.catch_up();
        self.changes(number, writer);
        let seq = self.model.next();
        let value = u8::try_from(seq % 255 + 1).expect("below 256");
        let bytes = vec![value; begin(cells.end) - begin(cells.start)];
        let before = self.site.disk.is_faulty().then(|| file.attr().ok()).flatten();
        let result = file.write_at_stable(&bytes, begin(cells.start) as u64, stability);
        self.catch_up();
        self.note(format!(
            "client {writer} writes {value} ({stability:?}) to {}..{} of file {number}: {result:?}",
            begin(cells.start),
            begin(cells.end)
        ));
        let count = *result.as_ref().unwrap_or(&0);
        let Some(done) = cell_at(begin(cells.start) + count) else {
            return Err(format!("{count} bytes were written, which is no part of it"));
        };
        let stable = stability != Stability::Unstable;
        if done > cells.start {
            self.model.wrote(number, cells.start..done, value, writer, stable);
        }
        if done == cells.end {
            return Ok(());
        }
        if let Err(error) = &result
            && !self.model.may_report(number, writer)
            && !self.may_be_refused(number, writer, error)
        {
            self.check_error("write", error)?;
        }
        self.model.failed_to_write(number, done..cells.end, value, writer);
        let failed = begin(done)..begin(cells.end);
        let written = if done > cells.start { begin(done) as u64 } else { 0 };
        let before = before.filter(|_| !self.ended_in_step);
        let size = before.map(|attr| attr.size.max(written));
        self.look_after_failure(&file, number, failed, value, size)
    }

    /// After a failed write the file is as long as what is there.
    pub(super) fn look_after_failure(
        &mut self,
        file: &File,
        number: usize,
        failed: Range<usize>,
        value: u8,
        before: Option<u64>,
    ) -> Verdict {
        let (Some(before), Ok(attr)) = (before, file.attr()) else { return Ok(()) };
        let size = usize::try_from(attr.size).unwrap_or(usize::MAX);
        self.note(format!("  the size was {before} and is {size}"));
        if attr.size > before {
            let mut last = [0];
            let is_read = file.read_at(&mut last, attr.size - 1).is_ok_and(|count| count == 1);
            if !failed.contains(&(size - 1)) || !is_read || last != [value] {
                return Err(format!(
                    "a failed write of {failed:?} made the file longer, from {before} to {size} \
                     bytes; the last one could be read: {is_read}, and is {last:?}"
                ));
            }
        }
        let content = read_whole(file, Path::Auto);
        match content {
            Ok(content) => self.saw(number, &content),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn saw(&mut self, number: usize, content: &[u8]) -> Verdict {
        let seen = if self.ended_in_step {
            self.model.saw_parts(number, content)
        } else {
            self.model.saw(number, content)
        };
        seen.map_err(|what| format!("file {number}: {what}"))
    }

    pub(super) fn read(&mut self, peer: usize) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let path = [Path::Auto, Path::Auto, Path::Inline, Path::Direct][self.random.usize(0..4)];
        let writer = self.writer(peer);
        let result = read_whole(&file, path);
        self.catch_up();
        match result {
            Ok(content) => {
                let what = format!("client {writer} reads {} of file {number}", content.len());
                self.note(what);
                // After a second end it depends on who comes back first.
                if self.site.disk.hits() == 0 && !self.ended_in_step && self.ended < 2 {
                    self.model.recovered(number, writer);
                }
                self.saw(number, &content)?;
                match file.attr() {
                    Ok(attr) if attr.size != content.len() as u64 => Err(format!(
                        "file {number} has a size of {} and {} bytes",
                        attr.size,
                        content.len()
                    )),
                    Ok(_) => Ok(()),
                    Err(error) => self.check_error("attributes", &error),
                }
            }
            Err(error) => {
                self.note(format!("client {writer} cannot read file {number}: {error}"));
                self.check_error("read", &error)
            }
        }
    }

    pub(super) fn truncate(&mut self, peer: usize) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let end = self.random.usize(0..=CELLS);
        let writer = self.writer(peer);
        self.changes(number, writer);
        let result = file.set_len(begin(end) as u64);
        self.catch_up();
        self.truncated(number, end, writer, writer, result)
    }

    pub(super) fn truncate_by_name(&mut self, peer: usize, name: &'static str) -> Verdict {
        let Some(&number) = self.names.get(name) else { return Ok(()) };
        let end = self.random.usize(0..=CELLS);
        let set = SetAttr { size: Some(begin(end) as u64), ..SetAttr::default() };
        self.changes(number, self.writer(peer));
        let result = self.peers[peer].client.set_attr(name, set).map(drop);
        self.catch_up();
        self.truncated(number, end, self.writer(peer), NOBODY, result)
    }

    pub(super) fn truncated(
        &mut self,
        number: usize,
        end: usize,
        by: Writer,
        kept: Writer,
        result: Result<(), Error>,
    ) -> Verdict {
        let size = begin(end);
        self.note(format!("client {by} sets the size of file {number} to {size}: {result:?}"));
        match result {
            Ok(()) => {
                self.model.truncated(number, end, kept);
                Ok(())
            }
            Err(error) => {
                if !self.model.may_report(number, by) && !self.may_be_refused(number, by, &error) {
                    self.check_error("truncate", &error)?;
                }
                self.model.failed_to_truncate(number, end, kept);
                // It may have told what a sync would have.
                self.model.failed_to_sync(number, by);
                Ok(())
            }
        }
    }

    pub(super) fn sync(&mut self, peer: usize, cells: Range<usize>) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        self.sync_file(peer, &file, number, cells).map(drop)
    }

    /// Whether it succeeded.
    pub(super) fn sync_file(
        &mut self,
        peer: usize,
        file: &File,
        number: usize,
        cells: Range<usize>,
    ) -> Verdict<bool> {
        let writer = self.writer(peer);
        let (start, end) = (begin(cells.start), begin(cells.end));
        let whole = cells == (0..CELLS);
        let result =
            if whole { file.sync() } else { file.commit(start as u64, (end - start) as u64) };
        self.catch_up();
        let which = if whole { String::new() } else { format!("{start}..{end} of ") };
        self.note(format!("client {writer} syncs {which}file {number}: {result:?}"));
        match result {
            Ok(()) => {
                self.model.synced(number, cells, writer);
                Ok(true)
            }
            Err(error) => {
                // Where the power failed, a change of names may be lost.
                if !self.model.may_report(number, writer)
                    && !self.power_was_lost
                    && !self.may_be_refused(number, writer, &error)
                {
                    self.check_error("sync", &error)?;
                }
                self.model.failed_to_sync(number, writer);
                Ok(false)
            }
        }
    }

    pub(super) fn close(&mut self, peer: usize) -> Verdict {
        let count = self.peers[peer].opens.len();
        if count == 0 {
            return Ok(());
        }
        let at = self.random.usize(0..count);
        let (file, number) = self.peers[peer].opens.swap_remove(at);
        let result = file.close();
        let writer = self.writer(peer);
        self.note(format!("client {writer} closes file {number}: {result:?}"));
        result.or_else(|error| self.check_error("close", &error))
    }

    /// Sent over a lost connection, what cannot be repeated would have an outcome that the client
    /// cannot know.
    pub(super) fn reconnect(&self, peer: usize) -> Verdict {
        let result = self.peers[peer].client.metadata("/");
        result.map(drop).map_err(|error| format!("reconnect: {error}"))
    }

    /// A file that loses its name stays for those that have it open, in a session.
    pub(super) fn reconnect_all(&self) -> Verdict {
        (0..self.peers.len()).try_for_each(|peer| self.reconnect(peer))
    }

    pub(super) fn unlink(&mut self, peer: usize, name: &'static str) -> Verdict {
        if self.names.remove(name).is_none() {
            return Ok(());
        }
        self.reconnect_all()?;
        self.note(format!("client {} unlinks {name}", self.writer(peer)));
        let result = self.peers[peer].client.unlink(name);
        result.map_err(|error| format!("unlink: {error}"))
    }

    pub(super) fn rename(&mut self, peer: usize, from: &'static str) -> Verdict {
        let to = NAMES[self.random.usize(0..self.profile.files)];
        let Some(number) = self.names.remove(from) else { return Ok(()) };
        self.names.insert(to, number);
        self.reconnect_all()?;
        self.note(format!("client {} renames {from} to {to}", self.writer(peer)));
        let result = self.peers[peer].client.rename(from, to);
        result.map_err(|error| format!("rename: {error}"))
    }
}

//! Writes as rows.

use super::Session;
use crate::data::{self, Aligned, Offsets};
use crate::error::{Context, Error, Result};
use crate::floor::PAGE;
use crate::measure::{Block, Label, Subject, one_by_one};
use crate::signals::Stop;
use dafs_client::Path;
use dafs_client::blocking::File;
use std::time::Duration;

/// Writes that are not committed, at random places of a file of their own.
///
/// Every write bears a number, and what the file holds in the end is compared with what was written
/// last. Commits are made between blocks and not measured.
#[derive(Debug)]
pub(crate) struct Writes<'a> {
    session: &'a Session,
    stop: &'a Stop,
    file: File,
    label: Label,
    offsets: Offsets,
    buffer: Aligned,
    /// The number of the last write at each place; 0 where there was none.
    last: Vec<u64>,
    number: u64,
}

impl<'a> Writes<'a> {
    /// Writes `block` bytes at a time to the file `name`, which has `size` bytes.
    pub(crate) fn new(
        session: &'a Session,
        name: &str,
        size: u64,
        block: usize,
        stop: &'a Stop,
    ) -> Result<Self> {
        let file = session.open_to_write(name)?;
        // A partial write needs the rest of its page: it should be there.
        let mut page = vec![0; PAGE];
        for offset in (0..size).step_by(PAGE) {
            file.read_exact_at(&mut page, offset).context(|| format!("first pass of {name}"))?;
        }
        let label = Label { path: "write", block: block as u64, depth: 1, clients: 1 };
        let offsets = Offsets::random(size, block);
        let mut buffer = Aligned::new(block);
        data::fill_any(buffer.get_mut());
        let last = vec![0; usize::try_from(size).unwrap_or(0) / block];
        Ok(Self { session, stop, file, label, offsets, buffer, last, number: 0 })
    }

    /// Compares the file with what was written.
    pub(crate) fn verify(&self) -> Result<()> {
        let mut buffer = vec![0; self.buffer.get().len()];
        for (place, &expected) in self.last.iter().enumerate().filter(|(_, number)| **number > 0) {
            let offset = (place * buffer.len()) as u64;
            self.file
                .read_at_by(&mut buffer, offset, Path::Inline)
                .context(|| format!("reading back at {offset}"))?;
            let found = data::first_word(&buffer);
            if found != expected || buffer[8..] != self.buffer.get()[8..] {
                return Err(Error::Content { offset, found, expected });
            }
            self.stop.check()?;
        }
        Ok(())
    }
}

impl Subject for Writes<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let Self { session, stop, file, label, offsets, buffer, last, number } = self;
        let before = session.client.counters();
        let block = session.accounted(|| {
            one_by_one(time, stop, || {
                let offset = offsets.next();
                *number += 1;
                let bytes = buffer.get_mut();
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                let written =
                    file.write_at(bytes, offset).context(|| format!("writing at {offset}"))?;
                if written != bytes.len() {
                    let wanted = bytes.len();
                    return Err(Error::Peer(format!("{written} of {wanted} bytes were written")));
                }
                let place = usize::try_from(offset).unwrap_or(usize::MAX) / bytes.len();
                last[place] = *number;
                Ok(written as u64)
            })
        })?;
        let after = session.client.counters();
        let requests =
            after.inline_writes + after.direct_writes - before.inline_writes - before.direct_writes;
        if requests != block.ops {
            let reason = format!("{requests} WRITE requests for {} writes", block.ops);
            return Err(Error::WrongPath { row: label.name(), reason });
        }
        if let Some(server) = block.server
            && server.handler_calls != block.ops
        {
            let calls = server.handler_calls;
            let reason = format!("the server handled {calls} requests for {} writes", block.ops);
            return Err(Error::WrongPath { row: label.name(), reason });
        }
        file.sync().context(|| "committing".into())?;
        Ok(block)
    }
}

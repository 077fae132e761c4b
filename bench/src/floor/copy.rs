//! Copying pages out of private memory and checking or opening them: what a read from shared memory
//! cannot do without; and opening alone: what no read of sealed pages can do without.

use super::PAGE;
use crate::data::{self, Aligned, Offsets};
use crate::error::{Error, Result};
use crate::measure::{Block, Label, Subject, one_by_one, prepared};
use crate::signals::Stop;
use dafs_client::keys::{FileKey, PageKey, Protection, Secret};
use dafs_client::ordma::slot::accept;
use dafs_client::ordma::{FOOTER_LEN, Footer, Kind, RemoteRef};
use std::time::Duration;

/// A number for the file; nobody else has one here.
const FILE: u64 = 0x0F1E_2D3C_4B5A_6978;

/// Copy and check as a row.
#[derive(Debug)]
pub(crate) struct CopyCheck<'a> {
    label: Label,
    stop: &'a Stop,
    memory: &'a Memory,
    offsets: Offsets,
    to: Aligned,
}

/// Opening alone as a row. The copies that are opened lie in the CPU's cache, as what has just been
/// received does.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    label: Label,
    stop: &'a Stop,
    memory: &'a Memory,
    offsets: Offsets,
    to: Aligned,
}

/// Memory laid out like the server's: payloads, and footers side by side.
#[derive(Debug)]
pub(crate) struct Memory {
    payloads: Aligned,
    footers: Vec<[u8; FOOTER_LEN]>,
    key: FileKey,
}

impl Memory {
    /// The pages of a file of this size, sealed at that level and else in the clear.
    pub(crate) fn new(size: u64, protection: Protection) -> Result<Self> {
        let key = match protection {
            Protection::None | Protection::Keyed => FileKey::Clear,
            Protection::Sealed => {
                let secret = Secret::random().map_err(|error| Error::Keys(error.to_string()))?;
                FileKey::Sealed(PageKey::new(0, secret))
            }
        };
        let pages = usize::try_from(size).unwrap_or(usize::MAX) / PAGE;
        let mut payloads = Aligned::new(pages * PAGE);
        let mut footers = Vec::with_capacity(pages);
        for (i, page) in payloads.get_mut().chunks_exact_mut(PAGE).enumerate() {
            data::fill(page, (i * PAGE) as u64);
            let block = i as u64;
            let footer = Footer {
                kind: Kind::Data,
                sealed: false,
                epoch: 0,
                last: i + 1 == pages,
                valid: PAGE as u32,
                file: FILE,
                block,
                generation: block + 1,
                version: 1,
            };
            footers.push(match &key {
                FileKey::Sealed(key) => footer.seal(page, key),
                _ => footer.encode(page),
            });
        }
        Ok(Self { payloads, footers, key })
    }

    /// Copies what lies at `offset`.
    fn copy(&self, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.payloads.get()[offset..offset + to.len()]);
    }

    /// Checks, or opens, a copy of the page at `offset`.
    fn accept(&self, offset: usize, page: &mut [u8]) -> Result<()> {
        let footer = self.footers[offset / PAGE];
        let block = (offset / PAGE) as u64;
        let reference = RemoteRef { chunk: 0, slot: 0, file: FILE, block, generation: block + 1 };
        accept(std::hint::black_box(&footer), page, &reference, 1, &self.key)
            .map_err(|fault| Error::Peer(format!("copy and check: a {fault} page")))?;
        Ok(())
    }
}

impl<'a> CopyCheck<'a> {
    /// Reads as `offsets` say.
    pub(crate) fn new(label: Label, memory: &'a Memory, offsets: Offsets, stop: &'a Stop) -> Self {
        let to = Aligned::new(offsets.block());
        Self { label, stop, memory, offsets, to }
    }
}

impl Subject for CopyCheck<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        one_by_one(time, self.stop, || {
            let offset = self.offsets.next();
            let to = self.to.get_mut();
            for (i, page) in to.chunks_exact_mut(PAGE).enumerate() {
                let offset = offset as usize + i * PAGE;
                self.memory.copy(offset, page);
                self.memory.accept(offset, page)?;
            }
            data::check(to, offset)?;
            Ok(to.len() as u64)
        })
    }
}

impl<'a> Open<'a> {
    /// Opens what lies where `offsets` say.
    pub(crate) fn new(label: Label, memory: &'a Memory, offsets: Offsets, stop: &'a Stop) -> Self {
        let to = Aligned::new(offsets.block());
        Self { label, stop, memory, offsets, to }
    }
}

impl Subject for Open<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let Self { label, stop, memory, offsets, to } = self;
        let ready = |(offset, to): &mut (u64, &mut [u8])| {
            *offset = offsets.next();
            memory.copy(*offset as usize, to);
        };
        prepared(time, stop, (1, label.block), &mut (0, to.get_mut()), ready, |(offset, to)| {
            for (i, page) in to.chunks_exact_mut(PAGE).enumerate() {
                memory.accept(*offset as usize + i * PAGE, page)?;
            }
            data::check(to, *offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_copied_and_checked_or_opened() {
        let label = Label { path: "floor", block: 8192, depth: 1, clients: 1 };
        let (size, stop) = (8 * PAGE as u64, Stop::default());
        let offsets = Offsets::sequential(size, 2 * PAGE);
        for protection in [Protection::None, Protection::Sealed] {
            let memory = Memory::new(size, protection).unwrap();
            let mut copy = CopyCheck::new(label.clone(), &memory, offsets.clone(), &stop);
            let mut open = Open::new(label.clone(), &memory, offsets.clone(), &stop);
            for subject in [&mut copy as &mut dyn Subject, &mut open] {
                let block = subject.block(Duration::from_millis(1)).unwrap();
                assert_eq!(block.bytes, block.ops * 8192);
            }
        }
    }
}

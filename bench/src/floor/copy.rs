//! Copying pages out of private memory and checking them: what a read from shared memory cannot do
//! without.

use super::PAGE;
use crate::data::{self, Aligned, Offsets};
use crate::error::{Error, Result};
use crate::measure::{Block, Label, Subject, one_by_one};
use crate::signals::Stop;
use dafs_client::keys::FileKey;
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

/// Memory laid out like the server's: payloads, and footers side by side.
#[derive(Debug)]
pub(crate) struct Memory {
    payloads: Aligned,
    footers: Vec<[u8; FOOTER_LEN]>,
}

impl Memory {
    /// The pages of a file of this size.
    pub(crate) fn new(size: u64) -> Self {
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
            footers.push(footer.encode(page));
        }
        Self { payloads, footers }
    }

    /// Copies the page at `offset` and its footer, and checks the copy.
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        to.copy_from_slice(&self.payloads.get()[offset..offset + PAGE]);
        let footer = self.footers[offset / PAGE];
        let block = (offset / PAGE) as u64;
        let reference = RemoteRef { chunk: 0, slot: 0, file: FILE, block, generation: block + 1 };
        accept(std::hint::black_box(&footer), to, &reference, 1, &FileKey::Clear)
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
                self.memory.read(offset as usize + i * PAGE, page)?;
            }
            data::check(to, offset)?;
            Ok(to.len() as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_copied_and_checked() {
        let memory = Memory::new(8 * PAGE as u64);
        let label = Label { path: "floor", block: 8192, depth: 1, clients: 1 };
        let stop = Stop::default();
        let offsets = Offsets::sequential(8 * PAGE as u64, 2 * PAGE);
        let mut subject = CopyCheck::new(label, &memory, offsets, &stop);
        let block = subject.block(Duration::from_millis(1)).unwrap();
        assert_eq!(block.bytes, block.ops * 8192);
    }
}

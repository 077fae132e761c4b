//! What the files of an experiment hold, and whether that is what was read.
//!
//! The first 8 bytes of every 4 KiB tell their offset in the file, so that a page in another's place
//! shows at the cost of one comparison; the rest is noise, so that nothing on the way can gain by
//! leaving zeroes out.

use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Every so many bytes there is a word that tells its offset.
pub(crate) const STEP: usize = 4096;

/// The word at an offset.
pub(crate) fn word(offset: u64) -> u64 {
    // An odd multiplier makes it one to one; no offset gives zero.
    (offset | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Fills `page` (a multiple of [`STEP`] long) with what the file holds at `offset`.
pub(crate) fn fill(page: &mut [u8], offset: u64) {
    fastrand::Rng::with_seed(offset).fill(page);
    for (i, step) in page.chunks_exact_mut(STEP).enumerate() {
        step[..8].copy_from_slice(&word(offset + (i * STEP) as u64).to_le_bytes());
    }
}

/// Fills a buffer with noise.
pub(crate) fn fill_any(bytes: &mut [u8]) {
    fastrand::Rng::with_seed(bytes.len() as u64).fill(bytes);
}

/// The first word of `bytes`.
pub(crate) fn first_word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Checks that `bytes` are what the file holds at `offset`, a multiple of [`STEP`].
pub(crate) fn check(bytes: &[u8], offset: u64) -> Result<()> {
    for (i, step) in bytes.chunks(STEP).enumerate() {
        let offset = offset + (i * STEP) as u64;
        let (found, expected) = (first_word(step), word(offset));
        if found != expected {
            return Err(Error::Content { offset, found, expected });
        }
    }
    Ok(())
}

/// Makes a file of `size` bytes, a multiple of [`STEP`].
pub(crate) fn create(path: &Path, size: u64) -> Result<()> {
    let what = || format!("writing {}", path.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).context(what)?);
    let mut page = [0; STEP];
    for offset in (0..size).step_by(STEP) {
        fill(&mut page, offset);
        file.write_all(&page).context(what)?;
    }
    file.flush().context(what)
}

/// `len` zero bytes that begin on a page boundary, as memory for pages should: what is copied to
/// and from odd addresses takes longer, and by how much is chance.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zero bytes.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0; len + STEP];
        let start = bytes.as_ptr().align_offset(STEP).min(STEP);
        Self { bytes, start, len }
    }

    /// The bytes.
    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The bytes, to be changed.
    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Which offsets of a file are read, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Offsets {
    block: usize,
    blocks: u64,
    order: Order,
}

#[derive(Clone, Debug)]
enum Order {
    Random(fastrand::Rng),
    Sequential(u64),
}

impl Offsets {
    /// Whole blocks in random order. `file` holds at least one.
    pub(crate) fn random(file: u64, block: usize) -> Self {
        Self::new(file, block, Order::Random(fastrand::Rng::new()))
    }

    /// Whole blocks from the beginning to the end, again and again.
    pub(crate) fn sequential(file: u64, block: usize) -> Self {
        Self::new(file, block, Order::Sequential(0))
    }

    fn new(file: u64, block: usize, order: Order) -> Self {
        Self { block, blocks: (file / block as u64).max(1), order }
    }

    /// Bytes of a block.
    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// The next offset.
    pub(crate) fn next(&mut self) -> u64 {
        let place = match &mut self.order {
            Order::Random(rng) => rng.u64(..self.blocks),
            Order::Sequential(next) => {
                let place = *next;
                *next = (place + 1) % self.blocks;
                place
            }
        };
        place * self.block as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_anothers_place_is_found() {
        let mut pages = vec![0; 3 * STEP];
        fill(&mut pages, 8192);
        check(&pages, 8192).unwrap();
        assert!(check(&pages, 4096).is_err());
        pages.copy_within(..STEP, STEP);
        let error = check(&pages, 8192).unwrap_err();
        assert!(error.to_string().contains("offset 12288"), "{error}");
        assert!(check(&[0; STEP], 0).is_err());
    }

    #[test]
    fn offsets_are_those_of_whole_blocks() {
        let mut sequential = Offsets::sequential(10_000, 4096);
        assert_eq!([0; 3].map(|_| sequential.next()), [0, 4096, 0]);
        let mut random = Offsets::random(1 << 20, 8192);
        assert!((0..100).map(|_| random.next()).all(|at| at % 8192 == 0 && at < 1 << 20));
    }

    #[test]
    fn aligned_memory_is_aligned() {
        let mut memory = Aligned::new(100);
        assert_eq!(memory.get().len(), 100);
        assert_eq!(memory.get_mut().as_ptr().align_offset(STEP), 0);
    }
}

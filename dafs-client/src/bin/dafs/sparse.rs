//! Holes: ranges of a file that are zeros and take no space.

use clap::ValueEnum;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Zeros of fewer bytes stay zeros: the size of a block of most file systems.
const BLOCK: usize = 4096;

/// Whether copies have holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sparse {
    /// Where what is copied has some.
    #[default]
    Auto,
    /// Wherever there are zeros.
    Always,
    /// Nowhere.
    Never,
}

/// The ranges of a block that are to be written: all but the zeros that can be left out, which are
/// aligned as the block is.
pub fn data(block: &[u8]) -> Vec<Range<usize>> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (number, part) in block.chunks(BLOCK).enumerate() {
        let (start, end) = (number * BLOCK, number * BLOCK + part.len());
        if part == &ZEROS[..part.len()] {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// The next range at or behind `at` in which a local file may have data; `None` where there is none
/// up to its end. A file system that knows nothing of holes has one range without an end.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::SPIPE | Errno::OPNOTSUPP) => return Ok(Some(at..u64::MAX)),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(u64::MAX);
    Ok(Some(start..end.max(start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn zeros_between_data_are_left_out() {
        let mut block = vec![0; 5 * BLOCK + 7];
        assert!(data(&block).is_empty());
        block[0] = 1;
        block[BLOCK] = 1;
        block[3 * BLOCK + 5] = 1;
        block[5 * BLOCK + 6] = 1;
        let ranges = [0..2 * BLOCK, 3 * BLOCK..4 * BLOCK, 5 * BLOCK..5 * BLOCK + 7];
        assert_eq!(data(&block), ranges);
        assert!(data(&[]).is_empty());
    }

    #[test]
    fn data_is_found_behind_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"x", 4 << 20).unwrap();
        let range = next_data(&file, 0).unwrap().unwrap();
        assert!(range.contains(&(4 << 20)), "{range:?}");
        // A file system without holes has one range.
        if range.end < 8 << 20 {
            assert_eq!(next_data(&file, range.end).unwrap(), None);
        }
        assert_eq!(next_data(&file, 8 << 20).unwrap(), None);
    }
}

//! Sequential reads with read-ahead, by block size, and the client's CPU time: the dissertation's
//! figures 12 and 13.

use super::{length, memory, reads};
use crate::data::Offsets;
use crate::error::Result;
use crate::lab::Lab;
use crate::report::Row;

/// 4 KiB to 1 MiB.
const BLOCKS: [u64; 9] =
    [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Blocks under way: the read-ahead.
pub(super) const DEPTH: u64 = 8;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.warm()?;
    let memory = memory(lab)?;
    let depth = lab.options.depth.unwrap_or(DEPTH);
    let mut rows = Vec::new();
    for block in lab.read_blocks(&BLOCKS)? {
        let offsets = Offsets::sequential(session.size(), length(block));
        rows.extend(lab.measure(reads(lab, &session, memory.as_ref(), depth, &offsets)?)?);
    }
    Ok(rows)
}

//! Response time of a read by each path, blocks in random order, one at a time: the dissertation's
//! table 7.

use super::{length, memory, reads};
use crate::data::Offsets;
use crate::error::Result;
use crate::lab::Lab;
use crate::report::Row;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.warm()?;
    let memory = memory(lab)?;
    let mut rows = Vec::new();
    for block in lab.read_blocks(&[4096])? {
        let offsets = Offsets::random(session.size(), length(block));
        rows.extend(lab.measure(reads(lab, &session, memory.as_ref(), 1, &offsets)?)?);
    }
    Ok(rows)
}

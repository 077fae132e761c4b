//! Random reads with several of them under way.

use super::{length, memory, reads};
use crate::data::Offsets;
use crate::error::Result;
use crate::lab::Lab;
use crate::report::Row;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.warm()?;
    let memory = memory(lab)?;
    let depths = lab.options.depth.map_or(vec![1, 16, 64], |depth| vec![depth]);
    let mut rows = Vec::new();
    for block in lab.read_blocks(&[4096])? {
        for &depth in &depths {
            let offsets = Offsets::random(session.size(), length(block));
            rows.extend(lab.measure(reads(lab, &session, memory.as_ref(), depth, &offsets)?)?);
        }
    }
    Ok(rows)
}

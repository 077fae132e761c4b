//! Writes that are not committed.

use super::length;
use crate::data;
use crate::error::{Error, Result};
use crate::floor::Exchange;
use crate::lab::Lab;
use crate::measure::Subject;
use crate::report::Row;
use crate::session::Writes;

/// A page, and much less than one.
const BLOCKS: [u64; 2] = [4096, 64];
/// Bytes of the file that is written, if the file that is read is not smaller.
const FILE_SIZE: u64 = 16 << 20;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let size = FILE_SIZE.min(lab.options.file_size);
    let blocks = lab.options.block.map_or(BLOCKS.to_vec(), |block| vec![block]);
    let session = lab.connect()?;
    let mut rows = Vec::new();
    for block in blocks {
        if !(16..=1 << 20).contains(&block) {
            return Err(Error::Usage(format!("--block {block}: writes are of 16 B to 1 MiB")));
        }
        let name = format!("written-{block}");
        data::create(&lab.server.files().join(&name), size)?;
        let mut writes = Writes::new(&session, &name, size, length(block), lab.stop)?;
        let mut subjects = lab.ping_pongs(block, 1, Exchange::write(length(block)), None)?;
        subjects.push(Box::new(&mut writes as &mut dyn Subject));
        rows.extend(lab.measure(subjects)?);
        writes.verify()?;
    }
    Ok(rows)
}

//! Round trip and bandwidth of the bare transport and of RPC: the dissertation's table 5.

use super::{floors, length, memory};
use crate::data::Offsets;
use crate::error::Result;
use crate::floor::Exchange;
use crate::lab::Lab;
use crate::report::Row;
use crate::session::{NullRpc, Reads};
use dafs_client::Path;

/// Block and blocks under way of a bandwidth.
const BLOCK: u64 = 1 << 20;
const DEPTH: u64 = 8;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.warm()?;
    let mut subjects = lab.ping_pongs(0, 1, Exchange::byte(), None)?;
    subjects.push(Box::new(NullRpc { session: &session, stop: lab.stop }));
    let mut rows = lab.measure(subjects)?;

    let block = BLOCK.min(lab.options.file_size);
    let offsets = Offsets::sequential(session.size(), length(block));
    let memory = memory(lab)?;
    let mut subjects = floors(lab, memory.as_ref(), DEPTH, &offsets)?;
    subjects.push(Box::new(Reads::new(&session, Path::Direct, DEPTH, offsets, lab.stop)));
    rows.extend(lab.measure(subjects)?);
    Ok(rows)
}

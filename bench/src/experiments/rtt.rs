//! Round trip and bandwidth of the bare transport and of RPC: the dissertation's table 5.

use super::{length, memory};
use crate::data::Offsets;
use crate::error::Result;
use crate::floor::{CopyCheck, Exchange};
use crate::lab::{Lab, Subjects};
use crate::measure::Label;
use crate::report::Row;
use crate::session::{NullRpc, Reads};
use dafs_client::Path;

/// Block and blocks under way of a bandwidth.
const BLOCK: u64 = 1 << 20;
const DEPTH: u64 = 8;

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.warm()?;
    let mut subjects = lab.ping_pongs(0, 1, Exchange::byte())?;
    subjects.push(Box::new(NullRpc { session: &session, stop: lab.stop }));
    let mut rows = lab.measure(subjects)?;

    let block = BLOCK.min(lab.options.file_size);
    let offsets = Offsets::sequential(session.size(), length(block));
    let memory = memory(lab);
    let mut subjects: Subjects<'_> = Vec::new();
    if let Some(memory) = &memory {
        let label = Label { path: "floor", block, depth: DEPTH, clients: 1 };
        subjects.push(Box::new(CopyCheck::new(label, memory, offsets.clone(), lab.stop)));
    }
    subjects.extend(lab.ping_pongs(block, DEPTH, Exchange::read(length(block)))?);
    subjects.push(Box::new(Reads::new(&session, Path::Direct, DEPTH, offsets, lab.stop)));
    rows.extend(lab.measure(subjects)?);
    Ok(rows)
}

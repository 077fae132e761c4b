//! Where footers should lie for an RDMA device: side by side behind all payloads, as they do in a
//! chunk, or each behind its payload. Raw READs, of a page and of a run of 16.
//!
//! The floor of either is a READ of the payloads without footers.

use crate::cli::DeviceOptions;
use crate::data::Offsets;
use crate::error::Result;
use crate::experiments::{Finding, Measure, hold_against_floors};
use crate::floor::verbs::Part;
use crate::floor::{FOOTER, PAGE, Peer, Waiting, Where};
use crate::lab::Subjects;
use crate::machine::date;
use crate::measure::{Label, Plan, measure};
use crate::placement::{Awake, Placement, bind};
use crate::report::Report;
use crate::signals::Stop;

/// Bytes of the pages that are read.
const SIZE: u64 = 64 << 20;
/// Pages of a run.
const RUN: usize = 16;

/// Measures it all.
pub(crate) fn run(options: &DeviceOptions, placement: &Placement, stop: &Stop) -> Result<Finding> {
    let (date, timing) = (date(), &options.timing);
    bind(placement.client(0))?;
    let peer = Peer::start(Where::Verbs(options.device.address), SIZE, placement)?;
    let mut awake = Awake::new(timing.keep_awake, &placement.cpus(1))?;
    let mut rows = Vec::new();
    for pages in [1, RUN] {
        let mut subjects = Subjects::new();
        for (path, parts) in layouts(pages) {
            let block = pages * PAGE;
            let label = Label { path, block: block as u64, depth: 1, clients: 1 };
            let offsets = Offsets::random(SIZE, block);
            subjects.push(peer.reads(label, parts, offsets, Waiting::Spinning, stop)?);
        }
        rows.extend(measure(&mut subjects, Plan::of(timing), &mut awake)?);
    }
    drop((peer, awake));
    hold_against_floors(&mut rows, Measure::Time);
    let command = options.command("layouts");
    let report = Report {
        engine: Some("verbs".into()),
        rows,
        ..Report::of("layouts", command, date, timing, placement)
    };
    let notes = vec![
        "apart: footers behind all payloads, two READs under one doorbell; behind: each footer \
         behind its payload, one READ"
            .into(),
        "page by page: a READ of each payload and one of all footers, under one doorbell".into(),
    ];
    Ok(Finding { report, notes, measure: Measure::Time })
}

/// What is read in each layout, of so many pages.
fn layouts(pages: usize) -> Vec<(&'static str, Vec<Part>)> {
    let payloads = |number: usize, count: usize| Part {
        start: (number * PAGE) as u64,
        stride: PAGE as u64,
        len: count * PAGE,
    };
    let footers = Part { start: SIZE, stride: FOOTER as u64, len: pages * FOOTER };
    let slot = PAGE + FOOTER;
    let mut layouts = vec![
        ("floor", vec![payloads(0, pages)]),
        ("apart", vec![payloads(0, pages), footers]),
        ("behind", vec![Part { start: 0, stride: slot as u64, len: pages * slot }]),
    ];
    if pages > 1 {
        let each = (0..pages).map(|number| payloads(number, 1));
        layouts.push(("page by page", each.chain([footers]).collect()));
    }
    layouts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_brings_pages_and_footers_out_of_the_peers_memory() {
        for pages in [1, RUN] {
            let last = SIZE / PAGE as u64 - pages as u64;
            for (path, parts) in layouts(pages) {
                let bytes: usize = parts.iter().map(|part| part.len).sum();
                let wanted = if path == "floor" { PAGE } else { PAGE + FOOTER };
                assert_eq!(bytes, pages * wanted, "{path}");
                let memory = SIZE + SIZE / 64;
                assert!(parts.iter().all(|part| part.at(last) + part.len as u64 <= memory));
            }
        }
        assert_eq!(layouts(1).len(), 3);
        assert_eq!(layouts(RUN)[3].1.len(), RUN + 1);
    }
}

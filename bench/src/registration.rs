//! What registering memory with an RDMA device costs, and what it saves to take a block of memory
//! that is registered already: the dissertation's table 13.

use crate::cli::DeviceOptions;
use crate::error::{Context, Result};
use crate::experiments::{Finding, Measure};
use crate::floor::PAGE;
use crate::floor::verbs::device;
use crate::lab::Subjects;
use crate::machine::date;
use crate::measure::{Block, Label, Plan, Subject, measure, prepared};
use crate::placement::{Awake, Placement, bind};
use crate::report::{Report, Row};
use crate::signals::Stop;
use dafs_client::ordma::rdma::{self, Access, Buffer, Domain, Region, Slab};
use std::sync::Arc;
use std::time::Duration;

/// What is registered, in pages.
const PAGES: [usize; 8] = [1, 2, 3, 10, 100, 256, 1024, 16384];
/// How often a block is taken in one go: reading the clock can take much longer than that.
const TAKEN: usize = 4096;

/// Measures it all.
pub(crate) fn run(options: &DeviceOptions, placement: &Placement, stop: &Stop) -> Result<Finding> {
    let (date, timing) = (date(), &options.timing);
    let (device, _id) = device(options.device.address)?;
    let domain = Domain::new(device).context(|| "making a protection domain".into())?;
    bind(placement.client(0))?;
    let mut awake = Awake::new(timing.keep_awake, &placement.cpus(1))?;
    let mut subjects: Subjects<'_> = vec![Box::new(Taking::new(&domain, stop)?)];
    for pages in PAGES {
        let memory = touched(pages)?;
        for (path, change) in [("register", Change::Register), ("deregister", Change::Deregister)] {
            let label = label(path, pages);
            let (domain, memory) = (Arc::clone(&domain), Arc::clone(&memory));
            subjects.push(Box::new(Registering { label, stop, domain, memory, change }));
        }
    }
    let rows = measure(&mut subjects, Plan::of(timing), &mut awake)?;
    let command = options.command("registration");
    let report = Report {
        engine: Some("verbs".into()),
        rows,
        ..Report::of("registration", command, date, timing, placement)
    };
    let notes = sums(&report.rows);
    Ok(Finding { report, notes, measure: Measure::Time })
}

fn label(path: &'static str, pages: usize) -> Label {
    Label { path, block: (pages * PAGE) as u64, depth: 1, clients: 1 }
}

/// Memory of so many pages, all of which are there.
fn touched(pages: usize) -> Result<Arc<Buffer>> {
    let memory = Buffer::new(pages * PAGE).context(|| format!("memory of {pages} pages"))?;
    for page in 0..pages {
        memory.copy_in(page * PAGE, &[0x5A]);
    }
    Ok(memory)
}

/// What a transfer of each size would pay, and how often a block could be taken meanwhile.
fn sums(rows: &[Row]) -> Vec<String> {
    let median = |path: &str, block: u64| {
        let row = rows.iter().find(|row| row.path == path && row.block == Some(block));
        row.and_then(|row| row.p50_us)
    };
    let take = median("take", PAGE as u64);
    let sum = |pages: usize| {
        let block = (pages * PAGE) as u64;
        let both = median("register", block)? + median("deregister", block)?;
        let times = both / take?;
        let plural = if pages == 1 { "" } else { "s" };
        Some(format!("{pages} page{plural}: {both:.1} us both ways, {times:.0} x a block taken"))
    };
    PAGES.into_iter().filter_map(sum).collect()
}

/// Which half of it is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Register,
    Deregister,
}

/// Registering or deregistering the same memory, as a row.
#[derive(Debug)]
struct Registering<'a> {
    label: Label,
    stop: &'a Stop,
    domain: Arc<Domain>,
    memory: Arc<Buffer>,
    change: Change,
}

impl Registering<'_> {
    /// As memory that the peer is to write to: what a direct read would need.
    fn register(&self) -> rdma::Result<Region> {
        let memory: Arc<Buffer> = Arc::clone(&self.memory);
        Region::new(&self.domain, memory, Access::RemoteWrite)
    }
}

impl Subject for Registering<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let this = &*self;
        let Self { label, stop, change, .. } = this;
        let what = || label.name();
        let amount = (1, label.block);
        let mut region: Option<rdma::Result<Region>> = None;
        let register = |region: &mut Option<_>| *region = Some(this.register());
        match change {
            Change::Register => {
                let clear = |region: &mut Option<_>| *region = None;
                prepared(time, stop, amount, &mut region, clear, |region| {
                    let new = this.register().context(what)?;
                    *region = Some(Ok(new));
                    Ok(())
                })
            }
            Change::Deregister => prepared(time, stop, amount, &mut region, register, |region| {
                region.take().transpose().map(drop).context(what)
            }),
        }
    }
}

/// Taking a registered block and giving it back, as a row.
#[derive(Debug)]
struct Taking<'a> {
    stop: &'a Stop,
    slab: Arc<Slab>,
}

impl<'a> Taking<'a> {
    fn new(domain: &Arc<Domain>, stop: &'a Stop) -> Result<Self> {
        let slab = Slab::new(domain, PAGE, 16, Access::RemoteWrite);
        Ok(Self { stop, slab: slab.context(|| "registering blocks".into())? })
    }
}

impl Subject for Taking<'_> {
    fn label(&self) -> Label {
        label("take", 1)
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let Self { stop, slab } = self;
        let amount = (TAKEN as u64, PAGE as u64);
        prepared(
            time,
            stop,
            amount,
            slab,
            |_| {},
            |slab| {
                for _ in 0..TAKEN {
                    drop(std::hint::black_box(slab.take()));
                }
                Ok(())
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_are_told_together_and_against_a_block() {
        let row = |path: &str, pages: u64, micros| Row {
            path: path.into(),
            block: Some(4096 * pages),
            p50_us: Some(micros),
            ..Row::default()
        };
        let rows = [
            row("register", 1, 20.0),
            row("deregister", 1, 10.0),
            row("take", 1, 0.1),
            row("register", 10, 30.0),
            row("deregister", 10, 15.0),
        ];
        assert_eq!(
            sums(&rows),
            [
                "1 page: 30.0 us both ways, 300 x a block taken",
                "10 pages: 45.0 us both ways, 450 x a block taken"
            ]
        );
        assert!(sums(&rows[..2]).is_empty());
    }
}

//! The experiments, one file each.

mod random;
mod ratios;
mod response_time;
mod rtt;
mod server_throughput;
mod throughput;
mod write;

pub(crate) use ratios::{Measure, hold_against_floors};
pub(crate) use server_throughput::work;

use crate::cli::{Engine, Options, name};
use crate::data::Offsets;
use crate::error::{Error, Result};
use crate::floor::{CopyCheck, Exchange, Memory, Open};
use crate::lab::{Lab, Subjects};
use crate::machine::date;
use crate::measure::Label;
use crate::placement::Placement;
use crate::report::Report;
use crate::session::{PATHS, Reads, Session};
use crate::signals::Stop;
use dafs_client::keys::Protection;

/// An experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Experiment {
    Rtt,
    ResponseTime,
    Random,
    Throughput,
    ServerThroughput,
    Write,
}

/// A result and how to read it.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) report: Report,
    /// What is to be told besides the rows.
    pub(crate) notes: Vec<String>,
    /// What rows are held against their floors by.
    pub(crate) measure: Measure,
}

impl Experiment {
    pub(crate) const ALL: [Self; 6] = [
        Self::Rtt,
        Self::ResponseTime,
        Self::Random,
        Self::Throughput,
        Self::ServerThroughput,
        Self::Write,
    ];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rtt => "rtt",
            Self::ResponseTime => "response-time",
            Self::Random => "random",
            Self::Throughput => "throughput",
            Self::ServerThroughput => "server-throughput",
            Self::Write => "write",
        }
    }

    /// The options for this experiment where all are run: those that are another's are left out.
    pub(crate) fn options_of_all(self, options: &Options) -> Options {
        let mut options = options.clone();
        let (block, depth) = match self {
            Self::Rtt => (false, false),
            Self::ResponseTime | Self::Write => (true, false),
            Self::Random | Self::Throughput | Self::ServerThroughput => (true, true),
        };
        options.block = options.block.filter(|_| block);
        options.depth = options.depth.filter(|_| depth);
        options.clients = options.clients.filter(|_| self == Self::ServerThroughput);
        options
    }

    fn measure(self) -> Measure {
        match self {
            Self::Rtt | Self::ResponseTime | Self::Write => Measure::Time,
            Self::Random | Self::Throughput | Self::ServerThroughput => Measure::Rate,
        }
    }

    /// Runs it from the start of a server to its end.
    pub(crate) fn run(
        self,
        options: &Options,
        placement: &Placement,
        stop: &Stop,
    ) -> Result<Finding> {
        let date = date();
        let clients = match self {
            Self::ServerThroughput => server_throughput::most_clients(options),
            _ => 1,
        };
        let lab = Lab::start(options, placement, clients, stop)?;
        let mut rows = match self {
            Self::Rtt => rtt::run(&lab),
            Self::ResponseTime => response_time::run(&lab),
            Self::Random => random::run(&lab),
            Self::Throughput => throughput::run(&lab),
            Self::ServerThroughput => server_throughput::run(&lab),
            Self::Write => write::run(&lab),
        }?;
        let mut notes = lab.end()?;
        if rows.is_empty() {
            let (name, wanted) = (self.name(), options.rows.join(", "));
            return Err(Error::Usage(format!("--rows: {name} has no row named {wanted}")));
        }
        let measure = self.measure();
        hold_against_floors(&mut rows, measure);
        ratios::hold_against_direct(&mut rows, measure);
        if options.engine == Engine::Verbs {
            notes.extend(ratios::against_direct(self, &rows));
        }
        let command = options.command(self.name(), placement.place);
        let report = Report {
            engine: Some(name(&options.engine)),
            protection: Some(options.protection.to_string()),
            rows,
            ..Report::of(self.name(), command, date, &options.timing, placement)
        };
        Ok(Finding { report, notes, measure })
    }
}

impl Finding {
    /// The result for people.
    pub(crate) fn to_table(&self) -> String {
        let of = match self.measure {
            Measure::Time => "time",
            Measure::Rate => "rate",
        };
        let mut text = self.report.to_table(of);
        for note in &self.notes {
            text.push_str(note);
            text.push('\n');
        }
        text
    }
}

/// The rows of reads by each path, and their floors.
fn reads<'b>(
    lab: &'b Lab<'_>,
    session: &'b Session,
    memory: Option<&'b Memory>,
    depth: u64,
    offsets: &Offsets,
) -> Result<Subjects<'b>> {
    let mut subjects = floors(lab, memory, depth, offsets)?;
    for path in PATHS {
        subjects.push(Box::new(Reads::new(session, path, depth, offsets.clone(), lab.stop)));
    }
    Ok(subjects)
}

/// The floors of reads.
fn floors<'b>(
    lab: &'b Lab<'_>,
    memory: Option<&'b Memory>,
    depth: u64,
    offsets: &Offsets,
) -> Result<Subjects<'b>> {
    let (engine, protection) = (lab.options.engine, lab.options.protection);
    let block = offsets.block();
    let label = |path| Label { path, block: block as u64, depth, clients: 1 };
    let mut subjects: Subjects<'b> = Vec::new();
    if let (Engine::Shm, Some(memory)) = (engine, memory) {
        let copy = CopyCheck::new(label("floor"), memory, offsets.clone(), lab.stop);
        subjects.push(Box::new(copy));
    }
    if engine == Engine::Verbs {
        subjects.extend(lab.raw_reads(depth, offsets)?);
    }
    let exchange = Exchange::read(block);
    subjects.extend(lab.ping_pongs(block as u64, depth, exchange, Some(offsets))?);
    if let (Protection::Sealed, Some(memory)) = (protection, memory) {
        let open = Open::new(label("floor-open"), memory, offsets.clone(), lab.stop);
        subjects.push(Box::new(open));
    }
    Ok(subjects)
}

/// Memory for the floors that read pages, where there is one: of reads from shared memory, and of
/// sealed pages.
fn memory(lab: &Lab<'_>) -> Result<Option<Memory>> {
    let Options { engine, protection, file_size, .. } = *lab.options;
    let wanted = engine == Engine::Shm || protection == Protection::Sealed;
    wanted.then(|| Memory::new(file_size, protection)).transpose()
}

/// A block size as a length.
fn length(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

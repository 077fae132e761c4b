//! The experiments, one file each.

mod random;
mod response_time;
mod rtt;
mod server_throughput;
mod throughput;
mod write;

pub(crate) use server_throughput::work;

use crate::cli::{Engine, Options, name};
use crate::error::Result;
use crate::floor::{CopyCheck, Exchange, Memory, Open};
use crate::lab::{Lab, Subjects};
use crate::machine::{Machine, commit, date};
use crate::measure::Label;
use crate::placement::Placement;
use crate::report::{Report, Row, round};
use crate::session::{PATHS, Reads, Session};
use crate::signals::Stop;
use crate::{cli::Switch, data::Offsets};
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

/// What rows are held against their floors by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Median times: the smaller the better, 1 is the floor.
    Time,
    /// Bytes a second: the larger the better, 1 is the floor.
    Rate,
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
        let notes = lab.end()?;
        let measure = self.measure();
        hold_against_floors(&mut rows, measure);
        let report = Report {
            experiment: self.name().into(),
            engine: Some(name(&options.engine)),
            protection: Some(options.protection.to_string()),
            machine: Machine::this(),
            commit: commit(),
            place: placement.place.name().into(),
            keep_awake: options.timing.keep_awake == Switch::On,
            date,
            command: options.command(self.name(), placement.place),
            rows,
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

/// Notes beside each row how it compares with its floors: what moves the same bytes, as many of
/// them under way, by the same means. Reads from shared memory are a copy, everything else there
/// goes over a socket. Sealed pages are also held against their opening alone: a transfer that
/// overlaps it is as fast as the slower of the two, that is, the larger ratio of rates counts.
fn hold_against_floors(rows: &mut [Row], measure: Measure) {
    let floors: Vec<Row> = rows.iter().filter(|row| is_floor(row)).cloned().collect();
    let value = |row: &Row| match measure {
        Measure::Time => row.p50_us,
        Measure::Rate => row.mb_per_s,
    };
    for row in rows.iter_mut().filter(|row| !is_floor(row)) {
        let among = |names: [&str; 2]| {
            let mut found = names.iter().filter_map(|name| {
                floors.iter().find(|floor| {
                    floor.path == *name && floor.block == row.block && floor.depth == row.depth
                })
            });
            found.find_map(value)
        };
        let ratio = |floor: Option<f64>| Some(round(value(row)? / floor?));
        let by_copy = row.path == "ordma";
        let floor = if by_copy { ["floor", "floor-socket"] } else { ["floor-socket", "floor"] };
        let copied = by_copy && floors.iter().any(|floor| floor.path == "floor-socket");
        let spin = if copied { None } else { among(["floor-socket-spin", "floor-spin"]) };
        let open = among(["floor-open"; 2]);
        let [floor, spin, open] = [among(floor), spin, open].map(ratio);
        (row.ratio, row.ratio_spin, row.ratio_open) = (floor, spin, open);
    }
}

fn is_floor(row: &Row) -> bool {
    row.path.starts_with("floor")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str, p50: f64, rate: f64) -> Row {
        Row {
            path: path.into(),
            block: Some(4096),
            depth: Some(1),
            p50_us: Some(p50),
            mb_per_s: Some(rate),
            ..Row::default()
        }
    }

    fn ratios(rows: &[Row]) -> Vec<(Option<f64>, Option<f64>)> {
        rows.iter().map(|row| (row.ratio, row.ratio_spin)).collect()
    }

    #[test]
    fn over_tcp_rows_are_held_against_the_ping_pongs() {
        let mut rows =
            [row("floor", 10.0, 400.0), row("floor-spin", 5.0, 800.0), row("ordma", 12.0, 300.0)];
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[2], (Some(1.2), Some(2.4)));
        hold_against_floors(&mut rows, Measure::Rate);
        assert_eq!(ratios(&rows)[2].0, Some(0.75));
        assert_eq!(ratios(&rows)[0], (None, None));
    }

    #[test]
    fn in_shared_memory_one_sided_reads_are_held_against_the_copy() {
        let mut rows = [
            row("floor", 0.5, 8000.0),
            row("floor-socket", 10.0, 400.0),
            row("floor-socket-spin", 8.0, 500.0),
            row("inline", 20.0, 200.0),
            row("ordma", 1.0, 4000.0),
        ];
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[3..], [(Some(2.0), Some(2.5)), (Some(2.0), None)]);
    }

    #[test]
    fn rows_of_sealed_pages_are_also_held_against_opening_alone() {
        let mut rows = [
            row("floor", 10.0, 4000.0),
            row("floor-open", 20.0, 2000.0),
            row("ordma", 21.0, 1900.0),
        ];
        hold_against_floors(&mut rows, Measure::Rate);
        assert_eq!(rows[2].ratio_open, Some(0.95));
        assert_eq!(ratios(&rows)[2], (Some(0.475), None));
        assert_eq!(rows[1].ratio_open, None);
    }

    #[test]
    fn floors_of_other_sizes_do_not_count() {
        let mut rows = [row("floor", 10.0, 400.0), row("ordma", 12.0, 300.0)];
        rows[0].block = Some(8192);
        hold_against_floors(&mut rows, Measure::Time);
        assert_eq!(ratios(&rows)[1], (None, None));
    }
}

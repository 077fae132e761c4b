//! Results, as JSON and as a table.

use crate::cli::{Switch, Timing};
use crate::machine::{Machine, commit};
use crate::placement::Placement;
use serde::Serialize;
use std::fmt::Write;

/// The result of one experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name on the command line.
    pub experiment: String,
    /// The transport; absent where nothing is transported.
    pub engine: Option<String>,
    /// The protection level; absent where it is that of no server.
    pub protection: Option<String>,
    /// Where it ran.
    pub machine: Machine,
    /// The commit it was built from, with `+dirty` where files differed from it.
    pub commit: Option<String>,
    /// `same` or `cross`: see `--place`.
    pub place: String,
    /// Whether the CPUs were kept from halting.
    pub keep_awake: bool,
    /// When it began, in UTC.
    pub date: String,
    /// The command with all its options, those also that were not given.
    pub command: String,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// One line of a result. What does not apply is absent: null in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// What was measured: a floor, or the path that served the reads.
    pub path: String,
    /// Bytes of one operation.
    pub block: Option<u64>,
    /// Operations under way at a time.
    pub depth: Option<u64>,
    /// Client processes.
    pub clients: Option<u64>,
    /// Median time of an operation.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// Mean.
    pub mean_us: Option<f64>,
    /// Operations a second.
    pub ops_per_s: Option<f64>,
    /// 10^6 bytes a second.
    pub mb_per_s: Option<f64>,
    /// Requests that the file server handled during the row, by its own counter.
    pub handler_calls: Option<u64>,
    /// CPU time of the server process for each operation.
    pub server_cpu_us_per_op: Option<f64>,
    /// CPU time of the client process or processes for each operation.
    pub client_cpu_us_per_op: Option<f64>,
    /// The row divided by its floor; in the table only.
    #[serde(skip)]
    pub ratio: Option<f64>,
    /// The row divided by its spinning floor; in the table only.
    #[serde(skip)]
    pub ratio_spin: Option<f64>,
    /// The row divided by the opening of the same pages alone; in the table only.
    #[serde(skip)]
    pub ratio_open: Option<f64>,
    /// A row of one-sided reads divided by that of direct ones; in the table only.
    #[serde(skip)]
    pub ratio_direct: Option<f64>,
}

/// Rounds to a thousandth, which no measurement here exceeds in accuracy.
#[must_use]
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
    /// The result of an experiment on this machine, begun at `date`, without rows yet, and without
    /// a transport.
    pub(crate) fn of(
        experiment: &str,
        command: String,
        date: String,
        timing: &Timing,
        placement: &Placement,
    ) -> Self {
        Self {
            experiment: experiment.into(),
            engine: None,
            protection: None,
            machine: Machine::this(),
            commit: commit(),
            place: placement.place.name().into(),
            keep_awake: timing.keep_awake == Switch::On,
            date,
            command,
            rows: Vec::new(),
        }
    }

    /// The result as one JSON object.
    ///
    /// # Panics
    /// Never: nothing in it can fail to be written.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data")
    }

    /// The result for people: what was measured where, and a line for each row. `of` says of what
    /// the ratios in the last columns are.
    #[must_use]
    pub fn to_table(&self, of: &str) -> String {
        self.head() + &lines(&used(self.cells(of)))
    }

    /// The result for people where operations take less than microseconds: nanoseconds, and 10^9
    /// bytes a second at the median. The mean would count whatever else ran on the CPU, too.
    #[must_use]
    pub fn to_fine_table(&self) -> String {
        let head = ["path", "block", "p50 ns", "p99 ns", "GB/s"];
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let nanos = |micros: Option<f64>| micros.map(|micros| micros * 1000.0);
            let bytes = row.block.filter(|block| *block > 0);
            let rate = bytes.zip(nanos(row.p50_us)).map(|(bytes, nanos)| bytes as f64 / nanos);
            cells.push(vec![
                row.path.clone(),
                whole(row.block),
                real(nanos(row.p50_us), 0),
                real(nanos(row.p99_us), 0),
                real(rate, 2),
            ]);
        }
        self.head() + &lines(&used(cells))
    }

    fn head(&self) -> String {
        let mut text = format!("{}: ", self.experiment);
        let awake = if self.keep_awake { "on" } else { "off" };
        // Writing to a string does not fail.
        for (name, value) in [("engine", &self.engine), ("protection", &self.protection)] {
            if let Some(value) = value {
                let _ = write!(text, "{name} {value}, ");
            }
        }
        let _ = writeln!(text, "place {}, keep-awake {awake}", self.place);
        let Machine { cpu, cores, kernel } = &self.machine;
        let commit = self.commit.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "{cpu}, {cores} CPUs, {kernel}; commit {commit}; {}", self.date);
        text
    }

    fn cells(&self, of: &str) -> Vec<Vec<String>> {
        let [floor, spin, open, direct] =
            ["floor", "spin", "open", "direct"].map(|other| format!("{of}/{other}"));
        let head = [
            "path",
            "block",
            "depth",
            "clients",
            "p50 us",
            "p99 us",
            "mean us",
            "ops/s",
            "MB/s",
            "handler calls",
            "server us/op",
            "client us/op",
            &floor,
            &spin,
            &open,
            &direct,
        ];
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
            cells.push(vec![
                row.path.clone(),
                whole(row.block),
                whole(row.depth),
                whole(row.clients),
                real(row.p50_us, 2),
                real(row.p99_us, 2),
                real(row.mean_us, 2),
                real(row.ops_per_s, 0),
                real(row.mb_per_s, 1),
                whole(row.handler_calls),
                real(row.server_cpu_us_per_op, 2),
                real(row.client_cpu_us_per_op, 2),
                real(row.ratio, 2),
                real(row.ratio_spin, 2),
                real(row.ratio_open, 2),
                real(row.ratio_direct, 2),
            ]);
        }
        cells
    }
}

fn whole(value: Option<u64>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn real(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// The first column, and of the others those that apply to any row.
fn used(cells: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let applies =
        |column: &usize| *column == 0 || cells[1..].iter().any(|line| line[*column] != "-");
    let columns: Vec<usize> = (0..cells[0].len()).filter(applies).collect();
    cells.iter().map(|line| columns.iter().map(|&c| line[c].clone()).collect()).collect()
}

/// Columns side by side: the first to the left, the others to the right.
fn lines(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| cells.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in cells {
        for (i, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let _ = match i {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

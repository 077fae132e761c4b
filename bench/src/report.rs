//! Results, as JSON and as a table.

use crate::machine::Machine;
use serde::Serialize;
use std::fmt::Write;

/// The result of one experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name on the command line.
    pub experiment: String,
    /// The transport.
    pub engine: String,
    /// The protection level.
    pub protection: String,
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
}

/// Rounds to a thousandth, which no measurement here exceeds in accuracy.
#[must_use]
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
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
        let mut text = String::new();
        let awake = if self.keep_awake { "on" } else { "off" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{}: engine {}, protection {}, place {}, keep-awake {awake}",
            self.experiment, self.engine, self.protection, self.place
        );
        let Machine { cpu, cores, kernel } = &self.machine;
        let commit = self.commit.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "{cpu}, {cores} CPUs, {kernel}; commit {commit}; {}", self.date);
        text.push_str(&lines(&self.cells(of)));
        text
    }

    fn cells(&self, of: &str) -> Vec<Vec<String>> {
        let (floor, spin) = (format!("{of}/floor"), format!("{of}/spin"));
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
        ];
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        let whole = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
        let real = |value: Option<f64>, digits: usize| {
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
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
            ]);
        }
        // What applies to no row at all is left out.
        let used =
            |column: &usize| *column == 0 || cells[1..].iter().any(|line| line[*column] != "-");
        let columns: Vec<usize> = (0..head.len()).filter(used).collect();
        cells.iter().map(|line| columns.iter().map(|&c| line[c].clone()).collect()).collect()
    }
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

//! Measuring: rows take turns in blocks, so that what changes on the machine meanwhile changes all
//! of them, and a row is the median of its blocks.

use crate::cli::Timing;
use crate::error::Result;
use crate::placement::Awake;
use crate::process::own_cpu;
use crate::report::{Row, round};
use crate::signals::Stop;
use hdrhistogram::Histogram;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long and in how many blocks each row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// Time of a row, over all its blocks.
    pub(crate) time: Duration,
}

impl Plan {
    /// As the options say.
    pub(crate) fn of(timing: &Timing) -> Self {
        let blocks = usize::try_from(timing.blocks).unwrap_or(usize::MAX);
        Self { blocks, time: Duration::from_secs_f64(timing.seconds) }
    }

    fn block_time(&self) -> Duration {
        self.time / u32::try_from(self.blocks).unwrap_or(u32::MAX).max(1)
    }
}

/// What a row is about.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) path: &'static str,
    pub(crate) block: u64,
    pub(crate) depth: u64,
    pub(crate) clients: u64,
}

impl Label {
    /// The row's name in messages.
    pub(crate) fn name(&self) -> String {
        let Self { path, block, depth, clients } = self;
        format!("{path} (block {block}, depth {depth}, clients {clients})")
    }
}

/// What a block of operations took.
#[derive(Debug)]
pub(crate) struct Block {
    /// Nanoseconds of each operation.
    pub(crate) times: Histogram<u64>,
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds of CPU time.
    pub(crate) client_cpu: u64,
    pub(crate) server: Option<ServerWork>,
}

/// What a block cost the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerWork {
    /// Nanoseconds of CPU time.
    pub(crate) cpu: u64,
    /// Requests handled, by the server's own counter.
    pub(crate) handler_calls: u64,
}

/// Something that can be measured in blocks.
pub(crate) trait Subject {
    /// What the row is about.
    fn label(&self) -> Label;
    /// Does operations for `time`, at least one.
    fn block(&mut self, time: Duration) -> Result<Block>;
}

impl<S: Subject + ?Sized> Subject for &mut S {
    fn label(&self) -> Label {
        (**self).label()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        (**self).block(time)
    }
}

/// Times of operations: at most a minute, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good")
}

/// What reading the clock takes, in nanoseconds: as much as a part of a small read from shared
/// memory. It is taken off every time.
fn clock_cost() -> u64 {
    static COST: OnceLock<u64> = OnceLock::new();
    *COST.get_or_init(|| {
        const READINGS: u32 = 1000;
        let once = || {
            let begun = Instant::now();
            for _ in 0..READINGS {
                std::hint::black_box(Instant::now());
            }
            begun.elapsed() / READINGS
        };
        (0..20).map(|_| once()).min().map_or(0, nanos)
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Records operations that follow each other or overlap.
pub(crate) struct Recorder<'a> {
    stop: &'a Stop,
    time: Duration,
    clock: u64,
    begun: Instant,
    cpu: u64,
    times: Histogram<u64>,
    bytes: u64,
}

impl<'a> Recorder<'a> {
    /// Begins a block.
    pub(crate) fn begin(time: Duration, stop: &'a Stop) -> Self {
        let (clock, times) = (clock_cost(), histogram());
        Self { stop, time, clock, times, bytes: 0, cpu: own_cpu(), begun: Instant::now() }
    }

    /// When the block began.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// Notes an operation that has just ended, at `now`; whether time for more is left.
    pub(crate) fn done(&mut self, since: Instant, now: Instant, bytes: u64) -> Result<bool> {
        let time = nanos(now - since).saturating_sub(self.clock).max(1);
        self.times.saturating_record(time);
        self.bytes += bytes;
        self.stop.check()?;
        Ok(now - self.begun < self.time)
    }

    /// Ends the block.
    pub(crate) fn end(self) -> Block {
        let elapsed = self.begun.elapsed();
        let client_cpu = own_cpu() - self.cpu;
        let (times, bytes) = (self.times, self.bytes);
        Block { ops: times.len(), times, bytes, elapsed, client_cpu, server: None }
    }
}

/// A block of operations one after the other; `op` does one and says how many bytes it moved.
pub(crate) fn one_by_one(
    time: Duration,
    stop: &Stop,
    mut op: impl FnMut() -> Result<u64>,
) -> Result<Block> {
    let mut recorder = Recorder::begin(time, stop);
    // The end of one operation is the beginning of the next: one reading of the clock for each.
    let mut last = recorder.begun();
    loop {
        let bytes = op()?;
        let now = Instant::now();
        let more = recorder.done(last, now, bytes)?;
        last = now;
        if !more {
            return Ok(recorder.end());
        }
    }
}

/// A block of operations that each need something made ready, which is not timed: `ready` does so
/// for `count` operations, and `op` does these, of so many `bytes` each, in one go.
pub(crate) fn prepared<S>(
    time: Duration,
    stop: &Stop,
    (count, bytes): (u64, u64),
    state: &mut S,
    mut ready: impl FnMut(&mut S),
    mut op: impl FnMut(&mut S) -> Result<()>,
) -> Result<Block> {
    let (clock, mut times) = (clock_cost(), histogram());
    let (begun, mut elapsed) = (Instant::now(), 0);
    loop {
        stop.check()?;
        ready(state);
        let since = Instant::now();
        op(state)?;
        let now = Instant::now();
        let took = nanos(now - since).saturating_sub(clock).max(1);
        elapsed += took;
        times.saturating_record_n(((took + count / 2) / count).max(1), count);
        if now - begun >= time {
            break;
        }
    }
    let ops = times.len();
    Ok(Block {
        times,
        ops,
        bytes: ops * bytes,
        elapsed: Duration::from_nanos(elapsed),
        // What is measured like this waits for nothing.
        client_cpu: elapsed,
        server: None,
    })
}

/// Measures subjects in turn; a row for each, in their order.
pub(crate) fn measure(
    subjects: &mut [Box<dyn Subject + '_>],
    plan: Plan,
    awake: &mut Awake,
) -> Result<Vec<Row>> {
    let mut blocks: Vec<Vec<Block>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..plan.blocks {
        awake.renew()?;
        // Who comes first changes, so that nobody always follows the same other.
        for i in 0..subjects.len() {
            let i = (i + round) % subjects.len();
            // Who did not run for a while has forgotten things: how to wait, and what was cached.
            subjects[i].block(plan.block_time() / 10)?;
            blocks[i].push(subjects[i].block(plan.block_time())?);
        }
    }
    Ok(subjects
        .iter()
        .zip(&blocks)
        .map(|(subject, blocks)| row(&subject.label(), blocks))
        .collect())
}

/// The row of a subject's blocks: medians over the blocks, but sums of what the server handled and
/// of CPU times, which are too coarse for a block.
fn row(label: &Label, blocks: &[Block]) -> Row {
    let over = |value: &dyn Fn(&Block) -> f64| median(blocks.iter().map(value).collect());
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    let ops: u64 = blocks.iter().map(|block| block.ops).sum();
    let per_op = |nanos: u64| round(micros(nanos) / ops.max(1) as f64);
    let server: Option<Vec<ServerWork>> = blocks.iter().map(|block| block.server).collect();
    let server = server.filter(|server| !server.is_empty());
    let client_cpu = blocks.iter().map(|block| block.client_cpu).sum();
    Row {
        path: label.path.into(),
        block: Some(label.block),
        depth: Some(label.depth),
        clients: Some(label.clients),
        p50_us: over(&|block| micros(block.times.value_at_quantile(0.5))),
        p99_us: over(&|block| micros(block.times.value_at_quantile(0.99))),
        mean_us: over(&|block| block.times.mean() / 1000.0),
        ops_per_s: over(&|block| block.ops as f64 / block.elapsed.as_secs_f64()),
        mb_per_s: over(&|block| block.bytes as f64 / 1e6 / block.elapsed.as_secs_f64()),
        handler_calls: server.as_ref().map(|s| s.iter().map(|work| work.handler_calls).sum()),
        server_cpu_us_per_op: server.map(|s| per_op(s.iter().map(|work| work.cpu).sum())),
        client_cpu_us_per_op: Some(per_op(client_cpu)),
        ratio: None,
        ratio_spin: None,
        ratio_open: None,
        ratio_direct: None,
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = if values.len().is_multiple_of(2) { values[values.len() / 2 - 1] } else { upper };
    Some(round((lower + upper) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(times: &[u64], cpu: u64) -> Block {
        let mut histogram = histogram();
        times.iter().for_each(|time| histogram.record(*time).unwrap());
        let server = Some(ServerWork { cpu: 10 * cpu, handler_calls: 7 });
        Block {
            ops: histogram.len(),
            times: histogram,
            bytes: 2_000_000,
            elapsed: Duration::from_secs(2),
            client_cpu: cpu,
            server,
        }
    }

    #[test]
    fn a_row_is_the_median_of_its_blocks_and_the_sum_of_their_cost() {
        let label = Label { path: "inline", block: 4096, depth: 1, clients: 1 };
        let blocks = [block(&[1000, 1000, 9000], 3000), block(&[2000], 0), block(&[500_000], 2000)];
        let row = row(&label, &blocks);
        assert_eq!((row.path.as_str(), row.block, row.depth), ("inline", Some(4096), Some(1)));
        assert!((row.p50_us.unwrap() - 2.0).abs() < 0.01, "{row:?}");
        assert_eq!(row.ops_per_s, Some(0.5));
        assert_eq!(row.mb_per_s, Some(1.0));
        assert_eq!(row.handler_calls, Some(21));
        assert_eq!((row.client_cpu_us_per_op, row.server_cpu_us_per_op), (Some(1.0), Some(10.0)));
    }

    #[test]
    fn without_a_server_there_is_no_server_cost() {
        let label = Label { path: "floor", block: 4096, depth: 1, clients: 1 };
        let row = row(&label, &[Block { server: None, ..block(&[1000], 1000) }]);
        assert_eq!((row.handler_calls, row.server_cpu_us_per_op), (None, None));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn subjects_take_turns() {
        struct Counting<'a>(&'a std::cell::RefCell<Vec<u32>>, u32);
        impl Subject for Counting<'_> {
            fn label(&self) -> Label {
                Label { path: "floor", block: 1, depth: 1, clients: 1 }
            }
            fn block(&mut self, time: Duration) -> Result<Block> {
                self.0.borrow_mut().push(self.1);
                one_by_one(time, &Stop::default(), || Ok(1))
            }
        }
        let order = std::cell::RefCell::new(Vec::new());
        let mut subjects: Vec<Box<dyn Subject + '_>> =
            vec![Box::new(Counting(&order, 0)), Box::new(Counting(&order, 1))];
        let plan = Plan { blocks: 3, time: Duration::from_millis(3) };
        let rows = measure(&mut subjects, plan, &mut Awake::none()).unwrap();
        drop(subjects);
        assert_eq!(*order.borrow(), [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]);
        assert!(rows.iter().all(|row| row.ops_per_s.unwrap() > 0.0));
    }
}

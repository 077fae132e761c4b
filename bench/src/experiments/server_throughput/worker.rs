//! A client process: takes orders on its input, a JSON object a line, and answers each with a
//! result on its output.

use crate::cli::{Wait, name};
use crate::data::Offsets;
use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::measure::{Block, histogram};
use crate::placement::{placed, this_program};
use crate::process::common_clock;
use crate::session::{PATHS, Reads, Session, path_name};
use crate::signals::Stop;
use dafs_client::Path;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{BufRead, BufReader, Write};
use std::path::Path as FilePath;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

/// What a worker is to do for a block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    path: String,
    block: u64,
    depth: u64,
    nanos: u64,
}

impl Order {
    pub(super) fn new(path: Path, block: u64, depth: u64, time: Duration) -> Self {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { path: path_name(path).into(), block, depth, nanos }
    }
}

/// What a worker says first.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    first_pass: String,
}

/// What a worker did in a block.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    bytes: u64,
    /// When it began and ended, on the clock of all processes.
    begun: u64,
    ended: u64,
    cpu_nanos: u64,
    /// Times in nanoseconds and how many operations took them.
    times: Vec<(u64, u64)>,
}

impl Done {
    /// What a block that has just ended did.
    fn of(block: &Block) -> Self {
        let (ended, took) = (common_clock(), block.elapsed.as_nanos());
        Self {
            bytes: block.bytes,
            begun: ended.saturating_sub(u64::try_from(took).unwrap_or(u64::MAX)),
            ended,
            cpu_nanos: block.client_cpu,
            times: block
                .times
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_since_last_iteration()))
                .collect(),
        }
    }

    /// What several did together, from the first one's beginning to the last one's end.
    pub(super) fn together(done: &[Self]) -> Block {
        let mut times = histogram();
        for &(time, count) in done.iter().flat_map(|done| &done.times) {
            times.saturating_record_n(time, count);
        }
        let begun = done.iter().map(|done| done.begun).min().unwrap_or(0);
        let ended = done.iter().map(|done| done.ended).max().unwrap_or(0);
        Block {
            ops: times.len(),
            times,
            bytes: done.iter().map(|done| done.bytes).sum(),
            elapsed: Duration::from_nanos(ended - begun),
            client_cpu: done.iter().map(|done| done.cpu_nanos).sum(),
            server: None,
        }
    }
}

/// A worker's process.
#[derive(Debug)]
pub(super) struct Worker {
    process: Child,
    orders: Option<ChildStdin>,
    results: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the worker with this number; also gives how its references became warm.
    pub(super) fn start(lab: &Lab<'_>, number: usize) -> Result<(Self, String)> {
        let mut command = placed(lab.placement.client(number), &this_program()?)?;
        command.arg("worker").arg(lab.server.location(lab.options.engine));
        command.args(["--wait", &name(&lab.options.wait)]);
        if let Some(identity) = lab.server.identity() {
            command.arg("--identity").arg(identity);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context(|| "starting a client".into())?;
        let (orders, results) = (process.stdin.take(), process.stdout.take());
        let results = results.ok_or_else(|| Error::Peer("a client without output".into()))?;
        let mut worker = Self { process, orders, results: BufReader::new(results) };
        let ready: Ready = worker.hear()?;
        Ok((worker, format!("client {}: {}", number + 1, ready.first_pass)))
    }

    /// Has it begin a block.
    pub(super) fn begin(&mut self, order: &Order) -> Result<()> {
        let orders =
            self.orders.as_mut().ok_or_else(|| Error::Peer("a client without input".into()))?;
        say(orders, order)
    }

    /// Waits for the block's result.
    pub(super) fn result(&mut self) -> Result<Done> {
        self.hear()
    }

    /// Has it end.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.orders.take());
        let status = self.process.wait().context(|| "waiting for a client's end".into())?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::Peer(format!("a client ended with {status}")))
        }
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.results.read_line(&mut line).context(|| "hearing from a client".into())?;
        // Where it is empty the client has said on its error output why it ended.
        serde_json::from_str(&line)
            .map_err(|_| Error::Peer(format!("a client said {:?}", line.trim())))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It has ended, or is of no use any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn say(to: &mut impl Write, what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(what).map_err(|error| Error::Peer(error.to_string()))?;
    line.push('\n');
    to.write_all(line.as_bytes()).and_then(|()| to.flush()).context(|| "between processes".into())
}

/// The helper `worker`: a client that reads as it is told, until its input ends.
pub(crate) fn work(location: &str, identity: Option<&FilePath>, wait: Wait) -> Result<()> {
    let stop = Stop::default();
    let session = Session::open(location, identity, wait, None)?;
    let pass = session.first_pass(&stop)?;
    let mut output = std::io::stdout();
    say(&mut output, &Ready { first_pass: pass.to_string() })?;
    let mut reads: Option<(Order, Reads<'_>)> = None;
    for line in std::io::stdin().lines() {
        let line = line.context(|| "waiting for orders".into())?;
        let order: Order =
            serde_json::from_str(&line).map_err(|error| Error::Peer(error.to_string()))?;
        let time = Duration::from_nanos(order.nanos);
        let same = |kept: &Order| {
            (&kept.path, kept.block, kept.depth) == (&order.path, order.block, order.depth)
        };
        let mut current = match reads.take() {
            Some((kept, reads)) if same(&kept) => reads,
            _ => {
                let path = PATHS.into_iter().find(|path| path_name(*path) == order.path);
                let path = path.ok_or_else(|| Error::Peer(format!("path {:?}", order.path)))?;
                let block = usize::try_from(order.block).unwrap_or(usize::MAX);
                let offsets = Offsets::sequential(session.size(), block);
                Reads::new(&session, path, order.depth, offsets, &stop)
            }
        };
        say(&mut output, &Done::of(&current.unaccounted(time)?))?;
        reads = Some((order, current));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_did_lies_between_the_first_beginning_and_the_last_end() {
        let mut times = histogram();
        times.record(1000).unwrap();
        times.record(2000).unwrap();
        let elapsed = Duration::from_micros(3);
        let block = Block { times, ops: 2, bytes: 8192, elapsed, client_cpu: 5, server: None };
        let text = serde_json::to_string(&Done::of(&block)).unwrap();
        let one: Done = serde_json::from_str(&text).unwrap();
        assert_eq!(one.ended - one.begun, 3000);
        let mut other: Done = serde_json::from_str(&text).unwrap();
        (other.begun, other.ended) = (one.begun + 1000, one.ended + 1000);
        let total = Done::together(&[one, other]);
        assert_eq!((total.ops, total.bytes, total.client_cpu), (4, 16384, 10));
        assert_eq!(total.elapsed, Duration::from_micros(4));
    }
}

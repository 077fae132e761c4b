//! A client process: takes orders on its input, a JSON object a line, and answers each with a
//! result on its output.

use crate::cli::{Wait, name};
use crate::data::Offsets;
use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::measure::Block;
use crate::placement::{placed, this_program};
use crate::session::{PATHS, Reads, Session, path_name};
use crate::signals::Stop;
use dafs_client::Path;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{BufRead, BufReader, Write};
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
    elapsed_nanos: u64,
    cpu_nanos: u64,
    /// Times in nanoseconds and how many operations took them.
    times: Vec<(u64, u64)>,
}

impl Done {
    fn of(block: &Block) -> Self {
        let nanos = block.elapsed.as_nanos();
        Self {
            bytes: block.bytes,
            elapsed_nanos: u64::try_from(nanos).unwrap_or(u64::MAX),
            cpu_nanos: block.client_cpu,
            times: block
                .times
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_since_last_iteration()))
                .collect(),
        }
    }

    /// Adds it to what others did at the same time.
    pub(super) fn add_to(&self, total: &mut Block) {
        for &(time, count) in &self.times {
            total.times.saturating_record_n(time, count);
        }
        total.ops = total.times.len();
        total.bytes += self.bytes;
        total.client_cpu += self.cpu_nanos;
        total.elapsed = total.elapsed.max(Duration::from_nanos(self.elapsed_nanos));
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
pub(crate) fn work(location: &str, wait: Wait) -> Result<()> {
    let stop = Stop::default();
    let session = Session::open(location, wait, None)?;
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
    use crate::measure::histogram;

    #[test]
    fn results_of_several_add_up() {
        let empty = || Block {
            times: histogram(),
            ops: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
            client_cpu: 0,
            server: None,
        };
        let mut one = empty();
        one.times.record(1000).unwrap();
        one.times.record(2000).unwrap();
        (one.bytes, one.elapsed, one.client_cpu) = (8192, Duration::from_micros(3), 5);
        let text = serde_json::to_string(&Done::of(&one)).unwrap();
        let done: Done = serde_json::from_str(&text).unwrap();
        let mut total = empty();
        done.add_to(&mut total);
        done.add_to(&mut total);
        assert_eq!((total.ops, total.bytes, total.client_cpu), (4, 16384, 10));
        assert_eq!(total.elapsed, Duration::from_micros(3));
    }
}

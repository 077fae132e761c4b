//! The command line.

use crate::floor::Transport;
use crate::placement::Place;
use clap::{Args, Parser, Subcommand, ValueEnum};
use dafs_client::keys::Protection;
use std::ffi::OsString;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

/// Measures DAFS against floors that move the same bytes with as little as possible around them.
///
/// Starts a server of its own, with a file of its own, and leaves nothing behind.
#[derive(Clone, Debug, Parser)]
#[command(name = "dafs-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// An experiment, or one of the helpers that experiments start.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Round trip and bandwidth of the bare transport and of RPC (dissertation, table 5).
    Rtt(Options),
    /// Response time of reads by each path (table 7).
    ResponseTime(Options),
    /// Random reads at several queue depths.
    Random(Options),
    /// Sequential reads with read-ahead, by block size (figures 12 and 13).
    Throughput(Options),
    /// Several clients at one server, by block size (figure 18).
    ServerThroughput(Options),
    /// Writes that are not committed.
    Write(Options),
    /// All of the above, one after the other; the JSON file holds an array then.
    All(Options),
    /// What guards pages and messages: seals, checks and tags. Starts no server.
    Crypto(Timing),
    /// Registering memory with an RDMA device, and taking it from what is registered (table 13).
    /// Starts no server.
    Registration(DeviceOptions),
    /// READs of pages and their footers, by where the footers lie. Starts no server.
    Layouts(DeviceOptions),
    /// The other side of floors.
    #[command(hide = true)]
    FloorPeer {
        /// What carries them.
        transport: Transport,
        /// Where a Unix socket is to lie.
        #[arg(long)]
        path: Option<PathBuf>,
        /// An address of an RDMA device.
        #[arg(long)]
        address: Option<IpAddr>,
        /// Bytes of the memory that replies come from.
        #[arg(long)]
        memory: usize,
    },
    /// Runs a command bound to a CPU.
    #[command(hide = true)]
    Launch {
        /// The process that must not be outlived.
        #[arg(long)]
        parent: u32,
        /// The CPU.
        cpu: usize,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Keeps a CPU awake.
    #[command(hide = true)]
    Spin {
        /// The process that must not be outlived.
        #[arg(long)]
        parent: u32,
        /// The CPU.
        cpu: usize,
    },
    /// One of several clients.
    #[command(hide = true)]
    Worker {
        /// The server and its export.
        location: String,
        /// How it waits.
        #[arg(long)]
        wait: Wait,
        /// The file of its identity, where the server asks who it is.
        #[arg(long)]
        identity: Option<PathBuf>,
    },
}

/// What an experiment is to do.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The transport.
    #[arg(long, value_enum, default_value_t = Engine::Tcp)]
    pub engine: Engine,
    /// The RDMA device of engine verbs.
    #[command(flatten)]
    pub device: Device,
    /// The protection level: sealed, keyed (engine tcp alone) or none.
    #[arg(long, value_name = "LEVEL", default_value_t)]
    pub protection: Protection,
    /// Bytes of an operation, such as 4096 or 64KiB, in place of the experiment's own.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block: Option<u64>,
    /// Client processes of `server-throughput`, in place of 1 to 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub clients: Option<u64>,
    /// Operations under way at a time: in place of 1, 16 and 64 in `random`, of 8 in `throughput`
    /// and `server-throughput`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub depth: Option<u64>,
    /// Only rows of these names, such as floor,ordma.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// How long, and where the result goes.
    #[command(flatten)]
    pub timing: Timing,
    /// Size of the file that is read, a multiple of 1 MiB.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_file_size)]
    pub file_size: u64,
    /// Client and server on the same CPU, or on one each (the default where there are two).
    #[arg(long, value_enum)]
    pub place: Option<Place>,
    /// How the client waits; the server always waits adaptively.
    #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
    pub wait: Wait,
    /// The server's program; by default `dafsd` beside this one.
    #[arg(long, value_name = "PATH")]
    pub server: Option<PathBuf>,
}

/// What an experiment with an RDMA device alone is to do.
#[derive(Clone, Debug, Args)]
pub struct DeviceOptions {
    /// The device.
    #[command(flatten)]
    pub device: Device,
    /// How long, and where the result goes.
    #[command(flatten)]
    pub timing: Timing,
}

/// An RDMA device.
#[derive(Clone, Debug, Args)]
pub struct Device {
    /// An address of the RDMA device, for what goes over verbs.
    #[arg(long, value_name = "IP", env = "DAFS_RDMA_ADDRESS", default_value = "10.9.9.1")]
    pub address: IpAddr,
}

/// How anything is measured.
#[derive(Clone, Debug, Args)]
pub struct Timing {
    /// How long each row is measured, over all its blocks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// Blocks of a row: rows take turns block by block.
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub blocks: u64,
    /// Whether to keep the CPUs from halting while nothing runs on them.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub keep_awake: Switch,
    /// Write the result as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// TCP over the loopback interface.
    Tcp,
    /// Shared memory.
    Shm,
    /// RDMA.
    Verbs,
}

/// How a client waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Spins for a short time where that pays, then sleeps.
    Adaptive,
    /// Sleeps.
    Sleep,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// The name of a value on the command line.
pub(crate) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Options {
    /// The command with all its options, those also that were not given and those that were chosen
    /// by the bench.
    pub(crate) fn command(&self, experiment: &str, place: Place) -> String {
        let mut text = format!(
            "dafs-bench {experiment} --engine {} --protection {}",
            name(&self.engine),
            self.protection
        );
        if self.engine == Engine::Verbs {
            text.push_str(&self.device.command());
        }
        // Writing to a string does not fail.
        for (option, value) in
            [("block", self.block), ("clients", self.clients), ("depth", self.depth)]
        {
            if let Some(value) = value {
                let _ = write!(text, " --{option} {value}");
            }
        }
        if !self.rows.is_empty() {
            let _ = write!(text, " --rows {}", self.rows.join(","));
        }
        let _ = write!(
            text,
            "{} --file-size {} --place {} --wait {}",
            self.timing.command(),
            self.file_size,
            place.name(),
            name(&self.wait)
        );
        text
    }
}

impl DeviceOptions {
    /// The command with all its options.
    pub(crate) fn command(&self, experiment: &str) -> String {
        format!("dafs-bench {experiment}{}{}", self.device.command(), self.timing.command())
    }
}

impl Device {
    /// As on the command line, after a space.
    fn command(&self) -> String {
        format!(" --address {}", self.address)
    }
}

impl Timing {
    /// These options as they are on the command line, each after a space.
    pub(crate) fn command(&self) -> String {
        let Self { seconds, blocks, keep_awake, json: _ } = self;
        format!(" --seconds {seconds} --blocks {blocks} --keep-awake {}", name(keep_awake))
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("must be a whole number above 0, of B, KiB, MiB or GiB".into()),
    }
}

fn parse_file_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    match size % (1 << 20) {
        0 if size <= 1 << 40 => Ok(size),
        _ => Err("must be a multiple of 1MiB, at most 1024GiB".into()),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("must be above 0 and at most 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn options(line: &str) -> Options {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::ResponseTime(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_is_written_out_in_full_and_means_the_same() {
        let given = options("dafs-bench response-time --engine shm --block 8KiB");
        let command = given.command("response-time", Place::Same);
        assert_eq!(
            command,
            "dafs-bench response-time --engine shm --protection sealed --block 8192 --seconds 2 \
             --blocks 20 --keep-awake on --file-size 67108864 --place same --wait adaptive"
        );
        assert_eq!(options(&command).command("response-time", Place::Same), command);
    }

    #[test]
    fn rows_are_named_with_commas_between_them() {
        let given = options("dafs-bench response-time --rows floor,ordma");
        assert_eq!(given.rows, ["floor", "ordma"]);
        let command = given.command("response-time", Place::Same);
        assert!(command.contains(" --protection sealed --rows floor,ordma --seconds 2 "));
        assert_eq!(options(&command).command("response-time", Place::Same), command);
    }

    #[test]
    fn the_device_is_named_where_it_matters() {
        let given = options("dafs-bench response-time --engine verbs --address 10.0.0.7");
        let command = given.command("response-time", Place::Same);
        assert!(command.contains(" --engine verbs --protection sealed --address 10.0.0.7 --sec"));
        assert_eq!(options(&command).command("response-time", Place::Same), command);
        let given =
            Cli::try_parse_from("dafs-bench registration --address ::1".split(' ')).unwrap();
        let Command::Registration(given) = given.command else { panic!("{given:?}") };
        assert_eq!(
            given.command("registration"),
            "dafs-bench registration --address ::1 --seconds 2 --blocks 20 --keep-awake on"
        );
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            "--engine rdma",
            "--address rxe0",
            "--protection paper",
            "--block 0",
            "--block 4kb",
            "--file-size 4096",
            "--seconds 0",
            "--depth 0",
            "--clients 65",
        ] {
            let line = format!("dafs-bench response-time {wrong}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{wrong}");
        }
    }
}

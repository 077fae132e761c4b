//! Experiments that measure DAFS: the dissertation's tables and figures, and the budgets.
//!
//! Every row is held against a *floor* that moves the same bytes with as little as possible around
//! them, in the same run, with the same placement. Rows and floors take turns in blocks; a row is
//! the median of its blocks. The bench decides which CPU client and server run on, keeps those
//! CPUs awake, and says so in its output. What was read is compared with what the file holds, and a
//! row whose reads were not served by its path is an error and no number.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the command line |
//! | `experiments` | the experiments, one file each |
//! | `lab` | what every experiment needs |
//! | `crypto` | what guards pages and messages, by itself |
//! | `registration`, `layouts` | what an RDMA device does, by itself |
//! | `server` | the server's process |
//! | `access` | who the bench is to the server |
//! | `session` | the client, and its reads and writes as rows |
//! | `floor` | floors, and the process at their other end |
//! | [`placement`] | CPUs |
//! | `measure` | blocks and rows |
//! | `process` | CPU time of processes |
//! | `data` | what the files hold |
//! | [`machine`], [`report`] | results |
//! | `signals` | ending early |

#![forbid(unsafe_code)]

mod access;
pub mod cli;
mod crypto;
mod data;
pub mod error;
mod experiments;
mod floor;
mod lab;
mod layouts;
pub mod machine;
mod measure;
pub mod placement;
mod process;
mod registration;
pub mod report;
mod server;
mod session;
mod signals;

pub use floor::Transport;

use cli::{Cli, Command, DeviceOptions, Options, Timing};
use error::{Context, Result};
use experiments::{Experiment, Finding};
use placement::{Place, Placement};
use serde::Serialize;
use signals::Stop;

/// Does what the command line says.
///
/// # Errors
/// Whatever kept the experiment from a result. Nothing is left behind then, either.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Rtt(options) => one(Experiment::Rtt, options),
        Command::ResponseTime(options) => one(Experiment::ResponseTime, options),
        Command::Random(options) => one(Experiment::Random, options),
        Command::Throughput(options) => one(Experiment::Throughput, options),
        Command::ServerThroughput(options) => one(Experiment::ServerThroughput, options),
        Command::Write(options) => one(Experiment::Write, options),
        Command::All(options) => all(options),
        Command::Crypto(timing) => crypto(timing),
        Command::Registration(options) => alone(options, registration::run),
        Command::Layouts(options) => alone(options, layouts::run),
        Command::FloorPeer { transport, path, address, memory } => {
            floor::serve(*transport, path.as_deref(), *address, *memory)
        }
        Command::Launch { parent, cpu, command } => placement::launch(*parent, *cpu, command),
        Command::Spin { parent, cpu } => placement::spin(*parent, *cpu),
        Command::Worker { location, wait, identity } => {
            experiments::work(location, identity.as_deref(), *wait)
        }
    }
}

fn one(experiment: Experiment, options: &Options) -> Result<()> {
    let stop = Stop::install()?;
    let placement = Placement::choose(options.place)?;
    let finding = experiment.run(options, &placement, &stop)?;
    print!("{}", finding.to_table());
    write(&options.timing, &finding.report)
}

fn all(options: &Options) -> Result<()> {
    let stop = Stop::install()?;
    // Once for all, as an experiment binds this process to a CPU.
    let placement = Placement::choose(options.place)?;
    let mut findings: Vec<Finding> = Vec::new();
    for experiment in Experiment::ALL {
        let options = experiment.options_of_all(options);
        let finding = experiment.run(&options, &placement, &stop)?;
        println!("{}", finding.to_table());
        findings.push(finding);
    }
    let reports: Vec<_> = findings.iter().map(|finding| &finding.report).collect();
    write(&options.timing, &reports)
}

fn crypto(timing: &Timing) -> Result<()> {
    let stop = Stop::install()?;
    // There is nobody else: one CPU.
    let placement = Placement::choose(Some(Place::Same))?;
    let finding = crypto::run(timing, &placement, &stop)?;
    print!("{}", finding.to_table());
    write(timing, &finding.report)
}

/// What needs an RDMA device and no server: one CPU.
fn alone(
    options: &DeviceOptions,
    run: fn(&DeviceOptions, &Placement, &Stop) -> Result<Finding>,
) -> Result<()> {
    let stop = Stop::install()?;
    let placement = Placement::choose(Some(Place::Same))?;
    let finding = run(options, &placement, &stop)?;
    print!("{}", finding.to_table());
    write(&options.timing, &finding.report)
}

/// Writes the JSON file, if one is wanted.
fn write(timing: &Timing, what: &impl Serialize) -> Result<()> {
    let Some(path) = &timing.json else {
        return Ok(());
    };
    let mut text = serde_json::to_string_pretty(what)
        .map_err(std::io::Error::from)
        .context(|| "writing JSON".into())?;
    text.push('\n');
    std::fs::write(path, text).context(|| format!("writing {}", path.display()))
}

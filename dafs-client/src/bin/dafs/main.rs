//! `dafs`: the files of a DAFS server from the command line.
//!
//! One module for each subcommand; what they share is in `context`, `target`, `names`, `output`,
//! `failure`, `format`, `json` and `trust`. Both directions of copies share `copy`, `local`, `sparse`,
//! `nesting`, `verify` and `interrupt`; one file is copied by `fetch` with `landing`, or by `send`, and
//! `leftovers` removes what copies that were killed have left.

#![forbid(unsafe_code)]
// The comments of the command line are what `--help` prints, square brackets and all.
#![allow(rustdoc::broken_intra_doc_links)]

mod cat;
mod context;
mod copy;
mod counters;
mod df;
mod doctor;
mod failure;
mod fetch;
mod format;
mod get;
mod interrupt;
mod json;
mod keygen;
mod landing;
mod leftovers;
mod ln;
mod local;
mod ls;
mod mkdir;
mod mv;
mod names;
mod nesting;
mod output;
mod probe;
mod put;
mod rm;
mod send;
mod sparse;
mod stat;
mod target;
mod trust;
mod verify;

use clap::{Parser, Subcommand};
use context::{Context, Global};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::ExitCode;

/// Works with the files of a DAFS server.
///
/// Files are named dafs://HOST[:PORT]/EXPORT/PATH; in such names, %20 and the like stand for single
/// bytes. With the environment variable DAFS_URL set to dafs://HOST[:PORT]/EXPORT, plain paths such
/// as /a/b work too, and are taken byte by byte as they are.
///
/// Client and server recognise each other by their keys, and what lies in the server's memory is
/// encrypted, unless --protection asks for less. `dafs keygen` makes this client's key, once; the
/// server's operator adds it to the server's authorized_clients. Servers' keys are kept in the file
/// known_servers beside it.
///
/// DAFS_LOG=debug logs what the client does.
#[derive(Debug, Parser)]
#[command(name = "dafs", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Args),
    Stat(stat::Args),
    Cat(cat::Args),
    Get(get::Args),
    Put(put::Args),
    Rm(rm::Args),
    Mkdir(mkdir::Args),
    Mv(mv::Args),
    Ln(ln::Args),
    Df(df::Args),
    Counters(counters::Args),
    Doctor(doctor::Args),
    Keygen(keygen::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    raise_descriptor_limit();
    let cx = Context::new(&cli.global);
    let result = match &cli.command {
        Command::Ls(args) => ls::run(&cx, args),
        Command::Stat(args) => stat::run(&cx, args),
        Command::Cat(args) => cat::run(&cx, args),
        Command::Get(args) => get::run(&cx, args),
        Command::Put(args) => put::run(&cx, args),
        Command::Rm(args) => rm::run(&cx, args),
        Command::Mkdir(args) => mkdir::run(&cx, args),
        Command::Mv(args) => mv::run(&cx, args),
        Command::Ln(args) => ln::run(&cx, args),
        Command::Df(args) => df::run(&cx, args),
        Command::Counters(args) => counters::run(&cx, args),
        Command::Doctor(args) => doctor::run(&cx, args),
        Command::Keygen(args) => keygen::run(args),
    };
    interrupt::finish();
    result.map_or_else(|failure| failure.tell(), |()| ExitCode::SUCCESS)
}

/// As many files as the system lets us have open: the soft limit is for programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer it works as well, unless very many files are copied at a time.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Starts logging to standard error, if `DAFS_LOG` asks for it.
fn log() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("DAFS_LOG") else {
        return;
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }
}

//! `dafsd`, the DAFS server.

#![forbid(unsafe_code)]

use clap::Parser;
use dafsd::admin::{self, Reply, Request};
use dafsd::config::{Command, Config, Flags, Listen};
use dafsd::daemon::{self, Daemon, DescriptorShares};
use ordma::Engine;
use ordma::shm::Shm;
use ordma::tcp::Tcp;
use ordma::verbs::Verbs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(result) = operate(&flags) {
        return end(result);
    }
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("dafsd: {error}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new(&config.log))
        .init();
    end(match flags.command {
        Some(Command::Check) => check(&config),
        _ => serve(&config),
    })
}

fn end(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dafsd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out a command that needs no more of the configuration than the state directory. `None`
/// where there is none.
fn operate(flags: &Flags) -> Option<Result<(), Box<dyn Error>>> {
    let command = flags.command.clone()?;
    if command == Command::Check {
        return None;
    }
    Some(Config::state_dir(flags).map_err(Into::into).and_then(|state| run(command, &state)))
}

fn run(command: Command, state: &Path) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let request = match &command {
        Command::Check => return Ok(()),
        Command::Key => {
            writeln!(out, "{}", daemon::identity(state)?.public())?;
            return Ok(());
        }
        Command::Sessions { .. } => Request::Sessions,
        Command::Fence { name } => Request::Fence { name: name.clone() },
        Command::Unfence { name } => Request::Unfence { name: name.clone() },
    };
    match (admin::ask(state, &request)?, command) {
        (Reply::Error(error), _) => return Err(error.into()),
        (Reply::Sessions(list), Command::Sessions { json: true }) => {
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        }
        (Reply::Sessions(list), _) => write!(out, "{}", admin::table(&list))?,
        (Reply::Fenced { sessions, exports, unfinished }, Command::Fence { name }) => {
            let exports = if exports.is_empty() { "none".to_owned() } else { exports.join(", ") };
            writeln!(
                out,
                "{name} is fenced off; sessions ended: {sessions}; exports with new keys: {exports}"
            )?;
            if unfinished > 0 {
                writeln!(
                    out,
                    "of its sessions, {unfinished} had begun something on a disk of the server's that \
                     does not answer: it may still change a name or a size there, and no file's bytes"
                )?;
            }
        }
        (Reply::Unfenced, Command::Unfence { name }) => writeln!(out, "{name} may connect again")?,
        (reply, _) => return Err(format!("the server gave another answer: {reply:?}").into()),
    }
    Ok(())
}

fn check(config: &Config) -> Result<(), Box<dyn Error>> {
    for line in daemon::check(config)? {
        println!("{line}");
    }
    Ok(())
}

fn serve(config: &Config) -> Result<(), Box<dyn Error>> {
    // Before the first thread, so that none of them is ended by a signal that comes early.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // A limit of file sizes is an error of the write that it stops, and not the end of the server.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let plain = ordma::tcp::Settings::default();
    // By tcp and by shm.
    let connections = DescriptorShares::of(config).connections / 2;
    let settings = ordma::tcp::Settings {
        rpc_threads: config.rpc_threads,
        agent_threads: config.agent_threads,
        receives: config.receives,
        max_connections: plain.max_connections.min(connections.max(1)),
        ..plain
    };
    let daemon = Daemon::start(config, &|listen| -> Arc<dyn Engine> {
        match listen {
            Listen::Tcp(_) => Arc::new(Tcp::new(settings.clone())),
            Listen::Verbs(_) => Arc::new(Verbs::new(settings.clone())),
            Listen::Shm(_) => Arc::new(Shm::new(settings.clone())),
        }
    })?;
    let ready: String =
        daemon.addresses().iter().map(|at| format!("dafsd: listening on {at}\n")).collect();
    // Nobody need be reading.
    let _ = std::io::stdout().write_all(format!("{ready}dafsd: ready\n").as_bytes());

    while signals.forever().next() == Some(SIGHUP) {
        daemon.server().reload(true);
    }
    tracing::info!("stopping; a second signal ends it at once");
    std::thread::spawn(move || {
        while signals.forever().next() == Some(SIGHUP) {}
        eprintln!("dafsd: ended at once: what was not committed may be lost");
        std::process::exit(1);
    });
    daemon.stop().map_err(|error| format!("written data could not be made stable: {error}"))?;
    Ok(())
}

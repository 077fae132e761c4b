//! `dafsd`, the DAFS server.

#![forbid(unsafe_code)]

use clap::Parser;
use dafsd::config::{Command, Config, Flags, Listen};
use dafsd::daemon::{self, Daemon};
use ordma::Engine;
use ordma::shm::Shm;
use ordma::tcp::Tcp;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let flags = Flags::parse();
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
    let result = match flags.command {
        Some(Command::Check) => check(&config),
        None => serve(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dafsd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: &Config) -> Result<(), Box<dyn Error>> {
    for line in daemon::check(config)? {
        println!("{line}");
    }
    Ok(())
}

fn serve(config: &Config) -> Result<(), Box<dyn Error>> {
    // Before the first thread, so that none of them is ended by a signal that comes early.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let settings = ordma::tcp::Settings {
        rpc_threads: config.rpc_threads,
        agent_threads: config.agent_threads,
        ..ordma::tcp::Settings::default()
    };
    let daemon = Daemon::start(config, &|listen| -> Arc<dyn Engine> {
        match listen {
            Listen::Tcp(_) => Arc::new(Tcp::new(settings.clone())),
            Listen::Shm(_) => Arc::new(Shm::new(settings.clone())),
        }
    })?;
    let ready: String =
        daemon.addresses().iter().map(|at| format!("dafsd: listening on {at}\n")).collect();
    // Nobody need be reading.
    let _ = std::io::stdout().write_all(format!("{ready}dafsd: ready\n").as_bytes());

    signals.forever().next();
    tracing::info!("stopping; a second signal ends it at once");
    std::thread::spawn(move || {
        signals.forever().next();
        eprintln!("dafsd: ended at once: what was not committed may be lost");
        std::process::exit(1);
    });
    daemon.stop().map_err(|error| format!("written data could not be made stable: {error}"))?;
    Ok(())
}

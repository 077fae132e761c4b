//! `dafs-bench`: measures DAFS.

#![forbid(unsafe_code)]

use clap::Parser;
use dafs_bench::cli::Cli;
use dafs_bench::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match dafs_bench::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dafs-bench: {error}");
            match error {
                // As a shell reports an interrupted program.
                Error::Interrupted => ExitCode::from(130),
                Error::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

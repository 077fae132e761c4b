//! `dafs counters`: what the server counts.

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::json::Json;
use crate::output::Output;
use std::ffi::OsString;

/// Show the server's counters
///
/// handler_calls are the requests that cost the file server work for files; reads of its memory
/// (ordma) are not among them, nor is this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Anything at the server; the default server if not given
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let target = cx.target_or_default(args.path.as_deref())?;
    let client = cx.client(&target)?;
    let counters = client.server_stats();
    let counters =
        counters.map_err(|error| Failure::client("read the counters of", &target, &error))?;
    let mut output = Output::new();
    if args.json {
        let fields = counters.into_iter().map(|(name, value)| (name, Json::number(value)));
        output.line(Json::Object(fields.collect()))?;
    } else {
        let width = counters.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in counters {
            output.line(format_args!("{name:width$} {value}"))?;
        }
    }
    output.finish()
}

//! `dafs df`: how much space there is.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::json::Json;
use crate::output::Output;
use std::ffi::OsString;

/// Tell how much space the file systems of exports have
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Something in the file system; the default server's directory if nothing is given
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// One JSON object a line, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let paths: Vec<_> = args.paths.iter().map(|path| Some(path.as_os_str())).collect();
    let paths = if paths.is_empty() { vec![None] } else { paths };
    let mut output = Output::new();
    if !args.json {
        let [size, used, free] = ["size", "used", "free"];
        output.line(format_args!(
            "{size:>10} {used:>10} {free:>10} {:>5} {:>12}  export",
            "used", "files free"
        ))?;
    }
    let result = each(&paths, |path| {
        let target = cx.target_or_default(*path)?;
        let client = cx.client(&target)?;
        let statfs = client.statfs(&target.path);
        let statfs = statfs.map_err(|error| Failure::client("ask about", &target, &error))?;
        let bytes = |blocks: u64| blocks.saturating_mul(statfs.block_size);
        let used = statfs.blocks.saturating_sub(statfs.blocks_free);
        if args.json {
            return output.line(Json::object([
                ("path", Json::text(target.to_string())),
                ("size", Json::number(bytes(statfs.blocks))),
                ("used", Json::number(bytes(used))),
                ("free", Json::number(bytes(statfs.blocks_free))),
                ("available", Json::number(bytes(statfs.blocks_available))),
                ("files", Json::number(statfs.files)),
                ("files_free", Json::number(statfs.files_free)),
                ("name_max", Json::number(statfs.name_max)),
            ]));
        }
        let usable = used.saturating_add(statfs.blocks_available);
        let percent = if usable == 0 { 0 } else { u128::from(used) * 100 / u128::from(usable) };
        output.line(format_args!(
            "{:>10} {:>10} {:>10} {percent:>4}% {:>12}  {target}",
            format::size(bytes(statfs.blocks)),
            format::size(bytes(used)),
            format::size(bytes(statfs.blocks_available)),
            statfs.files_free,
        ))
    });
    output.finish()?;
    result
}

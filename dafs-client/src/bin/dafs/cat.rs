//! `dafs cat`: files to standard output.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::output::Output;
use dafs_client::FileType;
use std::ffi::OsString;

/// Bytes read at a time: enough that the server places them directly.
const BLOCK: usize = 4 << 20;

/// Write files to the standard output, one after the other
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to write
    #[arg(required = true, value_name = "FILE")]
    files: Vec<OsString>,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let mut output = Output::new();
    let mut block = Vec::new();
    let result = each(&args.files, |argument| {
        let target = cx.target(argument)?;
        let client = cx.client(&target)?;
        let fail = |error: &_| Failure::client("read", &target, error);
        let file = client.open(&target.path).map_err(|error| {
            // The server's word for what has no bytes to read is not clear to everyone.
            let kind =
                client.metadata(&target.path).map_or(FileType::Unknown, |attr| attr.r#type());
            match kind {
                FileType::Fifo | FileType::Socket | FileType::Character | FileType::Block => {
                    let why = format!(
                        "it is a {}, which only works on the server's host",
                        format::type_name(kind)
                    );
                    Failure::new("read", &target, why, "name a file")
                }
                _ => fail(&error),
            }
        })?;
        block.resize(BLOCK, 0);
        let mut at = 0;
        loop {
            let count = file.read_at(&mut block, at).map_err(|error| fail(&error))?;
            if count == 0 {
                return Ok(());
            }
            output.bytes(&block[..count])?;
            at += count as u64;
        }
    });
    // What could be read is passed on, whatever came of the rest.
    output.finish()?;
    result
}

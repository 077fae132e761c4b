//! Standard output: raw bytes, and a quiet end when its reader has gone.

use crate::failure::{Failure, Result, local_reason};
use dafs_client::keys::shown::shown_within;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

/// Standard output, buffered. [`Output::finish`] must be called, or what is buffered is lost.
#[derive(Debug)]
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes standard output.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, io::stdout().lock()))
    }

    /// Whether people look at it.
    pub fn is_terminal(&self) -> bool {
        self.0.get_ref().is_terminal()
    }

    /// Writes bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result {
        self.0.write_all(bytes).map_err(|error| failed(&error))
    }

    /// Writes a line of text, with escapes for what a server may have put into it to confuse a
    /// terminal.
    pub fn line(&mut self, line: impl fmt::Display) -> Result {
        let line = shown_within(&line.to_string(), usize::MAX);
        writeln!(self.0, "{line}").map_err(|error| failed(&error))
    }

    /// Passes on what is buffered.
    pub fn finish(&mut self) -> Result {
        self.0.flush().map_err(|error| failed(&error))
    }
}

fn failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        kind => {
            let advice = match kind {
                io::ErrorKind::StorageFull => "make room where it goes",
                _ => "check where it goes",
            };
            Failure::new("write", "to the standard output", local_reason(error), advice)
        }
    }
}

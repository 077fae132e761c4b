//! Commands of the server's operator, over a Unix socket in the state directory.
//!
//! A connection carries one request and its reply, each a line of JSON. The socket takes commands
//! from root and from the server's own user alone.

mod serve;
mod table;

pub use serve::Admin;
pub use table::table;

use crate::live::LiveSession;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The socket's name in the state directory.
const SOCKET: &str = "admin.sock";
/// Longest request in bytes.
const MAX_REQUEST: u64 = 4096;
/// Longest reply in bytes: more than the most sessions a server may have.
const MAX_REPLY: u64 = 1 << 30;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// What sessions there are.
    Sessions,
    /// Fence a client off.
    Fence {
        /// Its name in `authorized_clients`.
        name: String,
    },
    /// Let it in again.
    Unfence {
        /// Its name.
        name: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The sessions and who is fenced off.
    Sessions(SessionList),
    /// A client was fenced off.
    Fenced {
        /// How many of its sessions were ended.
        sessions: usize,
        /// The exports that have new keys.
        exports: Vec<String>,
        /// How many of the sessions that have ended wait for a disk.
        #[serde(default)]
        unfinished: usize,
    },
    /// A client was let in again.
    Unfenced,
    /// It was not done. For people.
    Error(String),
}

/// The sessions of a server, and who is fenced off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// The sessions, longest first.
    pub sessions: Vec<SessionReport>,
    /// Names of the clients that are fenced off.
    pub fenced: Vec<String>,
}

/// A session, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    /// The client's name in `authorized_clients`; none where the export has no protection.
    pub name: Option<String>,
    /// The client's public key; none as above.
    pub key: Option<String>,
    /// What the client calls itself.
    pub client: String,
    /// Where it is connected from; none where its connection is lost.
    pub peer: Option<String>,
    /// The export.
    pub export: String,
    /// How the export guards its pages.
    pub protection: String,
    /// The engine of its connection; none where that is lost.
    pub engine: Option<String>,
    /// How many files it has open.
    pub open_files: usize,
    /// How long ago it began.
    pub age_ms: u64,
    /// How long ago the client was heard of.
    pub idle_ms: u64,
}

impl SessionReport {
    fn of(session: &LiveSession, now: Instant) -> Self {
        let ago = |then: Instant| {
            u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX)
        };
        let link = session.link();
        Self {
            name: session.client_name().map(str::to_owned),
            key: session.key().map(|key| key.to_string()),
            client: session.client().to_owned(),
            peer: link.as_ref().map(|link| link.peer()),
            export: session.export().name.clone(),
            protection: session.export().protection.to_string(),
            engine: link.as_ref().map(|link| link.capabilities().engine.to_owned()),
            open_files: session.open_count(),
            age_ms: ago(session.began()),
            idle_ms: ago(session.heard()),
        }
    }
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no server is running on the state directory {0}: name the server's with --state-dir")]
    NoServer(PathBuf),
    /// The server cannot be asked.
    #[error("{path}: {error}")]
    Io {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The reply is none.
    #[error("{path}: the server's reply is not of this version: {error}")]
    Reply {
        /// Its socket.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

/// Asks the server that runs on a state directory, and waits for as long as it takes.
///
/// # Errors
/// When there is no reply. The command may have been carried out all the same, unless it is
/// [`AskError::NoServer`].
pub fn ask(state_dir: &Path, request: &Request) -> Result<Reply, AskError> {
    let path = state_dir.join(SOCKET);
    let failed = |error| AskError::Io { path: path.clone(), error };
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => {
            let gone = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            return Err(match error.kind() {
                kind if gone.contains(&kind) => AskError::NoServer(state_dir.to_owned()),
                _ => failed(error),
            });
        }
    };
    send(&mut stream, request).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_REPLY).read_line(&mut line).map_err(failed)?;
    if line.is_empty() {
        let what = "the server has closed the connection; its log may say why";
        return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
    }
    serde_json::from_str(&line).map_err(|error| AskError::Reply { path: path.clone(), error })
}

fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests;

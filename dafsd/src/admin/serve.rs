//! The server's side.

use super::{MAX_REQUEST, Reply, Request, SOCKET, SessionList, SessionReport, send};
use crate::server::{CutOff, Server};
use rustix::net::Shutdown;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How long a request, or the taking of its reply, may stall.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a fence waits for what its client has begun on a disk.
const FENCE_PATIENCE: Duration = Duration::from_millis(1500);
/// Most commands at the same time.
const MAX_COMMANDS: usize = 16;
/// How long a listener that fails is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for commands.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    listener: Arc<UnixListener>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Listens in a state directory that is this server's alone: a socket that is there is a dead
    /// server's, and is replaced.
    ///
    /// # Errors
    /// The socket cannot be made: another file is in its place, or its path is too long.
    pub fn start(state_dir: &Path, server: &Arc<Server>) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                let what = "there is a file that is not a socket";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            Ok(_) => std::fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = Arc::new(UnixListener::bind(&path)?);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (listening, server) = (Arc::clone(&listener), Arc::clone(server));
        let thread = Builder::new()
            .name("dafs-admin".to_owned())
            .spawn(move || accept(&listening, &server))?;
        Ok(Self { path, listener, thread })
    }

    /// Takes no more commands, and removes the socket. Those under way go on.
    pub fn stop(self) {
        // Wakes the thread, which sees an error that does not go away.
        if let Err(error) = rustix::net::shutdown(&*self.listener, Shutdown::Both) {
            return tracing::error!(%error, "the thread for the operator's commands stays");
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket stays");
        }
        if self.thread.join().is_err() {
            tracing::error!("the thread for the operator's commands has panicked");
        }
    }
}

fn accept(listener: &UnixListener, server: &Arc<Server>) {
    let commands = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "a command of the operator's");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let (server, running) = (Arc::clone(server), Running::new(&commands));
        // A thread each, because some take long.
        let spawned = Builder::new().name("dafs-command".to_owned()).spawn(move || {
            if let Err(error) = command(stream, &server, &running) {
                tracing::warn!(%error, "a command of the operator's");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "a command of the operator's");
        }
    }
}

/// A command that is being carried out.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(commands: &Arc<AtomicUsize>) -> Self {
        commands.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(commands))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn command(mut stream: UnixStream, server: &Arc<Server>, running: &Running) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let user = ordma::shm::peer_user(&stream)?;
    let reply = if user != 0 && user != rustix::process::geteuid().as_raw() {
        tracing::warn!(user, "a command of somebody who must not give any");
        Reply::Error("only root and the server's own user may do this".to_owned())
    } else if running.0.load(Ordering::SeqCst) > MAX_COMMANDS {
        Reply::Error(format!("{MAX_COMMANDS} commands are being carried out; try again later"))
    } else {
        answer(&read_line(&stream)?, server)
    };
    send(&mut stream, &reply)
}

fn read_line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    Ok(line)
}

/// Carries out the command in a line.
pub(super) fn answer(line: &str, server: &Arc<Server>) -> Reply {
    let Some(line) = line.strip_suffix('\n') else {
        let what = format!("a request is one line of at most {MAX_REQUEST} bytes");
        return Reply::Error(what);
    };
    match serde_json::from_str(line) {
        Ok(request) => perform(request, server),
        Err(error) => Reply::Error(format!("the request is not of this version: {error}")),
    }
}

fn perform(request: Request, server: &Arc<Server>) -> Reply {
    let done = match request {
        Request::Sessions => return Reply::Sessions(list(server)),
        Request::Fence { name } => {
            server.fence(&name, FENCE_PATIENCE).map(|CutOff { sessions, exports, unfinished }| {
                Reply::Fenced { sessions, exports, unfinished }
            })
        }
        Request::Unfence { name } => server.unfence(&name).map(|()| Reply::Unfenced),
    };
    done.unwrap_or_else(|error| Reply::Error(error.to_string()))
}

fn list(server: &Server) -> SessionList {
    let now = server.now();
    let mut sessions: Vec<_> =
        server.sessions().iter().map(|session| SessionReport::of(session, now)).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age_ms));
    SessionList { sessions, fenced: server.access().fenced() }
}

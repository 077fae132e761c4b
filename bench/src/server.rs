//! The server under measurement: a process of its own, with a directory that goes when it ends.

use crate::access::{authorize, server_key};
use crate::cli::{Engine, Options};
use crate::data;
use crate::error::{Context, Error, Result};
use crate::floor::PAGE;
use crate::placement::{Placement, placed};
use dafs_client::keys::Protection;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Name of the export.
pub(crate) const EXPORT: &str = "bench";
/// Name of the file that is read.
pub(crate) const FILE: &str = "data";

const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Taken when it has been stopped.
    process: Option<Child>,
    /// Where it listens with TCP, or with verbs where that is the engine.
    address: String,
    socket: PathBuf,
    /// What the locations of its export end with: the protection level, and by what it is known.
    guard: String,
    /// The file of the identity that it lets in, where it asks for one.
    identity: Option<PathBuf>,
    directory: TempDir,
}

impl Server {
    /// Makes the file of an experiment and starts a server for it, on the server's CPU and with
    /// memory enough for all of it. The program is `dafsd` beside this one unless named.
    pub(crate) fn start(options: &Options, placement: &Placement) -> Result<Self> {
        let (file_size, protection) = (options.file_size, options.protection);
        let program = match &options.server {
            Some(program) => program.clone(),
            None => beside()?,
        };
        if !program.is_file() {
            return Err(Error::Server(format!(
                "{} is not there; name the program with --server",
                program.display()
            )));
        }
        let directory = tempfile::Builder::new().prefix("dafs-bench-").tempdir();
        let directory = directory.context(|| "making a temporary directory".into())?;
        let files = directory.path().join("files");
        std::fs::create_dir(&files).context(|| format!("making {}", files.display()))?;
        data::create(&files.join(FILE), file_size)?;
        let socket = directory.path().join("dafs.sock");
        let log = directory.path().join("log");
        let log_file = File::create(&log).context(|| format!("making {}", log.display()))?;
        let state = directory.path().join("state");
        let identity = match protection {
            Protection::None => None,
            Protection::Keyed | Protection::Sealed => Some(authorize(directory.path(), &state)?),
        };
        let mut command = placed(placement.server, program.as_os_str())?;
        // What the file needs, as much again for what is written, and some.
        let memory = (2 * file_size).saturating_add(256 << 20);
        let mut export = format!("{EXPORT}=");
        export.push_str(&text(&files)?);
        option(&mut command, "--export", &export);
        option(&mut command, "--listen", "tcp:127.0.0.1:0");
        option(&mut command, "--listen", &format!("shm:{}", text(&socket)?));
        let awaited = match options.engine {
            Engine::Verbs => {
                let address = SocketAddr::new(options.device.address, 0);
                option(&mut command, "--listen", &format!("verbs:{address}"));
                "verbs"
            }
            Engine::Tcp | Engine::Shm => "tcp",
        };
        option(&mut command, "--memory", &format!("{memory}B"));
        option(&mut command, "--page-size", &format!("{PAGE}B"));
        option(&mut command, "--protection", protection.name());
        option(&mut command, "--state-dir", &text(&state)?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        let mut process = command.spawn().context(|| format!("starting {}", program.display()))?;
        let output = process.stdout.take();
        let mut server = Self {
            process: Some(process),
            address: String::new(),
            socket,
            guard: format!("protection={protection}"),
            identity,
            directory,
        };
        server.address = match output.and_then(|output| listen_for_address(output, awaited)) {
            Some(address) => address,
            None => {
                let ended = server.end();
                return Err(Error::Server(match ended {
                    Ok(status) if !status.success() => format!("did not start: {}", server.log()),
                    _ => format!("did not say where it listens: {}", server.log()),
                }));
            }
        };
        if server.identity.is_some() {
            server.guard.push_str(&format!("&server_key={}", server_key(&state)?));
        }
        Ok(server)
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// A directory for sockets of the experiment.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The files that are exported.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// The file of the identity that clients need to be let in; none at protection level `none`.
    pub(crate) fn identity(&self) -> Option<&Path> {
        self.identity.as_deref()
    }

    /// Where a client reaches it.
    pub(crate) fn location(&self, engine: Engine) -> String {
        let Self { address, guard, .. } = self;
        match engine {
            Engine::Tcp => format!("dafs://{address}/{EXPORT}?engine=tcp&{guard}"),
            Engine::Shm => {
                let socket = self.socket.display();
                format!("dafs://{address}/{EXPORT}?engine=shm&socket={socket}&{guard}")
            }
            Engine::Verbs => format!("dafs://{address}/{EXPORT}?engine=verbs&{guard}"),
        }
    }

    /// Stops it and removes its files.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        if !status.success() {
            return Err(Error::Server(format!("ended with {status}: {}", self.log())));
        }
        let directory = self.directory.path().to_owned();
        // `self` cannot be taken apart, as it has a destructor; what is left of it is removed now.
        let empty = tempfile::tempdir().context(|| "making a temporary directory".into())?;
        std::mem::replace(&mut self.directory, empty)
            .close()
            .context(|| format!("removing {}", directory.display()))
    }

    /// Asks the server to end and waits; kills it if it takes too long.
    fn end(&mut self) -> Result<ExitStatus> {
        let Some(mut process) = self.process.take() else {
            return Err(Error::Server("has been stopped before".into()));
        };
        let waiting = || "waiting for the server's end".to_owned();
        if let Some(status) = process.try_wait().context(waiting)? {
            return Ok(status);
        }
        if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
            // It can end by itself at any time.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = process.try_wait().context(waiting)? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        process.kill().context(|| "killing the server".into())?;
        process.wait().context(waiting)?;
        Err(Error::Server(format!("did not stop within {} s", STOP_PATIENCE.as_secs())))
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log"));
        match log.unwrap_or_default().trim() {
            "" => "it said nothing".into(),
            log => log.to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some()
            && let Err(error) = self.end()
        {
            eprintln!("dafs-bench: {error}");
        }
    }
}

fn option(command: &mut Command, name: &str, value: &str) {
    command.args([OsStr::new(name), OsStr::new(value)]);
}

/// Paths become parts of options and locations.
fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains([',', '&', '?']) => Ok(text.to_owned()),
        _ => Err(Error::Usage(format!(
            "temporary directory {}: its name must be UTF-8 without commas, & and ?",
            path.display()
        ))),
    }
}

fn beside() -> Result<PathBuf> {
    let this = std::env::current_exe().context(|| "finding this program".into())?;
    Ok(this.with_file_name("dafsd"))
}

/// Waits until the server is ready; where it listens with an engine.
fn listen_for_address(output: ChildStdout, engine: &str) -> Option<String> {
    let (sender, lines) = mpsc::channel();
    // Reads on to the end, so that the server never waits for a reader.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
            // Nobody listens after the server is ready.
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + START_PATIENCE;
    let mut address = None;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line == "dafsd: ready" => return address,
            Ok(line) => address = address_in(&line, engine).map(str::to_owned).or(address),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// The address in a line that says where an engine listens.
fn address_in<'a>(line: &'a str, engine: &str) -> Option<&'a str> {
    let (of, address) = line.strip_prefix("dafsd: listening on ")?.split_once(':')?;
    (of == engine).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_that_of_the_engine() {
        let line = "dafsd: listening on verbs:10.9.9.1:4567";
        assert_eq!(address_in(line, "verbs"), Some("10.9.9.1:4567"));
        assert_eq!(address_in(line, "tcp"), None);
        let line = "dafsd: listening on tcp:[::1]:4567";
        assert_eq!(address_in(line, "tcp"), Some("[::1]:4567"));
        assert_eq!(address_in("dafsd: ready", "tcp"), None);
    }
}

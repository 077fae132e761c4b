//! A server in a directory of its own, and the command.

use dafs_client::Options;
use dafs_client::blocking::Client;
use dafs_client::keys::Identity;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest that a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// The server program, which is built if it is not there.
fn server_program() -> PathBuf {
    static BUILD: Once = Once::new();
    let program = Path::new(env!("CARGO_BIN_EXE_dafs")).with_file_name("dafsd");
    BUILD.call_once(|| {
        if program.exists() {
            return;
        }
        let profile = program.parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "dafsd", "--bin", "dafsd"]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "dafsd cannot be built");
    });
    program
}

/// How server and client know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acquaintance {
    /// The export is sealed, the client has an identity that the server lets in, and the commands'
    /// default URL has the server's key.
    #[default]
    Known,
    /// The export is sealed, and neither knows the other.
    Strangers,
    /// The export is at level `none`.
    Unprotected,
}

/// How to start a server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// What it exports, in place of an empty directory.
    pub export: Option<&'static str>,
    /// Its export takes no changes.
    pub read_only: bool,
    /// It runs as a user who may not do everything.
    pub powerless: bool,
    /// How server and client know each other.
    pub acquaintance: Acquaintance,
    /// It does not listen for shared memory.
    pub without_shm: bool,
    /// It listens on an RDMA device.
    #[cfg(feature = "device-tests")]
    pub verbs: bool,
}

/// A running server; it is stopped, and its directory removed, at the end.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// For whatever a test needs, besides the export.
    pub dir: TempDir,
    /// The exported directory.
    pub export: PathBuf,
    /// Where it listens, each with its engine.
    addresses: Vec<String>,
    /// What a URL of it needs in its query.
    pub query: String,
}

/// Gives the client an identity that the server lets in.
fn introduce(dir: &TempDir, state: &Path, powerless: bool) {
    let identity = dir.path().join("config/dafs/identity");
    std::fs::create_dir_all(identity.parent().unwrap()).unwrap();
    let client = Identity::generate().unwrap();
    client.save(&identity).unwrap();
    // A server that may not act as others works as its own user.
    let acts = rustix::process::geteuid().is_root() && !powerless;
    let user = if acts { " uid=0 gid=0" } else { "" };
    let line = format!("{} test exports=*{user}\n", client.public());
    std::fs::write(state.join("authorized_clients"), line).unwrap();
}

impl Server {
    /// Starts a server that offers an empty export `data`.
    pub fn start() -> Self {
        Self::start_with(Setup::default())
    }

    /// The same at level `none`.
    pub fn unprotected() -> Self {
        Self::start_with(Setup { acquaintance: Acquaintance::Unprotected, ..Setup::default() })
    }

    /// The same, set up in another way.
    pub fn start_with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (export, state) = (dir.path().join("export"), dir.path().join("state"));
        std::fs::create_dir(&export).unwrap();
        std::fs::create_dir(&state).unwrap();
        if setup.acquaintance == Acquaintance::Known {
            introduce(&dir, &state, setup.powerless);
        }
        let mut program = server_program();
        let mut powerless = None;
        if setup.powerless && rustix::process::geteuid().is_root() {
            // Everything that the server needs must be within the reach of its user.
            let copy = dir.path().join("dafsd");
            std::fs::copy(&program, &copy).unwrap();
            program = copy;
            for path in [dir.path(), &export, &state] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            powerless = Some(NOBODY);
        }
        let mut command = Command::new(program);
        if let Some(user) = powerless {
            command.uid(user).gid(user);
        }
        let export = setup.export.map_or(export, PathBuf::from);
        let mut offer = OsString::from("data=");
        offer.push(&export);
        if setup.read_only {
            offer.push(",ro");
        }
        command.arg("--export").arg(offer);
        let protection = match setup.acquaintance {
            Acquaintance::Known | Acquaintance::Strangers => "sealed",
            Acquaintance::Unprotected => "none",
        };
        command.args(["--listen", "tcp:127.0.0.1:0", "--memory", "64MiB"]);
        command.args(["--protection", protection]);
        if !setup.without_shm {
            let mut listen = OsString::from("shm:");
            listen.push(dir.path().join("socket"));
            command.arg("--listen").arg(listen);
        }
        #[cfg(feature = "device-tests")]
        if setup.verbs {
            let device = std::env::var("DAFS_RDMA_ADDRESS");
            let device = device.unwrap_or_else(|_| "10.9.9.1".to_owned());
            command.arg("--listen").arg(format!("verbs:{device}:0"));
        }
        command.arg("--state-dir").arg(&state).stdin(Stdio::null());
        let log = dir.path().join("log");
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addresses = lines
            .map_while(|line| Some(line.unwrap().strip_prefix("dafsd: listening on ")?.to_owned()));
        let addresses: Vec<String> = addresses.collect();
        if addresses.is_empty() {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = child.wait();
            panic!("dafsd does not listen: {ended:?}\n{log}");
        }
        let query = match setup.acquaintance {
            Acquaintance::Known => {
                let key = std::fs::read_to_string(state.join("identity.pub")).unwrap();
                format!("server_key={}", key.trim())
            }
            Acquaintance::Strangers => "protection=sealed".to_owned(),
            Acquaintance::Unprotected => "protection=none".to_owned(),
        };
        Self { child, dir, export, addresses, query }
    }

    /// Where an engine listens.
    pub fn address(&self, engine: &str) -> &str {
        let mut addresses = self.addresses.iter();
        addresses.find_map(|at| at.strip_prefix(engine)?.strip_prefix(':')).expect("listens")
    }

    /// The export's URL, without a query.
    pub fn url(&self) -> String {
        format!("dafs://{}/data", self.address("tcp"))
    }

    /// A path outside the export.
    pub fn local(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file in the export.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.export.join(name), content).unwrap();
    }

    /// The command, with this server as the default one.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dafs"));
        command.args(args).env("DAFS_URL", format!("{}?{}", self.url(), self.query));
        // What its user has is none of the tests' business.
        command.env("XDG_CONFIG_HOME", self.local("config")).env_remove("DAFS_IDENTITY");
        command.env_remove("DAFS_LOG").stdin(Stdio::null());
        command
    }

    /// Runs the command.
    pub fn dafs<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        run(&mut self.command(args))
    }

    /// Runs the command, which must do its work in silence, and gives its output.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let run = self.dafs(args);
        assert_eq!((run.code, run.error.as_str()), (0, ""), "{}", run.text());
        run.text()
    }

    /// Runs the command, which must fail with this exit code, and gives what it says.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = A>) -> String {
        let run = self.dafs(args);
        assert_eq!(run.code, code, "{}{}", run.text(), run.error);
        assert!(!run.error.contains("panicked"), "{}", run.error);
        run.error
    }

    /// A client in this process, for what the command does not do.
    pub fn client(&self) -> Client {
        let identity = Some(self.local("config/dafs/identity"));
        let options = Options { identity, ..Options::default() };
        Client::connect(&format!("{}?{}", self.url(), self.query), options).unwrap()
    }

    /// Sends a signal to a command.
    pub fn signal(child: &Child, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How many requests have cost the server work so far.
    pub fn requests(&self) -> u64 {
        let counters = self.ok(["counters"]);
        let line = counters.lines().find(|line| line.starts_with("handler_calls ")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Ends the server without letting it finish anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed())
        {
            _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let end = Instant::now() + Duration::from_secs(10);
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > end {
                    _ = self.child.kill();
                    _ = self.child.wait();
                    if !std::thread::panicking() {
                        panic!("dafsd did not stop");
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error.
    pub error: String,
}

impl Run {
    /// The standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into()
    }
}

/// Runs a command to its end, which must come soon.
pub fn run(command: &mut Command) -> Run {
    let (output, error) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new());
    let error = error.unwrap();
    command.stdout(output.reopen().unwrap()).stderr(error.reopen().unwrap());
    let mut child = command.spawn().unwrap();
    let code = wait(&mut child);
    let error = String::from_utf8_lossy(&std::fs::read(error.path()).unwrap()).into();
    Run { code, output: std::fs::read(output.path()).unwrap(), error }
}

/// Waits for a command's end, which must come soon.
pub fn wait(child: &mut Child) -> i32 {
    status(child).code().expect("ended by a signal")
}

/// The same where a signal may end it.
pub fn status(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the command did not end in {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

//! A server as a process of its own.

use dafs_client::blocking::Client;
use dafs_client::{Options, Protection};
use dafs_keys::Identity;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `dafsd`, killed when it is dropped.
pub struct Daemon {
    child: Child,
    pub directory: tempfile::TempDir,
    pub tcp: String,
    /// Where it listens, each with its engine, as the server says it.
    listen: Vec<String>,
    launcher: Vec<String>,
    flags: Vec<String>,
}

impl Daemon {
    /// Starts a server with one export, `data`, and what else `flags` say.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_by(&[], flags)
    }

    /// Starts it by a command that becomes it, such as `setpriv` with its options.
    pub fn start_by(launcher: &[&str], flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tree")).unwrap();
        let owned =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (launcher, flags) = (owned(launcher), owned(flags));
        authorize(&directory);
        let socket = directory.path().join("socket");
        let listen = [
            "tcp:127.0.0.1:0".to_owned(),
            format!("shm:{}", socket.display()),
            #[cfg(feature = "device-tests")]
            format!("verbs:{}:0", super::rdma_address()),
        ];
        let (child, listen) = spawn(&directory, &launcher, &flags, &listen);
        let mut daemon = Self { child, directory, tcp: String::new(), listen, launcher, flags };
        daemon.tcp = daemon.address("tcp").to_owned();
        daemon
    }

    /// Where an engine listens.
    fn address(&self, engine: &str) -> &str {
        let mut addresses = self.listen.iter();
        addresses.find_map(|at| at.strip_prefix(engine)?.strip_prefix(':')).expect("listens")
    }

    pub fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it the hard way.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it with SIGTERM; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "the server does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again, at the same addresses and over the same files.
    pub fn restart(&mut self) {
        (self.child, self.listen) =
            spawn(&self.directory, &self.launcher, &self.flags, &self.listen);
    }

    /// What the client needs that the server lets in.
    pub fn options(&self) -> Options {
        if self.flags.iter().any(|flag| flag == "none") {
            return Options { protection: Protection::None, ..Options::default() };
        }
        let key = std::fs::read_to_string(self.directory.path().join("state/identity.pub"));
        Options {
            identity: Some(self.directory.path().join("identity")),
            server_key: Some(key.unwrap().trim().parse().unwrap()),
            ..Options::default()
        }
    }

    pub fn client(&self, engine: &str) -> Client {
        let options = self.options();
        Client::connect(&self.at(engine), options).expect("connect")
    }

    /// A client of another export than `data`.
    pub fn client_of(&self, engine: &str, export: &str) -> Client {
        let at = self.at(engine).replacen("/data?", &format!("/{export}?"), 1);
        Client::connect(&at, self.options()).expect("connect")
    }

    fn at(&self, engine: &str) -> String {
        let address = self.address(engine);
        match engine {
            "shm" => format!("dafs://{}/data?engine=shm&socket={address}", self.tcp),
            engine => format!("dafs://{address}/data?engine={engine}"),
        }
    }

    /// Where an engine reaches the server with this key.
    pub fn location(&self, engine: &str, key: &str) -> String {
        format!("{}&server_key={key}", self.at(engine))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> usize {
        let path = format!("/proc/{}/statm", self.pid());
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// The most resident memory that it ever had, in bytes.
    pub fn peak(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// One of the server's own counters.
    pub fn counter(client: &Client, name: &str) -> u64 {
        let stats = client.server_stats().unwrap();
        stats.iter().find(|(counter, _)| counter == name).unwrap_or_else(|| panic!("{name}")).1
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already where the test ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an identity that the server lets in, as the user that runs the tests.
fn authorize(directory: &tempfile::TempDir) {
    let identity = Identity::generate().unwrap();
    identity.save(&directory.path().join("identity")).unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let line = format!("{} test exports=* uid={uid} gid={gid}\n", identity.public());
    std::fs::write(state.join("authorized_clients"), line).unwrap();
}

/// Starts a server; it, and where it listens.
fn spawn(
    directory: &tempfile::TempDir,
    launcher: &[String],
    flags: &[String],
    listen: &[String],
) -> (Child, Vec<String>) {
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut command = launcher.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_dafsd")]);
    let mut child = Command::new(command.next().expect("a program"))
        .args(command)
        .args(["--export", &format!("data={}", path("tree"))])
        .args(listen.iter().flat_map(|address| ["--listen", address]))
        .args(["--state-dir", &path("state")])
        .args(flags)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start dafsd");
    let stdout = child.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    let prefix = "dafsd: listening on ";
    let next = |_: &String| Some(lines.next()?.ok()?.strip_prefix(prefix)?.to_owned());
    let addresses: Option<Vec<_>> = listen.iter().map(next).collect();
    let addresses = addresses.expect("dafsd says where it listens");
    // Keeps the pipe open and empty as long as the server lives.
    std::thread::spawn(move || lines.for_each(drop));
    (child, addresses)
}

//! Every experiment, over every engine and at every protection level it has, with tiny sizes: that
//! it runs to its end, gives the rows it should, and leaves nothing behind. How long things take is
//! not looked at. What needs an RDMA device, at the address in DAFS_RDMA_ADDRESS (10.9.9.1 unless
//! set), is behind the feature `device-tests`.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The protection level of tests that are about no level in particular.
const LEVEL: &str = "sealed";

/// What an experiment is run over and at.
#[derive(Clone, Copy)]
struct At {
    engine: &'static str,
    protection: &'static str,
}

/// The server's program, built if need be.
fn server() -> &'static Path {
    static SERVER: OnceLock<PathBuf> = OnceLock::new();
    SERVER.get_or_init(|| {
        // Beside the bench, in whatever target directory and profile this test was built for.
        let bench = Path::new(env!("CARGO_BIN_EXE_dafs-bench"));
        let server = bench.with_file_name("dafsd");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "dafsd", "--bin", "dafsd"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let directory = bench.parent().expect("a program lies in a directory");
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        build.args(["--profile", profile]).env("CARGO_TARGET_DIR", directory.join(".."));
        let status = build.status().expect("cargo runs");
        assert!(status.success() && server.is_file(), "{} was not built", server.display());
        server
    })
}

/// Runs the bench with its temporary files in a directory of this test's.
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dafs-bench"));
        command.args(line.split_ascii_whitespace()).arg("--server").arg(server());
        command.env("TMPDIR", self.directory.path());
        command
    }

    fn run(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        let rest: Vec<_> = std::fs::read_dir(self.directory.path()).unwrap().collect();
        assert!(rest.is_empty(), "{line} left {rest:?}");
        output
    }

    /// The rows of an experiment with tiny sizes.
    fn rows(&self, experiment: &str, at: At, more: &str) -> Vec<Value> {
        let At { engine, protection } = at;
        let json = tempfile::NamedTempFile::new().unwrap();
        let path = json.path().display();
        let line = format!(
            "{experiment} --engine {engine} --protection {protection} --seconds 0.02 --blocks 2 --file-size 2MiB \
             --place same --json {path} {more}"
        );
        let output = self.run(&line);
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        let report: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
        assert_eq!(report["experiment"], experiment);
        assert_eq!(
            (&report["engine"], &report["protection"]),
            (&engine.into(), &protection.into())
        );
        assert_eq!(report["place"], "same");
        assert!(out.starts_with(&format!("{experiment}: engine {engine}")), "{out}");
        let rows = report["rows"].as_array().unwrap().clone();
        assert!(rows.iter().all(|row| row["ops_per_s"].as_f64().unwrap() > 0.0), "{rows:?}");
        for row in rows.iter().filter(|row| row["path"] == "ordma") {
            assert_eq!(row["handler_calls"], 0, "{row}");
        }
        rows
    }
}

fn paths(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["path"].as_str().unwrap()).collect()
}

/// The floors of a row that reads or writes one block at a time.
fn floors(at: At, reads: bool) -> Vec<&'static str> {
    let mut floors = match (at.engine, reads) {
        ("tcp", _) => vec!["floor"],
        ("verbs", true) => vec!["floor", "floor-send"],
        ("verbs", false) => vec!["floor-send"],
        (_, true) => vec!["floor", "floor-socket"],
        (_, false) => vec!["floor-socket"],
    };
    if at.protection == "sealed" && reads {
        floors.push("floor-open");
    }
    floors
}

fn rtt(at: At) {
    let rows = Bench::new().rows("rtt", at, "");
    let (first, second) = (floors(at, false), floors(at, true));
    let expected = [first, vec!["null-rpc"], second, vec!["direct"]].concat();
    assert_eq!(paths(&rows), expected);
}

fn response_time(at: At) {
    let rows = Bench::new().rows("response-time", at, "");
    let expected = [floors(at, true), vec!["inline", "direct", "ordma"]].concat();
    assert_eq!(paths(&rows), expected);
    let inline = rows.iter().find(|row| row["path"] == "inline").unwrap();
    assert!(inline["handler_calls"].as_u64().unwrap() > 0, "{inline}");
    let sleeping = Bench::new().rows("response-time", at, "--wait sleep --keep-awake off");
    assert_eq!(paths(&sleeping), expected);
}

fn random(at: At) {
    let rows = Bench::new().rows("random", at, "");
    let each = [floors(at, true), vec!["inline", "direct", "ordma"]].concat();
    assert_eq!(paths(&rows), [&each[..], &each, &each].concat());
    let depths: Vec<_> = rows.iter().map(|row| row["depth"].as_u64().unwrap()).collect();
    assert_eq!(depths[..each.len()], vec![1; each.len()]);
    assert_eq!(depths[2 * each.len()..], vec![64; each.len()]);
}

fn throughput(at: At) {
    let rows = Bench::new().rows("throughput", at, "");
    let each = [floors(at, true), vec!["inline", "direct", "ordma"]].concat();
    assert_eq!(rows.len(), 9 * each.len());
    assert_eq!(rows.last().unwrap()["block"], 1 << 20);
}

fn server_throughput(at: At) {
    let rows = Bench::new().rows("server-throughput", at, "--block 8KiB");
    assert_eq!(paths(&rows), ["direct", "ordma"].repeat(4));
    let clients: Vec<_> = rows.iter().map(|row| row["clients"].as_u64().unwrap()).collect();
    assert_eq!(clients, [1, 1, 2, 2, 3, 3, 4, 4]);
}

fn write(at: At) {
    let rows = Bench::new().rows("write", at, "");
    let each = [floors(at, false), vec!["write"]].concat();
    assert_eq!(paths(&rows), each.repeat(2));
    assert_eq!((&rows[0]["block"], &rows[each.len()]["block"]), (&4096.into(), &64.into()));
}

/// A test of each experiment over an engine and at a protection level.
macro_rules! every_experiment {
    ($name:ident: $engine:literal $protection:literal; $($experiment:ident),*) => {
        mod $name {
            const AT: super::At = super::At { engine: $engine, protection: $protection };
            $( #[test] fn $experiment() { super::$experiment(AT); } )*
        }
    };
    ($($name:ident: $engine:literal $protection:literal),* $(,)?) => {
        $( every_experiment!(
            $name: $engine $protection;
            rtt, response_time, random, throughput, server_throughput, write
        ); )*
    };
}
every_experiment!(
    tcp: "tcp" "none",
    shm: "shm" "none",
    tcp_keyed: "tcp" "keyed",
    tcp_sealed: "tcp" "sealed",
    shm_sealed: "shm" "sealed",
);
#[cfg(feature = "device-tests")]
every_experiment!(
    verbs: "verbs" "none",
    verbs_sealed: "verbs" "sealed",
);

/// What an experiment without a server says, and its rows.
fn alone(line: &str) -> (String, Vec<Value>) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dafs-bench"));
    command.args(line.split_ascii_whitespace()).args(["--blocks", "1", "--json"]).arg(json.path());
    let output = command.output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}{err}");
    let report: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let experiment = line.split_ascii_whitespace().next().unwrap();
    assert_eq!(report["experiment"], experiment);
    let rows = report["rows"].as_array().unwrap().clone();
    assert!(rows.iter().all(|row| row["p50_us"].as_f64().unwrap() > 0.0), "{out}");
    (out, rows)
}

#[cfg(feature = "device-tests")]
#[test]
fn registration_needs_no_server() {
    let (out, rows) = alone("registration --seconds 0.001");
    assert!(out.starts_with("registration: engine verbs"), "{out}");
    assert!(out.contains("\n16384 pages: "), "{out}");
    assert_eq!(paths(&rows)[..3], ["take", "register", "deregister"]);
    assert_eq!(rows.len(), 1 + 2 * 8);
    assert_eq!(rows.last().unwrap()["block"], 16384 * 4096);
}

#[cfg(feature = "device-tests")]
#[test]
fn layouts_need_no_server() {
    let (out, rows) = alone("layouts --seconds 0.001");
    assert!(out.starts_with("layouts: engine verbs"), "{out}");
    let expected = ["floor", "apart", "behind", "floor", "apart", "behind", "page by page"];
    assert_eq!(paths(&rows), expected);
    assert_eq!((&rows[0]["block"], &rows[6]["block"]), (&4096.into(), &65536.into()));
}

#[test]
fn only_the_rows_that_are_asked_for_are_measured() {
    let at = At { engine: "tcp", protection: LEVEL };
    let rows = Bench::new().rows("response-time", at, "--rows direct,ordma --block 4096");
    assert_eq!(paths(&rows), ["direct", "ordma"]);
}

#[test]
fn where_there_is_no_device_it_is_said_so() {
    for experiment in ["registration", "layouts"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dafs-bench"));
        let output = command.args([experiment, "--address", "127.0.0.1"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("--address"), "{error}");
    }
}

#[test]
fn crypto_needs_no_server() {
    let (out, rows) = alone("crypto --seconds 0.001");
    assert!(out.starts_with("crypto: place same"), "{out}");
    assert!(out.trim_end().ends_with("Pages are sealed by aws-lc-rs."), "{out}");
    for path in ["seal aws-lc-rs", "open aws-lc-rs", "seal ring", "open ring", "copy"] {
        let blocks = rows.iter().filter(|row| row["path"] == path).map(|row| &row["block"]);
        assert!(blocks.eq(&[4096, 8192, 16384, 32768, 65536]), "{path}: {out}");
    }
}

#[test]
fn all_gives_an_array_and_every_experiment_the_same_placement() {
    let bench = Bench::new();
    let json = tempfile::NamedTempFile::new().unwrap();
    let line = format!(
        "all --protection {LEVEL} --seconds 0.002 --blocks 1 --file-size 1MiB --block 4096 --clients 2 --json {}",
        json.path().display()
    );
    let output = bench.run(&line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read(json.path()).unwrap();
    let reports: Vec<Value> = serde_json::from_slice(&text).unwrap();
    assert_eq!(reports.len(), 6);
    assert!(reports.iter().all(|report| report["place"] == reports[0]["place"]));
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let bench = Bench::new();
    for (line, reason) in [
        ("response-time --engine shm --protection keyed", "engine shm has sealed"),
        ("response-time --engine verbs --protection keyed", "engine verbs has sealed"),
        ("response-time --block 100", "whole pages"),
        ("response-time --file-size 1MiB --block 2MiB", "not more than the file's"),
        ("write --block 8", "writes are of"),
        ("write --rows ordma --seconds 0.01 --file-size 1MiB", "no row named ordma"),
    ] {
        let level =
            if line.contains("--protection") { "" } else { &format!(" --protection {LEVEL}") };
        let output = bench.run(&format!("{line}{level}"));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(error.contains(reason), "{line}: {error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_dafs-bench"));
    let output = command.args(["rtt", "--server", "/nowhere"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("--server"), "{error}");
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut child = bench
        .command(&format!("response-time --protection {LEVEL} --seconds 600 --file-size 1MiB"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let files = || std::fs::read_dir(bench.directory.path()).unwrap().count();
    let deadline = Instant::now() + Duration::from_secs(60);
    let socket = || {
        std::fs::read_dir(bench.directory.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("dafs.sock").exists())
    };
    while !socket() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(socket(), "the server did not start");
    let helpers = children(child.id());
    assert!(!helpers.is_empty());
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(files(), 0);
    for helper in helpers {
        assert!(!Path::new(&format!("/proc/{helper}")).exists(), "process {helper} still runs");
    }
}

#[test]
fn even_a_kill_leaves_no_process_behind() {
    let bench = Bench::new();
    let mut child = bench
        .command(&format!(
            "server-throughput --protection {LEVEL} --seconds 600 --file-size 1MiB --clients 2"
        ))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // A server, a peer, at least one spinner, and two clients.
    while children(child.id()).len() < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let helpers = children(child.id());
    assert!(helpers.len() >= 5, "{helpers:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let alive = || helpers.iter().any(|pid| Path::new(&format!("/proc/{pid}/exe")).exists());
    while alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!alive(), "some of {helpers:?} still run");
}

fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

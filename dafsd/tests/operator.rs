//! The operator's commands, with a server as a process of its own.

mod common;

use common::process::Daemon;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn dafsd(state: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dafsd"));
    command.args(arguments).arg("--state-dir").arg(state).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one line of a failure.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn sessions_are_listed() {
    let mut daemon = Daemon::start(&[]);
    let state = daemon.directory.path().join("state");
    let list = |flags: &[&str]| {
        let output = dafsd(&state, &[&["sessions"], flags].concat());
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    assert_eq!(list(&[]).lines().count(), 1);
    std::fs::write(daemon.tree().join("file"), "x").unwrap();
    let client = daemon.client("tcp");
    let _open = client.open("file").unwrap();
    let table = list(&[]);
    let row = table.lines().nth(1).unwrap();
    for part in ["test", "127.0.0.1:", "data", "sealed", "tcp", "1"] {
        assert!(row.split_whitespace().any(|cell| cell.starts_with(part)), "{part}: {table}");
    }
    let json: serde_json::Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let session = &json["sessions"][0];
    assert_eq!((&session["export"], &session["engine"]), (&"data".into(), &"tcp".into()));
    assert_eq!((&session["name"], &session["open_files"]), (&"test".into(), &1.into()));

    let error = failure(&dafsd(&state, &["fence", "nobody"]));
    assert!(error.contains("no client \"nobody\""), "{error}");
    let error = failure(&dafsd(&state, &["unfence", "nobody"]));
    assert!(error.contains("\"nobody\" is not fenced off"), "{error}");

    assert_eq!(daemon.stop(), Some(0));
    let error = failure(&dafsd(&state, &["sessions"]));
    assert!(error.contains("no server is running") && error.contains("--state-dir"), "{error}");
    // A server that was killed leaves its socket; the next one takes the place.
    daemon.restart();
    daemon.kill();
    assert!(state.join("admin.sock").exists());
    failure(&dafsd(&state, &["sessions"]));
    daemon.restart();
    list(&[]);
}

#[test]
fn clients_are_fenced_off_and_the_server_remembers() {
    let key = dafs_keys::PublicKey::from_bytes([5; 32]);
    let mut daemon = Daemon::start(&[]);
    let state = daemon.directory.path().join("state");
    let clients = state.join("authorized_clients");
    std::fs::write(&clients, format!("{key} web exports=* uid=1\n")).unwrap();
    std::fs::set_permissions(&clients, std::fs::Permissions::from_mode(0o600)).unwrap();
    // The server takes note of the file by itself; SIGHUP makes it sure.
    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !dafsd(&state, &["fence", "web"]).status.success() {
        assert!(Instant::now() < end, "the server does not read the new file");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.kill();
    daemon.restart();
    let fenced = |list: Output| text(&list.stdout).contains("fenced off: web");
    assert!(fenced(dafsd(&state, &["sessions"])));
    let output = dafsd(&state, &["unfence", "web"]);
    assert!(output.status.success() && text(&output.stdout).contains("web"), "{output:?}");
    assert!(!fenced(dafsd(&state, &["sessions"])));
}

#[test]
fn the_servers_key_stays_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let first = text(&dafsd(&state, &["key"]).stdout);
    first.trim().parse::<dafs_keys::PublicKey>().unwrap();
    assert_eq!(text(&dafsd(&state, &["key"]).stdout), first);
}

//! A stranger does not fill the disk that the server's log is on.

use crate::common::process::Daemon;
use crate::common::raw::{Failure, Raw};
use dafs_keys::Protection;
use dafs_proto::Status;
use ordma::Engine;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What one kind of warning about one address may add to the log, here and there.
const MOST: usize = 64 << 10;

/// A server whose standard error goes into a file.
fn with_log(log: &std::path::Path) -> Daemon {
    let redirect = format!("exec \"$@\" 2>'{}'", log.display());
    Daemon::start_by(&["sh", "-c", &redirect, "sh"], &[])
}

#[test]
fn what_a_stranger_says_is_cut_and_counted_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let daemon = with_log(&log);
    let connector = ordma::tcp::Tcp::new(ordma::tcp::Settings::default()).connector(&daemon.tcp);
    let stranger = Raw::attach(&*connector, Protection::None).unwrap();
    // Turns what follows around, where it is shown as it is.
    let name = format!("\u{202e}{}", "x".repeat(60_000));
    for _ in 0..200 {
        let Err(Failure::Status(status, why)) = stranger.begin(&name) else {
            panic!("a stranger is let in, or cut off");
        };
        assert_eq!(status, Status::NoExport);
        assert!(why.len() < 1024 && !why.contains('\u{202e}'), "{} bytes: {why}", why.len());
    }
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("no export"), "it is told: {text}");
    assert!(!text.contains('\u{202e}') && text.len() < MOST, "{} bytes of log", text.len());

    // What is no hello, from new connections, is limited as well, and the same stranger's.
    for _ in 0..500 {
        let mut socket = TcpStream::connect(&daemon.tcp).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(&[b'?'; 64]).unwrap();
        // The end, or that the rest was not taken: either way it was heard.
        let _ = socket.read(&mut [0; 64]);
    }
    let after = std::fs::read_to_string(&log).unwrap();
    assert!(after.contains("connection refused"), "it is told: {after}");
    assert!(after.len() < MOST, "{} bytes of log", after.len());
}

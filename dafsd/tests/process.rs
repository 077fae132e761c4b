//! The server as a process: crashes, graceful stops, memory, and peers that misbehave.

mod common;

use common::process::Daemon;
use common::{PAGE, create, pattern, read_to_end, served};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Where there is a device, the others are tested elsewhere.
const ENGINES: &[&str] = if cfg!(feature = "device-tests") { &["verbs"] } else { &["tcp", "shm"] };
const MIB: usize = 1 << 20;

#[test]
fn second_pass_costs_the_server_nothing() {
    let daemon = Daemon::start(&[]);
    let content = pattern(8 * MIB, 1);
    std::fs::write(daemon.tree().join("file"), &content).unwrap();
    for &engine in ENGINES {
        let client = daemon.client(engine);
        let file = client.open("file").unwrap();
        assert!(read_to_end(&file, MIB) == content, "{engine}, first pass");
        let calls = Daemon::counter(&client, "handler_calls");
        let cpu = cpu_time(daemon.pid());
        let (bytes, by) = served(&client, || read_to_end(&file, MIB));
        let cpu = cpu_time(daemon.pid()) - cpu;
        assert!(bytes == content, "{engine}, second pass");
        assert_eq!((by.rpcs, by.faults), (0, 0), "{engine}: {by:?}");
        assert!(by.ordma >= (8 * MIB / PAGE) as u64, "{engine}: {by:?}");
        assert_eq!(Daemon::counter(&client, "handler_calls"), calls, "{engine}: handler calls");
        if engine != "tcp" {
            // Its housekeeping alone; 2 048 pages by RPC would take it milliseconds, and where the CPU
            // is emulated (docker/rxe-vm) seconds.
            let most = Duration::from_millis(if emulated() { 100 } else { 2 });
            assert!(cpu < most, "{engine}: the server used {cpu:?}");
        }
    }
}

/// Whether this may be docker/rxe-vm, on a CPU that is emulated.
fn emulated() -> bool {
    std::env::var_os("RXE_VM").is_some()
}

/// Time on a CPU of all threads of a process, to the nanosecond.
fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| of(thread.ok()?)).sum())
}

#[test]
fn a_crash_loses_nothing_that_was_committed_and_nothing_the_client_still_has() {
    for &engine in ENGINES {
        let mut daemon = Daemon::start(&[]);
        let (writer, reader) = (daemon.client(engine), daemon.client(engine));
        let file = create(&writer, "file");
        let stable = pattern(100 * PAGE, 1);
        file.write_all_at(&stable, 0).unwrap();
        file.sync().unwrap();
        let read = reader.open("file").unwrap();
        assert!(read_to_end(&read, MIB) == stable, "{engine}");
        let unstable = pattern(10 * PAGE, 2);
        file.write_all_at(&unstable, 0).unwrap();
        daemon.kill();
        assert!(
            std::fs::read(daemon.tree().join("file")).unwrap()[10 * PAGE..] == stable[10 * PAGE..]
        );
        daemon.restart();
        // The next commit sends again what the crash took.
        file.sync().unwrap();
        let mut expected = stable.clone();
        expected[..10 * PAGE].copy_from_slice(&unstable);
        assert!(
            std::fs::read(daemon.tree().join("file")).unwrap() == expected,
            "{engine}: on disk"
        );
        assert!(read_to_end(&read, MIB) == expected, "{engine}: the reader's open file lives on");
        assert!(read_to_end(&read, MIB) == expected, "{engine}");
    }
}

/// The idle client comes back by itself, in the background.
#[test]
fn an_idle_client_leaves_alone_what_another_has_made_stable() {
    for &engine in ENGINES {
        for orderly in [false, true] {
            let mut daemon = Daemon::start(&[]);
            let (idle, busy) = (daemon.client(engine), daemon.client(engine));
            let old = create(&idle, "file");
            old.write_all_at(&pattern(10 * PAGE, 1), 0).unwrap();
            let new = create(&busy, "file");
            let content = pattern(10 * PAGE, 2);
            new.write_all_at(&content, 0).unwrap();
            new.sync().unwrap();
            if orderly {
                assert_eq!(daemon.stop(), Some(0), "{engine}");
            } else {
                daemon.kill();
            }
            daemon.restart();
            // It is connected again, and has sent again what it thinks is due.
            idle.metadata("file").unwrap();
            assert!(read_to_end(&new, MIB) == content, "{engine}, orderly: {orderly}");
            old.sync().unwrap();
            let bytes = std::fs::read(daemon.tree().join("file")).unwrap();
            assert!(bytes == content, "{engine}, orderly: {orderly}: on disk");
        }
    }
}

#[test]
fn what_a_dead_server_left_in_memory_is_not_read() {
    let mut daemon = Daemon::start(&[]);
    std::fs::write(daemon.tree().join("file"), pattern(PAGE, 1)).unwrap();
    let (old, other) = (daemon.client("shm"), daemon.client("tcp"));
    let file = old.open("file").unwrap();
    read_to_end(&file, PAGE);
    assert_eq!(served(&old, || read_to_end(&file, PAGE)).1.rpcs, 0);
    daemon.kill();
    daemon.restart();
    // The new server acknowledges a write; the old one's memory is still mapped.
    let written = create(&other, "file");
    written.write_all_at(&pattern(PAGE, 2), 0).unwrap();
    assert!(read_to_end(&file, PAGE) == pattern(PAGE, 2));
}

#[test]
fn a_graceful_stop_makes_everything_stable() {
    for &engine in ENGINES {
        let mut daemon = Daemon::start(&[]);
        let client = daemon.client(engine);
        let file = create(&client, "file");
        let content = pattern(300 * PAGE + 17, 3);
        file.write_all_at(&content, 0).unwrap();
        assert_eq!(daemon.stop(), Some(0), "{engine}");
        assert!(std::fs::read(daemon.tree().join("file")).unwrap() == content, "{engine}");
        assert!(!daemon.socket().exists(), "the socket is gone");
    }
}

#[test]
fn memory_stays_within_the_budget() {
    // A smaller one where each byte is checked and sealed by an emulated CPU.
    let budget = if emulated() { 32 * MIB } else { 128 * MIB };
    let daemon = Daemon::start(&["--memory", &format!("{}MiB", budget / MIB)]);
    for &engine in ENGINES {
        // Two clients at a time, each of which writes and reads one and a half times the budget.
        std::thread::scope(|scope| {
            for name in ["one", "other"] {
                let daemon = &daemon;
                scope.spawn(move || {
                    let client = daemon.client(engine);
                    let file = create(&client, name);
                    let block = pattern(MIB, 1);
                    let mut buffer = vec![0; MIB];
                    let count = budget / MIB * 3 / 2;
                    for i in 0..count {
                        file.write_all_at(&block, (i * MIB) as u64).unwrap();
                        if i % 8 == 0 {
                            check_memory(daemon, budget);
                        }
                    }
                    for i in 0..count {
                        file.read_exact_at(&mut buffer, (i * MIB) as u64).unwrap();
                        assert!(buffer == block, "{engine}: MiB {i}");
                        if i % 8 == 0 {
                            check_memory(daemon, budget);
                        }
                    }
                    client.unlink(name).unwrap();
                });
            }
        });
        println!("{engine}: at most {} MiB with a budget of {}", daemon.peak() / MIB, budget / MIB);
        assert!(daemon.peak() < budget + 64 * MIB, "{engine}: {} MiB", daemon.peak() / MIB);
    }
}

fn check_memory(daemon: &Daemon, budget: usize) {
    let resident = daemon.resident();
    assert!(
        resident < budget + 64 * MIB,
        "{} MiB resident with a budget of {} MiB",
        resident / MIB,
        budget / MIB
    );
}

#[test]
fn many_idle_connections_hold_no_memory() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client("tcp");
    let file = create(&client, "file");
    file.write_all_at(&pattern(PAGE, 1), 0).unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let most =
        limit.maximum.map_or(10_000, |most| usize::try_from(most).unwrap() - 200).min(10_000);
    let before = daemon.resident();
    let mut idle = Vec::new();
    for _ in 0..most {
        // Refused ones count as idle too: the server must stand both.
        idle.extend(TcpStream::connect(&daemon.tcp));
    }
    assert!(idle.len() > most / 2, "only {} connections", idle.len());
    // The client is still served, and is not slow.
    let begin = Instant::now();
    let mut page = vec![0; PAGE];
    for _ in 0..100 {
        file.read_exact_at(&mut page, 0).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let grown = daemon.resident().saturating_sub(before);
    println!("{} idle connections: {} KiB", idle.len(), grown >> 10);
    assert!(grown < 64 * MIB, "{} idle connections cost {} MiB", idle.len(), grown / MIB);
}

/// Clients that have a session, and say nothing.
#[cfg(feature = "device-tests")]
#[test]
fn idle_verbs_clients_hold_bounded_memory() {
    // The page cache is not what this is about.
    let daemon = Daemon::start(&["--memory", "32MiB"]);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let client = daemon.client("verbs");
    let file = create(&client, "file");
    file.write_all_at(&pattern(PAGE, 1), 0).unwrap();
    let first = daemon.resident();
    let (mut before, mut idle) = (first, Vec::new());
    // Each takes a handshake, for which an emulated CPU is slow.
    let part = if emulated() { 15 } else { 40 };
    // Those who come first are given more, while there is plenty.
    for i in 0..4 {
        idle.extend((0..part).map(|_| daemon.client("verbs")));
        let now = daemon.resident();
        let each = now.saturating_sub(before) / part;
        println!("clients {} to {}: {} KiB each", i * part + 1, (i + 1) * part, each >> 10);
        before = now;
    }
    let grown = before.saturating_sub(first);
    println!("{} idle clients: {} KiB each", idle.len(), (grown >> 10) / idle.len());
    // 200 KiB each, and the 4 MiB that are shared.
    assert!(
        grown < idle.len() * (200 << 10) + 4 * MIB,
        "{} idle clients cost {} MiB",
        idle.len(),
        grown / MIB
    );
    // Nobody is slow for it.
    let begin = Instant::now();
    for client in [&client, &idle[0], &idle[idle.len() - 1]] {
        let file = client.open("file").unwrap();
        for _ in 0..20 {
            assert!(read_to_end(&file, PAGE) == pattern(PAGE, 1));
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // What they had is given back.
    drop(idle);
    let deadline = Instant::now() + Duration::from_secs(20);
    while daemon.resident() > first + 8 * MIB {
        let kept = daemon.resident().saturating_sub(first);
        assert!(Instant::now() < deadline, "{} MiB are kept", kept / MIB);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nonsense_on_the_port_is_cut_off_and_disturbs_nobody() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client("tcp");
    let file = create(&client, "file");
    file.write_all_at(&pattern(PAGE, 1), 0).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for len in [1, 16, 64, 4096, 100_000] {
        let mut stream = TcpStream::connect(&daemon.tcp).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
        // The server may close before it has taken everything.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(
            ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "the server closes the connection"
        );
    }
    assert!(read_to_end(&file, PAGE) == pattern(PAGE, 1));
}

#[test]
fn a_second_server_on_the_same_state_is_refused() {
    let daemon = Daemon::start(&[]);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dafsd"))
        .args(["--protection", "none", "--listen", "tcp:127.0.0.1:0"])
        .arg("--export")
        .arg(format!("data={}", daemon.tree().display()))
        .arg("--state-dir")
        .arg(daemon.directory.path().join("state"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("in use by another dafsd"), "{error}");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_not_the_end() {
    // The page cache lies in files, too, which have to fit.
    const LIMIT: u64 = 200 << 20;
    let launcher = ["prlimit".to_owned(), format!("--fsize={LIMIT}:unlimited")];
    let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
    let daemon = Daemon::start_by(&launcher, &[]);
    let engine = ENGINES[0];
    let client = daemon.client(engine);
    let file = create(&client, "file");
    let too_big = |result: dafs_client::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.status(), Some(dafs_client::Status::FileTooBig), "{error}");
    };
    too_big(file.write_all_at(b"beyond", LIMIT - 3));
    too_big(file.set_len(LIMIT + 1));
    assert_eq!(file.attr().unwrap().size, 0, "nothing has changed");
    file.write_all_at(b"up to", LIMIT - 5).unwrap();
    file.sync().unwrap();
    // Should the limit be lowered while the server runs, what is written beyond it cannot be made
    // stable; the kernel says so by a signal, too.
    let lower = std::process::Command::new("prlimit")
        .args([format!("--pid={}", daemon.pid()), format!("--fsize={}:unlimited", MIB)])
        .status();
    assert!(lower.unwrap().success());
    file.write_all_at(b"lower", LIMIT - 5).unwrap();
    too_big(file.sync());
    let other = create(&client, "other");
    other.write_all_at(b"fits", 0).unwrap();
    other.sync().unwrap();
    assert_eq!(std::fs::read(daemon.tree().join("other")).unwrap(), b"fits");
}

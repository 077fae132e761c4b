//! What happens to a network of RDMA devices, and to those at its ends: every read brings right data,
//! or fails with an error that says why, in bounded time.
//!
//! `links` takes two devices with a cable between them: the server is at DAFS_RDMA_ADDRESS, on the
//! interface DAFS_RDMA_PEER, and clients come from DAFS_RDMA_FROM, on the interface
//! DAFS_RDMA_INTERFACE.

mod common;

use common::process::Daemon;
use common::{PAGE, create, pattern, read_to_end, served};
use dafs_client::blocking::{Client, File};
use dafs_client::{Connectors, Error, Options, Path};
use ordma::verbs::{Settings, Verbs};
use ordma::{AccessFault, Engine};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// What came of reading for a while.
#[derive(Debug, Default)]
struct Told {
    good: u64,
    failed: u64,
    slowest: Duration,
    last_error: String,
}

/// Reads pages at random, and holds each against what it should be.
fn read_until(file: &File, content: &[u8], done: &AtomicBool, seed: u64) -> Told {
    read_until_by(file, content, done, seed, Path::Auto)
}

fn read_until_by(file: &File, content: &[u8], done: &AtomicBool, seed: u64, path: Path) -> Told {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut told = Told::default();
    let mut page = vec![0; PAGE];
    while !done.load(Ordering::Relaxed) {
        let block = random.usize(..content.len() / PAGE);
        let begun = Instant::now();
        match file.read_at_by(&mut page, (block * PAGE) as u64, path) {
            Ok(report) => {
                assert_eq!(report.bytes, PAGE, "block {block}");
                assert!(page == content[block * PAGE..][..PAGE], "block {block}");
                told.good += 1;
            }
            Err(error @ (Error::Timeout { .. } | Error::Link(_))) => {
                told.failed += 1;
                told.last_error = error.to_string();
            }
            Err(other) => panic!("{other}"),
        }
        told.slowest = told.slowest.max(begun.elapsed());
    }
    told
}

/// A server with a file, and what is in it.
fn server(flags: &[&str]) -> (Daemon, Vec<u8>) {
    let daemon = Daemon::start(flags);
    let content = pattern(4 * MIB, 7);
    std::fs::write(daemon.tree().join("file"), &content).unwrap();
    (daemon, content)
}

/// Waits until reads are one-sided again.
fn becomes_one_sided(client: &Client, file: &File, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let mut buffer = vec![0; PAGE];
        let (result, by) = served(client, || file.read_exact_at(&mut buffer, 0));
        if result.is_ok() && by.rpcs == 0 && by.ordma == 1 {
            return;
        }
        assert!(Instant::now() < deadline, "not one-sided within {within:?}: {by:?} {result:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Memory that shrinks while it is read: chunks go, with READs of them under way, and with direct reads
/// that are placed from them.
#[test]
fn chunks_are_deregistered_under_reads() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let daemon = Daemon::start(&["--memory", "8MiB"]);
    let content = pattern(3 * MIB, 7);
    std::fs::write(daemon.tree().join("file"), &content).unwrap();
    let (reader, writer) = (daemon.client("verbs"), daemon.client("verbs"));
    let direct = daemon.client("verbs");
    let file = reader.open("file").unwrap();
    let directly = direct.open("file").unwrap();
    assert!(read_to_end(&file, MIB) == content);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_until(&file, &content, &done, seed));
        let placing =
            scope.spawn(|| read_until_by(&directly, &content, &done, seed ^ 1, Path::Direct));
        // Far more than there is memory for, so that pages move, again and again.
        for round in 0..6 {
            let other = create(&writer, &format!("other-{round}"));
            other.write_all_at(&pattern(4 * MIB, round), 0).unwrap();
            other.sync().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reading in [reading, placing] {
            let told = reading.join().unwrap();
            println!("{told:?}");
            assert!(told.good > 0 && told.failed == 0, "{told:?}");
        }
    });
    println!("{} direct reads torn", direct.counters().direct_torn);
    assert!(read_to_end(&file, MIB) == content);
}

#[test]
fn a_server_that_is_killed_and_started_again_goes_on() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut daemon, content) = server(&[]);
    let client = daemon.client("verbs");
    let file = client.open("file").unwrap();
    assert!(read_to_end(&file, MIB) == content);
    becomes_one_sided(&client, &file, Duration::from_secs(10));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_until(&file, &content, &done, seed));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            daemon.kill();
            std::thread::sleep(Duration::from_millis(300));
            daemon.restart();
        }
        std::thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
        let told = reading.join().unwrap();
        println!("{told:?}");
        assert!(told.good > 0 && told.slowest < Duration::from_secs(30), "{told:?}");
    });
    becomes_one_sided(&client, &file, Duration::from_secs(20));
}

/// What a process of its own has to know to be a client of the server.
fn for_client_of(daemon: &Daemon) -> String {
    let options = daemon.options();
    let key = options.server_key.unwrap().to_string();
    format!("{} {}", daemon.location("verbs", &key), options.identity.unwrap().display())
}

/// The client in such a process, which is told by a variable; `None` elsewhere.
fn client_of(variable: &str) -> Option<Client> {
    let told = std::env::var(variable).ok()?;
    let (location, identity) = told.split_once(' ').unwrap();
    let options = Options { identity: Some(identity.into()), ..Options::default() };
    Some(Client::connect(location, options).unwrap())
}

/// Becomes a program that may lock so much memory and no more.
fn locking_at_most(bytes: usize) -> String {
    // Whoever has the capability is not held to the limit.
    format!("exec setpriv --bounding-set -ipc_lock prlimit --memlock={bytes}:{bytes} \"$@\"")
}

const NO_LOCK: &str = "raise RLIMIT_MEMLOCK";

#[test]
fn pages_that_may_not_be_locked_are_read_by_rpc() {
    let log = tempfile::NamedTempFile::new().unwrap();
    // Enough for messages, and not for a chunk.
    let launch = format!("{} 2>{}", locking_at_most(8 * MIB), log.path().display());
    let daemon = Daemon::start_by(&["sh", "-c", &launch, "sh"], &["--memory", "64MiB"]);
    let content = pattern(4 * MIB, 7);
    std::fs::write(daemon.tree().join("file"), &content).unwrap();
    let client = daemon.client("verbs");
    let file = client.open("file").unwrap();
    for _ in 0..2 {
        assert!(read_to_end(&file, MIB) == content);
    }
    assert_eq!(client.counters().ordma_pages, 0);
    let log = std::fs::read_to_string(log.path()).unwrap();
    let told: Vec<_> = log.lines().filter(|line| line.contains(NO_LOCK)).collect();
    assert!(told.iter().any(|line| line.contains("served by RPC")), "{log}");
    // Once for each chunk and what it is registered for, and there are four chunks at most.
    assert!(told.len() <= 8, "{log}");
}

#[test]
fn a_server_that_may_lock_nothing_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let output = Command::new("sh")
        .args(["-c", &locking_at_most(64 << 10), "sh", env!("CARGO_BIN_EXE_dafsd")])
        .args(["--export", &format!("data={path}"), "--protection", "none"])
        .args(["--state-dir", &format!("{path}/state")])
        .args(["--listen", &format!("verbs:{}:0", common::rdma_address())])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot listen on verbs:") && error.contains(NO_LOCK), "{error}");
}

const LOCKED: &str = "DAFS_TEST_LOCKED";

/// Not a test of its own: reads and writes, in a process that may lock little.
#[test]
fn locked_process() {
    let Some(client) = client_of(LOCKED) else { return };
    let content = pattern(4 * MIB, 7);
    assert!(read_to_end(&client.open("file").unwrap(), MIB) == content);
    let copy = create(&client, "copy");
    copy.write_all_at(&content, 0).unwrap();
    copy.sync().unwrap();
    println!("{} direct transfers failed", client.counters().direct_failed);
}

#[test]
fn a_client_that_may_lock_little_does_without_direct_transfers() {
    let (daemon, content) = server(&[]);
    // Enough for messages.
    let output = Command::new("sh")
        .args(["-c", &locking_at_most(MIB), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "locked_process", "--nocapture"])
        .env(LOCKED, for_client_of(&daemon))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{error}");
    let (before, _) = told.split_once(" direct transfers failed").expect("it tells");
    let failed = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
    assert!(failed.parse::<u64>().unwrap() > 0, "{told}");
    assert!(std::fs::read(daemon.tree().join("copy")).unwrap() == content);
}

/// What the kernel keeps of a queue pair.
struct Kept {
    number: u32,
    /// That of the one that it is connected with.
    theirs: Option<u32>,
    /// The thread that made it; `None` where that is gone, or it is the kernel's own.
    thread: Option<u32>,
}

fn queue_pair_list() -> Vec<Kept> {
    let output = Command::new("rdma").args(["resource", "show", "qp"]).output();
    let output = output.expect("the command rdma (package iproute2)");
    assert!(output.status.success());
    let kept = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let field = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse().ok()
        };
        Some(Kept { number: field("lqpn")?, theirs: field("rqpn"), thread: field("pid") })
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(kept).collect()
}

fn queue_pairs() -> usize {
    queue_pair_list().len()
}

const CHILD: &str = "DAFS_TEST_READER";

/// Not a test of its own: reads for ever, in a process that gets killed.
#[test]
fn reading_process() {
    let Some(client) = client_of(CHILD) else { return };
    let file = client.open("file").unwrap();
    let size = usize::try_from(file.attr().unwrap().size).unwrap();
    let mut buffer = vec![0; size];
    for round in 0.. {
        file.read_exact_at(&mut buffer, 0).unwrap();
        if round == 1 {
            println!("reading");
        }
    }
}

#[test]
fn what_a_killed_client_had_is_gone() {
    let (daemon, content) = server(&["--lease", "2s"]);
    let client = daemon.client("verbs");
    let file = client.open("file").unwrap();
    assert!(read_to_end(&file, MIB) == content);
    let before = queue_pairs();
    let location = for_client_of(&daemon);
    for _ in 0..2 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reading_process", "--nocapture"])
            .env(CHILD, &location)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = lines.map_while(Result::ok).any(|line| line.contains("reading"));
        assert!(reading, "the child reads");
        assert!(queue_pairs() > before);
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while queue_pairs() != before {
            assert!(Instant::now() < deadline, "{} queue pairs, {before} before", queue_pairs());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(read_to_end(&file, MIB) == content, "others go on");
    }
}

mod links {
    use super::*;

    fn variable(name: &str) -> String {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: see the head of this file"))
    }

    /// A client at the other end of the cable.
    fn client(daemon: &Daemon, timeout: Duration) -> Client {
        let options = Options {
            timeout,
            connect_timeout: Duration::from_secs(5).min(timeout),
            ..daemon.options()
        };
        let key = options.server_key.unwrap().to_string();
        let location = daemon.location("verbs", &key).parse().unwrap();
        let connectors = Connectors {
            verbs: |address| {
                let from = variable("DAFS_RDMA_FROM");
                Verbs::new(Settings::default()).connector(&format!("{address}@{from}"))
            },
            ..Connectors::default()
        };
        Client::connect_with(&location, options, connectors).unwrap()
    }

    fn run(program: &str, args: &[&str]) {
        let status = Command::new(program).args(args).status();
        assert!(status.unwrap_or_else(|error| panic!("{program}: {error}")).success(), "{args:?}");
    }

    /// How the way between the two is cut.
    #[derive(Clone, Copy, Debug)]
    enum Cut {
        /// The client's interface is down.
        Interface,
        /// Packets go out, and never arrive. What soft-RoCE cannot even send, as with an interface
        /// that is down, fails the queue pair of the kernel's connection manager, which is not brought
        /// back (rxe_req.c): so this is how the longer cut is made.
        Cable,
    }

    impl Cut {
        fn set(self, cut: bool) {
            let ends = ["DAFS_RDMA_INTERFACE", "DAFS_RDMA_PEER"].map(variable);
            match self {
                Self::Interface => {
                    run("ip", &["link", "set", &ends[0], if cut { "down" } else { "up" }]);
                }
                Self::Cable => {
                    let action = if cut { "add" } else { "del" };
                    for end in &ends {
                        let netem = ["qdisc", action, "dev", end, "root", "netem", "loss", "100%"];
                        run("tc", &netem);
                    }
                }
            }
        }
    }

    /// Packets that came in at the client's end.
    fn packets() -> u64 {
        let path =
            format!("/sys/class/net/{}/statistics/rx_packets", variable("DAFS_RDMA_INTERFACE"));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    fn cut_for(cut: Cut, time: Duration, timeout: Duration) -> Told {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let (daemon, content) = server(&[]);
        let client = client(&daemon, timeout);
        let file = client.open("file").unwrap();
        let before = packets();
        assert!(read_to_end(&file, MIB) == content);
        assert!(packets() > before + 100, "the cable is not used");
        becomes_one_sided(&client, &file, Duration::from_secs(10));
        let done = AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read_until(&file, &content, &done, seed));
            std::thread::sleep(Duration::from_millis(300));
            cut.set(true);
            std::thread::sleep(time);
            cut.set(false);
            std::thread::sleep(Duration::from_secs(3));
            done.store(true, Ordering::Relaxed);
            reading.join().unwrap()
        });
        println!("{cut:?} cut for {time:?}: {told:?}");
        becomes_one_sided(&client, &file, Duration::from_secs(30));
        assert!(read_to_end(&file, MIB) == content);
        told
    }

    #[test]
    fn a_link_that_is_down_for_a_second_costs_no_read() {
        let told = cut_for(Cut::Interface, Duration::from_secs(1), Duration::from_secs(30));
        assert!(told.good > 0 && told.failed == 0, "{told:?}");
    }

    #[test]
    fn a_link_that_is_down_for_long_is_an_error_that_says_so() {
        let told = cut_for(Cut::Cable, Duration::from_secs(30), Duration::from_secs(8));
        assert!(told.good > 0 && told.failed > 0, "{told:?}");
        assert!(told.slowest < Duration::from_secs(20), "{told:?}");
        assert!(told.last_error.contains("gave up on") || told.last_error.contains("connect"));
    }

    fn losing(percent: &str, time: Duration) {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let (daemon, content) = server(&[]);
        let client = client(&daemon, Duration::from_secs(30));
        let file = client.open("file").unwrap();
        assert!(read_to_end(&file, MIB) == content);
        let interface = variable("DAFS_RDMA_INTERFACE");
        let netem = |action: &str| {
            run("tc", &["qdisc", action, "dev", &interface, "root", "netem", "loss", percent]);
        };
        netem("add");
        let done = AtomicBool::new(false);
        let (told, written) = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read_until(&file, &content, &done, seed));
            let other = create(&client, "other");
            let (begun, mut written) = (Instant::now(), Vec::new());
            while begun.elapsed() < time {
                let block = pattern(3 * PAGE, written.len() as u8);
                other.write_all_at(&block, written.len() as u64).unwrap();
                written.extend(block);
            }
            other.sync().unwrap();
            done.store(true, Ordering::Relaxed);
            (reading.join().unwrap(), written)
        });
        println!("{percent} lost: {told:?}, {} bytes written", written.len());
        run("tc", &["qdisc", "del", "dev", &interface, "root"]);
        assert!(told.good > 0 && told.failed == 0, "{told:?}");
        assert!(told.slowest < Duration::from_secs(30), "{told:?}");
        assert!(std::fs::read(daemon.tree().join("other")).unwrap() == written);
    }

    #[test]
    fn one_packet_in_a_hundred_is_lost() {
        losing("1%", Duration::from_secs(8));
    }

    #[test]
    fn one_packet_in_twenty_is_lost() {
        losing("5%", Duration::from_secs(8));
    }

    /// A queue pair, and the one that it is connected with, by their numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Pair {
        ours: u32,
        theirs: u32,
    }

    /// The queue pairs of a server's only client: that of messages, which is made first, and that of
    /// READs.
    fn pairs(daemon: &Daemon) -> [Pair; 2] {
        let of_server = |thread: u32| {
            let task = format!("/proc/{}/task/{thread}", daemon.pid());
            std::path::Path::new(&task).exists()
        };
        let mut pairs: Vec<_> = queue_pair_list()
            .into_iter()
            .filter(|pair| !pair.thread.is_some_and(of_server))
            .filter_map(|pair| Some(Pair { ours: pair.number, theirs: pair.theirs? }))
            .collect();
        pairs.sort_by_key(|pair| pair.ours);
        pairs.try_into().expect("two queue pairs")
    }

    /// Whether either of the two is still there.
    fn is_there(pair: Pair) -> bool {
        let numbers = [pair.ours, pair.theirs];
        queue_pair_list().iter().any(|of| numbers.contains(&of.number))
    }

    /// Nothing reaches either of two queue pairs any more, until this is dropped. What retries in vain
    /// is failed by its device; all others on the same cable go on.
    struct Silence;

    impl Silence {
        fn of(pair: Pair) -> Self {
            let silence = Self;
            let ends = [("DAFS_RDMA_INTERFACE", pair.theirs), ("DAFS_RDMA_PEER", pair.ours)];
            for (end, number) in ends {
                let end = variable(end);
                let tc = |args: &str| {
                    let args = args.replace("END", &end);
                    run("tc", &args.split(' ').collect::<Vec<_>>());
                };
                // Three bands for all there is, and one that leads nowhere.
                tc("qdisc add dev END root handle 1: prio bands 4");
                tc("qdisc add dev END parent 1:4 handle 4: netem loss 100%");
                // The queue pair that a packet is for stands in its transport header, after the headers
                // of IP and UDP: bytes 5 to 7 of that.
                tc(&format!(
                    "filter add dev END parent 1: protocol ip u32 \
                     match u32 {number:#x} 0xffffff at 32 flowid 1:4"
                ));
            }
            silence
        }
    }

    impl Drop for Silence {
        fn drop(&mut self) {
            for end in ["DAFS_RDMA_INTERFACE", "DAFS_RDMA_PEER"] {
                // Also where it was set up by half.
                let args = ["qdisc", "del", "dev", &variable(end), "root"];
                let _ = Command::new("tc").args(args).status();
            }
        }
    }

    /// A client under reads of both kinds, one of whose queue pairs is killed, and what came of them.
    struct Killed {
        daemon: Daemon,
        client: Client,
        file: File,
        content: Vec<u8>,
    }

    impl Killed {
        fn new() -> Self {
            let (daemon, content) = server(&[]);
            let client = client(&daemon, Duration::from_secs(30));
            let file = client.open("file").unwrap();
            assert!(read_to_end(&file, MIB) == content);
            becomes_one_sided(&client, &file, Duration::from_secs(10));
            Self { daemon, client, file, content }
        }

        /// Runs `meanwhile` under one-sided reads and under reads by RPC; what came of either.
        fn under_reads(&self, meanwhile: impl FnOnce()) -> [Told; 2] {
            let seed = fastrand::u64(..);
            println!("seed {seed}");
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _stop = common::Stop(&done);
                let reading = [Path::Auto, Path::Inline].map(|path| {
                    let (file, content, done) = (&self.file, &self.content, &done);
                    scope.spawn(move || read_until_by(file, content, done, seed, path))
                });
                std::thread::sleep(Duration::from_millis(300));
                meanwhile();
                done.store(true, Ordering::Relaxed);
                reading.map(|reading| reading.join().unwrap())
            })
        }

        /// Whether a page is read one-sidedly.
        fn is_one_sided(&self) -> bool {
            let report = self.file.read_at_by(&mut [0; PAGE], 0, Path::Auto);
            report.is_ok_and(|report| report.ordma == 1)
        }

        /// All is as it was before.
        fn is_well(&self) {
            assert!(read_to_end(&self.file, MIB) == self.content);
            let (bytes, by) = served(&self.client, || read_to_end(&self.file, MIB));
            assert!(bytes == self.content && by.rpcs == 0 && by.faults == 0, "{by:?}");
            let written = create(&self.client, "other");
            written.write_all_at(&self.content, 0).unwrap();
            written.sync().unwrap();
            assert!(std::fs::read(self.daemon.tree().join("other")).unwrap() == self.content);
        }
    }

    fn until(what: &str, within: Duration, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < within, "{what}: not within {within:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{what}: {:?}", begun.elapsed());
    }

    #[test]
    fn a_queue_pair_for_messages_is_killed_and_the_session_goes_on_with_another() {
        let killed = Killed::new();
        let [messages, reads] = pairs(&killed.daemon);
        let told = killed.under_reads(|| {
            let silence = Silence::of(messages);
            until("what was killed is gone", Duration::from_secs(30), || {
                !is_there(messages) && !is_there(reads)
            });
            until("reads are one-sided again", Duration::from_secs(30), || killed.is_one_sided());
            drop(silence);
        });
        println!("{told:?}");
        for told in &told {
            assert!(told.good > 0 && told.failed == 0, "{told:?}");
            assert!(told.slowest < Duration::from_secs(30), "{told:?}");
        }
        let counters = killed.client.counters();
        assert_eq!((counters.reconnects, counters.sessions_lost), (1, 0));
        assert!(pairs(&killed.daemon).iter().all(|pair| *pair != messages && *pair != reads));
        killed.is_well();
    }

    #[test]
    fn a_queue_pair_for_reads_is_killed_and_messages_go_on() {
        let killed = Killed::new();
        let [messages, reads] = pairs(&killed.daemon);
        let before = killed.client.counters();
        let told = killed.under_reads(|| {
            let silence = Silence::of(reads);
            until("reads go by RPC", Duration::from_secs(20), || {
                let now = killed.client.counters();
                now.rearming_pages > before.rearming_pages
            });
            // It is brought back in vain, and fails again, less and less often: each time a read waits.
            let before = killed.client.counters().fault(AccessFault::Unreachable);
            std::thread::sleep(Duration::from_secs(12));
            let faults = killed.client.counters().fault(AccessFault::Unreachable) - before;
            assert!((1..=4).contains(&faults), "{faults} reads waited in 12 s");
            drop(silence);
            until("reads are one-sided again", Duration::from_secs(20), || killed.is_one_sided());
        });
        println!("{told:?}");
        for told in &told {
            assert!(told.good > 0 && told.failed == 0, "{told:?}");
        }
        let [one_sided, by_rpc] = told;
        assert!(one_sided.slowest < Duration::from_secs(20), "{one_sided:?}");
        assert!(by_rpc.slowest < Duration::from_secs(2), "RPC goes on: {by_rpc:?}");
        assert_eq!(killed.client.counters().reconnects, 0);
        assert_eq!(pairs(&killed.daemon), [messages, reads], "the same, brought back");
        killed.is_well();
    }
}

//! A client that takes all it can get leaves enough for others.

use crate::common::process::Daemon;
use crate::common::raw::{Failure, NO_SLOT, Raw, connect_request};
use crate::common::{CLIENT, Kind, OTHER, Over, PAGE, TestServer, pattern};
use crate::wire::{PATIENCE, Rogue, Socket};
use dafs_client::blocking::Client;
use dafs_client::{Error, Path};
use dafs_keys::Protection;
use dafs_proto::{
    Buffer, ConnectRequest, Extent, Header, Op, OpenRequest, Placement, ReadRequest, StatsRequest,
    encode_message,
};
use ordma::Engine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LARGE: usize = 1 << 20;

fn counter(server: &TestServer, name: &str) -> u64 {
    let list = server.server().counters().list();
    list.into_iter().find(|(counter, _)| counter == name).expect("a counter").1
}

/// Lets time pass at the server while `f` runs.
fn ticking<T>(server: &TestServer, f: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                server.server().tick();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let result = f();
        drop(stop);
        result
    })
}

/// A client that asks for a large file to be placed into its memory, and takes nothing of it.
fn stopped_reader(server: &TestServer) -> Rogue {
    let mut rogue = Rogue::dial(server, CLIENT);
    let root = rogue.begin("data", None).unwrap().root;
    let open =
        OpenRequest { directory: root, name: b"large".to_vec(), access: 1, ..Default::default() };
    let open = rogue.call(&open).unwrap().open;
    let read = ReadRequest {
        open,
        extents: vec![Extent { offset: 0, length: LARGE as u64 }],
        placement: Placement::Direct.into(),
        buffers: vec![Buffer { tag: 1, address: 0, length: 2 << 20 }],
        ..ReadRequest::default()
    };
    rogue.say(&read);
    rogue
}

/// The sockets of this engine hold much less than the file.
#[test]
fn readers_that_stop_hold_up_nobodys_transfers() {
    let server = TestServer::start(Over::clear(Kind::Shm));
    let bytes = pattern(LARGE, 3);
    std::fs::write(server.tree().join("large"), &bytes).unwrap();
    let client = server.client();
    let file = client.open("large").unwrap();
    let mut buffer = vec![0; LARGE];
    let _stopped: Vec<_> = (0..31).map(|_| stopped_reader(&server)).collect();
    ticking(&server, || {
        let end = Instant::now() + PATIENCE;
        // For a moment there may be no permit.
        while let Err(error) = file.read_at_by(&mut buffer, 0, Path::Direct) {
            assert!(matches!(error, Error::Status { .. }), "{error}");
            assert!(Instant::now() < end, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(buffer == bytes);
        // From then on there are always some for others, and nothing has to go another way.
        let before = client.counters();
        for _ in 0..20 {
            file.read_at_by(&mut buffer, 0, Path::Direct).unwrap();
        }
        let after = client.counters();
        assert_eq!(after.direct_reads - before.direct_reads, 20);
        assert_eq!(after.direct_failed, before.direct_failed);
    });
}

/// However many a connection sends.
#[test]
fn one_connect_at_a_time_is_worked_on() {
    let server = TestServer::start(Over::clear(Kind::Tcp));
    let mut rogue = Rogue::dial(&server, CLIENT);
    let request = connect_request("data", Protection::None, None);
    let header = Header::request(Op::Connect, NO_SLOT, 0, 1);
    let head = encode_message(header, &request);
    const TIMES: usize = 300;
    // Cut off for it, or each of them is answered.
    let said = (0..TIMES).take_while(|_| rogue.say_raw(&head).is_ok()).count();
    let _answers = (0..said).take_while(|_| rogue.main.receive_frame().is_some()).count();
    assert_eq!(counter(&server, "op_connect"), 1);
    assert!(server.server().session_counts().0 <= 1);
    let mut honest = Rogue::session(&server, CLIENT, "data");
    honest.call(&StatsRequest {}).unwrap();
}

#[test]
fn a_client_that_takes_all_sessions_leaves_others_theirs() {
    let server = TestServer::start(Over::sealed(Kind::Tcp));
    let mut greedy = Vec::new();
    loop {
        let mut rogue = Rogue::dial(&server, CLIENT);
        match rogue.begin("data", None) {
            Ok(_) => greedy.push(rogue),
            Err(Failure::Status(status, why)) => {
                assert_eq!(status, dafs_proto::Status::TooManySessions, "{why}");
                break;
            }
            Err(Failure::Lost) => panic!("cut off"),
        }
    }
    let most = greedy.len();
    let others: Vec<_> = (0..most / 2 - 1)
        .map(|_| Client::connect_over(server.connector_of(OTHER), "data", server.options()))
        .map(|client| client.expect("others have their share"))
        .collect();
    others.iter().for_each(|client| drop(client.read_dir("/").unwrap()));
    assert_eq!(server.server().session_counts().0, most);
    // Those that it has had for longest are gone, and the others are not.
    greedy[0].call(&StatsRequest {}).unwrap_err();
    greedy[most - 1].call(&StatsRequest {}).unwrap();
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let server = TestServer::start(Over::clear(Kind::Tcp));
    let mut silent = Vec::new();
    // As many as there may be.
    let end = Instant::now() + PATIENCE;
    while server.server().link_count() < 200 {
        assert!(Instant::now() < end);
        let mut socket = Socket::dial(&server);
        socket.greet(None).unwrap();
        silent.push(socket);
        if silent.len() >= 200 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let mut honest = Rogue::dial(&server, CLIENT);
        match honest.begin("data", None) {
            Ok(_) => return drop(honest.call(&StatsRequest {}).unwrap()),
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a server may take besides its cache.
const BESIDES: usize = 64 << 20;

#[test]
fn replies_that_nobody_takes_stay_within_the_budget() {
    const PAGES: u64 = 15;
    let daemon = Daemon::start(&["--protection", "none", "--memory", "64MiB"]);
    std::fs::write(daemon.tree().join("f"), pattern(PAGES as usize * PAGE, 3)).unwrap();
    let client = daemon.client("tcp");
    assert_eq!(client.open("f").unwrap().read_at(&mut [0; 100], 0).unwrap(), 100);
    let before = daemon.resident();
    let connector = ordma::tcp::Tcp::new(ordma::tcp::Settings::default()).connector(&daemon.tcp);
    let mut greedy = Vec::new();
    for _ in 0..100 {
        let raw = Raw::attach(&*connector, Protection::None).unwrap();
        let request = connect_request("data", Protection::None, None);
        let reply = raw.begin_with(&ConnectRequest { slots: 64, ..request }).unwrap();
        let open = OpenRequest {
            directory: reply.root,
            name: b"f".to_vec(),
            access: 1,
            ..OpenRequest::default()
        };
        let open = raw.call(&open, &[]).unwrap().0.open;
        greedy.push((raw, open, u16::try_from(reply.slots).unwrap()));
    }
    for sequence in 1..60 {
        for (raw, open, slots) in &greedy {
            let extents = vec![Extent { offset: 0, length: PAGES * PAGE as u64 }];
            let read = ReadRequest { open: *open, extents, ..ReadRequest::default() };
            // The first slot was used to open the file.
            let said = |slot| raw.say(&read, slot, sequence + u32::from(slot == 0));
            let _all = (0..*slots).all(said);
        }
        assert!(client.metadata("f").is_ok(), "others are served");
        let resident = daemon.resident();
        assert!(resident < (64 << 20) + BESIDES, "{resident} bytes, {before} before");
    }
    let peak = daemon.peak();
    drop(greedy);
    // What was needed is given back.
    let end = Instant::now() + Duration::from_secs(60);
    while daemon.resident() > before + (8 << 20) {
        let resident = daemon.resident();
        assert!(Instant::now() < end, "{resident} bytes, {peak} at most, {before} before");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{before} bytes before, {peak} at most, {} after", daemon.resident());
}

//! Which engine is taken, and what is said about it.

mod common;

use common::{Server, options};
use dafs_client::blocking::Client;
use dafs_client::{Connectors, Location, Options, Protection, Result};
use ordma::rdma::DeviceInfo;
use std::cell::RefCell;

/// What this thread's test connects to.
#[derive(Clone)]
struct World {
    tcp: Server,
    shm: Server,
    verbs: Server,
    /// The RDMA devices of the client's host, and whether they are up.
    devices: std::result::Result<Vec<(&'static str, bool)>, &'static str>,
    /// Where nobody listens on `verbs`.
    silent: &'static str,
    /// Where `verbs` was tried.
    tried: Vec<String>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    /// One server behind everything, on another host than the client, which has no RDMA device.
    fn new() -> Self {
        let server = Server::new();
        Self {
            tcp: server.clone(),
            shm: server.clone(),
            verbs: server,
            devices: Ok(Vec::new()),
            silent: "",
            tried: Vec::new(),
        }
    }

    /// The same, with a device that reaches the server.
    fn with_device() -> Self {
        let world = Self { devices: Ok(vec![("rxe0", true)]), ..Self::new() };
        world.tcp.state().verbs_address = "10.9.9.1:7".into();
        world
    }

    fn connect(&self, location: &str) -> Result<Client> {
        WORLD.set(Some(self.clone()));
        let location: Location = location.parse()?;
        let connectors = Connectors {
            tcp: |_| world(|world| world.tcp.connector()),
            shm: |_| world(|world| world.shm.connector()),
            verbs: |address| {
                world(|world| {
                    world.tried.push(address.into());
                    let silent = address == world.silent;
                    if silent { refusing().connector() } else { world.verbs.connector() }
                })
            },
            devices: || world(|world| world.devices.clone().map(devices).map_err(Into::into)),
            ..Connectors::default()
        };
        let options = Options { protection: Protection::Sealed, ..options() };
        Client::connect_with(&location, options, connectors)
    }

    /// What is taken for a location, and where `verbs` was tried.
    #[track_caller]
    fn chosen(&self, location: &str) -> (String, Vec<String>) {
        let client = self.connect(location).unwrap();
        (client.path_choice().to_string(), world(|world| world.tried.clone()))
    }

    /// Why nothing can be taken, and where `verbs` was tried.
    #[track_caller]
    fn refused(&self, location: &str) -> (String, Vec<String>) {
        let error = self.connect(location).map(drop).expect_err("refused").to_string();
        (error, world(|world| world.tried.clone()))
    }
}

fn world<T>(with: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| with(world.as_mut().unwrap()))
}

fn devices(devices: Vec<(&str, bool)>) -> Vec<DeviceInfo> {
    let device = |(name, active): (&str, bool)| DeviceInfo {
        name: name.into(),
        active,
        mtu: 4096,
        reads_out: 16,
        reads_in: 16,
        work_requests: 1024,
        parts: 4,
        completions: 1024,
    };
    devices.into_iter().map(device).collect()
}

/// A server that no connection can be made to.
fn refusing() -> Server {
    let server = Server::new();
    server.state().refuse = true;
    server
}

/// A server of another boot.
fn other() -> Server {
    let server = Server::new();
    server.state().boot = 7;
    server
}

const AUTO: &str = "dafs://host/data?protection=none";
const VERBS: &str = "dafs://host/data?protection=none&engine=verbs";

#[test]
fn shared_memory_is_taken_where_the_same_server_is_behind_its_socket() {
    let socket = tempfile::NamedTempFile::new().unwrap();
    // Before RDMA.
    let world = World::with_device();
    world.tcp.state().shm_socket = socket.path().to_str().unwrap().into();
    let (choice, tried) = world.chosen(AUTO);
    assert!(choice.starts_with("shm: the server is on this host"), "{choice}");
    assert!(tried.is_empty());
    assert_eq!(world.tcp.state().sessions.len(), 0, "the client has ended");
    let client = world.connect(AUTO).unwrap();
    assert_eq!(world.tcp.state().sessions.len(), 1, "the session over tcp has ended");
    drop(client);
}

#[test]
fn rdma_is_taken_where_a_device_reaches_the_same_server() {
    let world = World::with_device();
    let (choice, tried) = world.chosen(AUTO);
    assert_eq!(choice, "verbs: RDMA device rxe0 reaches 10.9.9.1:7");
    assert_eq!(tried, ["10.9.9.1:7"]);
    let client = world.connect(AUTO).unwrap();
    assert_eq!(world.tcp.state().sessions.len(), 1, "the session over tcp has ended");
    drop(client);

    // The server listens on every device of its own.
    world.tcp.state().verbs_address = "0.0.0.0:20490".into();
    let devices = Ok(vec![("mlx5_0", true), ("mlx5_1", false), ("mlx5_2", true)]);
    let several = World { devices, ..world };
    let (choice, _) = several.chosen(AUTO);
    assert_eq!(choice, "verbs: one of the RDMA devices mlx5_0, mlx5_2 reaches host:20490");
}

#[test]
fn otherwise_tcp_is_taken_and_the_reasons_said() {
    let socket = tempfile::NamedTempFile::new().unwrap();
    let path = socket.path().to_str().unwrap();
    let check = |world: &World, no_shm: &str, no_verbs: &str| {
        let (choice, _) = world.chosen(AUTO);
        assert!(choice.starts_with("tcp: "), "{choice}");
        assert!(choice.contains(no_shm) && choice.contains(no_verbs), "{choice}");
    };
    let offering = |socket: &str, verbs: &str, world: World| {
        world.tcp.state().shm_socket = socket.into();
        world.tcp.state().verbs_address = verbs.into();
        world
    };
    let (no_shm, no_verbs) = ("offers no shared memory", "the server does not listen on verbs");
    check(&World::new(), no_shm, no_verbs);
    check(&offering("", "", World::with_device()), no_shm, no_verbs);
    check(&offering("/nowhere/socket", "", World::new()), "is not on this host", no_verbs);
    check(&offering(path, "", World { shm: other(), ..World::new() }), "another server", no_verbs);
    let refused = World { shm: refusing(), ..World::new() };
    check(&offering(path, "", refused), "memory is not usable: ", no_verbs);

    let with = |devices| offering("", "h:7", World { devices, ..World::new() });
    check(&with(Ok(vec![])), no_shm, "; no RDMA device on this host");
    check(&with(Ok(vec![("rxe0", false)])), no_shm, "; RDMA device rxe0 is down");
    let down = vec![("a", false), ("b", false)];
    check(&with(Ok(down)), no_shm, "; RDMA devices a, b are down");
    check(&with(Err("rdma-core is not installed")), no_shm, "; rdma-core is not installed");
    let told = offering("", "nonsense:", World::with_device());
    check(&told, no_shm, "verbs at \"nonsense:\", which is no address");
    let refused = World { verbs: refusing(), ..World::with_device() };
    check(&refused, no_shm, "; verbs is not usable: cannot connect to ");
    let elsewhere = World { verbs: other(), ..World::with_device() };
    check(&elsewhere, no_shm, "; at 10.9.9.1:7 on verbs is another server");
    assert_eq!(elsewhere.verbs.state().sessions.len(), 0, "its session has ended");
}

#[test]
fn an_engine_that_is_asked_for_is_taken_or_the_connection_fails() {
    let world = World::with_device();
    let taken = |location: &str| world.chosen(location).0;
    assert_eq!(taken("dafs://host/data?protection=none&engine=tcp"), "tcp: it was asked for");
    let location = "dafs://host/data?protection=none&engine=shm&socket=/s";
    assert_eq!(taken(location), "shm: it was asked for");
    // The server tells its socket.
    let location = "dafs://host/data?protection=none&engine=shm";
    let (error, _) = world.refused(location);
    assert!(error.ends_with(": the server offers no shared memory"), "{error}");
    let socket = tempfile::NamedTempFile::new().unwrap();
    world.tcp.state().shm_socket = socket.path().to_str().unwrap().into();
    assert_eq!(taken(location), "shm: it was asked for");

    // The location's address is the one of verbs, and nobody needs to listen on tcp.
    let alone = World { tcp: refusing(), ..world.clone() };
    let (choice, tried) = alone.chosen(VERBS);
    assert_eq!((&*choice, &*tried), ("verbs: it was asked for", &["host:20490".to_owned()][..]));
}

#[test]
fn where_verbs_listens_elsewhere_the_server_is_asked() {
    let world = World { silent: "host:20490", ..World::with_device() };
    let (choice, tried) = world.chosen(VERBS);
    assert_eq!(choice, "verbs: it was asked for");
    assert_eq!(tried, ["host:20490", "10.9.9.1:7"]);

    let check = |world: &World, why: &str| {
        let (error, tried) = world.refused(VERBS);
        assert!(error.starts_with("cannot connect to ") && error.contains(why), "{error}");
        tried
    };
    let world = World { verbs: refusing(), ..world };
    let tried = check(&world, "verbs is not usable: cannot connect to ");
    assert_eq!(tried, ["host:20490", "10.9.9.1:7"]);
    world.tcp.state().verbs_address.clear();
    assert_eq!(check(&world, "the server does not listen on verbs"), ["host:20490"]);
    // Nor is there anyone to ask.
    let alone = World { tcp: refusing(), ..world };
    assert_eq!(check(&alone, "refused by the test"), ["host:20490"]);
    // Without a device nothing is tried.
    let without = World { devices: Ok(Vec::new()), ..World::with_device() };
    assert!(check(&without, "no RDMA device on this host").is_empty());
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let location = "dafs://127.0.0.1:1/data?protection=none&engine=tcp";
    let error = Client::connect(location, Options::default()).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert_eq!(error.errno(), 113);
}

//! A server in this process, over any engine, and clients of it.

#![allow(dead_code, reason = "each test file uses its part")]

use dafs_client::blocking::{Client, File};
use dafs_client::{OpenOptions, Options, Path};
use dafs_keys::{HandleKey, Identity, Protection, Secret};
use dafsd::access::Access;
use dafsd::authorized::Authorized;
use dafsd::cache::{Cache, CacheConfig};
use dafsd::daemon::behind_handshake;
use dafsd::dispatch::Dispatcher;
use dafsd::exporter::Listeners;
use dafsd::runtime::Runtime;
use dafsd::server::{Export, Limits, Server, Settings};
use dafsd::session::SessionLimits;
use dafsd::sharing::{Boots, MachineBoot, time_of_start};
use dafsd::store::{LocalOptions, LocalStore, Store};
use ordma::arena::Geometry;
use ordma::secure::SecureConnector;
use ordma::sim::{Sim, World};
use ordma::{Connector, Engine, Listener, Service};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub mod process;
pub mod raw;

pub const PAGE: usize = 4096;

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sim,
    Tcp,
    Shm,
    #[cfg(feature = "device-tests")]
    Verbs,
}

impl Kind {
    /// Whether clients reach exported memory itself, and not only answers that are made of it.
    pub fn gives_memory(self) -> bool {
        !matches!(self, Self::Sim | Self::Tcp)
    }
}

/// The address of the RDMA device that `verbs` is tested on, without a port.
#[cfg(feature = "device-tests")]
pub fn rdma_address() -> String {
    std::env::var("DAFS_RDMA_ADDRESS").unwrap_or_else(|_| "10.9.9.1".to_owned())
}

/// What a suite runs over: an engine, and a protection level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    pub kind: Kind,
    pub protection: Protection,
}

impl Over {
    pub const fn sealed(kind: Kind) -> Self {
        Self { kind, protection: Protection::Sealed }
    }

    pub const fn clear(kind: Kind) -> Self {
        Self { kind, protection: Protection::None }
    }

    pub const fn keyed() -> Self {
        Self { kind: Kind::Tcp, protection: Protection::Keyed }
    }

    /// At the level that `DAFS_PROTECTION` names, `sealed` by default: for what takes long.
    pub fn chosen(kind: Kind) -> Self {
        let level = std::env::var("DAFS_PROTECTION");
        let level = level.map(|level| level.parse().expect("DAFS_PROTECTION"));
        Self { kind, protection: level.unwrap_or_default() }
    }
}

/// Makes tests out of functions that take what they run over: one for each engine at each protection
/// level that the engine can have.
#[macro_export]
macro_rules! over_every_engine {
    ($($name:ident),* $(,)?) => {
        use $crate::common::Kind;
        $crate::over_every_engine!(sim, Over::sealed(Kind::Sim), $($name),*);
        $crate::over_every_engine!(tcp, Over::sealed(Kind::Tcp), $($name),*);
        $crate::over_every_engine!(shm, Over::sealed(Kind::Shm), $($name),*);
        $crate::over_every_engine!(tcp_keyed, Over::keyed(), $($name),*);
        $crate::over_every_engine!(sim_none, Over::clear(Kind::Sim), $($name),*);
        $crate::over_every_engine!(tcp_none, Over::clear(Kind::Tcp), $($name),*);
        $crate::over_every_engine!(shm_none, Over::clear(Kind::Shm), $($name),*);
        #[cfg(feature = "device-tests")]
        $crate::over_every_engine!(verbs, Over::sealed(Kind::Verbs), $($name),*);
        #[cfg(feature = "device-tests")]
        $crate::over_every_engine!(verbs_none, Over::clear(Kind::Verbs), $($name),*);
    };
    ($module:ident, $over:expr, $($name:ident),*) => {
        mod $module {
            use super::*;
            $( #[test] fn $name() { super::$name($over); } )*
        }
    };
}

/// Numbers of identities.
pub const SERVER: u8 = 1;
pub const CLIENT: u8 = 2;
/// May use the export as well.
pub const OTHER: u8 = 3;
pub const STRANGER: u8 = 4;

pub fn identity(number: u8) -> Identity {
    Identity::from_secret(Secret::from_bytes([number; Secret::LEN]))
}

/// Lets two clients in, as the user that runs the tests.
fn access() -> Access {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let line = |number: u8, name: &str| {
        let key = identity(number).public();
        format!("{key} {name} exports=* uid={} gid={}\n", uid.as_raw(), gid.as_raw())
    };
    let text = line(CLIENT, "client") + &line(OTHER, "other");
    Access::of(Authorized::parse(&text, uid.is_root()).unwrap())
}

/// Sizes of a test's server.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub chunk_pages: usize,
    pub chunks: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { chunk_pages: 256, chunks: 8 }
    }
}

/// What a test's server is like.
#[derive(Clone, Debug)]
pub struct Setup {
    pub sizes: Sizes,
    /// The text of the file `authorized_clients`, if there is one. Without it there are two clients,
    /// and nothing can be reloaded, and fencing is not remembered.
    pub authorized: Option<String>,
    /// The exports. The files of `data` are in the directory `tree`.
    pub exports: &'static [&'static str],
}

impl Default for Setup {
    fn default() -> Self {
        Self { sizes: Sizes::default(), authorized: None, exports: &["data"] }
    }
}

/// A line of `authorized_clients`.
pub fn line(number: u8, name: &str, exports: &str, uid: u32) -> String {
    format!("{} {name} exports={exports} uid={uid}\n", identity(number).public())
}

/// Whoever fails stops the other one.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A running server and what it needs.
pub struct TestServer {
    pub over: Over,
    pub directory: tempfile::TempDir,
    pub world: Option<World>,
    pub running: Option<Running>,
    setup: Setup,
    address: String,
}

pub struct Running {
    pub server: Arc<Server>,
    pub cache: Arc<Cache>,
    listeners: Arc<Listeners>,
    pump: Option<ordma::sim::PumpId>,
}

impl TestServer {
    pub fn start(over: Over) -> Self {
        Self::with(over, Sizes::default())
    }

    pub fn with(over: Over, sizes: Sizes) -> Self {
        Self::set_up(over, Setup { sizes, ..Setup::default() })
    }

    pub fn set_up(over: Over, setup: Setup) -> Self {
        Self::made(over, setup, (over.kind == Kind::Sim).then(|| World::new(1)))
    }

    pub fn in_world(over: Over, sizes: Sizes, world: Option<World>) -> Self {
        Self::made(over, Setup { sizes, ..Setup::default() }, world)
    }

    fn made(over: Over, setup: Setup, world: Option<World>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = match over.kind {
            Kind::Sim => "server".to_owned(),
            Kind::Tcp => "127.0.0.1:0".to_owned(),
            Kind::Shm => directory.path().join("socket").to_str().unwrap().to_owned(),
            #[cfg(feature = "device-tests")]
            Kind::Verbs => format!("{}:0", rdma_address()),
        };
        let mut server = Self { over, directory, world, running: None, setup, address };
        for export in server.setup.exports {
            std::fs::create_dir(server.tree_of(export)).unwrap();
        }
        if let Some(text) = server.setup.authorized.clone() {
            server.authorize(&text);
        }
        server.run();
        server
    }

    /// Starts the server, at the address it had before if any.
    pub fn run(&mut self) {
        let geometry = Geometry::new(PAGE, self.setup.sizes.chunk_pages * PAGE).unwrap();
        let runtime = match self.over.kind {
            Kind::Sim => Runtime::inline(),
            _ => Runtime::start(3).unwrap(),
        };
        let pages = self.setup.sizes.chunks * self.setup.sizes.chunk_pages;
        let config = CacheConfig {
            geometry,
            budget: self.setup.sizes.chunks * geometry.chunk_len() + pages * 256,
            dirty_limit: pages * PAGE / 2,
            writeback_interval: Duration::from_secs(1),
            retire_patience: Duration::from_secs(2),
            disk_patience: Duration::from_secs(30),
        };
        let listeners = Arc::new(Listeners::default());
        let levels = self.setup.exports.iter().map(|_| self.over.protection);
        let boots = Arc::new(self.begin_boot());
        let cache = Cache::new(config, levels, listeners.clone(), runtime.clone(), boots).unwrap();
        let secret = Secret::from_bytes([7; Secret::LEN]);
        let exports = self.setup.exports.iter().map(|name| self.export(name, &secret)).collect();
        let settings = Settings {
            limits: Limits { page_size: PAGE, max_inline: 128 << 10, max_transfer: 2 << 20 },
            session: SessionLimits { slots: 64, opens: 1000, lease: Duration::from_secs(30) },
            max_sessions: 100,
            connect_timeout: Duration::from_secs(10),
            data_in_flight: 64 << 20,
            transfers: 16,
        };
        let world = self.world.clone();
        let clock: Box<dyn Fn() -> Instant + Send + Sync> = match world.clone() {
            Some(world) => Box::new(move || world.now()),
            None => Box::new(Instant::now),
        };
        let access = match &self.setup.authorized {
            None => access(),
            Some(_) => {
                let is_root = rustix::process::geteuid().is_root();
                let fenced = self.directory.path().join("fenced");
                Access::load(&self.authorized_clients(), &fenced, is_root).unwrap()
            }
        };
        let server =
            Server::new(settings, exports, access, Arc::clone(&cache), runtime.clone(), clock);
        let dispatcher: Arc<dyn Service> = Dispatcher::new(Arc::clone(&server));
        let service = match self.over.protection {
            Protection::None => dispatcher,
            _ => behind_handshake(dispatcher, &server, identity(SERVER)),
        };
        let engine = self.engine();
        let listener: Arc<dyn Listener> =
            engine.listen(&self.address, service, cache.arena()).unwrap();
        self.address = listener.address();
        listeners.add(engine.name(), listener);
        server.set_ready();
        let pump = world.map(|world| world.on_pump(Box::new(move || runtime.run_queued())));
        if self.over.kind != Kind::Sim {
            cache.start_background().unwrap();
        }
        self.running = Some(Running { server, cache, listeners, pump });
    }

    /// Begins a run of the server. What it records outlives it.
    fn begin_boot(&self) -> Boots {
        let state = self.directory.path().join("state");
        std::fs::create_dir_all(&state).unwrap();
        let machine = MachineBoot::now().unwrap();
        Boots::begin(&state, fastrand::u64(1..), time_of_start(), machine).unwrap()
    }

    fn export(&self, name: &str, secret: &Secret) -> Export {
        let options = LocalOptions {
            state: Some(self.directory.path().join("state")),
            ..LocalOptions::default()
        };
        let store = LocalStore::new(&self.tree_of(name), options).unwrap();
        Export {
            name: name.to_owned(),
            handles: HandleKey::derive(secret, &store.id()),
            store: Arc::new(store),
            read_only: false,
            protection: self.over.protection,
        }
    }

    fn authorized_clients(&self) -> PathBuf {
        self.directory.path().join("authorized_clients")
    }

    /// Writes the file `authorized_clients`, which the server [reads anew](Server::reload) when it
    /// is told to.
    pub fn authorize(&self, text: &str) {
        std::fs::write(self.authorized_clients(), text).unwrap();
    }

    pub fn engine(&self) -> Arc<dyn Engine> {
        match (self.over.kind, &self.world) {
            (Kind::Sim, Some(world)) => Arc::new(Sim::new(world)),
            (Kind::Sim, None) => unreachable!("sim has a world"),
            (Kind::Tcp, _) => Arc::new(ordma::tcp::Tcp::new(ordma::tcp::Settings::default())),
            (Kind::Shm, _) => Arc::new(ordma::shm::Shm::new(ordma::shm::Settings::default())),
            #[cfg(feature = "device-tests")]
            (Kind::Verbs, _) => {
                Arc::new(ordma::verbs::Verbs::new(ordma::verbs::Settings::default()))
            }
        }
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.running.as_ref().expect("the server runs").cache
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.running.as_ref().expect("the server runs").server
    }

    /// Requests that cost the file server work so far.
    pub fn handler_calls(&self) -> u64 {
        let counters = self.server().counters().list();
        counters.iter().find(|(name, _)| name == "handler_calls").expect("counted").1
    }

    /// Stops the server as a crash would: nothing is flushed.
    pub fn crash(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.listeners.stop();
        if let (Some(world), Some(pump)) = (&self.world, running.pump) {
            world.remove_pump(pump);
        }
        running.cache.close();
        assert!(running.server.runtime().stop(Duration::from_secs(20)));
    }

    /// Where the export's files are.
    pub fn tree(&self) -> PathBuf {
        self.tree_of("data")
    }

    /// Where the files of the export with this name are.
    pub fn tree_of(&self, export: &str) -> PathBuf {
        self.directory.path().join(if export == "data" { "tree" } else { export })
    }

    /// Where the server listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn connector(&self) -> Arc<dyn Connector> {
        self.connector_of(CLIENT)
    }

    /// Where the client with this identity connects, or anyone at level `none`.
    pub fn connector_of(&self, client: u8) -> Arc<dyn Connector> {
        let plain = self.engine().connector(&self.address);
        let (server, least) = (identity(SERVER).public(), self.over.protection);
        if least == Protection::None {
            return plain;
        }
        Arc::new(SecureConnector::new(plain, Arc::new(identity(client)), server, least))
    }

    pub fn options(&self) -> Options {
        Options {
            protection: self.over.protection,
            background: self.over.kind != Kind::Sim,
            timeout: Duration::from_secs(10),
            ..Options::default()
        }
    }

    pub fn client(&self) -> Client {
        self.client_with(self.options())
    }

    pub fn client_with(&self, options: Options) -> Client {
        Client::connect_over(self.connector(), "data", options).expect("connect")
    }

    /// Runs a future of the server's to its end.
    pub fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        let runtime = self.server().runtime().clone();
        runtime.run(async move {
            sender.send(future.await).unwrap();
        });
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(value) = receiver.recv_timeout(Duration::from_millis(1)) {
                return value;
            }
            assert!(Instant::now() < end, "the server's future does not end");
            if let Some(world) = &self.world {
                world.advance(Duration::from_millis(100));
            }
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Opens for reading and writing, and creates.
pub fn create(client: &Client, name: &str) -> File {
    let options = OpenOptions::new().read(true).write(true).create(true);
    client.open_with(name, options).expect("create")
}

/// Bytes that tell where they belong.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let word = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9) ^ u64::from(seed) << 56;
    (0..len).map(|i| word(i / 8).to_le_bytes()[i % 8]).collect()
}

/// Reads a file to its end with one read after the other, as `read(2)` would.
pub fn read_to_end(file: &File, block: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0xEE; block];
    loop {
        let n = file.read_at(&mut buffer, bytes.len() as u64).expect("read");
        if n == 0 {
            return bytes;
        }
        bytes.extend(&buffer[..n]);
    }
}

/// What a client did between two looks at its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub ordma: u64,
    pub rpc_pages: u64,
    pub rpcs: u64,
    pub faults: u64,
}

/// Runs `f` and says how its reads were served.
pub fn served<T>(client: &Client, f: impl FnOnce() -> T) -> (T, Served) {
    let before = client.counters();
    let value = f();
    let after = client.counters();
    let served = Served {
        ordma: after.ordma_pages - before.ordma_pages,
        rpc_pages: after.inline_pages + after.direct_pages
            - before.inline_pages
            - before.direct_pages,
        rpcs: after.inline_reads + after.direct_reads - before.inline_reads - before.direct_reads,
        faults: after.faults.iter().sum::<u64>() - before.faults.iter().sum::<u64>(),
    };
    (value, served)
}

/// Reads one page by whatever path.
pub fn read_page(file: &File, block: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let n = file.read_at_by(&mut page, block * PAGE as u64, Path::Auto).expect("read").bytes;
    page.truncate(n);
    page
}

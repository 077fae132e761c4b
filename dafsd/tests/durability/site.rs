//! The server on a [`Disk`], and clients of it, over the engine `sim`. What a server is made of is
//! in one place: [`Site::start`].

use super::PAGE;
use super::disk::Disk;
use super::store::{MemoryStore, identity_of};
use dafs_client::Options;
use dafs_client::blocking::Client;
use dafs_keys::{HandleKey, Protection, Secret};
use dafsd::access::Access;
use dafsd::authorized::Authorized;
use dafsd::cache::{Cache, CacheConfig};
use dafsd::dispatch::Dispatcher;
use dafsd::exporter::Listeners;
use dafsd::runtime::Runtime;
use dafsd::server::{Export, Limits, NotWritten, Server, Settings};
use dafsd::session::SessionLimits;
use dafsd::sharing::{Boots, MachineBoot};
use dafsd::store::{Store, StoreError};
use ordma::arena::Geometry;
use ordma::sim::{PumpId, Sim, World};
use ordma::{Engine, Listener, Service};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

const ADDRESS: &str = "server";
const EXPORT: &str = "data";
/// How long a session outlives its connection.
const LEASE: Duration = Duration::from_secs(30);
/// A chunk holds few pages, so that retiring chunks takes pages out of the cache.
const CHUNK_PAGES: usize = 8;
/// There is room for all pages of all files.
const CHUNKS: usize = 32;

/// A [`Place`] whose server runs, until this is dropped.
pub struct Site(Place);

/// A server, its disk and their world. Clones are the same place.
#[derive(Clone)]
pub struct Place {
    pub world: World,
    pub disk: Arc<Disk>,
    /// The server's state directory, and how often the machine was started. They outlive the server
    /// and the machine's power.
    state: Arc<TempDir>,
    machine: Arc<AtomicU8>,
    running: Arc<Mutex<Option<Running>>>,
}

#[derive(Clone)]
struct Running {
    server: Arc<Server>,
    cache: Arc<Cache>,
    listeners: Arc<Listeners>,
    pump: Arc<Mutex<Option<PumpId>>>,
    dead: Arc<AtomicBool>,
}

impl Site {
    /// A running server on an empty disk.
    pub fn new(seed: u64) -> Self {
        let (world, disk) = (World::new(seed), Arc::new(Disk::new(seed)));
        let state = Arc::new(tempfile::tempdir().expect("a state directory"));
        let place = Place { world, disk, state, machine: Arc::default(), running: Arc::default() };
        place.start();
        Self(place)
    }
}

impl Deref for Site {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Place {
    /// Starts the server.
    pub fn start(&self) {
        let geometry = Geometry::new(PAGE, CHUNK_PAGES * PAGE).expect("a geometry");
        let runtime = Runtime::inline();
        let config = CacheConfig {
            geometry,
            budget: CHUNKS * (geometry.chunk_len() + CHUNK_PAGES * 256),
            dirty_limit: CHUNKS * CHUNK_PAGES * PAGE,
            writeback_interval: Duration::from_secs(1),
            retire_patience: Duration::from_secs(2),
            disk_patience: Duration::from_secs(30),
        };
        let listeners = Arc::new(Listeners::default());
        let machine = MachineBoot([self.machine.load(Ordering::Relaxed); 16]);
        let boot = fastrand::u64(1..);
        let boots = Boots::begin(self.state.path(), boot, self.disk.now(), machine);
        let boots = Arc::new(boots.expect("the record of boots"));
        let levels = [Protection::None];
        let cache = Cache::new(config, levels, listeners.clone(), runtime.clone(), boots);
        let cache = cache.expect("memory for the cache");
        let dead = Arc::new(AtomicBool::new(false));
        let store = MemoryStore::new(Arc::clone(&self.disk), Arc::clone(&dead));
        let secret = Secret::from_bytes([7; Secret::LEN]);
        let export = Export {
            name: EXPORT.to_owned(),
            handles: HandleKey::derive(&secret, &store.id()),
            store: Arc::new(store),
            read_only: false,
            protection: Protection::None,
        };
        let settings = Settings {
            limits: Limits { page_size: PAGE, max_inline: 128 << 10, max_transfer: 2 << 20 },
            session: SessionLimits { slots: 16, opens: 1000, lease: LEASE },
            max_sessions: 1000,
            connect_timeout: Duration::from_secs(10),
            data_in_flight: 64 << 20,
            transfers: 16,
        };
        let access = Access::of(Authorized::parse("", false).expect("nobody"));
        let world = self.world.clone();
        let clock = Box::new(move || world.now());
        let server =
            Server::new(settings, vec![export], access, cache.clone(), runtime.clone(), clock);
        let dispatcher: Arc<dyn Service> = Dispatcher::new(Arc::clone(&server));
        let engine = Sim::new(&self.world);
        let listener: Arc<dyn Listener> =
            engine.listen(ADDRESS, dispatcher, cache.arena()).expect("listen");
        listeners.add(engine.name(), listener);
        server.set_ready();
        let pump = self.world.on_pump(Box::new(move || runtime.run_queued()));
        let pump = Arc::new(Mutex::new(Some(pump)));
        *lock(&self.running) = Some(Running { server, cache, listeners, pump, dead });
    }

    fn running(&self) -> Running {
        lock(&self.running).clone().expect("the server runs")
    }

    /// Ends the server at once: what its page cache holds is lost, what the kernel has stays.
    pub fn kill(&self) {
        let running = lock(&self.running).take();
        let Some(Running { server, cache, listeners, pump, dead }) = running else { return };
        dead.store(true, Ordering::Relaxed);
        if let Some(pump) = lock(&pump).take() {
            self.world.remove_pump(pump);
        }
        self.world.crash(ADDRESS);
        cache.close();
        server.runtime().stop(Duration::from_secs(20));
        drop((server, cache, listeners));
        self.disk.lose_server();
    }

    /// Ends the server and then the machine's power.
    pub fn lose_power(&self) {
        self.kill();
        self.machine.fetch_add(1, Ordering::Relaxed);
        self.disk.lose_power();
    }

    /// Ends the server in good order.
    ///
    /// # Errors
    /// Some data could not be made stable; the server has ended all the same.
    pub fn stop(&self) -> Result<(), NotWritten> {
        let running = self.running();
        assert!(running.server.drain(Duration::from_secs(10)), "requests do not end");
        let flushed = running.server.flush_and_kill(Duration::from_secs(20));
        running.listeners.stop();
        self.kill();
        flushed
    }

    /// A new client; each has a name of its own.
    pub fn client(&self, name: &str) -> Client {
        let connector = Sim::named(&self.world, name).connector(ADDRESS);
        let options = Options {
            protection: Protection::None,
            background: false,
            timeout: Duration::from_secs(3600),
            ..Options::default()
        };
        Client::connect_over(connector, EXPORT, options).expect("connect")
    }

    /// Cuts a client's machine off until its sessions have ended. The others renew theirs.
    pub fn end_lease(&self, name: &str, others: &[&Client]) {
        self.world.partition(name, LEASE + Duration::from_secs(20));
        for _ in 0..6 {
            self.world.advance(Duration::from_secs(10));
            others.iter().for_each(|client| client.tend());
            self.running().server.tick();
        }
    }

    /// Cuts a client's machine off for good: whatever it says does not arrive.
    pub fn silence(&self, name: &str) {
        self.world.partition(name, Duration::from_secs(1_000_000));
        self.world.advance(Duration::from_secs(15));
    }

    /// Writes a few pages back and takes them out of the page cache.
    ///
    /// # Errors
    /// The disk's.
    pub fn retire(&self) -> Result<(), StoreError> {
        let cache = Arc::clone(&self.running().cache);
        self.wait(async move { cache.retire_chunk().await.map(drop) })
    }

    /// Writes everything back and syncs it, as the server does by itself now and then.
    ///
    /// # Errors
    /// The disk's, of the last file that failed.
    pub fn flush(&self) -> Result<(), StoreError> {
        let cache = Arc::clone(&self.running().cache);
        self.wait(async move { cache.flush_all().await })
    }

    /// What commits a file on the server behind all clients' backs, where the caller is.
    pub fn commit_behind(&self, number: u64) -> impl FnOnce() + Send + 'static {
        let Running { cache, server, .. } = self.running();
        let (cache, runtime) = (cache, server.runtime().clone());
        move || {
            let Some(file) = cache.find(&identity_of(number)) else { return };
            runtime.run(async move {
                // Whoever asked for it is told; nobody here.
                drop(file.commit(dafs_proto::Extent::default()).await);
            });
        }
    }

    fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.running().server.runtime().run(async move {
            sender.send(future.await).expect("it is waited for");
        });
        for _ in 0..100 {
            if let Ok(value) = receiver.try_recv() {
                return value;
            }
            self.world.advance(Duration::from_millis(100));
        }
        panic!("the server's work does not end");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

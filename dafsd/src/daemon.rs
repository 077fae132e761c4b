//! Builds a server from its configuration, starts it and stops it.

use crate::access::{Access, AccessError};
use crate::admin::Admin;
use crate::cache::Cache;
use crate::config::{Config, ExportConfig, Listen};
use crate::dispatch::Dispatcher;
use crate::exporter::Listeners;
use crate::runtime::Runtime;
use crate::server::{Export, NotWritten, Server};
use crate::sharing::{Boots, BootsError, MachineBoot, time_of_start};
use crate::state::{SecretError, flags, load_secret};
use crate::store::{Descriptors, HandleReport, LocalOptions, LocalStore, Store, StoreError};
use dafs_keys::identity::IdentityError;
use dafs_keys::{HandleKey, Identity, Protection, PublicKey, Secret};
use ordma::arena::Geometry;
use ordma::secure::Gate;
use ordma::{Engine, LinkError, Service};
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long requests under way may take when the server stops, how long a disk may then take nothing,
/// and how long threads that wait for one are waited for.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
const DISK_PATIENCE: Duration = Duration::from_secs(4);
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// How often the server does what time asks for.
const TICK: Duration = Duration::from_secs(1);

/// Why the server does not start. Displayed with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error("state directory {path}: {error}; name another one with --state-dir")]
    State {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others can put files into the state directory, or take them away.
    #[error(
        "state directory {path} belongs to user {owner} and has mode {mode:04o}: others could put \
         keys and clients of theirs into it. Look what is in it, then chmod go-w it and give it to \
         the server's user; or name another one with --state-dir"
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// The user it belongs to.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Another server uses the state directory.
    #[error(
        "state directory {path} is in use by another dafsd{pid}: stop that one, or give this one \
         a directory of its own with --state-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other server's process, where it is known: ` (process 123)`.
        pid: String,
    },
    /// The server's secret cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// An export cannot be offered.
    #[error("export {name:?}: {error}")]
    Export {
        /// The export.
        name: String,
        /// Why not.
        error: StoreError,
    },
    /// It is not known who may connect.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The server cannot show who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The operator's commands cannot be listened for.
    #[error("commands of the operator, at {path}: {error}; name another one with --state-dir")]
    Admin {
        /// The state directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What the server knows of its earlier runs cannot be had.
    #[error(transparent)]
    Boots(#[from] BootsError),
    /// The kernel does not say which start of the machine this is.
    #[error("which start of the machine this is: {0}")]
    Machine(io::Error),
    /// The page cache cannot be made.
    #[error("page cache: {0}")]
    Cache(StoreError),
    /// There are no random numbers.
    #[error("random numbers: {0}")]
    Random(getrandom::Error),
    /// A thread cannot be started.
    #[error("starting a thread: {0}")]
    Thread(io::Error),
    /// An address cannot be listened at.
    #[error(transparent)]
    Listen(#[from] LinkError),
}

/// Gives the engine for an address.
pub type Engines<'a> = &'a dyn Fn(&Listen) -> Arc<dyn Engine>;

/// A running server.
#[derive(Debug)]
pub struct Daemon {
    server: Arc<Server>,
    listeners: Arc<Listeners>,
    sockets: Vec<PathBuf>,
    ticker: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    admin: Option<Admin>,
    identity: Option<Identity>,
    /// Held as long as the state directory is in use.
    _lock: File,
}

impl Daemon {
    /// Starts a server. When it returns, clients can connect.
    ///
    /// # Errors
    /// When something of the configuration cannot be had; nothing runs then.
    pub fn start(config: &Config, engines: Engines<'_>) -> Result<Self, StartError> {
        let descriptors = Descriptors::new(DescriptorShares::of(config).store);
        let lock = lock_state(&config.state_dir)?;
        let secret = load_secret(&config.state_dir)?;
        let mut exports = Vec::new();
        for export in &config.exports {
            exports.push(open_export(config, export, &descriptors, &secret)?);
        }
        let access = load_access(config)?;
        let identity = load_identity(config)?;
        let runtime = Runtime::start(config.workers).map_err(StartError::Thread)?;
        let listeners = Arc::new(Listeners::default());
        let levels = config.exports.iter().map(|export| export.protection);
        let boots = Arc::new(begin_boot(&config.state_dir)?);
        let cache =
            Cache::new(config.cache.clone(), levels, listeners.clone(), runtime.clone(), boots)
                .map_err(StartError::Cache)?;
        let clock = Box::new(Instant::now);
        let settings = config.settings.clone();
        let server = Server::new(settings, exports, access, Arc::clone(&cache), runtime, clock);
        // From here on, what has begun is stopped where something fails.
        let mut daemon = Self {
            server,
            listeners,
            sockets: Vec::new(),
            ticker: None,
            admin: None,
            identity,
            _lock: lock,
        };
        if let Err(error) = daemon.listen(config, engines, &cache) {
            daemon.listeners.stop();
            daemon.server.runtime().stop(LAST_PATIENCE);
            return Err(error);
        }
        daemon.server.set_ready();
        Ok(daemon)
    }

    fn listen(
        &mut self,
        config: &Config,
        engines: Engines<'_>,
        cache: &Arc<Cache>,
    ) -> Result<(), StartError> {
        let dispatcher: Arc<dyn Service> = Dispatcher::new(Arc::clone(&self.server));
        let service = match &self.identity {
            Some(identity) => behind_handshake(dispatcher, &self.server, identity.clone()),
            None => dispatcher,
        };
        let is_default = config.listen.is_none();
        for listen in config.listen.clone().unwrap_or_else(Config::default_listen) {
            let engine = engines(&listen);
            let address = match &listen {
                Listen::Tcp(address) | Listen::Verbs(address) => address.clone(),
                Listen::Shm(path) => path.to_string_lossy().into_owned(),
            };
            let listener = match engine.listen(&address, service.clone(), cache.arena()) {
                Ok(listener) => listener,
                Err(error) if is_default && matches!(listen, Listen::Shm(_)) => {
                    tracing::warn!(%error, "clients on this host will use tcp");
                    continue;
                }
                Err(LinkError::Listen { reason, .. }) => {
                    // Two engines may have the same address.
                    return Err(LinkError::Listen { address: listen.to_string(), reason }.into());
                }
                Err(error) => return Err(error.into()),
            };
            match listen {
                Listen::Tcp(_) => {}
                // With the port that it was given.
                Listen::Verbs(_) => self.server.set_verbs_address(listener.address()),
                Listen::Shm(path) => {
                    self.server.set_shm_socket(address);
                    self.sockets.push(path);
                }
            }
            self.listeners.add(engine.name(), listener);
        }
        cache.start_background().map_err(StartError::Thread)?;
        cache.start_pressure_watch().map_err(StartError::Thread)?;
        let (stop, stopped) = mpsc::channel();
        let server = Arc::clone(&self.server);
        let ticker = std::thread::Builder::new().name("dafs-tick".to_owned()).spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                server.tick();
            }
        });
        self.ticker = Some((stop, ticker.map_err(StartError::Thread)?));
        let failed = |error| StartError::Admin { path: config.state_dir.clone(), error };
        self.admin = Some(Admin::start(&config.state_dir, &self.server).map_err(failed)?);
        Ok(())
    }

    /// Where clients reach the server: `tcp:127.0.0.1:20490`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.addresses()
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Who the server is, where some export is guarded.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Stops: refuses what is new, finishes what is under way, makes everything stable, and lets go
    /// of the clients.
    ///
    /// # Errors
    /// When some data could not be made stable: it is lost.
    pub fn stop(mut self) -> Result<(), NotWritten> {
        if !self.server.drain(DRAIN_PATIENCE) {
            tracing::warn!("some requests are not done; their clients will ask again");
        }
        let flushed = self.server.flush_and_kill(DISK_PATIENCE);
        self.listeners.stop();
        if let Some(admin) = self.admin.take() {
            admin.stop();
        }
        for path in &self.sockets {
            remove_socket(path);
        }
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the thread that watches the time has panicked");
            }
        }
        if !self.server.runtime().stop(LAST_PATIENCE) {
            tracing::warn!("some threads still wait for a disk, and end with the process");
        }
        flushed
    }
}

fn remove_socket(path: &Path) {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "the socket stays");
    }
}

fn store_options(
    config: &Config,
    export: &ExportConfig,
    descriptors: &Arc<Descriptors>,
) -> LocalOptions {
    LocalOptions {
        read_only: export.read_only,
        owner: export.owner,
        descriptors: Arc::clone(descriptors),
        state: Some(config.state_dir.clone()),
        handle_table: config.handle_table,
    }
}

fn open_export(
    config: &Config,
    export: &ExportConfig,
    descriptors: &Arc<Descriptors>,
    secret: &Secret,
) -> Result<Export, StartError> {
    let ExportConfig { name, path, read_only, protection, owner: _ } = export.clone();
    let store = LocalStore::new(&path, store_options(config, export, descriptors))
        .map_err(|error| StartError::Export { name: name.clone(), error })?;
    match store.report() {
        HandleReport::Kernel => tracing::info!(export = name, handles = %store.report()),
        report => tracing::warn!(export = name, handles = %report),
    }
    let handles = HandleKey::derive(secret, &store.id());
    Ok(Export { name, store: Arc::new(store), read_only, protection, handles })
}

/// Puts a handshake before a service, after which the server knows who the client is. Clients that
/// no line of `authorized_clients` names are refused there.
pub fn behind_handshake(
    service: Arc<dyn Service>,
    server: &Arc<Server>,
    identity: Identity,
) -> Arc<dyn Service> {
    let (policy, clock) = (Arc::clone(server), Arc::clone(server));
    let policy = move |client: &PublicKey| policy.access().knows(client);
    let clock = Box::new(move || clock.now());
    Gate::new(service, Arc::new(identity), Arc::new(policy), Default::default(), clock)
}

/// Names of the exports that only some clients may use.
fn guarded(config: &Config) -> Vec<&str> {
    let exports = config.exports.iter().filter(|export| export.protection != Protection::None);
    exports.map(|export| &*export.name).collect()
}

fn load_access(config: &Config) -> Result<Access, StartError> {
    let is_root = rustix::process::geteuid().is_root();
    let fenced = config.state_dir.join("fenced");
    let access = Access::load(&config.authorized_clients, &fenced, is_root)?;
    if !guarded(config).is_empty() {
        let exports: Vec<&str> = config.exports.iter().map(|export| &*export.name).collect();
        access.advise(&exports);
    }
    Ok(access)
}

fn load_identity(config: &Config) -> Result<Option<Identity>, StartError> {
    if guarded(config).is_empty() {
        return Ok(None);
    }
    let identity = identity(&config.state_dir)?;
    tracing::info!(key = %identity.public(), "clients know this server by its public key");
    Ok(Some(identity))
}

/// The identity of the server of a state directory, which is made if there is none.
///
/// # Errors
/// The directory or the identity cannot be used or made.
pub fn identity(state_dir: &Path) -> Result<Identity, StartError> {
    make_state_dir(state_dir)?;
    let path = state_dir.join("identity");
    match OpenOptions::new().read(true).custom_flags(flags()).open(&path) {
        Ok(file) => Ok(Identity::read(file, &path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Identity::load_or_make(&path)?.0)
        }
        Err(error) => Err(IdentityError::Io { path, error }.into()),
    }
}

fn make_state_dir(path: &Path) -> Result<(), StartError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let metadata = made.and_then(|()| std::fs::metadata(path));
    let metadata = metadata.map_err(|error| StartError::State { path: path.to_owned(), error })?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let is_ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if !is_ours || mode & 0o022 != 0 {
        return Err(StartError::Exposed { path: path.to_owned(), owner, mode });
    }
    Ok(())
}

/// What a server of this configuration would do, line by line.
///
/// # Errors
/// When an export cannot be offered.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let mut lines = Vec::new();
    load_access(config)?;
    for export in &config.exports {
        let options = store_options(config, export, &Descriptors::new(1));
        let report = LocalStore::probe(&export.path, &options)
            .map_err(|error| StartError::Export { name: export.name.clone(), error })?;
        let ExportConfig { name, path, read_only, protection, .. } = export;
        let access = if *read_only { "read-only" } else { "read and write" };
        lines.push(format!(
            "export {name:?}: {}, {access}, protection {protection}; {report}",
            path.display()
        ));
    }
    match &config.listen {
        Some(listen) => {
            lines.extend(listen.iter().map(|address| format!("listen: {address}")));
            if listen.iter().any(|address| matches!(address, Listen::Verbs(_))) {
                lines.push(format!("RDMA devices: {}", rdma_devices()));
            }
        }
        None => lines.push("listen: the default places".to_owned()),
    }
    let cache = &config.cache;
    lines.push(format!(
        "page cache: {} MiB, pages of {} bytes",
        cache.budget >> 20,
        cache.geometry.page_size
    ));
    lines.push(format!("state directory: {}", config.state_dir.display()));
    lines.push(format!("authorized clients: {}", config.authorized_clients.display()));
    Ok(lines)
}

/// The devices that the engine `verbs` could use, in words.
fn rdma_devices() -> String {
    match ordma::rdma::devices() {
        Ok(devices) if devices.is_empty() => "none on this host".to_owned(),
        Ok(devices) => {
            let devices = devices.iter().map(|device| {
                let state = if device.active { "active" } else { "down" };
                format!("{} ({state}, MTU {})", device.name, device.mtu)
            });
            devices.collect::<Vec<_>>().join(", ")
        }
        Err(error) => error.to_string(),
    }
}

/// Begins a run of the server.
fn begin_boot(state: &Path) -> Result<Boots, StartError> {
    let boot = getrandom::u64().map_err(StartError::Random)?;
    let machine = MachineBoot::now().map_err(StartError::Machine)?;
    Ok(Boots::begin(state, boot, time_of_start(), machine)?)
}

/// Makes the state directory and takes it for this server alone, as long as the file is open.
fn lock_state(path: &Path) -> Result<File, StartError> {
    let failed = |error| StartError::State { path: path.to_owned(), error };
    make_state_dir(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(flags());
    let mut file = options.open(path.join("lock")).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only the message is the poorer without it.
            let _ = file.read_to_string(&mut pid);
            let pid = pid
                .trim()
                .parse::<u32>()
                .map_or_else(|_| String::new(), |pid| format!(" (process {pid})"));
            return Err(StartError::InUse { path: path.to_owned(), pid });
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Descriptors for what is neither a connection, a file of an export nor a chunk: logs and journals,
/// the state directory, listeners, event loops.
const OTHER_DESCRIPTORS: usize = 48;
/// Most descriptors of files of exports, where the configuration does not say. Each keeps memory of the
/// kernel's, and opening a file again takes a few microseconds.
const STORE_DESCRIPTORS: usize = 16_384;
/// Least descriptors of files of exports.
const LEAST_STORE_DESCRIPTORS: usize = 16;
/// Descriptors that a worker has open beside those that are kept.
const WORKER_DESCRIPTORS: usize = 2;

/// How the descriptors that the server may have are shared out, so that none of these takes what the
/// others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorShares {
    /// What the stores of all exports keep open.
    pub store: usize,
    /// What remains for connections.
    pub connections: usize,
}

impl DescriptorShares {
    /// Raises the limit as far as the system allows, and shares that out.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let Geometry { page_size, slots } = config.cache.geometry;
        let chunks = config.cache.budget.div_ceil((page_size * slots as usize).max(1));
        let workers = WORKER_DESCRIPTORS * config.workers;
        let shares = Self::share(limit, chunks, workers, config.descriptors);
        tracing::debug!(limit, ?shares, "descriptors");
        shares
    }

    fn share(limit: u64, chunks: usize, workers: usize, wanted: Option<usize>) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let free = limit.saturating_sub(chunks + OTHER_DESCRIPTORS);
        let workers = workers.min(free / 4);
        let store = wanted.unwrap_or(STORE_DESCRIPTORS);
        let store = store.min((free - workers) / 2).max(LEAST_STORE_DESCRIPTORS.min(store));
        Self { store, connections: free.saturating_sub(workers + store) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out() {
        let share = |limit, wanted| DescriptorShares::share(limit, 8, 16, wanted);
        let DescriptorShares { store, connections } = share(256, None);
        assert_eq!((store, connections), (92, 92));
        assert_eq!(share(1 << 20, None).store, STORE_DESCRIPTORS);
        assert_eq!(share(1 << 20, Some(7)).store, 7);
        assert_eq!(share(1024, Some(1 << 20)).store, (1024 - 56 - 16) / 2);
        // Too few for anything: it tries all the same.
        assert_eq!(share(32, None).store, LEAST_STORE_DESCRIPTORS);
        assert_eq!(share(u64::MAX, None).store, STORE_DESCRIPTORS);
    }

    #[test]
    fn a_state_directory_serves_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let lock = lock_state(&path).unwrap();
        let error = lock_state(&path).unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains("a/b") && error.contains(&pid), "{error}");
        assert!(error.contains("--state-dir"), "{error}");
        drop(lock);
        lock_state(&path).unwrap();
        let error = lock_state(Path::new("/proc/none")).unwrap_err().to_string();
        assert!(error.contains("/proc/none") && error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn a_state_directory_that_others_can_change_is_refused_by_name() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        lock_state(&path).unwrap();
        for mode in [0o777, 0o720, 0o1702] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = lock_state(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains(path.to_str().unwrap()) && error.contains("chmod"), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
            let error = lock_state(&path).unwrap_err().to_string();
            assert!(error.contains("user 1000"), "{error}");
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
        // A lock that is somebody else's file.
        let other = directory.path().join("other");
        std::fs::write(&other, "not a number of a process").unwrap();
        std::fs::remove_file(path.join("lock")).unwrap();
        symlink(&other, path.join("lock")).unwrap();
        lock_state(&path).unwrap_err();
        assert_eq!(std::fs::read(&other).unwrap(), b"not a number of a process");
        std::fs::remove_file(path.join("lock")).unwrap();
        lock_state(&path).unwrap();
    }

    #[test]
    fn an_identity_that_is_somebody_elses_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let first = identity(&path).unwrap().public();
        assert_eq!(identity(&path).unwrap().public(), first);
        std::fs::rename(path.join("identity"), directory.path().join("other")).unwrap();
        std::os::unix::fs::symlink("../other", path.join("identity")).unwrap();
        let error = identity(&path).unwrap_err().to_string();
        assert!(error.contains(path.join("identity").to_str().unwrap()), "{error}");
        // A pipe that nobody writes to.
        std::fs::remove_file(path.join("identity")).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path.join("identity"), pipe, mode, 0).unwrap();
        identity(&path).unwrap_err();
        // The public key does not go into what lies in its way.
        std::fs::remove_file(path.join("identity")).unwrap();
        std::fs::remove_file(path.join("identity.pub")).unwrap();
        std::fs::write(directory.path().join("precious"), "precious").unwrap();
        std::os::unix::fs::symlink("../precious", path.join("identity.pub")).unwrap();
        let second = identity(&path).unwrap().public();
        assert_ne!(second, first);
        assert_eq!(std::fs::read(directory.path().join("precious")).unwrap(), b"precious");
        let public = std::fs::read_to_string(path.join("identity.pub")).unwrap();
        assert_eq!(public.trim(), second.to_string());
    }

    /// What came back, head by head.
    #[derive(Default)]
    struct Replies(crate::sync::Mutex<Vec<Vec<u8>>>);

    impl ordma::Receiver for Replies {
        fn message(&self, head: &[u8], _: &[u8]) {
            self.0.lock().push(head.to_vec());
        }
        fn closed(&self, _: LinkError) {}
    }

    #[test]
    fn a_daemon_answers_over_tcp_and_stops() {
        use dafs_proto::{ConnectReply, ConnectRequest, Header, Op, Status, encode_message};
        use ordma::Interest;
        use prost::Message as _;

        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let export = format!("data={}", directory.path().display());
        let flags = <crate::config::Flags as clap::Parser>::parse_from([
            "dafsd",
            "--listen",
            "tcp:127.0.0.1:0",
            "--listen",
            "verbs:127.0.0.1:0",
            "--memory",
            "8MiB",
            "--protection",
            "none",
            "--export",
            &export,
            "--state-dir",
            state.to_str().unwrap(),
        ]);
        let config = Config::load(&flags).unwrap();
        // Stands in for the other engine, too.
        let tcp = || Arc::new(ordma::tcp::Tcp::new(ordma::tcp::Settings::default()));
        let daemon = Daemon::start(&config, &|_| tcp()).unwrap();
        let [address, verbs] = &daemon.addresses()[..] else { panic!("two addresses") };
        let address = address.strip_prefix("tcp:").unwrap();
        assert!(matches!(Daemon::start(&config, &|_| tcp()), Err(StartError::InUse { .. })));

        let replies = Arc::new(Replies::default());
        let patience = Duration::from_secs(10);
        let endpoint = tcp().connector(address).connect(replies.clone(), patience).unwrap();
        let request = ConnectRequest {
            version: dafs_proto::VERSION.into(),
            export: "data".into(),
            protection: 1,
            slots: 1000,
            ..ConnectRequest::default()
        };
        let header = Header::request(Op::Connect, 0xFFFF, 1, 0);
        endpoint.send(&encode_message(header, &request), &[]).unwrap();
        let end = Instant::now() + patience;
        while replies.0.lock().is_empty() && Instant::now() < end {
            let interest = Interest { messages: true, reads: false };
            endpoint.drive(interest, Duration::from_millis(100));
        }
        let head = replies.0.lock().remove(0);
        let (header, body) = Header::decode(&head).unwrap();
        assert_eq!((header.status, header.credits), (Status::Ok, 64));
        let reply = ConnectReply::decode(body).unwrap();
        assert_eq!(reply.boot, daemon.server().boot());
        assert_eq!(Some(&*reply.verbs_address), verbs.strip_prefix("tcp:"), "with its port");
        assert_eq!(daemon.server().session_counts(), (1, 0));
        daemon.stop().unwrap();
        lock_state(&state).unwrap();

        let listen = Some(vec![Listen::Verbs("256.0.0.1:1".to_owned())]);
        let error = Daemon::start(&Config { listen, ..config }, &|_| tcp()).unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on verbs:256.0.0.1:1: "), "{error}");
        lock_state(&state).unwrap();
    }
}

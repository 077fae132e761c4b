//! The configuration: file and flags, parsed into values that need no further checking.
//!
//! Every error names the field, its value, and what is allowed.

mod exports;
mod file;
mod listen;
mod units;

pub use exports::ExportConfig;
pub use file::{Command, Flags};
pub use listen::{DEFAULT_TCP, Listen};
pub use units::{ByteSize, Span, UnitError};

use crate::cache::CacheConfig;
use crate::server::{Limits, Settings};
use crate::session::SessionLimits;
use exports::exports;
use file::FileConfig;
use listen::parse_listen;
use ordma::FOOTER_LEN;
use ordma::arena::{DEFAULT_CHUNK_BYTES, Geometry};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file has not the form of a configuration.
    #[error("configuration file {path}: {error}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What and where.
        error: Box<toml::de::Error>,
    },
    /// A value is not allowed.
    #[error("{field} = {value}: {allowed}")]
    Value {
        /// The field, by the name it has in the file.
        field: String,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

fn refuse<T>(
    field: impl Into<String>,
    value: impl fmt::Display,
    allowed: impl Into<String>,
) -> Result<T, ConfigError> {
    let (field, value, allowed) = (field.into(), value.to_string(), allowed.into());
    Err(ConfigError::Value { field, value, allowed })
}

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, or `None` for the default places.
    pub listen: Option<Vec<Listen>>,
    /// Directory of what the server has to remember.
    pub state_dir: PathBuf,
    /// The file that says who may connect.
    pub authorized_clients: PathBuf,
    /// What to log.
    pub log: String,
    /// The page cache.
    pub cache: CacheConfig,
    /// Sessions and transfers.
    pub settings: Settings,
    /// Threads for work that may block.
    pub workers: usize,
    /// Threads of each engine that receive requests.
    pub rpc_threads: usize,
    /// Threads of the engine `tcp` that answer one-sided reads.
    pub agent_threads: usize,
    /// Bytes of receives that the engine `verbs` posts on a device, for all clients.
    pub receives: usize,
    /// Most descriptors that the stores of all exports keep open, where it is not left to the server.
    pub descriptors: Option<usize>,
    /// Use handle tables even where the kernel's handles can be used.
    pub handle_table: bool,
    /// What is offered. Never empty.
    pub exports: Vec<ExportConfig>,
}

impl Config {
    /// Reads the file that the flags name, if any, and puts the flags over it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::resolve(read_file(flags)?, flags)
    }

    /// The state directory alone, for commands that need no more.
    ///
    /// # Errors
    /// The file cannot be read, or there is no such directory to be had.
    pub fn state_dir(flags: &Flags) -> Result<PathBuf, ConfigError> {
        state_dir(read_file(flags)?.state_dir, flags)
    }

    fn resolve(file: FileConfig, flags: &Flags) -> Result<Self, ConfigError> {
        let listen = if flags.listen.is_empty() { file.listen } else { Some(flags.listen.clone()) };
        let cache = cache(&file.cache, flags)?;
        let log = flags.log.clone().or(file.log).unwrap_or_else(|| "info".to_owned());
        if let Err(error) = log.parse::<tracing_subscriber::EnvFilter>() {
            let allowed =
                format!("must be a level (error, warn, info, debug, trace) or a filter: {error}");
            return refuse("log", show(&log), allowed);
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let threads = &file.threads;
        let number = |field: &str, value: Option<u64>, default: u64, most: u64| {
            range(field, value.unwrap_or(default), 1, most).map(|value| value as usize)
        };
        let handles = file.store.handles.as_deref().unwrap_or("auto");
        if !matches!(handles, "auto" | "table") {
            return refuse("store.handles", show(handles), "must be \"auto\" or \"table\"");
        }
        let receives = file.sessions.receives.unwrap_or(ByteSize(16 << 20));
        let state_dir = state_dir(file.state_dir, flags)?;
        let authorized = flags.authorized_clients.clone().or(file.authorized_clients);
        Ok(Self {
            listen: listen.map(|listen| parse_listen(&listen)).transpose()?,
            authorized_clients: authorized.unwrap_or_else(|| state_dir.join("authorized_clients")),
            state_dir,
            log,
            settings: settings(&file.sessions, &file.transfers, flags, cache.geometry.page_size)?,
            cache,
            workers: number("threads.workers", threads.workers, (4 * cpus).clamp(4, 32), 1024)?,
            rpc_threads: number("threads.rpc", threads.rpc, 1, 256)?,
            agent_threads: number("threads.agents", threads.agents, 1, 256)?,
            receives: size("sessions.receives", receives, 1 << 20, 1 << 34)? as usize,
            descriptors: file
                .store
                .descriptors
                .map(|most| number("store.descriptors", Some(most), 1, 1 << 20))
                .transpose()?,
            handle_table: handles == "table",
            exports: exports(file.exports, flags)?,
        })
    }
}

fn show(text: &str) -> String {
    format!("{text:?}")
}

fn range(field: &str, value: u64, least: u64, most: u64) -> Result<u64, ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    refuse(field, value, format!("must be from {least} to {most}"))
}

fn size(field: &str, value: ByteSize, least: u64, most: u64) -> Result<u64, ConfigError> {
    if (least..=most).contains(&value.0) {
        return Ok(value.0);
    }
    let allowed = format!("must be from {} to {}", ByteSize(least), ByteSize(most));
    refuse(field, value, allowed)
}

fn time(
    field: &str,
    value: Option<Span>,
    default: u64,
    most: u64,
) -> Result<Duration, ConfigError> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(most));
    let value = value.unwrap_or(Span(Duration::from_secs(default)));
    if (least..=most).contains(&value.0) {
        return Ok(value.0);
    }
    refuse(field, value, format!("must be from {} to {}", Span(least), Span(most)))
}

/// The machine's memory.
fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

/// A quarter of the machine's memory, 1 GiB at most.
fn default_memory() -> u64 {
    (machine_memory() / 4).clamp(64 << 20, 1 << 30) >> 20 << 20
}

/// The budget of the cache, which the machine must have.
fn budget(memory: ByteSize) -> Result<u64, ConfigError> {
    let machine = machine_memory();
    if memory.0 > machine.max(1 << 30) {
        let (most, share) = (ByteSize(machine >> 20 << 20), ByteSize(machine >> 21 << 20));
        let allowed = format!(
            "must be less than this machine's memory, which is {most}; half of it, {share}, leaves \
             room for everything else"
        );
        return refuse("cache.memory", memory, allowed);
    }
    size("cache.memory", memory, 1 << 20, 1 << 44)
}

fn cache(section: &file::CacheSection, flags: &Flags) -> Result<CacheConfig, ConfigError> {
    let page = flags.page_size.or(section.page_size).unwrap_or(ByteSize(4096));
    if !matches!(page.0, 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000) {
        return refuse("cache.page_size", page, "must be 4KiB, 8KiB, 16KiB, 32KiB or 64KiB");
    }
    let memory = flags.memory.or(section.memory).unwrap_or_else(|| ByteSize(default_memory()));
    let memory = budget(memory)?;
    // Small budgets get small chunks, so that there are some to choose from.
    let default = ((memory / 4).max(1 << 20) >> 20 << 20).min(DEFAULT_CHUNK_BYTES as u64);
    let chunk = section.chunk.unwrap_or(ByteSize(default));
    let most = memory.min(1 << 30);
    let chunk_bytes = size("cache.chunk", chunk, page.0, most.max(1 << 20))? as usize;
    let geometry = match Geometry::new(page.0 as usize, chunk_bytes) {
        Ok(geometry) => geometry,
        Err(allowed) => return refuse("cache.chunk", chunk, allowed),
    };
    let dirty = section.dirty_limit.unwrap_or(ByteSize(memory / 4));
    let interval = section.writeback_interval;
    Ok(CacheConfig {
        geometry,
        budget: memory as usize,
        dirty_limit: size("cache.dirty_limit", dirty, page.0, memory / 2)? as usize,
        writeback_interval: time("cache.writeback_interval", interval, 5, 3600)?,
        retire_patience: time("cache.retire_patience", section.retire_patience, 5, 600)?,
        disk_patience: time("cache.disk_patience", section.disk_patience, 30, 600)?,
    })
}

fn settings(
    sessions: &file::SessionsSection,
    transfers: &file::TransfersSection,
    flags: &Flags,
    page_size: usize,
) -> Result<Settings, ConfigError> {
    let page = page_size as u64;
    // Every page brings its footer along.
    let with_footers = |bytes: u64| (bytes + bytes.div_ceil(page) * FOOTER_LEN as u64) as u32;
    let inline = transfers.max_inline.unwrap_or(ByteSize(64 << 10));
    let inline = size("transfers.max_inline", inline, page, 1 << 20)?;
    let direct = transfers.max_direct.unwrap_or(ByteSize((1 << 20) + (64 << 10)));
    let direct = size("transfers.max_direct", direct, inline, 16 << 20)?;
    let write_data = transfers.write_data.unwrap_or(ByteSize(32 << 20));
    let write_data = size("transfers.write_data", write_data, inline, 1 << 34)?;
    let slots = range("sessions.slots", sessions.slots.unwrap_or(64), 1, 1024)?;
    let lease = flags.lease.or(sessions.lease);
    Ok(Settings {
        limits: Limits {
            page_size,
            max_inline: with_footers(inline),
            max_transfer: with_footers(direct),
        },
        session: SessionLimits {
            slots: slots as u16,
            opens: range("sessions.max_opens", sessions.max_opens.unwrap_or(65_536), 1, 1 << 20)?
                as usize,
            lease: time("sessions.lease", lease, 30, 3600)?,
        },
        max_sessions: range("sessions.max", sessions.max.unwrap_or(1024), 1, 1 << 20)? as usize,
        connect_timeout: time("sessions.connect_timeout", sessions.connect_timeout, 10, 600)?,
        data_in_flight: write_data as usize,
        transfers: range("transfers.concurrent", transfers.concurrent.unwrap_or(32), 1, 4096)?
            as usize,
    })
}

fn read_file(flags: &Flags) -> Result<FileConfig, ConfigError> {
    let Some(path) = &flags.config else {
        return Ok(FileConfig::default());
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Form { path: path.clone(), error: Box::new(error) })
}

fn state_dir(of_file: Option<PathBuf>, flags: &Flags) -> Result<PathBuf, ConfigError> {
    flags.state_dir.clone().or(of_file).map_or_else(default_state_dir, Ok)
}

fn default_state_dir() -> Result<PathBuf, ConfigError> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(path) = variable("STATE_DIRECTORY") {
        return Ok(path);
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/dafs".into());
    }
    let home = || variable("HOME").map(|home| home.join(".local/state"));
    match variable("XDG_STATE_HOME").or_else(home) {
        Some(path) => Ok(path.join("dafs")),
        None => refuse("state_dir", "(none)", "must be given where $HOME is not set"),
    }
}

#[cfg(test)]
mod tests;

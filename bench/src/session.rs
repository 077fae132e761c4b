//! The client under measurement, and its reads and writes as rows.

mod reads;
mod writes;

pub(crate) use reads::{NullRpc, Reads};
pub(crate) use writes::Writes;

use crate::cli::Wait;
use crate::data;
use crate::error::{Context, Error, Result};
use crate::measure::{Block, ServerWork};
use crate::process::cpu_of;
use crate::server::FILE;
use crate::signals::Stop;
use dafs_client::blocking::{Client, File};
use dafs_client::ordma::Engine as _;
use dafs_client::ordma::shm::Shm;
use dafs_client::ordma::tcp::{Settings, Tcp};
use dafs_client::ordma::verbs::Verbs;
use dafs_client::{Connectors, Location, OpenOptions, Options, Path, Snapshot};
use std::fmt;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

/// Bytes read at a time in the first pass.
const FIRST_PASS: usize = 256 << 10;

/// The paths that reads take, in the order of rows.
pub(crate) const PATHS: [Path; 3] = [Path::Inline, Path::Direct, Path::Ordma];

/// The name of a path in results.
pub(crate) fn path_name(path: Path) -> &'static str {
    match path {
        Path::Auto => "auto",
        Path::Ordma => "ordma",
        Path::Inline => "inline",
        Path::Direct => "direct",
    }
}

/// A client with the file open.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    file: File,
    size: u64,
    /// The server's process, where its CPU time is of interest.
    server: Option<u32>,
}

/// What the first pass over the file took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstPass {
    time: Duration,
    pub(crate) served: Served,
}

impl fmt::Display for FirstPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Served { inline, direct, ordma } = self.served;
        let pages = inline + direct + ordma;
        let time = self.time.as_secs_f64();
        write!(
            f,
            "first pass: {pages} pages in {time:.3} s: inline {inline}, direct {direct}, \
             ordma {ordma}"
        )
    }
}

/// Pages by the path that served them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    inline: u64,
    direct: u64,
    ordma: u64,
}

impl Served {
    /// So many pages by one path.
    fn by(path: Path, pages: u64) -> Self {
        let none = Self { inline: 0, direct: 0, ordma: 0 };
        match path {
            Path::Inline => Self { inline: pages, ..none },
            Path::Direct => Self { direct: pages, ..none },
            Path::Ordma | Path::Auto => Self { ordma: pages, ..none },
        }
    }

    fn between(before: &Snapshot, after: &Snapshot) -> Self {
        Self {
            inline: after.inline_pages - before.inline_pages,
            direct: after.direct_pages - before.direct_pages,
            ordma: after.ordma_pages - before.ordma_pages,
        }
    }
}

impl Session {
    /// Connects to the server at `location`, whose process is `server`, with the identity in a file
    /// where one is needed.
    pub(crate) fn open(
        location: &str,
        identity: Option<&FilePath>,
        wait: Wait,
        server: Option<u32>,
    ) -> Result<Self> {
        let parsed = location.parse::<Location>().context(|| format!("location {location}"))?;
        let client = Client::connect_with(&parsed, options(identity), connectors(wait))
            .context(|| format!("connecting to {location}"))?;
        let file = client.open(FILE).context(|| format!("opening {FILE}"))?;
        let size = file.attr().context(|| format!("attributes of {FILE}"))?.size;
        Ok(Self { client, file, size, server })
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads the file from the beginning to the end: the server's cache and the client's references
    /// are warm afterwards.
    pub(crate) fn first_pass(&self, stop: &Stop) -> Result<FirstPass> {
        let (begun, before) = (Instant::now(), self.client.counters());
        let mut buffer = vec![0; FIRST_PASS];
        let mut offset = 0;
        while offset < self.size {
            stop.check()?;
            let length = FIRST_PASS.min(usize::try_from(self.size - offset).unwrap_or(FIRST_PASS));
            let buffer = &mut buffer[..length];
            self.file
                .read_exact_at(buffer, offset)
                .context(|| format!("first pass, offset {offset}"))?;
            data::check(buffer, offset)?;
            offset += length as u64;
        }
        let served = Served::between(&before, &self.client.counters());
        Ok(FirstPass { time: begun.elapsed(), served })
    }

    fn open_to_write(&self, name: &str) -> Result<File> {
        let options = OpenOptions::new().read(true).write(true);
        self.client.open_with(name, options).context(|| format!("opening {name}"))
    }

    /// A counter of the server's own.
    fn server_counter(&self, name: &str) -> Result<u64> {
        let counters = self.client.server_stats().context(|| "the server's counters".into())?;
        let found = counters.into_iter().find(|(counter, _)| counter == name);
        found.map(|(_, value)| value).ok_or_else(|| Error::Server(format!("has no counter {name}")))
    }

    /// Runs a block and notes what it cost the server.
    pub(crate) fn accounted(&self, run: impl FnOnce() -> Result<Block>) -> Result<Block> {
        const CALLS: &str = "handler_calls";
        let Some(server) = self.server else {
            return run();
        };
        let calls = self.server_counter(CALLS)?;
        let cpu = cpu_of(server)?;
        let block = run()?;
        let cpu = cpu_of(server)?.saturating_sub(cpu);
        let handler_calls = self.server_counter(CALLS)? - calls;
        Ok(Block { server: Some(ServerWork { cpu, handler_calls }), ..block })
    }

    /// Runs a block whose pages all have to be served by one path.
    fn served_by(
        &self,
        path: Path,
        row: &str,
        run: impl FnOnce() -> Result<Block>,
    ) -> Result<Block> {
        let before = self.client.counters();
        let block = run()?;
        let served = Served::between(&before, &self.client.counters());
        let pages = block.bytes / crate::floor::PAGE as u64;
        if served == Served::by(path, pages) {
            return Ok(block);
        }
        let Served { inline, direct, ordma } = served;
        let reason = format!(
            "of {pages} pages, {inline} were served inline, {direct} directly, {ordma} one-sidedly"
        );
        Err(Error::WrongPath { row: row.to_owned(), reason })
    }
}

fn options(identity: Option<&FilePath>) -> Options {
    Options {
        identity: identity.map(FilePath::to_owned),
        // So that no write commits on its way: the bench commits between blocks.
        retained_bytes: 1 << 30,
        // Room for the references of any file that fits into memory.
        directory_entries: 1 << 24,
        slots: 1024,
        ..Options::default()
    }
}

/// Where connections come from that wait like that.
fn connectors(wait: Wait) -> Connectors {
    match wait {
        Wait::Adaptive => Connectors::default(),
        Wait::Sleep => Connectors {
            tcp: |address| Tcp::new(sleeping()).connector(address),
            shm: |socket| Shm::new(sleeping()).connector(socket),
            verbs: |address| Verbs::new(sleeping()).connector(address),
            ..Connectors::default()
        },
    }
}

fn sleeping() -> Settings {
    Settings { spin: Duration::ZERO, ..Settings::default() }
}

//! The configuration as it is written, in a file and in flags. Nothing is checked here but the form.

use super::units::{ByteSize, Span};
use serde::Deserialize;
use std::path::PathBuf;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    pub listen: Option<Vec<String>>,
    pub state_dir: Option<PathBuf>,
    pub authorized_clients: Option<PathBuf>,
    pub log: Option<String>,
    pub cache: CacheSection,
    pub sessions: SessionsSection,
    pub transfers: TransfersSection,
    pub threads: ThreadsSection,
    pub store: StoreSection,
    #[serde(rename = "export")]
    pub exports: Vec<ExportSection>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSection {
    pub memory: Option<ByteSize>,
    pub page_size: Option<ByteSize>,
    pub chunk: Option<ByteSize>,
    pub dirty_limit: Option<ByteSize>,
    pub writeback_interval: Option<Span>,
    pub retire_patience: Option<Span>,
    pub disk_patience: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsSection {
    pub max: Option<u64>,
    pub receives: Option<ByteSize>,
    pub slots: Option<u64>,
    pub max_opens: Option<u64>,
    pub lease: Option<Span>,
    pub connect_timeout: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransfersSection {
    pub max_inline: Option<ByteSize>,
    pub max_direct: Option<ByteSize>,
    pub concurrent: Option<u64>,
    pub write_data: Option<ByteSize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadsSection {
    pub workers: Option<u64>,
    pub rpc: Option<u64>,
    pub agents: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    pub descriptors: Option<u64>,
    pub handles: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSection {
    pub name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub read_only: bool,
    pub protection: Option<String>,
    #[serde(rename = "as")]
    pub owner: Option<String>,
}

/// The DAFS server: offers directories to clients that read its memory directly.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(name = "dafsd", version, about)]
pub struct Flags {
    /// What to do in place of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration file; see dafsd.example.toml. Flags win over it.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Offer the directory PATH under NAME; `,ro` makes it read-only. May be repeated.
    #[arg(long = "export", value_name = "NAME=PATH[,ro]", global = true)]
    pub exports: Vec<String>,
    /// How the pages of exports are guarded that do not say so themselves: sealed (the default),
    /// keyed, or none, which is for trusted networks.
    #[arg(long, value_name = "LEVEL", global = true)]
    pub protection: Option<String>,
    /// Where to listen: tcp:HOST:PORT, verbs:HOST:PORT or shm:PATH. May be repeated; replaces what the
    /// file says.
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub listen: Vec<String>,
    /// Memory for the page cache, 1GiB for example.
    #[arg(long, value_name = "SIZE", global = true)]
    pub memory: Option<ByteSize>,
    /// Bytes of a page: 4KiB, 8KiB, 16KiB, 32KiB or 64KiB.
    #[arg(long, value_name = "SIZE", global = true)]
    pub page_size: Option<ByteSize>,
    /// How long a session outlives its connection, 30s for example.
    #[arg(long, value_name = "TIME", global = true)]
    pub lease: Option<Span>,
    /// Directory of what the server has to remember.
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Who may connect to exports that are guarded; authorized_clients in the state directory unless
    /// said otherwise.
    #[arg(long, value_name = "FILE", global = true)]
    pub authorized_clients: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,dafsd::cache=debug.
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

/// What to do in place of serving.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Check the configuration and the exported directories, report, and end.
    Check,
    /// Print the server's public key, for clients to know it by. It is made if there is none.
    Key,
    /// List the sessions of the server that runs on the state directory.
    Sessions {
        /// Print JSON, with whole keys and times in milliseconds.
        #[arg(long)]
        json: bool,
    },
    /// Fence a client off: it is refused from now on, also after a restart, and what is stored from
    /// now on cannot be read with the keys it has.
    Fence {
        /// Its name in authorized_clients.
        name: String,
    },
    /// Let a client in again that was fenced off.
    Unfence {
        /// Its name in authorized_clients.
        name: String,
    },
}

//! What an application may decide about a client.

use crate::directory::Replacement;
use crate::location::EngineChoice;
use crate::trust::FirstContact;
use dafs_keys::{Protection, PublicKey};
use dafs_proto::Credential;
use std::path::PathBuf;
use std::time::Duration;

/// How a client works. Every field has a default; a location's query overrides `engine`, `socket`,
/// `protection`, `server_key` and `credential`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The transport. Default [`EngineChoice::Auto`]: `shm` where the server is on this host, else
    /// `verbs` where an RDMA device reaches it, else `tcp`.
    pub engine: EngineChoice,
    /// The socket of the server's engine `shm` on this host. Default none: the server, asked over
    /// TCP, tells it.
    pub socket: Option<String>,
    /// The least protection level that is accepted. Default [`Protection::Sealed`].
    /// [`Protection::None`] is taken at its word: exports that are guarded then refuse.
    pub protection: Protection,
    /// The file with this client's key pair, for levels above `none`. Default: the environment
    /// variable `DAFS_IDENTITY`, else `dafs/identity` in `$XDG_CONFIG_HOME` or `~/.config`.
    pub identity: Option<PathBuf>,
    /// The file with the keys of servers. Default `known_servers` beside the identity.
    pub known_servers: Option<PathBuf>,
    /// The key that the server must have, if that is known beforehand; `known_servers` is neither
    /// read nor changed then. Default none.
    pub server_key: Option<PublicKey>,
    /// What to do with the key of a server that is not known yet. Default
    /// [`FirstContact::Refuse`].
    pub first_contact: FirstContact,
    /// Whom to act for, at servers that leave that to this client. Default none: as the server has
    /// it.
    pub credential: Option<Credential>,
    /// Most references held, about 64 bytes each (80 with Multi-Queue), taken as they come.
    /// Default 1 Mi, which covers 4 GiB of 4 KiB pages.
    pub directory_entries: usize,
    /// Which reference goes when the directory is full. Default [`Replacement::MultiQueue`].
    pub replacement: Replacement,
    /// Largest data part, in bytes and footers included, of a read that is served inline; larger
    /// ones are placed directly. Default 16 KiB; the server's limit holds too.
    pub inline_read: usize,
    /// Largest write, in bytes, whose data travels with the request; the server fetches larger ones
    /// from the caller's buffer. Default 16 KiB; the server's limit holds too.
    pub inline_write: usize,
    /// References of neighbouring cached pages to ask for with each read by RPC, 24 bytes each on
    /// the wire. Default 64.
    pub neighbours: u32,
    /// Bytes of writes, not yet on stable storage, that the client keeps to send again should the
    /// server lose them. A write that would exceed it commits first. Default 64 MiB.
    pub retained_bytes: usize,
    /// Request slots to ask for. Default 64; the server may give fewer.
    pub slots: u16,
    /// How long to try to reach the server, at the start and after a lost connection, before
    /// operations fail. Default 30 s.
    pub timeout: Duration,
    /// How long one attempt to connect may take. Default 5 s.
    pub connect_timeout: Duration,
    /// Whether a thread of the client's renews the lease, reports heat and handles what arrives
    /// while nobody waits. Default true. Without it somebody has to call
    /// [`blocking::Client::tend`](crate::blocking::Client::tend) well within the lease: for tests in
    /// virtual time.
    pub background: bool,
    /// A name for the server's logs. Default the program's name and process id.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            socket: None,
            protection: Protection::default(),
            identity: None,
            known_servers: None,
            server_key: None,
            first_contact: FirstContact::default(),
            credential: None,
            directory_entries: 1 << 20,
            replacement: Replacement::default(),
            inline_read: 16 << 10,
            inline_write: 16 << 10,
            neighbours: 64,
            retained_bytes: 64 << 20,
            slots: 64,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            background: true,
            name: default_name(),
        }
    }
}

fn default_name() -> String {
    let program = std::env::args_os().next().map(std::path::PathBuf::from);
    let stem = program.as_deref().and_then(std::path::Path::file_name);
    let stem = stem.map_or("dafs-client".into(), |name| name.to_string_lossy().into_owned());
    format!("{stem}[{}]", std::process::id())
}

/// How a read shall be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// One-sidedly where there is a reference, else by RPC, inline or direct by size.
    #[default]
    Auto,
    /// Like `Auto`; what could not be read one-sidedly shows in the report.
    Ordma,
    /// By RPC, the data in the reply; does not look at the directory.
    Inline,
    /// By RPC, the data placed into the caller's buffer; does not look at the directory.
    Direct,
}

/// When a write is on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stability {
    /// After a commit. Until then the client keeps the bytes, to send them again should the server
    /// lose them.
    #[default]
    Unstable,
    /// Data, and what is needed to find it, when the write returns.
    Data,
    /// Data and all attributes when the write returns.
    File,
}

impl From<Stability> for dafs_proto::Stability {
    fn from(stability: Stability) -> Self {
        match stability {
            Stability::Unstable => Self::Unstable,
            Stability::Data => Self::Data,
            Stability::File => Self::File,
        }
    }
}

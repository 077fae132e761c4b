//! Where the server listens.

use super::{Config, ConfigError, refuse, show};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the server listens unless it is told otherwise.
pub const DEFAULT_TCP: &str = "127.0.0.1:20490";
/// What an address looks like.
const ADDRESSES: &str = "tcp:HOST:PORT, verbs:HOST:PORT or shm:PATH";
/// Longest path of a Unix socket.
const MAX_SOCKET_PATH: usize = 107;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// The engine `tcp`, at `host:port`.
    Tcp(String),
    /// The engine `verbs`, at `host:port`, where the host is an address of an RDMA device's port, or a
    /// wildcard for those of all.
    Verbs(String),
    /// The engine `shm`, at the path of a socket.
    Shm(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((engine @ ("tcp" | "verbs"), address)) => {
                let (host, port) = address.rsplit_once(':').unwrap_or_default();
                if host.is_empty() || port.parse::<u16>().is_err() {
                    return Err(format!("must be {engine}:HOST:PORT with a port from 0 to 65535"));
                }
                check_host(engine, host, port)?;
                let address = address.to_owned();
                Ok(if engine == "tcp" { Self::Tcp(address) } else { Self::Verbs(address) })
            }
            Some(("shm", path)) => {
                if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH {
                    return Err(format!(
                        "must be shm:PATH with an absolute path of at most {MAX_SOCKET_PATH} bytes"
                    ));
                }
                Ok(Self::Shm(path.into()))
            }
            _ => Err(format!("must be {ADDRESSES}")),
        }
    }
}

/// Refuses what a resolver would take for a name, and never find: an IPv6 address without brackets, whose
/// colons cannot be told from the one before the port.
fn check_host(engine: &str, host: &str, port: &str) -> Result<(), String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok()) || !host.contains([':', '[', ']'])
    {
        return Ok(());
    }
    // Of `tcp:::1:PORT` people leave out a colon.
    let meant = [host.to_owned(), format!(":{host}")];
    let meant = meant.iter().find_map(|host| host.parse::<Ipv6Addr>().ok());
    let meant = meant.unwrap_or(Ipv6Addr::LOCALHOST);
    Err(format!("must have an IPv6 address in brackets: {engine}:[{meant}]:{port}"))
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Verbs(address) => write!(f, "verbs:{address}"),
            Self::Shm(path) => write!(f, "shm:{}", path.display()),
        }
    }
}

pub(super) fn parse_listen(listen: &[String]) -> Result<Vec<Listen>, ConfigError> {
    let mut parsed: Vec<Listen> = Vec::new();
    for text in listen {
        match text.parse() {
            Ok(address) if parsed.contains(&address) => {
                return refuse("listen", show(text), "must not be given twice");
            }
            Ok(address) => parsed.push(address),
            Err(allowed) => return refuse("listen", show(text), allowed),
        }
    }
    if parsed.is_empty() {
        return refuse("listen", "[]", format!("must name at least one {ADDRESSES}"));
    }
    Ok(parsed)
}

impl Config {
    /// The default places to listen at: one for other hosts to be asked for by name, and one for
    /// this host where a directory for its socket can be had. Not `verbs`: a device's port has no
    /// address that this host alone can reach.
    #[must_use]
    pub fn default_listen() -> Vec<Listen> {
        let mut listen = vec![Listen::Tcp(DEFAULT_TCP.to_owned())];
        let path = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(directory) if directory.is_dir() => directory.join("dafs-20490.sock"),
            _ => {
                let directory = Path::new("/run/dafs");
                match std::fs::create_dir_all(directory) {
                    Ok(()) => directory.join("20490.sock"),
                    Err(error) => {
                        tracing::info!(%error, path = %directory.display(), "no engine shm");
                        return listen;
                    }
                }
            }
        };
        listen.push(Listen::Shm(path));
        listen
    }
}

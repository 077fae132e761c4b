//! Where a server is: `dafs://host:port/export?engine=auto&protection=sealed`.

use crate::error::{Error, Result};
use dafs_keys::{Protection, PublicKey};
use dafs_proto::Credential;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What the name of a socket begins with in the file of known servers.
pub(crate) const SOCKET: &str = "shm:";
/// The port of a location that names none.
pub const DEFAULT_PORT: u16 = 20490;

/// Which transport to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// `shm` where the server is on this host and reachable by it; else `verbs` where this host has
    /// an RDMA device that reaches the server; else `tcp`.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// RDMA, at the location's host and port; where the server listens elsewhere, it is asked over
    /// TCP.
    Verbs,
    /// Shared memory with a server on this host; where its socket is not named, the server is asked
    /// for it over TCP.
    Shm,
}

/// A server and an export of it, with what the location's query says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Name or address of the server's host.
    pub host: String,
    /// Port, of TCP and of RDMA, which count their ports apart.
    pub port: u16,
    /// Name of the export.
    pub export: String,
    /// `engine=`.
    pub engine: Option<EngineChoice>,
    /// `socket=`: path of the server's socket for `shm`.
    pub socket: Option<String>,
    /// `protection=`.
    pub protection: Option<Protection>,
    /// `server_key=`.
    pub server_key: Option<PublicKey>,
    /// `uid=`, `gid=` and `groups=`.
    pub credential: Option<Credential>,
}

impl Location {
    /// The address for the engines `tcp` and `verbs`.
    #[must_use]
    pub fn address(&self) -> String {
        join(&self.host, self.port)
    }

    /// The address for the engine `verbs` that the server tells of. It means the location's host where
    /// its own is a wildcard. `None` where it is no address.
    pub(crate) fn verbs_address(&self, told: &str) -> Option<String> {
        let (host, port) = split_authority(told).ok()?;
        let is_wildcard = host.parse().is_ok_and(|host: IpAddr| host.is_unspecified());
        Some(join(if is_wildcard { &self.host } else { host }, port))
    }

    /// The server's name in the file of known servers: its address, or its socket where that is all
    /// that will be connected to.
    #[must_use]
    pub fn known_as(&self) -> String {
        match (self.engine, &self.socket) {
            (Some(EngineChoice::Shm), Some(socket)) => format!("{SOCKET}{socket}"),
            _ => self.address().to_ascii_lowercase(),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::InvalidArgument(format!(
                "location {text:?}: {why}; expected dafs://host[:port]/export\
                 [?engine=auto|tcp|verbs|shm&socket=/path&protection=sealed|keyed|none&server_key=KEY\
                 &uid=N&gid=N&groups=N,...]"
            ))
        };
        let rest = text
            .strip_prefix("dafs://")
            .ok_or_else(|| invalid("must begin with dafs://".into()))?;
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(a, b)| (a, b));
        let (authority, export) =
            rest.split_once('/').ok_or_else(|| invalid("names no export".into()))?;
        let export = export.trim_end_matches('/');
        if export.is_empty() {
            return Err(invalid("names no export".into()));
        }
        let (host, port) = split_authority(authority).map_err(invalid)?;
        let mut location = Self {
            host: host.into(),
            port,
            export: export.into(),
            engine: None,
            socket: None,
            protection: None,
            server_key: None,
            credential: None,
        };
        let mut user = User::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("engine", "auto") => location.engine = Some(EngineChoice::Auto),
                ("engine", "tcp") => location.engine = Some(EngineChoice::Tcp),
                ("engine", "verbs") => location.engine = Some(EngineChoice::Verbs),
                ("engine", "shm") => location.engine = Some(EngineChoice::Shm),
                ("socket", path) if path.starts_with('/') => location.socket = Some(path.into()),
                ("protection", level) => {
                    let level = level.parse().map_err(|error| invalid(format!("{error}")))?;
                    location.protection = Some(level);
                }
                ("server_key", key) => {
                    let key = key.parse().map_err(|error| invalid(format!("{error}")))?;
                    location.server_key = Some(key);
                }
                (name @ ("uid" | "gid" | "groups"), value) => {
                    user.set(name, value).map_err(invalid)?;
                }
                _ => return Err(invalid(format!("{pair:?} is not understood"))),
            }
        }
        location.credential = user.credential().map_err(invalid)?;
        Ok(location)
    }
}

/// What a query says of whom to act for.
#[derive(Default)]
struct User {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
}

impl User {
    fn set(&mut self, name: &str, value: &str) -> std::result::Result<(), String> {
        let id = |text: &str| {
            text.parse()
                .map_err(|_| format!("{name}={value}: {text:?} is no number of a user or group"))
        };
        match name {
            "uid" => self.uid = Some(id(value)?),
            "gid" => self.gid = Some(id(value)?),
            _ => {
                let groups = value.split(',').filter(|part| !part.is_empty()).map(id);
                self.groups = Some(groups.collect::<std::result::Result<_, _>>()?);
            }
        }
        Ok(())
    }

    fn credential(self) -> std::result::Result<Option<Credential>, String> {
        match (self.uid, self.gid, self.groups) {
            (None, None, None) => Ok(None),
            (Some(uid), Some(gid), groups) => {
                Ok(Some(Credential { uid, gid, groups: groups.unwrap_or_default() }))
            }
            _ => Err("uid= and gid= go together, and groups= with both".into()),
        }
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn split_authority(authority: &str) -> std::result::Result<(&str, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("an opening [ has no ]")?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(format!("{after:?} after the address")),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("names no host".into());
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(format!("{port:?} is no port from 1 to 65535")),
            Ok(port) => port,
        },
    };
    Ok((host, port))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dafs://{}/{}", self.address(), self.export)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_location_is_understood() {
        let location: Location =
            "dafs://server:7000/data/sub?engine=shm&socket=/run/dafs.sock&protection=none"
                .parse()
                .unwrap();
        assert_eq!(location.address(), "server:7000");
        assert_eq!(location.export, "data/sub");
        assert_eq!(location.engine, Some(EngineChoice::Shm));
        assert_eq!(location.socket.as_deref(), Some("/run/dafs.sock"));
        assert_eq!(location.known_as(), "shm:/run/dafs.sock");
        assert_eq!(location.protection, Some(Protection::None));
    }

    #[test]
    fn levels_keys_and_credentials_are_understood() {
        let key = PublicKey::from_bytes([7; 32]);
        let location: Location =
            format!("dafs://h/d?protection=keyed&server_key={key}&uid=5&gid=6&groups=7,8")
                .parse()
                .unwrap();
        assert_eq!(location.protection, Some(Protection::Keyed));
        assert_eq!(location.server_key, Some(key));
        let credential = Credential { uid: 5, gid: 6, groups: vec![7, 8] };
        assert_eq!(location.credential, Some(credential));
    }

    #[test]
    fn port_and_query_may_be_left_out_and_addresses_may_be_ipv6() {
        let location: Location = "dafs://[::1]/data".parse().unwrap();
        assert_eq!((location.host.as_str(), location.port), ("::1", DEFAULT_PORT));
        assert_eq!(location.to_string(), "dafs://[::1]:20490/data");
        assert_eq!(location.protection, None);
        let location: Location = "dafs://Server/data?socket=/run/dafs.sock".parse().unwrap();
        assert_eq!(location.known_as(), "server:20490");
    }

    #[test]
    fn verbs_has_the_address_of_tcp_or_the_one_that_the_server_tells() {
        let location: Location = "dafs://Server:7/data?engine=verbs&socket=/s".parse().unwrap();
        assert_eq!(location.engine, Some(EngineChoice::Verbs));
        assert_eq!(location.known_as(), "server:7");
        for (told, address) in [
            ("10.0.0.1:8", Some("10.0.0.1:8")),
            ("0.0.0.0:8", Some("Server:8")),
            ("[::]:7", Some("Server:7")),
            ("[fd00::1]:7", Some("[fd00::1]:7")),
            ("", None),
            ("0.0.0.0:0", None),
            ("[::", None),
        ] {
            assert_eq!(location.verbs_address(told).as_deref(), address, "{told}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("http://a/b", "must begin with dafs://"),
            ("dafs://host", "names no export"),
            ("dafs://host/", "names no export"),
            ("dafs:///data", "names no host"),
            ("dafs://host:0/data", "is no port"),
            ("dafs://host:x/data", "is no port"),
            ("dafs://[::1/data", "has no ]"),
            ("dafs://h/data?engine=rdma", "\"engine=rdma\" is not understood"),
            ("dafs://h/data?socket=relative", "is not understood"),
            ("dafs://h/data?protection=paper", "must be \"sealed\", \"keyed\" or \"none\""),
            ("dafs://h/data?server_key=abc", "is no public key"),
            ("dafs://h/data?uid=0", "go together"),
            ("dafs://h/data?groups=5", "go together"),
            ("dafs://h/data?uid=x&gid=0", "\"x\" is no number"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

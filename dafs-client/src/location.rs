//! Where a server is: `dafs://host:port/export?engine=auto&protection=none`.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The port of a location that names none.
pub const DEFAULT_PORT: u16 = 20490;

/// Which transport to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// `shm` where the server is on this host and reachable by it, else `tcp`.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// Shared memory with a server on this host.
    Shm,
}

/// A protection level. This version knows `none` alone; it must be asked for by name, so that
/// nobody goes unprotected by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// No authentication and no encryption: for networks where every host is trusted.
    None,
}

/// A server and an export of it, with what the location's query says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Name or address of the server's host.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name of the export.
    pub export: String,
    /// `engine=`.
    pub engine: Option<EngineChoice>,
    /// `socket=`: path of the server's socket for `shm`.
    pub socket: Option<String>,
    /// `protection=`.
    pub protection: Option<Protection>,
}

impl Location {
    /// The address for the engine `tcp`.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Says that no protection level was named, and how to name one.
pub(crate) fn unprotected() -> Error {
    Error::Protection(
        "this version offers only the protection level none (no authentication, no encryption), \
         which must be asked for by name: add ?protection=none to the location, or set \
         Options::protection"
            .into(),
    )
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::InvalidArgument(format!(
                "location {text:?}: {why}; expected dafs://host[:port]/export[?engine=auto|tcp|shm\
                 &socket=/path&protection=none]"
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
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("engine", "auto") => location.engine = Some(EngineChoice::Auto),
                ("engine", "tcp") => location.engine = Some(EngineChoice::Tcp),
                ("engine", "shm") => location.engine = Some(EngineChoice::Shm),
                ("socket", path) if path.starts_with('/') => location.socket = Some(path.into()),
                ("protection", "none") => location.protection = Some(Protection::None),
                ("protection", "keyed" | "sealed") => {
                    return Err(Error::Protection(format!(
                        "location {text:?}: this version offers only protection=none"
                    )));
                }
                _ => return Err(invalid(format!("{pair:?} is not understood"))),
            }
        }
        Ok(location)
    }
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
        assert_eq!(location.protection, Some(Protection::None));
    }

    #[test]
    fn port_and_query_may_be_left_out_and_addresses_may_be_ipv6() {
        let location: Location = "dafs://[::1]/data".parse().unwrap();
        assert_eq!((location.host.as_str(), location.port), ("::1", DEFAULT_PORT));
        assert_eq!(location.to_string(), "dafs://[::1]:20490/data");
        assert_eq!(location.protection, None);
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
            ("dafs://h/data?engine=verbs", "\"engine=verbs\" is not understood"),
            ("dafs://h/data?socket=relative", "is not understood"),
            ("dafs://h/data?protection=sealed", "only protection=none"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

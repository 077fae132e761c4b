//! Choosing an engine and making the first connection.

use crate::error::{Error, Result};
use crate::location::{EngineChoice, Location};
use crate::ops::Core;
use crate::options::Options;
use crate::secure;
use crate::session::{Grant, Owner, Session};
use crate::trust;
use dafs_keys::{Identity, Protection, PublicKey};
use ordma::rdma::DeviceInfo;
use ordma::{Connector, Engine, LinkError};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Which engine a client uses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathChoice {
    /// The engine's name: `tcp`, `verbs`, `shm`.
    pub engine: String,
    /// One sentence for people, without a full stop.
    pub why: String,
}

impl PathChoice {
    fn new(engine: &str, why: impl Into<String>) -> Self {
        Self { engine: engine.into(), why: why.into() }
    }
}

impl fmt::Display for PathChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.engine, self.why)
    }
}

/// Where connections come from.
#[derive(Clone, Copy, Debug)]
pub struct Connectors {
    /// To a `host:port` by TCP.
    pub tcp: fn(&str) -> Arc<dyn Connector>,
    /// To a `host:port` by RDMA.
    pub verbs: fn(&str) -> Arc<dyn Connector>,
    /// What RDMA devices this host has, or why that cannot be told.
    pub devices: fn() -> std::result::Result<Vec<DeviceInfo>, String>,
    /// To a server's socket on this host, by shared memory.
    pub shm: fn(&str) -> Arc<dyn Connector>,
    /// Makes connections begin with a handshake, for levels above `none`: this client's identity,
    /// the server's key, and the least level.
    pub secure: Secure,
    /// Asks a server for its public key, which nothing proves yet.
    pub ask_key: fn(&dyn Connector, Duration) -> std::result::Result<PublicKey, LinkError>,
}

/// See [`Connectors::secure`].
pub type Secure =
    fn(Arc<dyn Connector>, Arc<Identity>, PublicKey, Protection) -> Arc<dyn Connector>;

impl Default for Connectors {
    fn default() -> Self {
        Self {
            tcp: |address| ordma::tcp::Tcp::new(ordma::tcp::Settings::default()).connector(address),
            verbs: |address| {
                ordma::verbs::Verbs::new(ordma::verbs::Settings::default()).connector(address)
            },
            devices: || ordma::rdma::devices().map_err(|error| error.to_string()),
            shm: |socket| ordma::shm::Shm::new(ordma::shm::Settings::default()).connector(socket),
            secure: secure::secure,
            ask_key: secure::ask_key,
        }
    }
}

/// Connects to what a location names.
pub(crate) fn connect(
    location: &Location,
    options: Options,
    connectors: Connectors,
) -> Result<(Core, PathChoice)> {
    let options = Options {
        engine: location.engine.unwrap_or(options.engine),
        socket: location.socket.clone().or(options.socket),
        protection: location.protection.unwrap_or(options.protection),
        server_key: location.server_key.or(options.server_key),
        credential: location.credential.clone().or(options.credential),
        ..options
    };
    let identity = match options.protection {
        Protection::None => None,
        Protection::Keyed | Protection::Sealed => Some(trust::identity(&options)?),
    };
    let (engine, socket) = (Some(options.engine), options.socket.clone());
    let location = &Location { engine, socket, ..location.clone() };
    let start = Start { location, options, identity, connectors };
    let asked_for = |engine| PathChoice::new(engine, "it was asked for");
    match start.options.engine {
        EngineChoice::Tcp => Ok((start.tcp()?, asked_for("tcp"))),
        EngineChoice::Verbs => Ok((start.verbs()?, asked_for("verbs"))),
        EngineChoice::Shm => Ok((start.shm()?, asked_for("shm"))),
        EngineChoice::Auto => start.best(),
    }
}

/// What first connections are made with.
struct Start<'a> {
    /// With the engine and the socket that the options name, where it names none.
    location: &'a Location,
    options: Options,
    /// For levels above `none`.
    identity: Option<Arc<Identity>>,
    connectors: Connectors,
}

impl Start<'_> {
    fn tcp(&self) -> Result<Core> {
        self.begin_known(&(self.connectors.tcp)(&self.location.address()))
    }

    /// By shared memory: at the socket that was named, or else where the server says that it is.
    fn shm(&self) -> Result<Core> {
        if let Some(socket) = &self.options.socket {
            return self.begin_known(&(self.connectors.shm)(socket));
        }
        let target = self.location.address();
        let over_shm = self.over_shm(&self.tcp()?);
        Ok(over_shm.map_err(|reason| LinkError::Connect { target, reason })?.0)
    }

    /// Over RDMA: at the location's address, or else where the server says that it listens.
    fn verbs(&self) -> Result<Core> {
        let target = self.location.address();
        let failed = |reason| LinkError::Connect { target: target.clone(), reason };
        self.devices().map_err(failed)?;
        match self.begin_known(&(self.connectors.verbs)(&target)) {
            Err(Error::Link(error)) => {
                let over_tcp = match self.tcp() {
                    Err(Error::Link(_)) => return Err(error.into()),
                    begun => begun?,
                };
                Ok(self.over_verbs(&over_tcp).map_err(failed)?.0)
            }
            begun => begun,
        }
    }

    /// Over the best engine that there is. The server is reached by TCP first, and says where else.
    fn best(&self) -> Result<(Core, PathChoice)> {
        let over_tcp = self.tcp()?;
        let no_shm = match self.over_shm(&over_tcp) {
            Ok((core, why)) => return Ok((core, PathChoice::new("shm", why))),
            Err(why) => why,
        };
        let no_verbs = match self.over_verbs(&over_tcp) {
            Ok((core, why)) => return Ok((core, PathChoice::new("verbs", why))),
            Err(why) => why,
        };
        Ok((over_tcp, PathChoice::new("tcp", format!("{no_shm}; {no_verbs}"))))
    }

    /// Begins a session with the location's server, which is known or becomes known now.
    fn begin_known(&self, plain: &Arc<dyn Connector>) -> Result<Core> {
        if self.identity.is_none() {
            return self.begin(plain, None);
        }
        let name = self.location.known_as();
        let timeout = self.options.connect_timeout.min(self.options.timeout);
        let ask = |timeout| (self.connectors.ask_key)(&**plain, timeout);
        let shown = || ask(timeout).map_err(Error::from);
        let expected = trust::expected(&name, &self.options, shown)?;
        let begun = plain.now();
        self.begin(plain, Some(expected.key)).map_err(|error| {
            // A server with another key cannot even read the first message: whether that is what
            // went wrong has to be asked.
            let left = timeout.saturating_sub(plain.now().saturating_duration_since(begun));
            let shown = match error {
                Error::Link(_) if !left.is_zero() => ask(left).ok(),
                _ => None,
            };
            shown.and_then(|shown| expected.changed(&name, shown)).map_or(error, Error::from)
        })
    }

    /// Begins a session with the server that has this key; without one, at level `none`.
    fn begin(&self, plain: &Arc<dyn Connector>, server: Option<PublicKey>) -> Result<Core> {
        let connector = match (&self.identity, server) {
            (Some(identity), Some(server)) => (self.connectors.secure)(
                Arc::clone(plain),
                Arc::clone(identity),
                server,
                self.options.protection,
            ),
            _ => Arc::clone(plain),
        };
        begin(connector, &self.location.export, self.options.clone())
    }

    /// A session by shared memory with the server that `over_tcp` reached. Says why there is one, or
    /// none.
    fn over_shm(&self, over_tcp: &Core) -> std::result::Result<(Core, String), String> {
        let socket = match self.options.socket.clone() {
            Some(socket) => socket,
            None => grant(over_tcp)?.shm_socket.clone(),
        };
        if socket.is_empty() {
            return Err("the server offers no shared memory".into());
        }
        if !Path::new(&socket).exists() {
            return Err(format!("the server's socket {socket} is not on this host"));
        }
        let core = self
            .same_server(over_tcp, &(self.connectors.shm)(&socket))
            .map_err(|error| format!("shared memory is not usable: {error}"))?
            .ok_or_else(|| format!("behind the socket {socket} is another server"))?;
        Ok((core, format!("the server is on this host, reached by {socket}")))
    }

    /// The same over RDMA.
    fn over_verbs(&self, over_tcp: &Core) -> std::result::Result<(Core, String), String> {
        let told = grant(over_tcp)?.verbs_address.clone();
        if told.is_empty() {
            return Err("the server does not listen on verbs".into());
        }
        let devices = self.devices()?;
        let address = self.location.verbs_address(&told).ok_or_else(|| {
            format!("the server says that it listens on verbs at {told:?}, which is no address")
        })?;
        let core = self
            .same_server(over_tcp, &(self.connectors.verbs)(&address))
            .map_err(|error| format!("verbs is not usable: {error}"))?
            .ok_or_else(|| format!("at {address} on verbs is another server"))?;
        Ok((core, format!("{devices} reaches {address}")))
    }

    /// The devices by which RDMA may go, or why there are none.
    fn devices(&self) -> std::result::Result<String, String> {
        let devices = (self.connectors.devices)()?;
        let (up, down): (Vec<_>, Vec<_>) = devices.iter().partition(|device| device.active);
        let names = |devices: &[&DeviceInfo]| {
            devices.iter().map(|device| &*device.name).collect::<Vec<_>>().join(", ")
        };
        match (&up[..], &down[..]) {
            ([], []) => Err("no RDMA device on this host".into()),
            ([], [one]) => Err(format!("RDMA device {} is down", one.name)),
            ([], many) => Err(format!("RDMA devices {} are down", names(many))),
            ([one], _) => Ok(format!("RDMA device {}", one.name)),
            (many, _) => Ok(format!("one of the RDMA devices {}", names(many))),
        }
    }

    /// A session over another engine with the very server that `over_tcp` reached, whose key is known:
    /// nobody is asked once more. `None` where another server answers.
    fn same_server(&self, over_tcp: &Core, plain: &Arc<dyn Connector>) -> Result<Option<Core>> {
        let tcp = over_tcp.owner.grant()?;
        let core = self.begin(plain, tcp.server_key)?;
        let other = core.owner.grant()?;
        let is_same = (other.boot, other.server_key) == (tcp.boot, tcp.server_key);
        Ok(is_same.then_some(core))
    }
}

/// What the server granted, where the error is for people.
fn grant(core: &Core) -> std::result::Result<Arc<Grant>, String> {
    core.owner.grant().map_err(|error| error.to_string())
}

/// Begins a session over a connector, which makes the handshake itself where the level needs one.
pub(crate) fn begin(connector: Arc<dyn Connector>, export: &str, options: Options) -> Result<Core> {
    let background = options.background;
    let session = Session::new(connector, export, options)?;
    session.connect()?;
    let owner = Owner::new(session, background)?;
    Ok(Core { owner })
}

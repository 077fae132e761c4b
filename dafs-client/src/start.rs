//! Choosing an engine and making the first connection.

use crate::error::{Error, Result};
use crate::location::{EngineChoice, Location};
use crate::ops::Core;
use crate::options::Options;
use crate::secure;
use crate::session::{Owner, Session};
use crate::trust;
use dafs_keys::{Identity, Protection, PublicKey};
use ordma::{Connector, Engine, LinkError};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Which engine a client uses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathChoice {
    /// The engine's name: `tcp`, `shm`.
    pub engine: String,
    /// One sentence for people, without a full stop.
    pub why: String,
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
    let asked_for =
        |engine: &str| PathChoice { engine: engine.into(), why: "it was asked for".into() };
    match start.options.engine {
        EngineChoice::Tcp => Ok((start.tcp()?, asked_for("tcp"))),
        EngineChoice::Shm => {
            let Some(socket) = &start.options.socket else {
                let what = "engine=shm needs the server's socket on this host: socket=/path";
                return Err(Error::InvalidArgument(what.into()));
            };
            let core = start.begin_known(&(connectors.shm)(socket))?;
            Ok((core, asked_for("shm")))
        }
        EngineChoice::Auto => {
            let over_tcp = start.tcp()?;
            let socket = match start.options.socket.clone() {
                Some(socket) => socket,
                None => over_tcp.owner.grant()?.shm_socket.clone(),
            };
            match start.same_host(&over_tcp, &socket) {
                Ok(over_shm) => {
                    let why = format!("the server is on this host, reached by {socket}");
                    Ok((over_shm, PathChoice { engine: "shm".into(), why }))
                }
                Err(why) => Ok((over_tcp, PathChoice { engine: "tcp".into(), why })),
            }
        }
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

    /// A connection by shared memory to the very server that `over_tcp` reached, or why there is
    /// none. That server's key is known: nobody is asked once more.
    fn same_host(&self, over_tcp: &Core, socket: &str) -> std::result::Result<Core, String> {
        if socket.is_empty() {
            return Err("the server offers no shared memory".into());
        }
        if !Path::new(socket).exists() {
            return Err(format!("the server's socket {socket} is not on this host"));
        }
        let grant = |core: &Core| core.owner.grant().map_err(|error| error.to_string());
        let tcp = grant(over_tcp)?;
        let over_shm = self
            .begin(&(self.connectors.shm)(socket), tcp.server_key)
            .map_err(|error| format!("shared memory is not usable: {error}"))?;
        let shm = grant(&over_shm)?;
        if (shm.boot, shm.server_key) != (tcp.boot, tcp.server_key) {
            return Err(format!("behind the socket {socket} is another server"));
        }
        Ok(over_shm)
    }
}

/// Begins a session over a connector, which makes the handshake itself where the level needs one.
pub(crate) fn begin(connector: Arc<dyn Connector>, export: &str, options: Options) -> Result<Core> {
    let background = options.background;
    let session = Session::new(connector, export, options);
    session.connect()?;
    let owner = Owner::new(session, background)?;
    Ok(Core { owner })
}

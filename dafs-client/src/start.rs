//! Choosing an engine and making the first connection.

use crate::error::{Error, Result};
use crate::location::{EngineChoice, Location, unprotected};
use crate::ops::Core;
use crate::options::Options;
use crate::session::{Owner, Session};
use ordma::{Connector, Engine};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

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
}

impl Default for Connectors {
    fn default() -> Self {
        Self {
            tcp: |address| ordma::tcp::Tcp::new(ordma::tcp::Settings::default()).connector(address),
            shm: |socket| ordma::shm::Shm::new(ordma::shm::Settings::default()).connector(socket),
        }
    }
}

/// Connects to what a location names.
pub(crate) fn connect(
    location: &Location,
    mut options: Options,
    connectors: Connectors,
) -> Result<(Core, PathChoice)> {
    options.engine = location.engine.unwrap_or(options.engine);
    options.socket = location.socket.clone().or(options.socket);
    options.protection = location.protection.or(options.protection);
    let export = &location.export;
    let tcp = || (connectors.tcp)(&location.address());
    match options.engine {
        EngineChoice::Tcp => {
            let core = begin(tcp(), export, options)?;
            let choice = PathChoice { engine: "tcp".into(), why: "it was asked for".into() };
            Ok((core, choice))
        }
        EngineChoice::Shm => {
            let Some(socket) = options.socket.clone() else {
                let what = "engine=shm needs the server's socket on this host: socket=/path";
                return Err(Error::InvalidArgument(what.into()));
            };
            let core = begin((connectors.shm)(&socket), export, options)?;
            let choice = PathChoice { engine: "shm".into(), why: "it was asked for".into() };
            Ok((core, choice))
        }
        EngineChoice::Auto => {
            let over_tcp = begin(tcp(), export, options.clone())?;
            let socket = match options.socket.clone() {
                Some(socket) => socket,
                None => over_tcp.owner.grant()?.shm_socket.clone(),
            };
            match same_host(&over_tcp, &socket, export, options, connectors) {
                Ok(over_shm) => {
                    let why = format!("the server is on this host, reached by {socket}");
                    Ok((over_shm, PathChoice { engine: "shm".into(), why }))
                }
                Err(why) => Ok((over_tcp, PathChoice { engine: "tcp".into(), why })),
            }
        }
    }
}

/// A connection by shared memory to the very server that `over_tcp` reached, or why there is none.
fn same_host(
    over_tcp: &Core,
    socket: &str,
    export: &str,
    options: Options,
    connectors: Connectors,
) -> std::result::Result<Core, String> {
    if socket.is_empty() {
        return Err("the server offers no shared memory".into());
    }
    if !Path::new(socket).exists() {
        return Err(format!("the server's socket {socket} is not on this host"));
    }
    let boot = |core: &Core| core.owner.grant().map(|grant| grant.boot).ok();
    let over_shm = begin((connectors.shm)(socket), export, options)
        .map_err(|error| format!("shared memory is not usable: {error}"))?;
    if boot(&over_shm).is_none() || boot(&over_shm) != boot(over_tcp) {
        return Err(format!("behind the socket {socket} is another server"));
    }
    Ok(over_shm)
}

/// Begins a session over a connector.
pub(crate) fn begin(connector: Arc<dyn Connector>, export: &str, options: Options) -> Result<Core> {
    if options.protection.is_none() {
        return Err(unprotected());
    }
    let background = options.background;
    let session = Session::new(connector, export, options);
    session.connect()?;
    let owner = Owner::new(session, background)?;
    Ok(Core { owner })
}

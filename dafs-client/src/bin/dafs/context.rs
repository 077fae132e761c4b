//! What all subcommands need: the global flags, and connections to servers.

use crate::failure::{Failure, Result};
use crate::target::{DEFAULT_VARIABLE, Target, Wishes};
use crate::trust;
use clap::ValueEnum;
use dafs_client::blocking::Client;
use dafs_client::{
    Connectors, EngineChoice, FirstContact, Location, Options, Protection, PublicKey,
};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

/// Flags of all subcommands.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Transport: shm needs a server on this host, verbs an RDMA device that reaches it; auto takes
    /// the first of shm, verbs and tcp that there is
    #[arg(long, global = true, value_enum, value_name = "ENGINE")]
    pub engine: Option<EngineArg>,
    /// Least protection level to accept: sealed encrypts pages and is taken if nothing is named,
    /// keyed authenticates only, none does neither and trusts every host of the network
    #[arg(long, global = true, value_enum, value_name = "LEVEL")]
    pub protection: Option<ProtectionArg>,
    /// The key that the server must have, as `dafsd key` prints it there; known_servers is not looked
    /// at then
    // One key of 64 begins with a hyphen.
    #[arg(long, global = true, value_name = "KEY", conflicts_with = "accept_new")]
    #[arg(allow_hyphen_values = true)]
    pub server_key: Option<PublicKey>,
    /// Remember the key of a server that is not known yet without asking whether it is the right one
    #[arg(long, global = true)]
    pub accept_new: bool,
    /// The server's socket on this host, for shm; asked of the server if not given
    #[arg(long, global = true, value_name = "PATH", value_parser = absolute)]
    pub socket: Option<String>,
    /// Seconds to try to reach a server, at the start and after a lost connection
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EngineArg {
    /// The best there is.
    Auto,
    /// TCP.
    Tcp,
    /// RDMA.
    Verbs,
    /// Shared memory.
    Shm,
}

/// `--protection`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProtectionArg {
    /// Authentication and encryption.
    Sealed,
    /// Authentication, no encryption.
    Keyed,
    /// No authentication and no encryption.
    None,
}

fn absolute(text: &str) -> std::result::Result<String, String> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("must be an absolute path".into()) }
}

/// The global flags, the environment, and the servers that are connected.
#[derive(Debug)]
pub struct Context {
    wishes: Wishes,
    first_contact: FirstContact,
    timeout: Duration,
    default: Option<OsString>,
    clients: RefCell<Vec<(Location, Client)>>,
}

impl Context {
    /// Takes the flags and looks at the environment.
    pub fn new(global: &Global) -> Self {
        let engine = global.engine.map(|engine| match engine {
            EngineArg::Auto => EngineChoice::Auto,
            EngineArg::Tcp => EngineChoice::Tcp,
            EngineArg::Verbs => EngineChoice::Verbs,
            EngineArg::Shm => EngineChoice::Shm,
        });
        let protection = global.protection.map(|level| match level {
            ProtectionArg::Sealed => Protection::Sealed,
            ProtectionArg::Keyed => Protection::Keyed,
            ProtectionArg::None => Protection::None,
        });
        let (socket, server_key) = (global.socket.clone(), global.server_key);
        Self {
            wishes: Wishes { engine, socket, protection, server_key },
            first_contact: trust::first_contact(global.accept_new),
            timeout: Duration::from_secs(global.timeout),
            default: std::env::var_os(DEFAULT_VARIABLE),
            clients: RefCell::default(),
        }
    }

    /// What an argument names.
    pub fn target(&self, argument: &OsStr) -> Result<Target> {
        Target::parse(argument, self.default.as_deref(), &self.wishes)
    }

    /// What an argument names; without one, the default server's directory.
    pub fn target_or_default(&self, argument: Option<&OsStr>) -> Result<Target> {
        let default =
            || Target::parse_or_default(OsStr::new(""), self.default.as_deref(), &self.wishes);
        argument.map_or_else(default, |argument| self.target(argument))
    }

    /// How clients of this command work.
    pub fn options(&self) -> Options {
        Options {
            first_contact: self.first_contact.clone(),
            timeout: self.timeout,
            connect_timeout: self.timeout,
            ..Options::default()
        }
    }

    /// The client of a target's export; connects where there is none yet.
    pub fn client(&self, target: &Target) -> Result<Client> {
        let location = &target.location;
        let mut clients = self.clients.borrow_mut();
        if let Some((_, client)) = clients.iter().find(|(other, _)| other == location) {
            return Ok(client.clone());
        }
        let client = self.connect(location, self.options())?;
        clients.push((location.clone(), client.clone()));
        Ok(client)
    }

    /// Whether two targets are in one export. One server may have several names, and is known by its
    /// key; where it has none, by its name alone.
    pub fn same_export(&self, one: &Target, other: &Target) -> Result<bool> {
        if one.same_export(other) {
            return Ok(true);
        }
        if one.location.export != other.location.export {
            return Ok(false);
        }
        let key = |target: &Target| Ok(self.client(target)?.server_key().ok().flatten());
        let key_of_one = key(one)?;
        Ok(key_of_one.is_some() && key_of_one == key(other)?)
    }

    /// A client of its own.
    pub fn connect(&self, location: &Location, options: Options) -> Result<Client> {
        Client::connect_with(location, options, Connectors::default())
            .map_err(|error| Failure::connect(location, &error))
    }
}

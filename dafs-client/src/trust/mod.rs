//! How client and server come to know each other: this client's identity, the keys of servers, and
//! the first contact.
//!
//! Both files are looked up by [`identity_path`] and [`known_servers_path`]. A server's key comes
//! from the application or from `known_servers`; where neither has it, the server is asked for it,
//! and [`FirstContact`] says who looks at the answer.

mod known;

pub use known::{Known, KnownServers, make_directory_of};

use crate::options::Options;
use dafs_keys::identity::IdentityError;
use dafs_keys::{Identity, PublicKey};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The environment variable that names the file of the identity.
pub const IDENTITY_VARIABLE: &str = "DAFS_IDENTITY";

/// Why client and server do not come to know each other. Nothing was sent but, where the text tells
/// of a key that the server shows, the question for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// There is no place for the files.
    #[error(
        "neither XDG_CONFIG_HOME nor HOME is set, so there is no place for the identity: name its \
         file with {IDENTITY_VARIABLE}"
    )]
    NoHome,
    /// This client has no identity.
    #[error(
        "there is no identity {0}: make it with `dafs keygen`, and give the public key to the \
         server's operator"
    )]
    NoIdentity(PathBuf),
    /// This client's identity cannot be used.
    #[error(transparent)]
    Identity(Arc<IdentityError>),
    /// The file of known servers cannot be read or written.
    #[error("known servers {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: Arc<io::Error>,
    },
    /// Others could have changed the file of known servers.
    #[error("known servers {path}: {why}, so what it says cannot be trusted")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Who could.
        why: String,
    },
    /// A line in the file of known servers is wrong.
    #[error("{path}:{line}: {why}; a line is HOST:PORT KEY or shm:/path KEY")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The server's key is not known, and nobody said that it is the right one.
    #[error(
        "the server {} shows the key {}, which is not known yet. If it is the right one (`dafsd key` \
         on the server prints it), add the line \"{} {}\" to {}",
        .0.server, .0.key, .0.server, .0.key, .0.file.display()
    )]
    Unknown(Unknown),
    /// The server's key is another one than was known or given.
    #[error(
        "the server {server} shows the key {shown}, but {source_of} {expected}. This may be an \
         attack, or the server was set up anew: ask its operator (`dafsd key` on the server prints \
         its key){}", .source_of.remedy()
    )]
    Changed {
        /// The server.
        server: String,
        /// The key that it should have.
        expected: PublicKey,
        /// The key that it shows.
        shown: PublicKey,
        /// Who says what it should have.
        source_of: Source,
    },
}

/// Who says which key a server must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The application, beforehand.
    Given,
    /// A line of the file of known servers.
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("the one given for it is"),
            Self::Line { path, line } => write!(f, "{}:{line} says", path.display()),
        }
    }
}

impl Source {
    fn remedy(&self) -> String {
        match self {
            Self::Given => String::new(),
            Self::Line { path, line } => {
                format!(", and if the new key is right remove line {line} of {}", path.display())
            }
        }
    }
}

/// A server whose key is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The server, as the file of known servers names it.
    pub server: String,
    /// The key that it shows. Nothing proves yet that it is the server's.
    pub key: PublicKey,
    /// The file of known servers.
    pub file: PathBuf,
}

/// Asks someone whether a server's key is the right one.
pub type Asker = Arc<dyn Fn(&Unknown) -> bool + Send + Sync>;

/// What to do with the key of a server that is not known yet.
#[derive(Clone, Default)]
pub enum FirstContact {
    /// Ask someone; remember the key if they say yes.
    Ask(Asker),
    /// Take it for the right one, and remember it.
    AcceptNew,
    /// Do not connect; the error shows the key.
    #[default]
    Refuse,
}

impl fmt::Debug for FirstContact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ask(_) => "Ask",
            Self::AcceptNew => "AcceptNew",
            Self::Refuse => "Refuse",
        })
    }
}

/// The file of this client's identity.
///
/// # Errors
/// [`TrustError::NoHome`].
pub fn identity_path(options: &Options) -> Result<PathBuf, TrustError> {
    if let Some(path) = &options.identity {
        return Ok(path.clone());
    }
    let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty());
    if let Some(path) = set(IDENTITY_VARIABLE) {
        return Ok(path.into());
    }
    // A relative path there means nothing, says the specification of these directories.
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let config = config.or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")));
    config.map(|config| config.join("dafs/identity")).ok_or(TrustError::NoHome)
}

/// The file of the keys of servers.
///
/// # Errors
/// [`TrustError::NoHome`].
pub fn known_servers_path(options: &Options) -> Result<PathBuf, TrustError> {
    match &options.known_servers {
        Some(path) => Ok(path.clone()),
        None => identity_path(options).map(|path| path.with_file_name("known_servers")),
    }
}

/// This client's key pair.
///
/// # Errors
/// [`TrustError::NoHome`], [`TrustError::NoIdentity`], [`TrustError::Identity`].
pub fn identity(options: &Options) -> Result<Arc<Identity>, TrustError> {
    let path = identity_path(options)?;
    match Identity::load(&path) {
        Ok(identity) => Ok(Arc::new(identity)),
        Err(IdentityError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Err(TrustError::NoIdentity(path))
        }
        Err(error) => Err(TrustError::Identity(Arc::new(error))),
    }
}

/// The key that a server must have, and who says so.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) key: PublicKey,
    source: Source,
}

impl Expected {
    /// What is to be said where the server shows this key.
    pub(crate) fn changed(&self, server: &str, shown: PublicKey) -> Option<TrustError> {
        (shown != self.key).then(|| TrustError::Changed {
            server: server.into(),
            expected: self.key,
            shown,
            source_of: self.source.clone(),
        })
    }
}

/// Finds out which key a server must have; `ask` gets the one that it shows, should nobody know it.
///
/// # Errors
/// Those of the file of known servers and of `ask`; [`TrustError::Unknown`].
pub(crate) fn expected<E: From<TrustError>>(
    server: &str,
    options: &Options,
    ask: impl FnOnce() -> Result<PublicKey, E>,
) -> Result<Expected, E> {
    if let Some(key) = options.server_key {
        return Ok(Expected { key, source: Source::Given });
    }
    let path = known_servers_path(options)?;
    let known = KnownServers::load(&path)?;
    if let Some(Known { key, line, .. }) = known.get(server) {
        let source = Source::Line { path, line: *line };
        return Ok(Expected { key: *key, source });
    }
    let unknown = Unknown { server: server.into(), key: ask()?, file: path };
    let accepted = match &options.first_contact {
        FirstContact::Ask(asker) => asker(&unknown),
        FirstContact::AcceptNew => true,
        FirstContact::Refuse => false,
    };
    if !accepted {
        return Err(TrustError::Unknown(unknown).into());
    }
    let Unknown { server, key, file: path } = unknown;
    let line = KnownServers::remember(&path, &server, key)?;
    Ok(Expected { key, source: Source::Line { path, line } })
}

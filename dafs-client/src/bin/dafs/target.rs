//! What a command works on: `dafs://host:port/export/path`, or a path at the server of `DAFS_URL`.

use crate::failure::Failure;
use crate::names;
use dafs_client::blocking::{Client, Directory};
use dafs_client::{DirEntry, EngineChoice, Location, Protection, PublicKey};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The environment variable that names the server, and perhaps a directory, of paths that are not
/// URLs.
pub const DEFAULT_VARIABLE: &str = "DAFS_URL";

const SCHEME: &[u8] = b"dafs://";

/// A path in an export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The server and the export.
    pub location: Location,
    /// The path from the export's root, beginning with a slash.
    pub path: PathBuf,
}

/// What the global flags say about the way to the server; they win over a URL's query.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// `--engine`.
    pub engine: Option<EngineChoice>,
    /// `--socket`.
    pub socket: Option<String>,
    /// `--protection`.
    pub protection: Option<Protection>,
    /// `--server-key`.
    pub server_key: Option<PublicKey>,
}

impl Target {
    /// What an argument names. `default` is the value of [`DEFAULT_VARIABLE`].
    ///
    /// An empty argument is refused: it is what a variable that was not set leaves, and must not mean
    /// the default's directory.
    pub fn parse(
        argument: &OsStr,
        default: Option<&OsStr>,
        wishes: &Wishes,
    ) -> Result<Self, Failure> {
        if argument.is_empty() {
            return Err(unusable(b"", "it is empty; write . for the directory of DAFS_URL"));
        }
        Self::parse_or_default(argument, default, wishes)
    }

    /// The same; an empty argument stands for the default's directory.
    pub fn parse_or_default(
        argument: &OsStr,
        default: Option<&OsStr>,
        wishes: &Wishes,
    ) -> Result<Self, Failure> {
        let bytes = argument.as_bytes();
        let mut target = if bytes.starts_with(SCHEME) {
            Self::from_url(bytes)?
        } else {
            let Some(default) = default.filter(|default| !default.is_empty()) else {
                return Err(unusable(
                    bytes,
                    "it names no server; write dafs://HOST[:PORT]/EXPORT/PATH, or set DAFS_URL",
                ));
            };
            if !default.as_bytes().starts_with(SCHEME) {
                let why = "the value of DAFS_URL must be like dafs://HOST[:PORT]/EXPORT";
                return Err(unusable(default.as_bytes(), why));
            }
            let mut target = Self::from_url(default.as_bytes())?;
            // An absolute path replaces the default's.
            target.path.push(Path::new(argument));
            target
        };
        let location = &mut target.location;
        location.engine = wishes.engine.or(location.engine);
        location.protection = wishes.protection.or(location.protection);
        location.server_key = wishes.server_key.or(location.server_key);
        if let Some(socket) = &wishes.socket {
            location.socket = Some(socket.clone());
        }
        Ok(target)
    }

    fn from_url(url: &[u8]) -> Result<Self, Failure> {
        let rest = &url[SCHEME.len()..];
        let question = rest.iter().position(|byte| *byte == b'?').unwrap_or(rest.len());
        let (place, query) = rest.split_at(question);
        let mut parts = place.splitn(3, |byte| *byte == b'/');
        let mut part = || parts.next().unwrap_or_default();
        let (authority, export, path) = (part(), part(), part());
        let decode = |part| names::decode(part).map_err(|why| unusable(url, &why));
        let (export, path) = (decode(export)?, decode(path)?);
        if export.contains(&b'?') {
            return Err(unusable(url, "no export's name contains a question mark"));
        }
        let location = [SCHEME, authority, b"/", &export, query].concat();
        let location = String::from_utf8(location)
            .map_err(|_| unusable(url, "host, export and query must be UTF-8 text"))?;
        let location: Location = location
            .parse()
            .map_err(|error: dafs_client::Error| Failure::Usage(error.to_string()))?;
        let mut absolute = OsString::from("/");
        absolute.push(OsStr::from_bytes(&path));
        Ok(Self { location, path: absolute.into() })
    }

    /// The same server and export, another path.
    pub fn at(&self, path: PathBuf) -> Self {
        Self { location: self.location.clone(), path }
    }

    /// A name in this directory.
    pub fn join(&self, name: impl AsRef<Path>) -> Self {
        self.at(self.path.join(name))
    }

    /// The same without the slashes at the end, and whether there were any: the path means a directory
    /// then.
    pub fn without_slash(&self) -> (Self, bool) {
        let path = names::bytes(&self.path);
        let end = path.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
        let bare = OsStr::from_bytes(&path[..end.min(path.len())]);
        (self.at(bare.into()), end < path.len())
    }

    /// What the path names, with the directory that it is in; a symbolic link is not followed. The
    /// path must end with a name.
    pub fn find(&self, client: &Client) -> dafs_client::Result<(Directory, DirEntry)> {
        let (directory, name) = self.parent(client)?;
        let entry = directory.entry(name)?;
        Ok((directory, entry))
    }

    /// The directory that the path's last name is in, and that name.
    pub fn parent<'a>(&'a self, client: &Client) -> dafs_client::Result<(Directory, &'a Path)> {
        let name = names::last_name(&self.path).unwrap_or_default();
        let above = self.path.parent().unwrap_or(Path::new("/"));
        Ok((client.directory(above)?, Path::new(name)))
    }

    /// Whether both are in the same export of the same server.
    pub fn same_export(&self, other: &Self) -> bool {
        let place = |target: &Self| {
            let Location { host, port, export, .. } = &target.location;
            (host.clone(), *port, export.clone())
        };
        place(self) == place(other)
    }
}

fn unusable(value: &[u8], why: &str) -> Failure {
    Failure::Usage(format!("cannot use {}: {why}", names::show(value)))
}

/// A URL that names the same, without its query.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = names::encode(self.location.export.as_bytes());
        let path = names::encode(names::bytes(&self.path));
        // The root's slash says nothing.
        let path = if path.trim_matches('/').is_empty() { "" } else { &path };
        write!(f, "dafs://{}/{export}{path}", self.location.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(argument: &[u8], default: Option<&str>) -> Result<Target, Failure> {
        let default = default.map(OsStr::new);
        Target::parse(OsStr::from_bytes(argument), default, &Wishes::default())
    }

    #[test]
    fn a_url_names_server_export_and_path() {
        let target = parse(b"dafs://h:7/data/a%20b/%ff\xfe?protection=none", None).unwrap();
        assert_eq!((target.location.host.as_str(), target.location.port), ("h", 7));
        assert_eq!(target.location.export, "data");
        assert_eq!(target.location.protection, Some(Protection::None));
        assert_eq!(names::bytes(&target.path), b"/a b/\xff\xfe");
        assert_eq!(target.to_string(), "dafs://h:7/data/a%20b/%FF%FE");
        assert_eq!(names::bytes(&parse(b"dafs://h/data", None).unwrap().path), b"/");
    }

    #[test]
    fn plain_paths_are_taken_as_they_are_at_the_default_server() {
        let default = Some("dafs://h/data/home?engine=tcp");
        for (argument, path) in
            [("a%20b?", "/home/a%20b?"), ("/x", "/x"), ("x/", "/home/x/"), (".", "/home/.")]
        {
            let target = parse(argument.as_bytes(), default).unwrap();
            assert_eq!(target.path.as_os_str(), path, "{argument}");
            assert_eq!(target.location.engine, Some(EngineChoice::Tcp));
        }
    }

    #[test]
    fn flags_win_over_the_url() {
        let wishes = Wishes { engine: Some(EngineChoice::Shm), ..Wishes::default() };
        let target = Target::parse(OsStr::new("dafs://h/d?engine=tcp"), None, &wishes).unwrap();
        assert_eq!(target.location.engine, Some(EngineChoice::Shm));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (argument, default, why) in [
            (&b"/a"[..], None, "it names no server"),
            (b"/a", Some("h/data"), "the value of DAFS_URL"),
            (b"dafs://h", None, "names no export"),
            (b"dafs://h:0/d/a", None, "is no port"),
            (b"dafs://h/d/%zz", None, "two hexadecimal digits"),
            (b"dafs://h\xff/d/", None, "must be UTF-8"),
            (b"dafs://h/a%3Fb/", None, "question mark"),
            (b"", Some("dafs://h/data"), "it is empty"),
        ] {
            let failure = parse(argument, default).unwrap_err().to_string();
            assert!(failure.contains(why), "{failure}");
        }
    }
}

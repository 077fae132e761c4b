//! The file of known servers: one line for each, `HOST:PORT KEY` or `shm:/path KEY`.

use super::{Source, TrustError};
use crate::location::SOCKET;
use dafs_keys::PublicKey;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Most bytes of the file that are read: thousands of servers.
const MOST: u64 = 1 << 20;

/// A server whose key is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The server: `HOST:PORT`, or `shm:` and the path of its socket.
    pub server: String,
    /// Its key.
    pub key: PublicKey,
    /// The line that says so, from 1 on.
    pub line: usize,
}

/// The servers whose keys are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownServers(Vec<Known>);

impl KnownServers {
    /// Reads a file, which nobody but its owner, this process's user or root, may be able to write.
    /// There are none where it does not exist.
    ///
    /// # Errors
    /// What is wrong with the file, or with a line of it.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        match File::open(path) {
            Ok(file) => Self::parse(path, &read(path, &file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(path)(error)),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, TrustError> {
        let mut known = Self::default();
        for (at, text) in text.lines().enumerate() {
            let line = at + 1;
            let wrong = |why: String| TrustError::Line { path: path.into(), line, why };
            let mut words = text.split_whitespace();
            let Some(server) = words.next().filter(|word| !word.starts_with('#')) else { continue };
            let (Some(key), None) = (words.next(), words.next()) else {
                return Err(wrong("must have two words".into()));
            };
            if !is_server(server) {
                return Err(wrong(format!("{server:?} is no server")));
            }
            let key: PublicKey = key.parse().map_err(|error| wrong(format!("{error}")))?;
            match known.get(server) {
                Some(before) if before.key != key => {
                    let why = format!("line {} has another key for {server}", before.line);
                    return Err(wrong(why));
                }
                Some(_) => {}
                None => known.0.push(Known { server: server.into(), key, line }),
            }
        }
        Ok(known)
    }

    /// What is known of a server.
    #[must_use]
    pub fn get(&self, server: &str) -> Option<&Known> {
        self.0.iter().find(|known| known.server == server)
    }

    /// Adds a server to the file, which is made if there is none; the line that has it then.
    ///
    /// # Errors
    /// As for [`load`](Self::load); [`TrustError::Changed`] where someone else has added the server
    /// with another key meanwhile. Nothing was added then.
    pub fn remember(path: &Path, server: &str, key: PublicKey) -> Result<usize, TrustError> {
        if !is_server(server) {
            let why = format!("{server:?} cannot be noted: it has a space, or is no server");
            return Err(failed(path)(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        make_directory_of(path).map_err(failed(path))?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(failed(path))?;
        // Until the file is closed: between the look and the addition nobody else adds.
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(path)(error.into()))?;
        let text = read(path, &file)?;
        let known = Self::parse(path, &text)?;
        match known.get(server) {
            Some(known) if known.key == key => Ok(known.line),
            Some(known) => Err(TrustError::Changed {
                server: server.into(),
                expected: known.key,
                shown: key,
                source_of: Source::Line { path: path.into(), line: known.line },
            }),
            None => {
                let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
                let line = format!("{gap}{server} {key}\n");
                file.write_all(line.as_bytes())
                    .and_then(|()| file.sync_all())
                    .map_err(failed(path))?;
                Ok(text.lines().count() + 1)
            }
        }
    }
}

/// Makes the directory of a file of the client's, for its user alone, where it is missing.
///
/// # Errors
/// Where it cannot be made.
pub fn make_directory_of(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => DirBuilder::new().recursive(true).mode(0o700).create(parent),
        None => Ok(()),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> TrustError {
    |error| TrustError::File { path: path.into(), error: Arc::new(error) }
}

fn read(path: &Path, file: &File) -> Result<String, TrustError> {
    let metadata = file.metadata().map_err(failed(path))?;
    let untrusted = |why| Err(TrustError::Untrusted { path: path.into(), why });
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return untrusted(format!("others may write to it (mode {mode:04o}, `chmod 600` it)"));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return untrusted(format!("it belongs to user {owner}"));
    }
    if metadata.len() > MOST {
        return Err(failed(path)(io::ErrorKind::FileTooLarge.into()));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(failed(path))?;
    Ok(text)
}

/// Whether this can be the name of a server in the file.
fn is_server(name: &str) -> bool {
    let one_word = !name.starts_with('#') && !name.contains(char::is_whitespace);
    one_word
        && match name.strip_prefix(SOCKET) {
            Some(path) => path.starts_with('/'),
            None => name.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
            }),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn servers_are_remembered_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config/dafs/known_servers");
        assert_eq!(KnownServers::load(&path).unwrap(), KnownServers::default());
        assert_eq!(KnownServers::remember(&path, "host:7", key(1)).unwrap(), 1);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        // Without a newline at its end, as editors leave it.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("# mine\n\n{}", text.trim_end())).unwrap();
        assert_eq!(KnownServers::remember(&path, "shm:/run/dafs", key(2)).unwrap(), 4);
        assert_eq!(KnownServers::remember(&path, "host:7", key(1)).unwrap(), 3, "once");
        let changed = KnownServers::remember(&path, "host:7", key(3)).unwrap_err();
        assert!(matches!(changed, TrustError::Changed { .. }), "{changed}");
        let known = KnownServers::load(&path).unwrap();
        assert_eq!(known.get("host:7").unwrap().key, key(1));
        assert_eq!(known.get("shm:/run/dafs").unwrap().line, 4);
        assert_eq!(known.get("host:8"), None);
        let error = KnownServers::remember(&path, "shm:/a b", key(1)).unwrap_err().to_string();
        assert!(error.contains("has a space"), "{error}");
    }

    #[test]
    fn what_several_add_at_once_is_all_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_servers");
        std::thread::scope(|scope| {
            for n in 1..9_u8 {
                let path = &path;
                scope.spawn(move || {
                    KnownServers::remember(path, &format!("h:{n}"), key(n)).unwrap();
                    KnownServers::remember(path, "all:1", key(9)).unwrap();
                });
            }
        });
        assert_eq!(KnownServers::load(&path).unwrap().0.len(), 9);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 9);
    }

    #[test]
    fn wrong_lines_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_servers");
        let (good, other) = (key(1), key(2));
        for (text, line, why) in [
            ("host:7".to_owned(), 1, "two words"),
            (format!("host:7 {good} more"), 1, "two words"),
            (format!("#\nhost {good}"), 2, "\"host\" is no server"),
            (format!("host:0 {good}"), 1, "is no server"),
            (format!("shm:relative {good}"), 1, "is no server"),
            ("host:7 abc".to_owned(), 1, "\"abc\" is no public key"),
            (format!("h:7 {good}\nh:8 {good}\nh:7 {other}"), 3, "line 1 has another key for h:7"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = KnownServers::load(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}:{line}: ", path.display())), "{error}");
            assert!(error.contains(why), "{error}");
            let before = std::fs::read(&path).unwrap();
            assert!(KnownServers::remember(&path, "new:1", good).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), before, "nothing is added to a wrong file");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known_servers");
        KnownServers::remember(&path, "host:7", key(1)).unwrap();
        for mode in [0o620, 0o602, 0o666] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = KnownServers::load(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(KnownServers::remember(&path, "host:8", key(1)).is_err());
        }
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        KnownServers::load(&path).unwrap();
    }
}

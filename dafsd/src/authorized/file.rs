//! The file `authorized_clients`, and what becomes of it while the server runs.

use super::{Authorized, LineError};
use crate::state::flags;
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// More than the file of any site has, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizedError {
    /// It cannot be read.
    #[error("authorized clients {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others than its owner can write it.
    #[error(
        "authorized clients {path} has mode {mode:04o}: others than its owner could let clients \
         in; `chmod go-w` it after a look at what it says"
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "authorized clients {path} belongs to user {owner}, who could let clients in: it must \
         belong to root or to the server's own user"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who it belongs to.
        owner: u32,
    },
    /// A line says something else than lines may say.
    #[error("authorized clients {path}, {error}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, and what is wrong.
        error: LineError,
    },
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    /// Changes with permissions and owner, too.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            place: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The file, and which version of it was read last.
#[derive(Debug)]
pub struct AuthorizedFile {
    path: PathBuf,
    /// The server runs as root; see [`Authorized::parse`].
    is_root: bool,
    seen: Option<Stamp>,
}

impl AuthorizedFile {
    /// Reads the file. Where there is none, nobody is authorized.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path, is_root: bool) -> Result<(Self, Authorized), AuthorizedError> {
        let mut file = Self { path: path.to_owned(), is_root, seen: None };
        match file.read() {
            Err(AuthorizedError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                Ok((file, Authorized::default()))
            }
            read => read.map(|authorized| (file, authorized)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there was a file when it was last looked for.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.seen.is_some()
    }

    /// Reads the file anew where it is another version than was read last, or always where
    /// `forced`. Each version that cannot be used is told of once. One that has gone is such a
    /// version: editors let a file disappear for a moment, and who means to let nobody in can leave
    /// an empty one.
    pub fn reread(&mut self, forced: bool) -> Option<Result<Authorized, AuthorizedError>> {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if now == self.seen && !forced {
            return None;
        }
        self.seen = now;
        Some(self.read())
    }

    fn read(&mut self) -> Result<Authorized, AuthorizedError> {
        let path = || self.path.clone();
        let failed = |error| AuthorizedError::Io { path: path(), error };
        let file = OpenOptions::new().read(true).custom_flags(flags()).open(&self.path);
        let file = file.map_err(|error| {
            if Errno::from_io_error(&error) == Some(Errno::LOOP) {
                let what = "it is a symbolic link; name the file that it leads to";
                return failed(io::Error::new(error.kind(), what));
            }
            failed(error)
        })?;
        let metadata = file.metadata().map_err(failed)?;
        // Of the version that is read: one that comes meanwhile is another.
        self.seen = Some(Stamp::of(&metadata));
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(AuthorizedError::Writable { path: path(), mode });
        }
        let owner = metadata.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(AuthorizedError::Foreign { path: path(), owner });
        }
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            let what = format!("it has more than {} MiB", MAX_FILE >> 20);
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, what)));
        }
        Authorized::parse(&text, self.is_root)
            .map_err(|error| AuthorizedError::Line { path: path(), error })
    }
}

//! What the server remembers of itself: the secret that its handles are signed under.

use dafs_keys::{NoRandom, Secret};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file in the state directory.
const FILE: &str = "secret";
/// What it is called until it is whole.
const UNFINISHED: &str = "secret.new";

/// Why the server's secret cannot be had. Displayed with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("the server's secret {path}: {error}; name another state directory with --state-dir")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others can read it or put another one in its place.
    #[error(
        "the server's secret {path} belongs to user {owner} and has mode {mode:04o}: others can \
         read it, and make handles of files that they may not reach. Remove it, and the server \
         makes a new one; the handles that clients hold are stale then"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Who it belongs to.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// It is not a secret.
    #[error(
        "the server's secret {path} has to be a file of {} bytes. Restore it from a backup; or \
         remove it, and the server makes a new one; the handles that clients hold are stale then",
        Secret::LEN
    )]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// No secret can be made.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// The secret of the server with this state directory, which it has [for itself](crate::daemon). It
/// is made at the first start and stays the same, and so do the handles of the server's exports.
///
/// # Errors
/// [`SecretError`]. An existing secret is never changed.
pub fn load_secret(state: &Path) -> Result<Secret, SecretError> {
    let path = state.join(FILE);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags());
    match options.open(&path) {
        Ok(file) => read(file, path),
        Err(error) if error.kind() == ErrorKind::NotFound => make(state, path),
        Err(error) => Err(SecretError::Io { path, error }),
    }
}

fn read(file: File, path: PathBuf) -> Result<Secret, SecretError> {
    let io = |error| SecretError::Io { path: path.clone(), error };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() != Secret::LEN as u64 {
        return Err(SecretError::Form { path });
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let is_ours = owner == 0 || owner == geteuid().as_raw();
    if !is_ours || mode & 0o077 != 0 {
        return Err(SecretError::Exposed { path, owner, mode });
    }
    let mut bytes = [0; Secret::LEN];
    (&file).read_exact(&mut bytes).map_err(io)?;
    let secret = Secret::from_bytes(bytes);
    bytes.fill(0);
    // Seen, so that the copy is overwritten.
    std::hint::black_box(&bytes);
    Ok(secret)
}

/// How files of the state directory are opened: no link leads elsewhere, and nobody waits for a pipe.
pub(crate) fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// A new file for the server alone, in the place of what a crash left under this name.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the secret under another name first, so that a crash leaves none rather than half of one.
fn make(state: &Path, path: PathBuf) -> Result<Secret, SecretError> {
    let secret = Secret::random()?;
    let unfinished = state.join(UNFINISHED);
    let write = || {
        let mut file = create_new(&unfinished)?;
        file.write_all(secret.expose())?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)?;
        File::open(state)?.sync_all()
    };
    write().map_err(|error| SecretError::Io { path: path.clone(), error })?;
    tracing::info!(path = %path.display(), "made the server's secret");
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_secret_is_made_once_and_for_the_server_alone() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(UNFINISHED), b"half of on").unwrap();
        let secret = load_secret(state.path()).unwrap();
        assert_eq!(load_secret(state.path()).unwrap().expose(), secret.expose());
        let metadata = std::fs::metadata(state.path().join(FILE)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.len()), (0o600, 32));
        assert!(!state.path().join(UNFINISHED).exists());
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_secret(other.path()).unwrap().expose(), secret.expose());
    }

    #[test]
    fn a_secret_that_is_none_is_refused_by_name_and_left_alone() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        load_secret(state.path()).unwrap();
        let good = std::fs::read(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load_secret(state.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for wrong in [&good[..31], &[&good[..], b"x"].concat(), b""] {
            std::fs::write(&path, wrong).unwrap();
            let error = load_secret(state.path()).unwrap_err();
            assert!(matches!(error, SecretError::Form { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), wrong);
        }
        std::fs::rename(&path, state.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &path).unwrap();
        assert!(matches!(load_secret(state.path()), Err(SecretError::Io { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(load_secret(state.path()), Err(SecretError::Form { .. })));
        let none = load_secret(&state.path().join("none")).unwrap_err().to_string();
        assert!(none.contains("--state-dir"), "{none}");
    }
}

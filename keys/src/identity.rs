//! Key pairs of servers and clients, and the files they lie in.

use crate::secret::{NoRandom, Secret};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// What the file of an identity begins with.
const FORM: &str = "dafs-identity";
/// More than the file of an identity has, in bytes.
const MOST: u64 = 4096;

/// An X25519 public key: who someone is. Written as 43 characters of URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; Self::LEN]);

impl PublicKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A text is no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no public key, which has 43 letters, digits, '-' and '_'")]
pub struct NotAKey(String);

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| NotAKey(text.chars().take(64).collect()))
    }
}

/// Why the file of an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read or written.
    #[error("identity {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others than its owner can read it.
    #[error(
        "identity {path} has mode {mode:04o}: others than its owner may use it. \
         Make a new one, or `chmod 600` it if nobody has"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("identity {path} belongs to user {owner}, who could replace it")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who it belongs to.
        owner: u32,
    },
    /// It is no identity.
    #[error("{path} is not the file of an identity: it has to begin with \"{FORM} \"")]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// No key can be made.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// A key pair.
#[derive(Clone)]
pub struct Identity {
    secret: Secret,
    public: PublicKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn generate() -> Result<Self, NoRandom> {
        Secret::random().map(Self::from_secret)
    }

    /// The identity with this secret key.
    #[must_use]
    pub fn from_secret(secret: Secret) -> Self {
        let key = PrivateKey::from_private_key(&X25519, secret.expose());
        let key = key.expect("any 32 bytes are an X25519 secret key").compute_public_key();
        let key = key.expect("a secret key has a public one");
        let mut public = [0; PublicKey::LEN];
        public.copy_from_slice(key.as_ref());
        Self { secret, public: PublicKey(public) }
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Reads an identity. Its file must be readable and writable by its owner alone, who must be
    /// this process's user or root.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |error| IdentityError::Io { path: path.to_owned(), error };
        Self::read(File::open(path).map_err(failed)?, path)
    }

    /// As [`load`](Self::load), from a file that has been opened.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: File, path: &Path) -> Result<Self, IdentityError> {
        let failed = |error| IdentityError::Io { path: path.to_owned(), error };
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Open { path: path.to_owned(), mode });
        }
        let me = std::fs::metadata("/proc/self").map_or(0, |me| me.uid());
        if metadata.uid() != 0 && metadata.uid() != me {
            return Err(IdentityError::Foreign { path: path.to_owned(), owner: metadata.uid() });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MOST).read_to_string(&mut text).map_err(failed)?;
        parse(&text).ok_or_else(|| IdentityError::Form { path: path.to_owned() })
    }

    /// Writes the identity to a new file that only its owner can read, and its public key beside it
    /// with `.pub` added to the name.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |error| IdentityError::Io { path: path.to_owned(), error };
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let mut secret = URL_SAFE_NO_PAD.encode(self.secret.expose());
        let text = Zeroizing::new(format!("{FORM} {secret}\n"));
        secret.zeroize();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".pub");
        // Another one's goes, and nothing is written to where a link leads.
        let write = || {
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
            file.write_all(format!("{}\n", self.public).as_bytes())
        };
        write().map_err(|error| IdentityError::Io { path: PathBuf::from(&beside), error })
    }

    /// The identity in a file, which is made if there is none. Also says whether it was made.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load_or_make(path: &Path) -> Result<(Self, bool), IdentityError> {
        match Self::load(path) {
            Err(IdentityError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate()?;
                match identity.save(path) {
                    Err(IdentityError::Io { error, .. })
                        if error.kind() == io::ErrorKind::AlreadyExists =>
                    {
                        // Someone else was faster.
                        Ok((Self::load(path)?, false))
                    }
                    saved => saved.map(|()| (identity, true)),
                }
            }
            loaded => loaded.map(|identity| (identity, false)),
        }
    }
}

fn parse(text: &str) -> Option<Identity> {
    let encoded = text.strip_prefix(FORM)?.strip_prefix(' ')?.trim_end();
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
    let mut secret = [0; Secret::LEN];
    if bytes.len() != secret.len() {
        return None;
    }
    secret.copy_from_slice(&bytes);
    let identity = Identity::from_secret(Secret::from_bytes(secret));
    secret.zeroize();
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_pair_is_the_one_that_another_implementation_makes() {
        let noise = snow::Builder::new("Noise_IK_25519_AESGCM_SHA256".parse().unwrap());
        for _ in 0..20 {
            let pair = noise.generate_keypair().unwrap();
            let secret = Secret::from_bytes(pair.private.try_into().unwrap());
            let identity = Identity::from_secret(secret);
            assert_eq!(identity.public().as_bytes()[..], pair.public[..]);
        }
    }

    #[test]
    fn an_identity_survives_its_file_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        let (made, new) = Identity::load_or_make(&path).unwrap();
        assert!(new);
        let (again, new) = Identity::load_or_make(&path).unwrap();
        assert!(!new && again.public() == made.public());
        let public = std::fs::read_to_string(directory.path().join("identity.pub")).unwrap();
        assert_eq!(public.trim().parse(), Ok(made.public()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&made.public().to_string()));
        assert!(matches!(made.save(&path), Err(IdentityError::Io { .. })), "never overwritten");
    }

    #[test]
    fn files_that_others_can_read_or_that_are_none_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        Identity::generate().unwrap().save(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = Identity::load(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")));
        }
        for text in ["", "dafs-identity", "dafs-identity AAAA", "identity x"] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Identity::load(&path), Err(IdentityError::Form { .. })), "{text:?}");
        }
        assert!("short".parse::<PublicKey>().is_err());
    }

    #[test]
    fn identities_do_not_show_their_secret() {
        let identity = Identity::generate().unwrap();
        let shown = format!("{identity:?}");
        assert!(shown.contains(&identity.public().to_string()));
        assert!(!shown.contains(&URL_SAFE_NO_PAD.encode(identity.secret.expose())));
    }
}

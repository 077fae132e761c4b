//! Who the bench is to the server that it starts: above protection level `none` a server serves
//! clients that it knows only.

use crate::error::{Context, Error, Result};
use dafs_client::keys::{Identity, PublicKey};
use rustix::process::{getegid, geteuid};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Makes an identity for the bench in `directory` and the server's state directory, in which it may
/// read and write every export as the user that runs it. Gives the identity's file.
pub(crate) fn authorize(directory: &Path, state: &Path) -> Result<PathBuf> {
    let path = directory.join("identity");
    let identity = Identity::generate().map_err(|error| Error::Keys(error.to_string()))?;
    identity.save(&path).map_err(|error| Error::Keys(error.to_string()))?;
    DirBuilder::new()
        .mode(0o700)
        .create(state)
        .context(|| format!("making {}", state.display()))?;
    let clients = state.join("authorized_clients");
    let (key, uid, gid) = (identity.public(), geteuid().as_raw(), getegid().as_raw());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&clients)
        .and_then(|mut file| writeln!(file, "{key} bench exports=*:rw uid={uid} gid={gid}"))
        .context(|| format!("writing {}", clients.display()))?;
    Ok(path)
}

/// The public key of a server that has started, which lies in its state directory.
pub(crate) fn server_key(state: &Path) -> Result<PublicKey> {
    let path = state.join("identity.pub");
    let text = std::fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
    text.trim().parse().map_err(|error| Error::Keys(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_bench_is_authorized_under_its_key_and_nobody_else_can_change_that() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let identity = Identity::load(&authorize(directory.path(), &state).unwrap()).unwrap();
        let clients = state.join("authorized_clients");
        let line = std::fs::read_to_string(&clients).unwrap();
        assert!(line.starts_with(&format!("{} bench exports=*:rw uid=", identity.public())));
        assert_eq!(std::fs::metadata(&clients).unwrap().permissions().mode() & 0o077, 0);
        assert!(server_key(&state).is_err());
        identity.save(&state.join("identity")).unwrap();
        assert_eq!(server_key(&state).unwrap(), identity.public());
    }
}

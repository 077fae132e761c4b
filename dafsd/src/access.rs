//! Who may do what: the authorized clients, and those of them that are fenced off.

use crate::authorized::{
    AskedCredential, Authorized, AuthorizedError, AuthorizedFile, Client, Revoked, Rights,
};
use crate::fence::{FenceFile, FenceFileError, Fenced};
use crate::ops::OpError;
use crate::store::Credential;
use crate::sync::{Mutex, RwLock};
use dafs_keys::PublicKey;
use dafs_proto::Status;
use std::path::Path;

/// What a client was granted in an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The client's name in `authorized_clients`.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// It changes nothing.
    pub read_only: bool,
    /// Whom the server acts as for it.
    pub credential: Credential,
}

/// Why it is not known who may do what.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The authorized clients.
    #[error(transparent)]
    Authorized(#[from] AuthorizedError),
    /// The fenced clients.
    #[error(transparent)]
    Fenced(#[from] FenceFileError),
}

/// Who may do what. What is asked for each session is in memory; nobody waits for a file there.
#[derive(Debug, Default)]
pub struct Access {
    authorized: RwLock<Authorized>,
    fenced: Mutex<Fenced>,
    /// Where the two come from, if anywhere. Each is held while its file is read or written, before
    /// the lock of what is in memory.
    authorized_file: Mutex<Option<AuthorizedFile>>,
    fence_file: Mutex<Option<FenceFile>>,
}

impl Access {
    /// Reads who is authorized and who is fenced off. `is_root` as in [`Authorized::parse`].
    ///
    /// # Errors
    /// A file is there and cannot be used.
    pub fn load(authorized: &Path, fenced: &Path, is_root: bool) -> Result<Self, AccessError> {
        let (authorized_file, authorized) = AuthorizedFile::open(authorized, is_root)?;
        let (fence_file, fenced) = FenceFile::load(fenced)?;
        Ok(Self {
            authorized: RwLock::new(authorized),
            fenced: Mutex::new(fenced),
            authorized_file: Mutex::new(Some(authorized_file)),
            fence_file: Mutex::new(Some(fence_file)),
        })
    }

    /// These clients, and nobody fenced off. Nothing is remembered in files.
    #[must_use]
    pub fn of(authorized: Authorized) -> Self {
        Self { authorized: RwLock::new(authorized), ..Self::default() }
    }

    /// Says in the log what will surprise who runs a server with these exports.
    pub fn advise(&self, exports: &[&str]) {
        let file = self.authorized_file.lock();
        let Some(file) = file.as_ref() else { return };
        let path = file.path().display();
        if !file.exists() {
            tracing::warn!(
                "nobody can use the exports that are guarded: {path} does not exist. It has a line \
                 for each client, \"KEY NAME exports={} uid=1000\" for example, where KEY is the \
                 client's public key",
                exports.first().unwrap_or(&"*")
            );
        }
        for client in self.authorized.read().iter() {
            for export in client.named_exports().filter(|name| !exports.contains(name)) {
                tracing::warn!(
                    client = client.name,
                    export,
                    "{path} names no export of this server"
                );
            }
        }
    }

    /// What a client is granted in an export. `asked` is the user that it asks to act as.
    ///
    /// # Errors
    /// [`Status::Access`] where the server does not know the client, or does not act for it as the
    /// user it asks for; [`Status::Fenced`]; [`Status::NoExport`] where it may not use the export.
    pub fn permit(
        &self,
        client: &PublicKey,
        export: &str,
        asked: Option<&AskedCredential>,
    ) -> Result<Permit, OpError> {
        let authorized = self.authorized.read();
        let Some(known) = authorized.lookup(client) else {
            return Err(OpError::new(Status::Access, unknown(client)));
        };
        if self.fenced.lock().contains(&known.name) {
            let what = format!(
                "client {:?} is fenced off; `dafsd unfence {}` on the server lets it in again",
                known.name, known.name
            );
            return Err(OpError::new(Status::Fenced, what));
        }
        let Some(rights) = known.rights(export) else {
            let what = format!("the server has no export {export:?} for client {:?}", known.name);
            return Err(OpError::new(Status::NoExport, what));
        };
        let credential =
            known.credential(asked).map_err(|what| OpError::new(Status::Access, what))?;
        let read_only = rights == Rights::ReadOnly;
        Ok(Permit { name: known.name.clone(), key: *client, read_only, credential })
    }

    /// Whether a client with this key may connect at all.
    ///
    /// # Errors
    /// What to tell the client that may not.
    pub fn knows(&self, client: &PublicKey) -> Result<(), String> {
        self.authorized.read().lookup(client).map(drop).ok_or_else(|| unknown(client))
    }

    /// Whether a client may use an export, as far as its line goes.
    #[must_use]
    pub fn may_use(&self, client: &PublicKey, export: &str) -> bool {
        self.authorized.read().lookup(client).is_some_and(|known| known.rights(export).is_some())
    }

    /// The line of the client with this name.
    #[must_use]
    pub fn client(&self, name: &str) -> Option<Client> {
        self.authorized.read().named(name).cloned()
    }

    /// Reads the authorized clients anew where their file has changed, or in any case where
    /// `forced`. `None` where there was nothing to do, otherwise what clients may not do any more:
    /// from now on [`permit`](Self::permit) refuses it, and the caller has to end what was
    /// permitted before.
    ///
    /// # Errors
    /// The file cannot be used; everything stays as it was.
    pub fn reload<'a>(
        &self,
        forced: bool,
        exports: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<Result<Vec<Revoked>, AuthorizedError>> {
        let mut file = self.authorized_file.lock();
        let new = match file.as_mut()?.reread(forced)? {
            Ok(new) => new,
            Err(error) => return Some(Err(error)),
        };
        let mut authorized = self.authorized.write();
        let revoked = authorized.revoked(&new, exports);
        *authorized = new;
        Some(Ok(revoked))
    }

    /// Whether the client with this name is fenced off.
    #[must_use]
    pub fn is_fenced(&self, name: &str) -> bool {
        self.fenced.lock().contains(name)
    }

    /// Names of the clients that are fenced off.
    #[must_use]
    pub fn fenced(&self) -> Vec<String> {
        self.fenced.lock().iter().map(str::to_owned).collect()
    }

    /// Remembers that a client is fenced off, then refuses it. Waits for the disk.
    ///
    /// # Errors
    /// It cannot be remembered; the client is not fenced off.
    pub fn fence(&self, name: &str) -> Result<(), FenceFileError> {
        self.change_fenced(|fenced| fenced.insert(name)).map(drop)
    }

    /// Remembers that a client is not fenced off any more, then lets it in. Waits for the disk.
    /// Whether it was fenced off.
    ///
    /// # Errors
    /// It cannot be remembered; the client stays fenced off.
    pub fn unfence(&self, name: &str) -> Result<bool, FenceFileError> {
        self.change_fenced(|fenced| fenced.remove(name))
    }

    /// Whether anything changed.
    fn change_fenced(
        &self,
        change: impl FnOnce(&mut Fenced) -> bool,
    ) -> Result<bool, FenceFileError> {
        // One change at a time.
        let file = self.fence_file.lock();
        let mut new = self.fenced.lock().clone();
        let changed = change(&mut new);
        if changed {
            if let Some(file) = file.as_ref() {
                file.save(&new)?;
            }
            *self.fenced.lock() = new;
        }
        Ok(changed)
    }
}

fn unknown(client: &PublicKey) -> String {
    format!(
        "the server does not know this client: to let it in, add a line to the server's \
         authorized_clients that begins with its public key, {client}"
    )
}

#[cfg(test)]
mod tests;

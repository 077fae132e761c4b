//! Who may connect: the clients of the file `authorized_clients`, as plain data.
//!
//! A line of the file names one client by its public key and gives it a name, its exports, and the
//! user its files are accessed as:
//!
//! ```text
//! # KEY                                       NAME    OPTIONS
//! 3f0nAqWNDIcQ9QaPQy9eUTXdKnjJcA0n9OFE9mlEhWc web-1   exports=data,logs:ro uid=1000 gid=1000
//! bG3C0lUoJq9Kq0ls2rrP9eQ8aVt9rLFv2yYyDk8yLH8 batch   exports=* uids=1000-59999
//! ```

mod file;
mod parse;
#[cfg(test)]
mod tests;

pub use file::{AuthorizedError, AuthorizedFile};
pub use parse::LineError;

use crate::store::Credential;
use dafs_keys::PublicKey;
use std::collections::BTreeMap;
use std::fmt;

/// Most groups of a credential, which bounds what a client can make the server keep.
pub const MAX_GROUPS: usize = 1024;

/// The user that a client asks to act as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedCredential {
    /// User.
    pub uid: u32,
    /// Group of what it creates.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
}

impl From<dafs_proto::Credential> for AskedCredential {
    fn from(wire: dafs_proto::Credential) -> Self {
        let dafs_proto::Credential { uid, gid, groups } = wire;
        Self { uid, gid, groups }
    }
}

/// What a client may do in an export, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rights {
    /// Read.
    ReadOnly,
    /// Read and change, as far as the export and the credential go.
    ReadWrite,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What people call it. No other client has this name.
    pub name: String,
    /// Who it is. No other client has this key.
    pub key: PublicKey,
    exports: Exports,
    acts_as: ActsAs,
}

/// The exports a client may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Exports {
    /// Rights to those that are not named.
    others: Option<Rights>,
    named: BTreeMap<String, Rights>,
}

/// Where a client's credential comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ActsAs {
    /// The same for ever.
    Fixed(Credential),
    /// The client names it. Only users of this range, bounds included.
    Asked { first: u32, last: u32 },
}

impl Client {
    /// What it may do in an export. `None` where that is nothing.
    #[must_use]
    pub fn rights(&self, export: &str) -> Option<Rights> {
        self.exports.named.get(export).copied().or(self.exports.others)
    }

    /// The exports its line names.
    pub fn named_exports(&self) -> impl Iterator<Item = &str> {
        self.exports.named.keys().map(String::as_str)
    }

    /// Whom the server acts as for this client. What the client must not choose it is refused, not
    /// denied in silence: it would take the files it creates for somebody else's.
    ///
    /// # Errors
    /// Why not, for the client.
    pub fn credential(&self, asked: Option<&AskedCredential>) -> Result<Credential, String> {
        let name = &self.name;
        match (&self.acts_as, asked) {
            (ActsAs::Fixed(credential), None) => Ok(credential.clone()),
            (ActsAs::Fixed(_), Some(asked)) => Err(format!(
                "the server chooses the user that client {name:?} acts as: it must not ask for uid \
                 {}",
                asked.uid
            )),
            (ActsAs::Asked { first, last }, None) => Err(format!(
                "client {name:?} must ask for the user it acts as, of uids {first} to {last}"
            )),
            (ActsAs::Asked { first, last }, Some(asked)) => {
                if !(*first..=*last).contains(&asked.uid) {
                    return Err(format!(
                        "client {name:?} asks to act as uid {}, where uids {first} to {last} are \
                         allowed",
                        asked.uid
                    ));
                }
                if asked.groups.len() > MAX_GROUPS {
                    return Err(format!(
                        "client {name:?} asks for {} groups, where {MAX_GROUPS} are allowed",
                        asked.groups.len()
                    ));
                }
                // Who must not be root must not be of root's group either.
                if *first > 0 && (asked.gid == 0 || asked.groups.contains(&0)) {
                    return Err(format!(
                        "client {name:?} asks for gid 0, where uids {first} to {last} are allowed"
                    ));
                }
                // The kernel takes -1 for "leave it as it is".
                if asked.gid == u32::MAX || asked.groups.contains(&u32::MAX) {
                    return Err(format!(
                        "client {name:?} asks for gid {}, which is none",
                        u32::MAX
                    ));
                }
                let groups = asked.groups.as_slice().into();
                Ok(Credential::User { uid: asked.uid, gid: asked.gid, groups })
            }
        }
    }
}

/// All clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorized(BTreeMap<PublicKey, Client>);

impl Authorized {
    /// The client with this key.
    #[must_use]
    pub fn lookup(&self, key: &PublicKey) -> Option<&Client> {
        self.0.get(key)
    }

    /// The client with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Client> {
        self.iter().find(|client| client.name == name)
    }

    /// All clients.
    pub fn iter(&self) -> impl Iterator<Item = &Client> {
        self.0.values()
    }

    /// Rights that clients have here and not, or not as far, in `new`, among these exports of the
    /// server. A client that acts as somebody else in `new`, or has another name, loses all it has:
    /// what its sessions were granted does not fit any more.
    #[must_use]
    pub fn revoked<'a>(
        &self,
        new: &Self,
        exports: impl Iterator<Item = &'a str> + Clone,
    ) -> Vec<Revoked> {
        let revoked = self.iter().map(|old| {
            let same = |new: &&Client| new.name == old.name && new.acts_as == old.acts_as;
            let new = new.lookup(&old.key).filter(same);
            let shrank =
                |export: &&str| new.and_then(|client| client.rights(export)) < old.rights(export);
            let exports = exports.clone().filter(shrank).map(str::to_owned).collect();
            Revoked { name: old.name.clone(), key: old.key, exports }
        });
        revoked.filter(|revoked: &Revoked| !revoked.exports.is_empty()).collect()
    }
}

/// What one client may not do any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The name it had.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// The exports it lost rights to.
    pub exports: Vec<String>,
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.exports.join(", "))
    }
}

//! A store as those have it who may change nothing.

use super::{
    Access, CreateOptions, Credential, Entry, Handle, Node, Removed, Renamed, Result, Store,
    StoreError, StoreFile,
};
use dafs_proto::{SetAttr, StatfsReply, Status};
use std::sync::Arc;

/// Lets through what reads, and refuses what changes, with [`Status::ReadOnly`].
///
/// A session whose access is read-only asks this store and no other, so that no operation can forget
/// to look at the right.
#[derive(Debug)]
pub struct ReadOnlyStore(Arc<dyn Store>);

impl ReadOnlyStore {
    /// The same tree, to be read only.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

fn refused<T>(what: &str) -> Result<T> {
    let what = format!("{what}: the export is read-only for this client");
    Err(StoreError::new(Status::ReadOnly, what))
}

fn opening(access: Access) -> Result<()> {
    if access.writes() { refused("open for writing") } else { Ok(()) }
}

impl Store for ReadOnlyStore {
    fn id(&self) -> [u8; 8] {
        self.0.id()
    }

    fn root(&self) -> Handle {
        self.0.root()
    }

    fn lookup(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Node> {
        self.0.lookup(who, directory, name)
    }

    /// Finds what is there, and creates nothing.
    fn create(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)> {
        match self.0.lookup(who, directory, name) {
            Ok(_) if options.exclusive => {
                Err(StoreError::new(Status::Exists, "create a file whose name is taken"))
            }
            Ok(node) => Ok((node, None)),
            Err(error) if error.status == Status::NoEntry => refused("creating a file"),
            Err(error) => Err(error),
        }
    }

    fn open(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>> {
        opening(access)?;
        self.0.open(who, handle, access)
    }

    fn reopen(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>> {
        opening(access)?;
        self.0.reopen(who, handle, access)
    }

    fn may_read(&self, who: &Credential, handle: &Handle) -> Result<()> {
        self.0.may_read(who, handle)
    }

    fn node(&self, who: &Credential, handle: &Handle) -> Result<Node> {
        self.0.node(who, handle)
    }

    fn set_attr(&self, _: &Credential, _: &Handle, _: &SetAttr) -> Result<Node> {
        refused("setting attributes")
    }

    fn mkdir(&self, _: &Credential, _: &Handle, _: &[u8], _: &SetAttr) -> Result<Node> {
        refused("making a directory")
    }

    fn unlink(&self, _: &Credential, _: &Handle, _: &[u8]) -> Result<Removed> {
        refused("removing a name")
    }

    fn rmdir(&self, _: &Credential, _: &Handle, _: &[u8]) -> Result<()> {
        refused("removing a directory")
    }

    fn rename(&self, _: &Credential, _: (&Handle, &[u8]), _: (&Handle, &[u8])) -> Result<Renamed> {
        refused("renaming")
    }

    fn readdir(
        &self,
        who: &Credential,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        self.0.readdir(who, directory, cookie, max_bytes)
    }

    fn symlink(&self, _: &Credential, _: &Handle, _: &[u8], _: &[u8]) -> Result<Node> {
        refused("making a symbolic link")
    }

    fn readlink(&self, who: &Credential, handle: &Handle) -> Result<Vec<u8>> {
        self.0.readlink(who, handle)
    }

    fn link(&self, _: &Credential, _: &Handle, _: &Handle, _: &[u8]) -> Result<Node> {
        refused("making a link")
    }

    fn most_removed_open(&self) -> usize {
        self.0.most_removed_open()
    }

    fn statfs(&self, who: &Credential, handle: &Handle) -> Result<StatfsReply> {
        self.0.statfs(who, handle)
    }
}

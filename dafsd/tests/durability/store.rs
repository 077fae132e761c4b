//! The store on a [`Disk`]: one directory of regular files, whoever asks. It does what the store on
//! a local directory does with an inode: its number is its handle, one description is shared by all
//! who have the file open, and a file without a name lives as long as that.

use super::disk::{Disk, When, failed};
use dafs_proto::{Attr, FileType, SetAttr, StatfsReply, Status};
use dafsd::store::{
    Access, CreateOptions, Credential, Entry, Handle, Identity, Node, Removed, Renamed, Result,
    Store, StoreFile,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// The number of the device.
pub const DEVICE: u64 = 77;
/// The number of the directory.
const ROOT: u64 = 1;

/// The store. Made anew for each start of the server.
#[derive(Debug)]
pub struct MemoryStore {
    disk: Arc<Disk>,
    /// The server that uses it has ended: whatever still runs of it does nothing.
    dead: Arc<AtomicBool>,
    files: Mutex<HashMap<u64, Weak<MemoryFile>>>,
}

/// An open file description.
#[derive(Debug)]
struct MemoryFile {
    disk: Arc<Disk>,
    dead: Arc<AtomicBool>,
    number: u64,
    /// Losses of pages that it has told of.
    told: AtomicU64,
}

impl MemoryStore {
    /// The store of a server that runs as long as `dead` is not set.
    pub fn new(disk: Arc<Disk>, dead: Arc<AtomicBool>) -> Self {
        Self { disk, dead, files: Mutex::default() }
    }

    fn number(&self, handle: &Handle) -> Result<u64> {
        let bytes = handle.as_bytes().try_into();
        let number = bytes.map_or(0, u64::from_le_bytes);
        if number == ROOT {
            return Ok(number);
        }
        let links = self.disk.state().inodes.get(&number).map(|inode| inode.links);
        match links {
            Some(1..) => Ok(number),
            Some(0) if self.is_open(number) => Ok(number),
            _ => failed(Status::StaleHandle, format!("handle of file {number}")),
        }
    }

    fn regular(&self, handle: &Handle) -> Result<u64> {
        match self.number(handle)? {
            ROOT => failed(Status::IsDirectory, "the directory as a file"),
            number => Ok(number),
        }
    }

    fn check_root(&self, handle: &Handle) -> Result<()> {
        match self.number(handle)? {
            ROOT => Ok(()),
            number => failed(Status::NotDirectory, format!("file {number}")),
        }
    }

    fn is_open(&self, number: u64) -> bool {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&number).is_some_and(|file| file.strong_count() > 0)
    }

    fn open_number(&self, number: u64) -> Arc<MemoryFile> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&number).and_then(Weak::upgrade) {
            return file;
        }
        let told = AtomicU64::new(self.disk.told(number));
        let (disk, dead) = (Arc::clone(&self.disk), Arc::clone(&self.dead));
        let file = Arc::new(MemoryFile { disk, dead, number, told });
        files.insert(number, Arc::downgrade(&file));
        file
    }

    fn node_of(&self, number: u64) -> Result<Node> {
        let attr = match number {
            ROOT => Attr {
                r#type: FileType::Directory.into(),
                mode: 0o755,
                nlink: 2,
                device: DEVICE,
                inode: ROOT,
                ..Attr::default()
            },
            number => self.disk.attr(number)?,
        };
        Ok(Node { handle: handle_of(number), identity: identity_of(number), attr })
    }

    /// Takes a name away from a file.
    fn unlink_number(&self, number: u64) -> Removed {
        let mut state = self.disk.state();
        state.touch(number);
        let inode = state.inodes.get_mut(&number).expect("a name leads to a file");
        inode.links -= 1;
        Removed { identity: identity_of(number), last: inode.links == 0 }
    }
}

fn handle_of(number: u64) -> Handle {
    Handle::from_wire(&number.to_le_bytes()).expect("8 bytes are a handle")
}

/// The identity of the file with this number.
pub fn identity_of(number: u64) -> Identity {
    Identity { device: DEVICE, inode: number, generation: 1 }
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl Store for MemoryStore {
    fn id(&self) -> [u8; 8] {
        *b"durable!"
    }

    fn root(&self) -> Handle {
        handle_of(ROOT)
    }

    fn lookup(&self, _: &Credential, directory: &Handle, name: &[u8]) -> Result<Node> {
        self.check_root(directory)?;
        let number = self.disk.state().names.get(name).copied();
        match number {
            Some(number) => self.node_of(number),
            None => failed(Status::NoEntry, show(name)),
        }
    }

    fn create(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)> {
        self.check_root(directory)?;
        let known = self.disk.state().names.get(name).copied();
        if let Some(number) = known {
            if options.exclusive {
                return failed(Status::Exists, show(name));
            }
            return Ok((self.node_of(number)?, None));
        }
        let (uid, gid) = match who {
            Credential::Server => (0, 0),
            Credential::User { uid, gid, .. } => (*uid, *gid),
        };
        let number = {
            let mut state = self.disk.state();
            let number = state.create(name, uid, gid);
            state.set_attr(number, &SetAttr { size: None, ..options.attr })?;
            number
        };
        Ok((self.node_of(number)?, Some(self.open_number(number))))
    }

    fn open(&self, _: &Credential, handle: &Handle, _: Access) -> Result<Arc<dyn StoreFile>> {
        Ok(self.open_number(self.regular(handle)?))
    }

    fn reopen(
        &self,
        who: &Credential,
        handle: &Handle,
        access: Access,
    ) -> Result<Arc<dyn StoreFile>> {
        self.open(who, handle, access)
    }

    fn may_read(&self, _: &Credential, handle: &Handle) -> Result<()> {
        self.regular(handle).map(drop)
    }

    fn node(&self, _: &Credential, handle: &Handle) -> Result<Node> {
        self.node_of(self.number(handle)?)
    }

    fn set_attr(&self, _: &Credential, handle: &Handle, attr: &SetAttr) -> Result<Node> {
        let number = self.regular(handle)?;
        self.disk.state().set_attr(number, attr)?;
        self.node_of(number)
    }

    fn mkdir(&self, _: &Credential, _: &Handle, name: &[u8], _: &SetAttr) -> Result<Node> {
        failed(Status::NotSupported, show(name))
    }

    fn unlink(&self, _: &Credential, directory: &Handle, name: &[u8]) -> Result<Removed> {
        self.check_root(directory)?;
        let number = self.disk.state().names.remove(name);
        match number {
            Some(number) => Ok(self.unlink_number(number)),
            None => failed(Status::NoEntry, show(name)),
        }
    }

    fn rmdir(&self, _: &Credential, _: &Handle, name: &[u8]) -> Result<()> {
        failed(Status::NoEntry, show(name))
    }

    fn rename(
        &self,
        _: &Credential,
        (from, from_name): (&Handle, &[u8]),
        (to, to_name): (&Handle, &[u8]),
    ) -> Result<Renamed> {
        self.check_root(from)?;
        self.check_root(to)?;
        let (moved, replaced) = {
            let mut state = self.disk.state();
            let Some(&moved) = state.names.get(from_name) else {
                return failed(Status::NoEntry, show(from_name));
            };
            let before = state.names.get(to_name).copied();
            if before != Some(moved) {
                state.names.remove(from_name);
                state.names.insert(to_name.to_vec(), moved);
                state.touch(moved);
            }
            (moved, before.filter(|before| *before != moved))
        };
        let replaced = replaced.map(|number| self.unlink_number(number));
        Ok(Renamed { moved: identity_of(moved), replaced })
    }

    fn readdir(
        &self,
        _: &Credential,
        directory: &Handle,
        cookie: u64,
        _: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        self.check_root(directory)?;
        let names: Vec<_> = self.disk.state().names.clone().into_iter().collect();
        let mut entries = Vec::new();
        for ((name, number), cookie) in names.into_iter().zip(1..).filter(|(_, at)| *at > cookie) {
            entries.push(Entry { name, cookie, node: self.node_of(number)? });
        }
        Ok((entries, true))
    }

    fn symlink(&self, _: &Credential, _: &Handle, name: &[u8], _: &[u8]) -> Result<Node> {
        failed(Status::NotSupported, show(name))
    }

    fn readlink(&self, _: &Credential, _: &Handle) -> Result<Vec<u8>> {
        failed(Status::Invalid, "a file as a symbolic link")
    }

    fn link(
        &self,
        _: &Credential,
        handle: &Handle,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node> {
        self.check_root(directory)?;
        let number = self.regular(handle)?;
        {
            let mut state = self.disk.state();
            if state.names.contains_key(name) {
                return failed(Status::Exists, show(name));
            }
            state.names.insert(name.to_vec(), number);
            state.touch(number);
            state.inode(number)?.links += 1;
        }
        self.node_of(number)
    }

    fn statfs(&self, _: &Credential, _: &Handle) -> Result<StatfsReply> {
        Ok(StatfsReply { block_size: super::PAGE as u64, name_max: 255, ..StatfsReply::default() })
    }
}

impl MemoryFile {
    fn check(&self) -> Result<()> {
        if self.dead.load(Ordering::Relaxed) {
            return failed(Status::Io, format!("file {} of a server that has ended", self.number));
        }
        Ok(())
    }
}

impl StoreFile for MemoryFile {
    fn identity(&self) -> Identity {
        identity_of(self.number)
    }

    fn writable(&self) -> bool {
        true
    }

    fn max_size(&self) -> u64 {
        self.disk.max_size()
    }

    fn attr(&self) -> Result<Attr> {
        self.check()?;
        self.disk.attr(self.number)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.disk.run_prepared(When::Read);
        self.check()?;
        self.disk.read(self.number, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.disk.run_prepared(When::Write);
        self.check()?;
        self.disk.write(self.number, data, offset)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.check()?;
        self.disk.set_len(self.number, len)
    }

    fn sync(&self, _: bool) -> Result<()> {
        self.disk.run_prepared(When::Sync);
        self.check()?;
        let result = self.disk.sync(self.number, &self.told);
        self.disk.run_prepared(When::Synced);
        result
    }

    fn set_mtime(&self, mtime: SystemTime) -> Result<()> {
        self.check()?;
        self.disk.set_mtime(self.number, mtime)
    }
}

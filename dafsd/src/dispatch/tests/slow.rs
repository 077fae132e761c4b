//! A store whose answers about files are delayed: what they say may be from before a write-back.

use super::*;
use crate::store;
use crate::store::{
    CreateOptions, Credential, Entry, Handle, Node, Removed, Renamed, Result, StoreFile,
};

type Job = Box<dyn FnOnce() + Send>;

/// A store that does something between finding attributes and giving them, once.
pub struct Slow {
    pub store: LocalStore,
    pub meanwhile: Mutex<Option<Job>>,
}

impl std::fmt::Debug for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slow")
    }
}

impl Slow {
    fn after<T>(&self, result: T) -> T {
        let job = self.meanwhile.lock().take();
        if let Some(job) = job {
            job();
        }
        result
    }
}

impl Store for Slow {
    fn id(&self) -> [u8; 8] {
        self.store.id()
    }
    fn root(&self) -> Handle {
        self.store.root()
    }
    fn lookup(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Node> {
        self.after(self.store.lookup(who, directory, name))
    }
    fn create(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        options: &CreateOptions,
    ) -> Result<(Node, Option<Arc<dyn StoreFile>>)> {
        self.after(self.store.create(who, directory, name, options))
    }
    fn open(
        &self,
        who: &Credential,
        handle: &Handle,
        access: store::Access,
    ) -> Result<Arc<dyn StoreFile>> {
        self.store.open(who, handle, access)
    }
    fn reopen(
        &self,
        who: &Credential,
        handle: &Handle,
        access: store::Access,
    ) -> Result<Arc<dyn StoreFile>> {
        self.store.reopen(who, handle, access)
    }
    fn may_read(&self, who: &Credential, handle: &Handle) -> Result<()> {
        self.store.may_read(who, handle)
    }
    fn node(&self, who: &Credential, handle: &Handle) -> Result<Node> {
        self.after(self.store.node(who, handle))
    }
    fn set_attr(&self, who: &Credential, handle: &Handle, attr: &SetAttr) -> Result<Node> {
        self.after(self.store.set_attr(who, handle, attr))
    }
    fn mkdir(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        attr: &SetAttr,
    ) -> Result<Node> {
        self.store.mkdir(who, directory, name, attr)
    }
    fn unlink(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<Removed> {
        self.store.unlink(who, directory, name)
    }
    fn rmdir(&self, who: &Credential, directory: &Handle, name: &[u8]) -> Result<()> {
        self.store.rmdir(who, directory, name)
    }
    fn rename(
        &self,
        who: &Credential,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Result<Renamed> {
        self.store.rename(who, from, to)
    }
    fn readdir(
        &self,
        who: &Credential,
        directory: &Handle,
        cookie: u64,
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        self.after(self.store.readdir(who, directory, cookie, max_bytes))
    }
    fn symlink(
        &self,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
        target: &[u8],
    ) -> Result<Node> {
        self.store.symlink(who, directory, name, target)
    }
    fn readlink(&self, who: &Credential, handle: &Handle) -> Result<Vec<u8>> {
        self.store.readlink(who, handle)
    }
    fn link(
        &self,
        who: &Credential,
        handle: &Handle,
        directory: &Handle,
        name: &[u8],
    ) -> Result<Node> {
        self.after(self.store.link(who, handle, directory, name))
    }
    fn statfs(&self, who: &Credential, handle: &Handle) -> Result<StatfsReply> {
        self.store.statfs(who, handle)
    }
}

/// Runs a future whose waits are over when it is polled, as those are whose runtime is inline.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

fn times(attr: Option<Attr>) -> [(i64, u32); 2] {
    let attr = attr.unwrap();
    [attr.mtime, attr.ctime].map(|time| time.map(|t| (t.seconds, t.nanoseconds)).unwrap())
}

/// How an operation is asked for attributes of the file: by the root and its handle.
type Ask = fn(&World, &Arc<FakeLink>, &[u8], &[u8]) -> Option<Attr>;

#[test]
fn times_do_not_run_back_where_a_write_back_overtakes_the_answer() {
    let asks: [Ask; 6] = [
        |world, link, _, handle| {
            let getattr = GetAttrRequest { handle: handle.to_vec() };
            world.call(link, &getattr, (1, 1)).unwrap().attr
        },
        |world, link, root, _| {
            let lookup = LookupRequest { directory: root.to_vec(), name: b"f".to_vec() };
            world.call(link, &lookup, (1, 1)).unwrap().attr
        },
        |world, link, root, _| world.open(link, root, (1, 1)).attr,
        |world, link, root, _| {
            let readdir =
                ReaddirRequest { directory: root.to_vec(), cookie: 0, max_bytes: 1 << 15 };
            let entries = world.call(link, &readdir, (1, 1)).unwrap().entries;
            entries.into_iter().find(|entry| entry.name == b"f").unwrap().attr
        },
        |world, link, _, handle| {
            let attr = Some(SetAttr { mode: Some(0o644), ..SetAttr::default() });
            let setattr = SetAttrRequest { handle: handle.to_vec(), attr, ..Default::default() };
            world.call(link, &setattr, (1, 1)).unwrap().attr
        },
        |world, link, root, handle| {
            let (directory, name) = (root.to_vec(), b"g".to_vec());
            let request = LinkRequest { handle: handle.to_vec(), directory, name };
            world.call(link, &request, (1, 1)).unwrap().attr
        },
    ];
    for (number, ask) in asks.into_iter().enumerate() {
        let (world, slow) = slow_world();
        let (link, connect) = world.session();
        let open = world.open(&link, &connect.root, (0, 1));
        let node = slow.store.lookup(&Credential::Server, &slow.store.root(), b"f").unwrap();
        let file = world.server.cache().find(&node.identity).unwrap();
        let extents = vec![Extent { offset: 0, length: 1 }];
        let write = WriteRequest { open: open.open, extents, ..Default::default() };
        world.call_with(&link, &write, (0, 2), b"x").unwrap();
        let getattr = GetAttrRequest { handle: open.handle.clone() };
        let acknowledged = times(world.call(&link, &getattr, (0, 3)).unwrap().attr);
        let written_back = Arc::clone(&file);
        let job = move || {
            now(written_back.commit(Extent::default())).unwrap();
        };
        *slow.meanwhile.lock() = Some(Box::new(job));
        let shown = times(ask(&world, &link, &connect.root, &open.handle));
        assert!(slow.meanwhile.lock().is_none(), "it was overtaken");
        for (now, before) in shown.into_iter().zip(acknowledged) {
            assert!(now >= before, "ask {number}: {now:?} after {before:?}");
        }
    }
}

/// A world whose export `data` is slow.
fn slow_world() -> (World, Arc<Slow>) {
    slow_world_at(Protection::None)
}

fn slow_world_at(protection: Protection) -> (World, Arc<Slow>) {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(directory.path().join("f"), b"hello").unwrap();
    let store = LocalStore::new(directory.path(), LocalOptions::default()).unwrap();
    let slow = Arc::new(Slow { store, meanwhile: Mutex::default() });
    let first: Arc<dyn Store> = Arc::clone(&slow) as Arc<dyn Store>;
    let access = super::clients::access();
    let world = build_on(directory, other, None, protection, access, Some(first));
    (world, slow)
}

/// A request that is not waited for.
fn say<C: Call>(world: &World, link: &Arc<FakeLink>, request: &C, at: (u16, u32)) {
    let link: Arc<dyn Link> = link.clone();
    world.service.message(&link, &message(request, at.0, at.1), &[]);
}

#[test]
fn of_two_changes_side_by_side_one_sees_what_the_other_gave() {
    let chmod = |handle: &[u8], mode| {
        let attr = Some(SetAttr { mode: Some(mode), ..SetAttr::default() });
        SetAttrRequest { handle: handle.to_vec(), attr, ..SetAttrRequest::default() }
    };
    // The one that gives comes in between wherever the one that takes looks at the file.
    for looks in 0..3 {
        let (world, slow) = slow_world_at(Protection::Sealed);
        let world = Arc::new(world);
        let (link, connect) = world.session_of(1);
        let (other, _) = world.session_of(3);
        let open = world.open(&link, &connect.root, (0, 1));
        world.call(&link, &chmod(&open.handle, 0o600), (0, 2)).unwrap();
        let node = slow.store.lookup(&Credential::Server, &slow.store.root(), b"f").unwrap();
        let file = world.server.cache().find(&node.identity).unwrap();
        let before = file.epoch();
        let (gives, between) = (chmod(&open.handle, 0o644), Arc::clone(&world));
        let mut job: Job = Box::new(move || say(&between, &other, &gives, (1, 1)));
        for _ in 0..looks {
            let (next, again) = (job, Arc::clone(&slow));
            job = Box::new(move || *again.meanwhile.lock() = Some(next));
        }
        *slow.meanwhile.lock() = Some(job);
        world.call(&link, &chmod(&open.handle, 0o600), (0, 3)).unwrap();
        world.server.runtime().run_queued();
        let happened = slow.meanwhile.lock().is_none();
        let mode = slow.store.node(&Credential::Server, &node.handle).unwrap().attr.mode;
        assert!(happened || looks == 2, "look {looks}");
        let given = mode & 0o044 != 0;
        assert!(!happened || given || file.epoch() > before, "look {looks}: a right was kept");
    }
}

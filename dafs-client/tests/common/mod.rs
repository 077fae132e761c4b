//! A server in memory, and a transport to it, for tests of the client alone.
#![allow(dead_code)]

mod ops;
mod transport;

use dafs_client::blocking::Client;
use dafs_client::{Options, Protection};
use dafs_keys::page::PageKey;
use dafs_keys::{FileKey, Identity, ReadKey, Secret};
use dafs_proto::{Header, Kind, Op, Status};
use ordma::slot::FOOTER_LEN;
use ordma::{AccessFault, Footer, RemoteRef};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const PAGE: usize = 4096;
pub const ROOT: u64 = 1;

/// What to do with a request.
pub enum Verdict {
    /// Serve it.
    Serve,
    /// Serve it, then lose the connection before the reply arrives.
    ServeAndCut,
    /// Lose the connection before the request arrives.
    Cut,
    /// Say nothing.
    Ignore,
    /// Send this in place of a reply: head and data.
    Answer(Vec<u8>, Vec<u8>),
    /// Serve it, and let this change head and data of the reply.
    Change(Change),
}

type Change = Box<dyn FnOnce(&mut Vec<u8>, &mut Vec<u8>) + Send>;
/// Head and data.
type Message = (Vec<u8>, Vec<u8>);
type Script = Box<dyn FnMut(&Header, &[u8]) -> Verdict + Send>;

/// A file, directory or symbolic link.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub directory: Option<BTreeMap<Vec<u8>, u64>>,
    pub target: Option<Vec<u8>>,
    pub data: Vec<u8>,
    /// What survives a restart.
    pub stable: Vec<u8>,
    pub mode: u32,
}

/// What tells a sealed page from all others: its key's epoch, file, block, generation, version.
type Sealed = (u64, u64, u64, u64, u64);

/// A page's slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub generation: u64,
    pub version: u64,
}

#[derive(Default)]
pub struct Session {
    pub opens: HashMap<u64, u64>,
    pub last_open: u64,
    /// Last sequence number and reply of each slot.
    pub replies: HashMap<u16, (u32, Option<Message>)>,
}

/// Changes what a read delivers: all footers, then all payloads.
pub type Meanwhile = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

pub struct State {
    pub boot: u64,
    pub slots: u16,
    pub credits: u16,
    pub max_inline: u32,
    pub max_transfer: u32,
    pub lease_ms: u32,
    pub nodes: BTreeMap<u64, Node>,
    pub sessions: HashMap<Vec<u8>, Session>,
    pub cached: HashMap<(u64, u64), Slot>,
    pub protection: Protection,
    pub identity: Arc<Identity>,
    /// Of this boot: what keys of files are derived from.
    pub secret: Secret,
    /// The epochs of files that are not in their first.
    pub epochs: HashMap<u64, u64>,
    /// Pages that were sealed, each once, as their nonces demand.
    sealed: HashMap<Sealed, ([u8; FOOTER_LEN], Vec<u8>)>,
    pub last_generation: u64,
    pub verifier: u64,
    /// The number of the last change.
    pub changes: u64,
    /// What becomes of changes that come again: all is skipped, or all is refused.
    pub resends: Option<Judgement>,
    /// What clients said of changes that came again.
    pub resent: Vec<dafs_proto::Resend>,
    /// What happens to the next one-sided page reads; empty: they are served.
    pub faults: VecDeque<Option<AccessFault>>,
    pub script: Option<Script>,
    /// Direct reads that are placed from slots, each with what happens to the pages meanwhile.
    pub from_slots: VecDeque<Meanwhile>,
    /// Direct reads that wanted copies.
    pub whole_reads: u32,
    /// The next page that holds the end of its file is delivered as from before the file was shortened.
    pub without_last: bool,
    /// No direct transfer succeeds, as where the client has no memory for it.
    pub no_direct: bool,
    /// No connection can be made.
    pub refuse: bool,
    pub resume: bool,
    pub shm_socket: String,
    pub verbs_address: String,
    /// One-sided reads are done while they are posted.
    pub local_reads: bool,
    /// None is worth posting now.
    pub rearming: bool,
    pub log: Vec<Op>,
    /// What clients said at CONNECT of whom to act for.
    pub credentials: Vec<Option<dafs_proto::Credential>>,
    /// The seals of fetched write data.
    pub seals: Vec<Vec<u8>>,
    pub one_sided: u64,
    pub heat: Vec<u8>,
    pub connects: u32,
    pub links: Vec<std::sync::Weak<transport::FakeEndpoint>>,
}

/// What becomes of a change that comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Skip,
    Refuse,
}

/// The server. Clones are the same.
#[derive(Clone)]
pub struct Server(Arc<Mutex<State>>);

impl Server {
    pub fn new() -> Self {
        let root = Node { directory: Some(BTreeMap::new()), mode: 0o755, ..Node::default() };
        Self(Arc::new(Mutex::new(State {
            boot: 100,
            slots: 16,
            credits: 16,
            max_inline: 64 << 10,
            max_transfer: 1 << 20,
            lease_ms: 60_000,
            nodes: BTreeMap::from([(ROOT, root)]),
            sessions: HashMap::new(),
            cached: HashMap::new(),
            protection: Protection::None,
            identity: Arc::new(Identity::generate().unwrap()),
            secret: Secret::random().unwrap(),
            epochs: HashMap::new(),
            sealed: HashMap::new(),
            last_generation: 0,
            verifier: 1,
            changes: 0,
            resends: None,
            resent: Vec::new(),
            faults: VecDeque::new(),
            script: None,
            from_slots: VecDeque::new(),
            whole_reads: 0,
            without_last: false,
            no_direct: false,
            refuse: false,
            resume: true,
            shm_socket: String::new(),
            verbs_address: String::new(),
            local_reads: false,
            rearming: false,
            log: Vec::new(),
            credentials: Vec::new(),
            seals: Vec::new(),
            one_sided: 0,
            heat: Vec::new(),
            connects: 0,
            links: Vec::new(),
        })))
    }

    /// One whose export is guarded.
    pub fn protected(level: Protection) -> Self {
        let server = Self::new();
        server.state().protection = level;
        server
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A client that asks for this server's level.
    pub fn client(&self) -> Client {
        let protection = self.state().protection;
        self.client_with(Options { protection, ..options() })
    }

    pub fn client_with(&self, options: Options) -> Client {
        Client::connect_over(self.connector(), "data", options).expect("connect")
    }

    pub fn connector(&self) -> Arc<dyn ordma::Connector> {
        Arc::new(transport::FakeConnector(self.clone()))
    }

    /// Adds a file to the root, on stable storage.
    pub fn add_file(&self, name: &str, data: &[u8]) -> u64 {
        let (data, stable) = (data.to_vec(), data.to_vec());
        self.add(ROOT, name, Node { data, stable, mode: 0o644, ..Node::default() })
    }

    pub fn add(&self, directory: u64, name: &str, node: Node) -> u64 {
        self.state().add(directory, name.as_bytes(), node)
    }

    /// Decides about every request from now on.
    pub fn script(&self, script: impl FnMut(&Header, &[u8]) -> Verdict + Send + 'static) {
        self.state().script = Some(Box::new(script));
    }

    /// Decides about the next request of this operation.
    pub fn once(&self, op: Op, verdict: impl FnOnce() -> Verdict + Send + 'static) {
        let mut verdict = Some(verdict);
        self.script(move |header, _| match verdict.take_if(|_| header.op == op) {
            Some(verdict) => verdict(),
            None => Verdict::Serve,
        });
    }

    /// The process ends and another begins: what was not committed is lost.
    pub fn restart(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.verifier += 1;
        state.sessions.clear();
        state.cached.clear();
        state.secret = Secret::random().unwrap();
        state.epochs.clear();
        for node in state.nodes.values_mut() {
            node.data = node.stable.clone();
        }
        drop(state);
        self.cut();
    }

    /// All connections are lost.
    pub fn cut(&self) {
        let links = std::mem::take(&mut self.state().links);
        links.iter().filter_map(std::sync::Weak::upgrade).for_each(|link| link.cut());
    }

    /// The requests since the last call, but RENEW.
    pub fn take_log(&self) -> Vec<Op> {
        let mut log = std::mem::take(&mut self.state().log);
        log.retain(|op| *op != Op::Renew);
        log
    }
}

impl State {
    pub fn add(&mut self, directory: u64, name: &[u8], node: Node) -> u64 {
        let id = self.nodes.keys().max().unwrap() + 1;
        self.nodes.insert(id, node);
        let entries = self.nodes.get_mut(&directory).unwrap().directory.as_mut().unwrap();
        entries.insert(name.to_vec(), id);
        id
    }

    /// The number a file has in footers, during this boot.
    pub fn number(&self, id: u64) -> u64 {
        self.boot * 1_000_000 + id
    }

    pub fn blocks(&self, id: u64) -> u64 {
        (self.nodes[&id].data.len().div_ceil(PAGE) as u64).max(1)
    }

    /// Brings a page into the cache.
    pub fn fill(&mut self, id: u64, block: u64) -> Slot {
        let last = &mut self.last_generation;
        *self.cached.entry((id, block)).or_insert_with(|| {
            *last += 1;
            Slot { generation: *last, version: 0 }
        })
    }

    /// The epoch of a file's key.
    pub fn epoch(&self, id: u64) -> u64 {
        self.epochs.get(&id).copied().unwrap_or(1)
    }

    /// Someone may not read the file any more: its key changes, and what is cached is sealed anew.
    pub fn bump(&mut self, id: u64) {
        let epoch = self.epoch(id) + 1;
        self.epochs.insert(id, epoch);
        for (_, slot) in self.cached.iter_mut().filter(|((file, _), _)| *file == id) {
            slot.version += 1;
        }
    }

    pub fn page_key(&self, id: u64) -> PageKey {
        PageKey::derive(&self.secret, self.epoch(id), self.number(id))
    }

    pub fn read_key(&self, id: u64) -> ReadKey {
        ReadKey::derive(&self.secret.keyed(), self.epoch(id), self.number(id))
    }

    /// A file's key, for a client that has the one of the epoch `known`.
    pub fn wire_key(&self, id: u64, known: Option<u64>) -> Option<dafs_proto::FileKey> {
        let epoch = self.epoch(id);
        let secret = match self.protection {
            Protection::None => return None,
            Protection::Keyed => self.read_key(id).secret().expose().to_vec(),
            Protection::Sealed => self.page_key(id).secret().expose().to_vec(),
        };
        (known != Some(epoch)).then_some(dafs_proto::FileKey { epoch, secret })
    }

    /// A page and its footer, as they lie in the slot.
    pub fn page(&mut self, id: u64, block: u64, slot: Slot) -> ([u8; FOOTER_LEN], Vec<u8>) {
        let data = &self.nodes[&id].data;
        let start = (block as usize * PAGE).min(data.len());
        let end = (start + PAGE).min(data.len());
        let mut payload = data[start..end].to_vec();
        payload.resize(PAGE, 0);
        let footer = Footer {
            kind: ordma::Kind::Data,
            sealed: false,
            epoch: match self.protection {
                Protection::None => 0,
                Protection::Keyed | Protection::Sealed => self.epoch(id) as u16,
            },
            last: block + 1 == self.blocks(id) && !std::mem::take(&mut self.without_last),
            valid: (end - start) as u32,
            file: self.number(id),
            block,
            generation: slot.generation,
            version: slot.version,
        };
        if self.protection != Protection::Sealed {
            return (footer.encode(&payload), payload);
        }
        let key = self.page_key(id);
        let name = (key.epoch(), footer.file, block, slot.generation, slot.version);
        let sealed = self.sealed.entry(name).or_insert_with(|| {
            let footer = footer.seal(&mut payload, &key);
            (footer, payload)
        });
        sealed.clone()
    }

    /// What a one-sided read of a slot finds.
    pub fn read_slot(
        &mut self,
        reference: &RemoteRef,
        floor: u64,
        key: &FileKey,
    ) -> Result<(Footer, Vec<u8>), AccessFault> {
        self.one_sided += 1;
        if let Some(Some(fault)) = self.faults.pop_front() {
            return Err(fault);
        }
        let id = u64::from(reference.slot >> 16);
        let block = u64::from(reference.slot & 0xffff);
        if reference.chunk != 1 {
            return Err(AccessFault::Gone);
        }
        let slot = *self.cached.get(&(id, block)).ok_or(AccessFault::Stale)?;
        let (footer, mut payload) = self.page(id, block, slot);
        if let FileKey::Keyed(key) = key
            && key.secret().expose() != self.read_key(id).secret().expose()
        {
            return Err(AccessFault::Revoked);
        }
        ordma::slot::accept(&footer, &mut payload, reference, floor, key)
            .map(|footer| (footer, payload))
    }

    /// Changes a file's bytes and size; pages change in place, those beyond the end are killed.
    pub fn change(&mut self, id: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let data = &mut self.nodes.get_mut(&id).unwrap().data;
        change(data);
        let blocks = self.blocks(id);
        self.cached.retain(|(file, block), slot| {
            slot.version += u64::from(*file == id);
            *file != id || *block < blocks
        });
    }

    /// The page leaves the cache.
    pub fn evict(&mut self, id: u64, block: u64) {
        self.cached.remove(&(id, block));
    }
}

pub fn reply(header: &Header, status: Status, credits: u16, body: &impl prost::Message) -> Vec<u8> {
    dafs_proto::encode_message(Header::reply(header, status, credits), body)
}

/// A reply that nobody asked for.
pub fn raw_reply(op: Op, slot: u16, sequence: u32, credits: u16) -> Vec<u8> {
    let header =
        Header { kind: Kind::Reply, op, status: Status::Ok, slot, credits, sequence, body_len: 0 };
    dafs_proto::encode_message(header, &dafs_proto::CloseReply::default())
}

pub fn options() -> Options {
    Options {
        protection: Protection::None,
        timeout: Duration::from_secs(5),
        name: "test".into(),
        ..Options::default()
    }
}

/// Bytes that tell where in a file they are.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / PAGE * 31 + 1) as u8).collect()
}

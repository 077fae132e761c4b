//! Messages in, messages out, over a link that only remembers.

mod clients;
mod credentials;
mod disk;
mod failures;
mod handles;
mod sessions;
mod slow;

use super::*;
use crate::access::Access;
use crate::cache::{Cache, CacheConfig};
use crate::exporter::Listeners;
use crate::runtime::Runtime;
use crate::server::{Export, Limits, Settings};
use crate::session::SessionLimits;
use crate::store::{LocalOptions, LocalStore, Store};
use crate::sync::Mutex;
use dafs_keys::{HandleKey, Protection, PublicKey, Secret};
use dafs_proto::*;
use ordma::arena::Geometry;
use ordma::{Capabilities, Established, Tag, Transfer};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A link that remembers what was sent, and why it was closed.
#[derive(Debug, Default)]
struct FakeLink {
    id: u64,
    /// Its own, where it has no other.
    address: Option<&'static str>,
    channel: Option<Arc<Established>>,
    sent: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    closed: Mutex<Option<String>>,
    may_read: Mutex<bool>,
    places_slots: Mutex<bool>,
    /// The direct transfers that are under way.
    transfers: Mutex<Vec<Transfer>>,
}

impl Link for FakeLink {
    fn id(&self) -> u64 {
        self.id
    }
    fn peer(&self) -> String {
        self.address.map_or_else(|| format!("fake {}", self.id), |a| format!("{a}:{}", self.id))
    }
    fn channel(&self) -> Option<&Arc<Established>> {
        self.channel.as_ref()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            engine: "fake",
            geometry: None,
            local_reads: false,
            read_batch: 1,
            tags: false,
            places_slots: *self.places_slots.lock(),
        }
    }
    fn send(&self, head: &[u8], data: &[u8]) {
        self.sent.lock().push((head.to_vec(), data.to_vec()));
    }
    fn write_to(&self, _: Tag, _: Vec<u8>) -> Transfer {
        self.transfer()
    }
    fn read_from(&self, _: Tag, _: u64, _: Vec<u8>) -> Transfer {
        self.transfer()
    }
    fn allow_reads(&self, access: Option<ordma::ReadAccess>) {
        let allow = access.is_some();
        *self.may_read.lock() = allow;
    }
    fn close(&self, reason: &str) {
        self.closed.lock().get_or_insert_with(|| reason.to_owned());
    }
}

impl FakeLink {
    fn transfer(&self) -> Transfer {
        let transfer = Transfer::new();
        self.transfers.lock().push(transfer.clone());
        transfer
    }

    fn take(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut *self.sent.lock())
    }

    fn why_closed(&self) -> String {
        self.closed.lock().clone().unwrap_or_default()
    }
}

struct World {
    directory: tempfile::TempDir,
    /// The root of the export `other`.
    other: tempfile::TempDir,
    server: Arc<Server>,
    service: Arc<Dispatcher>,
    /// Milliseconds on the server's clock.
    time: Arc<AtomicU64>,
    links: Mutex<u64>,
}

const SETTINGS: Settings = Settings {
    limits: Limits { page_size: 4096, max_inline: 16384, max_transfer: 65536 },
    session: SessionLimits { slots: 4, opens: 2, lease: Duration::from_secs(10) },
    max_sessions: 2,
    connect_timeout: Duration::from_secs(5),
    data_in_flight: 20_000,
    transfers: 8,
};

fn world() -> World {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in [&directory, &other] {
        std::fs::write(directory.path().join("f"), b"hello").unwrap();
    }
    server(directory, other, None)
}

/// A server whose exports are guarded in this way.
fn world_of(directory: tempfile::TempDir, protection: Protection, access: Access) -> World {
    std::fs::write(directory.path().join("f"), b"hello").unwrap();
    build(directory, tempfile::tempdir().unwrap(), None, protection, access)
}

/// A server of these directories, with what it has in its state directory, if any.
fn server(directory: tempfile::TempDir, other: tempfile::TempDir, state: Option<&Path>) -> World {
    build(directory, other, state, Protection::None, Access::default())
}

fn build(
    directory: tempfile::TempDir,
    other: tempfile::TempDir,
    state: Option<&Path>,
    protection: Protection,
    access: Access,
) -> World {
    build_on(directory, other, state, protection, access, None)
}

/// As [`build`], with this store in place of the one of the export `data`.
fn build_on(
    directory: tempfile::TempDir,
    other: tempfile::TempDir,
    state: Option<&Path>,
    protection: Protection,
    access: Access,
    data: Option<Arc<dyn Store>>,
) -> World {
    let secret = match state {
        Some(state) => crate::state::load_secret(state).unwrap(),
        None => Secret::from_bytes([7; Secret::LEN]),
    };
    let runtime = Runtime::inline();
    let config = CacheConfig {
        geometry: Geometry::new(4096, 64 * 4096).unwrap(),
        budget: 1 << 20,
        dirty_limit: 1 << 19,
        writeback_interval: Duration::from_secs(5),
        retire_patience: Duration::from_secs(5),
        disk_patience: Duration::from_secs(30),
    };
    let listeners = Arc::new(Listeners::default());
    let cache = Cache::new(
        config,
        [protection],
        listeners,
        runtime.clone(),
        Arc::new(crate::sharing::Boots::forgetful(1)),
    )
    .unwrap();
    let export = |name: &str, directory: &tempfile::TempDir, read_only| {
        let options =
            LocalOptions { read_only, state: state.map(Path::to_owned), ..Default::default() };
        let store = LocalStore::new(directory.path(), options).unwrap();
        Export {
            name: name.to_owned(),
            handles: HandleKey::derive(&secret, &store.id()),
            store: Arc::new(store),
            read_only,
            protection,
        }
    };
    let mut exports = vec![
        export("data", &directory, false),
        export("frozen", &directory, true),
        export("other", &other, false),
    ];
    if let Some(store) = data {
        exports[0].store = store;
    }
    let time = Arc::new(AtomicU64::new(0));
    let (start, now) = (Instant::now(), Arc::clone(&time));
    let clock = Box::new(move || start + Duration::from_millis(now.load(Ordering::Relaxed)));
    let server = Server::new(SETTINGS, exports, access, cache, runtime, clock);
    server.set_ready();
    let service = Dispatcher::new(Arc::clone(&server));
    World { directory, other, server, service, time, links: Mutex::new(0) }
}

fn connect_request(export: &str) -> ConnectRequest {
    let version = VERSION.into();
    ConnectRequest { version, export: export.into(), protection: 1, slots: 3, ..Default::default() }
}

fn message<C: Call>(request: &C, slot: u16, sequence: u32) -> Vec<u8> {
    encode_message(Header::request(C::OP, slot, sequence, 0), request)
}

impl World {
    fn link(&self) -> Arc<FakeLink> {
        self.link_with(None)
    }

    /// A connection of the owner of this key.
    fn link_with(&self, key: Option<PublicKey>) -> Arc<FakeLink> {
        let mut links = self.links.lock();
        *links += 1;
        let established =
            |key| Arc::new(Established::new(key, Protection::Sealed, Secret::from_bytes([1; 32])));
        let channel = key.map(established);
        let link = Arc::new(FakeLink { id: *links, channel, ..FakeLink::default() });
        self.service.connected(link.clone());
        link
    }

    /// A connection from this address.
    fn link_from(&self, address: &'static str) -> Arc<FakeLink> {
        let mut links = self.links.lock();
        *links += 1;
        let (id, address) = (*links, Some(address));
        let link = Arc::new(FakeLink { id, address, ..FakeLink::default() });
        self.service.connected(link.clone());
        link
    }

    fn raw(&self, link: &Arc<FakeLink>, head: &[u8], data: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let link_dyn: Arc<dyn Link> = link.clone();
        self.service.message(&link_dyn, head, data);
        self.server.runtime().run_queued();
        link.take()
    }

    /// Sends a request and expects one reply.
    fn call_with<C: Call>(
        &self,
        link: &Arc<FakeLink>,
        request: &C,
        (slot, sequence): (u16, u32),
        data: &[u8],
    ) -> Result<(C::Reply, Vec<u8>), (Status, String)> {
        let mut sent = self.raw(link, &message(request, slot, sequence), data);
        assert_eq!(sent.len(), 1, "one reply; closed: {}", link.why_closed());
        let (head, data) = sent.remove(0);
        let (header, body) = Header::decode(&head).unwrap();
        assert_eq!((header.kind, header.op), (Kind::Reply, C::OP));
        assert_eq!((header.slot, header.sequence), (slot, sequence));
        assert!(header.credits >= 1);
        if header.status.is_ok() {
            return Ok((C::Reply::decode(body).unwrap(), data));
        }
        Err((header.status, ErrorReply::decode(body).unwrap().message))
    }

    fn call<C: Call>(
        &self,
        link: &Arc<FakeLink>,
        request: &C,
        at: (u16, u32),
    ) -> Result<C::Reply, (Status, String)> {
        self.call_with(link, request, at, &[]).map(|(reply, _)| reply)
    }

    fn connect(&self, link: &Arc<FakeLink>) -> ConnectReply {
        self.call(link, &connect_request("data"), (NO_SLOT, 1)).unwrap()
    }

    fn session(&self) -> (Arc<FakeLink>, ConnectReply) {
        let link = self.link();
        let reply = self.connect(&link);
        (link, reply)
    }

    fn open(&self, link: &Arc<FakeLink>, root: &[u8], at: (u16, u32)) -> OpenReply {
        let request = OpenRequest {
            directory: root.to_vec(),
            name: b"f".to_vec(),
            access: 3,
            ..OpenRequest::default()
        };
        self.call(link, &request, at).unwrap()
    }

    fn close(&self, link: &Arc<FakeLink>) {
        let link: Arc<dyn Link> = link.clone();
        self.service.closed(&link, &LinkError::Closed("test".into()));
    }

    fn pass(&self, seconds: u64) {
        self.time.fetch_add(seconds * 1000, Ordering::Relaxed);
        self.server.tick();
    }
}

fn status<T: std::fmt::Debug>(result: Result<T, (Status, String)>) -> Status {
    result.unwrap_err().0
}

impl World {
    /// A session where others may have used up their number.
    fn connect_again(&self, link: &Arc<FakeLink>) {
        self.call(link, &connect_request("data"), (NO_SLOT, 7)).unwrap();
    }
}

#[test]
fn a_session_reads_and_writes() {
    let world = world();
    let (link, connect) = world.session();
    assert_eq!((connect.slots, connect.page_size, connect.lease_ms), (3, 4096, 10_000));
    assert!(!connect.resumed && !connect.read_only && *link.may_read.lock());
    let open = world.open(&link, &connect.root, (0, 1));
    assert_eq!(open.attr.unwrap().size, 5);

    let extent = Extent { offset: 3, length: 4 };
    let write = WriteRequest { open: open.open, extents: vec![extent], ..Default::default() };
    let (reply, _) = world.call_with(&link, &write, (0, 2), b"LONG").unwrap();
    assert_eq!((reply.count, reply.size), (4, 7));
    let extents = vec![Extent { offset: 0, length: 4096 }];
    let read = ReadRequest { open: open.open, extents, ..Default::default() };
    let (reply, data) = world.call_with(&link, &read, (1, 1), &[]).unwrap();
    assert_eq!((reply.counts, reply.size), (vec![1], 7));
    assert_eq!(data.len(), 64 + 4096);
    assert_eq!(&data[64..72], b"helLONG\0");

    let getattr = GetAttrRequest { handle: open.handle.clone() };
    assert_eq!(world.call(&link, &getattr, (0, 3)).unwrap().attr.unwrap().size, 7);
    let size = SetAttr { size: Some(2), ..SetAttr::default() };
    let setattr = SetAttrRequest {
        handle: open.handle.clone(),
        attr: Some(size),
        ..SetAttrRequest::default()
    };
    assert_eq!(world.call(&link, &setattr, (0, 4)).unwrap().attr.unwrap().size, 2);
    let commit = CommitRequest { open: open.open, ..CommitRequest::default() };
    world.call(&link, &commit, (0, 5)).unwrap();
    assert_eq!(std::fs::read(world.directory.path().join("f")).unwrap(), b"he");

    let unlink = UnlinkRequest { directory: connect.root.clone(), name: b"f".to_vec() };
    world.call(&link, &unlink, (0, 6)).unwrap();
    let (reply, data) = world.call_with(&link, &read, (1, 2), &[]).unwrap();
    assert_eq!((reply.size, &data[64..68]), (2, &b"he\0\0"[..]));
    assert_eq!(world.call(&link, &getattr, (0, 7)).unwrap().attr.unwrap().nlink, 0);
    world.call(&link, &CloseRequest { open: open.open }, (0, 8)).unwrap();
    assert_eq!(status(world.call(&link, &read, (1, 3))), Status::BadOpen);
    world.server.cache().sweep_files();
    assert_eq!(status(world.call(&link, &getattr, (0, 9))), Status::StaleHandle);

    let stats = world.call(&link, &StatsRequest {}, (2, 1)).unwrap();
    let value = |name: &str| stats.counters.iter().find(|c| c.name == name).map(|c| c.value);
    assert_eq!(value("handler_calls"), Some(12));
    assert_eq!(
        (value("op_read"), value("op_stats"), value("op_connect")),
        (Some(3), Some(1), Some(1))
    );
    assert_eq!((value("sessions"), value("opens"), value("errors")), (Some(1), Some(0), Some(2)));
    assert!(value("process_resident_bytes") > Some(0) && value("cache_hits").is_some());
}

#[test]
fn a_read_only_export_is_only_read() {
    let world = world();
    let link = world.link();
    let connect = world.call(&link, &connect_request("frozen"), (NO_SLOT, 1)).unwrap();
    assert!(connect.read_only);
    let open = OpenRequest {
        directory: connect.root.clone(),
        name: b"f".to_vec(),
        access: 2,
        ..OpenRequest::default()
    };
    let (code, text) = world.call(&link, &open, (0, 1)).unwrap_err();
    assert_eq!(code, Status::ReadOnly);
    assert!(text.contains("frozen"), "{text}");
    world.call(&link, &OpenRequest { access: 1, ..open }, (0, 2)).unwrap();
    let mkdir = MkdirRequest { directory: connect.root, name: b"d".to_vec(), attr: None };
    assert_eq!(status(world.call(&link, &mkdir, (0, 3))), Status::ReadOnly);
}

/// A session has half of those in its direction.
#[test]
fn direct_transfers_are_bounded() {
    direct_transfers_are_bounded_from(false);
}

/// What cannot go at once is copied.
#[test]
fn direct_transfers_from_slots_are_bounded() {
    direct_transfers_are_bounded_from(true);
}

fn direct_transfers_are_bounded_from(slots: bool) {
    let world = world();
    let (link, connect) = world.session();
    *link.places_slots.lock() = slots;
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent { offset: 0, length: 5 }];
    let buffers = vec![Buffer { tag: 1, address: 0, length: 5000 }];
    let read = ReadRequest { open, extents, placement: 1, buffers, ..Default::default() };
    for slot in 0..3 {
        world.raw(&link, &message(&read, slot, if slot == 0 { 2 } else { 1 }), &[]);
    }
    assert_eq!(link.transfers.lock().len(), SETTINGS.transfers / 4);
    let transfer = link.transfers.lock().remove(0);
    transfer.complete(Ok(Vec::new()));
    world.server.runtime().run_queued();
    assert_eq!(link.transfers.lock().len(), SETTINGS.transfers / 4);
    assert_eq!(link.take().len(), 1);
}

#[test]
fn a_server_that_stops_refuses_and_flushes() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent { offset: 5, length: 6 }];
    let write = WriteRequest { open, extents, ..Default::default() };
    world.call_with(&link, &write, (0, 2), b" world").unwrap();
    assert!(world.server.drain(Duration::from_secs(1)));
    let (code, _) = world.call_with(&link, &write, (0, 3), b" WORLD").unwrap_err();
    assert_eq!(code, Status::ServerStopping);
    assert!(world.link().why_closed().contains("stopping"));
    world.server.flush_and_kill(Duration::from_secs(1)).unwrap();
    assert_eq!(std::fs::read(world.directory.path().join("f")).unwrap(), b"hello world");
    for chunk in world.server.cache().arena().chunks() {
        let generation = |slot| chunk.footer(slot).unwrap()[32..40].to_vec();
        assert!((0..chunk.geometry().slots).all(|slot| generation(slot) == [0; 8]));
    }
}

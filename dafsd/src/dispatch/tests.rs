//! Messages in, messages out, over a link that only remembers.

use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::exporter::Listeners;
use crate::runtime::Runtime;
use crate::server::{Export, Limits, Settings};
use crate::session::SessionLimits;
use crate::store::{LocalOptions, LocalStore};
use crate::sync::Mutex;
use dafs_keys::Protection;
use dafs_proto::*;
use ordma::arena::Geometry;
use ordma::{Capabilities, Tag, Transfer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A link that remembers what was sent, and why it was closed.
#[derive(Debug, Default)]
struct FakeLink {
    id: u64,
    sent: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    closed: Mutex<Option<String>>,
    may_read: Mutex<bool>,
    /// The direct transfers that are under way.
    transfers: Mutex<Vec<Transfer>>,
}

impl Link for FakeLink {
    fn id(&self) -> u64 {
        self.id
    }
    fn peer(&self) -> String {
        format!("fake {}", self.id)
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            engine: "fake",
            geometry: None,
            local_reads: false,
            read_batch: 1,
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
    fn allow_reads(&self, allow: bool) {
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
    server: Arc<Server>,
    service: Arc<Dispatcher>,
    /// Milliseconds on the server's clock.
    time: Arc<AtomicU64>,
    links: Mutex<u64>,
}

const SETTINGS: Settings = Settings {
    limits: Limits {
        page_size: 4096,
        max_inline: 16384,
        max_transfer: 65536,
    },
    session: SessionLimits {
        slots: 4,
        opens: 2,
        lease: Duration::from_secs(10),
    },
    max_sessions: 2,
    connect_timeout: Duration::from_secs(5),
    data_in_flight: 20_000,
    transfers: 2,
};

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), b"hello").unwrap();
    let runtime = Runtime::inline();
    let config = CacheConfig {
        geometry: Geometry::new(4096, 64 * 4096).unwrap(),
        budget: 1 << 20,
        dirty_limit: 1 << 19,
        writeback_interval: Duration::from_secs(5),
        retire_patience: Duration::from_secs(5),
    };
    let cache = Cache::new(config, Arc::new(Listeners::default()), runtime.clone()).unwrap();
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        store: Arc::new(
            LocalStore::new(
                directory.path(),
                LocalOptions {
                    read_only,
                    ..Default::default()
                },
            )
            .unwrap(),
        ),
        read_only,
        protection: Protection::None,
    };
    let exports = vec![export("data", false), export("frozen", true)];
    let time = Arc::new(AtomicU64::new(0));
    let (start, now) = (Instant::now(), Arc::clone(&time));
    let clock = Box::new(move || start + Duration::from_millis(now.load(Ordering::Relaxed)));
    let server = Server::new(SETTINGS, exports, cache, runtime, clock).unwrap();
    server.set_ready();
    let service = Dispatcher::new(Arc::clone(&server));
    World {
        directory,
        server,
        service,
        time,
        links: Mutex::new(0),
    }
}

fn connect_request(export: &str) -> ConnectRequest {
    let version = VERSION.into();
    ConnectRequest {
        version,
        export: export.into(),
        protection: 1,
        slots: 3,
        ..Default::default()
    }
}

fn message<C: Call>(request: &C, slot: u16, sequence: u32) -> Vec<u8> {
    encode_message(Header::request(C::OP, slot, sequence, 0), request)
}

impl World {
    fn link(&self) -> Arc<FakeLink> {
        let mut links = self.links.lock();
        *links += 1;
        let link = Arc::new(FakeLink {
            id: *links,
            ..FakeLink::default()
        });
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
        self.call_with(link, request, at, &[])
            .map(|(reply, _)| reply)
    }

    fn connect(&self, link: &Arc<FakeLink>) -> ConnectReply {
        self.call(link, &connect_request("data"), (NO_SLOT, 1))
            .unwrap()
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
        self.service
            .closed(&link, &LinkError::Closed("test".into()));
    }

    fn pass(&self, seconds: u64) {
        self.time.fetch_add(seconds * 1000, Ordering::Relaxed);
        self.server.tick();
    }
}

fn status<T: std::fmt::Debug>(result: Result<T, (Status, String)>) -> Status {
    result.unwrap_err().0
}

#[test]
fn a_session_reads_and_writes() {
    let world = world();
    let (link, connect) = world.session();
    assert_eq!(
        (connect.slots, connect.page_size, connect.lease_ms),
        (3, 4096, 10_000)
    );
    assert!(!connect.resumed && !connect.read_only && *link.may_read.lock());
    let open = world.open(&link, &connect.root, (0, 1));
    assert_eq!(open.attr.unwrap().size, 5);

    let extent = Extent {
        offset: 3,
        length: 4,
    };
    let write = WriteRequest {
        open: open.open,
        extents: vec![extent],
        ..Default::default()
    };
    let (reply, _) = world.call_with(&link, &write, (0, 2), b"LONG").unwrap();
    assert_eq!((reply.count, reply.size), (4, 7));
    let extents = vec![Extent {
        offset: 0,
        length: 4096,
    }];
    let read = ReadRequest {
        open: open.open,
        extents,
        ..Default::default()
    };
    let (reply, data) = world.call_with(&link, &read, (1, 1), &[]).unwrap();
    assert_eq!((reply.counts, reply.size), (vec![1], 7));
    assert_eq!(data.len(), 64 + 4096);
    assert_eq!(&data[64..72], b"helLONG\0");

    let getattr = GetAttrRequest {
        handle: open.handle.clone(),
    };
    assert_eq!(
        world
            .call(&link, &getattr, (0, 3))
            .unwrap()
            .attr
            .unwrap()
            .size,
        7
    );
    let size = SetAttr {
        size: Some(2),
        ..SetAttr::default()
    };
    let setattr = SetAttrRequest {
        handle: open.handle.clone(),
        attr: Some(size),
    };
    assert_eq!(
        world
            .call(&link, &setattr, (0, 4))
            .unwrap()
            .attr
            .unwrap()
            .size,
        2
    );
    let commit = CommitRequest {
        open: open.open,
        extent: None,
    };
    world.call(&link, &commit, (0, 5)).unwrap();
    assert_eq!(
        std::fs::read(world.directory.path().join("f")).unwrap(),
        b"he"
    );

    let unlink = UnlinkRequest {
        directory: connect.root.clone(),
        name: b"f".to_vec(),
    };
    world.call(&link, &unlink, (0, 6)).unwrap();
    let (reply, data) = world.call_with(&link, &read, (1, 2), &[]).unwrap();
    assert_eq!((reply.size, &data[64..68]), (2, &b"he\0\0"[..]));
    assert_eq!(
        world
            .call(&link, &getattr, (0, 7))
            .unwrap()
            .attr
            .unwrap()
            .nlink,
        0
    );
    world
        .call(&link, &CloseRequest { open: open.open }, (0, 8))
        .unwrap();
    assert_eq!(status(world.call(&link, &read, (1, 3))), Status::BadOpen);
    world.server.cache().sweep_files();
    assert_eq!(
        status(world.call(&link, &getattr, (0, 9))),
        Status::StaleHandle
    );

    let stats = world.call(&link, &StatsRequest {}, (2, 1)).unwrap();
    let value = |name: &str| {
        stats
            .counters
            .iter()
            .find(|c| c.name == name)
            .map(|c| c.value)
    };
    assert_eq!(value("handler_calls"), Some(12));
    assert_eq!(
        (value("op_read"), value("op_stats"), value("op_connect")),
        (Some(3), Some(1), Some(1))
    );
    assert_eq!(
        (value("sessions"), value("opens"), value("errors")),
        (Some(1), Some(0), Some(2))
    );
    assert!(value("process_resident_bytes") > Some(0) && value("cache_hits").is_some());
}

#[test]
fn a_message_that_is_none_ends_its_connection_only() {
    let world = world();
    let (other, _) = world.session();
    let good = message(&StatsRequest {}, 0, 1);
    let mut cases: Vec<Vec<u8>> = (0..Header::LEN).map(|len| good[..len].to_vec()).collect();
    // Magic, version, kind, status, a body that is not there, flags.
    for (at, value) in [
        (0, 0),
        (2, 9),
        (3, 2),
        (3, 9),
        (6, 1),
        (16, 1),
        (19, 0xFF),
        (20, 1),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        cases.push(bad);
    }
    for case in cases {
        let link = world.link();
        world.connect_again(&link);
        assert!(world.raw(&link, &case, &[]).is_empty());
        assert!(!link.why_closed().is_empty(), "{case:?}");
        world.close(&link);
        world.pass(20);
    }
    assert!(other.why_closed().is_empty());
    world.call(&other, &StatsRequest {}, (0, 1)).unwrap();
}

impl World {
    /// A session where others may have used up their number.
    fn connect_again(&self, link: &Arc<FakeLink>) {
        self.call(link, &connect_request("data"), (NO_SLOT, 7))
            .unwrap();
    }
}

#[test]
fn an_unknown_operation_is_answered_and_takes_its_number() {
    let world = world();
    let (link, _) = world.session();
    let mut head = message(&StatsRequest {}, 0, 1);
    head[4..6].copy_from_slice(&999u16.to_le_bytes());
    let sent = world.raw(&link, &head, &[]);
    let mut reply = sent[0].0.clone();
    assert_eq!(reply[4..6], 999u16.to_le_bytes());
    reply[4..6].copy_from_slice(&Op::Stats.number().to_le_bytes());
    let (header, body) = Header::decode(&reply).unwrap();
    assert_eq!(
        (header.status, header.slot, header.sequence),
        (Status::UnknownOperation, 0, 1)
    );
    assert!(ErrorReply::decode(body).unwrap().message.contains("999"));
    world.call(&link, &StatsRequest {}, (0, 2)).unwrap();
}

#[test]
fn a_body_of_the_wrong_form_is_refused() {
    let world = world();
    let (link, _) = world.session();
    for (sequence, op) in (1..).zip(Op::ALL.iter().filter(|op| **op != Op::Connect)) {
        let mut head = Vec::new();
        let body = [0x0A, 0xFF, 0x01];
        let body_len = body.len() as u32;
        Header {
            body_len,
            ..Header::request(*op, 0, sequence, 0)
        }
        .encode(&mut head);
        head.extend(body);
        let sent = world.raw(&link, &head, &[]);
        let (header, body) = Header::decode(&sent[0].0).unwrap();
        assert_eq!(header.status, Status::BadMessage, "{op}");
        assert!(
            ErrorReply::decode(body)
                .unwrap()
                .message
                .contains(op.name())
        );
    }
    let mut head = Vec::new();
    Header {
        body_len: 1,
        ..Header::request(Op::Connect, NO_SLOT, 1, 0)
    }
    .encode(&mut head);
    head.push(0xFF);
    let sent = world.raw(&world.link(), &head, &[]);
    assert_eq!(
        Header::decode(&sent[0].0).unwrap().0.status,
        Status::BadMessage
    );
}

#[test]
fn requests_of_no_session_are_refused() {
    let world = world();
    let link = world.link();
    assert_eq!(
        status(world.call(&link, &StatsRequest {}, (0, 1))),
        Status::BadSession
    );
    let connect = connect_request("data");
    assert_eq!(status(world.call(&link, &connect, (0, 1))), Status::BadSlot);
    let wrong = ConnectRequest {
        version: 9,
        ..connect.clone()
    };
    assert_eq!(
        status(world.call(&link, &wrong, (NO_SLOT, 1))),
        Status::Version
    );
    let (code, text) = world
        .call(&link, &connect_request("none"), (NO_SLOT, 1))
        .unwrap_err();
    assert_eq!(code, Status::NoExport);
    assert!(
        text.contains("none") && text.contains("data, frozen"),
        "{text}"
    );
    for protection in [0, 2, 3, 77] {
        let wrong = ConnectRequest {
            protection,
            ..connect.clone()
        };
        let (code, text) = world.call(&link, &wrong, (NO_SLOT, 1)).unwrap_err();
        assert_eq!(code, Status::Protection);
        assert!(text.contains("\"data\"") && text.contains("none"), "{text}");
    }
    let wrong = ConnectRequest {
        session: vec![1; 15],
        ..connect.clone()
    };
    assert_eq!(
        status(world.call(&link, &wrong, (NO_SLOT, 1))),
        Status::Invalid
    );

    world.connect(&link);
    assert_eq!(
        status(world.call(&link, &connect, (NO_SLOT, 2))),
        Status::Invalid
    );
    assert_eq!(
        status(world.call(&link, &StatsRequest {}, (3, 1))),
        Status::BadSlot
    );
    assert_eq!(
        status(world.call(&link, &StatsRequest {}, (0, 2))),
        Status::BadSequence
    );
    assert_eq!(world.server.session_counts().0, 1);
}

#[test]
fn a_reply_is_sent_again_and_the_work_not_done_again() {
    let world = world();
    let (link, connect) = world.session();
    let mkdir = MkdirRequest {
        directory: connect.root.clone(),
        name: b"d".to_vec(),
        attr: None,
    };
    let head = message(&mkdir, 0, 1);
    let first = world.raw(&link, &head, &[]);
    assert_eq!(world.raw(&link, &head, &[]), first);
    world.close(&link);

    // Over a new connection, too.
    let again = world.link();
    let resume = ConnectRequest {
        session: connect.session.clone(),
        ..connect_request("data")
    };
    let reply = world.call(&again, &resume, (NO_SLOT, 1)).unwrap();
    assert!(reply.resumed);
    assert_eq!(
        (reply.session, reply.boot, reply.slots),
        (connect.session, connect.boot, 3)
    );
    assert_eq!(world.raw(&again, &head, &[]), first);
    assert_eq!(status(world.call(&again, &mkdir, (0, 2))), Status::Exists);
    assert_eq!(status(world.call(&again, &mkdir, (0, 2))), Status::Exists);

    // What only reads is done again.
    let lookup = LookupRequest {
        directory: connect.root,
        name: b"d".to_vec(),
    };
    world.call(&again, &lookup, (0, 3)).unwrap();
    std::fs::remove_dir(world.directory.path().join("d")).unwrap();
    assert_eq!(status(world.call(&again, &lookup, (0, 3))), Status::NoEntry);
}

#[test]
fn a_session_goes_on_over_a_new_connection_only() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    let resume = ConnectRequest {
        session: connect.session.clone(),
        ..connect_request("data")
    };
    let other_export = ConnectRequest {
        export: "frozen".into(),
        ..resume.clone()
    };
    let again = world.link();
    assert_eq!(
        status(world.call(&again, &other_export, (NO_SLOT, 1))),
        Status::Invalid
    );
    assert!(world.call(&again, &resume, (NO_SLOT, 1)).unwrap().resumed);
    assert!(link.why_closed().contains("anew"), "{}", link.why_closed());
    assert!(!*link.may_read.lock() && *again.may_read.lock());
    assert_eq!(
        status(world.call(&link, &StatsRequest {}, (1, 1))),
        Status::BadSession
    );
    world.close(&link);
    let getattr = GetAttrRequest {
        handle: open.handle,
    };
    world.call(&again, &getattr, (1, 1)).unwrap();
    assert_eq!(world.server.session_counts(), (1, 1));

    world.call(&again, &DisconnectRequest {}, (0, 2)).unwrap();
    assert_eq!(world.server.session_counts(), (0, 0));
    assert!(!*again.may_read.lock());
    assert_eq!(
        status(world.call(&again, &getattr, (1, 2))),
        Status::BadSession
    );
    assert!(!world.call(&again, &resume, (NO_SLOT, 1)).unwrap().resumed);
}

#[test]
fn sessions_and_connections_are_bounded_and_end_in_time() {
    let world = world();
    let (first, connect) = world.session();
    let (_second, _) = world.session();
    let third = world.link();
    let (code, text) = world
        .call(&third, &connect_request("data"), (NO_SLOT, 1))
        .unwrap_err();
    assert_eq!(code, Status::TooManySessions);
    assert!(
        text.contains('2') && text.contains("sessions.max"),
        "{text}"
    );
    let fourth = world.link();
    assert!(world.link().why_closed().contains("too many"));

    world.pass(6);
    assert!(fourth.why_closed().contains("no session"));
    assert!(first.why_closed().is_empty());
    world.close(&first);
    world.pass(9);
    let resume = ConnectRequest {
        session: connect.session,
        ..connect_request("data")
    };
    assert!(world.call(&third, &resume, (NO_SLOT, 1)).unwrap().resumed);
    world.close(&third);
    world.pass(11);
    assert_eq!(world.server.session_counts().0, 1);
    let fifth = world.link();
    assert!(!world.call(&fifth, &resume, (NO_SLOT, 1)).unwrap().resumed);
}

#[test]
fn opens_are_bounded_and_say_what_they_allow() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    world.open(&link, &connect.root, (0, 2));
    let request = OpenRequest {
        handle: open.handle.clone(),
        access: 1,
        ..OpenRequest::default()
    };
    assert_eq!(
        status(world.call(&link, &request, (0, 3))),
        Status::TooManyOpenFiles
    );
    world
        .call(&link, &CloseRequest { open: open.open }, (0, 4))
        .unwrap();
    let readable = world.call(&link, &request, (0, 5)).unwrap();
    let extents = vec![Extent {
        offset: 0,
        length: 1,
    }];
    let write = WriteRequest {
        open: readable.open,
        extents,
        ..Default::default()
    };
    assert_eq!(
        status(world.call_with(&link, &write, (0, 6), b"x")),
        Status::BadOpen
    );
    for (sequence, wrong) in (7..).zip([
        OpenRequest {
            access: 0,
            ..request.clone()
        },
        OpenRequest {
            access: 4,
            ..request.clone()
        },
        OpenRequest {
            truncate: true,
            ..request.clone()
        },
        OpenRequest {
            create: 1,
            ..request.clone()
        },
        OpenRequest {
            create: 9,
            ..request.clone()
        },
    ]) {
        world
            .call(
                &link,
                &CloseRequest {
                    open: readable.open,
                },
                (1, sequence - 6),
            )
            .ok();
        assert_eq!(
            status(world.call(&link, &wrong, (0, sequence))),
            Status::Invalid
        );
    }
}

#[test]
fn a_read_only_export_is_only_read() {
    let world = world();
    let link = world.link();
    let connect = world
        .call(&link, &connect_request("frozen"), (NO_SLOT, 1))
        .unwrap();
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
    world
        .call(&link, &OpenRequest { access: 1, ..open }, (0, 2))
        .unwrap();
    let mkdir = MkdirRequest {
        directory: connect.root,
        name: b"d".to_vec(),
        attr: None,
    };
    assert_eq!(status(world.call(&link, &mkdir, (0, 3))), Status::ReadOnly);
}

#[test]
fn too_much_inline_data_is_refused() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let length = u64::from(SETTINGS.limits.max_inline) + 1;
    let extents = vec![Extent { offset: 0, length }];
    let write = WriteRequest {
        open,
        extents,
        ..Default::default()
    };
    let data = vec![1; length as usize];
    assert_eq!(
        status(world.call_with(&link, &write, (0, 2), &data)),
        Status::MessageTooBig
    );
    // It was not executed: the same number may come again, and so may the next.
    assert_eq!(
        status(world.call_with(&link, &write, (0, 2), &data)),
        Status::MessageTooBig
    );
    world.call(&link, &StatsRequest {}, (0, 3)).unwrap();
}

#[test]
fn a_transfer_that_breaks_leaves_the_request_to_be_repeated() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent {
        offset: 0,
        length: 5,
    }];
    let buffers = vec![Buffer {
        tag: 1,
        address: 0,
        length: 5,
    }];
    let write = WriteRequest {
        open,
        extents,
        placement: 1,
        buffers,
        ..Default::default()
    };
    let head = message(&write, 0, 2);
    assert!(world.raw(&link, &head, &[]).is_empty());
    let lost = || Err(LinkError::Closed("test".into()));
    let transfer = link.transfers.lock().remove(0);

    // The client comes back over a new connection while the transfer hangs: it hears nothing, and
    // is cut off when the transfer has failed, so that it asks once more.
    let resume = ConnectRequest {
        session: connect.session,
        ..connect_request("data")
    };
    let second = world.link();
    world.call(&second, &resume, (NO_SLOT, 1)).unwrap();
    world.close(&link);
    assert!(world.raw(&second, &head, &[]).is_empty());
    transfer.complete(lost());
    world.server.runtime().run_queued();
    assert!(
        second.why_closed().contains("resend"),
        "{}",
        second.why_closed()
    );
    world.close(&second);

    let third = world.link();
    world.call(&third, &resume, (NO_SLOT, 1)).unwrap();
    assert!(world.raw(&third, &head, &[]).is_empty());
    let transfer = third.transfers.lock().remove(0);
    transfer.complete(Ok(b"WORLD".to_vec()));
    world.server.runtime().run_queued();
    let sent = third.take();
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::Ok);
    // And now it is done, once.
    assert_eq!(world.raw(&third, &head, &[]), sent);
    assert!(third.transfers.lock().is_empty());

    // A transfer that fails while the connection holds is an error like others.
    let next = message(&write, 0, 3);
    assert!(world.raw(&third, &next, &[]).is_empty());
    third.transfers.lock().remove(0).complete(lost());
    world.server.runtime().run_queued();
    let sent = third.take();
    assert_eq!(
        Header::decode(&sent[0].0).unwrap().0.status,
        Status::Transfer
    );
}

#[test]
fn direct_transfers_are_bounded() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent {
        offset: 0,
        length: 5,
    }];
    let buffers = vec![Buffer {
        tag: 1,
        address: 0,
        length: 5000,
    }];
    let read = ReadRequest {
        open,
        extents,
        placement: 1,
        buffers,
        ..Default::default()
    };
    for slot in 0..3 {
        world.raw(
            &link,
            &message(&read, slot, if slot == 0 { 2 } else { 1 }),
            &[],
        );
    }
    assert_eq!(link.transfers.lock().len(), SETTINGS.transfers);
    let transfer = link.transfers.lock().remove(0);
    transfer.complete(Ok(Vec::new()));
    world.server.runtime().run_queued();
    assert_eq!(link.transfers.lock().len(), SETTINGS.transfers);
    assert_eq!(link.take().len(), 1);
}

#[test]
fn a_server_that_stops_refuses_and_flushes() {
    let world = world();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1)).open;
    let extents = vec![Extent {
        offset: 5,
        length: 6,
    }];
    let write = WriteRequest {
        open,
        extents,
        ..Default::default()
    };
    world.call_with(&link, &write, (0, 2), b" world").unwrap();
    assert!(world.server.drain(Duration::from_secs(1)));
    let (code, _) = world
        .call_with(&link, &write, (0, 3), b" WORLD")
        .unwrap_err();
    assert_eq!(code, Status::ServerStopping);
    assert!(world.link().why_closed().contains("stopping"));
    world.server.flush_and_kill().unwrap();
    assert_eq!(
        std::fs::read(world.directory.path().join("f")).unwrap(),
        b"hello world"
    );
    for chunk in world.server.cache().arena().chunks() {
        let generation = |slot| chunk.footer(slot).unwrap()[32..40].to_vec();
        assert!((0..chunk.geometry().slots).all(|slot| generation(slot) == [0; 8]));
    }
}

#[test]
fn a_panic_costs_one_error() {
    let world = world();
    let (link, _) = world.session();
    let head = message(&DisconnectRequest {}, 0, 1);
    let (header, _) = Header::decode(&head).unwrap();
    let link_dyn: Arc<dyn Link> = link.clone();
    let job = || {
        let (ticket, session, credits) = world.service.admit(&link_dyn, &header).unwrap();
        world.server.begin_request(0).unwrap();
        let server = Arc::clone(&world.server);
        let cx = OpContext {
            server,
            session,
            link: link_dyn.clone(),
            data: Vec::new(),
        };
        Job {
            cx,
            header,
            ticket,
            credits,
            replied: false,
        }
    };
    let first = job();
    world.server.runtime().run(async move {
        let result = caught(async {
            std::panic::resume_unwind(Box::new("test"));
            #[allow(unreachable_code)]
            Ok::<DisconnectReply, OpError>(DisconnectReply {})
        });
        first.finish::<DisconnectRequest>(result.await, |_| {});
    });
    let sent = link.take();
    assert_eq!(Header::decode(&sent[0].0).unwrap().0.status, Status::Io);
    // Whether it was executed is not known, so it is not executed again.
    assert_eq!(world.raw(&link, &head, &[]), sent);
    assert!(
        world.server.drain(Duration::ZERO),
        "nothing is under way any more"
    );
}

#[test]
fn a_dropped_request_is_answered() {
    let world = world();
    let (link, _) = world.session();
    let head = message(&RenewRequest::default(), 0, 1);
    let (header, _) = Header::decode(&head).unwrap();
    let link_dyn: Arc<dyn Link> = link.clone();
    let (ticket, session, credits) = world.service.admit(&link_dyn, &header).unwrap();
    world.server.begin_request(0).unwrap();
    let cx = OpContext {
        server: Arc::clone(&world.server),
        session,
        link: link_dyn,
        data: vec![],
    };
    drop(Job {
        cx,
        header,
        ticket,
        credits,
        replied: false,
    });
    assert_eq!(
        Header::decode(&link.take()[0].0).unwrap().0.status,
        Status::Io
    );
    assert!(world.server.drain(Duration::ZERO));
}

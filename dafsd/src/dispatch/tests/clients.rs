//! Clients that the server knows: what they may use, and what ends it.

use super::*;
use crate::access::Access;
use crate::authorized::Authorized;
use crate::server::{CutOff, FenceError};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// How long one waits for what takes no time.
const PATIENCE: Duration = Duration::from_secs(10);

fn until(done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn clients() -> String {
    format!(
        "{} web exports=data uid=0\n{} reader exports=*:ro uid=0\n{} other exports=data uid=0\n",
        key(1),
        key(2),
        key(3)
    )
}

pub fn access() -> Access {
    Access::of(Authorized::parse(&clients(), true).unwrap())
}

fn sealed() -> World {
    world_of(tempfile::tempdir().unwrap(), Protection::Sealed, access())
}

impl World {
    fn link_of(&self, number: u8) -> Arc<FakeLink> {
        self.link_with(Some(key(number)))
    }

    pub fn session_of(&self, number: u8) -> (Arc<FakeLink>, ConnectReply) {
        let link = self.link_of(number);
        let reply = self.connect(&link);
        (link, reply)
    }

    /// Why a client gets no session.
    fn refused(&self, number: u8, export: &str) -> (Status, String) {
        let link = self.link_of(number);
        let refused = self.call(&link, &connect_request(export), (NO_SLOT, 1)).unwrap_err();
        self.close(&link);
        refused
    }

    /// Begins to fence a client off.
    fn fence(&self, name: &'static str) -> Receiver<Result<CutOff, FenceError>> {
        let (sender, receiver) = channel();
        let server = Arc::clone(&self.server);
        std::thread::spawn(move || {
            // Some of those who begin it do not wait for it.
            let _ = sender.send(server.fence(name, PATIENCE));
        });
        receiver
    }

    /// Begins a write that waits for the client's buffer.
    fn begin_write(&self, link: &Arc<FakeLink>, open: u64, at: (u16, u32)) {
        let extents = vec![Extent { offset: 0, length: 5 }];
        let buffers = vec![Buffer { tag: 1, address: 0, length: 5 }];
        let write = WriteRequest { open, extents, placement: 1, buffers, ..Default::default() };
        assert!(self.raw(link, &message(&write, at.0, at.1), &[]).is_empty());
    }

    fn end_transfer(&self, link: &Arc<FakeLink>) {
        let transfer = link.transfers.lock().pop().unwrap();
        transfer.complete(Err(LinkError::Closed("test".into())));
        self.server.runtime().run_queued();
    }
}

#[test]
fn a_keyed_export_is_not_for_engines_that_cannot_check_tags() {
    let world = world_of(tempfile::tempdir().unwrap(), Protection::Keyed, access());
    let channel = Established::new(key(1), Protection::Keyed, Secret::from_bytes([1; 32]));
    let link = FakeLink { id: 1, channel: Some(Arc::new(channel)), ..FakeLink::default() };
    let link = Arc::new(link);
    assert!(!link.capabilities().tags);
    world.service.connected(link.clone());
    let refused = world.call(&link, &connect_request("data"), (NO_SLOT, 1));
    let (code, text) = refused.unwrap_err();
    assert_eq!(code, Status::Protection);
    assert!(text.contains("engine fake cannot check") && text.contains("sealed"), "{text}");
    assert!(!*link.may_read.lock());
}

#[test]
fn a_guarded_export_is_for_clients_that_may_use_it() {
    let world = sealed();
    let stranger = world.link();
    let request = connect_request("data");
    let (code, text) = world.call(&stranger, &request, (NO_SLOT, 1)).unwrap_err();
    assert_eq!(code, Status::Protection);
    assert!(text.contains("\"data\"") && text.contains("handshake"), "{text}");

    let (code, text) = world.refused(9, "data");
    assert_eq!(code, Status::Access);
    assert!(text.contains(&key(9).to_string()), "{text}");
    for export in ["frozen", "none"] {
        let (code, text) = world.refused(1, export);
        assert_eq!(code, Status::NoExport);
        assert!(text.ends_with("there are: data"), "what there is for others is not told: {text}");
    }
    let (code, text) = world.refused(9, "none");
    assert_eq!(code, Status::NoExport);
    assert!(!text.contains("data"), "{text}");

    let (_, reply) = world.session_of(1);
    assert_eq!((reply.protection, reply.read_only), (3, false));
    let [session] = &world.server.sessions()[..] else { panic!("one session") };
    assert_eq!((session.client_name(), session.key()), (Some("web"), Some(key(1))));
}

#[test]
fn a_client_that_may_only_read_changes_nothing() {
    let world = sealed();
    let (link, connect) = world.session_of(2);
    assert!(connect.read_only);
    let mkdir = MkdirRequest { directory: connect.root.clone(), name: b"d".to_vec(), attr: None };
    assert_eq!(status(world.call(&link, &mkdir, (0, 1))), Status::ReadOnly);
    let open = OpenRequest {
        directory: connect.root.clone(),
        name: b"f".to_vec(),
        access: 3,
        ..OpenRequest::default()
    };
    assert_eq!(status(world.call(&link, &open, (0, 2))), Status::ReadOnly);
    world.call(&link, &OpenRequest { access: 1, ..open }, (0, 3)).unwrap();
    let (link, connect) = world.session_of(1);
    let mkdir = MkdirRequest { directory: connect.root, ..mkdir };
    world.call(&link, &mkdir, (0, 1)).unwrap();
}

#[test]
fn a_session_goes_on_for_its_own_client_only() {
    let world = sealed();
    let (link, connect) = world.session_of(1);
    let resume = ConnectRequest { session: connect.session, ..connect_request("data") };
    let other = world.link_of(3);
    assert_eq!(status(world.call(&other, &resume, (NO_SLOT, 1))), Status::BadSession);
    assert!(link.why_closed().is_empty(), "nobody else cuts it off");
    let again = world.link_of(1);
    assert!(world.call(&again, &resume, (NO_SLOT, 1)).unwrap().resumed);
}

#[test]
fn a_trusted_mount_names_its_users_and_nobody_else_does() {
    let text = format!("{} web exports=* uid=1\n{} mount exports=* uids=any", key(1), key(2));
    let access = Access::of(Authorized::parse(&text, true).unwrap());
    let world = world_of(tempfile::tempdir().unwrap(), Protection::Sealed, access);
    let asking = |uid| {
        let credential = Some(Credential { uid, gid: 8, groups: vec![9] });
        ConnectRequest { credential, ..connect_request("data") }
    };
    for (number, request) in [(1, asking(1)), (2, connect_request("data")), (2, asking(0))] {
        let link = world.link_of(number);
        assert_eq!(status(world.call(&link, &request, (NO_SLOT, 1))), Status::Access);
        world.close(&link);
    }
    let reply = world.call(&world.link_of(2), &asking(7), (NO_SLOT, 1)).unwrap();
    let [session] = &world.server.sessions()[..] else { panic!("one session") };
    let expected = crate::store::Credential::User { uid: 7, gid: 8, groups: [9].into() };
    assert_eq!(session.permit().unwrap().credential, expected);
    let resume = |uid| ConnectRequest { session: reply.session.clone(), ..asking(uid) };
    assert!(!world.call(&world.link_of(2), &resume(6), (NO_SLOT, 1)).unwrap().resumed);
    assert!(world.call(&world.link_of(2), &resume(7), (NO_SLOT, 1)).unwrap().resumed);

    let open = super::world();
    assert_eq!(status(open.call(&open.link(), &asking(7), (NO_SLOT, 1))), Status::Access);
}

#[test]
fn a_fence_ends_sessions_and_waits_for_what_they_are_doing() {
    let world = sealed();
    let (link, connect) = world.session_of(1);
    let (other, _) = world.session_of(3);
    let open = world.open(&link, &connect.root, (0, 1)).open;
    world.begin_write(&link, open, (0, 2));

    let fence = world.fence("web");
    until(|| !link.why_closed().is_empty());
    assert!(matches!(fence.try_recv(), Err(TryRecvError::Empty)), "the write is being executed");
    assert!(!*link.may_read.lock());
    assert!(link.why_closed().contains("fenced"), "{}", link.why_closed());
    assert_eq!(world.server.session_counts(), (1, 0));
    assert_eq!(status(world.call(&link, &StatsRequest {}, (1, 1))), Status::BadSession);
    assert_eq!(world.refused(1, "data").0, Status::Fenced);
    let again = world.server.fence("web", Duration::ZERO).unwrap();
    let exports = vec!["data".to_owned()];
    let unfinished = CutOff { sessions: 0, exports: exports.clone(), unfinished: 1 };
    assert_eq!(again, unfinished, "neither is a second one done, and it says so");

    world.end_transfer(&link);
    let done = CutOff { sessions: 1, exports, unfinished: 0 };
    assert_eq!(fence.recv_timeout(PATIENCE).unwrap().unwrap(), done);
    assert!(other.why_closed().is_empty() && *other.may_read.lock());
    world.call(&other, &StatsRequest {}, (0, 1)).unwrap();

    world.server.unfence("web").unwrap();
    let resume = ConnectRequest { session: connect.session, ..connect_request("data") };
    let reply = world.call(&world.link_of(1), &resume, (NO_SLOT, 1)).unwrap();
    assert!(!reply.resumed);
}

#[test]
fn a_fence_waits_for_sessions_that_have_ended_by_themselves() {
    let world = sealed();
    let (link, connect) = world.session_of(1);
    let open = world.open(&link, &connect.root, (0, 1)).open;
    world.begin_write(&link, open, (0, 2));
    world.raw(&link, &message(&DisconnectRequest {}, 1, 1), &[]);
    world.pass(1);
    assert_eq!(world.server.session_counts(), (0, 0));
    assert_eq!(world.server.fence("web", Duration::ZERO).unwrap().unfinished, 1);
    let fence = world.fence("web");
    world.end_transfer(&link);
    assert_eq!(fence.recv_timeout(PATIENCE).unwrap().unwrap().unfinished, 0);
    let nobody = world.server.fence("nobody", Duration::ZERO);
    assert!(matches!(nobody, Err(FenceError::Unknown(_))));
}

#[test]
fn who_loses_rights_is_cut_off_and_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("authorized_clients");
    let write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&clients());
    let access = Access::load(&path, &state.path().join("fenced"), true).unwrap();
    let world = world_of(directory, Protection::Sealed, access);
    let (web, _) = world.session_of(1);
    let (other, connect) = world.session_of(3);

    write("nonsense");
    world.pass(1);
    assert!(web.why_closed().is_empty() && other.why_closed().is_empty());
    // One is removed, one gains.
    let [_, reader, gains] = [0, 1, 2].map(|at| clients().lines().nth(at).unwrap().to_owned());
    write(&format!("{reader}\n{}\n", gains.replace("exports=data", "exports=*")));
    world.pass(1);
    assert!(web.why_closed().contains("changed"), "{}", web.why_closed());
    assert!(!*web.may_read.lock());
    assert_eq!(world.refused(1, "data").0, Status::Access);
    world.call(&other, &StatsRequest {}, (0, 1)).unwrap();

    // A change of what it may do ends a session; what was gained comes with a new one.
    write(&gains.replace("exports=data", "exports=data:ro"));
    world.pass(1);
    assert!(other.why_closed().contains("changed"));
    write(&gains);
    let resume = ConnectRequest { session: connect.session, ..connect_request("data") };
    let link = world.link_of(3);
    let reply = world.call(&link, &resume, (NO_SLOT, 1)).unwrap();
    assert!(reply.read_only && !reply.resumed);
    world.close(&link);
    world.server.reload(true);
    let resume = ConnectRequest { session: reply.session, ..resume };
    let reply = world.call(&world.link_of(3), &resume, (NO_SLOT, 1)).unwrap();
    assert!(!reply.read_only && !reply.resumed);
}

//! Requests of sessions that belong to users. They take root, who may act as others.

use super::*;
use crate::access::Access;
use crate::authorized::Authorized;
use crate::store::Credential;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

static KEY: std::sync::LazyLock<PublicKey> =
    std::sync::LazyLock::new(|| PublicKey::from_bytes([5; 32]));

const USER: u32 = 1000;
const OTHER: u32 = 1001;

/// What `/proc` says of this thread, where the inline runtime serves requests.
fn identity() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let fields = ["Uid:", "Gid:", "Groups:", "CapEff:"];
    let is_identity = |line: &&str| fields.iter().any(|field| line.starts_with(field));
    status.lines().filter(is_identity).map(str::to_owned).collect()
}

/// A server of one client that may act as any user but root.
fn users() -> World {
    let clients = format!("{} mounts exports=* uids=any\n", *KEY);
    let access = Access::of(Authorized::parse(&clients, true).unwrap());
    world_of(tempfile::tempdir().unwrap(), Protection::Sealed, access)
}

impl World {
    /// A session of this user; the root's handle.
    fn user_session(&self, uid: u32, groups: &[u32]) -> (Arc<FakeLink>, Vec<u8>) {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "this test acts as other users: run it as root");
        let credential = Some(dafs_proto::Credential { uid, gid: uid, groups: groups.to_vec() });
        let link = self.link_with(Some(*KEY));
        let request = ConnectRequest { credential, ..connect_request("data") };
        let reply = self.call(&link, &request, (NO_SLOT, 1)).unwrap();
        let who = Credential::User { uid, gid: uid, groups: groups.into() };
        assert!(self.server.sessions().iter().any(|session| *session.credential() == who));
        (link, reply.root)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn give(&self, name: &str, owner: u32, mode: u32) {
        chown(self.path(name), Some(owner), Some(owner)).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }
}

#[test]
fn a_user_reads_writes_and_makes_what_the_user_may() {
    let world = users();
    let before = identity();
    let (link, root) = world.user_session(USER, &[77]);
    let open = |name: &str, access| OpenRequest {
        directory: root.clone(),
        name: name.into(),
        access,
        ..OpenRequest::default()
    };
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        (0, sequence)
    };
    for (owner, mode, access, expected) in [
        (0, 0o600, 1, Err(Status::Access)),
        (OTHER, 0o600, 1, Err(Status::Access)),
        (0, 0o644, 1, Ok(())),
        (0, 0o644, 2, Err(Status::Access)),
        (0, 0o644, 3, Err(Status::Access)),
        (77, 0o640, 1, Ok(())),
        (77, 0o640, 2, Err(Status::Access)),
        (USER, 0o600, 3, Ok(())),
    ] {
        world.give("f", owner, mode);
        let reply = world.call(&link, &open("f", access), next());
        assert_eq!(identity(), before);
        let result = reply.map_err(|(status, _)| status).map(|reply| {
            world.call(&link, &CloseRequest { open: reply.open }, next()).unwrap();
        });
        assert_eq!(result, expected, "owner {owner}, mode {mode:o}, access {access}");
    }
    // Truncating is writing, even where somebody has the file open for that.
    world.give("f", OTHER, 0o644);
    let (writer, _) = world.user_session(OTHER, &[]);
    world.call(&writer, &open("f", 3), (0, 1)).unwrap();
    let truncate = OpenRequest { truncate: true, ..open("f", 2) };
    assert_eq!(status(world.call(&link, &truncate, next())), Status::Access);
    let lookup = LookupRequest { directory: root.clone(), name: b"f".to_vec() };
    let handle = world.call(&link, &lookup, next()).unwrap().handle;
    let size = SetAttr { size: Some(0), ..SetAttr::default() };
    let setattr =
        SetAttrRequest { handle: handle.clone(), attr: Some(size), ..SetAttrRequest::default() };
    assert_eq!(status(world.call(&link, &setattr, next())), Status::Access);
    let chmod = SetAttr { mode: Some(0o777), ..SetAttr::default() };
    let setattr = SetAttrRequest { handle, attr: Some(chmod), ..SetAttrRequest::default() };
    assert_eq!(status(world.call(&link, &setattr, next())), Status::Permission);
    assert_eq!(std::fs::read(world.path("f")).unwrap(), b"hello");

    let create = OpenRequest { create: 1, ..open("new", 3) };
    world.give("", 0, 0o755);
    assert_eq!(status(world.call(&link, &create, next())), Status::Access);
    world.give("", 0, 0o1777);
    let unlink = UnlinkRequest { directory: root.clone(), name: b"f".to_vec() };
    assert_eq!(status(world.call(&link, &unlink, next())), Status::Permission);
    world.call(&link, &create, next()).unwrap();
    let metadata = std::fs::metadata(world.path("new")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (USER, USER));
    world.give("", 0, 0o700);
    let readdir = ReaddirRequest { directory: root.clone(), cookie: 0, max_bytes: 4096 };
    assert_eq!(status(world.call(&link, &readdir, next())), Status::Access);
    assert_eq!(identity(), before);
}

/// As with a descriptor: the mode of a file decides when it is opened.
#[test]
fn the_creator_of_a_file_writes_it_whatever_its_mode() {
    let world = users();
    world.give("", 0, 0o777);
    let (link, root) = world.user_session(USER, &[]);
    let attr = Some(SetAttr { mode: Some(0o400), ..SetAttr::default() });
    let name = b"new".to_vec();
    let create =
        OpenRequest { directory: root, name, access: 3, create: 2, attr, ..Default::default() };
    let open = world.call(&link, &create, (0, 1)).unwrap();
    let extents = vec![Extent { offset: 0, length: 5 }];
    let write = WriteRequest { open: open.open, extents, ..Default::default() };
    world.call_with(&link, &write, (0, 2), b"hello").unwrap();
    let size = SetAttr { size: Some(2), ..SetAttr::default() };
    let setattr = SetAttrRequest {
        handle: open.handle.clone(),
        attr: Some(size),
        ..SetAttrRequest::default()
    };
    world.call(&link, &setattr, (0, 3)).unwrap();
    world
        .call(&link, &CommitRequest { open: open.open, ..CommitRequest::default() }, (0, 4))
        .unwrap();
    assert_eq!(std::fs::read(world.path("new")).unwrap(), b"he");

    // By its name it is opened anew; by its handle again.
    let handle = open.handle;
    let by_handle = OpenRequest { handle, access: 3, ..OpenRequest::default() };
    world.call(&link, &by_handle, (0, 5)).unwrap();
    world.call(&link, &CloseRequest { open: open.open }, (0, 6)).unwrap();
    let by_name = OpenRequest { create: 0, attr: None, ..create };
    assert_eq!(status(world.call(&link, &by_name, (0, 7))), Status::Access);
    let (other, _) = world.user_session(OTHER, &[]);
    assert_eq!(status(world.call(&other, &by_handle, (0, 1))), Status::Access);
}

//! Handles that this server has not given out.

use super::*;

/// One request of each kind that takes a handle, with this one. Those that change something are told
/// to do what would succeed.
fn requests(world: &World, link: &Arc<FakeLink>, at: u32, handle: &[u8]) -> Vec<(Status, String)> {
    let handle = handle.to_vec();
    let name = || b"new".to_vec();
    let mut errors = Vec::new();
    let mut sequence = at;
    macro_rules! refused {
        ($($request:expr),* $(,)?) => {
            $( errors.push(world.call(link, &$request, (0, sequence)).unwrap_err()); sequence += 1; )*
        };
    }
    refused!(
        GetAttrRequest { handle: handle.clone() },
        SetAttrRequest {
            handle: handle.clone(),
            attr: Some(SetAttr { mode: Some(0o777), size: Some(0), ..SetAttr::default() }),
            ..SetAttrRequest::default()
        },
        OpenRequest { handle: handle.clone(), access: 1, ..OpenRequest::default() },
        OpenRequest {
            directory: handle.clone(),
            name: name(),
            access: 3,
            create: 1,
            ..OpenRequest::default()
        },
        LookupRequest { directory: handle.clone(), name: b"f".to_vec() },
        ReaddirRequest { directory: handle.clone(), cookie: 0, max_bytes: 4096 },
        MkdirRequest { directory: handle.clone(), name: name(), attr: None },
        SymlinkRequest { directory: handle.clone(), name: name(), target: name() },
        UnlinkRequest { directory: handle.clone(), name: b"f".to_vec() },
        RmdirRequest { directory: handle.clone(), name: b"f".to_vec() },
        ReadlinkRequest { handle: handle.clone() },
        StatfsRequest { handle: handle.clone() },
        LinkRequest { handle: handle.clone(), directory: handle.clone(), name: name() },
        RenameRequest {
            from_directory: handle.clone(),
            from_name: b"f".to_vec(),
            to_directory: handle.clone(),
            to_name: name(),
        },
    );
    errors
}

const KINDS: u32 = 14;

#[test]
fn a_handle_that_was_not_given_out_is_stale_to_every_operation() {
    let world = world();
    let (link, connect) = world.session();
    let lookup = LookupRequest { directory: connect.root.clone(), name: b"f".to_vec() };
    let file = world.call(&link, &lookup, (1, 1)).unwrap().handle;
    let exports = world.server.exports();
    let (data, other) = (&exports[0], &exports[2]);
    let raw = data.store.root();
    let foreign = Export {
        name: data.name.clone(),
        store: Arc::clone(&data.store),
        read_only: false,
        protection: data.protection,
        handles: HandleKey::derive(&Secret::from_bytes([8; Secret::LEN]), &data.store.id()),
    };
    let forged: [(&str, Vec<u8>); 8] = [
        ("unsigned", raw.as_bytes().to_vec()),
        ("signed with nothing", [raw.as_bytes(), &[0; 16]].concat()),
        ("of another export", other.wire(&other.store.root())),
        ("of this file system, signed for another export", other.wire(&raw)),
        ("of another server", foreign.wire(&raw)),
        ("cut short", connect.root[..connect.root.len() - 1].to_vec()),
        ("the check of another", {
            let check = file.len() - 16;
            [raw.as_bytes(), &file[check..]].concat()
        }),
        ("empty", Vec::new()),
    ];
    let mut sequence = 1;
    for (what, handle) in forged {
        let errors = requests(&world, &link, sequence, &handle);
        sequence += KINDS;
        for (status, text) in errors {
            assert_eq!(status, Status::StaleHandle, "{what}: {text}");
            assert!(text.contains("not given out by export \"data\""), "{what}: {text}");
        }
    }
    // Nothing has happened.
    let names = std::fs::read_dir(world.directory.path()).unwrap().count();
    assert_eq!(names, 1);
    assert_eq!(std::fs::read(world.directory.path().join("f")).unwrap(), b"hello");
    assert_eq!(world.server.session_counts(), (1, 0));
}

#[test]
fn no_bit_of_a_handle_can_be_changed() {
    let world = world();
    let (link, connect) = world.session();
    let mut sequence = 0;
    let mut getattr = |handle: Vec<u8>| {
        sequence += 1;
        world.call(&link, &GetAttrRequest { handle }, (0, sequence))
    };
    for at in 0..connect.root.len() {
        for bit in 0..8 {
            let mut forged = connect.root.clone();
            forged[at] ^= 1 << bit;
            assert_eq!(status(getattr(forged)), Status::StaleHandle, "byte {at}, bit {bit}");
        }
    }
    assert_eq!(status(getattr([&connect.root[..], b"x"].concat())), Status::StaleHandle);
    assert_eq!(status(getattr(vec![1; 5000])), Status::StaleHandle);
    getattr(connect.root.clone()).unwrap();
}

#[test]
fn every_handle_that_is_given_out_is_good() {
    let world = world();
    let (link, connect) = world.session();
    let root = connect.root;
    let lookup = LookupRequest { directory: root.clone(), name: b"f".to_vec() };
    let found = world.call(&link, &lookup, (0, 1)).unwrap().handle;
    let opened = world.open(&link, &root, (0, 2)).handle;
    let mkdir = MkdirRequest { directory: root.clone(), name: b"d".to_vec(), attr: None };
    let made = world.call(&link, &mkdir, (0, 3)).unwrap().handle;
    let (name, target) = (b"l".to_vec(), b"f".to_vec());
    let symlink = SymlinkRequest { directory: root.clone(), name, target };
    let linked = world.call(&link, &symlink, (0, 4)).unwrap().handle;
    let readdir = ReaddirRequest { directory: root.clone(), cookie: 0, max_bytes: 32768 };
    let listed = world.call(&link, &readdir, (0, 5)).unwrap().entries;
    assert_eq!(listed.len(), 3);
    let all = [root, found, opened, made, linked].into_iter();
    for (sequence, handle) in (6..).zip(all.chain(listed.into_iter().map(|entry| entry.handle))) {
        world.call(&link, &GetAttrRequest { handle }, (0, sequence)).unwrap();
    }
}

#[test]
fn a_handle_survives_a_restart_with_the_same_state() {
    let state = tempfile::tempdir().unwrap();
    let World { directory, other, .. } = world();
    let world = server(directory, other, Some(state.path()));
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    let World { directory, other, .. } = world;

    let world = server(directory, other, Some(state.path()));
    let (link, again) = world.session();
    assert_eq!(again.root, connect.root);
    let getattr = GetAttrRequest { handle: open.handle };
    world.call(&link, &getattr, (0, 1)).unwrap();
    let World { directory, other, .. } = world;

    // With another secret it is another server.
    std::fs::remove_file(state.path().join("secret")).unwrap();
    let world = server(directory, other, Some(state.path()));
    let (link, again) = world.session();
    assert_ne!(again.root, connect.root);
    assert_eq!(status(world.call(&link, &getattr, (0, 1))), Status::StaleHandle);
}

//! Changes on the server's own disk beside operations that go through the server.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

/// What is done through the server after the change: with the root, the file's handle, and a slot's
/// next number.
type Act = fn(&World, &Arc<FakeLink>, &[u8], &[u8]);

fn chmod(world: &World, link: &Arc<FakeLink>, _: &[u8], handle: &[u8]) {
    let attr = Some(SetAttr { mode: Some(0o600), ..SetAttr::default() });
    world
        .call(link, &SetAttrRequest { handle: handle.to_vec(), attr, ..Default::default() }, (1, 1))
        .unwrap();
}

fn set_time(world: &World, link: &Arc<FakeLink>, _: &[u8], handle: &[u8]) {
    let mtime = Some(Time { seconds: 1000, nanoseconds: 1 });
    let attr = Some(SetAttr { mtime, ..SetAttr::default() });
    world
        .call(link, &SetAttrRequest { handle: handle.to_vec(), attr, ..Default::default() }, (1, 1))
        .unwrap();
}

fn rename(world: &World, link: &Arc<FakeLink>, root: &[u8], _: &[u8]) {
    let rename = RenameRequest {
        from_directory: root.to_vec(),
        from_name: b"f".to_vec(),
        to_directory: root.to_vec(),
        to_name: b"h".to_vec(),
    };
    world.call(link, &rename, (1, 1)).unwrap();
}

fn add_name(world: &World, link: &Arc<FakeLink>, root: &[u8], handle: &[u8]) {
    let (directory, name) = (root.to_vec(), b"h".to_vec());
    world.call(link, &LinkRequest { handle: handle.to_vec(), directory, name }, (1, 1)).unwrap();
}

fn remove_one_of_two_names(world: &World, link: &Arc<FakeLink>, root: &[u8], _: &[u8]) {
    let unlink = UnlinkRequest { directory: root.to_vec(), name: b"g".to_vec() };
    world.call(link, &unlink, (1, 1)).unwrap();
}

fn replace_one_of_two_names(world: &World, link: &Arc<FakeLink>, root: &[u8], _: &[u8]) {
    let rename = RenameRequest {
        from_directory: root.to_vec(),
        from_name: b"other".to_vec(),
        to_directory: root.to_vec(),
        to_name: b"g".to_vec(),
    };
    world.call(link, &rename, (1, 1)).unwrap();
}

/// The first bytes of the file before and after it is opened once more, with `change` on the disk and
/// then `act` through the server in between; and how many changes by others the server noticed.
fn reopened(change: impl FnOnce(&Path), act: Act) -> (Vec<u8>, u64) {
    let world = world();
    let path = world.directory.path().join("f");
    std::fs::hard_link(&path, world.directory.path().join("g")).unwrap();
    std::fs::write(world.directory.path().join("other"), b"").unwrap();
    let (link, connect) = world.session();
    let open = world.open(&link, &connect.root, (0, 1));
    let extents = vec![Extent { offset: 0, length: 5 }];
    let read = ReadRequest { open: open.open, extents, ..Default::default() };
    let bytes = |at| world.call_with(&link, &read, at, &[]).unwrap().1[64..69].to_vec();
    assert_eq!(bytes((0, 2)), b"hello");
    change(&path);
    act(&world, &link, &connect.root, &open.handle);
    let again = OpenRequest { handle: open.handle, access: 1, ..OpenRequest::default() };
    world.call(&link, &again, (0, 3)).unwrap();
    let counters = world.server.cache().counters();
    let noticed = counters.iter().find(|(name, _)| *name == "cache_changed_on_disk").unwrap().1;
    (bytes((0, 4)), noticed)
}

const ACTS: [Act; 6] =
    [chmod, set_time, rename, add_name, remove_one_of_two_names, replace_one_of_two_names];

#[test]
fn a_change_before_an_operation_through_the_server_is_noticed() {
    for (number, act) in ACTS.into_iter().enumerate() {
        let change = |path: &Path| {
            std::fs::write(path, b"HELLO").unwrap();
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
        };
        assert_eq!(reopened(change, act), (b"HELLO".to_vec(), 1), "act {number}");
    }
}

#[test]
fn a_change_that_sets_the_time_back_is_noticed_before_an_operation_on_its_file() {
    for act in [chmod, set_time, add_name] {
        let change = |path: &Path| {
            let before = std::fs::metadata(path).unwrap();
            let changed = || {
                std::fs::write(path, b"HELLO").unwrap();
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(before.modified().unwrap()).unwrap();
                let now = std::fs::metadata(path).unwrap();
                (now.ctime(), now.ctime_nsec()) != (before.ctime(), before.ctime_nsec())
            };
            // Times move in steps of some milliseconds.
            assert!((0..1_000_000).any(|_| changed()));
        };
        assert_eq!(reopened(change, act), (b"HELLO".to_vec(), 1));
    }
}

#[test]
fn what_goes_through_the_server_is_nobody_elses_change() {
    for (number, act) in ACTS.into_iter().enumerate() {
        assert_eq!(reopened(|_| (), act), (b"hello".to_vec(), 0), "act {number}");
    }
}

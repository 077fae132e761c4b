//! Whose rights decide, and who owns what is made. All of it takes root, who may act as others.

use super::*;
use std::os::unix::fs::{chown, lchown};
use std::panic::{AssertUnwindSafe, catch_unwind};

const USER: u32 = 1000;
const OTHER: u32 = 1001;
const GROUP: u32 = 2000;

fn user_in(uid: u32, groups: &[u32]) -> Credential {
    Credential::User { uid, gid: uid, groups: groups.into() }
}

fn user(uid: u32) -> Credential {
    user_in(uid, &[])
}

/// What `/proc` says of this thread: users, groups, and effective capabilities.
fn identity() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let fields = ["Uid:", "Gid:", "Groups:", "CapEff:"];
    let is_identity = |line: &&str| fields.iter().any(|field| line.starts_with(field));
    status.lines().filter(is_identity).map(str::to_owned).collect()
}

/// As [`each`], and the thread is the server's again after it.
fn each_as_root(test: impl Fn(&World)) {
    assert!(rustix::process::geteuid().is_root(), "this test acts as other users: run it as root");
    let before = identity();
    each(|world| {
        test(world);
        assert_eq!(identity(), before);
    });
}

impl World {
    fn give(&self, name: &str, (uid, gid): (u32, u32), mode: u32) {
        lchown(self.path(name), Some(uid), Some(gid)).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    fn file_of(&self, name: &str, owner: (u32, u32), mode: u32) -> Node {
        std::fs::write(self.path(name), b"data").unwrap();
        self.give(name, owner, mode);
        self.store.lookup(SERVER, &self.root(), name.as_bytes()).unwrap()
    }

    fn directory_of(&self, name: &str, owner: (u32, u32), mode: u32) -> Handle {
        std::fs::create_dir(self.path(name)).unwrap();
        self.give(name, owner, mode);
        self.store.lookup(SERVER, &self.root(), name.as_bytes()).unwrap().handle
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }

    fn owner(&self, name: &str) -> (u32, u32) {
        let metadata = std::fs::symlink_metadata(self.path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    }
}

#[test]
fn files_open_to_whom_they_are_open() {
    each_as_root(|world| {
        let roots = world.file_of("roots", (0, 0), 0o600);
        let others = world.file_of("others", (OTHER, OTHER), 0o600);
        let public = world.file_of("public", (0, 0), 0o644);
        let box_ = world.file_of("box", (0, 0), 0o622);
        let groups = world.file_of("groups", (0, GROUP), 0o640);
        let (user, member) = (user(USER), user_in(USER, &[7, GROUP]));
        let primary = Credential::User { uid: USER, gid: GROUP, groups: [].into() };
        let cases = [
            (&user, &roots, (false, false)),
            (&user, &others, (false, false)),
            (&user, &public, (true, false)),
            (&user, &box_, (false, true)),
            (&user, &groups, (false, false)),
            (&member, &groups, (true, false)),
            (&primary, &groups, (true, false)),
            (&self::user(OTHER), &others, (true, true)),
            (&self::user(0), &others, (true, true)),
            (SERVER, &others, (true, true)),
        ];
        // Once while nobody has the files open, and once while the server has.
        let mut held = Vec::new();
        for _ in 0..2 {
            for (who, node, (read, write)) in cases {
                for (access, allowed) in [
                    (Access::Read, read),
                    (Access::Write, write),
                    (Access::ReadWrite, read && write),
                ] {
                    match world.store.open(who, &node.handle, access) {
                        Ok(file) => {
                            assert!(allowed, "{who:?} {access:?}");
                            assert!(file.writable() || !access.writes());
                        }
                        Err(error) => {
                            assert!(!allowed, "{who:?} {access:?} {error}");
                            assert_eq!(error.status, Status::Access, "{error}");
                        }
                    }
                }
            }
            let open = |node: &Node| world.store.open(SERVER, &node.handle, Access::ReadWrite);
            held.extend([&roots, &others, &public, &box_, &groups].map(|node| open(node).unwrap()));
        }
        let error = world.store.open(&user, &roots.handle, Access::Read).unwrap_err();
        assert!(error.what.contains(&roots.identity.inode.to_string()), "{error}");
    });
}

/// What one may only write can be read by the server, to complete pages, and what one may only read
/// can be written back.
#[test]
fn the_server_reads_and_writes_whoever_opened_first() {
    each_as_root(|world| {
        let node = world.file_of("f", (USER, USER), 0o422);
        let other = world.store.open(&user(OTHER), &node.handle, Access::Write).unwrap();
        assert_eq!(other.read_at(&mut [0; 9], 0).unwrap(), 4);
        let owner = world.store.open(&user(USER), &node.handle, Access::Read).unwrap();
        owner.write_at(b"DATA", 0).unwrap();
        assert!(Arc::ptr_eq(&other, &owner));
    });
}

#[test]
fn what_a_user_makes_is_the_users() {
    each_as_root(|world| {
        let options = LocalOptions { owner: Some((12, 34)), ..world.store.options.clone() };
        let store = LocalStore::new(&world.path(""), options).unwrap();
        let (who, root) = (user(USER), store.root());
        for (name, bits) in [("open", 0o777), ("setgid", 0o2777)] {
            world.directory_of(name, (0, GROUP), bits);
            let directory = store.lookup(SERVER, &root, name.as_bytes()).unwrap().handle;
            let gid = if bits == 0o777 { USER } else { GROUP };
            // With a mode that does not let even its owner open it again.
            let (file, open) = store.create(&who, &directory, b"f", &exclusive(mode(0))).unwrap();
            open.unwrap().write_at(b"x", 0).unwrap();
            let made = store.mkdir(&who, &directory, b"d", &SetAttr::default()).unwrap();
            let link = store.symlink(&who, &directory, b"l", b"t").unwrap();
            for node in [&file, &made, &link] {
                assert_eq!((node.attr.uid, node.attr.gid), (USER, gid));
            }
            let (theirs, _) =
                store.create(SERVER, &directory, b"s", &exclusive(mode(0o600))).unwrap();
            assert_eq!((theirs.attr.uid, theirs.attr.gid), (12, 34));

            // What the user may not give is not given, and nothing stays behind.
            for (uid, gid) in [(Some(OTHER), None), (None, Some(OTHER))] {
                let attr = SetAttr { uid, gid, ..SetAttr::default() };
                let create = store.create(&who, &directory, b"g", &exclusive(attr));
                assert_eq!(status(create), Status::Permission);
                assert_eq!(status(store.mkdir(&who, &directory, b"g", &attr)), Status::Permission);
                assert!(!world.path(name).join("g").exists());
            }
            let to_group = SetAttr { gid: Some(GROUP), ..SetAttr::default() };
            let member = user_in(USER, &[GROUP]);
            let (given, _) = store.create(&member, &directory, b"h", &exclusive(to_group)).unwrap();
            assert_eq!(given.attr.gid, GROUP);
        }
        let create = store.create(&who, &root, b"f", &CreateOptions::default());
        assert_eq!(status(create), Status::Access);
        assert_eq!(status(store.mkdir(&who, &root, b"d", &SetAttr::default())), Status::Access);
        assert_eq!(status(store.symlink(&who, &root, b"l", b"t")), Status::Access);
        assert_eq!(std::fs::read_dir(world.path("")).unwrap().count(), 2);
    });
}

#[test]
fn directories_are_searched_listed_and_changed_by_whom_they_allow() {
    each_as_root(|world| {
        let (store, who) = (&world.store, &user(USER));
        let own = world.directory_of("own", (USER, USER), 0o700);
        for (name, bits, (search, list, change)) in [
            ("closed", 0o700, (false, false, false)),
            ("read", 0o744, (false, false, false)),
            ("search", 0o711, (true, false, false)),
            ("both", 0o755, (true, true, false)),
            ("write", 0o733, (true, false, true)),
        ] {
            let directory = &world.directory_of(name, (OTHER, OTHER), bits);
            for inner in ["f", "g"] {
                std::fs::write(world.path(name).join(inner), b"").unwrap();
                chown(world.path(name).join(inner), Some(USER), None).unwrap();
            }
            std::fs::create_dir(world.path(name).join("d")).unwrap();
            let check = |result: Result<()>, allowed: bool, what: &str| match result {
                Ok(()) => assert!(allowed, "{what} in {name}"),
                Err(error) => {
                    assert!(!allowed, "{what} in {name}: {error}");
                    assert_eq!(error.status, Status::Access, "{what} in {name}: {error}");
                }
            };
            let file = store.lookup(SERVER, directory, b"f").unwrap().handle;
            let new = CreateOptions::default();
            check(store.lookup(who, directory, b"f").map(drop), search, "lookup");
            check(store.readdir(who, directory, 0, 4096).map(drop), list, "readdir");
            check(store.create(who, directory, b"f", &new).map(drop), search, "finding");
            check(store.create(who, directory, b"n", &new).map(drop), change, "create");
            check(store.mkdir(who, directory, b"m", &mode(0o700)).map(drop), change, "mkdir");
            check(store.symlink(who, directory, b"s", b"t").map(drop), change, "symlink");
            check(store.link(who, &file, directory, b"l").map(drop), change, "link");
            check(store.rename(who, (directory, b"f"), (&own, b"f")).map(drop), change, "rename");
            check(store.unlink(who, directory, b"g").map(drop), change, "unlink");
            check(store.rmdir(who, directory, b"d"), change, "rmdir");
            let left = std::fs::read_dir(world.path(name)).unwrap().count();
            assert_eq!(left, if change { 4 } else { 3 }, "{name}");
        }
        // A search that is not allowed does not tell what is there.
        let closed = store.lookup(SERVER, &world.root(), b"closed").unwrap().handle;
        assert_eq!(status(store.lookup(who, &closed, b"none")), Status::Access);
        assert_eq!(status(store.unlink(who, &closed, b"none")), Status::Access);
    });
}

#[test]
fn a_sticky_directory_guards_what_is_anothers() {
    each_as_root(|world| {
        let (store, who) = (&world.store, &user(USER));
        let directory = &world.directory_of("tmp", (0, 0), 0o1777);
        let new = CreateOptions::default();
        for (owner, name) in [(OTHER, b"a"), (OTHER, b"b"), (USER, b"c")] {
            store.create(&user(owner), directory, name, &new).unwrap();
        }
        store.mkdir(&user(OTHER), directory, b"d", &mode(0o777)).unwrap();
        let permission = Status::Permission;
        assert_eq!(status(store.unlink(who, directory, b"a")), permission);
        assert_eq!(status(store.rmdir(who, directory, b"d")), permission);
        assert_eq!(status(store.rename(who, (directory, b"a"), (directory, b"x"))), permission);
        assert_eq!(status(store.rename(who, (directory, b"c"), (directory, b"a"))), permission);
        store.rename(who, (directory, b"c"), (directory, b"x")).unwrap();
        assert!(store.unlink(who, directory, b"x").unwrap().last);
        assert!(store.unlink(&user(OTHER), directory, b"a").unwrap().last);
        assert!(store.unlink(SERVER, directory, b"b").unwrap().last);
    });
}

#[test]
fn attributes_are_set_by_the_owner() {
    each_as_root(|world| {
        let (store, who) = (&world.store, &user(USER));
        let others = world.file_of("others", (OTHER, OTHER), 0o666).handle;
        let own = world.file_of("own", (USER, USER), 0o600).handle;
        let past = Some(Time { seconds: 1, nanoseconds: 0 });
        let times = SetAttr { mtime: past, ..SetAttr::default() };
        let give = SetAttr { uid: Some(USER), ..SetAttr::default() };
        for attr in [mode(0o777), times, give] {
            assert_eq!(status(store.set_attr(who, &others, &attr)), Status::Permission);
        }
        // Who may write may say that it was written now.
        let now = SetAttr { mtime_now: true, atime_now: true, ..SetAttr::default() };
        store.set_attr(who, &others, &now).unwrap();
        assert_eq!((world.mode("others"), world.owner("others")), (0o666, (OTHER, OTHER)));

        assert_eq!(store.set_attr(who, &own, &mode(0o640)).unwrap().attr.mode, 0o640);
        assert_eq!(store.set_attr(who, &own, &times).unwrap().attr.mtime, past);
        let away = SetAttr { uid: Some(OTHER), ..SetAttr::default() };
        assert_eq!(status(store.set_attr(who, &own, &away)), Status::Permission);
        let to_group = SetAttr { gid: Some(GROUP), ..SetAttr::default() };
        assert_eq!(status(store.set_attr(who, &own, &to_group)), Status::Permission);
        store.set_attr(&user_in(USER, &[GROUP]), &own, &to_group).unwrap();
        assert_eq!(world.owner("own"), (USER, GROUP));
        // A group that the user is not in does not get a set-group-id file.
        assert_eq!(store.set_attr(who, &own, &mode(0o2750)).unwrap().attr.mode, 0o750);
    });
}

#[test]
fn an_open_file_may_be_read_as_long_as_it_could_be_opened() {
    each_as_root(|world| {
        let (store, owner, other) = (&world.store, &user(USER), &user(OTHER));
        let node = world.file_of("f", (USER, USER), 0o644);
        let file = store.open(other, &node.handle, Access::Read).unwrap();
        store.may_read(other, &node.handle).unwrap();
        store.set_attr(owner, &node.handle, &mode(0)).unwrap();
        assert_eq!(status(store.may_read(other, &node.handle)), Status::Access);
        for who in [owner, SERVER, &user(0)] {
            store.may_read(who, &node.handle).unwrap();
        }
        // So may the owner open it again, which is not to open it for the first time.
        for access in [Access::Read, Access::Write, Access::ReadWrite] {
            assert_eq!(status(store.open(owner, &node.handle, access)), Status::Access);
            store.reopen(owner, &node.handle, access).unwrap();
            assert_eq!(status(store.reopen(other, &node.handle, access)), Status::Access);
        }
        store.set_attr(owner, &node.handle, &mode(0o604)).unwrap();
        store.unlink(SERVER, &world.root(), b"f").unwrap();
        store.may_read(other, &node.handle).unwrap();
        drop(file);
        assert_eq!(status(store.may_read(other, &node.handle)), Status::StaleHandle);
        assert_eq!(status(store.may_read(other, &world.root())), Status::IsDirectory);
    });
}

#[test]
fn what_a_user_writes_loses_its_set_id_bits() {
    each_as_root(|world| {
        let store = &world.store;
        let open = |who: &Credential, node: &Node, access| {
            drop(store.open(who, &node.handle, access).unwrap());
        };
        let program = world.file_of("program", (0, 0), 0o6777);
        open(&user(USER), &program, Access::Read);
        open(&user(0), &program, Access::Write);
        open(SERVER, &program, Access::Write);
        assert_eq!(world.mode("program"), 0o6777);
        open(&user(USER), &program, Access::Write);
        assert_eq!(world.mode("program"), 0o777);
        let locked = world.file_of("locked", (USER, USER), 0o6644);
        open(&user(USER), &locked, Access::ReadWrite);
        assert_eq!(world.mode("locked"), 0o2644);
        let refused = world.file_of("refused", (0, 0), 0o6755);
        assert!(store.open(&user(USER), &refused.handle, Access::Write).is_err());
        assert_eq!(world.mode("refused"), 0o6755);
    });
}

/// The handle table is the server's, in a directory where users may do nothing.
#[test]
fn the_servers_own_files_stay_the_servers() {
    each_as_root(|world| {
        let (store, who) = (&world.store, &user(USER));
        let state = world.directory.path().join("state");
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
        let directory = &world.directory_of("d", (USER, USER), 0o700);
        let new = CreateOptions::default();
        let (node, _) = store.create(who, directory, b"a", &new).unwrap();
        // Often enough that the table is written anew.
        for _ in 0..2500 {
            store.rename(who, (directory, b"a"), (directory, b"b")).unwrap();
            store.rename(who, (directory, b"b"), (directory, b"a")).unwrap();
        }
        assert_eq!(world.again().node(who, &node.handle).unwrap().identity, node.identity);
        for entry in std::fs::read_dir(&state).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().uid(), 0);
        }
    });
}

#[test]
fn the_thread_is_the_servers_again_after_errors_and_panics() {
    each_as_root(|world| {
        let before = identity();
        let who = user_in(USER, &[GROUP]);
        let node = world.file_of("f", (0, 0), 0o600);
        assert!(world.store.open(&who, &node.handle, Access::Read).is_err());
        assert_eq!(identity(), before);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let work = || -> Result<()> {
                assert_ne!(identity(), before);
                std::panic::resume_unwind(Box::new("test"))
            };
            who.run(work)
        }));
        assert!(panicked.is_err());
        assert_eq!(identity(), before);

        // Nobody has this number: the server does not fall back to its own.
        let nobody = user(u32::MAX);
        let error = world.store.lookup(&nobody, &world.root(), b"f").unwrap_err();
        assert_eq!(error.status, Status::Invalid);
        assert!(error.what.contains("cannot act as user 4294967295"), "{error}");
        assert_eq!(identity(), before);
    });
}

#[test]
fn a_server_that_may_not_act_as_others_says_so() {
    each_as_root(|world| {
        let node = world.file_of("f", (USER, USER), 0o600);
        let root = world.root();
        // A thread of its own, which stays what it has become.
        let unprivileged = || {
            let uid = rustix::process::Uid::from_raw(USER);
            let gid = rustix::process::Gid::from_raw(USER);
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            world.store.lookup(&user(USER), &root, b"f").unwrap();
            let error = world.store.lookup(&user(OTHER), &root, b"f").unwrap_err();
            assert_eq!(error.status, Status::Permission);
            let expected = "runs as user 1000 and cannot act as user 1001";
            assert!(error.what.contains(expected), "{error}");
            world.store.open(&user(USER), &node.handle, Access::ReadWrite).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(unprivileged).join()).unwrap();
    });
}

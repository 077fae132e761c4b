//! Every operation with every right, over the wire: a client with `exports=X:ro` changes nothing by
//! any of them, and is served by those that change nothing.

use crate::common::raw::{Failure, Raw};
use crate::common::{CLIENT, OTHER, Over, Setup, TestServer, line};
use dafs_proto::{
    CloseRequest, CommitRequest, Create, DisconnectRequest, Extent, GetAttrRequest, GetRefsRequest,
    LinkRequest, LookupRequest, MkdirRequest, Op, OpenRequest, ReadRequest, ReaddirRequest,
    ReadlinkRequest, RenameRequest, RenewRequest, RmdirRequest, SetAttr, SetAttrRequest,
    StatfsRequest, StatsRequest, Status, SymlinkRequest, UnlinkRequest, WriteRequest,
};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

const READ: u32 = 1;
const WRITE: u32 = 2;

/// What one request of the table works with: a directory of its own.
struct At<'a> {
    client: &'a Raw,
    directory: Vec<u8>,
}

impl At<'_> {
    fn handle(&self, name: &str) -> Vec<u8> {
        let request = LookupRequest { directory: self.directory.clone(), name: name.into() };
        self.client.call(&request, &[]).expect("look up").0.handle
    }

    fn opening(&self, name: &str, access: u32, create: Create) -> OpenRequest {
        let attr = SetAttr { mode: Some(0o4777), size: Some(1 << 40), ..SetAttr::default() };
        OpenRequest {
            directory: self.directory.clone(),
            name: name.into(),
            access,
            create: create.into(),
            attr: (create != Create::No).then_some(attr),
            ..OpenRequest::default()
        }
    }

    fn open(&self, request: &OpenRequest) -> Result<u64, Failure> {
        Ok(self.client.call(request, &[])?.0.open)
    }

    /// Opens the file that is there.
    fn opened(&self, access: u32) -> Result<u64, Failure> {
        self.open(&self.opening("file", access, Create::No))
    }

    fn set(&self, attr: SetAttr) -> Result<(), Failure> {
        let handle = self.handle("file");
        let request = SetAttrRequest { handle, attr: Some(attr), ..SetAttrRequest::default() };
        self.done(&request)
    }

    fn done<C: dafs_proto::Call>(&self, request: &C) -> Result<(), Failure> {
        self.client.call(request, &[]).map(drop)
    }
}

/// A request, and whether it changes anything.
type Case = (Op, &'static str, bool, fn(&At<'_>) -> Result<(), Failure>);

const CASES: &[Case] = &[
    (Op::Renew, "", false, |at| at.done(&RenewRequest::default())),
    (Op::Stats, "", false, |at| at.done(&StatsRequest {})),
    (Op::Lookup, "", false, |at| {
        at.done(&LookupRequest { directory: at.directory.clone(), name: b"file".into() })
    }),
    (Op::Open, "to read", false, |at| at.opened(READ).map(drop)),
    (Op::Open, "to read, by its handle", false, |at| {
        let handle = at.handle("file");
        at.done(&OpenRequest { handle, access: READ, ..OpenRequest::default() })
    }),
    (Op::Open, "to read, and create what is there", false, |at| {
        at.open(&at.opening("file", READ, Create::Unchecked)).map(drop)
    }),
    (Op::Open, "to write", true, |at| at.opened(WRITE).map(drop)),
    (Op::Open, "to read and write, by its handle", true, |at| {
        let handle = at.handle("file");
        at.done(&OpenRequest { handle, access: READ | WRITE, ..OpenRequest::default() })
    }),
    (Op::Open, "to read, and create", true, |at| {
        at.open(&at.opening("new", READ, Create::Unchecked)).map(drop)
    }),
    (Op::Open, "to read, and create alone", true, |at| {
        at.open(&at.opening("new", READ, Create::Exclusive)).map(drop)
    }),
    (Op::Open, "to write, and create", true, |at| {
        at.open(&at.opening("new", WRITE, Create::Unchecked)).map(drop)
    }),
    (Op::Open, "to truncate", true, |at| {
        let request = at.opening("file", READ | WRITE, Create::No);
        at.open(&OpenRequest { truncate: true, ..request }).map(drop)
    }),
    (Op::Close, "", false, |at| at.done(&CloseRequest { open: at.opened(READ)? })),
    (Op::Read, "", false, |at| {
        let extents = vec![Extent { offset: 0, length: 4096 }];
        at.done(&ReadRequest { open: at.opened(READ)?, extents, ..ReadRequest::default() })
    }),
    (Op::GetRefs, "", false, |at| {
        let extent = Some(Extent { offset: 0, length: 4096 });
        let open = at.opened(READ)?;
        at.done(&GetRefsRequest { open, extent, fill: true, ..GetRefsRequest::default() })
    }),
    (Op::Write, "", true, |at| {
        let extents = vec![Extent { offset: 0, length: 4 }];
        let request = WriteRequest { open: at.opened(WRITE)?, extents, ..WriteRequest::default() };
        at.client.call(&request, b"mine").map(drop)
    }),
    (Op::Commit, "", false, |at| {
        let extent = Some(Extent::default());
        at.done(&CommitRequest { open: at.opened(READ)?, extent, rests_on: 0 })
    }),
    (Op::GetAttr, "", false, |at| at.done(&GetAttrRequest { handle: at.handle("file") })),
    (Op::SetAttr, "mode", true, |at| at.set(SetAttr { mode: Some(0o600), ..SetAttr::default() })),
    (Op::SetAttr, "owner", true, |at| at.set(SetAttr { uid: Some(7), ..SetAttr::default() })),
    (Op::SetAttr, "size", true, |at| at.set(SetAttr { size: Some(1), ..SetAttr::default() })),
    (Op::SetAttr, "times", true, |at| at.set(SetAttr { mtime_now: true, ..SetAttr::default() })),
    (Op::Mkdir, "", true, |at| {
        let directory = at.directory.clone();
        at.done(&MkdirRequest { directory, name: b"new".into(), attr: None })
    }),
    (Op::Unlink, "", true, |at| {
        at.done(&UnlinkRequest { directory: at.directory.clone(), name: b"file".into() })
    }),
    (Op::Rmdir, "", true, |at| {
        at.done(&RmdirRequest { directory: at.directory.clone(), name: b"empty".into() })
    }),
    (Op::Rename, "", true, |at| {
        at.done(&RenameRequest {
            from_directory: at.directory.clone(),
            from_name: b"file".into(),
            to_directory: at.directory.clone(),
            to_name: b"other".into(),
        })
    }),
    (Op::Readdir, "", false, |at| {
        let directory = at.directory.clone();
        at.done(&ReaddirRequest { directory, cookie: 0, max_bytes: 4096 })
    }),
    (Op::Symlink, "", true, |at| {
        let (directory, target) = (at.directory.clone(), b"file".into());
        at.done(&SymlinkRequest { directory, name: b"new".into(), target })
    }),
    (Op::Readlink, "", false, |at| at.done(&ReadlinkRequest { handle: at.handle("symlink") })),
    (Op::Link, "", true, |at| {
        let (handle, directory) = (at.handle("file"), at.directory.clone());
        at.done(&LinkRequest { handle, directory, name: b"new".into() })
    }),
    (Op::Statfs, "", false, |at| at.done(&StatfsRequest { handle: at.directory.clone() })),
];

/// All that a change would change.
fn snapshot(tree: &Path, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(tree).unwrap() {
        let path = entry.unwrap().path();
        let of = std::fs::symlink_metadata(&path).unwrap();
        let small = of.is_file() && of.size() < 4096;
        let content = if small { std::fs::read(&path).unwrap() } else { Vec::new() };
        let what = format!(
            "{:o} {} {} {} {}.{} {content:?}",
            of.mode(),
            of.uid(),
            of.nlink(),
            of.size(),
            of.mtime(),
            of.mtime_nsec()
        );
        into.insert(path.to_str().unwrap().to_owned(), what);
        if of.is_dir() {
            snapshot(&path, into);
        }
    }
}

pub fn every_operation_with_every_right(over: Over) {
    let covered: HashSet<_> = CASES.iter().map(|case| case.0).collect();
    let left: Vec<_> = Op::ALL.iter().filter(|op| !covered.contains(op)).collect();
    // What begins a session, and what ends it.
    assert_eq!(left, [&Op::Connect, &Op::Disconnect], "the table has every operation");

    // The same user for both, whom no mode stops.
    let authorized = line(OTHER, "writer", "data", 0) + &line(CLIENT, "reader", "data:ro", 0);
    let setup = Setup { authorized: Some(authorized), ..Setup::default() };
    let server = TestServer::set_up(over, setup);
    let mut changed = 0;
    for (number, right) in [(CLIENT, "ro"), (OTHER, "rw")] {
        let connector = server.connector_of(number);
        let client = Raw::connect(&*connector, "data", over.protection).unwrap();
        for (index, (op, how, changes, ask)) in CASES.iter().enumerate() {
            let what = format!("{right}: {op} {how}");
            let name = format!("{right}-{index}");
            let tree = server.tree().join(&name);
            std::fs::create_dir_all(tree.join("empty")).unwrap();
            for file in ["file", "other"] {
                std::fs::write(tree.join(file), "what was there before").unwrap();
            }
            symlink("file", tree.join("symlink")).unwrap();
            let request = LookupRequest { directory: client.root.clone(), name: name.into() };
            let directory = client.call(&request, &[]).unwrap().0.handle;
            let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
            snapshot(&tree, &mut before);
            let result = ask(&At { client: &client, directory });
            snapshot(&tree, &mut after);
            if right == "ro" && *changes {
                let status = result.as_ref().expect_err(&what).status();
                assert_eq!(status, Some(Status::ReadOnly), "{what}: {result:?}");
            } else {
                result.expect(&what);
            }
            if right == "ro" || !changes {
                assert_eq!(after, before, "{what}");
            } else {
                changed += usize::from(after != before);
            }
        }
        client.call(&DisconnectRequest {}, &[]).unwrap();
    }
    // An open for writing alone shows nothing yet, nor does what lies in the page cache.
    assert!(changed >= 12, "the same looks find what is changed: {changed}");
}

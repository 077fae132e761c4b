//! What works on names in directories.

use crate::{ATTR, attr, call};
use dafs_proto::{
    DirEntry, LinkReply, LinkRequest, LookupReply, LookupRequest, MkdirReply, MkdirRequest, Op,
    ReaddirReply, ReaddirRequest, ReadlinkReply, ReadlinkRequest, RenameReply, RenameRequest,
    RmdirReply, RmdirRequest, SetAttr, SymlinkReply, SymlinkRequest, UnlinkReply, UnlinkRequest,
};

/// Checks them all, and returns the operations.
pub(crate) fn calls() -> Vec<Op> {
    let directory = || vec![0xd1, 0xd2];
    let name = || b"new".to_vec();
    let handle = || vec![0xe1];
    let mode = || Some(SetAttr { mode: Some(0o755), ..SetAttr::default() });
    vec![
        call(
            LookupRequest { directory: directory(), name: name() },
            &[
                &[0x0a, 2, 0xd1, 0xd2],       // directory
                &[0x12, 3, b'n', b'e', b'w'], // name
            ],
            LookupReply { handle: handle(), attr: attr() },
            &[
                &[0x0a, 1, 0xe1], // handle
                &[0x12],          // attr
                ATTR,
            ],
        ),
        call(
            MkdirRequest { directory: directory(), name: name(), attr: mode() },
            &[
                &[0x0a, 2, 0xd1, 0xd2],       // directory
                &[0x12, 3, b'n', b'e', b'w'], // name
                &[0x1a, 3, 0x08, 0xed, 0x03], // attr: mode
            ],
            MkdirReply { handle: handle(), attr: attr() },
            &[
                &[0x0a, 1, 0xe1], // handle
                &[0x12],          // attr
                ATTR,
            ],
        ),
        call(
            UnlinkRequest { directory: directory(), name: name() },
            &[
                &[0x0a, 2, 0xd1, 0xd2],       // directory
                &[0x12, 3, b'n', b'e', b'w'], // name
            ],
            UnlinkReply {},
            &[],
        ),
        call(
            RmdirRequest { directory: directory(), name: name() },
            &[
                &[0x0a, 2, 0xd1, 0xd2],       // directory
                &[0x12, 3, b'n', b'e', b'w'], // name
            ],
            RmdirReply {},
            &[],
        ),
        call(
            RenameRequest {
                from_directory: directory(),
                from_name: b"old".to_vec(),
                to_directory: vec![0xd3],
                to_name: name(),
            },
            &[
                &[0x0a, 2, 0xd1, 0xd2],       // from_directory
                &[0x12, 3, b'o', b'l', b'd'], // from_name
                &[0x1a, 1, 0xd3],             // to_directory
                &[0x22, 3, b'n', b'e', b'w'], // to_name
            ],
            RenameReply {},
            &[],
        ),
        call(
            ReaddirRequest { directory: directory(), cookie: u64::MAX, max_bytes: 32768 },
            &[
                &[0x0a, 2, 0xd1, 0xd2],                // directory
                &[0x10, 0xff, 0xff, 0xff, 0xff, 0xff], // cookie
                &[0xff, 0xff, 0xff, 0xff, 0x01],
                &[0x18, 0x80, 0x80, 0x02], // max_bytes
            ],
            ReaddirReply {
                entries: vec![
                    DirEntry { name: name(), cookie: 5, handle: handle(), attr: attr() },
                    DirEntry { name: vec![0xff], cookie: 6, handle: vec![], attr: None },
                ],
                end: true,
            },
            &[
                &[0x0a, 16],                  // entries, the first
                &[0x0a, 3, b'n', b'e', b'w'], //   name
                &[0x10, 5],                   //   cookie
                &[0x1a, 1, 0xe1],             //   handle
                &[0x22],                      //   attr
                ATTR,
                &[0x0a, 5],       // entries, the second
                &[0x0a, 1, 0xff], //   name: not UTF-8
                &[0x10, 6],       //   cookie
                &[0x10, 1],       // end
            ],
        ),
        call(
            SymlinkRequest { directory: directory(), name: name(), target: b"../x".to_vec() },
            &[
                &[0x0a, 2, 0xd1, 0xd2],             // directory
                &[0x12, 3, b'n', b'e', b'w'],       // name
                &[0x1a, 4, b'.', b'.', b'/', b'x'], // target
            ],
            SymlinkReply { handle: handle(), attr: attr() },
            &[
                &[0x0a, 1, 0xe1], // handle
                &[0x12],          // attr
                ATTR,
            ],
        ),
        call(
            ReadlinkRequest { handle: handle() },
            &[&[0x0a, 1, 0xe1]], // handle
            ReadlinkReply { target: b"../x".to_vec() },
            &[&[0x0a, 4, b'.', b'.', b'/', b'x']], // target
        ),
        call(
            LinkRequest { handle: handle(), directory: directory(), name: name() },
            &[
                &[0x0a, 1, 0xe1],             // handle
                &[0x12, 2, 0xd1, 0xd2],       // directory
                &[0x1a, 3, b'n', b'e', b'w'], // name
            ],
            LinkReply { attr: attr() },
            &[&[0x0a], ATTR], // attr
        ),
    ]
}

//! What works on open files.

use crate::{ATTR, CHANGE, RESEND, attr, call, change, resend};
use dafs_proto::{
    Buffer, CloseReply, CloseRequest, CommitReply, CommitRequest, Create, Extent, FileKey,
    GetRefsReply, GetRefsRequest, Op, OpenReply, OpenRequest, Placement, ReadReply, ReadRequest,
    SetAttr, Stability, Stable, WriteReply, WriteRequest,
};

fn stable() -> Stable {
    Stable { file: 7, verifier: 0x0a0b, through: 5 }
}

/// Its encoding.
const STABLE: &[u8] = &[0x09, 7, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0, 0x18, 5];

fn key() -> Option<FileKey> {
    Some(FileKey { epoch: 256, secret: vec![5, 6] })
}

/// Checks them all, and returns the operations.
pub(crate) fn calls() -> Vec<Op> {
    let extents = || vec![Extent { offset: 4096, length: 8192 }, Extent { offset: 0, length: 1 }];
    let buffers = || vec![Buffer { tag: 0x0102, address: 127, length: 8193 }];
    vec![
        call(
            OpenRequest {
                directory: vec![0xd1],
                name: b"f".to_vec(),
                handle: vec![0xe1],
                access: 3,
                create: Create::Exclusive.into(),
                truncate: true,
                attr: Some(SetAttr::default()),
                want_refs: 16,
            },
            &[
                &[0x0a, 1, 0xd1], // directory
                &[0x12, 1, b'f'], // name
                &[0x1a, 1, 0xe1], // handle
                &[0x20, 3],       // access: read and write
                &[0x28, 2],       // create: exclusive
                &[0x30, 1],       // truncate
                &[0x3a, 0],       // attr: none set
                &[0x40, 16],      // want_refs
            ],
            OpenReply {
                open: 1,
                handle: vec![0xe1],
                file: 0xff00,
                attr: attr(),
                refs: vec![1, 2],
                created: true,
                key: key(),
                identity: vec![0x1d],
                truncated: change(),
            },
            &[
                &[0x08, 1],                         // open
                &[0x12, 1, 0xe1],                   // handle
                &[0x19, 0, 0xff, 0, 0, 0, 0, 0, 0], // file
                &[0x22],                            // attr
                ATTR,
                &[0x2a, 2, 1, 2], // refs
                &[0x30, 1],       // created
                &[0x3a, 7],       // key
                &[0x08, 0x80, 2], //   epoch
                &[0x12, 2, 5, 6], //   secret
                &[0x42, 1, 0x1d], // identity
                &[0x4a, 17],      // truncated
                CHANGE,
            ],
        ),
        call(CloseRequest { open: 200 }, &[&[0x08, 0xc8, 0x01]], CloseReply {}, &[]),
        call(
            ReadRequest {
                open: 1,
                extents: extents(),
                placement: Placement::Direct.into(),
                buffers: buffers(),
                want_refs: 32,
                key_epoch: 3,
                whole: true,
                steady: true,
            },
            &[
                &[0x08, 1],                                     // open
                &[0x12, 6, 0x08, 0x80, 0x20, 0x10, 0x80, 0x40], // extents: 4096, 8192
                &[0x12, 2, 0x10, 1],                            // extents: 0, 1
                &[0x18, 1],                                     // placement: direct
                &[0x22, 14],                                    // buffers
                &[0x09, 2, 1, 0, 0, 0, 0, 0, 0],                //   tag
                &[0x10, 127],                                   //   address
                &[0x18, 0x81, 0x40],                            //   length
                &[0x28, 32],                                    // want_refs
                &[0x30, 3],                                     // key_epoch
                &[0x38, 1],                                     // whole
                &[0x40, 1],                                     // steady
            ],
            ReadReply {
                file: 7,
                counts: vec![2, 0, 300],
                refs: vec![1, 2],
                size: 9000,
                key: key(),
                tags: vec![0xaa, 0xbb],
                first_tag: 300,
                from_slots: true,
            },
            &[
                &[0x09, 7, 0, 0, 0, 0, 0, 0, 0], // file
                &[0x12, 4, 2, 0, 0xac, 0x02],    // counts, packed
                &[0x1a, 2, 1, 2],                // refs
                &[0x20, 0xa8, 0x46],             // size
                &[0x2a, 7],                      // key
                &[0x08, 0x80, 2],                //   epoch
                &[0x12, 2, 5, 6],                //   secret
                &[0x32, 2, 0xaa, 0xbb],          // tags
                &[0x38, 0xac, 0x02],             // first_tag
                &[0x40, 1],                      // from_slots
            ],
        ),
        call(
            WriteRequest {
                open: 1,
                extents: vec![Extent { offset: 10, length: 64 }],
                placement: Placement::Inline.into(),
                buffers: vec![],
                stability: Stability::File.into(),
                want_refs: 1,
                seal: vec![4, 5],
                resend: resend(),
            },
            &[
                &[0x08, 1],                     // open
                &[0x12, 4, 0x08, 10, 0x10, 64], // extents
                &[0x28, 2],                     // stability: file
                &[0x30, 1],                     // want_refs
                &[0x3a, 2, 4, 5],               // seal
                &[0x42, 19],                    // resend
                RESEND,
            ],
            WriteReply {
                count: 64,
                stability: Stability::Data.into(),
                file: 7,
                refs: vec![1, 2],
                size: 74,
                change: change(),
                skipped: vec![Extent { offset: 10, length: 1 }],
                refused: vec![Extent { offset: 11, length: 2 }],
                stable: vec![stable()],
            },
            &[
                &[0x08, 64],                     // count
                &[0x18, 1],                      // stability: data
                &[0x21, 7, 0, 0, 0, 0, 0, 0, 0], // file
                &[0x2a, 2, 1, 2],                // refs
                &[0x30, 74],                     // size
                &[0x3a, 17],                     // change
                CHANGE,
                &[0x42, 4, 0x08, 10, 0x10, 1], // skipped
                &[0x4a, 4, 0x08, 11, 0x10, 2], // refused
                &[0x52, 20],                   // stable
                STABLE,
            ],
        ),
        call(
            CommitRequest {
                open: 1,
                extent: Some(Extent { offset: 4096, length: 0 }),
                rests_on: 3,
            },
            &[
                &[0x08, 1],                   // open
                &[0x12, 3, 0x08, 0x80, 0x20], // extent: to the end
                &[0x18, 3],                   // rests_on
            ],
            CommitReply { stable: Some(stable()) },
            &[
                &[0x12, 20], // stable
                STABLE,
            ],
        ),
        call(
            GetRefsRequest {
                open: 1,
                extent: Some(Extent { offset: 0, length: 64 }),
                fill: true,
                key_epoch: 1,
            },
            &[
                &[0x08, 1],           // open
                &[0x12, 2, 0x10, 64], // extent
                &[0x18, 1],           // fill
                &[0x20, 1],           // key_epoch
            ],
            GetRefsReply { file: 7, refs: vec![1, 2], size: 64, key: key() },
            &[
                &[0x09, 7, 0, 0, 0, 0, 0, 0, 0], // file
                &[0x12, 2, 1, 2],                // refs
                &[0x18, 64],                     // size
                &[0x22, 7],                      // key
                &[0x08, 0x80, 2],                //   epoch
                &[0x12, 2, 5, 6],                //   secret
            ],
        ),
    ]
}

//! What works on attributes, of a file and of the file system.

use crate::{ATTR, CHANGE, RESEND, attr, call, change, resend};
use dafs_proto::{
    GetAttrReply, GetAttrRequest, Op, SetAttr, SetAttrReply, SetAttrRequest, StatfsReply,
    StatfsRequest, Time,
};

/// Checks them all, and returns the operations.
pub(crate) fn calls() -> Vec<Op> {
    vec![
        call(
            GetAttrRequest { handle: vec![0xe1] },
            &[&[0x0a, 1, 0xe1]], // handle
            GetAttrReply { attr: attr() },
            &[&[0x0a], ATTR], // attr
        ),
        call(
            SetAttrRequest {
                handle: vec![0xe1],
                attr: Some(SetAttr {
                    mode: Some(0),
                    uid: Some(1),
                    gid: Some(2),
                    size: Some(0),
                    atime: Some(Time::default()),
                    mtime: Some(Time { seconds: -2, nanoseconds: 9 }),
                    atime_now: true,
                    mtime_now: true,
                }),
                resend: resend(),
                from: 6,
            },
            &[
                &[0x0a, 1, 0xe1],             // handle
                &[0x12, 20],                  // attr
                &[0x08, 0],                   //   mode: set to 0
                &[0x10, 1],                   //   uid
                &[0x18, 2],                   //   gid
                &[0x20, 0],                   //   size: set to 0
                &[0x2a, 0],                   //   atime: set to 0
                &[0x32, 4, 0x08, 3, 0x10, 9], //   mtime: zigzag -2
                &[0x38, 1],                   //   atime_now
                &[0x40, 1],                   //   mtime_now
                &[0x1a, 19],                  // resend
                RESEND,
                &[0x20, 6], // from
            ],
            SetAttrReply {
                attr: attr(),
                change: change(),
                from: 6,
                skipped: true,
                refused: true,
                identity: vec![0x1d],
            },
            &[
                &[0x0a], // attr
                ATTR,
                &[0x12, 17], // change
                CHANGE,
                &[0x18, 6],       // from
                &[0x20, 1],       // skipped
                &[0x28, 1],       // refused
                &[0x32, 1, 0x1d], // identity
            ],
        ),
        call(
            StatfsRequest { handle: vec![0xe1] },
            &[&[0x0a, 1, 0xe1]], // handle
            StatfsReply {
                block_size: 4096,
                blocks: 3,
                blocks_free: 2,
                blocks_available: 1,
                files: 128,
                files_free: 127,
                name_max: 255,
            },
            &[
                &[0x08, 0x80, 0x20], // block_size
                &[0x10, 3],          // blocks
                &[0x18, 2],          // blocks_free
                &[0x20, 1],          // blocks_available
                &[0x28, 0x80, 0x01], // files
                &[0x30, 127],        // files_free
                &[0x38, 0xff, 0x01], // name_max
            ],
        ),
    ]
}

//! CONNECT, DISCONNECT, RENEW and STATS.

use crate::{ATTR, attr, call};
use dafs_proto::{
    ConnectReply, ConnectRequest, Counter, Credential, DisconnectReply, DisconnectRequest, Op,
    RenewReply, RenewRequest, StatsReply, StatsRequest,
};

/// Checks them all, and returns the operations.
pub(crate) fn calls() -> Vec<Op> {
    vec![
        call(
            ConnectRequest {
                version: 1,
                export: "home".into(),
                session: vec![0xaa; 16],
                client: "me".into(),
                protection: 3,
                slots: 128,
                credential: Some(Credential { uid: 1000, gid: 100, groups: vec![4, 300] }),
                instance: vec![0xcc; 16],
            },
            &[
                &[0x08, 1],                         // version
                &[0x12, 4, b'h', b'o', b'm', b'e'], // export
                &[0x1a, 16],                        // session
                &[0xaa; 16],
                &[0x22, 2, b'm', b'e'], // client
                &[0x28, 3],             // protection
                &[0x30, 0x80, 0x01],    // slots
                &[0x3a, 10],            // credential
                &[0x08, 0xe8, 0x07],    //   uid
                &[0x10, 100],           //   gid
                &[0x1a, 3, 4, 0xac, 2], //   groups, packed
                &[0x42, 16],            // instance
                &[0xcc; 16],
            ],
            ConnectReply {
                session: vec![0xbb; 16],
                boot: 1,
                page_size: 4096,
                slots: 64,
                max_inline: 65536,
                max_transfer: 1 << 20,
                lease_ms: 30000,
                protection: 3,
                read_only: true,
                resumed: true,
                root: vec![9, 8],
                root_attr: attr(),
                shm_socket: "/s".into(),
                verbs_address: "h:7".into(),
                machine_boot: 2,
            },
            &[
                &[0x0a, 16], // session
                &[0xbb; 16],
                &[0x11, 1, 0, 0, 0, 0, 0, 0, 0], // boot
                &[0x18, 0x80, 0x20],             // page_size
                &[0x20, 64],                     // slots
                &[0x28, 0x80, 0x80, 0x04],       // max_inline
                &[0x30, 0x80, 0x80, 0x40],       // max_transfer
                &[0x38, 0xb0, 0xea, 0x01],       // lease_ms
                &[0x40, 3],                      // protection
                &[0x48, 1],                      // read_only
                &[0x50, 1],                      // resumed
                &[0x5a, 2, 9, 8],                // root
                &[0x62],                         // root_attr
                ATTR,
                &[0x6a, 2, b'/', b's'],       // shm_socket
                &[0x72, 3, b'h', b':', b'7'], // verbs_address
                &[0x78, 2],                   // machine_boot
            ],
        ),
        call(DisconnectRequest {}, &[], DisconnectReply {}, &[]),
        call(
            RenewRequest { heat: vec![1, 2, 3] },
            &[&[0x0a, 3, 1, 2, 3]], // heat
            RenewReply {},
            &[],
        ),
        call(
            StatsRequest {},
            &[],
            StatsReply {
                counters: vec![
                    Counter { name: "a".into(), value: 300 },
                    Counter { name: "b".into(), value: 0 },
                ],
            },
            &[
                &[0x0a, 6, 0x0a, 1, b'a', 0x10, 0xac, 0x02], // counters: name, value
                &[0x0a, 3, 0x0a, 1, b'b'],                   // counters: name
            ],
        ),
    ]
}

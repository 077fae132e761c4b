//! The protocol as literal bytes. Every vector is written by hand from `dafs.proto` and the table
//! in `frame.rs`: a difference means that peers of the same version no longer understand each
//! other, and wants a new version, not a new vector.
//!
//! A Protocol Buffers field begins with `number << 3 | type`; the types here are 0 varint, 1 eight
//! bytes, 2 length-delimited. Fields at their default are not sent.

mod attributes;
mod data;
mod names;
mod session;

use dafs_proto::{
    Attr, Call, Change, ErrorReply, FileType, FrameError, GetRefsRequest, Header, Kind, Op, Resend,
    Status, Time, WireHeat, WireRef, encode_message, encode_message_into,
};
use prost::Message;
use std::fmt::Debug;

/// A request on slot 3, without a body.
#[rustfmt::skip]
const REQUEST: [u8; 24] = [
    0xf5, 0xda,             // magic
    2,                      // version
    1,                      // kind: request
    27, 0,                  // op: GET_REFS
    0, 0,                   // status: Ok
    3, 0,                   // slot
    0x10, 0x01,             // credits: 272 wanted
    0x78, 0x56, 0x34, 0x12, // sequence
    0, 0, 0, 0,             // body length
    0, 0, 0, 0,             // flags
];

/// A reply with a body.
#[rustfmt::skip]
const REPLY: [u8; 30] = [
    0xf5, 0xda,                         // magic
    2,                                  // version
    2,                                  // kind: reply
    13, 0,                              // op: READ
    202, 0,                             // status: Fenced
    0x02, 0x01,                         // slot 258
    1, 0,                               // credits
    0xff, 0xff, 0xff, 0xff,             // sequence
    6, 0, 0, 0,                         // body length
    0, 0, 0, 0,                         // flags
    0x0a, 4, b'g', b'o', b'n', b'e',    // ErrorReply.message
];

#[test]
fn header() {
    let request = Header::request(Op::GetRefs, 3, 0x1234_5678, 0x0110);
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    assert_eq!(bytes, REQUEST);
    assert_eq!(Header::decode(&REQUEST), Ok((request, &[][..])));

    let to = Header { slot: 258, sequence: u32::MAX, op: Op::Read, ..request };
    let reply = Header::reply(&to, Status::Fenced, 1);
    let body = ErrorReply { message: "gone".into() };
    let bytes = encode_message(reply, &body);
    assert_eq!(bytes, REPLY);
    assert_eq!(bytes.capacity(), bytes.len(), "one allocation of the right size");
    assert_eq!(Header::decode(&REPLY), Ok((Header { body_len: 6, ..reply }, &REPLY[24..])));

    let notice = [&[0xf5, 0xda, 2, 3][..], &REQUEST[4..]].concat();
    let expected = Header { kind: Kind::Notice, ..request };
    assert_eq!(Header::decode(&notice), Ok((expected, &[][..])));
}

#[test]
fn encoding_appends() {
    let mut bytes = vec![0xee];
    encode_message_into(
        Header::request(Op::GetRefs, 3, 0x1234_5678, 0x0110),
        &GetRefsRequest::default(),
        &mut bytes,
    );
    assert_eq!(bytes, [&[0xee][..], &REQUEST].concat());
}

#[test]
fn wrong_headers() {
    /// `message` with the byte at `at` replaced.
    fn with(message: &[u8], at: usize, byte: u8) -> Vec<u8> {
        let mut message = message.to_vec();
        message[at] = byte;
        message
    }
    let longer = [&REQUEST[..], &[0]].concat();
    let cases: [(Vec<u8>, FrameError, Status); 14] = [
        (vec![], FrameError::Short { len: 0 }, Status::BadMessage),
        (REQUEST[..23].to_vec(), FrameError::Short { len: 23 }, Status::BadMessage),
        (with(&REQUEST, 0, 0xf4), FrameError::Magic(0xdaf4), Status::BadMessage),
        (with(&REQUEST, 2, 1), FrameError::Version(1), Status::Version),
        (with(&REQUEST, 3, 0), FrameError::Kind(0), Status::BadMessage),
        (with(&REQUEST, 3, 4), FrameError::Kind(4), Status::BadMessage),
        (with(&REQUEST, 5, 1), FrameError::Op(256 + 27), Status::UnknownOperation),
        (with(&REPLY, 7, 0xff), FrameError::Status(0xff00 + 202), Status::BadMessage),
        (with(&REQUEST, 6, 15), FrameError::RequestStatus(Status::Io), Status::BadMessage),
        (with(&REPLY, 10, 0), FrameError::NoCredits, Status::BadMessage),
        (with(&REPLY, 16, 7), FrameError::BodyLen { said: 7, is: 6 }, Status::BadMessage),
        (with(&REPLY, 19, 1), FrameError::BodyLen { said: 0x0100_0006, is: 6 }, Status::BadMessage),
        (longer, FrameError::BodyLen { said: 0, is: 1 }, Status::BadMessage),
        (with(&REQUEST, 23, 0x80), FrameError::Flags(0x8000_0000), Status::BadMessage),
    ];
    for (message, error, status) in cases {
        assert_eq!(Header::decode(&message), Err(error));
        assert_eq!(error.status(), status, "{error}");
    }
}

#[test]
fn packed_lists() {
    #[rustfmt::skip]
    let refs = [
        8, 7, 6, 5, 4, 3, 2, 1,                             // block
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,     // generation
        1, 0, 0, 0,                                         // chunk
        0, 0, 0, 0x80,                                      // slot
    ];
    let reference =
        WireRef { block: 0x0102_0304_0506_0708, generation: u64::MAX, chunk: 1, slot: 0x8000_0000 };
    let mut list = Vec::new();
    reference.push(&mut list);
    assert_eq!(list, refs);
    assert_eq!(WireRef::iter(&refs).unwrap().collect::<Vec<_>>(), [reference]);

    #[rustfmt::skip]
    let heat = [
        1, 0, 0, 0, 0, 0, 0, 0xf0,      // file
        2, 0, 0, 0, 0, 0, 0, 0,         // block
        3, 0, 0, 0, 0, 0, 0, 0,         // generation
    ];
    let page = WireHeat { file: 0xf000_0000_0000_0001, block: 2, generation: 3 };
    let mut list = Vec::new();
    page.push(&mut list);
    assert_eq!(list, heat);
    assert_eq!(WireHeat::iter(&heat).unwrap().collect::<Vec<_>>(), [page]);
}

#[test]
fn operation_numbers() {
    let numbers: Vec<_> = Op::ALL.iter().map(|op| (op.number(), op.name())).collect();
    #[rustfmt::skip]
    assert_eq!(numbers, [
        (1, "CONNECT"), (2, "DISCONNECT"), (3, "RENEW"), (4, "STATS"),
        (10, "LOOKUP"), (11, "OPEN"), (12, "CLOSE"), (13, "READ"), (14, "WRITE"), (15, "COMMIT"),
        (16, "GETATTR"), (17, "SETATTR"), (18, "MKDIR"), (19, "UNLINK"), (20, "RMDIR"),
        (21, "RENAME"), (22, "READDIR"), (23, "SYMLINK"), (24, "READLINK"), (25, "LINK"),
        (26, "STATFS"), (27, "GET_REFS"),
    ]);
    let idempotent = Op::ALL.iter().filter(|op| op.is_idempotent()).map(|op| op.name());
    assert_eq!(
        idempotent.collect::<Vec<_>>().join(" "),
        "RENEW STATS LOOKUP READ GETATTR READDIR READLINK STATFS GET_REFS"
    );
}

#[test]
fn status_numbers() {
    let numbers: Vec<_> = Status::ALL.iter().map(|s| (s.number(), s.name(), s.errno())).collect();
    #[rustfmt::skip]
    assert_eq!(numbers, [
        (0, "Ok", 0),
        (1, "NoEntry", 2), (2, "Access", 13), (3, "Permission", 1), (4, "Exists", 17),
        (5, "NotDirectory", 20), (6, "IsDirectory", 21), (7, "Invalid", 22), (8, "FileTooBig", 27),
        (9, "NoSpace", 28), (10, "ReadOnly", 30), (11, "NameTooLong", 36), (12, "NotEmpty", 39),
        (13, "Quota", 122), (14, "StaleHandle", 116), (15, "Io", 5), (16, "CrossDevice", 18),
        (17, "TooManyLinks", 31), (18, "TooManyOpenFiles", 24), (19, "FileTableFull", 23),
        (20, "Loop", 40), (21, "NotSupported", 95), (22, "NoDevice", 6), (23, "TextBusy", 26),
        (24, "Busy", 16), (25, "TryAgain", 11), (26, "Overflow", 75), (27, "BadName", 84),
        (28, "OpenMode", 9),
        (100, "BadMessage", 71), (101, "UnknownOperation", 95), (102, "BadSession", 107),
        (103, "BadSlot", 71), (104, "BadSequence", 71), (105, "TooManyRequests", 11),
        (106, "Version", 93), (107, "NoExport", 2), (108, "Protection", 13),
        (109, "ServerStopping", 108), (110, "MessageTooBig", 90), (111, "NoMemory", 12),
        (112, "TooManySessions", 11),
        (200, "BadOpen", 9), (201, "Transfer", 5), (202, "Fenced", 13),
    ]);
}

/// Checks that `message` encodes to the fields given, and that they decode to it.
fn golden<M: Message + Default + PartialEq + Debug>(message: M, fields: &[&[u8]]) {
    let bytes = fields.concat();
    assert_eq!(message.encode_to_vec(), bytes, "encoding {message:?}");
    assert_eq!(M::decode(&bytes[..]), Ok(message));
}

/// Checks the request and the reply of one operation, which it returns.
fn call<R>(request: R, request_bytes: &[&[u8]], reply: R::Reply, reply_bytes: &[&[u8]]) -> Op
where
    R: Call + PartialEq + Debug,
    R::Reply: PartialEq + Debug,
{
    golden(request, request_bytes);
    golden(reply, reply_bytes);
    R::OP
}

/// Attributes for messages where it does not matter which.
fn attr() -> Option<Attr> {
    Some(Attr { r#type: FileType::Directory.into(), size: 7, ..Attr::default() })
}

/// [`attr`] with its length in front, to follow the tag of the field.
const ATTR: &[u8] = &[4, 0x08, 2, 0x30, 7];

fn change() -> Option<Change> {
    Some(Change { number: 5, verifier: 0x0a0b, ctime: Some(Time { seconds: 1, nanoseconds: 2 }) })
}

/// Its encoding.
const CHANGE: &[u8] = &[0x08, 5, 0x11, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0, 0x1a, 4, 0x08, 2, 0x10, 2];

fn resend() -> Option<Resend> {
    let ctime = Some(Time { seconds: 1, nanoseconds: 2 });
    Some(Resend { boot: 9, number: 5, ctime, seen: 4 })
}

/// Its encoding.
const RESEND: &[u8] = &[0x09, 9, 0, 0, 0, 0, 0, 0, 0, 0x10, 5, 0x1a, 4, 0x08, 2, 0x10, 2, 0x20, 4];

#[test]
fn every_operation() {
    let operations =
        [session::calls(), names::calls(), data::calls(), attributes::calls()].concat();
    let missing: Vec<_> = Op::ALL.iter().filter(|op| !operations.contains(op)).collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
}

#[test]
fn error_reply() {
    golden(ErrorReply { message: "no".into() }, &[&[0x0a, 2, b'n', b'o']]);
}

#[test]
fn all_attributes() {
    let attr = Attr {
        r#type: FileType::Regular.into(),
        mode: 0o644,
        nlink: 2,
        uid: 1000,
        gid: 100,
        size: 5000,
        used: 8192,
        device: 2049,
        inode: 300,
        rdev: 1281,
        atime: Some(Time { seconds: -1, nanoseconds: 0 }),
        mtime: Some(Time { seconds: 1, nanoseconds: 500_000_000 }),
        ctime: Some(Time { seconds: 2, nanoseconds: 0 }),
        change: 0x0102_0304_0506_0708,
    };
    golden(
        attr,
        &[
            &[0x08, 1],                                              // type
            &[0x10, 0xa4, 0x03],                                     // mode
            &[0x18, 2],                                              // nlink
            &[0x20, 0xe8, 0x07],                                     // uid
            &[0x28, 100],                                            // gid
            &[0x30, 0x88, 0x27],                                     // size
            &[0x38, 0x80, 0x40],                                     // used
            &[0x40, 0x81, 0x10],                                     // device
            &[0x48, 0xac, 0x02],                                     // inode
            &[0x50, 0x81, 0x0a],                                     // rdev
            &[0x5a, 2, 0x08, 1],                                     // atime: zigzag -1
            &[0x62, 8, 0x08, 2, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01], // mtime: zigzag 1
            &[0x6a, 2, 0x08, 4],                                     // ctime: zigzag 2
            &[0x71, 8, 7, 6, 5, 4, 3, 2, 1],                         // change
        ],
    );
}

//! How an operation went.
//!
//! Numbers are grouped by the part that refuses: 1 to 99 the file system, 100 to 199 the session,
//! 200 to 299 the data path. They are part of the protocol: a number keeps its meaning for ever,
//! and one that is no longer used is not given out again.

use std::fmt;

/// Linux's error numbers, those of the architectures that share `asm-generic`. Spelled out here
/// because they are part of what a status means, also where client or server runs elsewhere.
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EIO: i32 = 5;
    pub(super) const ENXIO: i32 = 6;
    pub(super) const EBADF: i32 = 9;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EEXIST: i32 = 17;
    pub(super) const EXDEV: i32 = 18;
    pub(super) const ENOTDIR: i32 = 20;
    pub(super) const EISDIR: i32 = 21;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ENFILE: i32 = 23;
    pub(super) const EMFILE: i32 = 24;
    pub(super) const ETXTBSY: i32 = 26;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EMLINK: i32 = 31;
    pub(super) const ENAMETOOLONG: i32 = 36;
    pub(super) const ENOTEMPTY: i32 = 39;
    pub(super) const ELOOP: i32 = 40;
    pub(super) const EPROTO: i32 = 71;
    pub(super) const EOVERFLOW: i32 = 75;
    pub(super) const EILSEQ: i32 = 84;
    pub(super) const EMSGSIZE: i32 = 90;
    pub(super) const EPROTONOSUPPORT: i32 = 93;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ENOTCONN: i32 = 107;
    pub(super) const ESHUTDOWN: i32 = 108;
    pub(super) const ESTALE: i32 = 116;
    pub(super) const EDQUOT: i32 = 122;
}

/// Defines the statuses from one table, so that number, name, errno and meaning cannot disagree.
macro_rules! statuses {
    ($( $number:literal $status:ident $errno:expr, $meaning:literal; )*) => {
        /// How an operation went, by its number on the wire.
        #[must_use]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Status {
            $( #[doc = concat!("`", stringify!($errno), "`: ", $meaning, ".")] $status = $number, )*
        }

        impl Status {
            /// All statuses, by number.
            pub const ALL: &[Self] = &[$( Self::$status, )*];

            /// The status with this number, if there is one.
            #[must_use]
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $( $number => Some(Self::$status), )*
                    _ => None,
                }
            }

            /// The name, for logs and counters.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$status => stringify!($status), )*
                }
            }

            /// The Linux error number that an application gets; 0 for [`Status::Ok`].
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self {
                    $( Self::$status => $errno, )*
                }
            }

            /// What it means, for people, without a full stop.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $( Self::$status => $meaning, )*
                }
            }
        }
    };
}

use errno::*;

statuses! {
    0 Ok 0, "success";

    1 NoEntry ENOENT, "no such file or directory";
    2 Access EACCES, "the caller's credential does not permit it";
    3 Permission EPERM, "the operation is not permitted";
    4 Exists EEXIST, "the name is taken";
    5 NotDirectory ENOTDIR, "not a directory";
    6 IsDirectory EISDIR, "is a directory";
    7 Invalid EINVAL, "an argument is invalid";
    8 FileTooBig EFBIG, "the file would become too big";
    9 NoSpace ENOSPC, "no space is left on the server's device";
    10 ReadOnly EROFS, "the export or its file system is read-only";
    11 NameTooLong ENAMETOOLONG, "the name is too long";
    12 NotEmpty ENOTEMPTY, "the directory is not empty";
    13 Quota EDQUOT, "the disk quota is used up";
    14 StaleHandle ESTALE, "the handle names no file any more";
    15 Io EIO, "the server's storage failed";
    16 CrossDevice EXDEV, "it is on another file system";
    17 TooManyLinks EMLINK, "the file has too many links";
    18 TooManyOpenFiles EMFILE, "too many files are open";
    19 FileTableFull ENFILE, "too many files are open on the server's host";
    20 Loop ELOOP, "too many symbolic links";
    21 NotSupported EOPNOTSUPP, "the file system does not support it";
    22 NoDevice ENXIO, "no such device or address, or no data there";
    23 TextBusy ETXTBSY, "the file is a program that is running";
    24 Busy EBUSY, "the file or directory is in use";
    25 TryAgain EAGAIN, "not possible at the moment";
    26 Overflow EOVERFLOW, "a value is too large for its type";
    27 BadName EILSEQ, "the file system cannot store this name";
    28 OpenMode EBADF, "the file is not open for this access";

    100 BadMessage EPROTO, "the message is malformed";
    101 UnknownOperation EOPNOTSUPP, "the server does not know the operation";
    102 BadSession ENOTCONN, "the server does not know the session: open a new one";
    103 BadSlot EPROTO, "the session has no such request slot";
    104 BadSequence EPROTO, "the request's sequence number does not follow the slot's last one";
    105 TooManyRequests EAGAIN, "the server has too many requests: ask again later";
    106 Version EPROTONOSUPPORT, "the server does not speak this version of the protocol";
    107 NoExport ENOENT, "the server has no such export for this client";
    108 Protection EACCES, "client and export do not agree on a protection level";
    109 ServerStopping ESHUTDOWN, "the server is stopping";
    110 MessageTooBig EMSGSIZE, "the message is longer than the session allows";
    111 NoMemory ENOMEM, "the server is out of memory";
    112 TooManySessions EAGAIN, "the server has too many sessions: connect again later";

    200 BadOpen EBADF, "the session has no such open";
    201 Transfer EIO, "a direct transfer to or from the client's buffer failed";
    202 Fenced EACCES, "the client is fenced off from the export";
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether it is [`Status::Ok`].
    #[must_use]
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }

    /// The status for an error of the server's file system. 0 is [`Status::Ok`], and a number not
    /// in the table is [`Status::Io`].
    ///
    /// The file system cannot know of sessions and opens: apart from [`Status::NoMemory`], those
    /// statuses never result, not even from an errno that one of them has. A client acts on them,
    /// by connecting anew for example.
    pub fn from_errno(errno: i32) -> Self {
        let from_file_system = |s: &Self| s.number() < 100 || *s == Self::NoMemory;
        let mut candidates = Self::ALL.iter().copied().filter(from_file_system);
        candidates.find(|s| s.errno() == errno).unwrap_or(Self::Io)
    }
}

/// The meaning.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.meaning())
    }
}

impl std::error::Error for Status {}

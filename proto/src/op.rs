//! The operations, and the messages of each.

use crate::msg;
use std::fmt;

/// A request message: says which operation it asks for and what the answer is.
pub trait Call: prost::Message + Default {
    /// The operation.
    const OP: Op;
    /// The body of the reply whose status is [`Status::Ok`](crate::Status::Ok).
    type Reply: prost::Message + Default;
}

/// Defines the operations from one table, so that number, name, messages and the rule for repeated
/// requests cannot disagree.
macro_rules! operations {
    ($(
        $number:literal $op:ident $name:literal, idempotent: $idempotent:literal,
        $request:ident => $reply:ident, $meaning:literal;
    )*) => {
        /// An operation, by its number on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Op {
            $( #[doc = $meaning] $op = $number, )*
        }

        impl Op {
            /// All operations, by number.
            pub const ALL: &[Self] = &[$( Self::$op, )*];

            /// The operation with this number, if there is one.
            #[must_use]
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $( $number => Some(Self::$op), )*
                    _ => None,
                }
            }

            /// The name, for people: logs, counters and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$op => $name, )*
                }
            }

            /// Whether executing the same request again does no harm, so that a repeated request
            /// may be executed afresh and its reply need not be kept: true of reads and queries.
            #[must_use]
            pub const fn is_idempotent(self) -> bool {
                match self {
                    $( Self::$op => $idempotent, )*
                }
            }
        }

        $(
            impl Call for msg::$request {
                const OP: Op = Op::$op;
                type Reply = msg::$reply;
            }
        )*
    };
}

operations! {
    1 Connect "CONNECT", idempotent: false, ConnectRequest => ConnectReply,
        "Opens a session, or takes an existing one over after a lost connection.";
    2 Disconnect "DISCONNECT", idempotent: false, DisconnectRequest => DisconnectReply,
        "Ends the session and closes its opens.";
    3 Renew "RENEW", idempotent: true, RenewRequest => RenewReply,
        "Renews the lease and reports heat.";
    4 Stats "STATS", idempotent: true, StatsRequest => StatsReply,
        "Asks for the server's counters.";
    10 Lookup "LOOKUP", idempotent: true, LookupRequest => LookupReply,
        "Finds a name in a directory.";
    11 Open "OPEN", idempotent: false, OpenRequest => OpenReply,
        "Opens a file, and may create or truncate it.";
    12 Close "CLOSE", idempotent: false, CloseRequest => CloseReply,
        "Ends an open.";
    13 Read "READ", idempotent: true, ReadRequest => ReadReply,
        "Reads pages of an open file.";
    14 Write "WRITE", idempotent: false, WriteRequest => WriteReply,
        "Writes to an open file.";
    15 Commit "COMMIT", idempotent: false, CommitRequest => CommitReply,
        "Brings what was written to stable storage.";
    16 GetAttr "GETATTR", idempotent: true, GetAttrRequest => GetAttrReply,
        "Asks for the attributes of a file.";
    17 SetAttr "SETATTR", idempotent: false, SetAttrRequest => SetAttrReply,
        "Sets attributes of a file, its size among them.";
    18 Mkdir "MKDIR", idempotent: false, MkdirRequest => MkdirReply,
        "Creates a directory.";
    19 Unlink "UNLINK", idempotent: false, UnlinkRequest => UnlinkReply,
        "Removes a name that is not a directory's.";
    20 Rmdir "RMDIR", idempotent: false, RmdirRequest => RmdirReply,
        "Removes an empty directory.";
    21 Rename "RENAME", idempotent: false, RenameRequest => RenameReply,
        "Moves a name, replacing what bears the new one.";
    22 Readdir "READDIR", idempotent: true, ReaddirRequest => ReaddirReply,
        "Lists a directory, part by part.";
    23 Symlink "SYMLINK", idempotent: false, SymlinkRequest => SymlinkReply,
        "Creates a symbolic link.";
    24 Readlink "READLINK", idempotent: true, ReadlinkRequest => ReadlinkReply,
        "Reads a symbolic link.";
    25 Link "LINK", idempotent: false, LinkRequest => LinkReply,
        "Gives a file another name.";
    26 Statfs "STATFS", idempotent: true, StatfsRequest => StatfsReply,
        "Asks how much space the file system has.";
    27 GetRefs "GET_REFS", idempotent: true, GetRefsRequest => GetRefsReply,
        "Asks for references of a range of an open file.";
}

impl Op {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// The operation's name.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

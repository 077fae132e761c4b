//! References to pages in a peer's memory, and why a read through one can fail.

use std::fmt;

/// Names a chunk of exported memory; never reused within a boot.
pub type ChunkId = u32;

/// What a client needs to read a page one-sidedly. Carries no right by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteRef {
    /// The chunk that holds the page.
    pub chunk: ChunkId,
    /// The slot within the chunk.
    pub slot: u32,
    /// The server's number for the file.
    pub file: u64,
    /// The page's place in the file, in pages.
    pub block: u64,
    /// The generation of the slot when the reference was made.
    pub generation: u64,
}

/// Why a one-sided read did not succeed. Always recoverable by RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessFault {
    /// The slot is dead, holds another page or generation, or a version below the floor.
    Stale,
    /// The check does not match: the page is changing. The reference stays good.
    Torn,
    /// The check still does not match after an RPC said the page is unchanged: corrupt or forged.
    Bad,
    /// The read was refused: key, epoch, rkey, or the link may not read.
    Revoked,
    /// The chunk is not there.
    Gone,
    /// The connection is lost, or the server with it.
    Unreachable,
}

impl AccessFault {
    /// All faults, for tables of counters.
    pub const ALL: [Self; 6] =
        [Self::Stale, Self::Torn, Self::Bad, Self::Revoked, Self::Gone, Self::Unreachable];

    /// Whether the reference is still good after the fault.
    #[must_use]
    pub fn keeps_reference(self) -> bool {
        self == Self::Torn
    }

    /// The fault's name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Torn => "torn",
            Self::Bad => "bad",
            Self::Revoked => "revoked",
            Self::Gone => "gone",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for AccessFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for AccessFault {}

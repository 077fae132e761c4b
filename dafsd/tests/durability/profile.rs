//! What a seed is about.

/// What can be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Open,
    Write,
    StableWrite,
    Read,
    Truncate,
    TruncateByName,
    Sync,
    SyncRange,
    Close,
    Unlink,
    Rename,
    KillServer,
    StopServer,
    LosePower,
    KillClient,
    EndLease,
    /// The server writes pages back and takes them out of its cache.
    Retire,
    /// The server writes everything back.
    Flush,
    /// The next sync of a file fails.
    FailSync,
    /// A page cannot be written for a while.
    FailPage,
    /// A page cannot be read for a while.
    FailRead,
    /// No more than a few pages can be allocated.
    NoSpace,
    /// The same for the user that all files belong to.
    NoQuota,
    /// The kernel writes pages of a file to the device by itself.
    KernelWrites,
    /// It fails to, and loses them.
    KernelLoses,
    /// In the middle of the next operation on the disk, somebody else's sync of the file fails.
    FailAmong,
    /// In the middle of a later operation on the disk, the server is killed and started again.
    KillAmong,
    /// The same with the power.
    PowerAmong,
    /// The disk is well again.
    Heal,
}

/// A mixture of steps.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    pub clients: usize,
    pub files: usize,
    /// Connections are lost at any moment.
    pub foul: bool,
    pub steps: &'static [(Step, u32)],
}

impl Profile {
    /// The next step, with its likelihood.
    pub fn choose(&self, random: &mut fastrand::Rng) -> Step {
        let all: u32 = self.steps.iter().map(|(_, weight)| weight).sum();
        let mut at = random.u32(0..all);
        for (step, weight) in self.steps {
            if at < *weight {
                return *step;
            }
            at -= weight;
        }
        unreachable!("the weights add up")
    }
}

use Step::*;

/// The profiles; a seed takes the one of its number.
pub const PROFILES: [Profile; 15] = [
    Profile {
        name: "mixed",
        clients: 3,
        files: 3,
        foul: false,
        steps: &[
            (Open, 8),
            (Write, 26),
            (StableWrite, 5),
            (Read, 14),
            (Truncate, 5),
            (TruncateByName, 2),
            (Sync, 9),
            (SyncRange, 4),
            (Close, 5),
            (Unlink, 1),
            (Rename, 2),
            (KillServer, 3),
            (StopServer, 2),
            (LosePower, 2),
            (KillClient, 2),
            (EndLease, 1),
            (Retire, 2),
            (Flush, 1),
            (FailSync, 2),
            (FailPage, 1),
            (FailRead, 1),
            (NoSpace, 1),
            (NoQuota, 1),
            (KernelWrites, 1),
            (KernelLoses, 1),
            (FailAmong, 1),
            (KillAmong, 1),
            (PowerAmong, 1),
            (Heal, 4),
        ],
    },
    // Who sends again what, and over what.
    Profile {
        name: "restarts",
        clients: 2,
        files: 1,
        foul: false,
        steps: &[
            (Open, 3),
            (Write, 30),
            (StableWrite, 6),
            (Read, 14),
            (Truncate, 6),
            (Sync, 8),
            (SyncRange, 6),
            (KillServer, 4),
            (StopServer, 4),
        ],
    },
    // Syncs that fail, and what the next one says.
    Profile {
        name: "syncs",
        clients: 3,
        files: 2,
        foul: false,
        steps: &[
            (Open, 3),
            (Write, 30),
            (StableWrite, 4),
            (Read, 16),
            (Sync, 14),
            (SyncRange, 3),
            (StopServer, 3),
            (KillClient, 3),
            (Retire, 5),
            (Flush, 2),
            (FailSync, 8),
            (KernelLoses, 2),
            (KernelWrites, 2),
        ],
    },
    // Syncs that fail in the middle of another's write or sync.
    Profile {
        name: "among",
        clients: 2,
        files: 1,
        foul: false,
        steps: &[
            (Open, 1),
            (Write, 30),
            (StableWrite, 4),
            (Read, 8),
            (Truncate, 2),
            (Sync, 16),
            (SyncRange, 4),
            (FailAmong, 14),
            (Retire, 2),
            (KillServer, 2),
            (LosePower, 4),
        ],
    },
    // Files that are closed before they are stable.
    Profile {
        name: "closes",
        clients: 2,
        files: 2,
        foul: false,
        steps: &[
            (Open, 18),
            (Write, 30),
            (Read, 12),
            (Sync, 8),
            (Close, 14),
            (KillServer, 6),
            (StopServer, 1),
            (EndLease, 1),
        ],
    },
    // Writes that fail, and pages that cannot be written back.
    Profile {
        name: "writes",
        clients: 2,
        files: 2,
        foul: false,
        steps: &[
            (Open, 3),
            (Write, 34),
            (StableWrite, 6),
            (Read, 12),
            (Truncate, 4),
            (Sync, 8),
            (Retire, 4),
            (FailPage, 4),
            (FailRead, 8),
            (NoSpace, 4),
            (StopServer, 2),
            (Heal, 6),
        ],
    },
    // What is stable when the power fails.
    Profile {
        name: "power",
        clients: 2,
        files: 2,
        foul: false,
        steps: &[
            (Open, 4),
            (Write, 30),
            (StableWrite, 8),
            (Read, 12),
            (Truncate, 6),
            (TruncateByName, 1),
            (Sync, 10),
            (SyncRange, 6),
            (Close, 2),
            (LosePower, 6),
            (KillClient, 2),
            (Retire, 2),
            (KernelWrites, 4),
        ],
    },
    // Two files, of which one's syncs fail.
    Profile {
        name: "files",
        clients: 2,
        files: 2,
        foul: false,
        steps: &[(Open, 8), (Write, 34), (Read, 10), (Sync, 16), (FailSync, 8)],
    },
    // Nothing fails, and no server ends.
    Profile {
        name: "calm",
        clients: 3,
        files: 3,
        foul: false,
        steps: &[
            (Open, 10),
            (Write, 30),
            (StableWrite, 8),
            (Read, 16),
            (Truncate, 8),
            (TruncateByName, 4),
            (Sync, 8),
            (SyncRange, 6),
            (Close, 6),
            (Unlink, 2),
            (Rename, 4),
            (KillClient, 3),
            (EndLease, 3),
            (Retire, 3),
            (Flush, 2),
            (KernelWrites, 2),
        ],
    },
    // One client with one open, whose server and machine end.
    Profile {
        name: "alone",
        clients: 1,
        files: 1,
        foul: false,
        steps: &[
            (Write, 34),
            (Read, 10),
            (Sync, 10),
            (KillServer, 6),
            (StopServer, 3),
            (LosePower, 6),
            (EndLease, 2),
            (KillAmong, 3),
            (PowerAmong, 3),
            (KernelWrites, 4),
            (Retire, 2),
        ],
    },
    // Pages that cannot be written, and no room, while the server runs.
    Profile {
        name: "room",
        clients: 2,
        files: 2,
        foul: false,
        steps: &[
            (Open, 6),
            (Write, 34),
            (Read, 12),
            (Sync, 10),
            (SyncRange, 3),
            (Retire, 4),
            (Flush, 2),
            (KillClient, 2),
            (FailPage, 6),
            (NoSpace, 5),
            (NoQuota, 3),
            (Heal, 6),
        ],
    },
    // Servers and connections that end in the middle of something.
    Profile {
        name: "foul",
        clients: 2,
        files: 2,
        foul: true,
        steps: &[
            (Open, 6),
            (Write, 34),
            (StableWrite, 6),
            (Read, 12),
            (Truncate, 4),
            (Sync, 10),
            (SyncRange, 4),
            (Close, 4),
            (KillAmong, 4),
            (PowerAmong, 3),
            (KillServer, 2),
            (EndLease, 1),
            (Retire, 2),
        ],
    },
    // What becomes stable where single pages cannot be written.
    Profile {
        name: "pages",
        clients: 1,
        files: 1,
        foul: false,
        steps: &[
            (Write, 34),
            (Read, 6),
            (Sync, 8),
            (FailPage, 8),
            (StopServer, 8),
            (KillClient, 6),
            (Heal, 4),
        ],
    },
    // Several opens of one client.
    Profile {
        name: "opens",
        clients: 1,
        files: 1,
        foul: false,
        steps: &[(Open, 12), (Write, 34), (Read, 8), (Sync, 8), (Close, 4), (KillServer, 6)],
    },
    // One open whose ranges are synced alone.
    Profile {
        name: "ranges",
        clients: 1,
        files: 1,
        foul: false,
        steps: &[(Write, 34), (Read, 8), (Sync, 2), (SyncRange, 14), (KillServer, 6)],
    },
];

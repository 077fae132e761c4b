//! What a client may rely on when the server fails: data that is not stable yet.
//!
//! A client keeps what it has written until it is told that it is stable, and sends it again when
//! the server was restarted or has lost it. Nothing that is sent again may come to lie over what
//! another client has written since. So the server knows, for each file, which ranges each client
//! has not been told are stable; and before another client changes such a range, the server makes it
//! stable and records that on disk: the range is *handed over*. No range ever has two clients that
//! would send it again.
//!
//! | module | what it does |
//! |---|---|
//! | `unstable` | one file: who has changed what, what of it is stable, which changes are under way |
//! | `owners` | the clients that have changes which they have not been told are stable |
//! | `boots` | the runs of the server, and the record of what was handed over in each, on disk |
//!
//! `unstable` is plain data: it does no I/O and looks at no clock.

mod boots;
mod owners;
mod unstable;

pub use boots::{Boots, BootsError, MachineBoot, Record, time_of_start};
pub use owners::{Owner, OwnerId, Owners};
pub use unstable::{Claim, HandOver, Judged, Resend, Round, Unstable};

/// A range of bytes of a file.
pub type Range = std::ops::Range<u64>;

/// The offset behind all bytes.
pub const END: u64 = u64::MAX;

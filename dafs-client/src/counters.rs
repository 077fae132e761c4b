//! What a client counts: one counter for each arrow of the decision order of a read, and what each
//! read reports of itself.

use ordma::AccessFault;
use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters from one table: the atomics, the snapshot, and the names.
macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $name:ident, )*) => {
        /// Counters of a client; each only grows.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $( pub(crate) $name: Counter, )*
            faults: [Counter; AccessFault::ALL.len()],
        }

        /// The counters of a client at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $( $(#[doc = $doc])* pub $name: u64, )*
            /// One-sided reads of a page that faulted, in the order of [`AccessFault::ALL`].
            pub faults: [u64; AccessFault::ALL.len()],
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $( $name: self.$name.get(), )*
                    faults: std::array::from_fn(|i| self.faults[i].get()),
                }
            }
        }

        impl Snapshot {
            /// All counters with their names; faults as `fault_stale` and so on.
            #[must_use]
            pub fn named(&self) -> Vec<(String, u64)> {
                let mut named = vec![$( (stringify!($name).to_owned(), self.$name), )*];
                for (fault, count) in AccessFault::ALL.iter().zip(self.faults) {
                    named.push((format!("fault_{}", fault.name()), count));
                }
                named
            }
        }
    };
}

counters! {
    /// Pages looked up that had a reference.
    directory_hits,
    /// Pages looked up that had none.
    directory_misses,
    /// Pages read one-sidedly.
    ordma_pages,
    /// One-sided reads repeated because the page was changing.
    torn_retries,
    /// Pages that had a reference and were read by RPC all the same, for one-sided reads were being set
    /// up again after a fault that a NIC met. They count as inline or direct too, and not as faults.
    rearming_pages,
    /// Pages read by RPC with the data in the reply.
    inline_pages,
    /// Pages read by RPC with the data placed into the client's buffer.
    direct_pages,
    /// READ requests whose data was placed from the server's slots and did not pass: pages were
    /// changing. The pages were asked for once more, as copies.
    direct_torn,
    /// Requests whose direct transfer failed. They were made again with the data in messages.
    direct_failed,
    /// Reads that found the end of the file without an RPC.
    ends_without_rpc,
    /// READ requests whose data came in the reply.
    inline_reads,
    /// READ requests whose data was placed into the client's buffer.
    direct_reads,
    /// WRITE requests that carried their data.
    inline_writes,
    /// WRITE requests whose data the server fetched.
    direct_writes,
    /// Bytes of payload read one-sidedly.
    ordma_bytes,
    /// Bytes of payload read inline.
    inline_bytes,
    /// Bytes of payload placed directly.
    direct_bytes,
    /// Bytes written.
    written_bytes,
    /// Bytes copied within the client: out of replies, out of bounce pages, and into the record of
    /// uncommitted writes.
    copied_bytes,
    /// Uncommitted bytes sent again because the server lost them.
    resent_bytes,
    /// Requests sent, of any kind, those sent again not counted.
    requests,
    /// Requests sent again after a lost connection.
    resent_requests,
    /// Connections that replaced a lost one.
    reconnects,
    /// Times the session was not there any more and was replaced by a new one.
    sessions_lost,
}

impl Counters {
    pub(crate) fn fault(&self, fault: AccessFault) {
        if let Some(place) = AccessFault::ALL.iter().position(|f| *f == fault) {
            self.faults[place].add(1);
        }
    }
}

impl Snapshot {
    /// One-sided reads that ended in `fault`.
    #[must_use]
    pub fn fault(&self, fault: AccessFault) -> u64 {
        let place = AccessFault::ALL.iter().position(|f| *f == fault);
        place.map_or(0, |place| self.faults[place])
    }
}

/// A number that grows. Readers on other threads may see it late.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a read was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Bytes read; fewer than asked for at the end of the file only.
    pub bytes: usize,
    /// Pages read one-sidedly.
    pub ordma: u32,
    /// Pages that came in replies.
    pub inline: u32,
    /// Pages that the server placed.
    pub direct: u32,
    /// One-sided reads that faulted.
    pub faults: u32,
    /// Pages, of those inline and direct, that had a reference while one-sided reads were being set up
    /// again after a fault that a NIC met.
    pub rearming: u32,
    /// Bytes copied within the client on the way to the caller's buffer. The copy that an engine
    /// makes of a page in shared memory is the transfer itself and does not count.
    pub copied: u64,
}

impl ReadReport {
    /// Adds what another part of the same read reports.
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.ordma += other.ordma;
        self.inline += other.inline;
        self.direct += other.direct;
        self.faults += other.faults;
        self.rearming += other.rearming;
        self.copied += other.copied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_every_counter() {
        let counters = Counters::default();
        counters.ordma_pages.add(2);
        counters.fault(AccessFault::Torn);
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.fault(AccessFault::Torn), 1);
        assert!(snapshot.named().contains(&("ordma_pages".into(), 2)));
        assert!(snapshot.named().contains(&("fault_torn".into(), 1)));
    }
}

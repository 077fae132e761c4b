//! Whether direct transfers are worth asking for.

use super::Session;
use crate::error::Error;
use crate::sync::lock;
use dafs_proto::Status;
use std::time::{Duration, Instant};

/// How long nothing is transferred directly after that has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Until when direct transfers are left alone: one has failed, for want of memory that a device may
/// write to, for example. Pages and data travel in messages meanwhile.
#[derive(Debug, Default)]
pub(super) struct Detour {
    until: Option<Instant>,
}

impl Detour {
    /// The clock is looked at only where there was one.
    fn is_over(&self, now: impl FnOnce() -> Instant) -> bool {
        self.until.is_none_or(|until| now() >= until)
    }

    fn begin(&mut self, now: Instant) {
        self.until = Some(now + PAUSE);
    }
}

impl Session {
    /// Whether direct transfers are worth asking for: none has failed lately.
    pub(crate) fn transfers_directly(&self) -> bool {
        lock(&self.detour).is_over(|| self.now())
    }

    /// Whether a request has failed for its direct transfer alone, so that it may be made again with
    /// the data in a message, as those that follow are for a while.
    pub(crate) fn only_transfer_failed(&self, error: &Error) -> bool {
        if error.status() != Some(Status::Transfer) {
            return false;
        }
        tracing::warn!(%error, "a direct transfer failed: the data travels in messages");
        self.counters.direct_failed.add(1);
        lock(&self.detour).begin(self.now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detour_ends_by_itself() {
        let (mut detour, now) = (Detour::default(), Instant::now());
        assert!(detour.is_over(|| now));
        detour.begin(now);
        assert!(!detour.is_over(|| now) && !detour.is_over(|| now + PAUSE / 2));
        assert!(detour.is_over(|| now + PAUSE));
    }
}

//! How often something may be done.

use std::time::{Duration, Instant};

/// A bucket of tokens that fills at a steady rate.
#[derive(Debug)]
pub(super) struct Bucket {
    /// From one token to the next.
    interval: Duration,
    /// How long the bucket takes to fill.
    depth: Duration,
    /// When it will be full, if it is not.
    full: Option<Instant>,
}

impl Bucket {
    /// A full bucket. Neither number may be less than one; it counts as one.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, depth: interval * burst.max(1), full: None }
    }

    /// Takes a token; `false` where there is none.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full = self.full.map_or(now, |full| full.max(now)) + self.interval;
        let has_one = full - now <= self.depth;
        if has_one {
            self.full = Some(full);
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_rate() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(10, 5);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, now), 5);
        now += Duration::from_millis(250);
        assert_eq!(taken(&mut bucket, now), 2);
        assert_eq!(taken(&mut bucket, now + Duration::from_millis(50)), 1);
        assert_eq!(taken(&mut bucket, now), 0, "time does not run back");
        now += Duration::from_secs(3600);
        assert_eq!(taken(&mut bucket, now), 5, "never more than the burst");
        assert_eq!(taken(&mut Bucket::new(0, 0), now), 1);
    }
}

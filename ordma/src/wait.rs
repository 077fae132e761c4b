//! How long to spin before sleeping.
//!
//! Sleeping costs a wake-up, on a halted virtual CPU 30 to 40 us; spinning costs the CPU, and where
//! the peer needs that very CPU it delays what it waits for. So whoever waits spins for a bounded
//! time, learns whether that pays, and leaves it when it does not, but for a rare trial.

use std::time::Duration;

/// Learns from past waits how long the next one should spin. Plain data: the times are measured by
/// the caller.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    limit: Duration,
    /// Share of spins that succeeded lately, in 1/256.
    score: u32,
    /// Waits until the next trial, where spinning does not pay.
    until_trial: u32,
    /// Waits between trials; grows while they fail.
    interval: u32,
}

/// From this score on, spinning pays.
const PAYS: u32 = 96;
const MIN_INTERVAL: u32 = 32;
const MAX_INTERVAL: u32 = 2048;

impl Waiter {
    /// A waiter that spins at most `limit` at a time; zero never spins.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, score: 160, until_trial: MIN_INTERVAL, interval: MIN_INTERVAL }
    }

    /// How long to spin now before sleeping.
    pub(crate) fn budget(&mut self) -> Duration {
        if self.score >= PAYS {
            return self.limit;
        }
        self.until_trial = self.until_trial.saturating_sub(1);
        if self.until_trial == 0 { self.limit } else { Duration::ZERO }
    }

    /// What was waited for came while spinning.
    pub(crate) fn hit(&mut self) {
        // A trial that succeeds is believed at once: the next miss takes it back.
        self.score = (self.score + (256 - self.score) / 4).max(PAYS);
        self.interval = MIN_INTERVAL;
        self.until_trial = MIN_INTERVAL;
    }

    /// It did not come within the budget.
    pub(crate) fn miss(&mut self) {
        if self.score < PAYS {
            self.interval = (self.interval * 2).min(MAX_INTERVAL);
        }
        self.score -= self.score / 4;
        self.until_trial = self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    /// Runs `waits` waits; returns how many of them spun.
    fn run(waiter: &mut Waiter, waits: u32, succeeds: impl Fn(u32) -> bool) -> u32 {
        let mut spun = 0;
        for i in 0..waits {
            if waiter.budget() > Duration::ZERO {
                spun += 1;
                if succeeds(i) { waiter.hit() } else { waiter.miss() }
            }
        }
        spun
    }

    #[test]
    fn spins_as_long_as_it_pays() {
        let mut waiter = Waiter::new(LIMIT);
        assert_eq!(run(&mut waiter, 1000, |_| true), 1000);
        assert!(run(&mut waiter, 1000, |i| i % 4 != 0) > 900, "one miss in four");
    }

    #[test]
    fn a_peer_on_the_same_cpu_is_left_alone() {
        let mut waiter = Waiter::new(LIMIT);
        assert!(run(&mut waiter, 10_000, |_| false) < 20);
        assert!(run(&mut waiter, 100_000, |_| false) < 60);
    }

    #[test]
    fn a_trial_finds_out_that_it_pays_again() {
        let mut waiter = Waiter::new(LIMIT);
        run(&mut waiter, 100_000, |_| false);
        assert!(run(&mut waiter, 10_000, |_| true) > 10_000 - MAX_INTERVAL);
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        assert_eq!(run(&mut Waiter::new(Duration::ZERO), 10_000, |_| true), 0);
    }
}

//! What can go wrong in a world, as data.

use std::time::Duration;

/// The weather: how long messages take and what goes wrong by chance. Probabilities lie between 0
/// and 1 and are drawn from the world's seed. What a test wants to go wrong at a certain time it
/// asks for by name: see the commands of [`World`](super::World).
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Least time that anything takes from one side to the other.
    pub latency_min: Duration,
    /// Most time that anything takes from one side to the other.
    pub latency_max: Duration,
    /// How likely one message or transfer is the connection's last: both sides see the link lost,
    /// and what was under way at that moment has arrived or has not.
    pub drop_connection: f64,
    /// How likely a connection is refused although someone listens.
    pub refuse_connection: f64,
    /// How likely the read of one page ends in a fault that has no reason.
    pub stray_fault: f64,
    /// A one-sided read copies the payload's halves and the footer at different times, and a direct
    /// transfer places its bytes in two steps, so that others act in between.
    pub tear: bool,
    /// How long a side sends into a partition before it gives the link up.
    pub give_up: Duration,
    /// Bytes of messages under way to a client at which the server cuts it off.
    pub queue_limit: usize,
}

impl Default for Faults {
    /// Fair weather: everything arrives, within 5 to 50 microseconds.
    fn default() -> Self {
        Self {
            latency_min: Duration::from_micros(5),
            latency_max: Duration::from_micros(50),
            drop_connection: 0.0,
            refuse_connection: 0.0,
            stray_fault: 0.0,
            tear: false,
            give_up: Duration::from_secs(10),
            queue_limit: 8 << 20,
        }
    }
}

impl Faults {
    /// Foul weather: torn copies, stray faults, a lost connection every few hundred messages.
    #[must_use]
    pub fn foul() -> Self {
        Self {
            drop_connection: 0.004,
            refuse_connection: 0.05,
            stray_fault: 0.02,
            tear: true,
            latency_max: Duration::from_micros(500),
            ..Self::default()
        }
    }
}

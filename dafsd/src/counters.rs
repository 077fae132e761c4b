//! What the server counts.

use dafs_proto::Op;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of requests.
#[derive(Debug)]
pub struct Counters {
    /// By position in [`Op::ALL`].
    requests: Vec<AtomicU64>,
    /// Replies with a status other than OK.
    pub errors: AtomicU64,
    /// Replies that were sent again.
    pub replays: AtomicU64,
    /// Messages that no client of this version sends.
    pub malformed: AtomicU64,
    /// Requests that were refused because too much data of others was under way.
    pub refused: AtomicU64,
    /// Operations that panicked.
    pub panics: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: Op::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            errors: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }
}

/// Counts one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// A request is executed.
    pub fn request(&self, op: Op) {
        if let Ok(at) = Op::ALL.binary_search(&op) {
            count(&self.requests[at]);
        }
    }

    /// Names and values. `handler_calls` are the requests that cost the file server work for
    /// files: all but CONNECT, RENEW and STATS, which have counters of their own only.
    #[must_use]
    pub fn list(&self) -> Vec<(String, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_op: Vec<(Op, u64)> =
            Op::ALL.iter().zip(&self.requests).map(|(op, counter)| (*op, get(counter))).collect();
        let is_handler = |op: &Op| !matches!(op, Op::Connect | Op::Renew | Op::Stats);
        let calls = by_op.iter().filter(|(op, _)| is_handler(op)).map(|(_, count)| count).sum();
        let mut list = vec![("handler_calls".to_owned(), calls)];
        let by_op = by_op.into_iter();
        list.extend(by_op.map(|(op, count)| (format!("op_{}", op.name().to_lowercase()), count)));
        for (name, counter) in [
            ("errors", &self.errors),
            ("replays", &self.replays),
            ("malformed", &self.malformed),
            ("refused", &self.refused),
            ("panics", &self.panics),
        ] {
            list.push((name.to_owned(), get(counter)));
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_counter() {
        let counters = Counters::default();
        Op::ALL.iter().for_each(|op| counters.request(*op));
        let list = counters.list();
        let value = |name: &str| list.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(value("handler_calls"), Op::ALL.len() as u64 - 3);
        for op in Op::ALL {
            assert_eq!(value(&format!("op_{}", op.name().to_lowercase())), 1);
        }
    }
}

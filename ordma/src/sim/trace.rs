//! What happened in a world, to compare two runs and to tell of a failed one.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Events that are kept to be shown; the hash covers all.
const KEPT: usize = 64;

/// One event, as it is shown.
#[derive(Clone, Debug)]
struct Line {
    at: Duration,
    conn: u64,
    what: &'static str,
    size: usize,
}

/// The events so far. Kinds, times and sizes count, contents do not: keys and nonces are drawn
/// afresh in each run and must not make two runs of one seed look different.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    events: u64,
    last: VecDeque<Line>,
}

impl Trace {
    pub(super) fn add(&mut self, at: Duration, conn: u64, what: &'static str, size: usize) {
        self.events += 1;
        for byte in what.bytes() {
            self.mix(u64::from(byte));
        }
        self.mix(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
        self.mix(conn);
        self.mix(size as u64);
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Line { at, conn, what, size });
    }

    fn mix(&mut self, word: u64) {
        // The finisher of splitmix64: any changed bit of any event changes the hash.
        let mut z = (self.hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.hash = z ^ (z >> 31);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { at, conn, what, size } in &self.last {
            writeln!(f, "  {:>14.3?} link {}: {what}, {size}", at, super::number(*conn))?;
        }
        Ok(())
    }
}

//! Buffers for sealed data, kept for the next write.

use crate::lock;
use crate::region::Region;
use std::sync::Mutex;

/// Bytes that a stock keeps: two of the largest messages.
const KEPT: usize = 4 << 20;
/// The smallest buffer.
const LEAST: usize = 4096;

/// The spare buffers of a connection.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    regions: Vec<Region>,
    bytes: usize,
}

impl Stock {
    /// A buffer of at least this length, with anything in it.
    pub(super) fn take(&self, len: usize) -> Region {
        let mut spare = lock(&self.0);
        // The last one that was put back is the likeliest to be in the CPU's cache.
        if let Some(at) = spare.regions.iter().rposition(|region| region.len() >= len) {
            let region = spare.regions.swap_remove(at);
            spare.bytes -= region.len();
            return region;
        }
        drop(spare);
        Region::owned(vec![0; len.next_power_of_two().max(LEAST)])
    }

    /// Puts a buffer back that nobody uses any more.
    pub(super) fn put(&self, region: Region) {
        let mut spare = lock(&self.0);
        if spare.bytes + region.len() <= KEPT {
            spare.bytes += region.len();
            spare.regions.push(region);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_within_bounds() {
        let stock = Stock::default();
        let small = stock.take(1);
        assert_eq!(small.len(), LEAST);
        let large = stock.take(LEAST + 1);
        stock.put(large.clone());
        stock.put(small.clone());
        assert!(stock.take(100).same(&small) && stock.take(100).same(&large));
        assert!(!stock.take(100).same(&small));
        for _ in 0..2 * KEPT / LEAST {
            stock.put(Region::owned(vec![0; LEAST]));
        }
        assert_eq!(lock(&stock.0).bytes, KEPT);
    }
}

//! Which pages were read one-sidedly: the server does not see such reads, and would evict what is
//! read most if it were not told.

use dafs_proto::WireHeat;
use fastrand::Rng;

/// Pages reported at once: 12 KiB on the wire.
const REPORT: usize = 512;

/// A bounded, uniform sample of the one-sided reads since the last report.
#[derive(Debug)]
pub(crate) struct Heat {
    sample: Vec<WireHeat>,
    /// Reads since the last report.
    seen: u64,
    rng: Rng,
}

impl Heat {
    pub(crate) fn new() -> Self {
        Self { sample: Vec::new(), seen: 0, rng: Rng::new() }
    }

    /// A page was read.
    pub(crate) fn record(&mut self, heat: WireHeat) {
        self.seen += 1;
        if self.sample.len() < REPORT {
            self.sample.push(heat);
            return;
        }
        // Reservoir sampling: every read of the period has the same chance to be reported.
        let place = self.rng.u64(0..self.seen);
        if let Ok(place) = usize::try_from(place)
            && place < REPORT
        {
            self.sample[place] = heat;
        }
    }

    /// The packed list for the next report; the record starts anew.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        self.seen = 0;
        let mut list = Vec::with_capacity(self.sample.len() * WireHeat::LEN);
        for heat in self.sample.drain(..) {
            heat.push(&mut list);
        }
        list
    }

    /// Forgets everything: the server has a new boot id, under which nothing recorded means
    /// anything.
    pub(crate) fn clear(&mut self) {
        self.seen = 0;
        self.sample.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_reads_are_all_reported_and_once() {
        let mut heat = Heat::new();
        let read = |block| WireHeat { file: 1, block, generation: 9 };
        heat.record(read(4));
        heat.record(read(4));
        let list = heat.drain();
        assert_eq!(WireHeat::iter(&list).unwrap().collect::<Vec<_>>(), [read(4), read(4)]);
        assert!(heat.drain().is_empty());
    }

    #[test]
    fn many_reads_are_sampled_evenly_within_the_bound() {
        let mut heat = Heat::new();
        for block in 0..100_000 {
            heat.record(WireHeat { file: 1, block, generation: 9 });
        }
        let list = heat.drain();
        let blocks: Vec<_> = WireHeat::iter(&list).unwrap().map(|h| h.block).collect();
        assert_eq!(blocks.len(), REPORT);
        let late = blocks.iter().filter(|&&b| b >= 50_000).count();
        assert!((REPORT / 4..REPORT * 3 / 4).contains(&late), "{late}");
    }
}

//! Which numbers have been seen: refuses what comes twice, and lets what is late pass within limits.

/// Numbers that have been seen, and how far back is remembered.
///
/// After RFC 6479: the highest number seen, and a ring of bits for those before it.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One above the highest number seen; 0 before any.
    end: u64,
    seen: [u64; Self::WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { end: 0, seen: [0; Self::WORDS] }
    }
}

impl ReplayWindow {
    const WORDS: usize = 16;
    /// How far below the highest number one may be and still be accepted.
    pub const WIDTH: u64 = (Self::WORDS as u64 - 1) * 64;

    /// Takes a number; `false` where it came before, or is too old to tell.
    pub fn take(&mut self, number: u64) -> bool {
        let word = number / 64;
        if number >= self.end {
            // Words between the last one in use and this one are of numbers never seen.
            let last = if self.end == 0 { None } else { Some((self.end - 1) / 64) };
            let first_new =
                last.map_or(0, |last| last + 1).max((word + 1).saturating_sub(Self::WORDS as u64));
            for stale in first_new..=word {
                self.seen[Self::place(stale)] = 0;
            }
            self.end = number.saturating_add(1);
        } else if self.end - number > Self::WIDTH {
            return false;
        }
        let (bits, bit) = (&mut self.seen[Self::place(word)], 1 << (number % 64));
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }

    fn place(word: u64) -> usize {
        (word % Self::WORDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn each_number_once_in_any_order_within_the_window() {
        let mut window = ReplayWindow::default();
        for number in [0, 3, 1, 2, 1000, 200, 999] {
            assert!(window.take(number), "{number}");
            assert!(!window.take(number), "{number} again");
        }
        assert!(!window.take(4), "too old to tell");
        assert!(window.take(u64::MAX - 1) && !window.take(u64::MAX - 1) && !window.take(1001));
        assert!(window.take(u64::MAX - 70));
    }

    proptest! {
        #[test]
        fn nothing_passes_twice_and_nothing_recent_is_refused(
            steps in proptest::collection::vec((0u64..3000, 0u64..1100), 1..400),
        ) {
            let mut window = ReplayWindow::default();
            let (mut seen, mut high) = (HashSet::new(), None::<u64>);
            let mut base = 0;
            for (forward, back) in steps {
                base += forward;
                let number = base.saturating_sub(back);
                let recent = high.is_none_or(|high| number > high || high + 1 - number <= ReplayWindow::WIDTH);
                let taken = window.take(number);
                if recent {
                    prop_assert_eq!(taken, !seen.contains(&number));
                } else {
                    prop_assert!(!taken);
                }
                if taken {
                    seen.insert(number);
                    high = Some(high.map_or(number, |high| high.max(number)));
                }
            }
        }
    }
}

//! What of one file is not stable yet, and whose it is. Plain data.
//!
//! | an owner's range is | meaning |
//! |---|---|
//! | unstable | changed by the owner, perhaps not on disk |
//! | stable | on disk, but the owner does not know |
//! | handed over | on disk and recorded as such, because another client was about to change it |
//!
//! A change goes through [`begin`](Unstable::begin), [`claim`](Unstable::claim),
//! [`enter`](Unstable::enter) and [`end`](Unstable::end). Between `begin` and `end` no other change
//! of an overlapping range goes on.

use super::owners::Owner;
use super::{END, Range};
use dafs_proto::Time;
use rangemap::{RangeMap, RangeSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most ranges that are told apart of those that were changed in this boot. Beyond it they count as
/// one.
const MOST_CHANGED: usize = 4096;
/// Most rounds whose ranges are told apart, of those that an owner has not been told of.
const MOST_ROUNDS: usize = 8;

/// Counts the times that something of the file was made stable. What a reply tells its client is
/// named by it.
pub type Round = u64;

/// A change that came again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resend {
    /// The boot that acknowledged it, or that it was sent to.
    pub boot: u64,
    /// Its number in that boot; 0 where it was not acknowledged.
    pub number: u64,
    /// The ctime on disk that the client was told with the number.
    pub ctime: Option<Time>,
    /// Where it was not acknowledged: the greatest number that its owner knew of, of a change of the
    /// file in that boot, before it was sent for the first time. It has a greater one, if any.
    pub seen: u64,
}

impl Resend {
    /// What becomes of a part that was handed over with all of the owner's changes up to `through`.
    fn judge_handed_over(&self, through: u64) -> HandedOver {
        match self.number {
            // What was handed over was made before this was sent.
            0 if through <= self.seen => HandedOver::Another,
            0 => HandedOver::Unknown,
            number if number <= through => HandedOver::This,
            _ => HandedOver::Another,
        }
    }
}

/// Whether a change is among those that were handed over.
enum HandedOver {
    This,
    Another,
    Unknown,
}

/// What becomes of the parts of a change that came again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// To be done.
    pub take: Vec<Range>,
    /// Stable already, and to be left alone.
    pub skip: Vec<Range>,
    /// Another client may have changed it since: not to be done.
    pub refuse: Vec<Range>,
}

/// Whether a change may be made.
#[derive(Debug)]
pub enum Claim {
    /// It may.
    Free,
    /// This range has first to be made stable and handed over.
    HandOver(Range),
}

/// A range that is stable and is handed over.
#[derive(Clone, Debug)]
pub struct HandOver {
    /// Its owner.
    pub owner: Arc<Owner>,
    /// The range.
    pub range: Range,
    /// The number of the owner's last change before.
    pub through: u64,
}

/// The state of one file.
#[derive(Debug)]
pub struct Unstable {
    held: BTreeMap<u64, Held>,
    /// Who changed what in this boot; `None`: several did, or it is not known who.
    changed: RangeMap<u64, Option<u64>>,
    /// Changes under way.
    under_way: Vec<UnderWay>,
    begun: u64,
    round: Round,
    /// The number of the last change of all when it began.
    round_latest: u64,
    /// The ctime on disk when the file was first cached.
    first_ctime: Option<Time>,
}

#[derive(Debug)]
struct UnderWay {
    id: u64,
    range: Range,
    /// Its owner and number, once it has been entered.
    entered: Option<(u64, u64)>,
}

/// What a round has made stable of an owner's changes.
#[derive(Debug)]
struct Stable {
    round: Round,
    /// No change in `ranges` has a greater number.
    latest: u64,
    ranges: RangeSet<u64>,
}

/// What one owner has of the file.
#[derive(Debug)]
struct Held {
    owner: Arc<Owner>,
    unstable: RangeSet<u64>,
    /// The number of the owner's last change of the file.
    latest: u64,
    /// Changed since the present round began.
    since: RangeSet<u64>,
    stable: Vec<Stable>,
    /// The number of the owner's last change when the present round began, and the number up to
    /// which all of its changes had been made.
    round_latest: u64,
    through: u64,
    /// What was handed over, with the number up to which the owner's changes are.
    handed_over: RangeMap<u64, u64>,
}

impl Held {
    fn new(owner: &Arc<Owner>) -> Self {
        Self {
            owner: Arc::clone(owner),
            unstable: RangeSet::new(),
            latest: 0,
            since: RangeSet::new(),
            stable: Vec::new(),
            round_latest: 0,
            through: 0,
            handed_over: RangeMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.unstable.is_empty() && self.stable.is_empty() && self.handed_over.is_empty()
    }

    /// Ranges that the owner's share is made of.
    fn count(&self) -> usize {
        self.unstable.len()
            + self.stable.iter().map(|stable| stable.ranges.len()).sum::<usize>()
            + self.handed_over.len()
    }

    /// The least range that holds all that has to be handed over before `range` is changed.
    fn in_the_way(&self, range: &Range) -> Option<Range> {
        let stable = self.stable.iter().map(|stable| &stable.ranges);
        let overlaps = std::iter::once(&self.unstable)
            .chain(stable)
            .flat_map(|ranges| ranges.overlapping(range));
        overlaps.fold(None, |hull: Option<Range>, found| {
            let (start, end) = (found.start.max(range.start), found.end.min(range.end));
            Some(hull.map_or(start..end, |hull| hull.start.min(start)..hull.end.max(end)))
        })
    }

    fn stable_in(&self, range: &Range) -> Vec<HandOver> {
        let stable = self.stable.iter().flat_map(|stable| stable.ranges.overlapping(range));
        let part = |part: &Range| HandOver {
            owner: Arc::clone(&self.owner),
            range: part.start.max(range.start)..part.end.min(range.end),
            through: self.latest,
        };
        stable.map(part).collect()
    }

    fn lose_stable(&mut self, range: &Range) {
        for stable in &mut self.stable {
            stable.ranges.remove(range.clone());
        }
        self.stable.retain(|stable| !stable.ranges.is_empty());
    }
}

impl Unstable {
    /// The state of a file that has just been cached, with the ctime that the disk has for it.
    #[must_use]
    pub fn new(ctime: Option<Time>) -> Self {
        Self {
            held: BTreeMap::new(),
            changed: RangeMap::new(),
            under_way: Vec::new(),
            begun: 0,
            round: 0,
            round_latest: 0,
            first_ctime: ctime,
        }
    }

    /// Whether nobody would send anything of the file again, and no change is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.under_way.is_empty()
    }

    /// Whether an owner has ranges of the file.
    #[must_use]
    pub fn has(&self, owner: u64) -> bool {
        self.held.contains_key(&owner)
    }

    /// Begins a change of a range: its id. `None` where another change of an
    /// overlapping range is under way.
    pub fn begin(&mut self, range: &Range) -> Option<u64> {
        let overlaps =
            |other: &UnderWay| other.range.start < range.end && range.start < other.range.end;
        if self.under_way.iter().any(overlaps) {
            return None;
        }
        self.begun += 1;
        self.under_way.push(UnderWay { id: self.begun, range: range.clone(), entered: None });
        Some(self.begun)
    }

    /// Ends a change; whether others may go on for it.
    pub fn end(&mut self, id: u64) {
        self.under_way.retain(|change| change.id != id);
    }

    /// Whether `owner` may change a range.
    #[must_use]
    pub fn claim(&self, owner: u64, range: &Range) -> Claim {
        let others = self.held.iter().filter(|(other, _)| **other != owner);
        let hull = others
            .filter_map(|(_, held)| held.in_the_way(range))
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        hull.map_or(Claim::Free, Claim::HandOver)
    }

    /// What others than `owner` have in a range and have not been told is stable, after it has been
    /// made stable.
    #[must_use]
    pub fn to_hand_over(&self, owner: u64, range: &Range) -> Vec<HandOver> {
        let others = self.held.iter().filter(|(other, _)| **other != owner);
        others.flat_map(|(_, held)| held.stable_in(range)).collect()
    }

    /// What owners have and have not been told is stable, after all was made stable.
    #[must_use]
    pub fn all_stable(&self) -> Vec<HandOver> {
        self.held.values().flat_map(|held| held.stable_in(&(0..END))).collect()
    }

    /// It was recorded that these are stable.
    pub fn handed_over(&mut self, ranges: &[HandOver]) {
        for HandOver { owner, range, through } in ranges {
            let Some(held) = self.held.get_mut(&owner.number()) else { continue };
            let before = held.count();
            held.lose_stable(range);
            held.handed_over.insert(range.clone(), *through);
            owner.counts(before, held.count());
        }
    }

    /// A change under way is about to be made: from now on the range is its owner's, whose share has
    /// grown; whether this is the first of the file.
    pub fn enter(&mut self, id: u64, owner: &Arc<Owner>, range: &Range, number: u64) -> bool {
        if let Some(change) = self.under_way.iter_mut().find(|change| change.id == id) {
            change.entered = Some((owner.number(), number));
        }
        let first = !self.held.contains_key(&owner.number());
        let held = self.held.entry(owner.number()).or_insert_with(|| Held::new(owner));
        let before = held.count();
        held.latest = number;
        held.lose_stable(range);
        held.unstable.insert(range.clone());
        held.since.insert(range.clone());
        owner.counts(before, held.count());
        self.note_changed(owner.number(), range);
        first
    }

    /// Notes who changed a range in this boot.
    fn note_changed(&mut self, owner: u64, range: &Range) {
        let known = self.changed.get_key_value(&range.start);
        if known.is_some_and(|(of, by)| of.end >= range.end && by.is_none_or(|by| by == owner)) {
            return;
        }
        let others: Vec<Range> = self
            .changed
            .overlapping(range)
            .filter(|(_, by)| **by != Some(owner))
            .map(|(of, _)| of.start.max(range.start)..of.end.min(range.end))
            .collect();
        self.changed.insert(range.clone(), Some(owner));
        for other in others {
            self.changed.insert(other, None);
        }
        if self.changed.len() > MOST_CHANGED {
            let by = self.changed.iter().all(|(_, by)| *by == Some(owner)).then_some(owner);
            self.changed.clear();
            self.changed.insert(0..END, by);
        }
    }

    /// Begins to make the file stable: what is changed from now on, or is being changed now, is not
    /// part of it. `latest`: the number of the last change of all.
    pub fn round_begins(&mut self, latest: u64) {
        self.round += 1;
        self.round_latest = latest;
        for held in self.held.values_mut() {
            held.since = RangeSet::new();
            (held.round_latest, held.through) = (held.latest, latest);
        }
        for change in &self.under_way {
            let Some((owner, number)) = change.entered else { continue };
            if let Some(held) = self.held.get_mut(&owner) {
                held.through = held.through.min(number - 1);
                held.since.insert(change.range.clone());
            }
        }
    }

    /// The number up to which all changes of an owner had been made when the present round began.
    #[must_use]
    pub fn through(&self, owner: u64) -> u64 {
        self.held.get(&owner).map_or(self.round_latest, |held| held.through)
    }

    /// The round has made a range stable.
    pub fn round_succeeded(&mut self, range: &Range) -> Round {
        let round = self.round;
        for held in self.held.values_mut() {
            let mut done = RangeSet::new();
            for part in held.unstable.overlapping(range) {
                done.insert(part.start.max(range.start)..part.end.min(range.end));
            }
            for part in held.since.iter() {
                done.remove(part.clone());
            }
            if done.is_empty() {
                continue;
            }
            let before = held.count();
            for part in done.iter() {
                held.unstable.remove(part.clone());
            }
            held.stable.push(Stable { round, latest: held.round_latest, ranges: done });
            if held.stable.len() > MOST_ROUNDS {
                // Told apart no longer: both count as made stable in the later round.
                let first = held.stable.remove(0);
                first.ranges.into_iter().for_each(|part| held.stable[0].ranges.insert(part));
            }
            held.owner.counts(before, held.count());
        }
        round
    }

    /// An owner knows that what it had changed of a range up to a number is stable, as it was after
    /// a round.
    pub fn told(&mut self, owner: u64, range: &Range, round: Round, through: u64) {
        let Some(held) = self.held.get_mut(&owner).filter(|_| !range.is_empty()) else { return };
        let before = held.count();
        for stable in &mut held.stable {
            // Where the owner had changes under way, it may keep what has a greater number.
            if stable.round <= round && stable.latest <= through {
                stable.ranges.remove(range.clone());
            }
        }
        held.stable.retain(|stable| !stable.ranges.is_empty());
        let known: Vec<Range> = held
            .handed_over
            .overlapping(range)
            .filter(|(_, number)| **number <= through)
            .map(|(of, _)| of.start.max(range.start)..of.end.min(range.end))
            .collect();
        known.into_iter().for_each(|part| held.handed_over.remove(part));
        held.owner.counts(before, held.count());
        if held.is_empty() {
            self.held.remove(&owner);
        }
    }

    /// Forgets an owner, which will send nothing again.
    pub fn forget(&mut self, owner: u64) {
        if let Some(held) = self.held.remove(&owner) {
            held.owner.counts(held.count(), 0);
        }
    }

    /// Forgets all owners: the file is gone.
    pub fn forget_all(&mut self) {
        let owners: Vec<u64> = self.held.keys().copied().collect();
        owners.into_iter().for_each(|owner| self.forget(owner));
    }

    /// What becomes of a change that this boot has acknowledged, or was sent.
    #[must_use]
    pub fn judge_same_boot(&self, owner: u64, range: &Range, resend: &Resend) -> Judged {
        let mut judged = Judged::default();
        let held = self.held.get(&owner);
        let mut left = RangeSet::from_iter([range.clone()]);
        if let Some(held) = held {
            for (part, through) in held.handed_over.overlapping(range) {
                let part = part.start.max(range.start)..part.end.min(range.end);
                match resend.judge_handed_over(*through) {
                    HandedOver::Unknown => judged.refuse.push(part.clone()),
                    HandedOver::This => judged.skip.push(part.clone()),
                    HandedOver::Another => continue,
                }
                left.remove(part);
            }
            // Nobody else has changed these since.
            let stable = held.stable.iter().map(|stable| &stable.ranges);
            for ranges in std::iter::once(&held.unstable).chain(stable) {
                for part in left.intersection(ranges).collect::<Vec<_>>() {
                    judged.take.push(part.clone());
                    left.remove(part);
                }
            }
        }
        self.judge_rest(owner, left, &mut judged);
        judged
    }

    /// What becomes of a change that an earlier boot has acknowledged, or was sent. `recorded`: what
    /// was handed over of the owner's in that boot, with numbers. `since`: when the boot after that
    /// one began, where that is known.
    #[must_use]
    pub fn judge_earlier_boot(
        &self,
        owner: u64,
        range: &Range,
        resend: &Resend,
        recorded: &[(Range, u64)],
        since: Option<Time>,
    ) -> Judged {
        let mut judged = Judged::default();
        let mut left = RangeSet::from_iter([range.clone()]);
        for (of, through) in recorded {
            let part = of.start.max(range.start)..of.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            for part in left.overlapping(&part.clone()).cloned().collect::<Vec<_>>() {
                let part = part.start.max(of.start)..part.end.min(of.end);
                match resend.judge_handed_over(*through) {
                    HandedOver::Unknown => judged.refuse.push(part.clone()),
                    HandedOver::This => judged.skip.push(part.clone()),
                    HandedOver::Another => continue,
                }
                left.remove(part);
            }
        }
        // Nobody has changed the file from when that boot ended until it was first cached in this.
        let untouched = match (self.first_ctime, since) {
            (Some(ctime), Some(since)) if earlier(ctime, since) => true,
            (ctime @ Some(_), _) => ctime == resend.ctime,
            (None, _) => false,
        };
        if !untouched {
            judged.refuse.extend(left);
            return judged;
        }
        self.judge_rest(owner, left, &mut judged);
        judged
    }

    /// Refuses what another one changed in this boot.
    fn judge_rest(&self, owner: u64, left: RangeSet<u64>, judged: &mut Judged) {
        for part in left {
            let mut free = RangeSet::from_iter([part.clone()]);
            for (of, by) in self.changed.overlapping(&part) {
                if *by != Some(owner) {
                    let of = of.start.max(part.start)..of.end.min(part.end);
                    free.remove(of.clone());
                    judged.refuse.push(of);
                }
            }
            judged.take.extend(free);
        }
    }
}

fn earlier(a: Time, b: Time) -> bool {
    (a.seconds, a.nanoseconds) < (b.seconds, b.nanoseconds)
}

#[cfg(test)]
mod tests;

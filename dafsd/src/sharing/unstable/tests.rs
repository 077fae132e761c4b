#![allow(clippy::single_range_in_vec_init, reason = "the lists hold ranges")]

use super::*;
use crate::sharing::{OwnerId, Owners};

const BOOT: u64 = 7;

struct World {
    owners: Owners,
    file: Unstable,
    number: u64,
}

impl World {
    fn new() -> Self {
        Self { owners: Owners::default(), file: Unstable::new(Some(time(5))), number: 0 }
    }

    fn owner(&self, number: u8) -> Arc<Owner> {
        self.owners.begin(OwnerId::from_bytes([number; OwnerId::LEN]))
    }

    /// Makes a change that nothing stands in the way of; its number.
    fn write(&mut self, owner: &Arc<Owner>, range: Range) -> u64 {
        let id = self.file.begin(&range).expect("no other change is under way");
        assert!(matches!(self.file.claim(owner.number(), &range), Claim::Free));
        self.number += 1;
        self.file.enter(id, owner, &range, self.number);
        self.file.end(id);
        self.number
    }

    fn sync(&mut self, range: Range) -> Round {
        self.file.round_begins(self.number);
        self.file.round_succeeded(&range)
    }

    /// What has to be handed over before a change; it is.
    fn hand_over(&mut self, owner: &Arc<Owner>, range: Range) -> Vec<Range> {
        let Claim::HandOver(hull) = self.file.claim(owner.number(), &range) else {
            return Vec::new();
        };
        self.sync(hull.clone());
        let found = self.file.to_hand_over(owner.number(), &hull);
        self.file.handed_over(&found);
        assert!(matches!(self.file.claim(owner.number(), &range), Claim::Free));
        found.into_iter().map(|found| found.range).collect()
    }
}

fn time(seconds: i64) -> Time {
    Time { seconds, nanoseconds: 0 }
}

fn resend(number: u64) -> Resend {
    Resend { boot: BOOT, number, ctime: None, seen: 0 }
}

fn taken(range: Range) -> Judged {
    Judged { take: vec![range], ..Judged::default() }
}

#[test]
fn the_same_bytes_are_handed_over_and_neighbours_are_not() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&a, 0..100);
    world.write(&b, 100..200);
    assert_eq!(world.hand_over(&b, 50..120), [50..100]);
    assert!(world.hand_over(&b, 50..120).is_empty(), "only once");
    assert!(world.hand_over(&a, 0..50).is_empty(), "its own");
    assert_eq!(world.hand_over(&a, 90..110), [100..110]);
}

#[test]
fn what_the_owner_was_told_is_not_handed_over() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&a, 0..100);
    let round = world.sync(0..END);
    // Stable, but the reply may not have arrived.
    assert!(matches!(world.file.claim(b.number(), &(0..10)), Claim::HandOver(_)));
    world.file.told(a.number(), &(0..END), round, world.number);
    assert!(matches!(world.file.claim(b.number(), &(0..10)), Claim::Free));
    assert!(world.file.is_idle() && !a.has_ranges());
}

#[test]
fn a_late_confirmation_says_nothing_of_a_later_round() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&a, 0..100);
    let first = world.sync(0..END);
    let through = world.number;
    world.write(&a, 0..100);
    world.sync(0..END);
    world.file.told(a.number(), &(0..END), first, through);
    assert!(matches!(world.file.claim(b.number(), &(0..10)), Claim::HandOver(_)));
}

#[test]
fn a_change_during_a_sync_is_not_made_stable_by_it() {
    let mut world = World::new();
    let a = world.owner(1);
    let before = world.write(&a, 0..100);
    let under_way = world.file.begin(&(200..300)).unwrap();
    world.file.enter(under_way, &a, &(200..300), before + 1);
    world.number = before + 1;
    world.file.round_begins(world.number);
    assert_eq!(world.file.through(a.number()), before, "one is under way");
    world.write(&a, 50..60);
    let round = world.file.round_succeeded(&(0..END));
    world.file.end(under_way);
    world.file.told(a.number(), &(0..END), round, before);
    let held = &world.file.held[&a.number()];
    let left: Vec<Range> = held.unstable.iter().cloned().collect();
    assert_eq!(left, [50..60, 200..300]);
}

#[test]
fn changes_of_a_range_go_on_one_after_the_other() {
    let mut file = Unstable::new(None);
    let first = file.begin(&(0..10)).unwrap();
    assert!(file.begin(&(9..20)).is_none());
    let other = file.begin(&(10..20)).unwrap();
    assert!(!file.is_idle());
    file.end(first);
    file.begin(&(0..10)).unwrap();
    file.end(other);
    assert!(file.begin(&(9..20)).is_none());
}

/// A client may commit from the largest offset on, where nothing is.
#[test]
fn an_empty_range_can_be_told() {
    let mut world = World::new();
    let a = world.owner(1);
    world.write(&a, 0..100);
    let round = world.sync(0..END);
    world.file.told(a.number(), &(END..END), round, world.number);
    assert!(!world.file.is_idle());
}

/// A truncates and goes on to write; B is not kept from writing elsewhere behind the new end.
#[test]
fn a_size_and_a_busy_owner_keep_nobody_off() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&a, 1000..END);
    let under_way = world.file.begin(&(5000..6000)).unwrap();
    world.number += 1;
    world.file.enter(under_way, &a, &(5000..6000), world.number);
    assert_eq!(world.hand_over(&b, 2000..2100), [2000..2100]);
    world.file.end(under_way);
}

/// A sync makes the size stable, so a part that was handed over tells that the size is.
#[test]
fn a_size_is_handed_over_where_it_is_in_the_way() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&a, 1000..END);
    assert_eq!(world.hand_over(&b, 5000..6000), [5000..6000]);
    let judged = world.file.judge_same_boot(a.number(), &(1000..END), &resend(1));
    assert_eq!((judged.skip, judged.refuse), (vec![5000..6000], vec![]));
}

#[test]
fn in_the_same_boot_only_what_was_handed_over_is_left_alone() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    let first = world.write(&a, 0..100);
    world.hand_over(&b, 40..60);
    world.write(&b, 40..60);
    let judged = world.file.judge_same_boot(a.number(), &(0..100), &resend(first));
    assert_eq!((judged.skip, judged.refuse), (vec![40..60], vec![]));
    // Without a number it may be another change than the one that was handed over.
    let judged = world.file.judge_same_boot(a.number(), &(0..100), &resend(0));
    assert_eq!((judged.skip, judged.refuse), (vec![], vec![40..60]));
    // It is not, if it was sent only after that one was acknowledged.
    let late = Resend { seen: first, ..resend(0) };
    let judged = world.file.judge_same_boot(a.number(), &(0..40), &late);
    assert_eq!(judged, taken(0..40));
    // A later change of the owner's own is not what was handed over.
    world.hand_over(&a, 40..60);
    let second = world.write(&a, 40..60);
    let judged = world.file.judge_same_boot(a.number(), &(40..60), &resend(second));
    assert_eq!(judged, taken(40..60));
}

#[test]
fn a_change_that_nobody_knows_is_taken_where_nobody_else_was() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    world.write(&b, 0..10);
    let judged = world.file.judge_same_boot(a.number(), &(0..20), &resend(0));
    assert_eq!((judged.take, judged.refuse), (vec![10..20], vec![0..10]));
}

#[test]
fn after_a_restart_records_and_changes_since_are_heeded() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    let judge = |world: &World, number, recorded: &[(Range, u64)], since| {
        let resend = resend(number);
        world.file.judge_earlier_boot(a.number(), &(0..100), &resend, recorded, since)
    };
    // The file was last changed at 5.
    let since = Some(time(6));
    assert_eq!(judge(&world, 3, &[], since), taken(0..100));
    let judged = judge(&world, 3, &[(20..40, 3)], since);
    assert_eq!((judged.take, judged.skip), (vec![0..20, 40..100], vec![20..40]));
    assert_eq!(judge(&world, 4, &[(20..40, 3)], since), taken(0..100));
    assert_eq!(judge(&world, 0, &[(20..40, 3)], since).refuse, [20..40]);
    world.write(&b, 90..200);
    assert_eq!(judge(&world, 3, &[], since).refuse, [90..100]);
    world.write(&a, 0..10);
    assert_eq!(judge(&world, 3, &[], since).take, [0..90]);
}

#[test]
fn a_file_that_changed_since_takes_nothing_but_what_knows_its_ctime() {
    let world = World::new();
    let a = world.owner(1);
    let judge = |ctime, since| {
        let resend = Resend { ctime, ..resend(1) };
        world.file.judge_earlier_boot(a.number(), &(0..10), &resend, &[], since)
    };
    assert_eq!(judge(None, Some(time(5))).refuse, [0..10]);
    assert_eq!(judge(None, None).refuse, [0..10]);
    assert_eq!(judge(Some(time(4)), None).refuse, [0..10]);
    assert_eq!(judge(Some(time(5)), None), taken(0..10));
}

#[test]
fn the_tables_are_bounded() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    for i in 0..10_000 {
        world.write(&a, i * 10..i * 10 + 1);
        if i % 50 == 0 {
            world.sync(0..END);
        }
    }
    assert!(world.file.changed.len() <= MOST_CHANGED);
    assert!(world.file.held[&a.number()].stable.len() <= MOST_ROUNDS);
    assert!(a.is_over_share());
    // What is not told apart any more counts as changed.
    let judged = world.file.judge_same_boot(b.number(), &(5..6), &resend(0));
    assert_eq!(judged.refuse, [5..6]);
    world.file.forget(a.number());
    assert!(!a.has_ranges() && world.file.is_idle());
}

/// B's change is under way when A's is made and A syncs. The reply's `through` lies before A's
/// change, so A keeps it, and would send it again. B must not change it without handing it over.
#[test]
fn what_a_reply_does_not_tell_of_is_not_taken_as_told() {
    let mut world = World::new();
    let (a, b) = (world.owner(1), world.owner(2));
    let under_way = world.file.begin(&(200..300)).unwrap();
    world.number += 1;
    world.file.enter(under_way, &b, &(200..300), world.number);
    let number = world.write(&a, 0..100);
    world.file.round_begins(world.number);
    let through = world.file.through(a.number());
    let round = world.file.round_succeeded(&(0..END));
    world.file.end(under_way);
    world.file.told(a.number(), &(0..END), round, through);
    let known = through >= number;
    let is_free = matches!(world.file.claim(b.number(), &(0..100)), Claim::Free);
    assert!(known || !is_free, "A was told of changes up to {through}, and has made {number}");
}

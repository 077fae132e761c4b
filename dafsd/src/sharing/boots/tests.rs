use super::*;
use crate::sharing::END;

const MACHINE: MachineBoot = MachineBoot([1; 16]);

fn time(seconds: i64) -> Time {
    Time { seconds, nanoseconds: 9 }
}

fn identity(inode: u64) -> Identity {
    Identity { device: 1, inode, generation: 0 }
}

fn owner(number: u8) -> OwnerId {
    OwnerId::from_bytes([number; OwnerId::LEN])
}

fn begin(state: &Path, boot: u64) -> Boots {
    Boots::begin(state, boot, time(i64::try_from(boot).unwrap()), MACHINE).unwrap()
}

fn hand_over(boots: &Boots, inode: u64, ranges: &[(OwnerId, Range)], through: u64) {
    let record = |(owner, range): &(OwnerId, Range)| Record {
        identity: identity(inode),
        owner: *owner,
        range: range.clone(),
        through,
    };
    boots.hand_over(&ranges.iter().map(record).collect::<Vec<_>>(), through).unwrap();
}

fn since(boots: &Boots, boot: u64, number: u64, inode: u64, of: u8) -> Since {
    let resend = Resend { boot, number, ctime: None, seen: 0 };
    boots.since(&resend, identity(inode), owner(of))
}

#[test]
fn what_was_handed_over_is_known_in_later_boots() {
    let state = tempfile::tempdir().unwrap();
    let boots = begin(state.path(), 1);
    hand_over(&boots, 5, &[(owner(1), 0..10), (owner(2), 5..END)], 7);
    boots.cut_off(owner(3), 9).unwrap();
    drop(boots);
    for boot in 2..5 {
        let boots = begin(state.path(), boot);
        let of = |inode, of| since(&boots, 1, 7, inode, of);
        assert_eq!(of(5, 1).handed_over, [(0..10, 7)]);
        assert_eq!(of(5, 2).handed_over, [(5..END, 7)]);
        assert!(of(6, 1).handed_over.is_empty());
        assert_eq!(of(5, 1).next_began, Some(time(2)));
        assert!(of(5, 3).nothing && !of(5, 1).nothing);
        assert!(!since(&boots, 1, 10, 5, 3).nothing, "a later change of the owner's");
        assert_eq!(since(&boots, 99, 1, 5, 1), Since::default());
        // The same inode on a device whose number has changed.
        let moved = Identity { device: 2, ..identity(5) };
        assert!(
            boots
                .since(&Resend { boot: 1, number: 1, ctime: None, seen: 0 }, moved, owner(1))
                .nothing
        );
    }
}

#[test]
fn what_the_owner_was_told_is_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let boots = begin(state.path(), 1);
    hand_over(&boots, 5, &[(owner(1), 0..10)], 7);
    boots.told(identity(5), owner(1), &(0..4), 7);
    boots.told(identity(5), owner(1), &(4..10), 6);
    let state = boots.state.lock();
    let ranges = &state.now.handed_over[&(identity(5), owner(1))];
    assert_eq!(ranges.iter().map(pair).collect::<Vec<_>>(), [(4..10, 7)]);
}

#[test]
fn starts_of_the_machine_are_counted() {
    let state = tempfile::tempdir().unwrap();
    assert_eq!(begin(state.path(), 1).machine_boot(), 1);
    assert_eq!(begin(state.path(), 2).machine_boot(), 1);
    let other = Boots::begin(state.path(), 3, time(3), MachineBoot([2; 16])).unwrap();
    assert_eq!(other.machine_boot(), 2);
}

#[test]
fn a_damaged_record_takes_nothing_again() {
    let state = tempfile::tempdir().unwrap();
    hand_over(&begin(state.path(), 1), 5, &[(owner(1), 0..10)], 7);
    let boots = begin(state.path(), 2);
    hand_over(&boots, 5, &[(owner(1), 0..10)], 7);
    let path = state.path().join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let boots = begin(state.path(), 3);
    assert!(since(&boots, 2, 1, 5, 1).nothing && since(&boots, 77, 1, 5, 1).nothing);
    std::fs::write(&path, b"something else").unwrap();
    let error = Boots::begin(state.path(), 4, time(4), MACHINE).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("remove"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"something else", "it is left alone");
}

#[test]
fn the_record_is_bounded() {
    let state = tempfile::tempdir().unwrap();
    for boot in 1..60 {
        let boots = begin(state.path(), boot);
        hand_over(&boots, boot, &[(owner(1), 0..10)], 1);
        assert!(boots.state.lock().earlier.len() < MOST_BOOTS);
    }
    let boots = begin(state.path(), 60);
    assert!(since(&boots, 59, 1, 59, 1).next_began.is_some());
    assert!(since(&boots, 1, 1, 1, 1).next_began.is_none());
    // Ranges that are told are taken out of the file, too.
    for i in 0..10_000u64 {
        hand_over(&boots, 1, &[(owner(1), i..i + 1)], i);
        boots.told(identity(1), owner(1), &(0..END), i);
    }
    let len = std::fs::metadata(state.path().join(FILE)).unwrap().len();
    assert!(len < 128 * (REWRITE_FROM as u64 + 200), "{len}");
}

#[test]
fn too_many_ranges_cut_their_owner_off() {
    let boots = Boots::forgetful(1);
    let ranges: Vec<_> = (0..MOST_RANGES as u64).map(|i| (owner(1), 2 * i..2 * i + 1)).collect();
    hand_over(&boots, 1, &ranges, 5);
    assert!(!since(&boots, 1, 5, 1, 1).nothing);
    hand_over(&boots, 1, &[(owner(2), 0..1)], 6);
    assert!(since(&boots, 1, 5, 1, 1).nothing && !since(&boots, 1, 7, 1, 1).nothing);
    assert!(!since(&boots, 1, 5, 1, 2).nothing);
    assert!(boots.state.lock().now.ranges() < 10);
}

/// Two files are handed over at the same time: the later number is recorded first, and the earlier
/// one fills the table. What is cut off has to go as far as what is forgotten.
#[test]
fn a_cut_off_reaches_as_far_as_what_it_forgets() {
    let boots = Boots::forgetful(1);
    let ranges: Vec<_> = (0..MOST_RANGES as u64).map(|i| (owner(1), 2 * i..2 * i + 1)).collect();
    hand_over(&boots, 1, &ranges, 9);
    hand_over(&boots, 2, &[(owner(2), 0..1)], 5);
    let resend = Resend { boot: 1, number: 9, ctime: None, seen: 0 };
    let since = boots.since(&resend, identity(1), owner(1));
    let recorded = boots.state.lock().now.handed_over.contains_key(&(identity(1), owner(1)));
    assert!(since.nothing || recorded, "what was handed over is taken again");
}

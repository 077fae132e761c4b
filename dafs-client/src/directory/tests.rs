use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

impl Directory {
    /// Checks that slab, index and lists tell the same story.
    fn check_invariants(&mut self) {
        let order = self.policy.order(&mut self.slab);
        assert_eq!(order.len(), self.len());
        assert!(self.len() <= self.capacity);
        let mut listed = vec![false; self.slab.len()];
        for place in order {
            assert!(!std::mem::replace(&mut listed[place as usize], true));
            let entry = self.slab[place as usize];
            assert_ne!(entry.generation, 0);
            assert_eq!(self.index.find(&mut self.slab, entry.key()), Some(place));
        }
        for place in &self.free {
            assert!(!std::mem::replace(&mut listed[*place as usize], true));
        }
        assert!(listed.iter().all(|&l| l));
    }
}

fn reference(file: u64, block: u64, generation: u64) -> RemoteRef {
    RemoteRef {
        chunk: u32::try_from(file).unwrap(),
        slot: u32::try_from(block).unwrap(),
        file,
        block,
        generation,
    }
}

#[test]
fn an_entry_keeps_its_size() {
    assert!(size_of::<Entry>() <= 56);
}

#[test]
fn the_floor_rises_within_a_generation_and_resets_with_a_newer_one() {
    let mut directory = Directory::new(4, Replacement::Lru);
    directory.install(reference(1, 2, 10), Some(5));
    directory.install(reference(1, 2, 10), Some(3));
    assert_eq!(directory.peek(1, 2).unwrap().seen, Some(5));
    directory.saw(1, 2, 10, 8);
    directory.saw(1, 2, 9, 99);
    assert_eq!(directory.peek(1, 2).unwrap().floor(), 8);
    directory.install(reference(1, 2, 9), Some(99));
    assert_eq!(directory.peek(1, 2).unwrap().reference.generation, 10);
    directory.install(reference(1, 2, 11), None);
    assert_eq!(directory.peek(1, 2).unwrap().seen, None);
    directory.install(reference(1, 2, 12), Some(u64::MAX));
    assert_eq!(directory.peek(1, 2).unwrap().floor(), u64::from(u32::MAX) - 1);
}

#[test]
fn torn_keeps_a_reference_and_every_other_fault_drops_it() {
    for fault in AccessFault::ALL {
        let mut directory = Directory::new(4, Replacement::MultiQueue);
        directory.install(reference(1, 2, 10), None);
        directory.faulted(&reference(1, 2, 10), fault);
        assert_eq!(directory.peek(1, 2).is_some(), fault == AccessFault::Torn, "{fault}");
    }
}

#[test]
fn a_fault_of_an_older_generation_leaves_the_newer_reference() {
    let mut directory = Directory::new(4, Replacement::Lru);
    directory.install(reference(1, 2, 11), None);
    directory.faulted(&reference(1, 2, 10), AccessFault::Stale);
    assert!(directory.peek(1, 2).is_some());
}

#[test]
fn chunks_files_and_everything_can_be_dropped() {
    let mut directory = Directory::new(8, Replacement::MultiQueue);
    for (file, block) in [(1, 0), (1, 1), (2, 0)] {
        directory.install(
            RemoteRef { chunk: u32::try_from(block).unwrap(), ..reference(file, block, 7) },
            None,
        );
    }
    directory.drop_chunk(1);
    assert!(directory.peek(1, 1).is_none());
    directory.drop_file(1);
    assert_eq!(directory.len(), 1);
    directory.check_invariants();
    directory.clear();
    assert!(directory.is_empty());
    directory.check_invariants();
}

#[test]
fn lru_order_decides_who_goes() {
    let mut directory = Directory::new(2, Replacement::Lru);
    directory.install(reference(1, 0, 1), None);
    directory.install(reference(1, 1, 2), None);
    directory.lookup(1, 0);
    directory.install(reference(1, 2, 3), None);
    assert!(directory.peek(1, 0).is_some() && directory.peek(1, 1).is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Lookup(u64, u64),
    LookupRun(u64, u64, u64),
    Install(u64, u64, u64, Option<u64>),
    Saw(u64, u64, u64, u64),
    Fault(u64, u64, u64, usize),
    DropFile(u64),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let (file, block) = (0u64..3, 0u64..6);
    prop_oneof![
        6 => (file.clone(), block.clone()).prop_map(|(f, b)| Step::Lookup(f, b)),
        6 => (file.clone(), block.clone(), 0u64..6)
            .prop_map(|(f, b, n)| Step::LookupRun(f, b, n)),
        6 => (file.clone(), block.clone(), 0u64..5, proptest::option::of(0u64..6))
            .prop_map(|(f, b, g, v)| Step::Install(f, b, g, v)),
        3 => (file.clone(), block.clone(), 0u64..5, 0u64..6)
            .prop_map(|(f, b, g, v)| Step::Saw(f, b, g, v)),
        3 => (file.clone(), block, 0u64..5, 0usize..6)
            .prop_map(|(f, b, g, k)| Step::Fault(f, b, g, k)),
        1 => file.prop_map(Step::DropFile),
        1 => Just(Step::Clear),
    ]
}

/// What the directory should hold, told without any structure: entries in order of use.
#[derive(Default)]
struct Model {
    entries: HashMap<(u64, u64), (u64, Option<u64>)>,
    order: Vec<(u64, u64)>,
}

impl Model {
    fn touch(&mut self, key: (u64, u64)) {
        self.order.retain(|k| *k != key);
        self.order.push(key);
    }

    fn remove(&mut self, key: (u64, u64)) {
        self.order.retain(|k| *k != key);
        self.entries.remove(&key);
    }

    fn apply(&mut self, step: &Step, capacity: usize) {
        match *step {
            Step::Lookup(f, b) => {
                if self.entries.contains_key(&(f, b)) {
                    self.touch((f, b));
                }
            }
            Step::LookupRun(f, b, n) => {
                (b..b + n).for_each(|block| self.apply(&Step::Lookup(f, block), capacity));
            }
            Step::Install(_, _, 0, _) => {}
            Step::Install(f, b, g, v) => match self.entries.get_mut(&(f, b)) {
                Some(entry) if entry.0 > g => {}
                Some(entry) => *entry = (g, if entry.0 == g { entry.1.max(v) } else { v }),
                None => {
                    if self.entries.len() == capacity {
                        let oldest = self.order[0];
                        self.remove(oldest);
                    }
                    self.entries.insert((f, b), (g, v));
                    self.touch((f, b));
                }
            },
            Step::Saw(f, b, g, v) => {
                if let Some(entry) = self.entries.get_mut(&(f, b))
                    && entry.0 == g
                {
                    entry.1 = entry.1.max(Some(v));
                }
            }
            Step::Fault(f, b, g, kind) => {
                let held = self.entries.get(&(f, b)).is_some_and(|e| e.0 == g);
                match AccessFault::ALL[kind] {
                    // The chunk of a page is named like its file in these tests.
                    AccessFault::Gone if held => self.apply(&Step::DropFile(f), capacity),
                    AccessFault::Torn => {}
                    _ if held => self.remove((f, b)),
                    _ => {}
                }
            }
            Step::DropFile(file) => {
                let gone: Vec<_> = self.order.iter().copied().filter(|k| k.0 == file).collect();
                gone.into_iter().for_each(|key| self.remove(key));
            }
            Step::Clear => *self = Self::default(),
        }
    }
}

fn apply(directory: &mut Directory, step: &Step) {
    match *step {
        Step::Lookup(f, b) => drop(directory.lookup(f, b)),
        Step::LookupRun(f, b, n) => {
            let held: Vec<_> = (b..b + n).map(|block| directory.peek(f, block)).collect();
            assert!(directory.lookup_run(f, b..b + n).eq(held));
        }
        Step::Install(f, b, g, v) => directory.install(reference(f, b, g), v),
        Step::Saw(f, b, g, v) => directory.saw(f, b, g, v),
        Step::Fault(f, b, g, k) => directory.faulted(&reference(f, b, g), AccessFault::ALL[k]),
        Step::DropFile(f) => directory.drop_file(f),
        Step::Clear => directory.clear(),
    }
}

proptest! {
    #[test]
    fn lru_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..200), capacity in 1usize..8) {
        let mut directory = Directory::new(capacity, Replacement::Lru);
        let mut model = Model::default();
        for step in &steps {
            apply(&mut directory, step);
            model.apply(step, capacity);
            directory.check_invariants();
            prop_assert_eq!(directory.len(), model.entries.len());
            for (key, (generation, seen)) in &model.entries {
                let known = directory.peek(key.0, key.1).expect("the model has it");
                prop_assert_eq!((known.reference.generation, known.seen), (*generation, *seen));
            }
        }
    }

    #[test]
    fn multi_queue_holds_its_invariants_and_no_wrong_floor(
        steps in proptest::collection::vec(step(), 1..300), capacity in 1usize..8
    ) {
        let mut directory = Directory::new(capacity, Replacement::MultiQueue);
        // Without a bound the model tells what each entry must say if it is still held.
        let mut model = Model::default();
        for step in &steps {
            let held: Vec<_> = model.entries.keys().copied().collect();
            for key in held {
                if directory.peek(key.0, key.1).is_none() {
                    model.remove(key);
                }
            }
            apply(&mut directory, step);
            model.apply(step, usize::MAX);
            directory.check_invariants();
            for (key, (generation, seen)) in &model.entries {
                if let Some(known) = directory.peek(key.0, key.1) {
                    prop_assert_eq!((known.reference.generation, known.seen), (*generation, *seen));
                }
            }
        }
    }
}

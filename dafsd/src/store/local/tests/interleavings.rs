//! Every interleaving of two changes of names: what each is told, and what is there at the end, is as if
//! one had been made after the other.

use super::*;
use crate::store::{Identity, Renamed};
use ordma::explore::{Actor, explore};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// From where to where: directory and name.
type Move = ((&'static str, &'static str), (&'static str, &'static str));

/// What one was told, by the names that the files had at first; `None` where there was nothing to move.
type Told = Option<(&'static str, Option<&'static str>)>;

/// What is where, and what each was told.
type Outcome = (BTreeMap<String, &'static str>, [Told; 2]);

/// Files that there are at first.
const FILES: [(&str, &str); 2] = [("x", "a"), ("y", "b")];

struct Tree {
    world: World,
    directories: BTreeMap<&'static str, Handle>,
    files: HashMap<Identity, &'static str>,
}

fn tree(handle_table: bool) -> Arc<Tree> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    for name in ["x", "y"] {
        std::fs::create_dir_all(directory.path().join("export").join(name)).unwrap();
    }
    let options = options(&directory, handle_table);
    let store = LocalStore::new(&directory.path().join("export"), options).unwrap();
    let world = World { directory, store };
    let lookup = |directory: &Handle, name: &str| {
        world.store.lookup(SERVER, directory, name.as_bytes()).unwrap()
    };
    let directories: BTreeMap<_, _> =
        ["x", "y"].map(|name| (name, lookup(&world.root(), name).handle)).into();
    let files = FILES.map(|(parent, name)| {
        std::fs::write(world.path(parent).join(name), name).unwrap();
        (lookup(&directories[parent], name).identity, name)
    });
    Arc::new(Tree { files: files.into(), directories, world })
}

impl Tree {
    fn rename(&self, (from, to): Move) -> Told {
        let at = |(directory, name): (&str, &'static str)| {
            (self.directories[directory].clone(), name.as_bytes())
        };
        let ((from, from_name), (to, to_name)) = (at(from), at(to));
        match self.world.store.rename(SERVER, (&from, from_name), (&to, to_name)) {
            Ok(Renamed { moved, replaced }) => {
                assert!(replaced.is_none_or(|replaced| replaced.last));
                let replaced = replaced.map(|replaced| self.files[&replaced.identity]);
                Some((self.files[&moved], replaced))
            }
            Err(error) => {
                assert_eq!(error.status, Status::NoEntry, "{error}");
                None
            }
        }
    }

    /// Names and what they lead to, by the content.
    fn names(&self) -> BTreeMap<String, &'static str> {
        let mut names = BTreeMap::new();
        for parent in self.directories.keys() {
            for entry in std::fs::read_dir(self.world.path(parent)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let content = std::fs::read(self.world.path(parent).join(&name)).unwrap();
                let file = FILES.iter().find(|(_, file)| file.as_bytes() == content).unwrap();
                names.insert(format!("{parent}/{name}"), file.1);
            }
        }
        names
    }
}

/// What may come of them: one after the other, in either order.
fn serial(moves: [Move; 2], handle_table: bool) -> BTreeSet<Outcome> {
    let order = |first: usize, second: usize| {
        let tree = tree(handle_table);
        let mut told = [None; 2];
        told[first] = tree.rename(moves[first]);
        told[second] = tree.rename(moves[second]);
        (tree.names(), told)
    };
    [order(0, 1), order(1, 0)].into()
}

/// One test at a time: which names are held is known to the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn two(name: &str, moves: [Move; 2]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for handle_table in [false, true] {
        let allowed = serial(moves, handle_table);
        let explored = explore(
            3,
            100_000,
            || {
                let tree = tree(handle_table);
                let told = Arc::new(Mutex::new([None; 2]));
                let actor = |number: usize| {
                    let (tree, told) = (Arc::clone(&tree), Arc::clone(&told));
                    Box::new(move || {
                        let result = tree.rename(moves[number]);
                        told.lock().unwrap()[number] = result;
                    }) as Actor
                };
                let actors = vec![actor(0), actor(1)];
                ((tree, told), actors)
            },
            |(tree, told)| {
                let outcome = (tree.names(), *told.lock().unwrap());
                assert!(allowed.contains(&outcome), "{outcome:?}; allowed are {allowed:?}");
            },
        );
        println!("{name}, handle table {handle_table}: {} schedules", explored.schedules);
        assert!(explored.complete, "{explored:?}");
    }
}

#[test]
fn two_renames_that_cross() {
    two("cross", [(("x", "a"), ("y", "b")), (("y", "b"), ("x", "a"))]);
}

#[test]
fn a_rename_over_a_name_that_another_moves() {
    two("over", [(("x", "a"), ("y", "b")), (("y", "b"), ("y", "c"))]);
}

#[test]
fn two_renames_onto_one_name() {
    two("onto", [(("x", "a"), ("y", "c")), (("y", "b"), ("y", "c"))]);
}

#[test]
fn two_renames_of_one_name() {
    two("of", [(("x", "a"), ("y", "c")), (("x", "a"), ("x", "d"))]);
}

//! Names that lead elsewhere or nowhere soon.
//!
//! The kernel does not say what a name led to that was taken away or replaced, so that is looked at
//! before. Between the look and the deed nobody else may change the name.

use super::Object;
use crate::store::Identity;
use crate::sync::{Condvar, Mutex};
use std::collections::HashSet;

/// A directory and a name there.
type Name = (Identity, Box<[u8]>);

/// Names that are held, in all exports: two of them may have a directory in common.
static HELD: Mutex<Option<HashSet<Name>>> = Mutex::new(None);
/// Some are held no more.
static FREED: Condvar = Condvar::new();

/// Names that nobody else may change through this server as long as this is there.
#[derive(Debug)]
pub struct HeldNames(Vec<Name>);

/// Waits until nobody holds any of the names, and holds them.
pub fn hold(names: &[(&Object, &[u8])]) -> HeldNames {
    let names: Vec<Name> =
        names.iter().map(|(directory, name)| (directory.identity, (*name).into())).collect();
    let is_held = |held: &mut Option<HashSet<Name>>| {
        held.as_ref().is_some_and(|held| names.iter().any(|name| held.contains(name)))
    };
    let mut all = FREED.wait_while(&HELD, is_held);
    all.get_or_insert_default().extend(names.iter().cloned());
    drop(all);
    HeldNames(names)
}

impl Drop for HeldNames {
    fn drop(&mut self) {
        let mut all = HELD.lock();
        let held = all.get_or_insert_default();
        for name in &self.0 {
            held.remove(name);
        }
        drop(all);
        FREED.notify_all();
    }
}

//! Descriptors of objects that were used lately, so that a handle need not be resolved each time.

use super::Object;
use crate::store::Handle;
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A bounded cache of objects, each once whatever place its handle tells; the least recently used one
/// goes.
#[derive(Debug)]
pub struct FdCache {
    state: Mutex<State>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    /// By the key of the handle.
    objects: HashMap<Handle, (Arc<Object>, u64), RandomState>,
    /// By time of last use.
    order: BTreeMap<u64, Handle>,
    clock: u64,
}

impl State {
    fn remove(&mut self, key: &Handle) -> Option<Arc<Object>> {
        let (object, used) = self.objects.remove(key)?;
        self.order.remove(&used);
        Some(object)
    }

    /// Takes out the least recently used ones, until no more than `most` are left.
    fn evict(&mut self, most: usize) -> Vec<Arc<Object>> {
        let mut evicted = Vec::new();
        while self.objects.len() > most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            evicted.extend(self.objects.remove(&oldest).map(|(object, _)| object));
        }
        evicted
    }
}

// Closing a descriptor may take time: nothing is dropped under the lock.
impl FdCache {
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), capacity }
    }

    pub fn get(&self, handle: &Handle) -> Option<Arc<Object>> {
        let key = handle.key();
        let mut state = self.state.lock();
        let State { objects, order, clock } = &mut *state;
        let (object, used) = objects.get_mut(&key)?;
        *clock += 1;
        if let Some(key) = order.remove(used) {
            order.insert(*clock, key);
        }
        *used = *clock;
        Some(Arc::clone(object))
    }

    pub fn insert(&self, object: &Arc<Object>) {
        if self.capacity == 0 {
            return;
        }
        let key = object.handle.key();
        let mut state = self.state.lock();
        state.clock += 1;
        let used = state.clock;
        let old = state.remove(&key);
        state.objects.insert(key.clone(), (Arc::clone(object), used));
        state.order.insert(used, key);
        let evicted = state.evict(self.capacity);
        drop(state);
        drop((old, evicted));
    }

    pub fn remove(&self, handle: &Handle) {
        let key = handle.key();
        let object = self.state.lock().remove(&key);
        drop(object);
    }

    /// Takes out a quarter of them.
    pub fn shrink(&self) {
        let evicted = {
            let mut state = self.state.lock();
            let now = state.objects.len();
            state.evict(now - now.div_ceil(4))
        };
        drop(evicted);
    }

    /// Takes out those that this holds for; how many.
    pub fn remove_where(&self, unwanted: impl Fn(&Object) -> bool) -> usize {
        let all: Vec<_> =
            self.state.lock().objects.values().map(|(object, _)| Arc::clone(object)).collect();
        let unwanted: Vec<_> = all.into_iter().filter(|object| unwanted(object)).collect();
        unwanted.iter().for_each(|object| self.remove(&object.handle));
        unwanted.len()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        assert_eq!(state.objects.len(), state.order.len());
        state.objects.len()
    }
}

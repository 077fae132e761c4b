//! Descriptors of objects that were used lately, so that a handle need not be resolved each time.

use super::Object;
use crate::store::Handle;
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A bounded cache of objects by handle; the least recently used one goes.
#[derive(Debug)]
pub struct FdCache {
    state: Mutex<State>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<Handle, (Arc<Object>, u64), RandomState>,
    /// By time of last use.
    order: BTreeMap<u64, Handle>,
    clock: u64,
}

impl FdCache {
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), capacity }
    }

    pub fn get(&self, handle: &Handle) -> Option<Arc<Object>> {
        let mut state = self.state.lock();
        let State { objects, order, clock } = &mut *state;
        let (object, used) = objects.get_mut(handle)?;
        *clock += 1;
        if let Some(handle) = order.remove(used) {
            order.insert(*clock, handle);
        }
        *used = *clock;
        Some(Arc::clone(object))
    }

    pub fn insert(&self, object: &Arc<Object>) {
        if self.capacity == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.clock += 1;
        let used = state.clock;
        let handle = object.handle.clone();
        let old = state.objects.insert(handle.clone(), (Arc::clone(object), used));
        if let Some((_, used)) = &old {
            state.order.remove(used);
        }
        state.order.insert(used, handle);
        let mut evicted = None;
        if state.objects.len() > self.capacity
            && let Some((_, oldest)) = state.order.pop_first()
        {
            evicted = state.objects.remove(&oldest);
        }
        drop(state);
        // Closing a descriptor may take time: not under the lock.
        drop((old, evicted));
    }

    pub fn remove(&self, handle: &Handle) {
        let mut state = self.state.lock();
        let object = state.objects.remove(handle);
        if let Some((_, used)) = &object {
            state.order.remove(used);
        }
        drop(state);
        drop(object);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        assert_eq!(state.objects.len(), state.order.len());
        state.objects.len()
    }
}

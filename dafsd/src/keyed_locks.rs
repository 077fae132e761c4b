//! A lock for each of many things, as long as someone has it.

use crate::sync::Mutex;
use async_lock::MutexGuardArc;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

/// Locks that nobody has are forgotten once there are so many.
const KEPT: usize = 64;

/// See the module. Who waits for a lock takes no thread.
#[derive(Debug)]
pub struct KeyedLocks<K>(Mutex<HashMap<K, Weak<async_lock::Mutex<()>>, RandomState>>);

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> KeyedLocks<K> {
    /// Waits for the lock of `key`.
    pub async fn lock(&self, key: K) -> MutexGuardArc<()> {
        let lock = {
            let mut locks = self.0.lock();
            if locks.len() >= KEPT {
                locks.retain(|_, lock| lock.strong_count() > 0);
            }
            let known = locks.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(key, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_arc().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_has_the_lock_of_a_key_and_none_is_kept_for_ever() {
        let locks = KeyedLocks::default();
        let first = poll(pin!(locks.lock(1))).unwrap();
        let mut second = pin!(locks.lock(1));
        assert!(poll(second.as_mut()).is_none());
        poll(pin!(locks.lock(2))).expect("another key");
        drop(first);
        let second = poll(second).expect("its turn");
        for key in 3..1000 {
            poll(pin!(locks.lock(key))).unwrap();
        }
        assert!(locks.0.lock().len() <= KEPT);
        assert!(poll(pin!(locks.lock(1))).is_none(), "one that is held is not forgotten");
        drop(second);
    }
}

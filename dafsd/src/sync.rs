//! Locks of the server.
//!
//! The standard library's, with two differences: a poisoned lock is entered all the same (what they
//! guard is changed in steps that leave it whole), and tests that drive every interleaving (feature
//! `explore`) see each wait.

use std::sync::{
    Condvar as StdCondvar, Mutex as StdMutex, MutexGuard, PoisonError, RwLock as StdRwLock,
    RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

/// A mutex; see the module.
#[derive(Debug, Default)]
pub struct Mutex<T>(StdMutex<T>);

impl<T> Mutex<T> {
    /// A new mutex.
    pub const fn new(value: T) -> Self {
        Self(StdMutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(feature = "explore")]
        if let Some(guard) = explored(|| self.0.try_lock()) {
            return guard;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A condition variable; see the module.
#[derive(Debug, Default)]
pub struct Condvar(StdCondvar);

impl Condvar {
    /// A new condition variable.
    pub const fn new() -> Self {
        Self(StdCondvar::new())
    }

    /// Waits for the lock, and as long as `condition` holds for what it guards. Whoever changes that
    /// [notifies](Self::notify_all).
    pub fn wait_while<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let mut guard = mutex.lock();
        #[cfg(feature = "explore")]
        if ordma::explore::is_on() {
            let mut waited = false;
            while condition(&mut guard) {
                drop(guard);
                ordma::explore::blocked();
                waited = true;
                guard = mutex.lock();
            }
            if waited {
                ordma::explore::unblocked();
            }
            return guard;
        }
        while condition(&mut guard) {
            guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        guard
    }

    /// Has all who wait look again.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A reader-writer lock; see the module.
#[derive(Debug, Default)]
pub struct RwLock<T>(StdRwLock<T>);

impl<T> RwLock<T> {
    /// A new lock.
    pub const fn new(value: T) -> Self {
        Self(StdRwLock::new(value))
    }

    /// Waits for shared access.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        #[cfg(feature = "explore")]
        if let Some(guard) = explored(|| self.0.try_read()) {
            return guard;
        }
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for exclusive access.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        #[cfg(feature = "explore")]
        if let Some(guard) = explored(|| self.0.try_write()) {
            return guard;
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a lock on an explored thread: where it is held, another actor goes on.
#[cfg(feature = "explore")]
fn explored<G>(mut attempt: impl FnMut() -> std::sync::TryLockResult<G>) -> Option<G> {
    if !ordma::explore::is_on() {
        return None;
    }
    let mut waited = false;
    loop {
        let guard = match attempt() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => {
                ordma::explore::blocked();
                waited = true;
                continue;
            }
        };
        if waited {
            ordma::explore::unblocked();
        }
        return Some(guard);
    }
}

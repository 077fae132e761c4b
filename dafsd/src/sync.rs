//! Locks of the server.
//!
//! The standard library's, with two differences: a poisoned lock is entered all the same (what they
//! guard is changed in steps that leave it whole), and tests that drive every interleaving (feature
//! `explore`) see each wait.

use std::sync::{
    Mutex as StdMutex, MutexGuard, PoisonError, RwLock as StdRwLock, RwLockReadGuard,
    RwLockWriteGuard,
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
        if ordma::explore::is_on() {
            loop {
                match self.0.try_lock() {
                    Ok(guard) => return guard,
                    Err(std::sync::TryLockError::Poisoned(error)) => return error.into_inner(),
                    Err(std::sync::TryLockError::WouldBlock) => ordma::explore::blocked(),
                }
            }
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        if ordma::explore::is_on() {
            loop {
                match self.0.try_read() {
                    Ok(guard) => return guard,
                    Err(std::sync::TryLockError::Poisoned(error)) => return error.into_inner(),
                    Err(std::sync::TryLockError::WouldBlock) => ordma::explore::blocked(),
                }
            }
        }
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for exclusive access.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        #[cfg(feature = "explore")]
        if ordma::explore::is_on() {
            loop {
                match self.0.try_write() {
                    Ok(guard) => return guard,
                    Err(std::sync::TryLockError::Poisoned(error)) => return error.into_inner(),
                    Err(std::sync::TryLockError::WouldBlock) => ordma::explore::blocked(),
                }
            }
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Memory of the caller, lent to an engine for the time of a transfer.
//!
//! An engine fills or reads such memory from whatever thread drives the connection. A caller either
//! gives a buffer away ([`Region::owned`]) or lends one for the time of a closure ([`lend`]); when
//! the closure ends the region is withdrawn, and an engine that still has it finds it gone instead
//! of finding freed memory.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory lent to an engine. Clones name the same memory.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

struct Inner {
    len: usize,
    memory: Mutex<Memory>,
}

enum Memory {
    Owned(Vec<u8>),
    Lent(NonNull<u8>),
    LentShared(NonNull<u8>),
    Withdrawn,
}

// SAFETY: the pointer is only followed under the mutex, and only while `lend`, which holds the
// borrow of the memory, has not returned.
unsafe impl Send for Memory {}

impl Region {
    /// A region that owns its buffer; [`take`](Self::take) gives it back.
    #[must_use]
    pub fn owned(buffer: Vec<u8>) -> Self {
        Self(Arc::new(Inner { len: buffer.len(), memory: Mutex::new(Memory::Owned(buffer)) }))
    }

    /// Takes the buffer of an owned region back and withdraws it. `None` where the region was lent
    /// or already withdrawn.
    #[must_use]
    pub fn take(&self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut *self.lock(), Memory::Withdrawn) {
            Memory::Owned(buffer) => Some(buffer),
            Memory::Lent(_) | Memory::LentShared(_) | Memory::Withdrawn => None,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the region has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Runs `f` on the region's bytes, or returns `None` if the region was withdrawn or lent for
    /// reading only. Must not block: the caller's return waits for it.
    pub fn with<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        let mut memory = self.lock();
        match &mut *memory {
            Memory::Owned(buffer) => Some(f(buffer)),
            // SAFETY: not withdrawn, so `lend` still holds the unique borrow of these `len` bytes;
            // the mutex makes this the only access.
            Memory::Lent(base) => {
                Some(f(unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), self.0.len) }))
            }
            Memory::LentShared(_) | Memory::Withdrawn => None,
        }
    }

    /// Runs `f` on the region's bytes for reading, or returns `None` if the region was withdrawn.
    /// Must not block.
    pub fn with_ref<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match &*self.lock() {
            Memory::Owned(buffer) => Some(f(buffer)),
            // SAFETY: as in `with`; a shared borrow is all that is asked for.
            Memory::Lent(base) | Memory::LentShared(base) => {
                Some(f(unsafe { std::slice::from_raw_parts(base.as_ptr(), self.0.len) }))
            }
            Memory::Withdrawn => None,
        }
    }

    /// The part of the region from `start`, `len` bytes long.
    ///
    /// # Panics
    /// If it does not lie within the region.
    #[must_use]
    pub fn segment(&self, start: usize, len: usize) -> Segment {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.0.len));
        Segment { region: self.clone(), start, len }
    }

    /// Whether both name the same memory.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // A panic in `with` leaves bytes half written at worst, which every reader must expect.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("len", &self.0.len).finish_non_exhaustive()
    }
}

/// Lends `buffer` for the time of `f`. When `f` returns or panics the region is withdrawn, after
/// waiting for an access that is under way.
pub fn lend<R>(buffer: &mut [u8], f: impl FnOnce(&Region) -> R) -> R {
    let len = buffer.len();
    with_withdrawal(len, Memory::Lent(NonNull::from(buffer).cast()), f)
}

/// Lends `buffer` for reading only, for the time of `f`; otherwise like [`lend`].
pub fn lend_shared<R>(buffer: &[u8], f: impl FnOnce(&Region) -> R) -> R {
    with_withdrawal(buffer.len(), Memory::LentShared(NonNull::from(buffer).cast()), f)
}

fn with_withdrawal<R>(len: usize, memory: Memory, f: impl FnOnce(&Region) -> R) -> R {
    struct Withdraw(Region);
    impl Drop for Withdraw {
        fn drop(&mut self) {
            *self.0.lock() = Memory::Withdrawn;
        }
    }
    let guard = Withdraw(Region(Arc::new(Inner { len, memory: Mutex::new(memory) })));
    f(&guard.0)
}

/// Part of a [`Region`].
#[derive(Clone, Debug)]
pub struct Segment {
    /// The region.
    pub region: Region,
    /// Offset of the first byte.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Segment {
    /// Runs `f` on the segment's bytes, or returns `None` if the region was withdrawn.
    pub fn with<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        self.region.with(|bytes| f(&mut bytes[self.start..self.start + self.len]))
    }

    /// Runs `f` on the segment's bytes for reading, or returns `None` if the region was withdrawn.
    pub fn with_ref<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.region.with_ref(|bytes| f(&bytes[self.start..self.start + self.len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_region_is_gone_afterwards() {
        let mut buffer = [0u8; 8];
        let kept = lend(&mut buffer, |region| {
            region.segment(2, 3).with(|b| b.fill(7));
            region.clone()
        });
        assert_eq!(buffer, [0, 0, 7, 7, 7, 0, 0, 0]);
        assert!(kept.with(|_| ()).is_none());
        assert!(kept.take().is_none());
    }

    #[test]
    fn an_owned_region_gives_its_buffer_back_once() {
        let region = Region::owned(vec![1, 2, 3]);
        region.with(|b| b[0] = 9);
        assert_eq!(region.take(), Some(vec![9, 2, 3]));
        assert_eq!(region.take(), None);
    }

    #[test]
    fn a_region_lent_for_reading_is_not_written() {
        lend_shared(&[1, 2], |region| {
            assert!(region.with(|_| ()).is_none());
            assert_eq!(region.with_ref(|b| b[1]), Some(2));
        });
    }

    #[test]
    fn a_panic_withdraws_too() {
        let mut buffer = [0u8; 4];
        let mut kept = None;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lend(&mut buffer, |region| {
                kept = Some(region.clone());
                panic!("expected by the test");
            })
        }));
        assert!(result.is_err());
        assert!(kept.unwrap().with(|_| ()).is_none());
    }
}

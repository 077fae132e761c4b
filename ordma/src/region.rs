//! Memory of the caller, lent to an engine for the time of a transfer.
//!
//! An engine fills or reads such memory from whatever thread drives the connection. A caller either
//! gives a buffer away ([`Region::owned`]) or lends one for the time of a closure ([`lend`]); when
//! the closure ends the region is withdrawn, and an engine that still has it finds it gone instead
//! of finding freed memory.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// Memory lent to an engine. Clones name the same memory.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

struct Inner {
    len: usize,
    state: Mutex<State>,
    /// A device has given something back.
    returned: Condvar,
}

struct State {
    memory: Memory,
    /// Requests of devices that name the memory.
    held: usize,
    /// Who made them.
    holders: Vec<Weak<dyn Release>>,
    /// Who waits until there are none.
    waiting: usize,
}

/// What has requests under way that name lent memory.
pub(crate) trait Release: Send + Sync {
    /// Sees to it that they end soon, whether they succeed or not. Called without any lock of the
    /// region.
    fn release(&self);
}

/// The memory of a region while a device may access it: it stays where it is until this is dropped.
pub(crate) struct Hold {
    region: Region,
    base: NonNull<u8>,
}

// SAFETY: the pointer is an address for a device's request.
unsafe impl Send for Hold {}

impl Hold {
    /// The address of a byte of the region.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.base.as_ptr() as u64 + offset as u64
    }

    /// Length of the region in bytes.
    pub(crate) fn len(&self) -> usize {
        self.region.len()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.region.lock();
        state.held -= 1;
        if state.held == 0 {
            state.holders.clear();
            // A system call, whether or not anyone waits.
            if state.waiting > 0 {
                self.region.0.returned.notify_all();
            }
        }
    }
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

impl Memory {
    /// Where the memory begins, if it may be accessed so.
    fn base(&mut self, access: Access) -> Option<NonNull<u8>> {
        match self {
            Self::Owned(buffer) => NonNull::new(buffer.as_mut_ptr()),
            Self::Lent(base) => Some(*base),
            Self::LentShared(base) => (access == Access::Read).then_some(*base),
            Self::Withdrawn => None,
        }
    }
}

impl Region {
    /// A region that owns its buffer; [`take`](Self::take) gives it back.
    #[must_use]
    pub fn owned(buffer: Vec<u8>) -> Self {
        Self::new(buffer.len(), Memory::Owned(buffer))
    }

    fn new(len: usize, memory: Memory) -> Self {
        let state = Mutex::new(State { memory, held: 0, holders: Vec::new(), waiting: 0 });
        Self(Arc::new(Inner { len, state, returned: Condvar::new() }))
    }

    /// Takes the buffer of an owned region back and withdraws it. `None` where the region was lent
    /// or already withdrawn.
    #[must_use]
    pub fn take(&self) -> Option<Vec<u8>> {
        match self.withdraw() {
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
        self.with_part(0, self.0.len, f)
    }

    /// Like [`with`](Self::with), for a part. A device may be writing to others meanwhile.
    pub(crate) fn with_part<R>(
        &self,
        start: usize,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Option<R> {
        self.writable()?.part(start, len).map(f)
    }

    /// The bytes for many parts, one after the other; `None` if the region was withdrawn or lent for
    /// reading only. Whoever has them must not block, as in [`with`](Self::with).
    pub(crate) fn writable(&self) -> Option<Writable<'_>> {
        let mut state = self.lock();
        let base = state.memory.base(Access::Write)?;
        Some(Writable { base, len: self.0.len, _state: state })
    }

    /// Keeps the memory where it is, for a device to write to; `None` if the region was withdrawn or
    /// lent for reading only. Whoever withdraws it waits until this is dropped, and asks `holder` to
    /// see to that.
    pub(crate) fn hold(&self, holder: &Weak<dyn Release>) -> Option<Hold> {
        let mut state = self.lock();
        let base = state.memory.base(Access::Write)?;
        state.held += 1;
        if !state.holders.iter().any(|known| Weak::ptr_eq(known, holder)) {
            state.holders.push(Weak::clone(holder));
        }
        Some(Hold { region: self.clone(), base })
    }

    /// Takes the memory back, once no device names it any more.
    fn withdraw(&self) -> Memory {
        let mut state = self.lock();
        while state.held > 0 {
            let holders: Vec<_> = state.holders.iter().filter_map(Weak::upgrade).collect();
            drop(state);
            holders.iter().for_each(|holder| holder.release());
            state = self.lock();
            if state.held > 0 {
                let slice = std::time::Duration::from_millis(10);
                state.waiting += 1;
                let waited = self.0.returned.wait_timeout(state, slice);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.waiting -= 1;
            }
        }
        std::mem::replace(&mut state.memory, Memory::Withdrawn)
    }

    /// Runs `f` on the region's bytes for reading, or returns `None` if the region was withdrawn.
    /// Must not block.
    pub fn with_ref<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match &self.lock().memory {
            Memory::Owned(buffer) => Some(f(buffer)),
            Memory::Lent(base) | Memory::LentShared(base) => {
                // SAFETY: as in `with`; a shared borrow is all that is asked for.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in `with` leaves bytes half written at worst, which every reader must expect.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            drop(self.0.withdraw());
        }
    }
    let guard = Withdraw(Region::new(len, memory));
    f(&guard.0)
}

/// The bytes of a [`Region`], which nobody withdraws meanwhile.
pub(crate) struct Writable<'a> {
    base: NonNull<u8>,
    len: usize,
    _state: MutexGuard<'a, State>,
}

impl Writable<'_> {
    /// Some of the bytes; `None` where they do not lie within the region. A device may be writing to
    /// others meanwhile.
    pub(crate) fn part(&mut self, start: usize, len: usize) -> Option<&mut [u8]> {
        start.checked_add(len).filter(|end| *end <= self.len)?;
        // SAFETY: owned, or not withdrawn, so that `lend` still holds the unique borrow of the
        // memory, in which the part lies (just checked). The mutex makes this the only access but for
        // those of devices, whose requests name other parts until they have completed.
        Some(unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(start), len) })
    }
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
        self.region.with_part(self.start, self.len, f)
    }

    /// Runs `f` on the segment's bytes for reading, or returns `None` if the region was withdrawn.
    pub fn with_ref<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.region.with_ref(|bytes| f(&bytes[self.start..self.start + self.len]))
    }
}

/// What a system call does with memory that an [`Iovecs`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

/// Most vectors of one system call: 64 pages and what goes around them.
pub(crate) const MAX_IOVECS: usize = 68;

/// The vectors of one system call. Addresses only: whoever makes the call sees to it that they are
/// good for its time.
pub(crate) struct Iovecs {
    items: [libc::iovec; MAX_IOVECS],
    len: usize,
}

impl Iovecs {
    /// No vectors.
    pub(crate) fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { items: [none; MAX_IOVECS], len: 0 }
    }

    /// Whether no vector fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.len == MAX_IOVECS
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds one; dropped where the list is full.
    pub(crate) fn push(&mut self, base: *mut u8, len: usize) {
        if len > 0 && !self.is_full() {
            self.items[self.len] = libc::iovec { iov_base: base.cast(), iov_len: len };
            self.len += 1;
        }
    }

    /// The vectors.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [libc::iovec] {
        &mut self.items[..self.len]
    }

    /// The vectors, for a system call.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::iovec {
        self.items.as_mut_ptr()
    }

    /// Drops the vectors from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Bytes of all vectors.
    pub(crate) fn bytes(&self) -> usize {
        self.items[..self.len].iter().map(|v| v.iov_len).sum()
    }
}

/// Runs `f` with the addresses of `parts` (region, start, length), as many as fit, appended to
/// `iovecs`. They are good until `f` returns, which must not block. A part that is withdrawn, does
/// not lie in its region, or may not be accessed so, gets the null address.
pub(crate) fn with_iovecs<'a, R>(
    parts: impl Iterator<Item = (&'a Region, usize, usize)> + Clone,
    access: Access,
    mut iovecs: Iovecs,
    f: impl FnOnce(&mut Iovecs) -> R,
) -> R {
    let room = MAX_IOVECS - iovecs.len();
    let parts = parts.filter(|(_, _, len)| *len > 0).take(room);
    let mut regions = parts.clone().map(|(region, _, _)| region);
    let Some(first) = regions.next() else { return f(&mut iovecs) };
    let push = |iovecs: &mut Iovecs,
                base: Option<NonNull<u8>>,
                (region, start, len): (&Region, usize, usize)| {
        let inside = start.checked_add(len).is_some_and(|end| end <= region.len());
        let at = match base {
            // SAFETY: `start` lies inside the memory that begins at `base` (just checked).
            Some(base) if inside => unsafe { base.as_ptr().add(start) },
            _ => std::ptr::null_mut(),
        };
        iovecs.push(at, len);
    };
    if regions.all(|region| region.same(first)) {
        let mut state = first.lock();
        let base = state.memory.base(access);
        parts.for_each(|part| push(&mut iovecs, base, part));
        return f(&mut iovecs);
    }
    // Several regions are locked in the order of their addresses, so that two callers with the same
    // regions in another order do not wait for each other.
    let mut distinct: Vec<&Region> = parts.clone().map(|(region, _, _)| region).collect();
    distinct.sort_unstable_by_key(|region| Arc::as_ptr(&region.0));
    distinct.dedup_by(|a, b| a.same(b));
    let mut guards: Vec<_> = distinct.iter().map(|region| region.lock()).collect();
    for part in parts {
        let key = Arc::as_ptr(&part.0.0);
        let base = distinct
            .binary_search_by_key(&key, |region| Arc::as_ptr(&region.0))
            .ok()
            .and_then(|i| guards[i].memory.base(access));
        push(&mut iovecs, base, part);
    }
    f(&mut iovecs)
}

/// The parts of `segments`, taken as one buffer, from `skip` on and at most `len` bytes long.
pub(crate) fn parts(
    segments: &[Segment],
    skip: u64,
    len: u64,
) -> impl Iterator<Item = (&Region, usize, usize)> + Clone {
    let step = move |(skip, left): &mut (u64, u64), segment: &'_ Segment| {
        let skipped = (*skip).min(segment.len as u64);
        let taken = (segment.len as u64 - skipped).min(*left);
        (*skip, *left) = (*skip - skipped, *left - taken);
        // Both are at most the segment's length.
        Some((skipped as usize, taken as usize))
    };
    let mut state = (skip, len);
    let mut rest = segments.iter();
    std::iter::from_fn({
        move || loop {
            let segment = rest.next()?;
            let (skipped, taken) = step(&mut state, segment)?;
            if taken > 0 {
                return Some((&segment.region, segment.start.wrapping_add(skipped), taken));
            }
            if state.1 == 0 {
                return None;
            }
        }
    })
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

    #[test]
    fn who_withdraws_waits_for_the_device() {
        struct Device(Mutex<Vec<Hold>>, std::sync::atomic::AtomicUsize);
        impl Release for Device {
            fn release(&self) {
                self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                // Not at once: whoever waits asks again.
                self.0.lock().unwrap().pop();
            }
        }
        let device = Arc::new(Device(Mutex::default(), Default::default()));
        let holder: Weak<dyn Release> = Arc::downgrade(&(device.clone() as Arc<dyn Release>));
        let mut buffer = [0u8; 8];
        let at = buffer.as_ptr() as u64;
        let kept = lend(&mut buffer, |region| {
            let held = [region.hold(&holder).unwrap(), region.hold(&holder).unwrap()];
            assert_eq!(held[0].address(3), at + 3);
            device.0.lock().unwrap().extend(held);
            // Other parts can be used meanwhile.
            region.segment(0, 2).with(|bytes| bytes.fill(5));
            region.clone()
        });
        assert_eq!(device.1.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert!(device.0.lock().unwrap().is_empty() && kept.hold(&holder).is_none());
        assert_eq!(buffer[..3], [5, 5, 0]);
        lend_shared(&buffer, |region| assert!(region.hold(&holder).is_none()));
    }

    fn addresses(parts: &[Segment], access: Access) -> Vec<(usize, usize)> {
        let parts = parts.iter().map(|s| (&s.region, s.start, s.len));
        with_iovecs(parts, access, Iovecs::new(), |iovecs| {
            iovecs.as_mut_slice().iter().map(|v| (v.iov_base as usize, v.iov_len)).collect()
        })
    }

    #[test]
    fn iovecs_name_the_parts_of_several_regions() {
        let (a, b) = (Region::owned(vec![0; 8]), Region::owned(vec![0; 8]));
        let base = |r: &Region| r.with_ref(|bytes| bytes.as_ptr() as usize).unwrap();
        let parts = [b.segment(1, 2), a.segment(0, 8), b.segment(4, 4), a.segment(3, 0)];
        let expected = vec![(base(&b) + 1, 2), (base(&a), 8), (base(&b) + 4, 4)];
        assert_eq!(addresses(&parts, Access::Write), expected);
        assert!(a.take().is_some());
        assert_eq!(addresses(&parts, Access::Write)[1], (0, 8));
        let beyond = Segment { region: b.clone(), start: 4, len: usize::MAX };
        assert_eq!(addresses(&[beyond], Access::Read), [(0, usize::MAX)]);
        lend_shared(&[1, 2], |region| {
            let part = [region.segment(0, 2)];
            assert_eq!(addresses(&part, Access::Write), [(0, 2)]);
            assert_ne!(addresses(&part, Access::Read), [(0, 2)]);
        });
    }
}

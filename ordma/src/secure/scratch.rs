//! Buffers of a thread that are used again and again: messages come and go without allocating, and
//! idle connections hold nothing.

use std::cell::RefCell;

/// Buffers that a thread keeps: as many as one message takes on its way in and its answer on its
/// way out.
const KEPT: usize = 4;
/// Larger ones are given back to the system.
const LARGEST: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Lends an empty buffer. Calls may nest.
pub(super) fn with<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.clear();
    let result = f(&mut buffer);
    if buffer.capacity() <= LARGEST {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_large_ones_do_not() {
        let first = with(|outer| {
            outer.extend([1; 100]);
            with(|inner| {
                assert!(inner.is_empty());
                inner.reserve(LARGEST + 1);
            });
            outer.as_ptr()
        });
        with(|again| {
            assert!(again.is_empty() && again.as_ptr() == first);
            with(|inner| assert_eq!(inner.capacity(), 0));
        });
    }
}

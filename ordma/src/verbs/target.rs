//! The client's memory, as the server's transfers name it.

use super::packet::Piece;
use crate::rdma::Remote;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A buffer that the client has advertised.
#[derive(Debug)]
pub(super) struct Advert {
    pieces: Vec<Piece>,
    withdrawn: AtomicBool,
}

impl Advert {
    pub(super) fn new(pieces: Vec<Piece>) -> Arc<Self> {
        Arc::new(Self { pieces, withdrawn: AtomicBool::new(false) })
    }

    /// Bytes of the buffer.
    pub(super) fn room(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }

    /// The client has withdrawn it, and may use its memory for something else: nothing is begun any
    /// more, also by those that found it before.
    pub(super) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Release);
    }
}

/// Where a transfer goes in an advertised buffer.
#[derive(Clone, Debug)]
pub(super) struct Target {
    advert: Arc<Advert>,
    /// Offset from the beginning of the buffer.
    offset: u64,
}

impl Target {
    pub(super) fn new(advert: &Arc<Advert>, offset: u64) -> Self {
        Self { advert: Arc::clone(advert), offset }
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.advert.withdrawn.load(Ordering::Acquire)
    }

    /// Takes the next stretch, at most so long.
    pub(super) fn next(&mut self, most: usize) -> Option<(Remote, usize)> {
        let mut skip = self.offset;
        for piece in &self.advert.pieces {
            let len = u64::from(piece.len);
            if skip < len {
                let len = (len - skip).min(most as u64);
                self.offset += len;
                let address = piece.remote.address.wrapping_add(skip);
                return Some((Remote { address, ..piece.remote }, len as usize));
            }
            skip -= len;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advert() -> Arc<Advert> {
        let piece = |address, len| Piece { remote: Remote { address, key: 7 }, len };
        Advert::new(vec![piece(1000, 10), piece(5000, 0), piece(9000, 20)])
    }

    #[test]
    fn a_transfer_goes_on_in_the_next_piece() {
        let advert = advert();
        assert_eq!(advert.room(), 30);
        let mut target = Target::new(&advert, 4);
        let mut next = |most| target.next(most).map(|(remote, len)| (remote.address, len));
        assert_eq!(next(100), Some((1004, 6)));
        assert_eq!(next(15), Some((9000, 15)));
        assert_eq!(next(100), Some((9015, 5)));
        assert_eq!(next(100), None);
    }

    #[test]
    fn who_found_a_buffer_before_sees_that_it_is_withdrawn() {
        let advert = advert();
        let target = Target::new(&advert, 0);
        assert!(!target.is_withdrawn());
        advert.withdraw();
        assert!(target.is_withdrawn());
    }
}

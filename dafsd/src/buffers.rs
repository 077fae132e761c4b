//! Buffers that are used again.
//!
//! A fresh buffer of a mebibyte costs more than the transfer that it is for: the kernel zeroes its
//! pages one fault at a time, and takes them back at the end.

use crate::sync::Mutex;

/// A bounded stock of buffers.
#[derive(Debug)]
pub struct Buffers {
    stock: Mutex<Vec<Vec<u8>>>,
    most: usize,
}

impl Buffers {
    /// A stock of at most `most` buffers.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { stock: Mutex::default(), most }
    }

    /// A buffer of any length, with any content.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.stock.lock().pop().unwrap_or_default()
    }

    /// Gives a buffer back. Its length is kept, so that what is in it need not be zeroed again.
    pub fn give(&self, buffer: Vec<u8>) {
        let mut stock = self.stock.lock();
        if stock.len() < self.most {
            stock.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_is_bounded_and_keeps_lengths() {
        let buffers = Buffers::new(2);
        assert_eq!(buffers.take(), Vec::<u8>::new());
        for byte in 1..=3 {
            buffers.give(vec![byte; 10]);
        }
        assert_eq!(buffers.take(), [2; 10]);
        assert_eq!(buffers.take(), [1; 10]);
        assert_eq!(buffers.take().len(), 0);
    }
}

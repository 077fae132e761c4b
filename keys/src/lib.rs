//! Who may read which page: protection levels and the check that every page carries.
//!
//! A page's check makes a one-sided read trustworthy without any help from the NIC: it covers the
//! whole payload and the footer's first 48 bytes, so a torn, stale or foreign page does not match.

#![forbid(unsafe_code)]

mod check;
mod protection;

pub use check::{CHECK_LEN, clear_check};
pub use protection::{Protection, UnknownProtection};

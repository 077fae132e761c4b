//! What the parts of this test have in common.

mod directed;
mod disk;
mod ends;
mod inode;
mod model;
pub mod profile;
pub mod run;
mod site;
mod steps;
mod store;

/// Bytes of a page.
pub const PAGE: usize = 4096;

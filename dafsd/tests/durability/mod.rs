//! What the parts of this test have in common.

mod directed;
pub mod disk;
pub mod model;
pub mod profile;
pub mod run;
pub mod site;
pub mod store;

pub const PAGE: usize = 4096;

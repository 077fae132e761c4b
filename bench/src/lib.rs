//! DAFS.

//! The command `dafs` against a real server: each subcommand, odd names, and what goes wrong.

#[path = "cli/changes.rs"]
mod changes;
#[path = "cli/clumsy.rs"]
mod clumsy;
#[path = "cli/copies.rs"]
mod copies;
#[cfg(feature = "device-tests")]
#[path = "cli/devices.rs"]
mod devices;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/interruptions.rs"]
mod interruptions;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/names.rs"]
mod names;
#[path = "cli/paths.rs"]
mod paths;
#[path = "cli/special.rs"]
mod special;
#[path = "cli/trees.rs"]
mod trees;

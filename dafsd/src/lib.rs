//! The DAFS server.
//!
//! It keeps pages of its files in exported memory, hands out references to them, and carries out
//! what clients cannot do one-sidedly. A message comes in through an engine's `Service`, is put
//! into its session's order, and becomes one of the operations in [`ops`].
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | the configuration: file, flags, and what they may say |
//! | [`daemon`] | builds a server from its configuration, starts it and stops it |
//! | [`authorized`], [`fence`], [`access`] | who may connect, who may not, and what for |
//! | [`admin`] | commands of the server's operator |
//! | [`server`] | exports, sessions, connections, and what ends them |
//! | [`dispatch`] | from a message to its operation, and from there to the reply |
//! | [`ops`] | the operations, one file each |
//! | [`sessions`], [`session`], [`reply_cache`] | sessions as plain data: slots, replies, leases |
//! | [`live`] | a session of the running server |
//! | [`cache`] | the page cache |
//! | [`store`] | where files lie when they are not in the page cache |
//! | [`state`] | what the server remembers of itself: its secret |
//! | [`exporter`] | shows the cache's chunks to the clients of all listeners |
//! | [`runtime`], [`turns`] | where work runs, and whose is next |
//! | [`transfers`] | permits for direct transfers |
//! | [`buffers`] | buffers that are used again |
//! | [`counters`] | what the server counts |
//! | [`sync`] | locks |

#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
pub mod authorized;
pub mod buffers;
pub mod cache;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod dispatch;
pub mod exporter;
pub mod fence;
mod keyed_locks;
pub mod live;
pub mod ops;
pub mod reply_cache;
pub mod runtime;
pub mod server;
pub mod session;
pub mod sessions;
pub mod sharing;
pub mod state;
pub mod store;
pub mod sync;
pub mod transfers;
pub mod turns;

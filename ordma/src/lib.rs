//! Optimistic RDMA: engines, exported memory, and one-sided reads that verify themselves.
//!
//! The server side keeps pages in the slots of [`Chunk`]s of an [`Arena`]; a [`Listener`] makes
//! them readable. The client side reads them through an [`Endpoint`] with a [`RemoteRef`], and gets
//! the page or an [`AccessFault`]. This crate knows nothing of files, paths or the messages that it
//! carries.
//!
//! | module | what it does |
//! |---|---|
//! | [`slot`] | footers, and the judgement of a copied page |
//! | [`arena`] | chunks of exported memory and their slots |
//! | [`region`] | memory lent to an engine for a transfer |
//! | [`engine`] | what every engine offers: listening, connecting, messages, transfers, reads |
//! | [`os`] | system calls that no safe crate wraps |
//! | [`tcp`], [`shm`], [`sim`] | the engines |
//! | [`secure`] | the handshake and encrypted messages, over any engine |

pub mod arena;
mod client;
pub mod complaints;
pub mod engine;
#[cfg(feature = "explore")]
pub mod explore;
mod exports;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod memory;
pub mod os;
mod party;
pub mod rdma;
mod reactor;
mod reference;
pub mod region;
pub mod secure;
pub mod shm;
pub mod sim;
pub mod slot;
mod stream;
pub mod tcp;
mod turn;
pub mod verbs;
mod wait;

pub use arena::{Arena, Chunk, Slot};
pub use engine::{
    Capabilities, Connector, Endpoint, Engine, Established, Interest, Link, LinkError, Listener,
    Outcome, PageRead, PageReads, ReadAccess, ReadBatch, Receiver, Service, Tag, Transfer,
};
pub use party::{Party, Share, Shares};
pub use reference::{AccessFault, ChunkId, RemoteRef};
pub use region::{Region, Segment};
pub use slot::{FOOTER_LEN, Footer, Kind};

/// Marks a place where another thread may run, for tests that drive every interleaving. Nothing in
/// ordinary builds.
#[inline(always)]
pub fn schedule_point(name: &'static str) {
    #[cfg(feature = "explore")]
    explore::point(name);
    #[cfg(not(feature = "explore"))]
    let _ = name;
}

/// Locks, also where a thread has panicked meanwhile: what these locks guard is whole between any
/// two statements that change it, or belongs to a connection that is closed for the panic.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

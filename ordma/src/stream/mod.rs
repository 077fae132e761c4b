//! What the engines over a byte stream share: frames, event loops, the server's links and the
//! client's endpoint.

mod connection;
pub(crate) mod endpoint;
pub(crate) mod frame;
pub(crate) mod gate;
pub(crate) mod hello;
pub(crate) mod inbox;
pub(crate) mod io;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod out;
pub(crate) mod placing;
pub(crate) mod reactor;
pub(crate) mod rpc;
pub(crate) mod server;
mod settings;
pub(crate) mod turn;
pub(crate) mod welcome;

pub use settings::Settings;

/// Locks, also where a thread has panicked meanwhile: what these locks guard is whole between any
/// two statements that change it, or belongs to a connection that is closed for the panic.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

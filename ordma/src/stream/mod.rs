//! What the engines over a byte stream share: frames, the server's links and the client's
//! messages.

mod connection;
pub(crate) mod endpoint;
pub(crate) mod frame;
mod guests;
pub(crate) mod hello;
pub(crate) mod inbox;
pub(crate) mod io;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod out;
pub(crate) mod placing;
pub(crate) mod rpc;
pub(crate) mod server;
mod settings;
mod untaken;
pub(crate) mod welcome;

pub use settings::Settings;

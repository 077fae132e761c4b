//! What can be set on a stream engine.

use super::frame::Limits;
use std::time::Duration;

/// Settings of the engines `tcp`, `shm` and `verbs`, for servers and clients.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Server: threads that receive messages. At least 1.
    pub rpc_threads: usize,
    /// Server, tcp: threads that answer one-sided reads. At least 1.
    pub agent_threads: usize,
    /// Most bytes of a message's head that this side takes.
    pub max_head: usize,
    /// Most bytes of a message's data that this side takes.
    pub max_data: usize,
    /// Server: bytes queued for a client that does not take its replies, beyond what transfers
    /// hold, before it is cut off.
    pub send_queue: usize,
    /// Server: bytes queued for all clients of the engine that do not take their replies, beyond what
    /// transfers hold, before one of them is cut off: of the client with most of them.
    pub send_memory: usize,
    /// Server: how long a client may take for 64 KiB of what waits for it, or for what
    /// the server fetches from it, before it is cut off.
    pub take_patience: Duration,
    /// Server: bytes of incomplete messages held for all clients that may read together, and as
    /// much again for those that may not.
    pub receive_memory: usize,
    /// Server, verbs: bytes of the receives that are posted on a device for all clients, of which each
    /// takes 48 KiB at least. Whoever comes when there are none left is refused.
    pub receives: usize,
    /// Server: how long a new connection may take to say what it wants, and how long 256 KiB of an
    /// incomplete message, or its rest, may take while others wait for its memory. Over verbs, also how
    /// long at least a direct transfer waits for a client that does not go on before it is given up.
    pub patience: Duration,
    /// Server: most connections, of both kinds together.
    pub max_connections: usize,
    /// Longest spin before a wait goes to sleep; zero never spins.
    pub spin: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rpc_threads: 1,
            agent_threads: 1,
            // 64 KiB, and room for what an encrypted channel adds.
            max_head: (64 << 10) + crate::secure::OVERHEAD,
            max_data: 2 << 20,
            send_queue: 8 << 20,
            send_memory: 32 << 20,
            take_patience: Duration::from_secs(30),
            receive_memory: 16 << 20,
            receives: 16 << 20,
            patience: Duration::from_secs(5),
            max_connections: 50_000,
            // About what waking a halted virtual CPU costs: spinning that long at most doubles the
            // cost of a wait that sleeps after all.
            spin: Duration::from_micros(50),
        }
    }
}

impl Settings {
    pub(crate) fn limits(&self) -> Limits {
        // What the other side is told has 32 bits.
        let most = u32::MAX as usize;
        Limits { head: self.max_head.min(most), data: self.max_data.min(most) }
    }

    /// Why a client is cut off for which more is queued than may be.
    pub(crate) fn not_taken(&self) -> String {
        let most = self.send_queue;
        format!("the client does not take its replies: more than {most} bytes wait for it")
    }
}

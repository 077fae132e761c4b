//! Shows the page cache's chunks to the clients of all listeners.

use crate::cache::Exporter;
use crate::sync::RwLock;
use ordma::{Chunk, ChunkId, Listener};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The server's listeners. Empty when the cache begins; a listener that is added later gets the
/// chunks that are there.
#[derive(Debug, Default)]
pub struct Listeners(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    /// With the prefix that tells the engine in addresses.
    listeners: Vec<(&'static str, Arc<dyn Listener>)>,
    chunks: Vec<Arc<Chunk>>,
}

impl Listeners {
    /// Adds a listener of the engine with this name, and exports the chunks to it.
    pub fn add(&self, engine: &'static str, listener: Arc<dyn Listener>) {
        let mut state = self.0.write();
        state.chunks.iter().for_each(|chunk| listener.export(chunk));
        state.listeners.push((engine, listener));
    }

    /// Where clients reach the server: `engine:address`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let state = self.0.read();
        state.listeners.iter().map(|(engine, l)| format!("{engine}:{}", l.address())).collect()
    }

    /// Stops all listeners.
    pub fn stop(&self) {
        let listeners = std::mem::take(&mut self.0.write().listeners);
        listeners.iter().for_each(|(_, listener)| listener.stop());
    }
}

impl Exporter for Listeners {
    fn export(&self, chunk: &Arc<Chunk>) {
        // Exclusive, so that no listener is added in between and misses the chunk.
        let mut state = self.0.write();
        state.listeners.iter().for_each(|(_, listener)| listener.export(chunk));
        state.chunks.push(Arc::clone(chunk));
    }

    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut state = self.0.write();
        state.chunks.retain(|known| known.id() != chunk);
        let retired: Vec<_> =
            state.listeners.iter().map(|(_, listener)| listener.retire(chunk, patience)).collect();
        drop(state);
        Box::pin(async move {
            // Each has told its links already; only the waiting is left, and it runs in parallel.
            for waiting in retired {
                waiting.await;
            }
        })
    }
}

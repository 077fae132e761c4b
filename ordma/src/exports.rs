//! Which chunks clients may be handed, and who still has one that is to go.

use crate::ChunkId;
use crate::arena::{Chunk, Guard};
use crate::engine::Transfer;
use crate::lock;
use crate::reactor::Reactor;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A client's connection that chunks are handed over on.
pub(crate) trait Holder: Send + Sync + 'static {
    /// There is a chunk more.
    fn announce(&self, chunk: &Arc<Chunk>);
    /// Tells the client to let go of a chunk; whether it has it and must be waited for.
    fn retire(&self, chunk: ChunkId) -> bool;
    /// The client did not let go of a chunk within this time. Nobody waits for it any more.
    fn late(&self, chunk: ChunkId, patience: Duration);
}

/// All that is handed over, and to whom.
#[derive(Debug)]
pub(crate) struct Exports<H>(Mutex<Registry<H>>);

impl<H> Default for Exports<H> {
    fn default() -> Self {
        Self(Mutex::new(Registry {
            chunks: BTreeMap::new(),
            holders: BTreeMap::new(),
            retiring: BTreeMap::new(),
        }))
    }
}

/// What is known of chunks and clients.
#[derive(Debug)]
pub(crate) struct Registry<H> {
    chunks: BTreeMap<ChunkId, Arc<Chunk>>,
    /// By link.
    holders: BTreeMap<u64, Arc<H>>,
    retiring: BTreeMap<ChunkId, Retiring>,
}

impl<H> Registry<H> {
    /// The chunks that are not retired.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Arc<Chunk>> {
        self.chunks.values()
    }

    /// Whether a chunk is one of them.
    pub(crate) fn has(&self, chunk: ChunkId) -> bool {
        self.chunks.contains_key(&chunk)
    }
}

/// A chunk that links have been told to let go of.
#[derive(Debug)]
struct Retiring {
    waiting: BTreeSet<u64>,
    /// Done when no one is waited for.
    done: Transfer,
}

impl<H: Holder> Exports<H> {
    /// Held while it is decided what a client is told, so that no change falls in between.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Registry<H>> {
        lock(&self.0)
    }

    /// Chunks are announced to the link from now on.
    pub(crate) fn join(&self, link: u64, holder: Arc<H>) {
        self.lock().holders.insert(link, holder);
    }

    /// Offers a chunk, unless it is one whose pages are given against tags alone: who has the memory
    /// shows tags to no one.
    pub(crate) fn export(&self, chunk: &Arc<Chunk>) {
        if chunk.guard() == Guard::Tags {
            return;
        }
        let mut registry = self.lock();
        if registry.chunks.insert(chunk.id(), Arc::clone(chunk)).is_none() {
            for holder in registry.holders.values() {
                holder.announce(chunk);
            }
        }
    }

    /// Tells all links to let go of a chunk. Resolves when they have, or at the deadline, when those
    /// that have not are told that they are [late](Holder::late).
    pub(crate) fn retire(
        self: &Arc<Self>,
        chunk: ChunkId,
        patience: Duration,
        clock: &Reactor,
    ) -> Transfer {
        let done = Transfer::new();
        let mut registry = self.lock();
        registry.chunks.remove(&chunk);
        let told = registry.holders.iter().filter(|(_, holder)| holder.retire(chunk));
        let waiting: BTreeSet<u64> = told.map(|(link, _)| *link).collect();
        if waiting.is_empty() {
            done.complete(Ok(Vec::new()));
            return done;
        }
        registry.retiring.insert(chunk, Retiring { waiting, done: done.clone() });
        drop(registry);
        let exports = Arc::clone(self);
        let call = Box::new(move || exports.run_out(chunk, patience));
        if let Some(deadline) = Instant::now().checked_add(patience) {
            clock.at(deadline, call);
        }
        done
    }

    /// The patience with those who still have the chunk is at its end.
    fn run_out(&self, chunk: ChunkId, patience: Duration) {
        let mut registry = self.lock();
        let Some(retiring) = registry.retiring.remove(&chunk) else { return };
        let late: Vec<_> =
            retiring.waiting.iter().filter_map(|id| registry.holders.get(id).cloned()).collect();
        drop(registry);
        late.iter().for_each(|holder| holder.late(chunk, patience));
        retiring.done.complete(Ok(Vec::new()));
    }

    /// A link no longer has the chunk, or is gone.
    pub(crate) fn let_go(&self, link: u64, chunk: Option<ChunkId>) {
        let mut registry = self.lock();
        if chunk.is_none() {
            registry.holders.remove(&link);
        }
        let mut done = Vec::new();
        registry.retiring.retain(|id, retiring| {
            if chunk.is_none_or(|chunk| chunk == *id) {
                retiring.waiting.remove(&link);
            }
            if retiring.waiting.is_empty() {
                done.push(retiring.done.clone());
            }
            !retiring.waiting.is_empty()
        });
        drop(registry);
        done.into_iter().for_each(|done| done.complete(Ok(Vec::new())));
    }
}

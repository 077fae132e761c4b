//! The server's side: listening, and letting clients know of chunks.

use super::core::Core;
use super::event::{Channel, What};
use super::state::State;
use crate::arena::{Geometry, Guard};
use crate::{Arena, Chunk, ChunkId, LinkError, Listener, Service, Transfer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A server that listens.
pub(super) struct Host {
    pub(super) address: String,
    pub(super) service: Arc<dyn Service>,
    pub(super) geometry: Geometry,
    pub(super) exported: BTreeMap<ChunkId, Arc<Chunk>>,
    retires: BTreeMap<u64, Retire>,
}

/// A chunk that clients have been told to let go of.
struct Retire {
    chunk: ChunkId,
    waiting: BTreeSet<u64>,
    done: Transfer,
}

impl Host {
    /// The chunks that a new client may learn of.
    pub(super) fn readable(&self) -> BTreeSet<ChunkId> {
        let retiring = |id: &ChunkId| self.retires.values().any(|retire| retire.chunk == *id);
        self.exported.keys().copied().filter(|id| !retiring(id)).collect()
    }
}

impl State {
    pub(super) fn listen(
        &mut self,
        address: &str,
        service: Arc<dyn Service>,
        arena: &Arena,
    ) -> Result<u64, LinkError> {
        if self.hosts.values().any(|host| host.address == address) {
            let reason = "the address is in use".to_owned();
            return Err(LinkError::Listen { address: address.to_owned(), reason });
        }
        let chunks = arena.chunks().into_iter().filter(is_given);
        let host = Host {
            address: address.to_owned(),
            service,
            geometry: arena.geometry(),
            exported: chunks.map(|chunk| (chunk.id(), chunk)).collect(),
            retires: BTreeMap::new(),
        };
        let id = self.next_id();
        self.hosts.insert(id, host);
        Ok(id)
    }

    /// The links that a listener took and that are not over, oldest first.
    pub(super) fn links_of(&self, listener: u64) -> Vec<u64> {
        let is_its = |conn: &&super::conn::Conn| {
            conn.server.as_ref().is_some_and(|server| server.listener == listener && !server.told)
        };
        self.conns.iter().filter(|(_, conn)| is_its(conn)).map(|(id, _)| *id).collect()
    }

    fn export(&mut self, listener: u64, chunk: &Arc<Chunk>) {
        let Some(host) = self.hosts.get_mut(&listener).filter(|_| is_given(chunk)) else {
            return;
        };
        host.exported.insert(chunk.id(), Arc::clone(chunk));
        for link in self.links_of(listener) {
            self.post(link, Channel::Down, What::Export { chunk: chunk.id() });
        }
    }

    fn retire(&mut self, listener: u64, chunk: ChunkId, patience: Duration, done: Transfer) {
        let links = self.links_of(listener);
        for link in &links {
            self.post(*link, Channel::Down, What::Retire { chunk });
        }
        let number = self.next_id();
        let retire = Retire { chunk, waiting: links.into_iter().collect(), done };
        match self.hosts.get_mut(&listener) {
            Some(host) => {
                host.retires.insert(number, retire);
                let end = self.now.saturating_add(patience);
                self.schedule_local(end, 0, What::Patience { listener, retire: number });
                self.end_retires(listener);
            }
            // A listener that stopped has no links that could hold anything.
            None => self.calls.push(Box::new(move || done_with(&retire.done))),
        }
    }

    /// The client is told of a new chunk.
    pub(super) fn learn_chunk(&mut self, id: u64, chunk: ChunkId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.client.chunks.insert(chunk);
        }
    }

    /// The client is told to let go of a chunk.
    pub(super) fn let_go(&mut self, id: u64, chunk: ChunkId) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.client.deaf {
            conn.client.chunks.remove(&chunk);
            // From a client that has closed nothing is sent any more.
            self.post(id, Channel::Up, What::LetGo { chunk });
        }
    }

    /// The server learns that the client has let go of a chunk.
    pub(super) fn has_let_go(&mut self, id: u64, chunk: ChunkId) {
        let server = self.conns.get(&id).and_then(|conn| conn.server.as_ref());
        let Some(listener) = server.map(|server| server.listener) else {
            return;
        };
        if let Some(host) = self.hosts.get_mut(&listener) {
            for retire in host.retires.values_mut().filter(|retire| retire.chunk == chunk) {
                retire.waiting.remove(&id);
            }
        }
        self.end_retires(listener);
    }

    /// A link that is over holds no chunk.
    pub(super) fn forget_in_retires(&mut self, listener: u64, id: u64) {
        if let Some(host) = self.hosts.get_mut(&listener) {
            for retire in host.retires.values_mut() {
                retire.waiting.remove(&id);
            }
        }
        self.end_retires(listener);
    }

    pub(super) fn out_of_patience(&mut self, listener: u64, number: u64) {
        let Some(host) = self.hosts.get_mut(&listener) else {
            return;
        };
        let Some(retire) = host.retires.get_mut(&number) else {
            return;
        };
        let chunk = retire.chunk;
        for link in std::mem::take(&mut retire.waiting) {
            self.close_server(link, &format!("the client did not let go of chunk {chunk} in time"));
        }
        self.end_retires(listener);
    }

    /// Ends those retirements that wait for no one any more.
    fn end_retires(&mut self, listener: u64) {
        let Some(host) = self.hosts.get_mut(&listener) else {
            return;
        };
        let over = |(number, retire): (&u64, &Retire)| retire.waiting.is_empty().then_some(*number);
        let over: Vec<u64> = host.retires.iter().filter_map(over).collect();
        for number in over {
            if let Some(retire) = host.retires.remove(&number) {
                host.exported.remove(&retire.chunk);
                self.calls.push(Box::new(move || done_with(&retire.done)));
            }
        }
    }

    /// Ends a listener and its links; the services are told unless their machine has crashed.
    pub(super) fn stop_listener(&mut self, listener: u64, crashed: bool) {
        let links = self.links_of(listener);
        let Some(host) = self.hosts.remove(&listener) else {
            return;
        };
        for link in links {
            if crashed {
                let span = self.faults.latency_max;
                let notices = self.now + self.random(span);
                let error = super::end::lost(&host.address, "the server crashed");
                self.schedule_local(notices, link, What::ClientLost(error.clone()));
                if let Some(conn) = self.conns.get_mut(&link) {
                    conn.severed = true;
                }
                self.end_server(link, &error, false);
            } else {
                self.close_server(link, "the server stops");
            }
        }
        self.calls.push(Box::new(move || {
            host.retires.values().for_each(|retire| done_with(&retire.done));
            drop(host);
        }));
    }
}

/// Whether clients are given the pages of a chunk: no one looks at tags here.
fn is_given(chunk: &Arc<Chunk>) -> bool {
    chunk.guard() != Guard::Tags
}

fn done_with(retire: &Transfer) {
    retire.complete(Ok(Vec::new()));
}

/// A listener as its server holds it. Stops when dropped.
pub(super) struct SimListener {
    core: Weak<Core>,
    id: u64,
    address: String,
}

impl SimListener {
    pub(super) fn new(core: &Arc<Core>, id: u64, address: &str) -> Self {
        Self { core: Arc::downgrade(core), id, address: address.to_owned() }
    }

    /// Weak: a server holds its listener, and the world holds the server. No world, nothing to do.
    fn with(&self, f: impl FnOnce(&mut State)) {
        if let Some(core) = self.core.upgrade() {
            core.with(f);
        }
    }
}

impl Listener for SimListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn export(&self, chunk: &Arc<Chunk>) {
        self.with(|state| state.export(self.id, chunk));
    }

    fn retire(
        &self,
        chunk: ChunkId,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let done = Transfer::new();
        if self.core.strong_count() == 0 {
            done_with(&done);
        }
        self.with(|state| state.retire(self.id, chunk, patience, done.clone()));
        Box::pin(async move {
            // Only ever completed well.
            let _ = done.await;
        })
    }

    fn stop(&self) {
        self.with(|state| state.stop_listener(self.id, false));
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim listener {}", self.address)
    }
}

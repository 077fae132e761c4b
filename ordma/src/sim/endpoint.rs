//! The client's side: connecting, sending, reading, and waiting in virtual time.

use super::conn::{Advert, Stage};
use super::core::{Core, Step};
use super::event::{Channel, What};
use super::progress::Progress;
use super::state::State;
use crate::arena::Geometry;
use crate::engine::{PageReads, ReadBatch};
use crate::region::Segment;
use crate::{AccessFault, Capabilities, Connector, Endpoint, Interest, LinkError, Receiver, Tag};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A wait takes at least this long unless something comes: whoever polls without waiting still
/// lets time pass, as on a real machine.
const LEAST_WAIT: Duration = Duration::from_micros(1);

/// And at most this long, so that a wait without end does not carry the clock past all bounds.
const MOST_WAIT: Duration = Duration::from_secs(3600);

pub(super) struct SimConnector {
    core: Arc<Core>,
    name: String,
    address: String,
}

impl SimConnector {
    pub(super) fn new(core: &Arc<Core>, name: &str, address: &str) -> Self {
        Self { core: Arc::clone(core), name: name.to_owned(), address: address.to_owned() }
    }
}

impl Connector for SimConnector {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        let progress = Arc::new(Progress::new());
        let (id, end) = self.core.with(|state| {
            let id = state.dial(&self.name, &self.address, receiver, Arc::clone(&progress));
            (id, state.now + timeout.clamp(LEAST_WAIT, MOST_WAIT))
        });
        let settled = |state: &State| {
            state.conns.get(&id).is_none_or(|conn| conn.client.stage != Stage::Dialling)
        };
        while self.core.step(end, settled) == Step::Ran {}
        let geometry = self.core.with(|state| state.take_dialled(id)).map_err(|reason| {
            LinkError::Connect { target: format!("sim {}", self.address), reason }
        })?;
        Ok(Arc::new(SimEndpoint {
            core: Arc::clone(&self.core),
            id,
            peer: self.address.clone(),
            geometry,
            progress,
        }))
    }

    fn target(&self) -> String {
        self.address.clone()
    }

    fn now(&self) -> Instant {
        self.core.instant()
    }
}

impl fmt::Debug for SimConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim connector of {} to {}", self.name, self.address)
    }
}

struct SimEndpoint {
    core: Arc<Core>,
    id: u64,
    peer: String,
    geometry: Geometry,
    progress: Arc<Progress>,
}

impl Endpoint for SimEndpoint {
    fn capabilities(&self) -> Capabilities {
        super::capabilities(Some(self.geometry))
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        let mut bytes = Vec::with_capacity(data.iter().map(|segment| segment.len).sum());
        for segment in data {
            // What was withdrawn meanwhile is not the peer's to see, but the message still has the
            // length that its head may tell.
            if segment.with_ref(|from| bytes.extend_from_slice(from)).is_none() {
                bytes.resize(bytes.len() + segment.len, 0);
            }
        }
        super::LIMITS.check(head.len(), bytes.len()).map_err(LinkError::Closed)?;
        let what = What::ToServer { head: head.to_vec(), data: bytes };
        if self.core.with(|state| state.send_up(self.id, what)) {
            return Ok(());
        }
        Err(LinkError::Lost {
            peer: self.peer.clone(),
            reason: "the connection is over".to_owned(),
        })
    }

    fn advertise(&self, buffer: Vec<Segment>) -> Tag {
        self.core.with(|state| {
            let tag = state.next_id();
            if let Some(conn) = state.conns.get_mut(&self.id) {
                conn.client.adverts.insert(tag, Advert { segments: buffer, placed: 0 });
            }
            tag
        })
    }

    fn withdraw(&self, tag: Tag) -> u64 {
        let conn = |state: &mut State| state.conns.get_mut(&self.id)?.client.adverts.remove(&tag);
        self.core.with(conn).map_or(0, |advert| advert.placed)
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        let batch = ReadBatch::new(reads);
        if batch.reads.pages().is_empty() {
            batch.complete(Vec::new());
        } else if let Some(fault) = batch.reads.unfit(self.geometry.page_size, false) {
            batch.fail(fault);
        } else if !self.core.with(|state| state.post_reads(self.id, &batch)) {
            batch.fail(AccessFault::Unreachable);
        }
        batch
    }

    fn drive(&self, interest: Interest, timeout: Duration) {
        let Some(start) = self.progress.look() else {
            return;
        };
        // On a connection that is over nothing will come, but time passes.
        let timeout = if self.progress.has_ended() { LEAST_WAIT } else { timeout };
        let timeout = timeout.clamp(LEAST_WAIT, MOST_WAIT);
        let end = self.core.with(|state| state.now + timeout);
        let enough = |_: &State| self.progress.since(&start, interest);
        while self.core.step(end, enough) == Step::Ran {}
        self.progress.looked();
    }

    fn interrupt(&self) {
        self.progress.interrupt();
        self.core.nudge();
    }

    fn close(&self) {
        let error = LinkError::Closed("by this side".to_owned());
        self.core.with(|state| state.close_client(self.id, error));
    }
}

impl State {
    /// Sends a message to the server; `false` where the client's side is over.
    fn send_up(&mut self, id: u64, what: What) -> bool {
        if !self.conns.get(&id).is_some_and(|conn| conn.client.is_open()) {
            return false;
        }
        self.post(id, Channel::Up, what);
        self.risk(id);
        true
    }
}

impl Drop for SimEndpoint {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for SimEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim endpoint {} to {}", super::number(self.id), self.peer)
    }
}

//! One connection: its two sides, how it is made, and how it ends.

use super::event::{Channel, What};
use super::link::SimLink;
use super::progress::Progress;
use super::read::Batch;
use super::state::State;
use crate::arena::Geometry;
use crate::region::Segment;
use crate::{ChunkId, Link, Receiver, Service, Tag, Transfer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Conn {
    /// What the client dialled.
    pub(super) address: String,
    pub(super) client: ClientSide,
    /// The listener's page size and slots, learnt with the connection.
    pub(super) geometry: Option<Geometry>,
    /// Once a listener has taken the connection.
    pub(super) server: Option<ServerSide>,
    /// Nothing more is sent: each side has been told, or is going to notice.
    pub(super) severed: bool,
    /// When the last event of each channel arrives.
    pub(super) last: [Duration; 4],
    /// More latency, on a test's demand.
    pub(super) extra: Duration,
    /// Nothing arrives before.
    pub(super) partition: Duration,
    /// Bytes under way to the client.
    pub(super) queued: usize,
}

pub(super) struct ClientSide {
    pub(super) name: String,
    pub(super) stage: Stage,
    pub(super) receiver: Arc<dyn Receiver>,
    pub(super) progress: Arc<Progress>,
    pub(super) adverts: BTreeMap<Tag, Advert>,
    pub(super) chunks: BTreeSet<ChunkId>,
    pub(super) batches: BTreeMap<u64, Batch>,
    /// It does not answer when it is asked to let go of a chunk.
    pub(super) deaf: bool,
    /// Whoever dialled knows what came of it.
    taken: bool,
}

/// Where the client's side stands. It only moves down.
#[derive(Debug, PartialEq)]
pub(super) enum Stage {
    Dialling,
    Open,
    /// There will be no connection.
    Refused(String),
    /// Closed by its user, who is to be told.
    Closing,
    Closed,
}

pub(super) struct Advert {
    pub(super) segments: Vec<Segment>,
    pub(super) placed: u64,
}

pub(super) struct ServerSide {
    pub(super) listener: u64,
    pub(super) service: Arc<dyn Service>,
    pub(super) link: Arc<dyn Link>,
    pub(super) may_read: bool,
    pub(super) transfers: BTreeMap<u64, Pending>,
    /// Takes messages and serves reads.
    pub(super) open: bool,
    /// The service has been told of the end.
    pub(super) told: bool,
}

/// A transfer under way, and the buffer it gives back.
pub(super) struct Pending {
    pub(super) transfer: Transfer,
    pub(super) buffer: Vec<u8>,
}

impl ClientSide {
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }
}

impl Conn {
    pub(super) fn server_open(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.open)
    }

    pub(super) fn is_over(&self) -> bool {
        let client = self.client.taken && self.client.stage == Stage::Closed;
        client && self.server.as_ref().is_none_or(|server| server.told)
    }
}

impl State {
    /// Begins to connect.
    pub(super) fn dial(
        &mut self,
        name: &str,
        address: &str,
        receiver: Arc<dyn Receiver>,
        progress: Arc<Progress>,
    ) -> u64 {
        let id = super::link_id(self.next_id());
        let client = ClientSide {
            name: name.to_owned(),
            stage: Stage::Dialling,
            receiver,
            progress,
            adverts: BTreeMap::new(),
            chunks: BTreeSet::new(),
            batches: BTreeMap::new(),
            deaf: false,
            taken: false,
        };
        let conn = Conn {
            address: address.to_owned(),
            client,
            geometry: None,
            server: None,
            severed: false,
            last: [Duration::ZERO; 4],
            extra: Duration::ZERO,
            partition: Duration::ZERO,
            queued: 0,
        };
        self.conns.insert(id, conn);
        self.post(id, Channel::Up, What::Dial);
        id
    }

    /// A client's wish to connect reaches the server's machine.
    pub(super) fn dialled(&mut self, id: u64) {
        let chance = self.faults.refuse_connection;
        let unlucky = self.chance(chance);
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !conn.severed) else {
            return;
        };
        let host = self.hosts.iter().find(|(_, host)| host.address == conn.address);
        let Some((listener, host)) = host.filter(|_| !unlucky) else {
            let reason = if unlucky { "refused" } else { "no one listens there" };
            self.post(id, Channel::Down, What::Refused(reason.to_owned()));
            return;
        };
        let peer = super::client_name(&conn.client.name, id);
        let link: Arc<dyn Link> = Arc::new(SimLink::new(self.core.clone(), id, peer, host));
        let service = Arc::clone(&host.service);
        conn.client.chunks = host.readable();
        conn.geometry = Some(host.geometry);
        conn.server = Some(ServerSide {
            listener: *listener,
            service: Arc::clone(&service),
            link: Arc::clone(&link),
            may_read: false,
            transfers: BTreeMap::new(),
            open: true,
            told: false,
        });
        self.post(id, Channel::Down, What::Accepted);
        self.calls.push(Box::new(move || service.connected(link)));
    }

    pub(super) fn accepted(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.client.stage == Stage::Dialling
        {
            conn.client.stage = Stage::Open;
        }
    }

    pub(super) fn refused(&mut self, id: u64, reason: String) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.client.stage == Stage::Dialling
        {
            conn.client.stage = Stage::Refused(reason);
        }
    }

    /// What came of [`dial`](Self::dial); if nothing, the attempt is given up.
    pub(super) fn take_dialled(&mut self, id: u64) -> Result<Geometry, String> {
        let none = || "the connection was lost at once".to_owned();
        let Some(conn) = self.conns.get_mut(&id) else {
            return Err(none());
        };
        conn.client.taken = true;
        let result = match &conn.client.stage {
            Stage::Refused(reason) => Err(reason.clone()),
            Stage::Dialling => Err("no answer in time".to_owned()),
            // If it has ended since, its receiver has been told.
            Stage::Open | Stage::Closing | Stage::Closed => conn.geometry.ok_or_else(none),
        };
        if result.is_err() {
            conn.client.stage = Stage::Closed;
            if conn.server_open() {
                self.hang_up(id, "the client gave up connecting");
            }
        }
        self.forget(id);
        result
    }

    pub(super) fn deliver_up(&mut self, id: u64, head: Vec<u8>, data: Vec<u8>) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.server_open()) else {
            return;
        };
        let Some(server) = &conn.server else { return };
        let (service, link) = (Arc::clone(&server.service), Arc::clone(&server.link));
        self.calls.push(Box::new(move || service.message(&link, &head, &data)));
    }

    pub(super) fn deliver_down(&mut self, id: u64, head: Vec<u8>, data: Vec<u8>) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.client.is_open()) else {
            return;
        };
        let (receiver, progress) =
            (Arc::clone(&conn.client.receiver), Arc::clone(&conn.client.progress));
        self.calls.push(Box::new(move || receiver.message(&head, &data)));
        self.calls.push(Box::new(move || progress.message()));
    }
}

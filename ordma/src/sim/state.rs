//! What a world consists of, and how one event leads to the next.

use super::conn::Conn;
use super::core::{Call, Core};
use super::event::{Channel, Event, What};
use super::faults::Faults;
use super::listener::Host;
use super::trace::Trace;
use std::collections::BTreeMap;
use std::sync::Weak;
use std::thread::ThreadId;
use std::time::Duration;

pub(super) struct State {
    /// Since the world began.
    pub(super) now: Duration,
    /// What is to come; of events at the same time the one queued first happens first.
    pub(super) queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) faults: Faults,
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) hosts: BTreeMap<u64, Host>,
    /// Names (of clients or listeners) that cannot be reached, and until when.
    pub(super) partitions: BTreeMap<String, Duration>,
    pub(super) trace: Trace,
    /// To be run once the lock is released.
    pub(super) calls: Vec<Call>,
    last_id: u64,
    /// Who pumps.
    pub(super) turn: Option<ThreadId>,
    /// For those that others hold.
    pub(super) core: Weak<Core>,
}

impl State {
    pub(super) fn new(seed: u64, core: Weak<Core>) -> Self {
        Self {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            rng: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            conns: BTreeMap::new(),
            hosts: BTreeMap::new(),
            partitions: BTreeMap::new(),
            trace: Trace::default(),
            calls: Vec::new(),
            last_id: 0,
            turn: None,
            core,
        }
    }

    /// A number not given before in this world.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Queues an event.
    pub(super) fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// Queues something that a side does or notices by itself.
    pub(super) fn schedule_local(&mut self, at: Duration, conn: u64, what: What) {
        self.schedule(at, Event { conn, channel: None, what });
    }

    /// Sends something over a connection, behind what is already on its way there; `false` if the
    /// connection has been severed and it will never arrive.
    pub(super) fn post(&mut self, id: u64, channel: Channel, what: What) -> bool {
        let delay = self.latency(id);
        let heal = self.heals_at(id);
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !conn.severed) else {
            return false;
        };
        conn.queued += what.queued();
        let last = &mut conn.last[channel as usize];
        let at = (now.max(heal) + delay).max(*last);
        *last = at;
        self.schedule(at, Event { conn: id, channel: Some(channel), what });
        true
    }

    /// How long the next message of a connection takes.
    pub(super) fn latency(&mut self, id: u64) -> Duration {
        let (least, most) = (self.faults.latency_min, self.faults.latency_max);
        let extra = self.conns.get(&id).map_or(Duration::ZERO, |conn| conn.extra);
        least + self.random(most.saturating_sub(least)) + extra
    }

    /// A duration from zero to `most`.
    pub(super) fn random(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.rng.u64(0..=most))
    }

    /// Whether something of this probability happens.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    /// When a connection's partition ends; long past where there is none.
    pub(super) fn heals_at(&self, id: u64) -> Duration {
        let Some(conn) = self.conns.get(&id) else {
            return Duration::ZERO;
        };
        let until = |name: &str| self.partitions.get(name).copied().unwrap_or_default();
        conn.partition.max(until(&conn.address)).max(until(&conn.client.name))
    }

    /// An event happens.
    pub(super) fn execute(&mut self, event: Event) {
        let Event { conn: id, channel, what } = event;
        let (name, size) = what.describe();
        self.trace.add(self.now, id, name, size);
        if channel.is_some()
            && let Some(conn) = self.conns.get_mut(&id)
        {
            conn.queued -= what.queued();
        }
        match what {
            What::Dial => self.dialled(id),
            What::Accepted => self.accepted(id),
            What::Refused(reason) => self.refused(id, reason),
            What::ToServer { head, data } => self.deliver_up(id, head, data),
            What::ToClient { head, data } => self.deliver_down(id, head, data),
            What::Place { transfer, tag, from, range } => {
                self.place(id, transfer, tag, &from, range);
            }
            What::Fetch { transfer, tag, offset, len } => {
                self.fetch(id, transfer, tag, offset, len);
            }
            What::TransferDone { transfer, result } => self.transfer_done(id, transfer, result),
            What::Export { chunk } => self.learn_chunk(id, chunk),
            What::Retire { chunk } => self.let_go(id, chunk),
            What::LetGo { chunk } => self.has_let_go(id, chunk),
            What::Patience { listener, retire } => self.out_of_patience(listener, retire),
            What::Read { batch, page, part } => self.read_step(id, batch, page, part),
            What::Copied { batch, page } => self.copied(id, batch, page),
            What::ClientLost(error) => self.client_lost(id, error),
            What::ServerLost(error) => self.server_lost(id, error),
            What::Call(call) => self.calls.push(call),
        }
    }
}

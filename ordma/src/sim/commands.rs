//! What a test can make happen in a world.

use super::conn::Conn;
use super::state::State;
use super::world::World;
use std::time::Duration;

/// Commands. Links are named by [`Link::id`](crate::Link::id); for one that is over nothing happens.
impl World {
    /// The links that servers have, oldest first.
    #[must_use]
    pub fn links(&self) -> Vec<u64> {
        self.core().with(|state| {
            let open = state.conns.iter().filter(|(_, conn)| conn.server_open());
            open.map(|(id, _)| *id).collect()
        })
    }

    /// Cuts a link. Both sides see it lost, each in its own time; what was under way arrives or
    /// does not, as the seed will have it.
    pub fn cut(&self, link: u64) {
        self.core().with(|state| state.cut(link));
    }

    /// Makes all that is sent over a link take so much longer.
    pub fn delay(&self, link: u64, extra: Duration) {
        self.with_conn(link, |conn| conn.extra = extra);
    }

    /// Refuses a link's one-sided reads, as a revoked key does, until the server allows them again.
    pub fn revoke(&self, link: u64) {
        self.core().with(|state| state.allow_reads(link, false));
    }

    /// Has a link's client ignore it when it is told to let go of a chunk.
    pub fn deafen(&self, link: u64) {
        self.with_conn(link, |conn| conn.client.deaf = true);
    }

    /// Lets nothing through, for this long, on all connections of the machine or listener `name`,
    /// new ones included. What is under way arrives later; links that are partitioned for longer
    /// than [`Faults::give_up`](super::Faults::give_up) are lost then.
    pub fn partition(&self, name: &str, time: Duration) {
        self.core().with(|state| {
            let heal = state.now + time;
            let until = state.partitions.entry(name.to_owned()).or_default();
            *until = heal.max(*until);
            let is_its = |conn: &Conn| conn.address == name || conn.client.name == name;
            let its = state.conns.iter().filter(|(_, conn)| is_its(conn));
            for id in its.map(|(id, _)| *id).collect::<Vec<_>>() {
                state.hold(id);
            }
        });
    }

    /// Lets nothing through on one link for this long; see [`partition`](Self::partition).
    pub fn partition_link(&self, link: u64, time: Duration) {
        self.core().with(|state| {
            let heal = state.now + time;
            if let Some(conn) = state.conns.get_mut(&link) {
                conn.partition = conn.partition.max(heal);
                state.hold(link);
            }
        });
    }

    /// Ends the server that listens at `address` in good order, as [`Listener::stop`] does: its
    /// service is told of the end of each link. No one can connect until someone listens there
    /// again.
    ///
    /// [`Listener::stop`]: crate::Listener::stop
    pub fn restart(&self, address: &str) {
        self.core().with(|state| state.end_host(address, false));
    }

    /// Ends the server that listens at `address` as a power failure does: its service is not called
    /// again and nothing it sends arrives; its transfers end with an error. Its tasks must not run
    /// on: remove its hook ([`remove_pump`](Self::remove_pump)) before the world goes on.
    pub fn crash(&self, address: &str) {
        self.core().with(|state| state.end_host(address, true));
    }

    fn with_conn(&self, link: u64, f: impl FnOnce(&mut Conn)) {
        self.core().with(|state| {
            if let Some(conn) = state.conns.get_mut(&link) {
                f(conn);
            }
        });
    }
}

impl State {
    fn cut(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(|conn| !conn.severed) {
            self.sever(id, "the link was cut");
        }
    }

    fn end_host(&mut self, address: &str, crashed: bool) {
        let host = self.hosts.iter().find(|(_, host)| host.address == address);
        if let Some(id) = host.map(|(id, _)| *id) {
            self.stop_listener(id, crashed);
        }
    }

    /// Holds up what is under way on a connection until its partition ends, in the same order; or
    /// gives the connection up if that is too long.
    fn hold(&mut self, id: u64) {
        let heal = self.heals_at(id);
        let its = self.queue.iter().filter(|(_, event)| event.conn == id);
        let keys: Vec<_> =
            its.filter(|(_, event)| event.channel.is_some()).map(|(key, _)| *key).collect();
        let mut last = [Duration::ZERO; 4];
        for key in keys {
            let delay = self.latency(id);
            let Some(event) = self.queue.remove(&key) else {
                continue;
            };
            let Some(channel) = event.channel else {
                continue;
            };
            let last = &mut last[channel as usize];
            *last = key.0.max(heal + delay).max(*last);
            let at = *last;
            self.schedule(at, event);
        }
        let give_up = self.now + self.faults.give_up;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.last = last;
        if heal > give_up && !conn.severed {
            let (client, server) = (self.latency(id), self.latency(id));
            self.sever_at(id, give_up + client, give_up + server, "no answer for too long");
        }
    }
}

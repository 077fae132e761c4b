//! The engine `sim`: everything in one process, in virtual time, with faults drawn from a seed.
//!
//! A [`World`] holds the clock, the network and what is under way. It has no threads: whoever waits
//! ([`Endpoint::drive`], [`Connector::connect`], [`World::advance`] and its like) makes the world
//! go on, event by event, until what is waited for is there or virtual time is up. All services and
//! receivers are called from there, one at a time, whichever endpoint is driven; so a client hears
//! from the server also while another client waits.
//!
//! The same seed and the same calls make the same events at the same times
//! ([`World::trace_hash`]). Several threads may use a world; then who comes first is not the
//! seed's choice, and a wait of one thread does not wait for what another is computing: time goes
//! on as fast as the pump turns.
//!
//! | module | what it does |
//! |---|---|
//! | `world`, `commands` | what a test sees, and what it can make happen |
//! | `faults` | what may go wrong by chance |
//! | `core`, `state` | the pump; the clock and the queue of events |
//! | `conn`, `end` | one connection, from dialling to the end of both sides |
//! | `read` | one-sided reads |
//! | `transfer` | direct transfers |
//! | `listener`, `link`, `endpoint` | the traits of [`crate::engine`] |
//!
//! ```
//! use ordma::Engine;
//! use ordma::sim::{Sim, World};
//!
//! let world = World::new(7);
//! let engine = Sim::new(&world);
//! assert!(engine.connector("nobody").target() == "nobody");
//! world.advance(std::time::Duration::from_secs(1));
//! assert_eq!(world.elapsed().as_secs(), 1);
//! ```
//!
//! [`Endpoint::drive`]: crate::Endpoint::drive
//! [`Connector::connect`]: crate::Connector::connect

mod commands;
mod conn;
mod core;
mod end;
mod endpoint;
mod event;
mod faults;
mod link;
mod listener;
mod progress;
mod read;
mod state;
mod trace;
mod transfer;
mod world;

pub use faults::Faults;
pub use world::{Outstanding, PumpId, World};

use crate::arena::Geometry;
use crate::stream::frame::Limits;
use crate::{Arena, Capabilities, Connector, Engine, LinkError, Listener, Service};
use endpoint::SimConnector;
use listener::SimListener;
use std::sync::Arc;

/// The engine: a machine's place in a [`World`].
#[derive(Clone, Debug)]
pub struct Sim {
    world: World,
    name: String,
}

impl Sim {
    /// The engine of a world, for servers and for clients that need no names.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self::named(world, "client")
    }

    /// The engine on the machine `name`, by which [`World::partition`] knows its connections.
    #[must_use]
    pub fn named(world: &World, name: &str) -> Self {
        Self { world: world.clone(), name: name.to_owned() }
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }
}

impl Engine for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        let core = self.world.core();
        let id = core.with(|state| state.listen(address, service, &arena))?;
        Ok(Arc::new(SimListener::new(core, id, address)))
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        Arc::new(SimConnector::new(self.world.core(), &self.name, address))
    }
}

fn capabilities(geometry: Option<Geometry>) -> Capabilities {
    Capabilities {
        engine: "sim",
        geometry,
        local_reads: false,
        read_batch: 64,
        tags: false,
        places_slots: true,
    }
}

/// Most bytes of a message's head.
pub const MOST_HEAD: usize = (64 << 10) + crate::secure::OVERHEAD;

/// Most bytes of a message's data.
pub const MOST_DATA: usize = 2 << 20;

/// What passes here must pass everywhere.
const LIMITS: Limits = Limits { head: MOST_HEAD, data: MOST_DATA };

/// Set in the ids of this engine's links, so that they are those of no other engine's. Ids are the
/// same in each run of a seed; those of two worlds are not distinct.
const LINKS: u64 = 1 << 62;

/// The id of the link that a world gave this number.
fn link_id(number: u64) -> u64 {
    LINKS | number
}

/// A link's number, for people.
fn number(id: u64) -> u64 {
    id & !LINKS
}

/// What the server calls a client.
fn client_name(name: &str, id: u64) -> String {
    format!("{name}#{}", number(id))
}

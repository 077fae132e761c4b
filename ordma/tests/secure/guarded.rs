//! An engine behind a gate, whose connectors do the handshake.

use crate::harness::Row;
use dafs_keys::{Identity, Protection, PublicKey};
use ordma::secure::{Gate, Policy, SecureConnector, Settings};
use ordma::{Arena, Connector, Endpoint, Engine, LinkError, Listener, Receiver, Service};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The engine of a row, guarded.
#[derive(Debug)]
pub struct Guarded {
    pub inner: Row,
    pub server: Arc<Identity>,
    pub client: Arc<Identity>,
    gate: OnceLock<Arc<Gate>>,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.engine.fmt(f)
    }
}

pub fn identity() -> Arc<Identity> {
    Arc::new(Identity::generate().unwrap())
}

/// Refuses all but one client.
pub fn only(client: &Identity) -> Arc<dyn Policy> {
    let known = client.public();
    Arc::new(move |client: &PublicKey| {
        let authorized = *client == known;
        authorized.then_some(()).ok_or_else(|| format!("{client} is not in authorized_clients"))
    })
}

impl Guarded {
    pub fn new(inner: Row) -> Arc<Self> {
        Arc::new(Self { inner, server: identity(), client: identity(), gate: OnceLock::new() })
    }

    pub fn row(self: &Arc<Self>) -> Row {
        Row {
            engine: self.clone(),
            address: self.inner.address.clone(),
            directory: self.inner.directory.clone(),
            level: self.inner.level,
        }
    }

    pub fn gate(&self) -> &Gate {
        self.gate.get().unwrap()
    }

    /// A connector of this client, which takes the server for the one with that key.
    pub fn connector_as(
        &self,
        client: &Arc<Identity>,
        server: PublicKey,
        address: &str,
    ) -> SecureConnector {
        let inner = self.inner.engine.connector(address);
        SecureConnector::new(inner, Arc::clone(client), server, Protection::Sealed)
    }
}

impl Engine for Guarded {
    fn name(&self) -> &'static str {
        self.inner.engine.name()
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        let clock = Box::new(Instant::now);
        let (identity, policy) = (Arc::clone(&self.server), only(&self.client));
        let gate = Gate::new(service, identity, policy, Settings::default(), clock);
        let gate = self.gate.get_or_init(|| gate);
        self.inner.engine.listen(address, gate.clone(), arena)
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        Arc::new(Patient(self.connector_as(&self.client, self.server.public(), address)))
    }
}

/// Waits longer: virtual time does not stand still while one of several threads is held up between
/// looking at the clock and sending.
#[derive(Debug)]
struct Patient(SecureConnector);

impl Connector for Patient {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        self.0.connect(receiver, timeout * 1000)
    }

    fn target(&self) -> String {
        self.0.target()
    }

    fn now(&self) -> Instant {
        self.0.now()
    }
}

//! The handshake of connections, which `ordma::secure` makes: the only place that names it.

use dafs_keys::{Identity, Protection, PublicKey};
use ordma::{Connector, Endpoint, LinkError, Receiver};
use std::sync::Arc;
use std::time::Duration;

/// A connector whose connections begin with a handshake with the server that has this key.
pub(crate) fn secure(
    inner: Arc<dyn Connector>,
    _identity: Arc<Identity>,
    _server: PublicKey,
    _least: Protection,
) -> Arc<dyn Connector> {
    Arc::new(NotBuilt(inner))
}

/// Asks a server for its public key.
pub(crate) fn ask_key(
    connector: &dyn Connector,
    _timeout: Duration,
) -> Result<PublicKey, LinkError> {
    Err(not_built(connector))
}

#[derive(Debug)]
struct NotBuilt(Arc<dyn Connector>);

fn not_built(connector: &dyn Connector) -> LinkError {
    LinkError::Connect { target: connector.target(), reason: "not built yet".into() }
}

impl Connector for NotBuilt {
    fn connect(&self, _: Arc<dyn Receiver>, _: Duration) -> Result<Arc<dyn Endpoint>, LinkError> {
        Err(not_built(self))
    }

    fn target(&self) -> String {
        self.0.target()
    }
}

//! The handshake of connections, which `ordma::secure` makes: the only place that names it.

use dafs_keys::{Identity, Protection, PublicKey};
use ordma::Connector;
use ordma::secure::SecureConnector;
use std::sync::Arc;

pub(crate) use ordma::secure::ask_key;

/// A connector whose connections begin with a handshake with the server that has this key.
pub(crate) fn secure(
    inner: Arc<dyn Connector>,
    identity: Arc<Identity>,
    server: PublicKey,
    least: Protection,
) -> Arc<dyn Connector> {
    Arc::new(SecureConnector::new(inner, identity, server, least))
}

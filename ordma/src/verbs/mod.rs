//! The engine `verbs`: RDMA NICs, and soft-RoCE.

use crate::arena::Arena;
use crate::engine::{Connector, Engine, LinkError, Listener, Service};
use std::sync::Arc;

pub use crate::stream::Settings;

/// The engine. Addresses are `host:port`, of an address that belongs to an RDMA device's port; port
/// 0 listens on any free one.
#[derive(Clone, Debug, Default)]
pub struct Verbs {
    settings: Settings,
}

impl Verbs {
    /// The engine with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Engine for Verbs {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn listen(
        &self,
        address: &str,
        _service: Arc<dyn Service>,
        _arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        Err(LinkError::Listen { address: address.to_owned(), reason: "under way".to_owned() })
    }

    fn connector(&self, _address: &str) -> Arc<dyn Connector> {
        crate::tcp::Tcp::new(self.settings.clone()).connector("127.0.0.1:1")
    }
}

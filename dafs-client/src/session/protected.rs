//! How what comes over a connection is protected.

use dafs_keys::{PageTagKey, Protection, PublicKey};
use ordma::{Endpoint, Established};
use std::sync::Arc;

/// The level that the server granted, and what the handshake showed of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protected {
    pub(crate) level: Protection,
    /// None where there was no handshake.
    pub(crate) channel: Option<Arc<Established>>,
}

impl Protected {
    /// Looks at the level that was granted on a connection, with `least` asked for. `before` is how
    /// the connections of this client were protected until now.
    ///
    /// # Errors
    /// Why nothing may be done over this connection: there is less than was asked for or than there
    /// was before, or the server is another one.
    pub(super) fn granted(
        number: u32,
        least: Protection,
        endpoint: &dyn Endpoint,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let Some(level) = Protection::from_wire(number) else {
            return Err(format!("the unknown protection level {number}"));
        };
        if level < least {
            return Err(format!("protection level {level} where at least {least} was asked for"));
        }
        if least == Protection::None && level != least {
            return Err(format!("protection level {level} where none was asked for"));
        }
        let channel = endpoint.channel();
        if level != Protection::None && channel.is_none() {
            return Err(format!("protection level {level} on a connection without handshake"));
        }
        let granted = Self { level, channel: channel.cloned() };
        if let Some(before) = before {
            if level < before.level {
                let was = before.level;
                return Err(format!("protection level {level} where it was {was}"));
            }
            if granted.server_key() != before.server_key() {
                return Err("another key than the server had before".into());
            }
        }
        Ok(granted)
    }

    /// The server's key, where there was a handshake.
    pub(crate) fn server_key(&self) -> Option<PublicKey> {
        self.channel.as_ref().map(|channel| channel.peer)
    }

    /// At `keyed`, what checks pages in the replies that come over this connection and no other.
    pub(crate) fn page_tags(&self) -> Option<&PageTagKey> {
        let channel = self.channel.as_ref().filter(|_| self.level == Protection::Keyed);
        channel.map(|channel| channel.page_tags())
    }
}

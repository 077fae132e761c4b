//! DISCONNECT: ends the session.

use super::{OpContext, OpError};
use dafs_proto::{DisconnectReply, DisconnectRequest};

/// Serves DISCONNECT: closes what the session has open. The connection may ask for a new session.
///
/// # Errors
/// None.
pub async fn disconnect(
    cx: &OpContext,
    _request: DisconnectRequest,
) -> Result<DisconnectReply, OpError> {
    tracing::info!(session = ?cx.session, "disconnected");
    cx.server.end_session(&cx.session, true);
    Ok(DisconnectReply {})
}

//! DISCONNECT: ends the session.

use super::{OpContext, OpError};
use dafs_proto::{DisconnectReply, DisconnectRequest};
use ordma::complaints;

/// Serves DISCONNECT: closes what the session has open. The connection may ask for a new session.
///
/// # Errors
/// None.
pub async fn disconnect(
    cx: &OpContext,
    _request: DisconnectRequest,
) -> Result<DisconnectReply, OpError> {
    if let Some(untold) = complaints::take("disconnected", &cx.link.peer()) {
        tracing::info!(session = ?cx.session, untold, "disconnected");
    }
    cx.server.end_session(&cx.session, true);
    Ok(DisconnectReply {})
}

//! RENEW: renews the lease and takes a report of heat.

use super::{OpContext, OpError};
use dafs_proto::{RenewReply, RenewRequest, Status, WireHeat};

/// Pages that one report can warm.
const HEAT_SHARE: usize = 1024;

/// Serves RENEW. The lease was renewed when the message came, as by any message.
///
/// # Errors
/// [`Status::BadMessage`] where the list of heat is malformed.
pub async fn renew(cx: &OpContext, request: RenewRequest) -> Result<RenewReply, OpError> {
    let heat = WireHeat::iter(&request.heat)
        .map_err(|error| OpError::new(Status::BadMessage, format!("heat: {error}")))?;
    if heat.len() > 0 && cx.session.take_heat(cx.server.now()) {
        let report: Vec<WireHeat> = heat.take(HEAT_SHARE).collect();
        cx.server.cache().heat(HEAT_SHARE, &report);
    }
    Ok(RenewReply {})
}

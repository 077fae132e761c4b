//! RMDIR: removes an empty directory.

use super::{OpContext, OpError};
use dafs_proto::{RmdirReply, RmdirRequest};

/// Serves RMDIR.
///
/// # Errors
/// The store's; nothing was removed then.
pub async fn rmdir(cx: &OpContext, request: RmdirRequest) -> Result<RmdirReply, OpError> {
    cx.check_writable()?;
    let directory = cx.handle(&request.directory)?;
    cx.store(move |store, who| store.rmdir(who, &directory, &request.name)).await?;
    Ok(RmdirReply {})
}

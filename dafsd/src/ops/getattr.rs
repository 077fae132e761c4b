//! GETATTR: attributes of a file.

use super::{OpContext, OpError, overlaid};
use dafs_proto::{GetAttrReply, GetAttrRequest};

/// Serves GETATTR. What is not on disk yet counts.
///
/// # Errors
/// The store's.
pub async fn getattr(cx: &OpContext, request: GetAttrRequest) -> Result<GetAttrReply, OpError> {
    let handle = cx.handle(&request.handle)?;
    let since = cx.server.cache().moment();
    let node = cx.store(move |store, who| store.node(who, &handle)).await?;
    Ok(GetAttrReply { attr: Some(overlaid(cx, since, node).await?) })
}

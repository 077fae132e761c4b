//! GETATTR: attributes of a file.

use super::{OpContext, OpError, overlaid};
use crate::store::Handle;
use dafs_proto::{GetAttrReply, GetAttrRequest};

/// Serves GETATTR. What is not on disk yet counts.
///
/// # Errors
/// The store's.
pub async fn getattr(cx: &OpContext, request: GetAttrRequest) -> Result<GetAttrReply, OpError> {
    let handle = Handle::from_wire(&request.handle)?;
    let node = cx.store(move |store| store.node(&handle)).await?;
    Ok(GetAttrReply { attr: Some(overlaid(cx, node)) })
}

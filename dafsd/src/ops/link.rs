//! LINK: gives a file another name.

use super::{OpContext, OpError, overlaid};
use crate::store::Handle;
use dafs_proto::{LinkReply, LinkRequest};

/// Serves LINK.
///
/// # Errors
/// The store's; nothing was linked then.
pub async fn link(cx: &OpContext, request: LinkRequest) -> Result<LinkReply, OpError> {
    cx.check_writable()?;
    let handle = Handle::from_wire(&request.handle)?;
    let directory = Handle::from_wire(&request.directory)?;
    let node = cx.store(move |store| store.link(&handle, &directory, &request.name)).await?;
    if let Some(file) = cx.server.cache().find(&node.identity) {
        file.touched().await?;
    }
    Ok(LinkReply { attr: Some(overlaid(cx, node)) })
}

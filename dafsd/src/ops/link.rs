//! LINK: gives a file another name.

use super::{OpContext, OpError, overlaid};
use dafs_proto::{LinkReply, LinkRequest};

/// Serves LINK.
///
/// # Errors
/// The store's; nothing was linked then.
pub async fn link(cx: &OpContext, request: LinkRequest) -> Result<LinkReply, OpError> {
    cx.check_writable()?;
    let handle = cx.handle(&request.handle)?;
    let directory = cx.handle(&request.directory)?;
    let looked_at = handle.clone();
    let before = cx.store(move |store, who| store.node(who, &looked_at)).await?;
    if let Some(file) = cx.server.cache().find(&before.identity) {
        file.revalidate_by(&before.attr).await?;
    }
    let since = cx.server.cache().moment();
    let node =
        cx.store(move |store, who| store.link(who, &handle, &directory, &request.name)).await?;
    if let Some(file) = cx.server.cache().find(&node.identity) {
        file.touched(false).await;
    }
    Ok(LinkReply { attr: Some(overlaid(cx, since, node).await?) })
}

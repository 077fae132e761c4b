//! SETATTR: sets size, owner, mode and times.

use super::{OpContext, OpError, overlaid, stability};
use crate::store::{Access, Credential, Store};
use dafs_proto::{Attr, Extent, SetAttr, SetAttrReply, SetAttrRequest};
use std::sync::Arc;

/// Serves SETATTR. Size, owner, mode and times are set in this order; where one fails, those before
/// it stay set.
///
/// # Errors
/// The store's, and the page cache's where the size changes.
pub async fn setattr(cx: &OpContext, request: SetAttrRequest) -> Result<SetAttrReply, OpError> {
    cx.check_writable()?;
    let handle = cx.handle(&request.handle)?;
    let attr = request.attr.unwrap_or_default();
    let resend = stability::resend(request.resend.as_ref());
    let mut reply = SetAttrReply::default();
    if let Some(size) = attr.size {
        let (handle, cache) = (handle.clone(), Arc::clone(cx.server.cache()));
        let export = Arc::clone(cx.export());
        // As a file that is open already: it may have been made with a mode that forbids writing.
        let open = move |store: &dyn Store, who: &Credential| {
            let file = store.reopen(who, &handle, Access::Write)?;
            Ok(cache.open(file, &export.name, export.protection)?.hold())
        };
        let file = cx.store(open).await?;
        let resend = resend.as_ref().map(|resend| (resend, request.from));
        let (changed, from) = file.set_size_for(cx.session.writer(), size, resend).await?;
        reply.change = Some(stability::change(&changed));
        reply.from = from;
        reply.identity = file.identity().to_wire();
        reply.refused = !changed.refused.is_empty();
        reply.skipped = !reply.refused && !changed.skipped.is_empty();
    } else if resend.is_some() {
        return Err(OpError::invalid("send attributes again, other than the size"));
    }
    let node = {
        let handle = handle.clone();
        cx.store(move |store, who| store.node(who, &handle)).await?
    };
    let cached = cx.server.cache().find(&node.identity);
    let times = sets_times(&attr);
    if let Some(file) = &cached {
        // Someone else's change on the disk would not be seen behind ours.
        file.revalidate_by(&node.attr).await?;
        // A time that dirty pages bring to the disk later would undo the one set now.
        if times && file.has_unwritten_time() {
            file.commit(Extent::default()).await?;
        }
    }
    let since = cx.server.cache().moment();
    let (before, set) = {
        // Of two changes side by side, each has to see what the other one has given or taken away.
        let _alone = cx.server.attributes().lock(node.identity).await;
        let handle = handle.clone();
        cx.store(move |store, who| {
            let before = store.node(who, &handle)?;
            Ok((before.attr, store.set_attr(who, &handle, &attr)))
        })
        .await?
    };
    let node = match set {
        Ok(node) => node,
        Err(error) => {
            // Some of it may have been set.
            if let Some(file) = &cached {
                file.touched(times).await;
            }
            if sets_rights(&attr)
                && let Some(file) = cx.server.cache().find(&node.identity)
            {
                file.new_epoch().await?;
            }
            return Err(error.into());
        }
    };
    // Looked for once more: who opened it meanwhile may have been found to have the right.
    if let Some(file) = cx.server.cache().find(&node.identity) {
        file.touched(times).await;
        if takes_reading_away(&before, &node.attr) {
            // Who may no longer read gets no key from now on, and what is stored from now on is
            // under another one.
            file.new_epoch().await?;
        }
    }
    reply.attr = Some(overlaid(cx, since, node).await?);
    Ok(reply)
}

/// Whether someone who could read before cannot after.
fn takes_reading_away(before: &Attr, after: &Attr) -> bool {
    const READ: u32 = 0o444;
    let owners = |attr: &Attr| (attr.uid, attr.gid);
    owners(before) != owners(after) || before.mode & READ & !after.mode != 0
}

fn sets_rights(attr: &SetAttr) -> bool {
    attr.mode.is_some() || attr.uid.is_some() || attr.gid.is_some()
}

fn sets_times(attr: &SetAttr) -> bool {
    attr.mtime.is_some() || attr.mtime_now
}

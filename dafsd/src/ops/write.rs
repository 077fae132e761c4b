//! WRITE: changes pages, with data that came inline or is fetched from the client's memory.

use super::read::{MAX_WANT_REFS, check_extents, one_buffer};
use super::{OpContext, OpError, Open, Reply, stability};
use dafs_proto::{Extent, Placement, Stability, Status, WriteReply, WriteRequest};

/// Takes set-id bits away that were set since the file was opened.
async fn drop_set_id(cx: &OpContext, open: &Open) -> Result<(), OpError> {
    if !cx.export().store.may_have_set_id(&open.file.identity()) {
        return Ok(());
    }
    let handle = open.handle.clone();
    if cx.store(move |store, who| store.drop_set_id(who, &handle)).await? {
        // The change of the mode must not look like someone else's.
        open.file.touched(false).await;
    }
    Ok(())
}

/// Serves WRITE. With a stability other than `Unstable` the data is on disk before the reply.
///
/// # Errors
/// [`Status::BadOpen`], or the open may not write; [`Status::MessageTooBig`] beyond the limits; a
/// failed transfer, before anything was changed; the page cache's, after which part of the data may
/// have been written.
pub async fn write(cx: &OpContext, request: WriteRequest) -> Result<Reply<WriteReply>, OpError> {
    let open = cx.open(request.open)?;
    if !open.write {
        return Err(OpError::new(
            Status::BadOpen,
            "write to a file that was not opened for writing",
        ));
    }
    check_extents(request.extents.len())?;
    let total = request.extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.length));
    let limits = cx.server.limits();
    let direct = request.placement() == Placement::Direct;
    let limit = if direct { limits.max_transfer } else { limits.max_inline };
    let Some(total) = total.filter(|total| *total <= u64::from(limit)) else {
        let what = format!("write more than {limit} bytes in one request");
        return Err(OpError::new(Status::MessageTooBig, what));
    };
    // Before: part of a write that fails may be done.
    drop_set_id(cx, &open).await?;
    stability::check_share(cx).await?;
    let resend = stability::resend(request.resend.as_ref());
    let (writer, extents) = (cx.session.writer(), &request.extents);
    let file = &open.file;
    let changed = if direct && total > 0 {
        let len = usize::try_from(total).unwrap_or(usize::MAX);
        let from = one_buffer(&request.buffers, len)?;
        // Bounds the memory of all direct transfers.
        let permit = cx.server.fetches().acquire(cx.session.asking(), cx.server.now()).await?;
        let mut buffer = cx.server.buffers().take();
        buffer.resize(len, 0);
        let fetched = permit.until(&cx.link, cx.link.read_from(from.tag, 0, buffer)).await;
        let mut buffer = fetched.map_err(|error| OpError::transfer(&error))?;
        cx.link
            .open_data(&request.seal, &mut buffer)
            .map_err(|error| OpError::new(Status::Transfer, error.to_string()))?;
        let written = file.write_for(writer, extents, &buffer, resend.as_ref()).await;
        cx.server.buffers().give(buffer);
        drop(permit);
        written?
    } else {
        file.write_for(writer, extents, &cx.data, resend.as_ref()).await?
    };
    let mut told = Vec::new();
    if request.stability() != Stability::Unstable {
        for extent in request.extents.iter().filter(|extent| extent.length > 0) {
            let committed = file.commit_for(writer.owner.number(), *extent).await?;
            told.push(stability::stable(cx, file, committed).1);
        }
    }
    let stable = stability::keep_share(cx, &mut told).await;
    cx.session.will_tell(cx.slot, told);
    let mut refs = Vec::new();
    let want = u64::from(request.want_refs.min(MAX_WANT_REFS));
    if let (Some(Extent { offset, length }), 1..) = (request.extents.first(), want) {
        let page = cx.server.limits().page_size as u64;
        let pages = (offset + length).div_ceil(page) - offset / page;
        open.file.refs(offset / page, pages.min(want), &mut refs);
    }
    let body = WriteReply {
        count: total,
        stability: request.stability,
        file: open.file.number(),
        refs,
        size: open.file.size(),
        change: Some(stability::change(&changed)),
        skipped: stability::extents(&changed.skipped),
        refused: stability::extents(&changed.refused),
        stable,
    };
    Ok(body.into())
}

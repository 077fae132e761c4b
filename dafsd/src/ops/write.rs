//! WRITE: changes pages, with data that came inline or is fetched from the client's memory.

use super::read::{MAX_WANT_REFS, check_extents, one_buffer};
use super::{OpContext, OpError, Reply};
use dafs_proto::{Extent, Placement, Stability, Status, WriteReply, WriteRequest};

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
    // Bounds the memory of all direct transfers.
    let _permit = if direct { Some(cx.server.transfers().acquire().await) } else { None };
    if direct && total > 0 {
        let len = usize::try_from(total).unwrap_or(usize::MAX);
        let from = one_buffer(&request.buffers, len)?;
        let mut buffer = cx.server.buffers().take();
        buffer.resize(len, 0);
        let fetched = cx.link.read_from(from.tag, 0, buffer).await;
        let mut buffer = fetched.map_err(|error| OpError::transfer(&error))?;
        cx.link
            .open_data(&request.seal, &mut buffer)
            .map_err(|error| OpError::new(Status::Transfer, error.to_string()))?;
        open.file.write(&request.extents, &buffer).await?;
        cx.server.buffers().give(buffer);
    } else {
        open.file.write(&request.extents, &cx.data).await?;
    }
    if request.stability() != Stability::Unstable {
        for extent in &request.extents {
            open.file.commit(*extent).await?;
        }
    }
    let mut refs = Vec::new();
    let want = u64::from(request.want_refs.min(MAX_WANT_REFS));
    if let (Some(Extent { offset, length }), 1..) = (request.extents.first(), want) {
        let page = cx.server.limits().page_size as u64;
        let pages = (offset + length).div_ceil(page) - offset / page;
        open.file.refs(offset / page, pages.min(want), &mut refs);
    }
    let body = WriteReply {
        count: total,
        verifier: open.file.verifier(),
        stability: request.stability,
        file: open.file.number(),
        refs,
        size: open.file.size(),
    };
    Ok(body.into())
}

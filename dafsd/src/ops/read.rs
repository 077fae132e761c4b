//! READ: delivers pages with their footers, inline or directly into the client's memory.

use super::{OpContext, OpError, Reply};
use dafs_proto::{Buffer, Placement, ReadReply, ReadRequest, Status};

/// Most extents of one READ or WRITE.
const MAX_EXTENTS: usize = 1024;
/// Most references of neighbours that a reply carries besides those of its own pages.
pub(super) const MAX_WANT_REFS: u32 = 1024;

/// Serves READ.
///
/// # Errors
/// [`Status::BadOpen`] or [`Status::Access`], where the open may not read; [`Status::MessageTooBig`] where the pages do not
/// fit the placement's limit or the client's buffer; the page cache's; a failed transfer.
pub async fn read(cx: &OpContext, request: ReadRequest) -> Result<Reply<ReadReply>, OpError> {
    check_extents(request.extents.len())?;
    let direct = request.placement() == Placement::Direct;
    let limits = cx.server.limits();
    let limit = if direct { limits.max_transfer } else { limits.max_inline };
    let want_refs = request.want_refs.min(MAX_WANT_REFS);
    // Bounds the memory of all direct transfers.
    let _permit = if direct { Some(cx.server.transfers().acquire().await) } else { None };
    let mut buffer = if direct { cx.server.buffers().take() } else { Vec::new() };
    let (open, pages, key) = loop {
        let open = cx.reader(request.open).await?;
        let pages = open.file.read(&request.extents, limit as usize, want_refs, buffer).await?;
        match cx.key(&open, request.key_epoch) {
            Ok(key) if pages.epoch.is_none_or(|epoch| open.is_checked_in(epoch)) => {
                break (open, pages, key);
            }
            _ => buffer = pages.data,
        }
    };
    let (first_tag, tags) = cx.tag_pages(&pages.data);
    let body = ReadReply {
        file: open.file.number(),
        counts: pages.counts,
        refs: pages.refs,
        size: pages.size,
        key,
        tags,
        first_tag,
    };
    if !direct {
        return Ok(Reply { body, data: pages.data });
    }
    let mut buffer = pages.data;
    if !buffer.is_empty() {
        let to = one_buffer(&request.buffers, buffer.len())?;
        let placed = cx.link.write_to(to.tag, buffer).await;
        buffer = placed.map_err(|error| OpError::transfer(&error))?;
    }
    cx.server.buffers().give(buffer);
    Ok(Reply { body, data: Vec::new() })
}

pub(super) fn check_extents(count: usize) -> Result<(), OpError> {
    if count > MAX_EXTENTS {
        let what = format!("{count} extents in one request, where {MAX_EXTENTS} are allowed");
        return Err(OpError::invalid(what));
    }
    Ok(())
}

/// The buffer of a direct transfer of `len` bytes.
pub(super) fn one_buffer(buffers: &[Buffer], len: usize) -> Result<&Buffer, OpError> {
    match buffers {
        [buffer] if buffer.length >= len as u64 => Ok(buffer),
        [buffer] => {
            let what = format!("a buffer of {} bytes for {len} bytes of data", buffer.length);
            Err(OpError::new(Status::MessageTooBig, what))
        }
        _ => Err(OpError::invalid(format!("{} buffers, where one is expected", buffers.len()))),
    }
}

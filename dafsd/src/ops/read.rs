//! READ: delivers pages with their footers, inline or directly into the client's memory.

use super::{OpContext, OpError, Open, Reply};
use crate::cache::{Delivery, Pages};
use crate::transfers::Permit;
use dafs_proto::{Buffer, FileKey, Placement, ReadReply, ReadRequest, Status};
use ordma::{FOOTER_LEN, Slot, Tag, Transfer};
use std::sync::Arc;

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
    match request.placement() {
        Placement::Inline => read_inline(cx, &request).await,
        Placement::Direct => {
            // Bounds the memory of all direct transfers: of slots, too, that cannot go at once.
            let permit = cx.server.placings().acquire(cx.session.asking(), cx.server.now()).await?;
            // A tag is of the bytes that the client gets, which nobody knows before.
            let whole = request.whole || request.steady || cx.is_tagged();
            if !whole && cx.link.capabilities().places_slots {
                place_slots(cx, &request, &permit).await
            } else {
                place_copies(cx, &request, &permit).await
            }
        }
    }
}

async fn read_inline(cx: &OpContext, request: &ReadRequest) -> Result<Reply<ReadReply>, OpError> {
    let limit = cx.server.limits().max_inline;
    let found = find(cx, request, limit, Vec::new()).await?;
    let (first_tag, tags) = cx.tag_pages(&found.pages.data);
    let (body, data) = found.reply();
    Ok(Reply { body: ReadReply { first_tag, tags, ..body }, data })
}

/// Places the pages from where they lie. They may change meanwhile, or their slots be killed: the
/// client can tell.
async fn place_slots(
    cx: &OpContext,
    request: &ReadRequest,
    permit: &Permit,
) -> Result<Reply<ReadReply>, OpError> {
    let limit = cx.server.limits().max_transfer;
    let (body, slots) = find(cx, request, limit, Vec::<Slot>::new()).await?.reply();
    let len = slots.len() * (FOOTER_LEN + cx.server.limits().page_size);
    if let Some(tag) = target(&request.buffers, len)? {
        placed(cx, permit, cx.link.place_slots(tag, &slots)).await?;
    }
    Ok(Reply::from(ReadReply { from_slots: true, ..body }))
}

async fn place_copies(
    cx: &OpContext,
    request: &ReadRequest,
    permit: &Permit,
) -> Result<Reply<ReadReply>, OpError> {
    let limit = cx.server.limits().max_transfer;
    let found = find(cx, request, limit, cx.server.buffers().take()).await?;
    let (first_tag, tags) = cx.tag_pages(&found.pages.data);
    let (body, data) = found.reply();
    let buffer = match target(&request.buffers, data.len())? {
        Some(tag) => placed(cx, permit, cx.link.write_to(tag, data)).await?,
        None => data,
    };
    cx.server.buffers().give(buffer);
    Ok(Reply::from(ReadReply { first_tag, tags, ..body }))
}

/// What a reply is made of.
struct Found<T> {
    open: Arc<Open>,
    pages: Pages<T>,
    key: Option<FileKey>,
}

impl<T> Found<T> {
    fn reply(self) -> (ReadReply, T) {
        let Pages { counts, data, refs, size, .. } = self.pages;
        let file = self.open.file.number();
        (ReadReply { file, counts, refs, size, key: self.key, ..ReadReply::default() }, data)
    }
}

/// Finds the pages that are asked for, all under a key that the client has or gets.
async fn find<T: Delivery>(
    cx: &OpContext,
    request: &ReadRequest,
    limit: u32,
    mut data: T,
) -> Result<Found<T>, OpError> {
    let want_refs = request.want_refs.min(MAX_WANT_REFS);
    loop {
        let open = cx.reader(request.open).await?;
        let (extents, limit) = (&request.extents[..], limit as usize);
        let pages = match extents {
            [extent] if request.steady => {
                open.file.read_steady(*extent, limit, want_refs, data).await?
            }
            _ if request.steady => {
                let what =
                    format!("a steady read of {} extents, where 1 is allowed", extents.len());
                return Err(OpError::invalid(what));
            }
            _ => open.file.read(extents, limit, want_refs, data).await?,
        };
        match cx.key(&open, request.key_epoch) {
            Ok(key) if pages.epoch.is_none_or(|epoch| open.is_checked_in(epoch)) => {
                return Ok(Found { open, pages, key });
            }
            _ => data = pages.data,
        }
    }
}

/// Where `len` bytes are to be placed, if there are any.
fn target(buffers: &[Buffer], len: usize) -> Result<Option<Tag>, OpError> {
    if len == 0 { Ok(None) } else { one_buffer(buffers, len).map(|buffer| Some(buffer.tag)) }
}

/// The buffer that comes back when a transfer is done.
async fn placed(cx: &OpContext, permit: &Permit, transfer: Transfer) -> Result<Vec<u8>, OpError> {
    permit.until(&cx.link, transfer).await.map_err(|error| OpError::transfer(&error))
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

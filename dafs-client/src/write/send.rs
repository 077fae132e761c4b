//! One WRITE, or the change of a size: sent until it is known what became of it.

use super::{Receipt, install, part};
use crate::error::{Error, Result};
use crate::file::{Came, OpenFile};
use crate::files::{FileState, Turn};
use crate::options::Stability;
use crate::session::outstanding::{Direct, EncodeDirect, Reply, Use};
use crate::session::rpc::{Body, CallError, Lane, Request};
use crate::session::{Grant, Session};
use dafs_proto::{
    Attr, Buffer, Change, Extent, Op, Placement, Resend, SetAttr, SetAttrReply, SetAttrRequest,
    Stable, WriteReply, WriteRequest, encode_message,
};
use ordma::Segment;
use std::ops::Range;
use std::sync::Arc;

/// How something is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) lane: Lane,
    pub(super) stability: Stability,
    /// It was acknowledged before.
    pub(super) resend: Option<Resend>,
}

/// What a WRITE did.
pub(super) struct Written {
    pub(super) count: usize,
    pub(super) stability: dafs_proto::Stability,
    pub(super) receipt: Receipt,
    /// Of what was sent again: what is stable already.
    pub(super) skipped: Vec<Range<u64>>,
    /// Of what was sent again: what another client may have changed.
    pub(super) refused: Vec<Range<u64>>,
}

/// Writes what is at most as long as a transfer: with one WRITE, or, where the data cannot be fetched
/// directly, with several that bring it along. Tells what each has done.
pub(super) async fn deliver(
    file: &Arc<OpenFile>,
    wish: Wish,
    from: &Segment,
    offset: u64,
    mut done: impl FnMut(&Segment, u64, Written),
) -> Result<()> {
    let session = file.session();
    let grant = session.grant()?;
    let small = from.len <= session.options.inline_write.min(grant.max_inline);
    // Whole pages, where it takes several.
    let inline = grant.max_inline / grant.page_size * grant.page_size;
    if !small && (inline == 0 || session.transfers_directly()) {
        match send(file, wish, from, offset, false).await {
            Ok(written) => {
                done(from, offset, written);
                return Ok(());
            }
            Err(error) if inline > 0 && session.only_transfer_failed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let most = if small { from.len } else { inline };
    let mut at = 0;
    while at < from.len {
        let part = part(from, at, most.min(from.len - at));
        let offset = offset + at as u64;
        let written = send(file, wish, &part, offset, true).await?;
        at += written.count;
        done(&part, offset, written);
    }
    Ok(())
}

/// What is said of a change that was sent in a session that was lost before the reply came.
/// `seen`: the number of the last change of the file that was acknowledged before that, in that boot.
pub(super) fn unanswered(before: &Grant, seen: u64) -> Resend {
    Resend { boot: before.boot, number: 0, ctime: None, seen }
}

/// Sends one WRITE, at most as long as a transfer may be.
async fn send(
    file: &Arc<OpenFile>,
    wish: Wish,
    from: &Segment,
    offset: u64,
    inline: bool,
) -> Result<Written> {
    let session = file.session();
    let length = from.len as u64;
    let want_refs = session.options.neighbours;
    let stability = dafs_proto::Stability::from(wish.stability);
    let Wish { lane, .. } = wish;
    let mut resend = wish.resend;
    let (message, reply) = loop {
        let make = move |open, placement: Placement, buffers: Vec<Buffer>, seal| WriteRequest {
            open,
            extents: vec![Extent { offset, length }],
            placement: placement.into(),
            buffers,
            stability: stability.into(),
            want_refs,
            seal,
            resend,
        };
        file.check(0)?;
        // Of the session that the request is sent in, or of one before.
        let before = session.grant()?;
        let seen = file.state.seen(before.boot);
        let result = if inline {
            session.counters.inline_writes.add(1);
            let encode = |header| {
                let message = make(file.open(), Placement::Inline, Vec::new(), Vec::new());
                encode_message(header, &message)
            };
            let (body, data) = (Body::Plain(&encode), vec![from.clone()]);
            let request = Request { op: Op::Write, file: Some(file), body, data, sink: None };
            session.request(lane, request).await
        } else {
            session.counters.direct_writes.add(1);
            let opened = Arc::clone(file);
            let encode: EncodeDirect = Arc::new(move |header, lent| {
                let (buffers, seal) = (vec![lent.buffer(length)], lent.seal.clone());
                encode_message(header, &make(opened.open(), Placement::Direct, buffers, seal))
            });
            let body =
                Body::Direct(Direct { encode, buffer: vec![from.clone()], purpose: Use::Fetch });
            let request =
                Request { op: Op::Write, file: Some(file), body, data: Vec::new(), sink: None };
            session.request(lane, request).await
        };
        match file.take_reply::<WriteRequest>(lane, result).await? {
            Came::Reply(message, reply) => break (message, reply),
            // Opening the files again has sent it, too: what is to be done is to be looked at anew.
            Came::Again { .. } if wish.resend.is_some() => {
                let reason = "the session was lost while writes were sent again".into();
                return Err(ordma::LinkError::Lost { peer: session.peer(), reason }.into());
            }
            Came::Again { sent: true } => drop(resend.get_or_insert(unanswered(&before, seen))),
            Came::Again { sent: false } => {}
        }
    };
    check_reply(file, &message, reply.epoch, offset..offset + length, stability, resend.is_some())?;
    let grant = session.grant()?;
    session.counters.written_bytes.add(message.count);
    install(file, &message.refs, length.div_ceil(grant.page_size as u64) + 1, reply.epoch)?;
    file.saw_size(message.size, grant.page_size);
    take_stable(session, &message.stable, &reply)?;
    let receipt = receipt(message.change, &reply)?;
    file.state.saw(&receipt);
    let written = Written {
        count: usize::try_from(message.count).unwrap_or(from.len),
        stability: message.stability(),
        receipt,
        skipped: ranges(&message.skipped),
        refused: ranges(&message.refused),
    };
    if wish.resend.is_none() && !(written.refused.is_empty() && written.skipped.is_empty()) {
        // Not acknowledged, and not to be done any more.
        return Err(Error::OutcomeUnknown { op: Op::Write, what: file.name.clone() });
    }
    Ok(written)
}

fn ranges(extents: &[Extent]) -> Vec<Range<u64>> {
    extents.iter().map(|e| e.offset..e.offset.saturating_add(e.length)).collect()
}

/// What to keep with a change that a reply acknowledges, which may be of a boot that has ended since.
pub(crate) fn receipt(change: Option<Change>, reply: &Reply) -> Result<Receipt> {
    let Change { number, verifier, ctime } = change.unwrap_or_default();
    let Grant { boot, machine_boot, .. } = *granted(reply)?;
    Ok(Receipt { boot, number, verifier, ctime, machine_boot })
}

/// What the server had granted with the session that a reply belongs to.
fn granted(reply: &Reply) -> Result<&Grant> {
    let none = || Error::InvalidArgument("a reply outside of a session".into());
    reply.grant.as_deref().ok_or_else(none)
}

/// Lets go of what the server says is stable.
fn take_stable(session: &Session, stable: &[Stable], reply: &Reply) -> Result<()> {
    if stable.is_empty() {
        return Ok(());
    }
    let Grant { boot, machine_boot, .. } = *granted(reply)?;
    let number = reply.session;
    let files = session.files.all();
    for stable in stable {
        if let Some(open) = files.iter().find(|f| f.is_of(number) && f.number() == stable.file) {
            open.state.keep(session, |uncommitted| {
                uncommitted.committed((0, 0), boot, machine_boot, stable);
            });
        }
    }
    Ok(())
}

fn check_reply(
    file: &OpenFile,
    reply: &WriteReply,
    epoch: u64,
    range: Range<u64>,
    stability: dafs_proto::Stability,
    resend: bool,
) -> Result<()> {
    let session = file.session();
    let length = range.end - range.start;
    if reply.count > length || (reply.count == 0 && length > 0) {
        let reason = format!("{} of {length} bytes written", reply.count);
        return Err(session.violation(epoch, &reason));
    }
    if reply.stability < i32::from(stability) {
        return Err(session.violation(epoch, "a write is less stable than was asked for"));
    }
    if reply.file != file.number() {
        return Err(session.violation(epoch, "the reply to a write is about another file"));
    }
    let mut left_alone = reply.skipped.iter().chain(&reply.refused);
    if !resend && left_alone.next().is_some() {
        return Err(session.violation(epoch, "a part of a new write was left alone"));
    }
    Ok(())
}

/// What a change of the size did.
pub(super) struct Resized {
    pub(super) attr: Option<Attr>,
    pub(super) receipt: Receipt,
    pub(super) from: u64,
    identity: Vec<u8>,
    pub(super) skipped: bool,
    pub(super) refused: bool,
}

/// Sends a change of attributes that sets the size.
pub(super) async fn send_size(
    session: &Session,
    lane: Lane,
    handle: &[u8],
    set: SetAttr,
    state: Option<&FileState>,
    again: Option<(Resend, u64)>,
    what: &str,
) -> Result<Resized> {
    let mut resend = again;
    loop {
        let before = session.grant()?;
        let seen = state.map_or(0, |state| state.seen(before.boot));
        let make = || SetAttrRequest {
            handle: handle.to_vec(),
            // Sent again, the size alone is judged.
            attr: Some(set),
            resend: resend.map(|(resend, _)| resend),
            from: resend.map_or(0, |(_, from)| from),
        };
        match session.call_once::<SetAttrRequest>(lane, what, &make).await {
            Ok((message, reply)) => {
                let SetAttrReply { attr, change, from, skipped, refused, identity } = message;
                if again.is_none() && refused {
                    return Err(Error::OutcomeUnknown { op: Op::SetAttr, what: what.into() });
                }
                let receipt = receipt(change, &reply)?;
                let identity = if identity.is_empty() { handle.to_vec() } else { identity };
                return Ok(Resized { attr, receipt, from, identity, skipped, refused });
            }
            Err(CallError::Failed(error)) => return Err(error),
            Err(CallError::SessionLost { .. }) if again.is_some() => {
                let reason = "the session was lost while a size was sent again".into();
                return Err(ordma::LinkError::Lost { peer: session.peer(), reason }.into());
            }
            Err(CallError::SessionLost { sent: true }) => {
                let size = set.size.unwrap_or(u64::MAX);
                resend.get_or_insert((unanswered(&before, seen), size));
            }
            Err(CallError::SessionLost { sent: false }) => {}
        }
    }
}

/// Sets attributes of an open file, the size among them.
pub(crate) async fn set_size(file: &Arc<OpenFile>, set: SetAttr) -> Result<Option<Attr>> {
    let session = file.session();
    let _turn = file.state.turns.take(Turn::New, 0..u64::MAX).await;
    let (handle, state) = (&file.handle, Some(&*file.state));
    let resized = send_size(session, Lane::Normal, handle, set, state, None, &file.name).await?;
    keep_size(session, &file.state, set, &resized);
    let size = resized.attr.as_ref().map_or(set.size, |attr| Some(attr.size));
    file.saw_size(size.unwrap_or_default(), session.grant()?.page_size);
    Ok(resized.attr)
}

/// Sets attributes of what a handle names, the size among them.
pub(crate) async fn set_size_of(
    session: &Session,
    handle: &[u8],
    set: SetAttr,
    what: &str,
) -> Result<Option<Attr>> {
    // Which file it is the reply tells: nothing may be sent again meanwhile.
    let _turn = session.files.turns.take(Turn::New, 0..1).await;
    let resized = send_size(session, Lane::Normal, handle, set, None, None, what).await?;
    if let Some(state) = session.files.known(&resized.identity) {
        keep_size(session, &state, set, &resized);
    }
    Ok(resized.attr)
}

fn keep_size(session: &Session, state: &FileState, set: SetAttr, done: &Resized) {
    let (size, from, receipt) = (set.size.unwrap_or_default(), done.from, done.receipt);
    state.saw(&receipt);
    state.keep(session, |uncommitted| uncommitted.keep_size(size, from, receipt));
    state.rest_on(receipt.machine_boot);
}

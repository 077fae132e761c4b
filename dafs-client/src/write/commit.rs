//! Bringing what was written to stable storage, and sending again what the server has lost.

use super::Receipt;
use super::send::{Resized, Wish, Written, deliver, send_size};
use super::uncommitted::Again;
use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::files::Turn;
use crate::options::Stability;
use crate::session::Session;
use crate::session::rpc::Lane;
use crate::sync::lock;
use dafs_proto::{CommitRequest, Extent, Op, Resend, SetAttr, Status};
use ordma::Segment;
use std::sync::Arc;

/// How often a commit sends lost writes again before it gives up.
const COMMIT_ROUNDS: usize = 8;

/// Brings a range (`length` 0: to the end of the file) to stable storage; sends again what the
/// server has lost meanwhile.
pub(crate) async fn commit(file: &Arc<OpenFile>, offset: u64, length: u64) -> Result<()> {
    file.check(0)?;
    let (session, state) = (file.session(), &file.state);
    let range = (offset, length);
    for _ in 0..COMMIT_ROUNDS {
        let grant = session.grant()?;
        // What could not be sent again when the session began.
        let late = lock(&state.uncommitted).select(range, |kept| kept.boot != grant.boot);
        send_again(file, Lane::Normal, late).await?;
        let rests_on = state.rests_on();
        if rests_on != 0 && rests_on != grant.machine_boot {
            state.lose(lost(
                file,
                "the server's machine was started anew since attributes or the name \
                                   were changed: the change may be lost",
            ));
            state.rests_on_nothing(rests_on);
        }
        if let Some(error) = file.news() {
            return Err(error);
        }
        let rests_on = state.rests_on();
        let extent = Some(Extent { offset, length });
        let make = |open| CommitRequest { open, extent, rests_on };
        let (message, reply) = match file.call_in(Lane::Normal, Vec::new(), make).await {
            // Refused for what the file rests on: looked at anew, and told once.
            Err(error)
                if error.status() == Some(Status::Io)
                    && ![0, session.grant()?.machine_boot].contains(&rests_on) =>
            {
                continue;
            }
            other => other?,
        };
        let Some(grant) = reply.grant else { continue };
        let boot = grant.boot;
        let stable = message.stable.unwrap_or_default();
        if length == 0 && offset == 0 {
            state.rests_on_nothing(rests_on);
        }
        let lost = state.keep(session, |uncommitted| {
            uncommitted.committed(range, boot, grant.machine_boot, &stable);
            uncommitted.select(range, |kept| {
                // What could not be sent again when the session began is not part of it.
                kept.boot != boot
                    || kept.number <= stable.through && kept.verifier != stable.verifier
            })
        });
        if lost.is_empty() {
            // Something may have been lost on the way here, in a session that began meanwhile.
            return file.news().map_or(Ok(()), Err);
        }
        send_again(file, Lane::Normal, lost).await?;
    }
    Err(lost(file, "the server lost uncommitted writes again and again"))
}

fn lost(file: &OpenFile, message: &str) -> Error {
    Error::Status {
        op: Op::Commit,
        status: Status::Io,
        message: message.into(),
        what: file.name.clone(),
    }
}

/// In a new session, over the connection `epoch`, sends again what was acknowledged by a server that
/// was restarted since and is not committed.
pub(crate) async fn send_lost(file: &Arc<OpenFile>, epoch: u64) -> Result<()> {
    let session = file.session();
    let boot = session.grant()?.boot;
    if let Some(error) = file.broken() {
        give_up(file, error);
        return Ok(());
    }
    let lost = lock(&file.state.uncommitted).select((0, 0), |kept| kept.boot != boot);
    send_again(file, Lane::Recovery { epoch }, lost).await
}

/// The file cannot be opened again: what was written and not committed is lost.
fn give_up(file: &OpenFile, error: Error) {
    let dropped = file.state.keep(file.session(), |uncommitted| {
        let dropped = !uncommitted.is_empty();
        uncommitted.clear();
        dropped
    });
    if dropped {
        file.state.lose(error);
    }
}

fn resend(receipt: &Receipt) -> Resend {
    let Receipt { boot, number, ctime, .. } = *receipt;
    Resend { boot, number, ctime, seen: number }
}

/// Whether an error will be another one, or none, later.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.status(),
        Some(
            Status::TryAgain
                | Status::TooManyRequests
                | Status::NoMemory
                | Status::NoSpace
                | Status::Quota
        )
    )
}

/// Sends changes again, in order.
async fn send_again(file: &Arc<OpenFile>, lane: Lane, ids: Vec<u64>) -> Result<()> {
    for id in ids {
        let parts = lock(&file.state.uncommitted).parts(id);
        for part in parts {
            // While files are opened again nobody else sends anything, and those who wait for their
            // replies are not to be waited for.
            let _turns = match lane {
                Lane::Recovery { .. } => None,
                Lane::Normal => Some((
                    file.session().files.turns.take(Turn::Again, 0..1).await,
                    file.state.turns.take(Turn::Again, part.range()).await,
                )),
            };
            // It may have been replaced, or sent again by recovery, meanwhile.
            let is_still =
                |other: &Again| other.range() == part.range() && other.receipt() == part.receipt();
            if lock(&file.state.uncommitted).parts(id).iter().any(is_still) {
                send_part(file, lane, id, part).await?;
            }
        }
    }
    Ok(())
}

async fn send_part(file: &Arc<OpenFile>, lane: Lane, id: u64, part: Again) -> Result<()> {
    let (session, state) = (file.session(), &file.state);
    let range = part.range();
    let number = session.number();
    let sent = match part {
        Again::Write { offset, data, receipt } => {
            let most = session.grant()?.max_transfer;
            let mut at = 0;
            loop {
                if at == data.len {
                    break Ok(());
                }
                let from = offset + at as u64;
                let piece = data.region.segment(data.start + at, most.min(data.len - at));
                let done = |part: &Segment, offset: u64, written: Written| {
                    at += written.count;
                    session.counters.resent_bytes.add(written.count as u64);
                    let range = offset..offset + part.len.min(written.count) as u64;
                    state.keep(session, |uncommitted| {
                        uncommitted.acknowledged(id, &range, written.receipt);
                        for gone in written.skipped.iter().chain(&written.refused) {
                            uncommitted.forget(id, gone);
                        }
                    });
                    if let Some(range) = written.refused.first() {
                        state.lose(refused(file, range.start));
                    }
                };
                let wish =
                    Wish { lane, stability: Stability::Unstable, resend: Some(resend(&receipt)) };
                let sent = deliver(file, wish, &piece, from, done).await;
                if sent.is_err() {
                    break sent;
                }
            }
        }
        Again::Size { size, from, receipt } => {
            let grant = session.grant()?;
            if receipt.machine_boot == grant.machine_boot {
                // The server's disk has it, if not for good: the server sets a size before it
                // replies. Set again, it would end what came after it and is stable. It stays for
                // when the machine fails.
                return Ok(());
            }
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            let again = Some((resend(&receipt), from));
            match send_size(session, lane, &file.handle, set, None, again, &file.name).await {
                Ok(Resized { receipt, skipped, refused: was_refused, .. }) => {
                    state.keep(session, |uncommitted| {
                        if skipped || was_refused {
                            uncommitted.forget(id, &range);
                        } else {
                            uncommitted.acknowledged(id, &range, receipt);
                        }
                    });
                    if was_refused {
                        state.lose(refused(file, from));
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    };
    match sent {
        // It is kept, and the next commit tries again.
        Err(error) if may_pass(&error) => {
            tracing::warn!(%error, "uncommitted writes could not be sent again yet");
            if matches!(lane, Lane::Normal) { Err(error) } else { Ok(()) }
        }
        Err(error @ Error::Status { .. }) => {
            state.keep(session, |uncommitted| uncommitted.forget(id, &range));
            state.lose(error);
            Ok(())
        }
        // Opening the files again has sent it, too.
        Err(_) if matches!(lane, Lane::Normal) && session.number() != number => Ok(()),
        other => other,
    }
}

fn refused(file: &OpenFile, offset: u64) -> Error {
    lost(
        file,
        &format!(
            "what was written at {offset} was not stable when the server failed, and cannot be \
             sent again, because the file may have been changed since by another client"
        ),
    )
}

/// Commits closed files whose writes have still to be, one attempt each.
pub(crate) async fn settle(session: &Session) {
    let now = session.now();
    while let Some(due) = session.files.take_due(now) {
        let Some(file) = due.file() else { continue };
        match finish(file).await {
            Ok(()) => due.settled(),
            Err(error) => {
                tracing::debug!(%error, file = %file.name, "a closed file is not committed yet");
            }
        }
    }
}

/// Commits a file that lingers, and closes it at the server.
async fn finish(file: &Arc<OpenFile>) -> Result<()> {
    while !lock(&file.state.uncommitted).is_empty() {
        if let Some(error) = file.broken() {
            give_up(file, error);
            break;
        }
        commit(file, 0, 0).await?;
    }
    file.let_go();
    Ok(())
}

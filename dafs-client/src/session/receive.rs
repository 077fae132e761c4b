//! What arrives from the server. All of it is taken to come from a hostile peer.

use super::outstanding::Reply;
use super::{Session, lock};
use crate::slots::{SlotError, Ticket};
use dafs_proto::{Header, Kind};
use ordma::{LinkError, Receiver};
use std::sync::Weak;
use std::task::Waker;

/// The slot of CONNECT, which comes before there are slots.
pub(super) const HELLO_SLOT: u16 = u16::MAX;

/// Takes what one connection delivers.
#[derive(Debug)]
pub(super) struct LinkReceiver {
    pub(super) session: Weak<Session>,
    pub(super) epoch: u64,
}

impl Receiver for LinkReceiver {
    fn message(&self, head: &[u8], data: &[u8]) {
        if let Some(session) = self.session.upgrade()
            && let Err(reason) = session.message(self.epoch, head, data)
        {
            session.violation(self.epoch, &reason);
        }
    }

    fn closed(&self, error: LinkError) {
        if let Some(session) = self.session.upgrade() {
            session.lost(self.epoch, &error);
            session.pump.kick();
        }
    }
}

impl Session {
    fn message(&self, epoch: u64, head: &[u8], data: &[u8]) -> Result<(), String> {
        let (header, body) = Header::decode(head).map_err(|error| error.to_string())?;
        match header.kind {
            Kind::Reply => self.reply(epoch, header, body, data),
            Kind::Request => Err(format!("the server sent a request, {}", header.op)),
            // Notices tell what a client may make use of; this version uses none.
            Kind::Notice => Ok(()),
        }
    }

    fn reply(&self, epoch: u64, header: Header, body: &[u8], data: &[u8]) -> Result<(), String> {
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Ok(());
        }
        if header.slot == HELLO_SLOT {
            return match &mut state.hello {
                Some(hello) if hello.reply.is_none() && data.is_empty() => {
                    hello.reply = Some((header, body.to_vec()));
                    Ok(())
                }
                _ => Err("an answer to a CONNECT that was not sent".into()),
            };
        }
        let ticket = Ticket { slot: header.slot, sequence: header.sequence };
        if let Some(kept) = state.slots.get_mut(ticket)
            && kept.op != header.op
        {
            return Err(format!("a reply to {} in the slot of {}", header.op, kept.op));
        }
        let kept = match state.slots.finish(ticket, header.credits) {
            Ok(kept) => kept,
            Err(SlotError::Again { .. }) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let (session, protected) = (state.session, state.protected.clone());
        let grant = state.grant.clone();
        let wake = state.wakeable();
        drop(state);
        wake.into_iter().for_each(Waker::wake);

        let mut reply = Reply {
            status: header.status,
            body: body.to_vec(),
            pages: 0,
            placed: 0,
            resent: kept.resent,
            epoch,
            session,
            grant,
            protected,
        };
        if !data.is_empty() {
            let scattered = match &kept.sink {
                Some(sink) => sink.scatter(data),
                None => Err(format!("a reply to {} with {} bytes of data", header.op, data.len())),
            };
            match scattered {
                Ok(pages) => reply.pages = pages,
                Err(reason) => {
                    // The request has left its slot, so it has to be told here.
                    let error = self.violation(epoch, &reason);
                    kept.cell.complete(Err(error.into()));
                    return Ok(());
                }
            }
        }
        kept.cell.complete(Ok(reply));
        Ok(())
    }
}

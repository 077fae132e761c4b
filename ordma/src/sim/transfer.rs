//! Direct transfers: what the server places into and fetches from the client's advertised buffers.

use super::conn::Pending;
use super::event::{Channel, What};
use super::state::State;
use crate::arena::{Slot, copy_slots};
use crate::region::Segment;
use crate::slot::FOOTER_LEN;
use crate::{LinkError, Tag, Transfer};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// What a transfer does.
pub(super) enum Task {
    Place(Tag, Source),
    Fetch(Tag, u64, Vec<u8>),
}

/// What is placed.
pub(super) enum Source {
    Bytes(Vec<u8>),
    /// What these have at the time of each step.
    Slots(Vec<Slot>),
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slots(slots) => slots.iter().map(slot_len).sum(),
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Bytes(bytes) => bytes.into(),
            Self::Slots(slots) => copy_slots(slots).into(),
        }
    }
}

fn slot_len(slot: &Slot) -> usize {
    FOOTER_LEN + slot.chunk.geometry().page_size
}

impl State {
    /// Begins a transfer; `None` where the server's side is over and the buffer goes no further.
    pub(super) fn begin_transfer(&mut self, id: u64, task: Task) -> Option<Transfer> {
        let number = self.next_id();
        let tear = self.faults.tear;
        let conn = self.conns.get_mut(&id)?;
        let server = conn.server.as_mut().filter(|server| server.open)?;
        let transfer = Transfer::new();
        let (len, buffer) = match &task {
            Task::Place(_, Source::Bytes(bytes)) => (bytes.len(), bytes.clone()),
            Task::Place(_, slots) => (slots.len(), Vec::new()),
            Task::Fetch(_, _, buffer) => (buffer.len(), buffer.clone()),
        };
        let pending = transfer.clone();
        if len == 0 {
            self.calls.push(Box::new(move || pending.complete(Ok(buffer))));
            return Some(transfer);
        }
        server.transfers.insert(number, Pending { transfer: pending, buffer });
        match task {
            Task::Place(tag, from) => {
                let from = Arc::new(from);
                let middle = if tear { len / 2 } else { 0 };
                let place =
                    |range| What::Place { transfer: number, tag, from: Arc::clone(&from), range };
                if middle > 0 {
                    self.post(id, Channel::Down, place(0..middle));
                }
                self.post(id, Channel::Down, place(middle..len));
            }
            Task::Fetch(tag, offset, _) => {
                self.post(id, Channel::Down, What::Fetch { transfer: number, tag, offset, len });
            }
        }
        self.risk(id);
        Some(transfer)
    }

    /// Data reaches the client's buffer, unless the client has withdrawn it.
    pub(super) fn place(
        &mut self,
        id: u64,
        transfer: u64,
        tag: Tag,
        from: &Source,
        range: Range<usize>,
    ) {
        let data = from.bytes();
        let last = range.end == data.len();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.client.is_open()) else {
            return;
        };
        if let Some(advert) = conn.client.adverts.get_mut(&tag) {
            let room: usize = advert.segments.iter().map(|segment| segment.len).sum();
            if data.len() > room {
                let peer = conn.address.clone();
                let reason = format!("{} bytes for tag {tag}, which has {room}", data.len());
                self.close_client(id, LinkError::Protocol { peer, reason });
                return;
            }
            let placed = copy_in(&advert.segments, range.start, &data[range]);
            advert.placed += placed as u64;
            let progress = Arc::clone(&conn.client.progress);
            self.calls.push(Box::new(move || progress.message()));
        }
        if last {
            self.post(id, Channel::Up, What::TransferDone { transfer, result: Ok(None) });
        }
    }

    /// The server's request for bytes reaches the client.
    pub(super) fn fetch(&mut self, id: u64, transfer: u64, tag: Tag, offset: u64, len: usize) {
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.client.is_open()) else {
            return;
        };
        let result = match conn.client.adverts.get(&tag) {
            None => Err(format!("the client has withdrawn the buffer {tag}")),
            Some(advert) => copy_out(&advert.segments, offset, len)
                .ok_or_else(|| format!("the client's buffer {tag} has no {len} bytes at {offset}")),
        };
        let what = What::TransferDone { transfer, result: result.map(Some) };
        self.post(id, Channel::Up, what);
        self.risk(id);
    }

    /// The server learns that a transfer is over.
    pub(super) fn transfer_done(
        &mut self,
        id: u64,
        transfer: u64,
        result: Result<Option<Vec<u8>>, String>,
    ) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let pending = conn.server.as_mut().and_then(|server| server.transfers.remove(&transfer));
        let Some(Pending { transfer, mut buffer }) = pending else {
            return;
        };
        self.calls.push(Box::new(move || {
            transfer.complete(match result {
                Ok(None) => Ok(buffer),
                Ok(Some(bytes)) => {
                    buffer.copy_from_slice(&bytes);
                    Ok(buffer)
                }
                Err(reason) => Err(LinkError::Closed(reason)),
            });
        }));
    }
}

/// Copies into the segments, taken as one buffer, from `at`; how many bytes went there.
fn copy_in(segments: &[Segment], mut at: usize, mut from: &[u8]) -> usize {
    let mut copied = 0;
    for segment in segments {
        if at >= segment.len {
            at -= segment.len;
            continue;
        }
        let len = from.len().min(segment.len - at);
        let (now, later) = from.split_at(len);
        if segment.with(|bytes| bytes[at..at + len].copy_from_slice(now)).is_some() {
            copied += len;
        }
        (at, from) = (0, later);
    }
    copied
}

/// Copies out of the segments, taken as one buffer; `None` where they do not have these bytes.
fn copy_out(segments: &[Segment], offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut at = usize::try_from(offset).ok()?;
    let mut bytes = Vec::with_capacity(len);
    for segment in segments {
        if at >= segment.len {
            at -= segment.len;
            continue;
        }
        let take = (len - bytes.len()).min(segment.len - at);
        segment.with_ref(|from| bytes.extend_from_slice(&from[at..at + take]))?;
        at = 0;
    }
    (bytes.len() == len).then_some(bytes)
}

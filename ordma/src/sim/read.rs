//! One-sided reads: steps at the slots, and the judgement of what they brought.

use super::core::Call;
use super::event::{Channel, Part, What};
use super::state::State;
use crate::engine::{Outcome, PageRead, PageReads, ReadBatch};
use crate::slot::accept;
use crate::{AccessFault, Chunk, FOOTER_LEN};
use std::sync::Arc;

/// Reads posted together.
pub(super) struct Batch {
    batch: Arc<ReadBatch>,
    copies: Vec<PageCopy>,
    left: usize,
}

/// The private copy of one page, as far as it has been made.
struct PageCopy {
    payload: Vec<u8>,
    footer: [u8; FOOTER_LEN],
    fault: Option<AccessFault>,
    outcome: Option<Outcome>,
}

impl Batch {
    fn new(batch: Arc<ReadBatch>) -> Self {
        let left = batch.reads.pages().len();
        let copy = || PageCopy {
            payload: vec![0; batch.reads.page_size()],
            footer: [0; FOOTER_LEN],
            fault: None,
            outcome: None,
        };
        let copies = std::iter::repeat_with(copy).take(left).collect();
        Self { left, batch, copies }
    }

    /// Ends the batch: what has not arrived never will.
    pub(super) fn end(self) -> Call {
        let outcome = |copy: PageCopy| copy.outcome.unwrap_or(Err(AccessFault::Unreachable));
        let outcomes = self.copies.into_iter().map(outcome).collect();
        let batch = self.batch;
        Box::new(move || batch.complete(outcomes))
    }
}

impl State {
    /// Sends one-sided reads on their way; `false` where the client's side is over.
    pub(super) fn post_reads(&mut self, id: u64, batch: &Arc<ReadBatch>) -> bool {
        let number = self.next_id();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.client.is_open()) else {
            return false;
        };
        let mut posted = Batch::new(Arc::clone(batch));
        for (copy, page) in posted.copies.iter_mut().zip(batch.reads.pages()) {
            let here = conn.client.chunks.contains(&page.reference.chunk);
            copy.fault = (!here).then_some(AccessFault::Gone);
        }
        let asked: Vec<bool> = posted.copies.iter().map(|copy| copy.fault.is_none()).collect();
        conn.client.batches.insert(number, posted);
        let parts: &[Part] = if self.faults.tear {
            &[Part::First, Part::Second, Part::Footer]
        } else {
            &[Part::Whole]
        };
        for (page, asked) in asked.into_iter().enumerate() {
            if asked {
                for part in parts {
                    self.post(id, Channel::Reads, What::Read { batch: number, page, part: *part });
                }
            } else {
                self.schedule_local(self.now, id, What::Copied { batch: number, page });
            }
        }
        true
    }

    /// A step of a read happens at the server's memory, unknown to the server.
    pub(super) fn read_step(&mut self, id: u64, batch: u64, page: usize, part: Part) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        // No answer from a server that is not there: the client waits until it notices.
        let Some(server) = conn.server.as_ref().filter(|server| server.open) else {
            return;
        };
        let host = self.hosts.get(&server.listener);
        let Some(batch_) = conn.client.batches.get_mut(&batch) else {
            return;
        };
        let pages = batch_.batch.reads.pages();
        let (Some(copy), Some(read)) = (batch_.copies.get_mut(page), pages.get(page)) else {
            return;
        };
        if copy.fault.is_none() {
            let chunk = host.and_then(|host| host.exported.get(&read.reference.chunk));
            copy.fault = match chunk {
                _ if !server.may_read => Some(AccessFault::Revoked),
                None => Some(AccessFault::Gone),
                Some(chunk) => copy_part(chunk, read.reference.slot, part, copy),
            };
        }
        if matches!(part, Part::Footer | Part::Whole) {
            self.post(id, Channel::Copies, What::Copied { batch, page });
        }
    }

    /// The copy of a page has reached the client, which judges it.
    pub(super) fn copied(&mut self, id: u64, number: u64, page: usize) {
        let chance = self.faults.stray_fault;
        let stray = self.chance(chance).then(|| self.rng.u8(..));
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some(batch) = conn.client.batches.get_mut(&number) else {
            return;
        };
        let reads = &batch.batch.reads;
        let (Some(copy), Some(read)) = (batch.copies.get_mut(page), reads.pages().get(page)) else {
            return;
        };
        copy.outcome = Some(match (copy.fault, stray) {
            (Some(fault), _) => Err(fault),
            (None, Some(stray)) => Err(STRAY[usize::from(stray) % STRAY.len()]),
            (None, None) => deliver(reads, read, copy),
        });
        let outcome = copy.outcome.and_then(Result::err).map_or("page read", AccessFault::name);
        batch.left -= 1;
        let done = batch.left == 0;
        self.trace.add(self.now, id, outcome, page);
        if done && let Some(batch) = conn.client.batches.remove(&number) {
            let progress = Arc::clone(&conn.client.progress);
            self.calls.push(batch.end());
            self.calls.push(Box::new(move || progress.read()));
        }
    }
}

/// The faults that the weather may bring: those that an engine can report of itself.
const STRAY: [AccessFault; 4] =
    [AccessFault::Stale, AccessFault::Torn, AccessFault::Revoked, AccessFault::Gone];

/// Copies a part of a slot.
fn copy_part(chunk: &Chunk, slot: u32, part: Part, copy: &mut PageCopy) -> Option<AccessFault> {
    let (mut payload, mut footer) = (vec![0; copy.payload.len()], [0; FOOTER_LEN]);
    if !chunk.copy_out(slot, &mut payload, &mut footer) {
        return Some(AccessFault::Stale);
    }
    let half = payload.len() / 2;
    match part {
        Part::First => copy.payload[..half].copy_from_slice(&payload[..half]),
        Part::Second => copy.payload[half..].copy_from_slice(&payload[half..]),
        Part::Footer => copy.footer = footer,
        Part::Whole => (copy.payload, copy.footer) = (payload, footer),
    }
    None
}

/// Hands a copy on if it is what was asked for.
fn deliver(reads: &PageReads, page: &PageRead, copy: &mut PageCopy) -> Outcome {
    let PageRead { reference, floor, .. } = page;
    let footer = accept(&copy.footer, &mut copy.payload, reference, *floor, reads.key())?;
    // A buffer withdrawn meanwhile: no one is left to see the page.
    let put = reads.with_place(page, |bytes| bytes.copy_from_slice(&copy.payload));
    put.ok_or(AccessFault::Unreachable)?;
    Ok(footer)
}

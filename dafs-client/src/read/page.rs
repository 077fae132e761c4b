//! The shortest way: a read within one page that has a reference.

use super::Prior;
use crate::counters::ReadReport;
use crate::file::OpenFile;
use crate::session::Session;
use crate::sync::lock;
use ordma::{AccessFault, Footer, Outcome, PageReads, Region, RemoteRef, Segment};

/// How such a read went.
pub(super) enum Single {
    Done(ReadReport),
    /// It is not within one page, or there is no reference, or no connection for such reads now.
    NotOne,
    Faulted(Prior),
}

/// Reads within one page, if it has a reference.
pub(super) async fn read_one(file: &OpenFile, to: &Segment, offset: u64) -> Single {
    let session = file.session();
    let Some((live, grant)) = session.live_for_reads() else { return Single::NotOne };
    let page_size = grant.page_size;
    let block = offset / page_size as u64;
    // Less than a page size.
    let within = usize::try_from(offset % page_size as u64).unwrap_or(0);
    if within + to.len > page_size {
        return Single::NotOne;
    }
    let known = lock(&session.table).directory.lookup(file.number(), block);
    let (Some(known), Some(key)) = (known, file.keyring.key()) else { return Single::NotOne };
    session.counters.directory_hits.add(1);

    let bounce = (to.len < page_size).then(|| session.take_bounce(page_size));
    let (region, start) = bounce.as_ref().map_or((&to.region, to.start), |page| (page, 0));
    let mut reads = PageReads::into(region, page_size, &key, 1);
    reads.push(known.reference, known.floor(), start);
    let outcome = session.post(&live.endpoint, reads).await.pop();
    let outcome = outcome.unwrap_or(Err(AccessFault::Unreachable));
    let footer = match outcome.and_then(|footer| whole(footer, page_size)) {
        Ok(footer) => footer,
        Err(fault) => {
            fault_seen(session, &known.reference, fault);
            return Single::Faulted(Prior { block, fault });
        }
    };
    if known.seen != Some(footer.version) {
        let mut table = lock(&session.table);
        table.directory.saw(footer.file, block, footer.generation, footer.version);
    }
    served(session, file, &[Ok(footer)], page_size);
    // At most a page.
    let valid = footer.valid as usize;
    let bytes = to.len.min(valid.saturating_sub(within));
    let mut report = ReadReport { bytes, ordma: 1, ..ReadReport::default() };
    if let Some(page) = bounce {
        copy_out(&page, within, to, 0, bytes);
        session.give_bounce(page);
        report.copied = bytes as u64;
        session.counters.copied_bytes.add(report.copied);
    }
    Single::Done(report)
}

/// A page that ends before its size must be the last one.
pub(super) fn whole(footer: Footer, page_size: usize) -> Outcome {
    if footer.valid as usize == page_size || footer.last {
        Ok(footer)
    } else {
        Err(AccessFault::Stale)
    }
}

/// Counts a fault, and drops the reference where the fault says so.
pub(super) fn fault_seen(session: &Session, reference: &RemoteRef, fault: AccessFault) {
    session.counters.fault(fault);
    lock(&session.table).directory.faulted(reference, fault);
}

/// Counts the pages that were read one-sidedly, and notes what they say of the end of the file.
pub(super) fn served(session: &Session, file: &OpenFile, pages: &[Outcome], page_size: usize) {
    let good = pages.iter().flatten();
    let mut count = 0;
    for footer in good.clone() {
        saw_end(file, footer);
        count += 1;
    }
    session.counters.ordma_pages.add(count as u64);
    session.counters.ordma_bytes.add((count * page_size) as u64);
    session.record_heat(count, good);
}

/// Notes what a page says of the end of the file.
pub(super) fn saw_end(file: &OpenFile, footer: &Footer) {
    if footer.last {
        file.set_last_block(Some(footer.block));
    } else if file.last_block() == Some(footer.block) {
        file.set_last_block(None);
    }
}

/// Copies from a bounce page to the caller's buffer.
pub(super) fn copy_out(page: &Region, from: usize, to: &Segment, at: usize, len: usize) {
    page.with_ref(|page| {
        to.with(|to| to[at..at + len].copy_from_slice(&page[from..from + len]));
    });
}

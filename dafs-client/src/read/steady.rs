//! A read whose end moved under it.
//!
//! The pages that did not come are asked for one request after the other, each of which the server
//! answers for one size of the file. A reply brings the next pages, or the page that holds the end of
//! the file, wherever that is by then. So the read comes to its end with as many requests as it has
//! pages at most, however often the size changes, and its last page is one that held the end.

use super::fetch::{self, Size, Want};
use super::ways::Ways;
use crate::counters::ReadReport;
use crate::error::Result;
use crate::file::OpenFile;
use crate::options::Path;
use dafs_proto::Placement;
use ordma::{Footer, Region, Segment};
use std::sync::Arc;

/// Goes on, from `block`, with a read into `to` from `offset` on that has all pages before it. Adds to
/// the report; its bytes are those of the whole read afterwards.
pub(super) async fn read_on(
    file: &Arc<OpenFile>,
    to: &Segment,
    offset: u64,
    mut block: u64,
    path: Path,
    report: &mut ReadReport,
) -> Result<()> {
    let session = file.session();
    let grant = session.grant()?;
    let size = grant.page_size;
    let ways = Ways { session, grant: &grant, path };
    let end = offset + to.len as u64;
    let behind = end.div_ceil(size as u64);
    while block < behind {
        let left = usize::try_from(behind - block).unwrap_or(usize::MAX);
        let (placement, most) = ways.placement(left.min(grant.max_transfer / size));
        let count = left.min(most);
        let pages = Region::owned(vec![0; count * size]);
        let want = |page: usize| Want {
            block: block + page as u64,
            dest: pages.segment(page * size, size),
            known: None,
        };
        let wants: Vec<Want> = (0..count).map(want).collect();
        let fetched = match fetch::fetch(file, &wants, placement, Size::Steady).await {
            Err(error) if ways.may_do_without(placement, &error) => continue,
            result => result?,
        };
        report.copied += fetched.copied;
        for (page, footer) in fetched.footers.iter().flatten().enumerate() {
            match placement {
                Placement::Inline => report.inline += 1,
                Placement::Direct => report.direct += 1,
            }
            report.copied += deliver(&wants[page].dest, footer, to, offset);
            if footer.last {
                let behind = footer.block * size as u64 + u64::from(footer.valid);
                // At most as long as the segment.
                report.bytes = usize::try_from(behind.clamp(offset, end) - offset).unwrap_or(0);
                return Ok(());
            }
            block = footer.block + 1;
        }
    }
    report.bytes = to.len;
    Ok(())
}

/// Copies what the read wants of a page to its place; how many bytes.
fn deliver(page: &Segment, footer: &Footer, to: &Segment, offset: u64) -> u64 {
    let start = footer.block * page.len as u64;
    let from = start.max(offset);
    let until = (start + u64::from(footer.valid)).min(offset + to.len as u64);
    let Some(len) = until.checked_sub(from) else { return 0 };
    // All of it lies within the page and the segment.
    let within = |n: u64| usize::try_from(n).unwrap_or(0);
    page.with_ref(|page| {
        let page = &page[within(from - start)..][..within(len)];
        to.with(|to| to[within(from - offset)..][..page.len()].copy_from_slice(page));
    });
    len
}

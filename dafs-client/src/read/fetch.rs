//! Pages by RPC.

use crate::directory::Known;
use crate::error::{Error, Result};
use crate::file::{Came, OpenFile};
use crate::keyring::{Malformed, Told};
use crate::session::outstanding::{Direct, EncodeDirect, Reply, Sink, Use};
use crate::session::rpc::{Body, Lane, Request};
use crate::sync::lock;
use crate::write::install;
use dafs_keys::tags::TAG_LEN;
use dafs_keys::{FileKey, PageTagKey};
use dafs_proto::{Buffer, Extent, Op, Placement, ReadReply, ReadRequest, encode_message};
use ordma::slot;
use ordma::{AccessFault, FOOTER_LEN, Footer, Region, Segment};
use std::sync::Arc;

/// Most extents of one request.
const MAX_EXTENTS: usize = 1024;

/// A page that is wanted.
pub(super) struct Want {
    pub(super) block: u64,
    pub(super) dest: Segment,
    /// What the directory knew of it when the read began.
    pub(super) known: Option<Known>,
}

/// What came.
pub(super) struct Fetched {
    /// For each page wanted, its footer; `None` for those that did not come. What came before them is
    /// not the end of the file where the size has changed meanwhile.
    pub(super) footers: Vec<Option<Footer>>,
    /// Bytes copied.
    pub(super) copied: u64,
}

/// Divides pages among requests of at most `most` pages.
pub(super) fn groups(
    places: &[usize],
    block: impl Fn(usize) -> u64,
    most: usize,
) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut extents = 0;
    let mut next = None;
    for &place in places {
        let block = block(place);
        let joins = next == Some(block);
        match groups.last_mut() {
            Some(group) if group.len() < most && (joins || extents < MAX_EXTENTS) => {
                group.push(place);
                extents += usize::from(!joins);
            }
            _ => {
                groups.push(vec![place]);
                extents = 1;
            }
        }
        next = block.checked_add(1);
    }
    groups
}

/// Contiguous pages: the first block, and how many.
fn runs(wants: &[Want]) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for want in wants {
        match runs.last_mut() {
            Some((first, count)) if *first + *count as u64 == want.block => *count += 1,
            _ => runs.push((want.block, 1)),
        }
    }
    runs
}

/// How many references of neighbours to ask for: none where the page behind the wanted ones is known
/// already. Each costs the server a look-up and the client an entry, whether it is of use or not.
fn neighbours_wanted(file: &OpenFile, wants: &[Want]) -> u32 {
    let session = file.session();
    let known = wants.last().is_some_and(|want| {
        lock(&session.table).directory.peek(file.number(), want.block + 1).is_some()
    });
    if known { 0 } else { session.options.neighbours }
}

/// What the size of the file may do while the server takes the pages of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// It may change.
    Moving,
    /// It stays. The pages are neighbours, and at least one comes: the first, or where the file ends
    /// before it, the one that holds the end of the file, in the first one's place.
    Steady,
}

/// Reads pages with one request. Where that fails their places are zeroed.
pub(super) async fn fetch(
    file: &Arc<OpenFile>,
    wants: &[Want],
    placement: Placement,
    of: Size,
) -> Result<Fetched> {
    let result = request(file, wants, placement, of).await;
    if result.is_err() {
        zero(wants);
    }
    result
}

fn zero(wants: &[Want]) {
    for want in wants {
        want.dest.with(|bytes| bytes.fill(0));
    }
}

async fn request(
    file: &Arc<OpenFile>,
    wants: &[Want],
    placement: Placement,
    of: Size,
) -> Result<Fetched> {
    let session = file.session();
    let size = session.grant()?.page_size;
    let runs = runs(wants);
    let extent = |&(first, count): &(u64, usize)| Extent {
        offset: first * size as u64,
        length: (count * size) as u64,
    };
    let extents: Vec<Extent> = runs.iter().map(extent).collect();
    let footers = Region::owned(vec![0; wants.len() * FOOTER_LEN]);
    let pages: Vec<Segment> = wants.iter().map(|want| want.dest.clone()).collect();
    let footers_segment = footers.segment(0, footers.len());
    let length = (wants.len() * (size + FOOTER_LEN)) as u64;
    let want_refs = neighbours_wanted(file, wants);
    let steady = of == Size::Steady;
    let mut whole = steady;
    loop {
        file.check(0)?;
        let (opened, extents) = (Arc::clone(file), extents.clone());
        let told = Arc::new(Told::default());
        let tell = Arc::clone(&told);
        let make = move |buffers: Vec<Buffer>| ReadRequest {
            open: opened.open(),
            extents: extents.clone(),
            placement: placement.into(),
            buffers,
            want_refs,
            key_epoch: tell.epoch(&opened.keyring),
            whole,
            steady,
        };
        let result = match placement {
            Placement::Inline => {
                session.counters.inline_reads.add(1);
                let encode = |header| encode_message(header, &make(Vec::new()));
                let sink = Some(Sink { footers: footers_segment.clone(), pages: pages.clone() });
                let body = Body::Plain(&encode);
                let request =
                    Request { op: Op::Read, file: Some(file), body, data: Vec::new(), sink };
                session.request(Lane::Normal, request).await
            }
            Placement::Direct => {
                session.counters.direct_reads.add(1);
                let encode: EncodeDirect = Arc::new(move |header, lent| {
                    encode_message(header, &make(vec![lent.buffer(length)]))
                });
                let buffer = std::iter::once(&footers_segment).chain(&pages).cloned().collect();
                let body = Body::Direct(Direct { encode, buffer, purpose: Use::Fill });
                let (data, sink) = (Vec::new(), None);
                let request = Request { op: Op::Read, file: Some(file), body, data, sink };
                session.request(Lane::Normal, request).await
            }
        };
        let taken = file.take_reply::<ReadRequest>(Lane::Normal, result).await?;
        let Came::Reply(mut message, mut reply) = taken else { continue };
        let key = told.take(&file.keyring, message.key.take(), &mut reply);
        let key = key.map_err(|reason| session.violation(reply.epoch, reason))?;
        if message.from_slots && (whole || placement == Placement::Inline) {
            let reason = "pages came from slots where copies were asked for";
            return Err(session.violation(reply.epoch, reason));
        }
        let footers = &footers;
        let taken = Taken { file, wants, runs: &runs, footers, placement, of, size, key };
        match taken.take(&message, &reply) {
            Ok(fetched) => return Ok(fetched),
            Err(Unfit::Gone) => {}
            Err(Unfit::Page(_)) if message.from_slots => {
                // They were changing. None of their bytes may stay where fewer pages come next.
                session.counters.direct_torn.add(1);
                zero(wants);
                whole = true;
            }
            Err(Unfit::Page(reason)) => return Err(session.violation(reply.epoch, reason)),
            Err(Unfit::Reply(error)) => return Err(error),
        }
    }
}

/// Why a reply does not serve.
enum Unfit {
    /// The reply to a request that was sent again came without the data, which went to the lost
    /// connection: to be asked for anew.
    Gone,
    /// A page is not what the reply says, for this reason.
    Page(&'static str),
    /// Anything else.
    Reply(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Reply(error)
    }
}

/// A reply being judged.
struct Taken<'a> {
    file: &'a OpenFile,
    wants: &'a [Want],
    runs: &'a [(u64, usize)],
    footers: &'a Region,
    placement: Placement,
    of: Size,
    size: usize,
    /// Of the pages in it.
    key: Arc<FileKey>,
}

impl Taken<'_> {
    fn violation(&self, reply: &Reply, reason: &str) -> Error {
        self.file.session().violation(reply.epoch, reason)
    }

    /// The pages of a reply.
    fn take(&self, message: &ReadReply, reply: &Reply) -> std::result::Result<Fetched, Unfit> {
        let bad = |reason: &str| Unfit::Reply(self.violation(reply, reason));
        if message.file != self.file.number() {
            return Err(bad("the reply to a read is about another file"));
        }
        if message.counts.len() != self.runs.len() {
            return Err(bad("the reply to a read has another number of extents"));
        }
        let counts: Vec<usize> =
            message.counts.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        if counts.iter().zip(self.runs).any(|(count, (_, asked))| count > asked) {
            return Err(bad("the reply to a read has more pages than were asked for"));
        }
        let total: usize = counts.iter().sum();
        let bytes = (total * (self.size + FOOTER_LEN)) as u64;
        let mut copied = 0;
        match self.placement {
            Placement::Inline if reply.pages != total => {
                return Err(bad("the data of a read is not as long as its reply says"));
            }
            Placement::Inline => copied += bytes,
            Placement::Direct if reply.placed != bytes && reply.resent => return Err(Unfit::Gone),
            Placement::Direct if reply.placed != bytes => {
                let reason = format!("{} bytes placed where {bytes} were announced", reply.placed);
                return Err(bad(&reason));
            }
            Placement::Direct if total < self.wants.len() => copied += self.close_gap(total),
            Placement::Direct => {}
        }
        let footers = self.judge(&counts, total, message, reply, &mut copied)?;
        let session = self.file.session();
        install(self.file, &message.refs, self.wants.len() as u64, reply.epoch)?;
        let mut table = lock(&session.table);
        for Footer { file, block, generation, version, .. } in footers.iter().flatten() {
            table.directory.saw(*file, *block, *generation, *version);
        }
        drop(table);
        self.file.saw_size(message.size, self.size);
        let (pages, payload) = match self.placement {
            Placement::Inline => (&session.counters.inline_pages, &session.counters.inline_bytes),
            Placement::Direct => (&session.counters.direct_pages, &session.counters.direct_bytes),
        };
        pages.add(total as u64);
        payload.add((total * self.size) as u64);
        Ok(Fetched { footers, copied })
    }

    /// Fewer pages came than there was room for: the payloads begin right after the footers, that
    /// is, among the places of footers and the first pages. Moves them to the first pages; how many
    /// bytes that copied.
    fn close_gap(&self, total: usize) -> u64 {
        let mut placed = Vec::with_capacity(total * (self.size + FOOTER_LEN));
        self.footers.with_ref(|footers| placed.extend_from_slice(footers));
        for want in &self.wants[..total] {
            want.dest.with_ref(|page| placed.extend_from_slice(page));
        }
        let payloads = placed[total * FOOTER_LEN..].chunks_exact(self.size);
        for (want, payload) in self.wants[..total].iter().zip(payloads) {
            want.dest.with(|page| page.copy_from_slice(payload));
        }
        (total * self.size) as u64
    }

    /// Checks and opens every page, and moves those to their places that came behind a gap: pages are
    /// delivered one after the other, also where an extent before them ended early.
    fn judge(
        &self,
        counts: &[usize],
        total: usize,
        message: &ReadReply,
        reply: &Reply,
        copied: &mut u64,
    ) -> std::result::Result<Vec<Option<Footer>>, Unfit> {
        let mut raw = vec![[0; FOOTER_LEN]; total];
        self.footers.with_ref(|bytes| {
            for (footer, bytes) in raw.iter_mut().zip(bytes.chunks_exact(FOOTER_LEN)) {
                footer.copy_from_slice(bytes);
            }
        });
        // Where each delivered page lies, and where it belongs.
        let mut belongs = Vec::with_capacity(total);
        let mut first = 0;
        for (count, (_, asked)) in counts.iter().zip(self.runs) {
            belongs.extend(first..first + count);
            first += asked;
        }
        let tags = reply.protected.page_tags().map(|key| Tags::of(key, message, total));
        let mut tags = tags.transpose().map_err(|why| self.violation(reply, why))?;
        let mut footers = vec![None; self.wants.len()];
        for (lies, &place) in belongs.iter().enumerate().rev() {
            if lies != place {
                let page = self.wants[lies].dest.with_ref(<[u8]>::to_vec).unwrap_or_default();
                self.wants[place].dest.with(|to| to.copy_from_slice(&page));
                *copied += self.size as u64;
            }
            let want = &self.wants[place];
            let judged = want.dest.with(|page| {
                if let Some(tags) = &mut tags
                    && !tags.fits(lies, &raw[lies], page)
                {
                    return Err("a page in a reply does not match its tag");
                }
                slot::open(&raw[lies], page, &self.key).map_err(|fault| match fault {
                    AccessFault::Revoked => "a page in a reply is not under the key of the reply",
                    _ => "a page in a reply does not match its check",
                })
            });
            let footer = match judged {
                Some(Ok(footer)) => footer,
                Some(Err(reason)) => return Err(Unfit::Page(reason)),
                None => {
                    return Err(Error::InvalidArgument("the buffer was taken away".into()).into());
                }
            };
            let ends_before = self.of == Size::Steady
                && (total, place) == (1, 0)
                && footer.last
                && footer.block < want.block;
            if footer.file != self.file.number() || footer.block != want.block && !ends_before {
                return Err(Unfit::Page("a reply brings another page than was asked for"));
            }
            // Generations of another boot of the server mean nothing here; it has other numbers for
            // its files.
            if let Some(known) = &want.known
                && known.reference.file == footer.file
                && known.reference.generation == footer.generation
                && footer.version < known.floor()
            {
                return Err(Unfit::Page("a reply brings an older page than was seen before"));
            }
            if (footer.valid as usize) < self.size && !footer.last {
                return Err(Unfit::Page("a short page is not the last"));
            }
            footers[place] = Some(footer);
        }
        let mut first = 0;
        for (&count, (_, asked)) in counts.iter().zip(self.runs) {
            let came = &footers[first..first + count];
            if came.iter().rev().skip(1).flatten().any(|footer| footer.last) {
                return Err(Unfit::Page("a page comes behind the last one"));
            }
            if self.of == Size::Steady && count == 0 {
                return Err(Unfit::Page("a steady read brings no page"));
            }
            first += asked;
        }
        Ok(footers)
    }
}

/// The tags of the pages in a reply, at `keyed`.
struct Tags<'a> {
    key: &'a PageTagKey,
    tags: &'a [u8],
    first: u64,
    /// A footer and its payload, one after the other.
    scratch: Vec<u8>,
}

impl<'a> Tags<'a> {
    fn of(
        key: &'a PageTagKey,
        message: &'a ReadReply,
        pages: usize,
    ) -> std::result::Result<Self, Malformed> {
        if message.tags.len() != pages * TAG_LEN {
            return Err("a reply does not bring one tag for each page");
        }
        if message.first_tag.checked_add(pages as u64).is_none() {
            return Err("the numbers of a reply's tags do not end");
        }
        Ok(Self { key, tags: &message.tags, first: message.first_tag, scratch: Vec::new() })
    }

    /// Whether the tag of the page that was delivered at `place` is right.
    fn fits(&mut self, place: usize, footer: &[u8; FOOTER_LEN], payload: &[u8]) -> bool {
        self.scratch.clear();
        self.scratch.extend_from_slice(footer);
        self.scratch.extend_from_slice(payload);
        let tag = &self.tags[place * TAG_LEN..(place + 1) * TAG_LEN];
        self.key.verify(self.first + place as u64, &self.scratch, tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_filled_and_bounded_in_pages_and_extents() {
        let places: Vec<usize> = (0..10).collect();
        assert_eq!(
            groups(&places, |p| p as u64, 4).iter().map(Vec::len).collect::<Vec<_>>(),
            [4, 4, 2]
        );
        assert_eq!(groups(&places, |p| p as u64 * 2, 100).len(), 1);
        let many: Vec<usize> = (0..MAX_EXTENTS + 5).collect();
        let lens: Vec<_> = groups(&many, |p| p as u64 * 2, 1 << 20).iter().map(Vec::len).collect();
        assert_eq!(lens, [MAX_EXTENTS, 5]);
        assert!(groups(&[], |_| 0, 4).is_empty());
    }

    #[test]
    fn neighbouring_pages_make_one_extent() {
        let page = Region::owned(vec![0; 1]);
        let want = |block| Want { block, dest: page.segment(0, 1), known: None };
        assert_eq!(runs(&[want(3), want(4), want(9)]), [(3, 2), (9, 1)]);
    }
}

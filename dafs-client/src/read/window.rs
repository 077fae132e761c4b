//! A read of several pages, or of one that could not be read one-sidedly at once.
//!
//! Its pages are read at different moments, and the file may be shortened and lengthened in between.
//! So where they stop coming, the file did not need to end at any moment: it ends only behind a page
//! that is marked as the last one, or before the first byte that was asked for.

use super::Prior;
use super::fetch::{self, Fetched, Size, Want};
use super::page::{copy_out, fault_seen, saw_end, served, whole};
use super::ways::Ways;
use crate::counters::ReadReport;
use crate::directory::Known;
use crate::error::Result;
use crate::file::OpenFile;
use crate::options::Path;
use crate::session::{Grant, Live};
use crate::sync::{Boxed, join_all, lock};
use dafs_keys::FileKey;
use dafs_proto::Placement;
use ordma::{AccessFault, Footer, Outcome, PageReads, Region, Segment};
use std::sync::Arc;

/// How often a page is tried one-sidedly while it is changing.
const TRIES: u8 = 2;

/// One page of the read.
struct Page {
    known: Option<Known>,
    /// One-sided reads that found the page changing.
    torn: u8,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// To be read one-sidedly.
    Ordma,
    /// To be read by RPC.
    Rpc,
    Here {
        /// Bytes of it that belong to the file.
        valid: u32,
        /// It holds the end of the file.
        last: bool,
    },
    /// It did not come, as the file ended before it at that moment.
    Beyond,
}

/// Where a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it is here, and the file goes on.
    Full,
    /// At the end of the file.
    OfFile,
    /// Before this block. The one before it is here, and was not the last one when it was read; this
    /// one was behind the end of the file when it was asked for.
    Moved(u64),
}

/// What one of the transfers under way brought, for the pages with these places.
enum Event {
    Ordma(Vec<usize>, Vec<Outcome>),
    Rpc(Vec<usize>, Result<Fetched>),
}

struct Window<'a> {
    file: &'a Arc<OpenFile>,
    grant: Arc<Grant>,
    path: Path,
    to: &'a Segment,
    offset: u64,
    /// The block of the first page; those of the others follow.
    first: u64,
    pages: Vec<Page>,
    /// Where the first and the last page land, if they are only partly wanted.
    bounces: [Option<Region>; 2],
    report: ReadReport,
}

/// Reads into a segment. The report counts the bytes before the window's end.
pub(super) async fn read(
    file: &Arc<OpenFile>,
    to: &Segment,
    offset: u64,
    path: Path,
    prior: Option<Prior>,
) -> Result<(ReadReport, End)> {
    let mut window = Window::new(file, to, offset, path)?;
    if let Some(prior) = prior {
        window.report.faults += 1;
        if prior.fault == AccessFault::Torn && prior.block == window.first {
            window.pages[0].torn = 1;
            file.session().counters.torn_retries.add(1);
        }
    }
    if matches!(path, Path::Auto | Path::Ordma) {
        window.look_up();
        if window.ends_before().await {
            return Ok((window.give_back(), End::OfFile));
        }
    }
    window.run().await?;
    let end = window.deliver();
    Ok((window.give_back(), end))
}

impl Window<'_> {
    /// Asks the directory about all pages.
    fn look_up(&mut self) {
        let session = self.file.session();
        let number = self.file.number();
        let blocks = self.first..self.first + self.pages.len() as u64;
        let (mut hits, mut misses) = (0, 0);
        let mut table = lock(&session.table);
        for (page, known) in self.pages.iter_mut().zip(table.directory.lookup_run(number, blocks)) {
            page.known = known;
            if page.known.is_some() {
                page.state = State::Ordma;
                // A page that was torn was counted when it was first looked up.
                hits += u64::from(page.torn == 0);
            } else {
                misses += 1;
            }
        }
        drop(table);
        session.counters.directory_hits.add(hits);
        session.counters.directory_misses.add(misses);
    }

    /// Whether the file ends before the first byte asked for, as far as its last page tells without an
    /// RPC.
    async fn ends_before(&mut self) -> bool {
        let session = self.file.session();
        let Some(last) = self.file.last_block() else { return false };
        if last >= self.first || self.pages[0].known.is_some() {
            return false;
        }
        let known = lock(&session.table).directory.lookup(self.file.number(), last);
        let (Some(known), Some((live, _)), Some(key)) =
            (known, session.live_for_reads(), self.file.keyring.key())
        else {
            return false;
        };
        let page_size = self.grant.page_size;
        let bounce = session.take_bounce(page_size);
        let mut reads = PageReads::into(&bounce, page_size, &key, 1);
        reads.push(known.reference, known.floor(), 0);
        let outcome = session.post(&live.endpoint, reads).await.pop();
        session.give_bounce(bounce);
        let outcome = outcome.unwrap_or(Err(AccessFault::Unreachable));
        match outcome.and_then(|footer| whole(footer, page_size)) {
            Ok(footer) => {
                lock(&session.table).directory.saw(
                    footer.file,
                    last,
                    footer.generation,
                    footer.version,
                );
                served(session, self.file, &[Ok(footer)], page_size);
                self.report.ordma += 1;
                let end = last * page_size as u64 + u64::from(footer.valid);
                let ends = footer.last && end <= self.offset;
                session.counters.ends_without_rpc.add(u64::from(ends));
                ends
            }
            Err(fault) => {
                fault_seen(session, &known.reference, fault);
                self.report.faults += 1;
                false
            }
        }
    }

    /// Brings all pages here, up to the one that holds the end of the file.
    async fn run(&mut self) -> Result<()> {
        // Pages after the one that held the end of the file are not asked for until that one says
        // that the file goes on.
        let mut limit = match self.file.last_block() {
            Some(last) if last >= self.first => {
                let place = usize::try_from(last - self.first).unwrap_or(usize::MAX);
                match self.pages.get(place) {
                    Some(page) if page.known.is_some() => place + 1,
                    _ => self.pages.len(),
                }
            }
            _ => self.pages.len(),
        };
        loop {
            if let Some(end) = self.pages[..limit].iter().position(|page| match page.state {
                State::Here { last, .. } => last,
                State::Beyond => true,
                State::Ordma | State::Rpc => false,
            }) {
                limit = end + 1;
            }
            let open = |page: &Page| matches!(page.state, State::Ordma | State::Rpc);
            if self.pages[..limit].iter().any(open) {
                self.round(limit).await?;
                continue;
            }
            let ended = match self.pages[limit - 1].state {
                State::Here { last, .. } => last,
                _ => true,
            };
            if ended || limit == self.pages.len() {
                return Ok(());
            }
            limit = self.pages.len();
        }
    }

    /// Starts a transfer for each page that is not here, and waits for all.
    async fn round(&mut self, limit: usize) -> Result<()> {
        let session = self.file.session();
        let live = session.live();
        let rearming = live.as_ref().is_some_and(|(live, _)| !live.endpoint.reads_now());
        let one_sided = live.filter(|_| !rearming).zip(self.file.keyring.key());
        if one_sided.is_none() {
            // The RPCs wait for a connection where there is none; references would only be lost.
            let mut passed_over = 0;
            for page in &mut self.pages[..limit] {
                if matches!(page.state, State::Ordma) {
                    page.state = State::Rpc;
                    passed_over += 1;
                }
            }
            if rearming {
                self.report.rearming += passed_over;
                session.counters.rearming_pages.add(passed_over.into());
            }
        }
        let mut under_way: Vec<Boxed<'_, Event>> = Vec::new();
        if let Some(((live, _), key)) = one_sided {
            self.post_batches(limit, &live, &key, &mut under_way);
        }
        let rpc: Vec<usize> =
            (0..limit).filter(|&place| matches!(self.pages[place].state, State::Rpc)).collect();
        let (placement, most) = self.ways().placement(rpc.len());
        let file = self.file;
        for places in fetch::groups(&rpc, |place| self.block(place), most) {
            let want = |&place: &usize| {
                let known = self.pages[place].known;
                Want { block: self.block(place), dest: self.dest(place), known }
            };
            let wants: Vec<Want> = places.iter().map(want).collect();
            under_way.push(Box::pin(async move {
                Event::Rpc(places, fetch::fetch(file, &wants, placement, Size::Moving).await)
            }));
        }
        let mut result = Ok(());
        for event in join_all(under_way).await {
            match event {
                Event::Ordma(places, outcomes) => self.ordma(&places, outcomes),
                Event::Rpc(places, Ok(fetched)) => self.fetched(&places, fetched, placement),
                // They are still to be read, by the next round, which does without.
                Event::Rpc(_, Err(error)) if self.ways().may_do_without(placement, &error) => {}
                Event::Rpc(_, Err(error)) => result = Err(error),
            }
        }
        result
    }

    fn post_batches<'f>(
        &self,
        limit: usize,
        live: &Live,
        key: &Arc<FileKey>,
        under_way: &mut Vec<Boxed<'f, Event>>,
    ) where
        Self: 'f,
    {
        let session: &'f crate::session::Session = self.session();
        let places: Vec<usize> =
            (0..limit).filter(|&place| matches!(self.pages[place].state, State::Ordma)).collect();
        if places.is_empty() {
            return;
        }
        let most = live.endpoint.capabilities().read_batch.max(1);
        for places in places.chunks(most) {
            let places = places.to_vec();
            let size = self.grant.page_size;
            let mut reads = PageReads::into(self.place(places[0]).0, size, key, places.len());
            for &place in &places {
                let Some(known) = &self.pages[place].known else { continue };
                let (region, start) = self.place(place);
                reads.turn_to(region);
                reads.push(known.reference, known.floor(), start);
            }
            let reads = session.post(&live.endpoint, reads);
            under_way.push(Box::pin(async move { Event::Ordma(places, reads.await) }));
        }
    }

    /// Takes the outcomes of one-sided reads.
    fn ordma(&mut self, places: &[usize], mut outcomes: Vec<Outcome>) {
        let file = self.file;
        let session = file.session();
        // Those in a version that the directory does not know of.
        let mut seen = Vec::new();
        for (&place, outcome) in places.iter().zip(&mut outcomes) {
            let page = &mut self.pages[place];
            let Some(known) = &page.known else { continue };
            *outcome = outcome.and_then(|footer| whole(footer, self.grant.page_size));
            match *outcome {
                Ok(Footer { file, block, generation, version, valid, last, .. }) => {
                    page.state = State::Here { valid, last };
                    self.report.ordma += 1;
                    if known.seen != Some(version) {
                        seen.push((file, block, generation, version));
                    }
                }
                Err(fault) => {
                    fault_seen(session, &known.reference, fault);
                    self.report.faults += 1;
                    if fault == AccessFault::Torn {
                        page.torn += 1;
                    }
                    if fault == AccessFault::Torn && page.torn < TRIES {
                        session.counters.torn_retries.add(1);
                    } else {
                        page.state = State::Rpc;
                    }
                }
            }
        }
        served(session, file, &outcomes, self.grant.page_size);
        if !seen.is_empty() {
            let mut table = lock(&session.table);
            for (file, block, generation, version) in seen {
                table.directory.saw(file, block, generation, version);
            }
        }
    }

    /// Takes pages that came by RPC; `None` for those that did not come.
    fn fetched(&mut self, places: &[usize], fetched: Fetched, placement: Placement) {
        let session = self.file.session();
        self.report.copied += fetched.copied;
        for (&place, footer) in places.iter().zip(fetched.footers) {
            let page = &mut self.pages[place];
            let Some(footer) = footer else {
                page.state = State::Beyond;
                continue;
            };
            page.state = State::Here { valid: footer.valid, last: footer.last };
            saw_end(self.file, &footer);
            match placement {
                Placement::Inline => self.report.inline += 1,
                Placement::Direct => self.report.direct += 1,
            }
            // Changing twice in a row, and yet the RPC says that it never changed since it was
            // last seen whole: what lies in the slot is not what the server wrote.
            if let Some(known) = page.known
                && page.torn >= TRIES
                && known.reference.generation == footer.generation
                && known.seen == Some(footer.version)
            {
                fault_seen(session, &known.reference, AccessFault::Bad);
                tracing::warn!(
                    file = %self.file.name,
                    block = footer.block,
                    reference = ?known.reference,
                    "a page in the server's memory does not match its check and has not changed"
                );
            }
        }
    }

    /// Counts the bytes read, and copies what landed in bounce pages; where they end.
    fn deliver(&mut self) -> End {
        let Self { to, offset, .. } = *self;
        let size = self.grant.page_size as u64;
        let end = offset + to.len as u64;
        let mut at = offset;
        let mut ends = End::Full;
        for (place, page) in self.pages.iter().enumerate() {
            let State::Here { valid, last } = page.state else {
                ends = if place == 0 { End::OfFile } else { End::Moved(self.block(place)) };
                break;
            };
            let start = self.block(place) * size;
            let behind = start + u64::from(valid);
            let until = end.min(behind).max(at);
            if let Some(bounce) = self.bounce(place) {
                // Both lie within the segment or the page.
                let within = |n: u64| usize::try_from(n).unwrap_or(0);
                let len = within(until - at);
                copy_out(bounce, within(at - start), to, within(at - offset), len);
                self.report.copied += len as u64;
            }
            at = until;
            if last {
                // It may go on behind the window.
                ends = if behind <= end { End::OfFile } else { End::Full };
                break;
            }
        }
        self.report.bytes = usize::try_from(at - offset).unwrap_or(to.len);
        ends
    }

    /// Returns the bounce pages; nothing is under way any more.
    fn give_back(self) -> ReadReport {
        self.bounces.into_iter().flatten().for_each(|page| self.file.session().give_bounce(page));
        self.report
    }
}

impl<'a> Window<'a> {
    /// The pages that the range touches, and where each lands.
    fn new(file: &'a Arc<OpenFile>, to: &'a Segment, offset: u64, path: Path) -> Result<Self> {
        let grant = file.session().grant()?;
        let page_size = grant.page_size;
        let size = page_size as u64;
        let end = offset + to.len as u64;
        let (first, behind) = (offset / size, end.div_ceil(size));
        let pages: Vec<_> =
            (first..behind).map(|_| Page { known: None, torn: 0, state: State::Rpc }).collect();
        let partly = |wanted: bool| wanted.then(|| file.session().take_bounce(page_size));
        let head = !offset.is_multiple_of(size) || end < size * (first + 1);
        let tail = pages.len() > 1 && !end.is_multiple_of(size);
        let bounces = [partly(head), partly(tail)];
        let report = ReadReport::default();
        Ok(Self { file, grant, path, to, offset, first, pages, bounces, report })
    }

    fn block(&self, place: usize) -> u64 {
        self.first + place as u64
    }

    /// Where a page lands that is only partly wanted.
    fn bounce(&self, place: usize) -> Option<&Region> {
        let [head, tail] = &self.bounces;
        match place {
            0 => head.as_ref(),
            _ if place + 1 == self.pages.len() => tail.as_ref(),
            _ => None,
        }
    }

    /// Where a page lands: the region, and the first byte.
    fn place(&self, place: usize) -> (&Region, usize) {
        match self.bounce(place) {
            Some(page) => (page, 0),
            None => {
                // Within the segment, so it fits.
                let at = self.block(place) * self.grant.page_size as u64 - self.offset;
                (&self.to.region, self.to.start + usize::try_from(at).unwrap_or(0))
            }
        }
    }

    fn dest(&self, place: usize) -> Segment {
        let (region, start) = self.place(place);
        region.segment(start, self.grant.page_size)
    }

    fn ways(&self) -> Ways<'_> {
        Ways { session: self.file.session(), grant: &self.grant, path: self.path }
    }

    fn session(&self) -> &'a crate::session::Session {
        self.file.session()
    }
}

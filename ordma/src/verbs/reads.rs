//! The client's one-sided reads.
//!
//! Pages whose slots are neighbours are read as one run: a READ of the payloads and one of the
//! footers, and all runs of a batch are posted with one call of the device. They land in registered
//! buffers of this side, and are copied to their places and judged when a run is there; long runs go
//! to their places at once, where [that memory](super::lent) can be registered.
//!
//! A READ that the server's device refuses fails the queue pair, and with it all that is under way.
//! It is brought back in the background (see [`Phase`]); until then pages fault at once.

use super::chunks::{Chunks, Place};
use super::keeper::Kick;
use super::lent::{LEAST, Lent, Registrations};
use super::packet::Record;
use super::pool::Pool;
use super::server::tuning;
use super::wire::Wire;
use crate::arena::Geometry;
use crate::client::ReadLane;
use crate::engine::{LinkError, Outcome, PageRead, PageReads, ReadBatch};
use crate::lock;
use crate::rdma::{
    self, Access, Cap, Channel, Completion, CompletionQueue, Device, Domain, Id, Local, Op, Part,
    Parts, QueuePair, Remote, Status, Tuning, Work,
};
use crate::region::Release;
use crate::slot::{FOOTER_LEN, accept};
use crate::turn::{Handled, Lane};
use crate::{AccessFault, ChunkId};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// READs under way on a queue pair, as far as both devices can.
pub(super) const READ_DEPTH: u8 = 64;
/// Payload bytes of a run.
const RUN: usize = 256 << 10;
/// Work requests of the queue pair.
const SENDS: u32 = 256;
/// Payload bytes that are under way at a time.
const MOST_UNDER_WAY: usize = 4 << 20;
/// Payload bytes of a run that is not copied.
const LONG: usize = 32 << 10;
/// How long someone who takes memory back waits for READs into it before they are cut off.
const RELEASE: Duration = Duration::from_millis(2);
/// How long after a failure the queue pair is brought back; doubled with each failure that follows soon,
/// or before any READ has succeeded.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How long at least where no answer came: to wait for one in vain takes seconds, and so long does the
/// next read that tries.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

type ReadPair = QueuePair<Item, ()>;

/// What a request has: the place of payloads; or that of footers, and the run whose last READ it is.
type Item = (Dest, Option<Run>);

/// Where a READ lands.
#[derive(Debug)]
enum Dest {
    Here(Part),
    There(Lent),
}

// SAFETY: as for either.
unsafe impl Local for Dest {
    fn parts(&self, parts: &mut Parts) {
        match self {
            Self::Here(part) => part.parts(parts),
            Self::There(lent) => lent.parts(parts),
        }
    }
}

/// Pages that are read together.
#[derive(Debug)]
struct Run {
    flight: Arc<Flight>,
    /// Its first page in the batch.
    first: usize,
    count: usize,
    place: Place,
}

/// A batch under way.
#[derive(Debug)]
struct Flight {
    batch: Arc<ReadBatch>,
    state: Mutex<FlightState>,
}

#[derive(Debug)]
struct FlightState {
    /// Of all pages, once some have one and others do not.
    outcomes: Vec<Outcome>,
    /// Pages without an outcome.
    left: usize,
}

/// A batch that is done, and what came of its pages.
type Ended = (Arc<ReadBatch>, Vec<Outcome>);

/// How the queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// READs can be posted.
    Ready,
    /// It has failed, and nothing was done about it yet.
    Down,
    /// The server was asked to bring its side back.
    Asked,
    /// The connection is over, or at least this part of it.
    Closed,
}

/// What the server has to be told for a queue pair to be brought back: the number of its next life,
/// and of this side's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rearm {
    pub(super) life: u32,
    pub(super) packet: u32,
}

/// The queue pair for READs, and what is under way on it.
pub(super) struct Reads {
    channel: Arc<Channel>,
    queue: Arc<CompletionQueue>,
    /// The queue pair's number on this side's device.
    number: u32,
    /// The connection, and what was agreed upon with the server when it was made.
    id: Mutex<Option<(Id, Tuning)>>,
    /// What this side can do.
    tuning: Tuning,
    geometry: Geometry,
    run: usize,
    /// Buffers for single pages, and for runs.
    singles: Pool,
    runs: Pool,
    /// Buffers for the footers of runs whose payloads land elsewhere.
    footers: Pool,
    registrations: Registrations,
    /// Stretches of memory that a READ can be scattered over.
    parts: usize,
    this: Weak<Self>,
    posting: Mutex<Posting>,
    receiving: Mutex<Receiving>,
    /// Tells the server that a chunk is let go.
    wire: Arc<Wire>,
    /// Wakes who brings the queue pair back.
    keeper: Arc<Kick>,
}

struct Posting {
    /// `None` where it could not even be reset.
    pair: Option<ReadPair>,
    phase: Phase,
    chunks: Chunks,
    queue: VecDeque<Run>,
    works: Vec<Work<Item>>,
    /// Runs that were queued so far, and how many of them are done.
    begun: u64,
    done: u64,
    /// Chunks to be let go, and what has to be done before.
    leaving: Vec<(u64, ChunkId)>,
    /// Lives of the queue pair so far, less one.
    life: u32,
    packet: u32,
    failed: Option<Instant>,
    pause: Duration,
    /// A READ has succeeded since the last failure.
    proved: bool,
}

#[derive(Default)]
struct Receiving {
    completions: Vec<Completion>,
    done: Vec<Done>,
    armed: bool,
    /// What was found when the queue was armed.
    early: bool,
}

type Done = (Option<Item>, Status);

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Reads {
    /// A queue pair in the state RESET, for a server with pages of this geometry.
    pub(super) fn new(
        device: Device,
        domain: &Arc<Domain>,
        geometry: Geometry,
        mtu: u32,
        wire: Arc<Wire>,
        keeper: Arc<Kick>,
    ) -> rdma::Result<Arc<Self>> {
        let info = device.info()?;
        let channel = Channel::new(device)?;
        let queue = CompletionQueue::new(device, SENDS + 1, Some(&channel))?;
        let parts = (info.parts as usize).clamp(1, Parts::MOST);
        let cap = Cap { sends: SENDS, receives: 1, parts: parts as u32, inline: 0 };
        let pair = ReadPair::new(domain, &queue, &queue, cap)?;
        let reads_out = info.reads_out.min(READ_DEPTH);
        // Dropped packets on the server's way out look like receives that are not posted (rxe_resp.c).
        let tuning = Tuning { reads_out, not_ready_retries: 7, ..tuning(mtu) };
        let run = (RUN / geometry.page_size).max(1);
        let pool = |pages: usize| {
            let bytes = pages * (geometry.page_size + FOOTER_LEN);
            Pool::new(domain, Access::Local, bytes, 16 * bytes, MOST_UNDER_WAY)
        };
        let footers = Pool::new(domain, Access::Local, run * FOOTER_LEN, 64 << 10, 256 << 10);
        let registrations = Registrations::new(domain);
        Ok(Arc::new_cyclic(|this| Self {
            channel,
            queue,
            number: pair.number(),
            footers,
            registrations,
            parts,
            this: this.clone(),
            id: Mutex::default(),
            tuning,
            geometry,
            run,
            singles: pool(1),
            runs: pool(run),
            posting: Mutex::new(Posting {
                pair: Some(pair),
                phase: Phase::Down,
                chunks: Chunks::new(geometry),
                queue: VecDeque::new(),
                works: Vec::new(),
                begun: 0,
                done: 0,
                leaving: Vec::new(),
                life: 0,
                packet: 0,
                failed: None,
                pause: FIRST_PAUSE,
                proved: false,
            }),
            receiving: Mutex::default(),
            wire,
            keeper,
        }))
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn depth(&self) -> u8 {
        self.tuning.reads_out
    }

    /// The connection was accepted, by a server that answers so many READs at a time.
    pub(super) fn begin(&self, id: Id, mtu: u32, depth: u8) -> rdma::Result<()> {
        let tuning = Tuning {
            mtu: mtu.min(self.tuning.mtu),
            reads_out: self.tuning.reads_out.min(depth.max(1)),
            ..self.tuning
        };
        let mut posting = lock(&self.posting);
        if let Some(pair) = &posting.pair {
            pair.init(&id, &tuning)?;
            pair.connect(&id, &tuning)?;
            id.establish()?;
            *lock(&self.id) = Some((id, tuning));
            posting.phase = Phase::Ready;
        }
        Ok(())
    }

    /// Changes what may be read.
    pub(super) fn chunks<R>(&self, change: impl FnOnce(&mut Chunks) -> R) -> R {
        change(&mut lock(&self.posting).chunks)
    }

    /// READs are allowed from now on.
    pub(super) fn allow(&self) {
        lock(&self.posting).chunks.allow();
        // A queue pair that failed for want of the right is brought back.
        self.keeper.kick();
    }

    /// Whether READs can be posted.
    pub(super) fn is_ready(&self) -> bool {
        lock(&self.posting).phase == Phase::Ready
    }

    /// Lets go of a chunk, which is told when nothing of it is under way any more.
    pub(super) fn leave(&self, chunk: ChunkId) {
        let mut posting = lock(&self.posting);
        posting.chunks.retire(chunk);
        let begun = posting.begun;
        posting.leaving.push((begun, chunk));
        self.tell_left(&mut posting);
    }

    fn tell_left(&self, posting: &mut Posting) {
        let done = posting.done;
        let left: Vec<_> = posting.leaving.extract_if(.., |(until, _)| *until <= done).collect();
        if !left.is_empty() {
            left.iter().for_each(|(_, chunk)| self.wire.record(Record::LetGo(*chunk)));
            if let Err(error) = self.wire.flush() {
                tracing::debug!(%error, "a connection that is gone already");
            }
        }
    }

    /// Posts one-sided reads.
    pub(super) fn post(&self, reads: PageReads) -> Arc<ReadBatch> {
        let batch = ReadBatch::new(reads);
        let pages = batch.reads.pages();
        if let Some(fault) = batch.reads.unfit(self.geometry.page_size, false) {
            batch.fail(fault);
            return batch;
        }
        if pages.is_empty() {
            batch.complete(Vec::new());
            return batch;
        }
        let mut posting = lock(&self.posting);
        if posting.phase != Phase::Ready {
            let revoked = posting.phase != Phase::Closed && !posting.chunks.is_allowed();
            drop(posting);
            batch.fail(if revoked { AccessFault::Revoked } else { AccessFault::Unreachable });
            return batch;
        }
        let state = FlightState { outcomes: Vec::new(), left: pages.len() };
        let flight = Arc::new(Flight { batch: Arc::clone(&batch), state: Mutex::new(state) });
        let mut state = lock(&flight.state);
        let (mut open, before) = (None::<Run>, posting.queue.len());
        for (at, page) in pages.iter().enumerate() {
            let place = posting.chunks.find(&page.reference);
            match (place, &mut open) {
                (Err(fault), _) => state.put(pages.len(), at, &[Err(fault)]),
                (Ok(place), Some(run)) if self.follows(run, at, &place) => run.count += 1,
                (Ok(place), _) => {
                    let flight = Arc::clone(&flight);
                    posting.queue.extend(open.replace(Run { flight, first: at, count: 1, place }));
                }
            }
        }
        posting.queue.extend(open);
        posting.begun += (posting.queue.len() - before) as u64;
        let refused = state.end(&batch);
        drop(state);
        let mut ended = self.begin_runs(&mut posting);
        ended.extend(refused);
        drop(posting);
        end(ended);
        batch
    }

    /// Whether a page goes on where a run ends.
    fn follows(&self, run: &Run, at: usize, place: &Place) -> bool {
        let offset = |remote: Remote, bytes: usize| Remote {
            address: remote.address.wrapping_add((run.count * bytes) as u64),
            ..remote
        };
        run.count < self.run
            && run.first + run.count == at
            && place.payload == offset(run.place.payload, self.geometry.page_size)
            && place.footer == offset(run.place.footer, FOOTER_LEN)
    }

    /// Posts the runs that wait, as many as there is room for; the batches that are done with it,
    /// where that fails.
    fn begin_runs(&self, posting: &mut Posting) -> Vec<Ended> {
        match self.try_begin_runs(posting) {
            Ok(()) => Vec::new(),
            Err(error) => self.down(posting, &error),
        }
    }

    fn try_begin_runs(&self, posting: &mut Posting) -> rdma::Result<()> {
        let Some(pair) = &posting.pair else { return Ok(()) };
        let mut room = pair.room();
        while let Some(run) = posting.queue.front()
            && room >= 2
        {
            let payload = run.count * self.geometry.page_size;
            let (payloads, footers) = match self.lend(run) {
                Some(lent) => {
                    let Some(mut block) = self.footers.take()? else { break };
                    block.set_len(run.count * FOOTER_LEN);
                    (Dest::There(lent), block.split(0).1)
                }
                None => {
                    let pool = if run.count == 1 { &self.singles } else { &self.runs };
                    let Some(mut block) = pool.take()? else { break };
                    block.set_len(payload + run.count * FOOTER_LEN);
                    let (payloads, footers) = block.split(payload);
                    (Dest::Here(payloads), footers)
                }
            };
            let Some(run) = posting.queue.pop_front() else { break };
            let Place { payload, footer } = run.place;
            let work = |remote, local, signaled| Work { op: Op::Read(remote), local, signaled };
            posting.works.push(work(payload, (payloads, None), false));
            posting.works.push(work(footer, (Dest::Here(footers), Some(run)), true));
            room -= 2;
        }
        pair.post(posting.works.drain(..))
    }

    /// Lends the places of a long run to the device.
    fn lend(&self, run: &Run) -> Option<Lent> {
        let (reads, pages) = (&run.flight.batch.reads, run.pages());
        let region = reads.region(&pages[0]);
        let long = run.count * self.geometry.page_size >= LONG && region.len() >= LEAST;
        if !long || !pages.iter().all(|page| reads.region(page).same(region)) {
            return None;
        }
        let holder: Weak<dyn Release> = self.this.clone();
        let hold = region.hold(&holder)?;
        let places = pages.iter().map(|page| {
            let (_, start, len) = reads.place(page);
            (start, len)
        });
        Lent::new(&self.registrations, hold, places, self.parts)
    }

    /// Takes what has completed; the batches that are done with it.
    fn take(&self, receiving: &mut Receiving) -> Result<Vec<Ended>, LinkError> {
        let mut ended = Vec::new();
        loop {
            let Receiving { completions, done, .. } = receiving;
            completions.clear();
            // What completes is counted by who takes it: here, or where the queue pair is reset.
            let mut posting = lock(&self.posting);
            match self.queue.poll(completions) {
                Ok(0) => return Ok(ended),
                Ok(_) => {}
                // The next poll finds it again; these batches are to end before.
                Err(_) if !ended.is_empty() => return Ok(ended),
                Err(error) => return Err(LinkError::Closed(error.to_string())),
            }
            if let Some(pair) = &posting.pair {
                completions.iter().for_each(|completion| pair.sent(completion, done));
            }
            let failed = done.iter().position(|(_, status)| !status.is_success());
            // What had been read before a failure is good.
            let bad = done.split_off(failed.unwrap_or(done.len()));
            posting.done += done.iter().filter(|(item, _)| is_run(item)).count() as u64;
            posting.proved |= !done.is_empty();
            if failed.is_some() {
                ended.extend(self.fail_runs(&mut posting, bad));
            } else {
                self.tell_left(&mut posting);
                ended.extend(self.begin_runs(&mut posting));
            }
            let (idle, waiting) = (posting.done == posting.begun, !posting.queue.is_empty());
            drop(posting);
            // Those who post do not wait for this.
            self.judge(done.drain(..), &mut ended);
            if waiting {
                // For the buffers of those that were judged just now.
                ended.extend(self.begin_runs(&mut lock(&self.posting)));
            }
            if idle {
                return Ok(ended);
            }
        }
    }

    /// Puts pages that are here into their places, and judges them.
    fn judge(&self, done: impl IntoIterator<Item = Done>, ended: &mut Vec<Ended>) {
        let mut payloads = None;
        for (item, _) in done {
            match item {
                Some((dest, None)) => payloads = Some(dest),
                Some((Dest::Here(footers), Some(run))) => {
                    if let Some(payloads) = payloads.take() {
                        let outcomes = self.judge_run(&run, payloads, &footers);
                        ended.extend(run.told(outcomes));
                    }
                }
                // Footers always land here.
                Some((Dest::There(_), Some(_))) | None => {}
            }
        }
    }

    fn judge_run(&self, run: &Run, payloads: Dest, footers: &Part) -> Vec<Outcome> {
        let (reads, pages) = (&run.flight.batch.reads, run.pages());
        let footers = footers.bytes().as_chunks::<FOOTER_LEN>().0;
        let (part, registration) = match payloads {
            Dest::Here(part) => (Some(part), None),
            // The device is done with it.
            Dest::There(lent) => (None, Some(Arc::clone(lent.registration()))),
        };
        let size = self.geometry.page_size;
        let mut outcomes = Vec::with_capacity(pages.len());
        reads.put(pages, &mut outcomes, |at, page, place| {
            if let Some(part) = &part {
                place.copy_from_slice(&part.bytes()[at * size..(at + 1) * size]);
            }
            accept(&footers[at], place, &page.reference, page.floor, reads.key())
        });
        if let Some(registration) = registration
            && outcomes.contains(&Err(AccessFault::Torn))
        {
            self.registrations.forget(&registration);
        }
        outcomes
    }

    /// Runs that failed, and all that is under way: the queue pair is down.
    fn fail_runs(&self, posting: &mut Posting, bad: Vec<Done>) -> Vec<Ended> {
        let status = bad.first().map_or(Status::Flushed, |(_, status)| *status);
        let mut runs: Vec<Run> =
            bad.into_iter().filter_map(|(item, _)| item.and_then(|(_, run)| run)).collect();
        runs.extend(self.drain(posting));
        // What fails first is the first run: either of its two READs.
        let first = runs.first().map(|run| run.pages()[0].reference.chunk);
        let fault = match status {
            // The key is of no region any more.
            Status::RemoteAccess => {
                first.into_iter().for_each(|chunk| posting.chunks.retire(chunk));
                AccessFault::Gone
            }
            Status::RemoteInvalid => AccessFault::Revoked,
            Status::NoAnswer => {
                posting.pause = posting.pause.max(SILENT_PAUSE);
                AccessFault::Unreachable
            }
            _ => AccessFault::Unreachable,
        };
        tracing::debug!(%status, runs = runs.len(), "one-sided reads failed");
        let others = runs.split_off(runs.len().min(1));
        let mut ended = fail(runs, fault);
        ended.extend(fail(others, AccessFault::Unreachable));
        ended
    }

    /// The queue pair is of no use at the moment.
    fn down(&self, posting: &mut Posting, error: &rdma::Error) -> Vec<Ended> {
        tracing::warn!(%error, "one-sided reads are down");
        fail(self.drain(posting), AccessFault::Unreachable)
    }

    /// Takes all back that is queued and under way. The device writes to none of its buffers any
    /// more.
    fn drain(&self, posting: &mut Posting) -> Vec<Run> {
        if posting.phase != Phase::Closed {
            posting.phase = Phase::Down;
        }
        let now = Instant::now();
        let proved = std::mem::take(&mut posting.proved);
        let again = posting.failed.is_some_and(|last| !proved || now - last < 2 * posting.pause);
        posting.pause = if again { (posting.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        posting.failed = Some(now);
        let mut runs = Vec::new();
        let flushed = match posting.pair.as_ref().map(ReadPair::reset) {
            Some(Err(error)) => {
                tracing::error!(
                    %error,
                    "a queue pair that cannot be reset: pages are read by RPC until the next connection"
                );
                posting.phase = Phase::Closed;
                posting.pair.take().map(ReadPair::destroy)
            }
            Some(Ok(flushed)) => Some(flushed),
            None => None,
        };
        let sends = flushed.into_iter().flat_map(|flushed| flushed.sends).flatten();
        runs.extend(sends.filter_map(|(_, run)| run));
        // Those that were about to be posted, and those behind them.
        runs.extend(posting.works.drain(..).filter_map(|work| work.local.1));
        runs.extend(posting.queue.drain(..));
        posting.done = posting.begun;
        self.tell_left(posting);
        self.keeper.kick();
        runs
    }

    /// What the server has to be told now for the queue pair to be brought back; when to ask again
    /// where it is too early. `None` where nothing is to be done.
    pub(super) fn rearm(&self, now: Instant) -> Option<Result<Rearm, Instant>> {
        let mut posting = lock(&self.posting);
        if posting.phase != Phase::Down || !posting.chunks.is_allowed() {
            return None;
        }
        let due = posting.failed.map_or(now, |failed| failed + posting.pause);
        if now < due {
            return Some(Err(due));
        }
        posting.phase = Phase::Asked;
        posting.life += 1;
        posting.packet = fastrand::u32(..1 << 24);
        Some(Ok(Rearm { life: posting.life, packet: posting.packet }))
    }

    /// The server's side is back.
    pub(super) fn rearmed(&self, life: u32, theirs: u32) -> Result<(), String> {
        let mut posting = lock(&self.posting);
        if posting.phase != Phase::Asked || posting.life != life {
            return Ok(());
        }
        let id = lock(&self.id);
        let Some((id, agreed)) = &*id else { return Ok(()) };
        let tuning = Tuning { packets: Some((posting.packet, theirs & 0xFF_FFFF)), ..*agreed };
        let Some(pair) = &posting.pair else { return Ok(()) };
        let begun = pair.init(id, &tuning).and_then(|()| pair.connect(id, &tuning));
        begun.map_err(|error| format!("READs cannot be brought back: {error}"))?;
        posting.phase = Phase::Ready;
        Ok(())
    }
}

fn is_run(item: &Option<Item>) -> bool {
    matches!(item, Some((_, Some(_))))
}

impl Run {
    fn pages(&self) -> &[PageRead] {
        &self.flight.batch.reads.pages()[self.first..self.first + self.count]
    }

    /// Its pages have their outcomes; the batch, where it is done.
    fn told(self, outcomes: Vec<Outcome>) -> Option<Ended> {
        self.flight.told(self.first, outcomes)
    }
}

impl Flight {
    /// Pages from `first` on have their outcomes; the batch, where it is done.
    fn told(&self, first: usize, outcomes: Vec<Outcome>) -> Option<Ended> {
        let pages = self.batch.reads.pages().len();
        if outcomes.len() == pages {
            // As most batches end: all at once, and by nobody else.
            return Some((Arc::clone(&self.batch), outcomes));
        }
        let mut state = lock(&self.state);
        state.put(pages, first, &outcomes);
        state.end(&self.batch)
    }
}

impl FlightState {
    /// Some of so many pages have their outcomes, those from `first` on.
    fn put(&mut self, pages: usize, first: usize, outcomes: &[Outcome]) {
        self.left -= outcomes.len();
        self.outcomes.resize(pages, Err(AccessFault::Unreachable));
        self.outcomes[first..first + outcomes.len()].copy_from_slice(outcomes);
    }

    /// The batch, where all of its pages have their outcomes.
    fn end(&mut self, batch: &Arc<ReadBatch>) -> Option<Ended> {
        (self.left == 0).then(|| (Arc::clone(batch), std::mem::take(&mut self.outcomes)))
    }
}

/// The batches that are done when runs end with a fault.
fn fail(runs: Vec<Run>, fault: AccessFault) -> Vec<Ended> {
    let told = |run: Run| {
        let outcomes = vec![Err(fault); run.count];
        run.told(outcomes)
    };
    runs.into_iter().filter_map(told).collect()
}

/// Ends batches. No lock may be held, since that may run anything.
fn end(ended: Vec<Ended>) {
    ended.into_iter().for_each(|(batch, outcomes)| batch.complete(outcomes));
}

impl Release for Reads {
    fn release(&self) {
        let until = Instant::now() + RELEASE;
        while Instant::now() < until {
            // An error is found again by who drives.
            let _ = Lane::receive(self);
            let posting = lock(&self.posting);
            if posting.done == posting.begun {
                return;
            }
            drop(posting);
            std::thread::yield_now();
        }
        let gone = std::io::Error::from_raw_os_error(libc::ECANCELED);
        let error = rdma::Error::new("ibv_post_send", gone);
        let ended = self.down(&mut lock(&self.posting), &error);
        end(ended);
    }
}

impl Lane for Reads {
    fn socket(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn receive(&self) -> Result<Handled, LinkError> {
        let mut receiving = lock(&self.receiving);
        let early = std::mem::take(&mut receiving.early);
        let ended = self.take(&mut receiving)?;
        drop(receiving);
        let progress = early || !ended.is_empty();
        end(ended);
        Ok(Handled { progress, more: false })
    }

    fn arm(&self) -> Result<bool, LinkError> {
        let mut receiving = lock(&self.receiving);
        let closed = |error: rdma::Error| LinkError::Closed(error.to_string());
        if receiving.armed {
            receiving.armed = self.channel.take().map_err(closed)?.is_none();
        }
        if !receiving.armed {
            self.queue.arm().map_err(closed)?;
            receiving.armed = true;
        }
        // What has completed between the last look and now is not told.
        let ended = self.take(&mut receiving)?;
        receiving.early = !ended.is_empty();
        drop(receiving);
        let any = !ended.is_empty();
        end(ended);
        Ok(any)
    }
}

impl ReadLane for Reads {
    fn lose(&self) {
        let mut posting = lock(&self.posting);
        posting.phase = Phase::Closed;
        let runs = self.drain(&mut posting);
        drop(posting);
        // Whoever is judging runs holds this lock; those are done or taken back.
        drop(lock(&self.receiving));
        end(fail(runs, AccessFault::Unreachable));
        // The server is told, where it was not first.
        let id = lock(&self.id).take();
        drop(id);
    }
}

//! One seed: random steps on a [`Site`], with a [`Model`] beside it.

use super::PAGE;
use super::disk::When;
use super::model::{CELLS, Model, NOBODY, PAGES, Writer, begin, cell_at};
use super::profile::{Profile, Step};
use super::site::{Place, Site};
use dafs_client::blocking::{Client, File};
use dafs_client::{Error, OpenOptions, Path, Stability};
use dafs_proto::SetAttr;
use ordma::sim::Faults;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Most files that a client has open.
const OPENS: usize = 4;
/// How often everything is synced in the end before it must succeed.
const ROUNDS: usize = 4;

/// What was done, a line each.
pub type History = RefCell<Vec<String>>;

/// What may not be.
pub type Verdict<T = ()> = Result<T, String>;

/// A step, and what its choices are drawn from: so that it is the same without others before it.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    step: Step,
    seed: u64,
}

/// The steps of a seed.
pub fn plan(seed: u64, profile: &Profile, steps: RangeInclusive<usize>) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let steps = random.usize(steps);
    let planned = |_| Planned { step: profile.choose(&mut random), seed: random.u64(..) };
    (0..steps).map(planned).collect()
}

struct Peer {
    name: String,
    writer: Writer,
    client: Client,
    /// Open files with the model's numbers.
    opens: Vec<(File, usize)>,
}

pub struct Run<'a> {
    site: Site,
    peers: Vec<Peer>,
    /// Clients that were killed. Dropped at the end only: a process that was killed says nothing.
    killed: Vec<Peer>,
    /// How often the server ended in the middle of something.
    ends: Arc<AtomicU64>,
    ends_known: u64,
    /// It did in the step that is being done.
    ended_in_step: bool,
    power_was_lost: bool,
    model: Model,
    names: BTreeMap<&'static str, usize>,
    /// The disk's numbers of the model's files.
    numbers: Vec<u64>,
    random: fastrand::Rng,
    profile: &'a Profile,
    history: &'a History,
}

impl<'a> Run<'a> {
    pub fn new(seed: u64, profile: &'a Profile, history: &'a History) -> Self {
        let mut run = Self {
            site: Site::new(seed),
            peers: Vec::new(),
            killed: Vec::new(),
            ends: Arc::default(),
            ends_known: 0,
            ended_in_step: false,
            power_was_lost: false,
            model: Model::default(),
            names: BTreeMap::new(),
            numbers: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            profile,
            history,
        };
        for _ in 0..profile.clients {
            let peer = run.peer();
            run.peers.push(peer);
        }
        if profile.foul {
            let foul = Faults { refuse_connection: 0.0, ..Faults::foul() };
            run.site.world.set_faults(foul);
        }
        run
    }

    /// Does the steps, and looks at everything in the end.
    ///
    /// # Errors
    /// What may not be.
    pub fn run(&mut self, plan: &[Planned]) -> Verdict {
        for peer in 0..self.peers.len() {
            self.open(peer, NAMES[0])?;
        }
        for Planned { step, seed } in plan {
            self.random = fastrand::Rng::with_seed(*seed);
            self.step(*step)?;
            self.catch_up();
            if std::mem::take(&mut self.ended_in_step) {
                self.forget_nameless();
            }
        }
        self.finish()
    }

    /// Takes note of ends of the server in the middle of what was just done.
    fn catch_up(&mut self) {
        let ends = self.ends.load(Ordering::Relaxed);
        if ends > self.ends_known {
            self.ends_known = ends;
            self.ended_in_step = true;
            self.power_was_lost |= self.profile.steps.iter().any(|(s, _)| *s == Step::PowerAmong);
            self.note("  in the middle of it the server ends and starts".into());
            self.model.crashed();
        }
    }

    /// Files without a name end with the server.
    fn forget_nameless(&mut self) {
        let named: Vec<usize> = self.names.values().copied().collect();
        for peer in &mut self.peers {
            peer.opens.retain(|(_, number)| named.contains(number));
        }
    }

    fn note(&self, what: String) {
        self.history.borrow_mut().push(what);
    }

    fn peer(&mut self) -> Peer {
        let writer = self.model.add_writer();
        let name = format!("client-{writer}");
        let client = self.site.client(&name);
        Peer { name, writer, client, opens: Vec::new() }
    }

    /// An error is in order where the disk had faults, or the server ended in the middle.
    fn check_error(&self, what: &str, error: &Error) -> Verdict {
        let disk = &self.site.disk;
        if disk.hits() == 0 && !disk.is_faulty() && !self.ended_in_step {
            return Err(format!("{what} failed although nothing went wrong: {error}"));
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Verdict {
        let peer = self.random.usize(0..self.peers.len());
        let name = NAMES[self.random.usize(0..self.profile.files)];
        match step {
            Step::Open => self.open(peer, name),
            Step::Write => self.write(peer, Stability::Unstable),
            Step::StableWrite => {
                let stability = [Stability::Data, Stability::File][self.random.usize(0..2)];
                self.write(peer, stability)
            }
            Step::Read => self.read(peer),
            Step::Truncate => self.truncate(peer),
            Step::TruncateByName => self.truncate_by_name(peer, name),
            Step::Sync => self.sync(peer, 0..CELLS),
            Step::SyncRange => {
                let cells = self.cells(CELLS / 2);
                self.sync(peer, cells)
            }
            Step::Close => self.close(peer),
            Step::Unlink => self.unlink(peer, name),
            Step::Rename => self.rename(peer, name),
            Step::KillServer | Step::StopServer | Step::LosePower => {
                self.end_server(step);
                Ok(())
            }
            Step::KillClient => {
                self.kill_client(peer);
                Ok(())
            }
            Step::EndLease => {
                self.end_lease(peer);
                Ok(())
            }
            Step::Retire => {
                let result = self.site.retire();
                self.note(format!("the server retires a chunk: {result:?}"));
                Ok(())
            }
            Step::Flush => {
                let result = self.site.flush();
                self.note(format!("the server writes back: {result:?}"));
                Ok(())
            }
            _ => {
                self.fault(step, name);
                Ok(())
            }
        }
    }

    /// A few cells of a file.
    fn cells(&mut self, most: usize) -> Range<usize> {
        let first = self.random.usize(0..CELLS);
        let count = self.random.usize(1..=most.min(CELLS - first));
        first..first + count
    }

    fn pick(&mut self, peer: usize) -> Option<(File, usize)> {
        let count = self.peers[peer].opens.len();
        (count > 0).then(|| self.peers[peer].opens[self.random.usize(0..count)].clone())
    }

    fn writer(&self, peer: usize) -> Writer {
        self.peers[peer].writer
    }

    fn open(&mut self, peer: usize, name: &'static str) -> Verdict {
        if self.peers[peer].opens.len() >= OPENS {
            return Ok(());
        }
        let options = OpenOptions::new().read(true).write(true).create(true);
        let result = self.peers[peer].client.open_with(name, options);
        let writer = self.writer(peer);
        match result {
            Ok(file) => {
                let known = self.names.get(name).copied();
                let number = known.unwrap_or_else(|| self.model.add_file(writer));
                self.names.insert(name, number);
                if known.is_none() {
                    self.numbers.push(self.site.disk.number(name).expect("it was created"));
                }
                self.note(format!("client {writer} opens {name}, which is file {number}"));
                self.peers[peer].opens.push((file, number));
                Ok(())
            }
            Err(error) => {
                self.note(format!("client {writer} cannot open {name}: {error}"));
                self.check_error("open", &error)
            }
        }
    }

    fn write(&mut self, peer: usize, stability: Stability) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let most = if self.random.u8(0..4) == 0 { CELLS } else { 6 };
        let cells = self.cells(most);
        let writer = self.writer(peer);
        self.catch_up();
        let seq = self.model.next();
        let value = u8::try_from(seq % 255 + 1).expect("below 256");
        let bytes = vec![value; begin(cells.end) - begin(cells.start)];
        let before = self.site.disk.is_faulty().then(|| file.attr().ok()).flatten();
        let result = file.write_at_stable(&bytes, begin(cells.start) as u64, stability);
        self.catch_up();
        self.note(format!(
            "client {writer} writes {value} ({stability:?}) to {}..{} of file {number}: {result:?}",
            begin(cells.start),
            begin(cells.end)
        ));
        let count = *result.as_ref().unwrap_or(&0);
        let Some(done) = cell_at(begin(cells.start) + count) else {
            return Err(format!("{count} bytes were written, which is no part of it"));
        };
        let stable = stability != Stability::Unstable;
        if done > cells.start {
            self.model.wrote(number, cells.start..done, value, writer, stable);
        }
        if done == cells.end {
            return Ok(());
        }
        if let Err(error) = &result
            && !self.model.may_report(number, writer)
        {
            self.check_error("write", error)?;
        }
        self.model.failed_to_write(number, done..cells.end, value, writer);
        let failed = begin(done)..begin(cells.end);
        let size = before.map(|attr| attr.size.max(begin(done) as u64));
        self.look_after_failure(&file, number, failed, value, size)
    }

    /// After a failed write the file is as long as what is there.
    fn look_after_failure(
        &mut self,
        file: &File,
        number: usize,
        failed: Range<usize>,
        value: u8,
        before: Option<u64>,
    ) -> Verdict {
        let (Some(before), Ok(attr)) = (before, file.attr()) else { return Ok(()) };
        let size = usize::try_from(attr.size).unwrap_or(usize::MAX);
        let content = read_whole(file, Path::Auto);
        self.note(format!("  the size was {before} and is {size}"));
        if attr.size > before {
            let last = content.as_ref().ok().and_then(|bytes| bytes.get(size - 1)).copied();
            let is_there = failed.contains(&(size - 1)) && last.is_none_or(|last| last == value);
            if !is_there || content.is_err() {
                return Err(format!(
                    "a failed write of {failed:?} made the file longer, from {before} to {size} \
                     bytes; the last byte is {last:?}"
                ));
            }
        }
        match content {
            Ok(content) => self.saw(number, &content),
            Err(_) => Ok(()),
        }
    }

    fn saw(&mut self, number: usize, content: &[u8]) -> Verdict {
        self.model.saw(number, content).map_err(|what| format!("file {number}: {what}"))
    }

    fn read(&mut self, peer: usize) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let path = [Path::Auto, Path::Auto, Path::Inline, Path::Direct][self.random.usize(0..4)];
        let writer = self.writer(peer);
        let result = read_whole(&file, path);
        self.catch_up();
        match result {
            Ok(content) => {
                let what = format!("client {writer} reads {} of file {number}", content.len());
                self.note(what);
                if self.site.disk.hits() == 0 && !self.ended_in_step {
                    self.model.recovered(number, writer);
                }
                self.saw(number, &content)?;
                match file.attr() {
                    Ok(attr) if attr.size != content.len() as u64 => Err(format!(
                        "file {number} has a size of {} and {} bytes",
                        attr.size,
                        content.len()
                    )),
                    Ok(_) => Ok(()),
                    Err(error) => self.check_error("attributes", &error),
                }
            }
            Err(error) => {
                self.note(format!("client {writer} cannot read file {number}: {error}"));
                self.check_error("read", &error)
            }
        }
    }

    fn truncate(&mut self, peer: usize) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        let end = self.random.usize(0..=CELLS);
        let result = file.set_len(begin(end) as u64);
        self.catch_up();
        let writer = self.writer(peer);
        self.truncated(number, end, writer, writer, result)
    }

    fn truncate_by_name(&mut self, peer: usize, name: &'static str) -> Verdict {
        let Some(&number) = self.names.get(name) else { return Ok(()) };
        let end = self.random.usize(0..=CELLS);
        let set = SetAttr { size: Some(begin(end) as u64), ..SetAttr::default() };
        let result = self.peers[peer].client.set_attr(name, set).map(drop);
        self.catch_up();
        self.truncated(number, end, self.writer(peer), NOBODY, result)
    }

    fn truncated(
        &mut self,
        number: usize,
        end: usize,
        by: Writer,
        kept: Writer,
        result: Result<(), Error>,
    ) -> Verdict {
        let size = begin(end);
        self.note(format!("client {by} sets the size of file {number} to {size}: {result:?}"));
        match result {
            Ok(()) => {
                self.model.truncated(number, end, kept);
                Ok(())
            }
            Err(error) => {
                if !self.model.may_report(number, by) {
                    self.check_error("truncate", &error)?;
                }
                self.model.failed_to_truncate(number, end, kept);
                // It may have told what a sync would have.
                self.model.failed_to_sync(number, by);
                Ok(())
            }
        }
    }

    fn sync(&mut self, peer: usize, cells: Range<usize>) -> Verdict {
        let Some((file, number)) = self.pick(peer) else { return Ok(()) };
        self.sync_file(peer, &file, number, cells).map(drop)
    }

    /// Whether it succeeded.
    fn sync_file(
        &mut self,
        peer: usize,
        file: &File,
        number: usize,
        cells: Range<usize>,
    ) -> Verdict<bool> {
        let writer = self.writer(peer);
        let (start, end) = (begin(cells.start), begin(cells.end));
        let whole = cells == (0..CELLS);
        let result =
            if whole { file.sync() } else { file.commit(start as u64, (end - start) as u64) };
        self.catch_up();
        let which = if whole { String::new() } else { format!("{start}..{end} of ") };
        self.note(format!("client {writer} syncs {which}file {number}: {result:?}"));
        match result {
            Ok(()) => {
                self.model.synced(number, cells, writer);
                Ok(true)
            }
            Err(error) => {
                // Where the power failed, a change of names may be lost.
                if !self.model.may_report(number, writer) && !self.power_was_lost {
                    self.check_error("sync", &error)?;
                }
                self.model.failed_to_sync(number, writer);
                Ok(false)
            }
        }
    }

    fn close(&mut self, peer: usize) -> Verdict {
        let count = self.peers[peer].opens.len();
        if count == 0 {
            return Ok(());
        }
        let at = self.random.usize(0..count);
        let (file, number) = self.peers[peer].opens.swap_remove(at);
        let result = file.close();
        let writer = self.writer(peer);
        self.note(format!("client {writer} closes file {number}: {result:?}"));
        result.or_else(|error| self.check_error("close", &error))
    }

    /// Sent over a lost connection, what cannot be repeated would have an outcome that the client
    /// cannot know.
    fn reconnect(&self, peer: usize) -> Verdict {
        let result = self.peers[peer].client.metadata("/");
        result.map(drop).map_err(|error| format!("reconnect: {error}"))
    }

    /// A file that loses its name stays for those that have it open, in a session.
    fn reconnect_all(&self) -> Verdict {
        (0..self.peers.len()).try_for_each(|peer| self.reconnect(peer))
    }

    fn unlink(&mut self, peer: usize, name: &'static str) -> Verdict {
        if self.names.remove(name).is_none() {
            return Ok(());
        }
        self.reconnect_all()?;
        self.note(format!("client {} unlinks {name}", self.writer(peer)));
        let result = self.peers[peer].client.unlink(name);
        result.map_err(|error| format!("unlink: {error}"))
    }

    fn rename(&mut self, peer: usize, from: &'static str) -> Verdict {
        let to = NAMES[self.random.usize(0..self.profile.files)];
        let Some(number) = self.names.remove(from) else { return Ok(()) };
        self.names.insert(to, number);
        self.reconnect_all()?;
        self.note(format!("client {} renames {from} to {to}", self.writer(peer)));
        let result = self.peers[peer].client.rename(from, to);
        result.map_err(|error| format!("rename: {error}"))
    }

    fn end_server(&mut self, step: Step) {
        self.forget_nameless();
        match step {
            Step::StopServer => {
                let before = self.site.disk.unwritable();
                let result = self.site.stop();
                self.note(format!("the server stops: {result:?}"));
                // Where only pages cannot be written, all others are stable all the same.
                let but = match result {
                    Ok(()) => Some(BTreeSet::new()),
                    Err(_) => before.map(|pages| self.in_model(&pages)),
                };
                if let Some(but) = but {
                    self.model.stopped(&but);
                }
            }
            Step::LosePower => {
                self.site.lose_power();
                self.power_was_lost = true;
                self.note("the power fails".into());
            }
            _ => {
                self.site.kill();
                self.note("the server is killed".into());
            }
        }
        self.model.crashed();
        self.site.start();
    }

    /// Pages of the disk's files as pages of the model's.
    fn in_model(&self, pages: &BTreeSet<(u64, u64)>) -> BTreeSet<(usize, usize)> {
        let place = |(file, page): &(u64, u64)| {
            let number = self.numbers.iter().position(|known| known == file)?;
            Some((number, usize::try_from(*page).ok()?))
        };
        pages.iter().filter_map(place).collect()
    }

    fn kill_client(&mut self, peer: usize) {
        self.note(format!("client {} is killed", self.writer(peer)));
        self.site.silence(&self.peers[peer].name);
        self.model.killed(self.peers[peer].writer);
        // Who has just begun has the first file open, as all had.
        let mut new = self.peer();
        let options = OpenOptions::new().read(true).write(true);
        let first = self.names.get(NAMES[0]).copied();
        if let (Some(number), Ok(file)) = (first, new.client.open_with(NAMES[0], options)) {
            new.opens.push((file, number));
        }
        let old = std::mem::replace(&mut self.peers[peer], new);
        self.killed.push(old);
    }

    fn end_lease(&mut self, peer: usize) {
        self.note(format!("the session of client {} ends", self.writer(peer)));
        let others = self.peers.iter().enumerate().filter(|(other, _)| *other != peer);
        let others: Vec<&Client> = others.map(|(_, other)| &other.client).collect();
        self.site.end_lease(&self.peers[peer].name, &others);
        // What only that session had open, and has no name, is gone.
        let named: Vec<usize> = self.names.values().copied().collect();
        self.peers[peer].opens.retain(|(_, number)| named.contains(number));
    }

    fn fault(&mut self, step: Step, name: &'static str) {
        let Some(&number) = self.names.get(name) else { return };
        let file = self.numbers[number];
        let page = self.random.u64(0..PAGES as u64);
        self.note(format!("{step:?} of file {number}, page {page}"));
        let (random, disk) = (&mut self.random, &self.site.disk);
        match step {
            Step::FailSync => {
                let (any, partly) = (random.bool(), random.bool());
                disk.faults(|faults| {
                    faults.failing_syncs = 1;
                    faults.failing_file = (!any).then_some(file);
                    faults.partly = partly;
                });
            }
            Step::FailPage => disk.faults(|faults| faults.unwritable.extend([(file, page)])),
            Step::FailRead => disk.faults(|faults| faults.unreadable.extend([(file, page)])),
            Step::NoSpace => disk.faults(|faults| faults.space = Some(random.usize(0..4))),
            Step::NoQuota => disk.faults(|faults| faults.quota = Some((0, random.usize(0..4)))),
            Step::KernelWrites => disk.write_back(file),
            Step::KernelLoses => disk.fail_write_back(file),
            Step::FailAmong => {
                let when = [When::Sync, When::Sync, When::Read, When::Write][random.usize(0..4)];
                let (commit, shared) = (self.site.commit_behind(file), disk.clone());
                disk.prepare(when, move || {
                    shared.faults(|faults| {
                        (faults.failing_syncs, faults.failing_file) = (1, Some(file));
                    });
                    commit();
                });
            }
            Step::KillAmong | Step::PowerAmong => {
                let all = [When::Sync, When::Read, When::Write, When::Synced];
                let (when, power) = (all[random.usize(0..4)], step == Step::PowerAmong);
                let (place, ends) = (Place::clone(&self.site), Arc::clone(&self.ends));
                disk.prepare(when, move || {
                    if power {
                        place.lose_power();
                    } else {
                        place.kill();
                    }
                    place.start();
                    ends.fetch_add(1, Ordering::Relaxed);
                });
            }
            Step::Heal => disk.heal(),
            _ => unreachable!("{step:?} is no fault of the disk"),
        }
    }

    /// With a healthy disk: everything is synced, everyone sees the same, and it is what the disk
    /// has, also after a restart.
    fn finish(&mut self) -> Verdict {
        self.note("in the end".into());
        self.site.disk.heal();
        self.site.world.set_faults(Faults::default());
        let names: Vec<_> = self.names.clone().into_iter().collect();
        for peer in &mut self.peers {
            peer.opens.truncate(OPENS - 1);
        }
        for peer in 0..self.peers.len() {
            self.peers[peer].opens.sort_by_key(|(_, number)| *number);
            for (name, number) in &names {
                if !self.peers[peer].opens.iter().any(|(_, open)| open == number) {
                    let options = OpenOptions::new().read(true).write(true);
                    let file = self.peers[peer].client.open_with(name, options);
                    let file = file.map_err(|error| format!("open {name} in the end: {error}"))?;
                    self.peers[peer].opens.push((file, *number));
                }
            }
        }
        let mut rounds = 0;
        while !self.sync_all()? {
            rounds += 1;
            if rounds == ROUNDS {
                return Err("syncs go on failing although the disk is well".into());
            }
        }
        for restarted in [false, true] {
            for (name, number) in &names {
                self.compare(name, *number, restarted)?;
            }
            if !restarted {
                self.end_server(Step::KillServer);
                self.reconnect_all()?;
            }
        }
        Ok(())
    }

    fn sync_all(&mut self) -> Verdict<bool> {
        let mut all = true;
        for peer in 0..self.peers.len() {
            for (file, number) in self.peers[peer].opens.clone() {
                all &= self.sync_file(peer, &file, number, 0..CELLS)?;
            }
        }
        Ok(all)
    }

    fn compare(&mut self, name: &str, number: usize, restarted: bool) -> Verdict {
        let when = if restarted { "after a restart" } else { "in the end" };
        let stable = self.site.disk.stable(name).ok_or(format!("{name} is gone {when}"))?;
        for peer in 0..self.peers.len() {
            let open = self.peers[peer].opens.iter().find(|(_, open)| *open == number);
            let Some((file, _)) = open.cloned() else { continue };
            let writer = self.writer(peer);
            let content = read_whole(&file, Path::Auto);
            let content =
                content.map_err(|error| format!("client {writer} reads {name} {when}: {error}"))?;
            self.note(format!("client {writer} reads {} of file {number}", content.len()));
            self.saw(number, &content)?;
            if content != stable {
                let differs = content.iter().zip(&stable).position(|(a, b)| a != b);
                return Err(format!(
                    "file {number} as client {writer} sees it {when} is not what the disk has: {} \
                     and {} bytes, which differ at {differs:?}",
                    content.len(),
                    stable.len()
                ));
            }
        }
        Ok(())
    }
}

fn read_whole(file: &File, path: Path) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xEE; (PAGES + 1) * PAGE];
    let mut done = 0;
    while done < bytes.len() {
        let count = file.read_at_by(&mut bytes[done..], done as u64, path)?.bytes;
        if count == 0 {
            break;
        }
        done += count;
    }
    bytes.truncate(done);
    Ok(bytes)
}

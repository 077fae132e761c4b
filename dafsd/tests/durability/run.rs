//! One seed: random steps on a [`Site`], with a [`Model`] beside it.

use super::PAGE;
use super::model::{CELLS, Model, PAGES, Writer};
use super::profile::{Profile, Step};
use super::site::Site;
use dafs_client::blocking::{Client, File};
use dafs_client::{Error, OpenOptions, Path, Stability};
use ordma::sim::Faults;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Most files that a client has open.
pub(super) const OPENS: usize = 4;
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

pub(super) struct Peer {
    pub(super) name: String,
    pub(super) writer: Writer,
    pub(super) client: Client,
    /// Open files with the model's numbers.
    pub(super) opens: Vec<(File, usize)>,
}

pub struct Run<'a> {
    pub(super) site: Site,
    pub(super) peers: Vec<Peer>,
    /// Clients that were killed. Dropped at the end only: a process that was killed says nothing.
    pub(super) killed: Vec<Peer>,
    /// How often the server ended in the middle of something.
    pub(super) ends: Arc<AtomicU64>,
    pub(super) ends_known: u64,
    /// It did in the step that is being done.
    pub(super) ended_in_step: bool,
    pub(super) power_was_lost: bool,
    /// Who has changed files since a server ended for the first time.
    pub(super) changed: BTreeMap<usize, BTreeSet<Writer>>,
    /// How often a server has ended.
    pub(super) ended: u32,
    pub(super) model: Model,
    pub(super) names: BTreeMap<&'static str, usize>,
    /// The disk's numbers of the model's files.
    pub(super) numbers: Vec<u64>,
    pub(super) random: fastrand::Rng,
    pub(super) profile: &'a Profile,
    pub(super) history: &'a History,
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
            changed: BTreeMap::new(),
            ended: 0,
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
    pub(super) fn catch_up(&mut self) {
        let ends = self.ends.load(Ordering::Relaxed);
        if ends > self.ends_known {
            self.ends_known = ends;
            self.ended_in_step = true;
            self.ended += 1;
            self.power_was_lost |= self.profile.steps.iter().any(|(s, _)| *s == Step::PowerAmong);
            self.note("  in the middle of it the server ends and starts".into());
            self.model.crashed();
        }
    }

    /// Files without a name end with the server.
    pub(super) fn forget_nameless(&mut self) {
        let named: Vec<usize> = self.names.values().copied().collect();
        for peer in &mut self.peers {
            peer.opens.retain(|(_, number)| named.contains(number));
        }
    }

    pub(super) fn note(&self, what: String) {
        self.history.borrow_mut().push(what);
    }

    pub(super) fn peer(&mut self) -> Peer {
        let writer = self.model.add_writer();
        let name = format!("client-{writer}");
        let client = self.site.client(&name);
        Peer { name, writer, client, opens: Vec::new() }
    }

    /// An error is in order where the disk had faults, or the server ended in the middle.
    pub(super) fn check_error(&self, what: &str, error: &Error) -> Verdict {
        let disk = &self.site.disk;
        if disk.hits() == 0 && !disk.is_faulty() && !self.ended_in_step {
            return Err(format!("{what} failed although nothing went wrong: {error}"));
        }
        Ok(())
    }

    /// A client is about to change a file.
    pub(super) fn changes(&mut self, number: usize, writer: Writer) {
        if self.ended > 0 {
            self.changed.entry(number).or_default().insert(writer);
        }
    }

    /// What was not stable when a server ended need not be taken again after another client has
    /// changed the file. That is said, and nothing else.
    pub(super) fn may_be_refused(&self, number: usize, writer: Writer, error: &Error) -> bool {
        let others = self.changed.get(&number).is_some_and(|by| by.iter().any(|by| *by != writer));
        let is_said = matches!(error, Error::OutcomeUnknown { .. })
            || error.to_string().contains("cannot be sent again");
        others && is_said
    }

    pub(super) fn step(&mut self, step: Step) -> Verdict {
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

    /// With a healthy disk: everything is synced, everyone sees the same, and it is what the disk
    /// has, also after a restart.
    pub(super) fn finish(&mut self) -> Verdict {
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

    pub(super) fn sync_all(&mut self) -> Verdict<bool> {
        let mut all = true;
        for peer in 0..self.peers.len() {
            for (file, number) in self.peers[peer].opens.clone() {
                all &= self.sync_file(peer, &file, number, 0..CELLS)?;
            }
        }
        Ok(all)
    }

    pub(super) fn compare(&mut self, name: &str, number: usize, restarted: bool) -> Verdict {
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

pub(super) fn read_whole(file: &File, path: Path) -> Result<Vec<u8>, Error> {
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

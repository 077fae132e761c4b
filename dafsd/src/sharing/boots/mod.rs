//! The runs of the server, and what was handed over in each: what a run has to know of those before
//! it to judge the changes that clients send again.

mod file;

use super::{OwnerId, Range, Resend};
use crate::store::Identity;
use crate::sync::Mutex;
use dafs_proto::Time;
use file::{Appender, BootEntry, Entry, FileError, packed};
use foldhash::fast::RandomState;
use rangemap::RangeMap;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file in the state directory.
const FILE: &str = "boots";
/// Most boots that are remembered.
const MOST_BOOTS: usize = 16;
/// Most ranges that are remembered of a boot, and of all earlier ones.
const MOST_RANGES: usize = 1 << 16;
/// Entries in the file that are out of date, from which on it is written anew.
const REWRITE_FROM: usize = 4096;

/// Tells the starts of a machine apart: the kernel's `boot_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineBoot(pub [u8; 16]);

impl MachineBoot {
    /// That of this machine now.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn now() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| io::Error::other("the kernel's boot_id is not a number"))
    }
}

/// The time at which a boot begins, by the clock that gives files their ctime: later than that of
/// any change that was made before the call. Waits for the next tick of that clock.
#[must_use]
pub fn time_of_start() -> Time {
    // A ctime may come from the exact clock, which is ahead of the other by up to a tick.
    let before = clock_gettime(ClockId::Realtime);
    for _ in 0..100 {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        if (now.tv_sec, now.tv_nsec) > (before.tv_sec, before.tv_nsec) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let now = clock_gettime(ClockId::RealtimeCoarse);
    Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or_default() }
}

/// Why the record of boots cannot be had. Displayed with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BootsError {
    /// It cannot be read or written.
    #[error(
        "the record of the server's runs, {path}: {error}; name another state directory with --state-dir"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is not a record that this version of the server can read.
    #[error(
        "{path} is not a record of runs that this version of the server can read. Use the version \
         that wrote it; or remove the file: clients then cannot send again what was not stable when \
         the server ended, and are told so"
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
}

type PerOwner<T> = HashMap<OwnerId, T, RandomState>;
type HandedOver = HashMap<(Identity, OwnerId), RangeMap<u64, u64>, RandomState>;

/// What happened in one boot.
#[derive(Debug)]
struct Boot {
    entry: BootEntry,
    handed_over: HandedOver,
    /// Up to which number nothing of an owner is taken again.
    cut_off: PerOwner<u64>,
}

impl Boot {
    fn new(entry: BootEntry) -> Self {
        Self { entry, handed_over: HashMap::default(), cut_off: HashMap::default() }
    }

    fn ranges(&self) -> usize {
        self.handed_over.values().map(RangeMap::len).sum::<usize>() + self.cut_off.len()
    }

    fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Boot(_) => {}
            Entry::HandedOver { identity, owner, range, number } => {
                let ranges = self.handed_over.entry((*identity, *owner)).or_default();
                ranges.insert(range.clone(), *number);
            }
            Entry::CutOff { owner: OwnerId::ALL, number } => {
                self.handed_over.clear();
                self.cut_off = HashMap::from_iter([(OwnerId::ALL, *number)]);
            }
            Entry::CutOff { owner, number } => {
                self.handed_over.retain(|(_, of), _| of != owner);
                self.cut_off.insert(*owner, *number);
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let cut_off = self.cut_off.iter().map(|(owner, number)| (*owner, *number));
        let cut_off = cut_off.map(|(owner, number)| Entry::CutOff { owner, number });
        let ranges = self.handed_over.iter().flat_map(|((identity, owner), ranges)| {
            ranges.iter().map(|(range, number)| Entry::HandedOver {
                identity: *identity,
                owner: *owner,
                range: range.clone(),
                number: *number,
            })
        });
        std::iter::once(Entry::Boot(self.entry.clone())).chain(cut_off).chain(ranges)
    }
}

/// A range that is handed over.
#[derive(Clone, Debug)]
pub struct Record {
    /// The file.
    pub identity: Identity,
    /// The owner.
    pub owner: OwnerId,
    /// The range.
    pub range: Range,
    /// All changes of the owner up to that number are stable there.
    pub through: u64,
}

/// What is known of the time since an earlier boot, for the changes that it acknowledged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// When the boot after it began; `None` where that is not known.
    pub next_began: Option<Time>,
    /// What was handed over of the owner's in it, with numbers.
    pub handed_over: Vec<(Range, u64)>,
    /// Nothing is taken: the owner was cut off, or it is not known what happened.
    pub nothing: bool,
}

/// Where the record is kept.
#[derive(Debug)]
enum Kept {
    Nowhere,
    File(Appender),
    /// It could not be written anew, and which file has its name is not known.
    Lost,
}

/// The record of boots. The last one is the present one.
#[derive(Debug)]
pub struct Boots {
    boot: u64,
    machine_boot: u64,
    /// Locked before `state`, and while it is written.
    file: Mutex<Kept>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    earlier: Vec<Boot>,
    /// What happened in them is not known for sure.
    damaged: bool,
    now: Boot,
}

impl Boots {
    /// Begins a boot of the server with this state directory. `began`: the time now, by the clock
    /// that gives files their ctime.
    ///
    /// # Errors
    /// [`BootsError`]; nothing has changed then.
    pub fn begin(
        state: &Path,
        boot: u64,
        began: Time,
        machine: MachineBoot,
    ) -> Result<Self, BootsError> {
        let path = state.join(FILE);
        let io = |error| BootsError::Io { path: path.clone(), error };
        let contents = file::read(&path).map_err(|error| match error {
            FileError::Io(error) => io(error),
            FileError::Format => BootsError::Format { path: path.clone() },
        })?;
        if contents.damaged {
            tracing::error!(
                path = %path.display(),
                "the record of the server's runs is damaged: what clients send again of data that \
                 was not stable is refused"
            );
        }
        let mut earlier: Vec<Boot> = Vec::new();
        for entry in contents.entries {
            match (entry, earlier.last_mut()) {
                (Entry::Boot(entry), _) => earlier.push(Boot::new(entry)),
                (entry, Some(last)) => last.take(&entry),
                (_, None) => {}
            }
        }
        let machine_boot = earlier
            .last()
            .map_or(1, |last| last.entry.machine_boot + u64::from(last.entry.machine != machine.0));
        let mut ranges: usize = earlier.iter().map(Boot::ranges).sum();
        while earlier.len() >= MOST_BOOTS || (ranges > MOST_RANGES && !earlier.is_empty()) {
            ranges -= earlier.remove(0).ranges();
        }
        let entry = BootEntry { boot, began: packed(began), machine: machine.0, machine_boot };
        let now = Boot::new(entry);
        let all: Vec<Entry> = earlier.iter().chain([&now]).flat_map(Boot::entries).collect();
        let file = Mutex::new(Kept::File(Appender::create(&path, &all).map_err(io)?));
        let state = State { earlier, damaged: contents.damaged, now };
        Ok(Self { boot, machine_boot, file, state: Mutex::new(state) })
    }

    /// A boot of a server that remembers nothing. What an earlier one has acknowledged is taken
    /// again only of files that have not changed at all.
    #[must_use]
    pub fn forgetful(boot: u64) -> Self {
        let entry = BootEntry { boot, began: (0, 0), machine: [0; 16], machine_boot: 1 };
        let state = State { earlier: Vec::new(), damaged: false, now: Boot::new(entry) };
        Self { boot, machine_boot: 1, file: Mutex::new(Kept::Nowhere), state: Mutex::new(state) }
    }

    /// Distinguishes this run of the server from all others.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Counts the starts of the machine.
    #[must_use]
    pub fn machine_boot(&self) -> u64 {
        self.machine_boot
    }

    /// What is known since the boot that acknowledged a change.
    #[must_use]
    pub fn since(&self, resend: &Resend, identity: Identity, owner: OwnerId) -> Since {
        let state = self.state.lock();
        let is_over = |boot: &Boot| {
            let of =
                |owner| boot.cut_off.get(owner).is_some_and(|through| resend.number <= *through);
            of(&owner) || of(&OwnerId::ALL)
        };
        if resend.boot == self.boot {
            return Since { nothing: is_over(&state.now), ..Since::default() };
        }
        let Some(at) = state.earlier.iter().position(|boot| boot.entry.boot == resend.boot) else {
            return Since { nothing: state.damaged, ..Since::default() };
        };
        let boot = &state.earlier[at];
        let next = state.earlier.get(at + 1).unwrap_or(&state.now);
        let (seconds, nanoseconds) = next.entry.began;
        let ranges = boot.handed_over.get(&(identity, owner));
        // A device may have another number after the machine was started anew.
        let moved = boot.handed_over.keys().any(|(other, of)| {
            *of == owner
                && other.device != identity.device
                && (other.inode, other.generation) == (identity.inode, identity.generation)
        });
        Since {
            next_began: Some(Time { seconds, nanoseconds }),
            handed_over: ranges.into_iter().flat_map(RangeMap::iter).map(pair).collect(),
            nothing: state.damaged || moved || is_over(boot),
        }
    }

    /// Records, and makes stable, that ranges are handed over. `latest`: the number of the last change
    /// of all. Blocks.
    ///
    /// # Errors
    /// When the record cannot be written; it says nothing of the ranges then.
    pub fn hand_over(&self, ranges: &[Record], latest: u64) -> io::Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        let entries = ranges.iter().cloned().map(|record| Entry::HandedOver {
            identity: record.identity,
            owner: record.owner,
            range: record.range,
            number: record.through,
        });
        self.record(&entries.collect::<Vec<_>>(), latest)
    }

    /// Records, and makes stable, that nothing of an owner is taken again up to a number. Blocks.
    ///
    /// # Errors
    /// As for [`hand_over`](Self::hand_over).
    pub fn cut_off(&self, owner: OwnerId, number: u64) -> io::Result<()> {
        self.record(&[Entry::CutOff { owner, number }], number)
    }

    fn record(&self, entries: &[Entry], number: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        let mut write = |entries: &[Entry]| match &mut *file {
            Kept::File(file) => file.append(entries),
            Kept::Nowhere => Ok(()),
            Kept::Lost => Err(io::Error::other(
                "the record of the server's runs could not be written anew: restart the server",
            )),
        };
        write(entries)?;
        let largest = {
            let mut state = self.state.lock();
            entries.iter().for_each(|entry| state.now.take(entry));
            let is_full = state.now.ranges() > MOST_RANGES;
            is_full.then(|| state.now.largest_owner())
        };
        if let Some(largest) = largest {
            tracing::warn!(
                owner = ?largest,
                "too much was handed over of what clients have not been told is stable: should the \
                 server fail, they cannot send it again"
            );
            let number = number.max(self.state.lock().now.latest(largest));
            let entry = Entry::CutOff { owner: largest, number };
            write(std::slice::from_ref(&entry))?;
            self.state.lock().now.take(&entry);
        }
        if let Kept::File(appender) = &*file {
            let state = self.state.lock();
            if appender.len() > 2 * state.live() + REWRITE_FROM {
                let all: Vec<Entry> = state.boots().flat_map(Boot::entries).collect();
                drop(state);
                let path = appender.path().to_owned();
                *file = Kept::Lost;
                *file = Kept::File(Appender::create(&path, &all)?);
            }
        }
        Ok(())
    }

    /// An owner knows that its changes of a range up to `number` are stable.
    pub fn told(&self, identity: Identity, owner: OwnerId, range: &Range, number: u64) {
        if range.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let Some(ranges) = state.now.handed_over.get_mut(&(identity, owner)) else { return };
        let known: Vec<Range> = ranges
            .overlapping(range)
            .filter(|(_, through)| **through <= number)
            .map(|(of, _)| of.start.max(range.start)..of.end.min(range.end))
            .collect();
        known.into_iter().for_each(|part| ranges.remove(part));
        if ranges.is_empty() {
            state.now.handed_over.remove(&(identity, owner));
        }
    }
}

impl Boot {
    /// The greatest number that is recorded of an owner, or of all.
    fn latest(&self, owner: OwnerId) -> u64 {
        let of =
            self.handed_over.iter().filter(|((_, of), _)| [*of, OwnerId::ALL].contains(&owner));
        let ranges = of.flat_map(|(_, ranges)| ranges.iter().map(|(_, number)| *number));
        ranges.chain(self.cut_off.values().copied()).max().unwrap_or(0)
    }

    /// The owner with the most ranges; all owners, where none has any.
    fn largest_owner(&self) -> OwnerId {
        let mut counts: PerOwner<usize> = HashMap::default();
        for ((_, owner), ranges) in &self.handed_over {
            *counts.entry(*owner).or_default() += ranges.len();
        }
        let largest = counts.into_iter().max_by_key(|(_, count)| *count);
        largest.map_or(OwnerId::ALL, |(owner, _)| owner)
    }
}

impl State {
    fn boots(&self) -> impl Iterator<Item = &Boot> {
        self.earlier.iter().chain([&self.now])
    }

    /// Entries that the file needs.
    fn live(&self) -> usize {
        self.boots().map(|boot| boot.ranges() + 1).sum()
    }
}

fn pair((range, number): (&Range, &u64)) -> (Range, u64) {
    (range.clone(), *number)
}

#[cfg(test)]
mod tests;

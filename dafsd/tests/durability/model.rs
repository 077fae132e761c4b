//! What each acknowledgement promised.
//!
//! A file is a row of cells: stretches of bytes that are always written as a whole, which begin and
//! end at odd places within pages, never across them. Each cell has the versions that it may still
//! show, oldest first, each left by one change; how old it may be at the most after a crash (its
//! floor, the last version that was promised to be stable); and which of the versions it may show
//! now.
//!
//! - An acknowledged change is what everyone sees from then on, as long as the server runs.
//! - A failed change may have been done to each cell or not.
//! - A crash of the server, or a loss of power, takes each cell back to any version from its floor
//!   on. What a living client wrote may come back until its next sync of the file: if that
//!   succeeds, it must be there, or something newer.
//!   As soon as it uses the file again it must be there, where nothing speaks against it: nobody else
//!   changed the file since, and the disk never failed.
//! - A sync that succeeds makes stable all that its client wrote to the file, but for what an
//!   earlier sync had reported as lost; and what everyone saw, but for what failed or was reported.
//! - A sync that fails reports what its client wrote to that file, and nobody else's.
//! - What was seen pins what there is: a change that was not done, or was lost with its client, does
//!   not appear later. But for a change that failed before the server ended: the kernel may show it
//!   from its memory until it forgets it, and the disk not have it.

use super::PAGE;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Pages of the largest file.
pub const PAGES: usize = 6;
/// Where cells begin within a page.
const CUTS: [usize; 7] = [0, 1, 512, 1000, 2048, 3333, 4095];
/// Cells of the largest file.
pub const CELLS: usize = PAGES * CUTS.len();

/// Where a cell begins, in bytes.
pub fn begin(cell: usize) -> usize {
    cell / CUTS.len() * PAGE + CUTS[cell % CUTS.len()]
}

/// The cell that begins at a byte.
pub fn cell_at(byte: usize) -> Option<usize> {
    let cut = CUTS.iter().position(|cut| *cut == byte % PAGE)?;
    Some(byte / PAGE * CUTS.len() + cut)
}

/// A client; each that was ever there has a number.
pub type Writer = usize;

/// Whoever does not remember what was done.
pub const NOBODY: Writer = 0;

/// What a cell holds: behind the end of the file, or bytes of one value. A cell that nobody wrote
/// shows zeros where the file goes on behind it.
type State = Option<u8>;

/// A change of a file. It is known by its number, which grows.
#[derive(Clone, Copy, Debug)]
struct Change {
    file: usize,
    writer: Writer,
    fate: Fate,
    /// It was made before the server ended and may have to be sent again.
    in_doubt: bool,
    /// How often the server had ended before.
    boot: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Failed,
    /// Acknowledged, and its loss reported.
    Reported,
}

#[derive(Clone, Debug)]
struct Cell {
    versions: Vec<(usize, State)>,
    floor: usize,
    /// Numbers of the versions that it may show now.
    now: Vec<usize>,
}

/// All files, by number, and all changes.
#[derive(Debug)]
pub struct Model {
    files: Vec<Vec<Cell>>,
    changes: Vec<Change>,
    alive: Vec<bool>,
    boot: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self { files: Vec::new(), changes: Vec::new(), alive: vec![false], boot: 0 }
    }
}

impl Model {
    /// A new client.
    pub fn add_writer(&mut self) -> Writer {
        self.alive.push(true);
        self.alive.len() - 1
    }

    /// A new, empty file.
    pub fn add_file(&mut self, writer: Writer) -> usize {
        let file = self.files.len();
        let seq = self.change(file, writer, Fate::Acknowledged);
        let cell = Cell { versions: vec![(seq, None)], floor: seq, now: vec![seq] };
        self.files.push(vec![cell; CELLS]);
        file
    }

    fn change(&mut self, file: usize, writer: Writer, fate: Fate) -> usize {
        let boot = self.boot;
        self.changes.push(Change { file, writer, fate, in_doubt: false, boot });
        self.changes.len() - 1
    }

    /// The number of the next change.
    pub fn next(&self) -> usize {
        self.changes.len()
    }

    /// A write to the cells was acknowledged.
    pub fn wrote(
        &mut self,
        file: usize,
        cells: std::ops::Range<usize>,
        value: u8,
        writer: Writer,
        stable: bool,
    ) {
        let seq = self.change(file, writer, Fate::Acknowledged);
        for cell in &mut self.files[file][cells] {
            cell.versions.push((seq, Some(value)));
            cell.now = vec![seq];
            if stable {
                cell.raise(seq);
            }
        }
    }

    /// A write to the cells failed.
    pub fn failed_to_write(
        &mut self,
        file: usize,
        cells: std::ops::Range<usize>,
        value: u8,
        writer: Writer,
    ) {
        let seq = self.change(file, writer, Fate::Failed);
        for cell in &mut self.files[file][cells] {
            cell.versions.push((seq, Some(value)));
            cell.now.push(seq);
        }
    }

    /// The file ends where the cell `end` begins, by an acknowledged truncation. Of [`NOBODY`], it
    /// is not sent again.
    pub fn truncated(&mut self, file: usize, end: usize, writer: Writer) {
        let seq = self.change(file, writer, Fate::Acknowledged);
        for (number, cell) in self.files[file].iter_mut().enumerate() {
            let state = if number < end { Some(0) } else { None };
            // Only the cell before the end tells that the file goes so far.
            let extends = number + 1 == end && cell.shows_only(None);
            if number >= end && !cell.is_always(None) || extends {
                cell.versions.push((seq, state));
                cell.now = vec![seq];
            }
        }
    }

    /// A truncation to where the cell `end` begins failed.
    pub fn failed_to_truncate(&mut self, file: usize, end: usize, writer: Writer) {
        let seq = self.change(file, writer, Fate::Failed);
        for (number, cell) in self.files[file].iter_mut().enumerate() {
            let state = if number < end { Some(0) } else { None };
            let extends = number + 1 == end && cell.shows_only(None);
            if number >= end && !cell.is_always(None) || extends {
                cell.versions.push((seq, state));
                cell.now.push(seq);
            }
        }
    }

    /// A sync of these cells succeeded.
    pub fn synced(&mut self, file: usize, cells: std::ops::Range<usize>, writer: Writer) {
        let Self { files, changes, .. } = self;
        let whole = cells == (0..CELLS);
        for cell in &mut files[file][cells] {
            let shown = cell.now.iter().copied().min().unwrap_or(cell.floor);
            if changes[shown].fate == Fate::Acknowledged {
                cell.raise(shown);
            }
            let own = cell.versions.iter().rev().map(|(seq, _)| *seq).find(|seq| {
                let Change { writer: by, fate, .. } = changes[*seq];
                by == writer && fate == Fate::Acknowledged
            });
            cell.raise(own.unwrap_or(0));
            // The sync itself may have brought it back, over a change that had failed.
            if let Some(own) = own
                && changes[own].in_doubt
                && own >= cell.floor
                && !cell.now.contains(&own)
            {
                cell.now.push(own);
            }
        }
        if whole {
            self.of(file, writer).for_each(|change| change.in_doubt = false);
        }
    }

    /// A sync of the file failed.
    pub fn failed_to_sync(&mut self, file: usize, writer: Writer) {
        for change in self.of(file, writer).filter(|change| change.fate == Fate::Acknowledged) {
            change.fate = Fate::Reported;
        }
    }

    fn of(&mut self, file: usize, writer: Writer) -> impl Iterator<Item = &mut Change> {
        self.changes.iter_mut().filter(move |c| (c.file, c.writer) == (file, writer))
    }

    /// Whether a sync of the file may tell a client that something was lost.
    pub fn may_report(&self, file: usize, writer: Writer) -> bool {
        let its = self.changes.iter().filter(|c| (c.file, c.writer) == (file, writer));
        its.fold(false, |any, c| any || c.in_doubt || c.fate == Fate::Reported)
    }

    /// A client is gone without a word.
    pub fn killed(&mut self, writer: Writer) {
        self.alive[writer] = false;
    }

    /// The server ended in good order: everything is stable but for some pages of files.
    pub fn stopped(&mut self, but: &BTreeSet<(usize, usize)>) {
        let Self { files, changes, .. } = self;
        for (file, cells) in files.iter_mut().enumerate() {
            for (number, cell) in cells.iter_mut().enumerate() {
                let shown = cell.now.iter().copied().min().unwrap_or(cell.floor);
                let is_excluded = but.contains(&(file, begin(number) / PAGE));
                if changes[shown].fate == Fate::Acknowledged && !is_excluded {
                    cell.raise(shown);
                }
            }
        }
    }

    /// The server's memory is gone.
    pub fn crashed(&mut self) {
        let Self { files, changes, alive, boot } = self;
        *boot += 1;
        for cell in files.iter_mut().flatten() {
            cell.now = cell.versions.iter().map(|(seq, _)| *seq).collect();
            for seq in cell.now.iter().filter(|seq| **seq > cell.floor) {
                let change = &mut changes[*seq];
                change.in_doubt |= alive[change.writer];
            }
        }
    }

    /// A client has used its open of the file after the server ended, and so has sent again what it
    /// had to. Where nobody else changed the file in between, and the server ended once only, all of
    /// it was taken.
    pub fn recovered(&mut self, file: usize, writer: Writer) {
        let Self { files, changes, boot, .. } = self;
        let others = |c: &Change| c.file == file && c.writer != writer && c.boot == *boot;
        if changes.iter().any(others) {
            return;
        }
        for cell in &mut files[file] {
            let own = cell.versions.iter().rev().map(|(seq, _)| *seq).find(|seq| {
                let Change { writer: by, fate, boot: of, .. } = changes[*seq];
                by == writer && fate == Fate::Acknowledged && of + 1 == *boot
            });
            cell.raise_shown(own.unwrap_or(0));
        }
    }

    /// A read brought this content, in the middle of which the server ended. Parts of it may be from
    /// before, and gone since then, so it pins nothing.
    ///
    /// # Errors
    /// What of it may not be.
    pub fn saw_parts(&mut self, file: usize, content: &[u8]) -> Result<(), String> {
        let before = self.files[file].clone();
        let seen = self.saw(file, content);
        self.files[file] = before;
        seen
    }

    /// Everyone saw this content.
    ///
    /// # Errors
    /// What of it may not be.
    pub fn saw(&mut self, file: usize, content: &[u8]) -> Result<(), String> {
        let size = content.len();
        if cell_at(size).is_none_or(|cell| cell > CELLS) {
            return Err(format!("its size is {size}, where no change ends"));
        }
        let Self { files, changes, alive, boot } = self;
        for (number, cell) in files[file].iter_mut().enumerate() {
            let (start, end) = (begin(number), begin(number + 1));
            let bytes = content.get(start..end.min(size)).unwrap_or_default();
            let shown = bytes.first().copied();
            if bytes.iter().any(|byte| Some(*byte) != shown) {
                return Err(format!("bytes {start}..{end} are of several changes"));
            }
            let can_return = |seq: usize| {
                let Change { writer, fate, in_doubt, .. } = changes[seq];
                let is_lost = in_doubt || fate == Fate::Reported;
                alive[writer] && is_lost && fate != Fate::Failed
            };
            let Err(allowed) = cell.saw(shown, can_return) else {
                let may_vanish = |seq: &usize| {
                    let Change { fate, boot: of, .. } = changes[*seq];
                    fate == Fate::Failed && of < *boot
                };
                if cell.now.iter().all(may_vanish) {
                    let older = cell.versions.iter().rev().map(|(seq, _)| *seq);
                    cell.now.extend(older.clone().find(|seq| changes[*seq].fate != Fate::Failed));
                }
                continue;
            };
            let mut what = match shown {
                None => format!("there is nothing at {start}..{end}"),
                Some(value) => format!("bytes {start}..{end} are {value}"),
            };
            let _ = write!(what, ", the size is {size}; they may be");
            for (seq, state) in allowed {
                let Change { writer, fate, in_doubt, .. } = changes[seq];
                let state = state.map_or("nothing".to_owned(), |value| value.to_string());
                let doubt = if in_doubt { ", in doubt" } else { "" };
                let dead = if alive[writer] { "" } else { ", which was killed" };
                let _ = write!(
                    what,
                    "\n    {state}: change {seq} ({fate:?}{doubt}) of client {writer}{dead}"
                );
            }
            let _ = write!(what, "\n  versions {:?}, floor {}", cell.versions, cell.floor);
            return Err(what);
        }
        Ok(())
    }
}

impl Cell {
    /// From now on it is never older than that.
    fn raise(&mut self, floor: usize) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        self.versions.retain(|(seq, _)| *seq >= floor);
        self.now.retain(|seq| *seq >= floor);
        if self.now.is_empty() {
            // It was seen to be older already: the next look finds that.
            self.now.push(floor);
        }
    }

    /// From now on, as long as the server runs, it shows that or something newer.
    fn raise_shown(&mut self, least: usize) {
        if self.now.iter().any(|seq| *seq < least) {
            self.now.retain(|seq| *seq >= least);
            if self.now.is_empty() {
                self.now.push(least);
            }
        }
    }

    fn state(&self, seq: usize) -> Option<State> {
        self.versions.iter().find(|(known, _)| *known == seq).map(|(_, state)| *state)
    }

    fn shows_only(&self, state: State) -> bool {
        self.now.iter().all(|seq| self.state(*seq) == Some(state))
    }

    fn is_always(&self, state: State) -> bool {
        self.versions.iter().all(|(_, known)| *known == state)
    }

    /// Takes note of what it shows; else what it may show.
    fn saw(
        &mut self,
        shown: State,
        can_return: impl Fn(usize) -> bool,
    ) -> Result<(), Vec<(usize, State)>> {
        let fits = |state: State| state == shown || (state.is_none() && shown == Some(0));
        let allowed: Vec<_> =
            self.versions.iter().filter(|(seq, _)| self.now.contains(seq)).copied().collect();
        let fitting = allowed.iter().filter(|(_, state)| fits(*state)).map(|(seq, _)| *seq);
        let fitting: Vec<usize> = fitting.collect();
        let Some(newest) = fitting.iter().copied().max() else { return Err(allowed) };
        self.versions.retain(|(seq, _)| *seq <= newest || can_return(*seq));
        self.now.retain(|seq| fitting.contains(seq) || (*seq > newest && can_return(*seq)));
        Ok(())
    }
}

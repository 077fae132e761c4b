//! The log that keeps an [object table](super::table) across restarts.
//!
//! Records are appended and never changed. A record that was not written whole ends the log when it
//! is read again; what was lost with it are handles, which their clients find stale. The log is
//! written anew when most of it is out of date.
//!
//! A record: length of the rest (u32), hash of the rest (u64), kind (1 put, 2 remove), number (u64),
//! and for a put: parent (u64), device (u64), inode (u64), generation (u64), directory (0 or 1),
//! name. Integers are little-endian.

use super::sys::fnv;
use super::table::{Record, Records};
use crate::state;
use crate::store::Identity;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

const PUT: u8 = 1;
const REMOVE: u8 = 2;
/// Kind and number.
const REMOVE_LEN: usize = 9;
/// Everything of a put but its name.
const PUT_LEN: usize = REMOVE_LEN + 4 * 8 + 1;
/// Longest record: a name has at most 255 bytes.
const MAX_LEN: usize = PUT_LEN + 255;
/// Records more than twice as many as objects, from this many on, cause the log to be written anew.
const REWRITE_FROM: usize = 4096;

/// A change of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is there now.
    Put(u64, Record),
    /// The object is gone.
    Remove(u64),
}

impl Change {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(MAX_LEN);
        match self {
            Self::Put(number, record) => {
                body.push(PUT);
                let Identity { device, inode, generation } = record.identity;
                for field in [*number, record.parent, device, inode, generation] {
                    body.extend(field.to_le_bytes());
                }
                body.push(record.directory.into());
                body.extend(&record.name);
            }
            Self::Remove(number) => {
                body.push(REMOVE);
                body.extend(number.to_le_bytes());
            }
        }
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(fnv([&body[..]]).to_le_bytes());
        out.extend(body);
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let field = |at: usize| {
            let bytes = body.get(1 + at * 8..9 + at * 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        match *body.first()? {
            PUT => {
                let name = body.get(PUT_LEN..)?;
                let identity =
                    Identity { device: field(2)?, inode: field(3)?, generation: field(4)? };
                let directory = body[PUT_LEN - 1] != 0;
                let record = Record { parent: field(1)?, name: name.into(), identity, directory };
                super::sys::check_name("record", name).ok()?;
                Some(Self::Put(field(0)?, record))
            }
            REMOVE if body.len() == REMOVE_LEN => Some(Self::Remove(field(0)?)),
            _ => None,
        }
    }
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: usize,
    scratch: Vec<u8>,
}

impl Journal {
    /// Opens or creates a log and reads the table it holds.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path) -> io::Result<(Self, Records)> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(state::flags())
            .open(path)?;
        let (table, records, len) = read(&file)?;
        if file.metadata()?.len() > len {
            tracing::warn!(path = %path.display(), at = len, "the handle table ends in a torn record");
            file.set_len(len)?;
        }
        file.seek(io::SeekFrom::End(0))?;
        let journal = Self { path: path.to_owned(), file, records, scratch: Vec::new() };
        Ok((journal, table))
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a change that `table` does not have yet.
    pub fn append(&mut self, change: &Change, table: &Records) -> io::Result<()> {
        if self.records >= REWRITE_FROM && self.records > 2 * table.len() {
            self.rewrite(table)?;
        }
        self.scratch.clear();
        change.encode(&mut self.scratch);
        self.records += 1;
        self.file.write_all(&self.scratch)
    }

    fn rewrite(&mut self, table: &Records) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut writer = BufWriter::new(state::create_new(&new)?);
        for (number, record) in table.iter() {
            self.scratch.clear();
            Change::Put(number, record.clone()).encode(&mut self.scratch);
            writer.write_all(&self.scratch)?;
        }
        let file = writer.into_inner()?;
        file.sync_data()?;
        std::fs::rename(&new, &self.path)?;
        (self.file, self.records) = (file, table.len());
        Ok(())
    }
}

/// Reads a log from its start: the table, its records, and the bytes up to the first bad one.
fn read(file: &File) -> io::Result<(Records, usize, u64)> {
    let mut reader = BufReader::new(file);
    let (mut table, mut records, mut len) = (Records::default(), 0, 0);
    let (mut head, mut body) = ([0; 12], Vec::new());
    loop {
        if !read_whole(&mut reader, &mut head)? {
            return Ok((table, records, len));
        }
        let [a, b, c, d, hash @ ..] = head;
        let body_len = u32::from_le_bytes([a, b, c, d]) as usize;
        if body_len > MAX_LEN {
            return Ok((table, records, len));
        }
        body.resize(body_len, 0);
        if !read_whole(&mut reader, &mut body)? || fnv([&body[..]]) != u64::from_le_bytes(hash) {
            return Ok((table, records, len));
        }
        match Change::decode(&body) {
            Some(Change::Put(number, record)) => table.put(number, record),
            Some(Change::Remove(number)) => table.remove(number),
            None => return Ok((table, records, len)),
        }
        records += 1;
        len += (head.len() + body_len) as u64;
    }
}

/// Fills `buffer`, or says that the file ends before that.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(number: u64, name: &[u8]) -> Change {
        let identity = Identity { device: 1, inode: number, generation: 7 };
        Change::Put(number, Record { parent: 0, name: name.into(), identity, directory: false })
    }

    fn numbers(table: &Records) -> Vec<u64> {
        let mut numbers: Vec<_> = table.iter().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_log_is_read_again_up_to_a_torn_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, table) = Journal::open(&path).unwrap();
        assert_eq!(table.len(), 0);
        for change in [put(1, b"a"), put(2, b"\xff\n"), Change::Remove(1), put(3, b"c")] {
            journal.append(&change, &table).unwrap();
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let (_, table) = Journal::open(&path).unwrap();
        assert_eq!(numbers(&table), [2, 3]);
        assert_eq!(
            table.iter().find(|(number, _)| *number == 2).unwrap().1.name[..],
            b"\xff\n"[..]
        );

        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, table) = Journal::open(&path).unwrap();
            assert!(!numbers(&table).contains(&3));
            journal.append(&put(9, b"z"), &table).unwrap();
            let (_, table) = Journal::open(&path).unwrap();
            assert!(numbers(&table).contains(&9), "appended after a cut at {cut}");
        }
    }

    #[test]
    fn a_log_full_of_the_past_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, mut table) = Journal::open(&path).unwrap();
        for round in 0..3 * REWRITE_FROM as u64 {
            let change = put(1, format!("{round}").as_bytes());
            journal.append(&change, &table).unwrap();
            let Change::Put(number, record) = change else { unreachable!() };
            table.put(number, record);
        }
        assert!(journal.records <= REWRITE_FROM);
        let (_, again) = Journal::open(&path).unwrap();
        assert_eq!(again.iter().next(), table.iter().next());
    }
}

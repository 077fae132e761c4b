//! The file that holds the record of boots: entries of 128 bytes, which are only appended.
//!
//! An entry: hash of the rest (u64), kind (u8), fields. Integers are little-endian, what is left is
//! zero. The first entry names the format.

use crate::sharing::{OwnerId, Range};
use crate::store::Identity;
use dafs_proto::Time;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_128;

const ENTRY: usize = 128;
const MAGIC: &[u8; 8] = b"dafsboot";
const VERSION: u64 = 1;
const FORMAT: u8 = 0;
const BOOT: u8 = 1;
const HANDED_OVER: u8 = 2;
const CUT_OFF: u8 = 3;

/// A start of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    pub boot: u64,
    pub began: (i64, u32),
    pub machine: [u8; 16],
    pub machine_boot: u64,
}

/// An entry, but the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The server was started. What follows, up to the next one, happened in this boot.
    Boot(BootEntry),
    /// A range was handed over.
    HandedOver { identity: Identity, owner: OwnerId, range: Range, number: u64 },
    /// Nothing of an owner is taken again that has no greater number.
    CutOff { owner: OwnerId, number: u64 },
}

/// Builds an entry field by field.
struct Builder([u8; ENTRY], usize);

impl Builder {
    fn new(kind: u8) -> Self {
        let mut bytes = [0; ENTRY];
        bytes[8] = kind;
        Self(bytes, 9)
    }

    fn put(mut self, field: &[u8]) -> Self {
        self.0[self.1..self.1 + field.len()].copy_from_slice(field);
        self.1 += field.len();
        self
    }

    fn number(self, number: u64) -> Self {
        self.put(&number.to_le_bytes())
    }

    fn finish(mut self) -> [u8; ENTRY] {
        let hash = hash(&self.0[8..]);
        self.0[..8].copy_from_slice(&hash.to_le_bytes());
        self.0
    }
}

/// Takes an entry apart.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY] {
        match self {
            Self::Boot(BootEntry {
                boot,
                began: (seconds, nanoseconds),
                machine,
                machine_boot,
            }) => Builder::new(BOOT)
                .number(*boot)
                .put(&seconds.to_le_bytes())
                .put(&nanoseconds.to_le_bytes())
                .put(machine)
                .number(*machine_boot)
                .finish(),
            Self::HandedOver { identity, owner, range, number } => Builder::new(HANDED_OVER)
                .number(identity.device)
                .number(identity.inode)
                .number(identity.generation)
                .put(owner.as_bytes())
                .number(range.start)
                .number(range.end)
                .number(*number)
                .finish(),
            Self::CutOff { owner, number } => {
                Builder::new(CUT_OFF).put(owner.as_bytes()).number(*number).finish()
            }
        }
    }

    fn decode(entry: &[u8; ENTRY]) -> Option<Self> {
        let (check, rest) = entry.split_first_chunk::<8>()?;
        if u64::from_le_bytes(*check) != hash(rest) {
            return None;
        }
        let (kind, rest) = rest.split_first()?;
        let mut fields = Fields(rest);
        match *kind {
            BOOT => Some(Self::Boot(BootEntry {
                boot: fields.number()?,
                began: (i64::from_le_bytes(fields.take()?), u32::from_le_bytes(fields.take()?)),
                machine: fields.take()?,
                machine_boot: fields.number()?,
            })),
            HANDED_OVER => {
                let identity = Identity {
                    device: fields.number()?,
                    inode: fields.number()?,
                    generation: fields.number()?,
                };
                let owner = OwnerId::from_bytes(fields.take()?);
                let range = fields.number()?..fields.number()?;
                let number = fields.number()?;
                (range.start < range.end).then_some(Self::HandedOver {
                    identity,
                    owner,
                    range,
                    number,
                })
            }
            CUT_OFF => Some(Self::CutOff {
                owner: OwnerId::from_bytes(fields.take()?),
                number: fields.number()?,
            }),
            _ => None,
        }
    }
}

/// The lower half of XXH3-128.
fn hash(bytes: &[u8]) -> u64 {
    XxHash3_128::oneshot(bytes) as u64
}

fn format() -> [u8; ENTRY] {
    Builder::new(FORMAT).put(MAGIC).number(VERSION).finish()
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    pub entries: Vec<Entry>,
    /// An entry before the last one cannot be read: what it said is not known.
    pub damaged: bool,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum FileError {
    Io(io::Error),
    /// It is of another version of the server, or something else.
    Format,
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads a file. One that is not there holds nothing.
pub fn read(path: &Path) -> Result<Contents, FileError> {
    let mut bytes = Vec::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    match options.read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => (&file).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        Err(error) => return Err(error.into()),
    };
    // A part of an entry at the end was being written when the server ended: what it was to say had
    // not been acted upon.
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    let Some((first, entries)) = entries.split_first() else { return Err(FileError::Format) };
    if *first != format() {
        return Err(FileError::Format);
    }
    let mut contents = Contents::default();
    for (at, entry) in entries.iter().enumerate() {
        match Entry::decode(entry) {
            Some(entry) => contents.entries.push(entry),
            None => {
                contents.damaged |= entries[at + 1..].iter().any(|e| Entry::decode(e).is_some())
            }
        }
    }
    Ok(contents)
}

/// A file that entries are appended to.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    end: u64,
}

impl Appender {
    /// Replaces the file by one that holds these entries, synced.
    pub fn create(path: &Path, entries: &[Entry]) -> io::Result<Self> {
        let unfinished = path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // What a crash left.
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let mut bytes = format().to_vec();
        entries.iter().for_each(|entry| bytes.extend(entry.encode()));
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        File::open(parent)?.sync_all()?;
        Ok(Self { file, path: path.to_owned(), end: bytes.len() as u64 })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Entries in the file, about.
    pub fn len(&self) -> usize {
        usize::try_from(self.end).unwrap_or(usize::MAX) / ENTRY
    }

    /// Appends entries, and makes them stable. After an error none of them counts: the next ones are
    /// written in their place.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY);
        entries.iter().for_each(|entry| bytes.extend(entry.encode()));
        self.file.write_all_at(&bytes, self.end)?;
        self.file.sync_data()?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// A time as entries have it.
pub fn packed(time: Time) -> (i64, u32) {
    (time.seconds, time.nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u8) -> OwnerId {
        OwnerId::from_bytes([number; OwnerId::LEN])
    }

    fn entries() -> Vec<Entry> {
        let identity = Identity { device: 1, inode: u64::MAX, generation: 3 };
        vec![
            Entry::Boot(BootEntry { boot: 7, began: (-1, 999), machine: [4; 16], machine_boot: 2 }),
            Entry::HandedOver { identity, owner: owner(1), range: 5..u64::MAX, number: 9 },
            Entry::CutOff { owner: owner(2), number: 10 },
        ]
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boots");
        assert!(read(&path).unwrap().entries.is_empty());
        let mut file = Appender::create(&path, &entries()[..1]).unwrap();
        file.append(&entries()[1..]).unwrap();
        let contents = read(&path).unwrap();
        assert_eq!((contents.entries, contents.damaged), (entries(), false));
    }

    #[test]
    fn a_torn_end_is_nothing_and_a_hole_before_it_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boots");
        Appender::create(&path, &entries()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 2 * ENTRY..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let contents = read(&path).unwrap();
            assert_eq!(contents.entries, entries()[..cut / ENTRY - 1]);
            assert!(!contents.damaged);
        }
        for at in ENTRY..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let contents = read(&path).unwrap();
            assert_eq!(contents.entries.len(), 2, "byte {at}");
            assert_eq!(contents.damaged, at < whole.len() - ENTRY, "byte {at}");
        }
    }

    #[test]
    fn something_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boots");
        for wrong in [&b""[..], b"x", &[0; 4 * ENTRY]] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(read(&path), Err(FileError::Format)));
        }
    }
}

//! Which clients are fenced off, as plain data and as the file that remembers it.
//!
//! The file is text: a first line that names its form, one name a line, and a last line with the
//! number of names, so that one that was cut short is not taken for a shorter list.

use crate::state::{create_new, flags};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FIRST: &str = "dafs-fenced 1";

/// Names of clients that are fenced off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fenced(BTreeSet<String>);

impl Fenced {
    /// Whether the client with this name is fenced off.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Fences a client off; whether it was not.
    pub fn insert(&mut self, name: &str) -> bool {
        self.0.insert(name.to_owned())
    }

    /// Lets a client in again; whether it was fenced off.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name)
    }

    /// The names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    fn encode(&self) -> String {
        let names: String = self.iter().map(|name| format!("{name}\n")).collect();
        format!("{FIRST}\n{names}end {}\n", self.0.len())
    }

    fn decode(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(FIRST)?.strip_prefix('\n')?.strip_suffix('\n')?;
        let mut lines: Vec<&str> = rest.split('\n').collect();
        let count: usize = lines.pop()?.strip_prefix("end ")?.parse().ok()?;
        let names: BTreeSet<String> = lines.iter().map(|name| (*name).to_owned()).collect();
        let is_whole = names.len() == count && lines.len() == count && !names.contains("");
        is_whole.then_some(Self(names))
    }
}

/// Why the file of fenced clients cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FenceFileError {
    /// It cannot be read or written.
    #[error("fenced clients {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is damaged, and the clients that are fenced off are not known.
    #[error(
        "fenced clients {path}: the file is damaged, so it is not known who is fenced off. Remove \
         it, and fence the clients off again that must not come back"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The file that remembers who is fenced off.
#[derive(Debug)]
pub struct FenceFile(PathBuf);

impl FenceFile {
    /// Reads the file. Where there is none, nobody is fenced off.
    ///
    /// # Errors
    /// It is there and cannot be read, or is damaged.
    pub fn load(path: &Path) -> Result<(Self, Fenced), FenceFileError> {
        let file = Self(path.to_owned());
        let read = || {
            let mut bytes = Vec::new();
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags()).open(path)?.read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let fenced = match read() {
            Ok(bytes) => std::str::from_utf8(&bytes).ok().and_then(Fenced::decode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Fenced::default()),
            Err(error) => return Err(FenceFileError::Io { path: path.to_owned(), error }),
        };
        let fenced = fenced.ok_or_else(|| FenceFileError::Damaged { path: path.to_owned() })?;
        Ok((file, fenced))
    }

    /// Writes the file; when it returns, a crash does not undo it.
    ///
    /// # Errors
    /// When it cannot be written. The file says what it said before, or, where the very last step
    /// failed, what it was to say.
    pub fn save(&self, fenced: &Fenced) -> Result<(), FenceFileError> {
        self.replace(fenced.encode().as_bytes())
            .map_err(|error| FenceFileError::Io { path: self.0.clone(), error })
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = create_new(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.0)?;
        match self.0.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(directory) => File::open(directory)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_fenced_off_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fenced");
        let (file, mut fenced) = FenceFile::load(&path).unwrap();
        assert_eq!(fenced, Fenced::default());
        assert!(fenced.insert("b") && fenced.insert("a") && !fenced.insert("a"));
        file.save(&fenced).unwrap();
        let (file, mut again) = FenceFile::load(&path).unwrap();
        assert_eq!(again, fenced);
        assert!(again.contains("a") && again.iter().eq(["a", "b"]));
        assert!(again.remove("a") && !again.remove("a"));
        file.save(&again).unwrap();
        assert!(FenceFile::load(&path).unwrap().1.iter().eq(["b"]));
        again.remove("b");
        file.save(&again).unwrap();
        assert_eq!(FenceFile::load(&path).unwrap().1, again);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_a_shorter_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fenced");
        let whole = "dafs-fenced 1\na\nb\nend 2\n";
        std::fs::write(&path, whole).unwrap();
        FenceFile::load(&path).unwrap();
        let cut = (0..whole.len()).map(|end| whole[..end].to_owned());
        let others = ["dafs-fenced 2\nend 0\n", "dafs-fenced 1\na\n\nend 2\n"].map(String::from);
        let others = others.into_iter().chain(["dafs-fenced 1\na\na\nend 2\n".to_owned()]);
        for text in cut.chain(others) {
            std::fs::write(&path, &text).unwrap();
            let error = FenceFile::load(&path).unwrap_err();
            assert!(matches!(error, FenceFileError::Damaged { .. }), "{text:?}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        std::fs::write(&path, b"dafs-fenced 1\n\xFF\nend 1\n").unwrap();
        assert!(matches!(FenceFile::load(&path), Err(FenceFileError::Damaged { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(FenceFile::load(&path), Err(FenceFileError::Io { .. })));
    }

    #[test]
    fn what_is_written_goes_where_no_link_leads() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("fenced"), directory.path().join("other"));
        std::fs::write(&other, "dafs-fenced 1\na\nend 1\n").unwrap();
        symlink(&other, path.with_extension("new")).unwrap();
        let mut fenced = Fenced::default();
        fenced.insert("b");
        let (file, _) = FenceFile::load(&path).unwrap();
        file.save(&fenced).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"dafs-fenced 1\na\nend 1\n");
        assert_eq!(FenceFile::load(&path).unwrap().1, fenced);
        std::fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(matches!(FenceFile::load(&path), Err(FenceFileError::Io { .. })));
    }

    #[test]
    fn what_cannot_be_remembered_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone/fenced");
        let (file, fenced) = FenceFile::load(&path).unwrap();
        assert!(file.save(&fenced).unwrap_err().to_string().contains("gone/fenced"));
    }
}

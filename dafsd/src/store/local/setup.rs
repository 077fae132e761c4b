//! How a directory is offered, and which handles that takes.

use super::descriptors::Descriptors;
use super::journal::Journal;
use super::kernel::KernelHandles;
use super::sys::{self, failed};
use super::table::ObjectTable;
use crate::store::{Result, StoreError};
use rustix::fs::{self, Mode, OFlags};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a directory is offered.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Nothing is changed.
    pub read_only: bool,
    /// User and group that own what is created, where the server may give files away.
    pub owner: Option<(u32, u32)>,
    /// Descriptors that it keeps open, which it may share with others.
    pub descriptors: Arc<Descriptors>,
    /// Where a handle table is kept if one is needed; without it, handles end with the server.
    pub state: Option<PathBuf>,
    /// Use a handle table even where the kernel's handles can be used.
    pub handle_table: bool,
}

impl Default for LocalOptions {
    fn default() -> Self {
        let descriptors = Descriptors::new(1024);
        Self { read_only: false, owner: None, descriptors, state: None, handle_table: false }
    }
}

/// Which handles a store uses, and why. Displayed as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandleReport {
    /// The kernel's own.
    Kernel,
    /// By number, kept in a file.
    Table {
        /// What the kernel's would have needed.
        why: String,
        /// The file.
        path: PathBuf,
        /// Objects it knew at the start, where it was read.
        known: Option<usize>,
    },
    /// By number, not kept.
    Memory {
        /// What the kernel's would have needed.
        why: String,
    },
}

impl fmt::Display for HandleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str(
                "handles are the kernel's (name_to_handle_at): they survive restarts and renames",
            ),
            Self::Table { why, path, known } => {
                write!(f, "handles are kept in {}", path.display())?;
                if let Some(known) = known {
                    write!(f, " ({known} objects)")?;
                }
                write!(
                    f,
                    ": they survive restarts, and what others have renamed is searched for, \
                     because {why}"
                )
            }
            Self::Memory { why } => write!(
                f,
                "handles are kept in memory: clients find them stale after a restart, because \
                 {why}, and there is no state directory"
            ),
        }
    }
}

/// Opens an export's root; also the export's id, which its handles bear.
pub(super) fn open_root(path: &Path) -> Result<(OwnedFd, [u8; 8])> {
    let what = || format!("export root {}", path.display());
    let canonical = path
        .canonicalize()
        .map_err(|error| StoreError::io(format!("{}: {error}", what()), &error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = fs::open(&canonical, flags, Mode::empty()).map_err(|error| failed(what(), error))?;
    // One call of the kind that every operation needs, so that its lack is found here.
    sys::open_path(&fd, b".").map_err(|error| {
        failed(format!("{}: openat2 (Linux 5.6, allowed by seccomp)", what()), error)
    })?;
    let stat = sys::stat(&fd).map_err(|error| failed(what(), error))?;
    // Not the device number, which may be another one after the next restart of the host.
    let file_system = fs::fstatvfs(&fd).map_err(|error| failed(what(), error))?.f_fsid;
    let export = sys::fnv([
        canonical.as_os_str().as_bytes(),
        &file_system.to_le_bytes(),
        &stat.stx_ino.to_le_bytes(),
    ]);
    Ok((fd, export.to_le_bytes()))
}

pub(super) fn kernel_handles(
    root: &OwnedFd,
    export: [u8; 8],
    options: &LocalOptions,
) -> std::result::Result<KernelHandles, String> {
    if options.handle_table {
        return Err("the configuration asks for it".to_owned());
    }
    KernelHandles::probe(root.as_fd(), export)
}

pub(super) fn table_path(state: &Path, export: [u8; 8]) -> PathBuf {
    state.join(format!("handles-{:016x}", u64::from_le_bytes(export)))
}

pub(super) fn handle_table(
    root: &OwnedFd,
    export: [u8; 8],
    options: &LocalOptions,
    why: String,
) -> Result<(ObjectTable, HandleReport)> {
    let own = sys::open_path(root, b".").map_err(|error| failed("export root", error))?;
    let Some(state) = &options.state else {
        return Ok((ObjectTable::new(export, own, None), HandleReport::Memory { why }));
    };
    let path = table_path(state, export);
    let (journal, records) = Journal::open(&path).map_err(|error| {
        StoreError::io(format!("handle table {}: {error}", path.display()), &error)
    })?;
    let known = Some(records.len());
    let table = ObjectTable::new(export, own, Some((journal, records)));
    Ok((table, HandleReport::Table { why, path, known }))
}

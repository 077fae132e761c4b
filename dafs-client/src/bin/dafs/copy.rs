//! What `get` and `put` share: several files in flight, progress, and a list of what failed.

use crate::failure::{Failure, Result, tell};
use crate::format;
use crate::interrupt;
use crate::sparse::Sparse;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Bytes of a file that are moved at a time.
pub const BLOCK: usize = 4 << 20;
/// Files that wait for a thread.
const WAITING: usize = 64;

/// Flags of both directions.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Directories too, with all that is in them; symbolic links stay links
    #[arg(short, long)]
    recursive: bool,
    /// As -r, and keep what a plain copy does not: further names of one file stay names of one file,
    /// directories keep their setgid bit, and local copies the permissions that the umask forbids
    #[arg(short, long)]
    pub archive: bool,
    /// Whether copies have holes, which take no space, for zeros
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub sparse: Sparse,
    /// Take the last one as the copy's name even if it is a directory
    #[arg(short = 'T', long)]
    pub no_target_directory: bool,
    /// Read each copy again and compare, before it gets its name
    #[arg(long)]
    pub verify: bool,
    /// Files copied at the same time
    #[arg(short, long, value_name = "N", default_value = "4")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Tell what was copied, and how long it took, at the end
    #[arg(short, long)]
    pub verbose: bool,
}

impl Flags {
    /// Whether directories are copied.
    pub fn recursive(&self) -> bool {
        self.recursive || self.archive
    }
}

/// What was copied did not stay as it was for the time that took.
pub fn changed(what: impl fmt::Display) -> Failure {
    let advice = "copy it again while nobody changes it";
    Failure::new("copy", what, "it changed while it was copied", advice)
}

/// How a copy goes.
#[derive(Debug)]
pub struct Tally {
    bar: ProgressBar,
    begun: Instant,
    files: AtomicU64,
    directories: AtomicU64,
    links: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    parted: AtomicU64,
    without_setgid: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    hopeless: AtomicBool,
}

impl Tally {
    /// Begins; the progress shows on a terminal only.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{bytes:>10} of {total_bytes} {bytes_per_sec:>12} [{bar:24}] {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self {
            bar,
            begun: Instant::now(),
            files: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            links: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            parted: AtomicU64::new(0),
            without_setgid: AtomicU64::new(0),
            failures: Mutex::default(),
            hopeless: AtomicBool::new(false),
        }
    }

    /// A file of this size will be copied.
    pub fn found(&self, size: u64) {
        self.bar.inc_length(size);
    }

    /// Bytes were copied.
    pub fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bar.inc(bytes as u64);
    }

    /// A file was copied.
    pub fn file(&self, name: impl fmt::Display) {
        self.files.fetch_add(1, Ordering::Relaxed);
        if !self.bar.is_hidden() {
            self.bar.set_message(name.to_string());
        }
    }

    /// A directory was made, or was there.
    pub fn directory(&self) {
        self.directories.fetch_add(1, Ordering::Relaxed);
    }

    /// A symbolic link was copied.
    pub fn link(&self) {
        self.links.fetch_add(1, Ordering::Relaxed);
    }

    /// A further name of a file that was copied became a file of its own.
    pub fn parted(&self) {
        self.parted.fetch_add(1, Ordering::Relaxed);
    }

    /// A directory lost its setgid bit.
    pub fn without_setgid(&self) {
        self.without_setgid.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was not copied.
    pub fn failed(&self, failure: Failure) {
        if interrupt::is_ending() {
            return;
        }
        if failure.is_hopeless() {
            self.hopeless.store(true, Ordering::Relaxed);
        }
        lock(&self.failures).push(failure);
    }

    /// Notes a failure; whether there was none.
    pub fn note(&self, result: Result) -> bool {
        result.map_err(|failure| self.failed(failure)).is_ok()
    }

    /// Whether there is no point in going on: the server is gone.
    pub fn is_hopeless(&self) -> bool {
        self.hopeless.load(Ordering::Relaxed)
    }

    /// Ends the progress and tells of the failures.
    pub fn finish(self, verbose: bool) -> Result {
        self.bar.finish_and_clear();
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let files = count(&self.files);
        if verbose {
            let (bytes, time) = (count(&self.bytes), self.begun.elapsed().as_secs_f64());
            tell(&format!(
                "copied {files} files, {} directories, {} symbolic links: {} in {time:.1} s, {}/s",
                count(&self.directories),
                count(&self.links),
                format::size(bytes),
                // For people, and never negative.
                format::size((bytes as f64 / time.max(0.001)) as u64),
            ));
        }
        for (count, what) in [
            (count(&self.parted), "further names of one file became files of their own"),
            (count(&self.without_setgid), "directories lost their setgid bit"),
        ] {
            if count > 0 {
                tell(&format!("{count} {what}; -a keeps such things"));
            }
        }
        let failures = self.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.iter().for_each(|failure| _ = failure.tell());
        match (failures.len(), count(&self.skipped)) {
            (0, _) => return Ok(()),
            (1, 0) if files == 0 => {}
            (failed, 0) => tell(&format!("{failed} could not be copied, {files} files were")),
            (failed, skipped) => tell(&format!(
                "{failed} could not be copied, {skipped} files were not tried, {files} were copied"
            )),
        }
        Err(Failure::Told)
    }
}

/// Copies what `produce` hands out, on `threads` threads; each lends a buffer of [`BLOCK`] bytes.
pub fn in_parallel<J: Send>(
    tally: &Tally,
    threads: u16,
    produce: impl FnOnce(&mut dyn FnMut(J)),
    copy: impl Fn(&mut [u8], J) -> Result + Sync,
) {
    let (sender, receiver) = mpsc::sync_channel::<J>(WAITING);
    let receiver = Mutex::new(receiver);
    let (receiver, copy) = (&receiver, &copy);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                let mut block = Vec::new();
                loop {
                    let job = lock(receiver).recv();
                    let Ok(job) = job else { return };
                    if tally.is_hopeless() {
                        tally.skipped.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    block.resize(BLOCK, 0);
                    tally.note(copy(&mut block, job));
                }
            });
        }
        // The threads hold the other end for as long as this end lives.
        produce(&mut |job| _ = sender.send(job));
        drop(sender);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

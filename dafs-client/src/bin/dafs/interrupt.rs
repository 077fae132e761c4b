//! Signals that end the command: what is incomplete is taken away first.

use crate::failure::{Failure, Result, tell};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::time::Duration;

/// Longest that the command goes on after a signal: a server that does not answer keeps its parts.
const GRACE: Duration = Duration::from_secs(10);
/// After which parts are removed once more, since a request that makes one may have been under way.
const AGAIN: Duration = Duration::from_millis(50);

type Remove = Box<dyn Fn() + Send>;

/// Incomplete copies, each with what removes it.
struct Parts {
    /// A signal came: nothing more is begun.
    ending: bool,
    last: u64,
    parts: BTreeMap<u64, Remove>,
}

static PARTS: Mutex<Parts> = Mutex::new(Parts { ending: false, last: 0, parts: BTreeMap::new() });

fn parts() -> MutexGuard<'static, Parts> {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An incomplete copy, which a signal removes for as long as this is held.
#[derive(Debug)]
pub struct Part(u64);

impl Drop for Part {
    fn drop(&mut self) {
        // What a signal has taken is with it.
        parts().parts.remove(&self.0);
    }
}

/// Announces an incomplete copy before it is made.
///
/// # Errors
/// The command is ending; nobody needs to be told.
pub fn part(remove: impl Fn() + Send + 'static) -> Result<Part> {
    let mut parts = parts();
    if parts.ending {
        return Err(Failure::Told);
    }
    parts.last += 1;
    let number = parts.last;
    parts.parts.insert(number, Box::new(remove));
    Ok(Part(number))
}

/// Whether a signal has come, so that what fails from now on is no news.
pub fn is_ending() -> bool {
    parts().ending
}

/// Waits for the end that a signal brings, if one has come.
pub fn finish() {
    while is_ending() {
        std::thread::park();
    }
}

/// From now on INT, TERM and HUP remove what is incomplete and then end the command as they would
/// have; a second one ends it at once. Those that the command was started to ignore stay ignored.
pub fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name("dafs-signals".into());
        let spawned = thread.spawn(move || {
            let ignored = ignored();
            let wanted = [SIGINT, SIGTERM, SIGHUP];
            let wanted = wanted.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
            let signals = Signals::new(wanted);
            // Whoever waits for it is there.
            _ = ready.send(());
            // Without them a signal ends the command as ever.
            if let Ok(mut signals) = signals {
                act(signals.forever());
            }
        });
        if spawned.is_ok() {
            _ = is_ready.recv();
        }
    });
}

fn act(mut caught: impl Iterator<Item = i32>) {
    let Some(signal) = caught.next() else { return };
    let begun = std::thread::Builder::new().spawn(move || remove_all(signal)).and_then(|_| {
        std::thread::Builder::new().spawn(move || {
            std::thread::sleep(GRACE);
            tell(
                "an incomplete copy (.dafs-*.part) stays, as the server does not answer; a put into \
                 its directory removes it after a day",
            );
            die(signal);
        })
    });
    if begun.is_ok()
        && let Some(signal) = caught.next()
    {
        die(signal);
    }
    die(signal);
}

fn remove_all(signal: i32) {
    let taken = {
        let mut parts = parts();
        parts.ending = true;
        std::mem::take(&mut parts.parts)
    };
    taken.values().for_each(|remove| remove());
    if !taken.is_empty() {
        std::thread::sleep(AGAIN);
        taken.values().for_each(|remove| remove());
    }
    die(signal);
}

fn die(signal: i32) {
    // Ends the process by the signal, so that whoever started it can tell.
    _ = signal_hook::low_level::emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

/// The signals that are ignored, as bits.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

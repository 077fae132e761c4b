//! What processes consume.

use crate::error::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// CPU time in nanoseconds that this process has used.
pub(crate) fn own_cpu() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}

/// The time in nanoseconds on a clock that is the same for all processes.
pub(crate) fn common_clock() -> u64 {
    nanos(ClockId::Monotonic)
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// CPU time in nanoseconds that the threads of a process have used, those that have ended not
/// counted.
pub(crate) fn cpu_of(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let what = || format!("reading the CPU time of process {pid} under {tasks}");
    let cpu_of_thread = if fine() { in_nanoseconds } else { in_ticks };
    let mut total = 0;
    for task in std::fs::read_dir(&tasks).context(what)? {
        match cpu_of_thread(&task.context(what)?.path()) {
            Ok(nanos) => total += nanos,
            // The thread has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(ESRCH) => {}
            Err(error) => return Err(error).context(what),
        }
    }
    Ok(total)
}

/// Whether the kernel tells CPU times in nanoseconds: it can be built without.
fn fine() -> bool {
    static FINE: OnceLock<bool> = OnceLock::new();
    *FINE.get_or_init(|| Path::new("/proc/self/schedstat").exists())
}

fn in_nanoseconds(task: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(task.join("schedstat"))?;
    text.split_ascii_whitespace().next().and_then(|nanos| nanos.parse().ok()).ok_or_else(unknown)
}

/// Fields 14 and 15 of a thread's `stat`: user and system time. Coarse, but the sum over many
/// blocks is right.
fn in_ticks(task: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(task.join("stat"))?;
    // The command's name, field 2, may hold spaces and brackets; field 3 comes after the last one.
    let (_, rest) = text.rsplit_once(')').ok_or_else(unknown)?;
    let mut fields = rest.split_ascii_whitespace().skip(14 - 3).map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok((user + system) * TICK),
        _ => Err(unknown()),
    }
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it has not the form that is known")
}

/// Nanoseconds of a tick, for user programs: 100 a second whatever the kernel's own are.
const TICK: u64 = 10_000_000;

/// What reading a file of a thread says that has ended.
const ESRCH: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_while_this_process_works() {
        // Of this thread: others end meanwhile, and do not count any more.
        let task = format!("/proc/self/task/{}", rustix::thread::gettid().as_raw_nonzero());
        let of_thread =
            || if fine() { in_nanoseconds } else { in_ticks }(Path::new(&task)).unwrap();
        let (own, of) = (own_cpu(), of_thread());
        while own_cpu() < own + 20_000_000 {
            std::hint::spin_loop();
        }
        assert!(of_thread() >= of && cpu_of(std::process::id()).unwrap() >= of);
        assert!(cpu_of(0).is_err());
    }

    #[test]
    fn ticks_are_about_as_many_as_the_nanoseconds() {
        let task = Path::new("/proc/self/task").join(std::process::id().to_string());
        let until = own_cpu() + 50_000_000;
        while own_cpu() < until {
            std::hint::spin_loop();
        }
        let ticks = in_ticks(&task).unwrap();
        assert!(ticks.is_multiple_of(TICK) && ticks <= own_cpu() + 2 * TICK, "{ticks}");
        if fine() {
            assert!(in_nanoseconds(&task).unwrap() <= own_cpu());
        }
        assert!(in_ticks(Path::new("/proc/self/task/0")).is_err());
    }
}

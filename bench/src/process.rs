//! What processes consume.

use crate::error::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use std::io;

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
    let mut total = 0;
    for task in std::fs::read_dir(&tasks).context(what)? {
        let path = task.context(what)?.path().join("schedstat");
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let first = text.split_ascii_whitespace().next();
                total += first.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            }
            // The thread has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(ESRCH) => {}
            Err(error) => return Err(error).context(what),
        }
    }
    Ok(total)
}

/// What reading a file of a thread says that has ended.
const ESRCH: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_while_this_process_works() {
        let (own, of) = (own_cpu(), cpu_of(std::process::id()).unwrap());
        while own_cpu() < own + 20_000_000 {
            std::hint::spin_loop();
        }
        assert!(cpu_of(std::process::id()).unwrap() >= of);
        assert!(cpu_of(0).is_err());
    }
}

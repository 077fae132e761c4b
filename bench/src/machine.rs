//! Where and when a result came about.

use serde::Serialize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that are online.
    pub cores: usize,
    /// Name and release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn this() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let uname = rustix::system::uname();
        let (system, release) = (uname.sysname().to_string_lossy(), uname.release());
        Self {
            cpu: cpu_model(&info).unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            cores: info.lines().filter(|line| field(line, "processor").is_some()).count().max(1),
            kernel: format!("{system} {}", release.to_string_lossy()),
        }
    }
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once(':')?;
    (key.trim() == name).then(|| value.trim())
}

fn cpu_model(info: &str) -> Option<String> {
    info.lines().find_map(|line| field(line, "model name")).map(str::to_owned)
}

/// The commit that the bench was built from, with `+dirty` where files differ from it; `None` where
/// its sources are not at hand or under no version control.
#[must_use]
pub fn commit() -> Option<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(sources).args(args).stdin(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let dirty = !git(&["status", "--porcelain"])?.trim().is_empty();
    Some(format!("{}{}", commit.trim(), if dirty { "+dirty" } else { "" }))
}

/// The date and time now, `2025-01-31T23:59:59Z`.
#[must_use]
pub fn date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_date(now.as_secs())
}

fn format_date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of the year 0, so that the leap day ends a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(format_date(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(format_date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(format_date(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(format_date(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn the_machine_has_a_name_and_a_cpu() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && !machine.cpu.is_empty() && !machine.kernel.is_empty());
        let info = "processor\t: 0\nmodel name\t: Example CPU: 3 GHz\n";
        assert_eq!(cpu_model(info).as_deref(), Some("Example CPU: 3 GHz"));
    }
}

//! STATS: the server's counters.

use super::{OpContext, OpError};
use dafs_proto::{Counter, StatsReply, StatsRequest};
use rustix::time::{ClockId, clock_gettime};

/// Serves STATS. `process_resident_bytes` is left out where `/proc` does not tell.
///
/// # Errors
/// None.
pub async fn stats(cx: &OpContext, _request: StatsRequest) -> Result<StatsReply, OpError> {
    let server = &cx.server;
    let mut counters = server.counters().list();
    let (sessions, opens) = server.session_counts();
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec.unsigned_abs() * 1_000_000 + cpu.tv_nsec.unsigned_abs() / 1000;
    for (name, value) in [
        ("sessions", sessions as u64),
        ("opens", opens as u64),
        ("connections", server.link_count() as u64),
        ("process_cpu_microseconds", cpu),
    ] {
        counters.push((name.to_owned(), value));
    }
    counters.extend(resident_bytes().map(|bytes| ("process_resident_bytes".to_owned(), bytes)));
    let cache = server.cache().counters();
    counters.extend(cache.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let counters = counters.into_iter().map(|(name, value)| Counter { name, value }).collect();
    Ok(StatsReply { counters })
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

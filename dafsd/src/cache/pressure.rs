//! Giving memory back when the machine, or the server's cgroup, is short of it.

use super::Cache;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// Percentage of the last ten seconds in which some task waited for memory, from which on a chunk
/// is given back each time we look.
const HIGH: f32 = 10.0;

impl Cache {
    /// Watches the kernel's pressure stall information, and while it is high grows no more and
    /// gives back a chunk at a time, down to one for each guard. Where the kernel has none, does nothing.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_pressure_watch(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(source) = source() else {
            tracing::info!(
                "no pressure stall information: the page cache will not shrink by itself"
            );
            return Ok(());
        };
        let cache = Arc::downgrade(self);
        std::thread::Builder::new().name("dafs-pressure".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(INTERVAL);
                let Some(cache) = cache.upgrade() else { return };
                let pressure = std::fs::read_to_string(&source).ok().and_then(|text| parse(&text));
                let high = pressure.is_some_and(|pressure| pressure >= HIGH);
                let before = cache.pressed.swap(high, Ordering::Relaxed);
                if high != before {
                    tracing::info!(?pressure, high, "memory pressure");
                }
                if high {
                    cache.give_back();
                }
            }
        })?;
        Ok(())
    }

    fn give_back(self: &Arc<Self>) {
        let cache = Arc::clone(self);
        self.runtime.run(async move {
            if let Err(error) = cache.retire_chunk().await {
                tracing::warn!(%error, "could not give a chunk back");
            }
        });
    }
}

/// The file to watch: the server's own cgroup's, else the whole machine's.
fn source() -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        Some(PathBuf::from("/sys/fs/cgroup").join(path).join("memory.pressure"))
    });
    let candidates = own.into_iter().chain([PathBuf::from("/proc/pressure/memory")]);
    candidates.into_iter().find(|path| std::fs::read(path).is_ok())
}

/// The ten-second average of the line `some avg10=1.23 avg60=... avg300=... total=...`.
fn parse(text: &str) -> Option<f32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=123\nfull avg10=0.00 total=1\n";
        assert_eq!(parse(text), Some(12.34));
        assert_eq!(parse(""), None);
        assert_eq!(parse("some nonsense"), None);
    }
}

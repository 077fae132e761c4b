//! The memory of a server that has many files in its cache.

mod common;

use common::process::Daemon;
use std::time::Instant;

const MIB: usize = 1 << 20;
const BUDGET: usize = 192 * MIB;
/// Memory of the program itself, of connections, and of chunks on their way back.
const BESIDE: usize = 64 * MIB;

/// More small files than there is memory for.
fn many() -> usize {
    let many = std::env::var("DAFS_TEST_FILES").ok();
    many.map_or(50_000, |many| many.parse().expect("a number"))
}

#[test]
fn what_is_kept_of_small_files_is_within_the_budget() {
    let budget = format!("{BUDGET}");
    let daemon = Daemon::start(&["--memory", &budget]);
    let name = |number: usize| format!("d{}/f{number}", number / 1000);
    for number in 0..many() {
        if number % 1000 == 0 {
            std::fs::create_dir(daemon.tree().join(format!("d{}", number / 1000))).unwrap();
        }
        std::fs::write(daemon.tree().join(name(number)), number.to_le_bytes()).unwrap();
    }
    let client = daemon.client("tcp");
    let begun = Instant::now();
    for number in 0..many() {
        let mut content = [0; 100];
        let file = client.open(name(number)).unwrap();
        assert_eq!(file.read_at(&mut content, 0).unwrap(), 8);
        assert_eq!(content[..8], number.to_le_bytes());
    }
    let (files, pages) =
        (Daemon::counter(&client, "cache_files"), Daemon::counter(&client, "cache_pages"));
    let (resident, peak) = (daemon.resident(), daemon.peak());
    println!(
        "{} files read in {:?}: {files} cached, {pages} pages; {} MiB, at most {} MiB",
        many(),
        begun.elapsed(),
        resident / MIB,
        peak / MIB
    );
    assert!(peak <= BUDGET + BESIDE, "{} MiB", peak / MIB);
    // The budget is there to be used.
    assert!(resident >= BUDGET / 2, "{} MiB", resident / MIB);
    assert!(files >= 20_000, "{files} files");
}

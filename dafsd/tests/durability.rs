//! What is acknowledged is true: random operations of several clients on a disk that fails, with
//! crashes and stops of the server, losses of power and of clients, against a model that knows what
//! each acknowledgement promised. See `durability/model.rs` for what that is, and
//! `durability/disk.rs` for what can go wrong.
//!
//! A seed takes one of the profiles, by its number. `DAFS_SEEDS` says how many seeds are run
//! (default 2000), `DAFS_SEED` runs a single one, `DAFS_FOCUS` names the profile of all. With
//! `DAFS_GO_ON` all seeds are run, and the failing ones counted and shown by profile. A failing seed
//! is printed with its history.

#[path = "durability/mod.rs"]
mod parts;

use parts::profile::{PROFILES, Profile};
use parts::run::{History, Planned, Run, plan};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

/// Steps of a seed, at least and at most.
const STEPS: (usize, usize) = (20, 200);
/// Most attempts to find a shorter history.
const SHRINKS: usize = 400;
/// Lines of a history that are printed.
const LINES: usize = 90;

#[test]
fn what_is_acknowledged_is_true() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let (one, seeds) = (number("DAFS_SEED"), number("DAFS_SEEDS").unwrap_or(2000));
    let focus = std::env::var("DAFS_FOCUS").ok();
    let go_on = std::env::var_os("DAFS_GO_ON").is_some();
    let mut failures: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let profile = profile_of(seed, focus.as_deref());
        let of_profile = failures.entry(profile.name).or_default();
        let tries = if of_profile.is_empty() { SHRINKS } else { 0 };
        if let Err(why) = try_seed(seed, profile, tries) {
            assert!(go_on, "{why}");
            if of_profile.is_empty() {
                eprintln!("{why}\n");
            }
            of_profile.push(seed);
        }
    }
    failures.retain(|_, seeds| !seeds.is_empty());
    for (profile, seeds) in &failures {
        eprintln!("{profile}: {} seeds fail: {:?}", seeds.len(), &seeds[..seeds.len().min(12)]);
    }
    assert!(failures.is_empty(), "some seeds fail");
}

fn profile_of(seed: u64, focus: Option<&str>) -> &'static Profile {
    match focus {
        None => &PROFILES[usize::try_from(seed).expect("a small seed") % PROFILES.len()],
        Some(name) => {
            let found = PROFILES.iter().find(|profile| profile.name == name);
            found.unwrap_or_else(|| panic!("DAFS_FOCUS={name}: there is no such profile"))
        }
    }
}

/// Runs a seed; where it fails, with as few of its steps as fail as well, as far as `most` attempts
/// find out.
fn try_seed(seed: u64, profile: &'static Profile, most: usize) -> Result<(), String> {
    let mut plan = plan(seed, profile, STEPS.0..=STEPS.1);
    let Err(mut why) = attempt(seed, profile, &plan) else { return Ok(()) };
    let mut tries = 0;
    let mut size = plan.len() / 2;
    while size > 0 && tries < most {
        let mut at = 0;
        while at < plan.len() && tries < most {
            let mut fewer = plan.clone();
            fewer.drain(at..(at + size).min(plan.len()));
            tries += 1;
            match attempt(seed, profile, &fewer) {
                Err(shorter) => (plan, why) = (fewer, shorter),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    let name = profile.name;
    Err(format!(
        "failed with DAFS_SEED={seed} DAFS_FOCUS={name}; of its steps these suffice:\n{why}"
    ))
}

fn attempt(seed: u64, profile: &'static Profile, plan: &[Planned]) -> Result<(), String> {
    let history = History::default();
    let run = || Run::new(seed, profile, &history).run(plan);
    let why = match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    let lines = history.borrow();
    let from = lines.len().saturating_sub(LINES);
    Err(format!("{}\n=> {why}", lines[from..].join("\n")))
}

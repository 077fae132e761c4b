//! What ends, and what goes wrong: servers, power, clients, sessions, the disk.

use super::disk::When;
use super::model::PAGES;
use super::profile::Step;
use super::run::{NAMES, Run};
use super::site::Place;
use dafs_client::OpenOptions;
use dafs_client::blocking::Client;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Run<'_> {
    pub(super) fn end_server(&mut self, step: Step) {
        self.forget_nameless();
        match step {
            Step::StopServer => {
                let before = self.site.disk.unwritable();
                let result = self.site.stop();
                self.note(format!("the server stops: {result:?}"));
                // Where only pages cannot be written, all others are stable all the same.
                let but = match result {
                    Ok(()) => Some(BTreeSet::new()),
                    Err(_) => before.map(|pages| self.in_model(&pages)),
                };
                if let Some(but) = but {
                    self.model.stopped(&but);
                }
            }
            Step::LosePower => {
                self.site.lose_power();
                self.power_was_lost = true;
                self.note("the power fails".into());
            }
            _ => {
                self.site.kill();
                self.note("the server is killed".into());
            }
        }
        self.ended += 1;
        self.model.crashed();
        self.site.start();
    }

    /// Pages of the disk's files as pages of the model's.
    pub(super) fn in_model(&self, pages: &BTreeSet<(u64, u64)>) -> BTreeSet<(usize, usize)> {
        let place = |(file, page): &(u64, u64)| {
            let number = self.numbers.iter().position(|known| known == file)?;
            Some((number, usize::try_from(*page).ok()?))
        };
        pages.iter().filter_map(place).collect()
    }

    pub(super) fn kill_client(&mut self, peer: usize) {
        self.note(format!("client {} is killed", self.writer(peer)));
        self.site.silence(&self.peers[peer].name);
        self.model.killed(self.peers[peer].writer);
        // Who has just begun has the first file open, as all had.
        let mut new = self.peer();
        let options = OpenOptions::new().read(true).write(true);
        let first = self.names.get(NAMES[0]).copied();
        if let (Some(number), Ok(file)) = (first, new.client.open_with(NAMES[0], options)) {
            new.opens.push((file, number));
        }
        let old = std::mem::replace(&mut self.peers[peer], new);
        self.killed.push(old);
    }

    pub(super) fn end_lease(&mut self, peer: usize) {
        self.note(format!("the session of client {} ends", self.writer(peer)));
        let others = self.peers.iter().enumerate().filter(|(other, _)| *other != peer);
        let others: Vec<&Client> = others.map(|(_, other)| &other.client).collect();
        self.site.end_lease(&self.peers[peer].name, &others);
        // What only that session had open, and has no name, is gone.
        let named: Vec<usize> = self.names.values().copied().collect();
        self.peers[peer].opens.retain(|(_, number)| named.contains(number));
    }

    pub(super) fn fault(&mut self, step: Step, name: &'static str) {
        let Some(&number) = self.names.get(name) else { return };
        let file = self.numbers[number];
        let page = self.random.u64(0..PAGES as u64);
        self.note(format!("{step:?} of file {number}, page {page}"));
        let (random, disk) = (&mut self.random, &self.site.disk);
        match step {
            Step::FailSync => {
                let (any, partly) = (random.bool(), random.bool());
                disk.faults(|faults| {
                    faults.failing_syncs = 1;
                    faults.failing_file = (!any).then_some(file);
                    faults.partly = partly;
                });
            }
            Step::FailPage => disk.faults(|faults| faults.unwritable.extend([(file, page)])),
            Step::FailRead => disk.faults(|faults| faults.unreadable.extend([(file, page)])),
            Step::NoSpace => disk.faults(|faults| faults.space = Some(random.usize(0..4))),
            Step::NoQuota => disk.faults(|faults| faults.quota = Some((0, random.usize(0..4)))),
            Step::KernelWrites => disk.write_back(file),
            Step::KernelLoses => disk.fail_write_back(file),
            Step::FailAmong => {
                let when = [When::Sync, When::Sync, When::Read, When::Write][random.usize(0..4)];
                let (commit, shared) = (self.site.commit_behind(file), disk.clone());
                disk.prepare(when, move || {
                    shared.faults(|faults| {
                        (faults.failing_syncs, faults.failing_file) = (1, Some(file));
                    });
                    commit();
                });
            }
            Step::KillAmong | Step::PowerAmong => {
                let all = [When::Sync, When::Read, When::Write, When::Synced];
                let (when, power) = (all[random.usize(0..4)], step == Step::PowerAmong);
                let (place, ends) = (Place::clone(&self.site), Arc::clone(&self.ends));
                disk.prepare(when, move || {
                    if power {
                        place.lose_power();
                    } else {
                        place.kill();
                    }
                    place.start();
                    ends.fetch_add(1, Ordering::Relaxed);
                });
            }
            Step::Heal => disk.heal(),
            _ => unreachable!("{step:?} is no fault of the disk"),
        }
    }
}

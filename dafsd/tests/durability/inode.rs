//! A file, as the kernel shows it and as the device has it.

use super::PAGE;
use std::collections::BTreeSet;
use std::time::SystemTime;

/// A regular file.
#[derive(Clone, Debug)]
pub struct Inode {
    pub volatile: Vec<u8>,
    pub stable: Vec<u8>,
    /// Pages of the volatile state that the device may not have.
    pub dirty: BTreeSet<u64>,
    /// The shortest that the file was since the last sync: what the device has behind it, the
    /// kernel does not show any more.
    pub shortest: usize,
    pub links: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    /// Counts losses of pages.
    pub losses: u64,
    /// Someone was told of the last one.
    pub told: bool,
}

impl Inode {
    /// What the device gives back for a page, as far as the file was never shorter.
    pub fn on_device(&self, page: u64) -> Vec<u8> {
        let start = index(page * PAGE as u64);
        let known = self.stable.len().min(self.shortest);
        let mut bytes = self.stable[start.min(known)..(start + PAGE).min(known)].to_vec();
        bytes.resize(PAGE, 0);
        bytes
    }

    pub fn put(target: &mut [u8], page: u64, bytes: &[u8]) {
        let start = index(page * PAGE as u64).min(target.len());
        let len = bytes.len().min(target.len() - start);
        target[start..start + len].copy_from_slice(&bytes[..len]);
    }

    /// Pages that were to be written are lost: all of them, or those behind some.
    pub fn lose_pages(&mut self, partly: bool, random: &mut fastrand::Rng) {
        let written = if partly { random.usize(0..=self.dirty.len()) } else { 0 };
        self.write_first(written);
        for page in std::mem::take(&mut self.dirty) {
            let bytes = self.on_device(page);
            Self::put(&mut self.volatile, page, &bytes);
        }
        self.losses += 1;
        self.told = false;
    }

    pub fn write_some(&mut self, random: &mut fastrand::Rng) {
        let count = random.usize(0..=self.dirty.len());
        self.write_first(count);
    }

    /// The device gets the first dirty pages, and the size as far as they go.
    pub fn write_first(&mut self, count: usize) {
        let pages: Vec<u64> = self.dirty.iter().copied().take(count).collect();
        let Some(last) = pages.last() else { return };
        let end = index((last + 1) * PAGE as u64).min(self.volatile.len());
        // A truncation comes before what was written after it.
        self.stable.truncate(self.shortest);
        self.stable.resize(self.stable.len().max(end), 0);
        for page in pages {
            let start = index(page * PAGE as u64);
            let bytes = self.volatile[start..(start + PAGE).min(self.volatile.len())].to_vec();
            Self::put(&mut self.stable, page, &bytes);
            self.dirty.remove(&page);
        }
        self.shortest = self.volatile.len().min(self.stable.len());
    }

    pub fn lose_power(&mut self, random: &mut fastrand::Rng) {
        if random.bool() {
            self.write_some(random);
        }
        self.volatile.clone_from(&self.stable);
        self.dirty.clear();
        self.shortest = self.stable.len();
        self.losses = 0;
        self.told = true;
    }
}

pub fn pages(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / PAGE as u64..(offset + len as u64).div_ceil(PAGE as u64)
}

pub fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("files are small")
}

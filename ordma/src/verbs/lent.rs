//! Memory of the application that READs land in without a copy.
//!
//! It is registered for this side's own requests alone, so that it is never within the server's reach,
//! and stays registered: those who read much use the same buffers again and again. Should memory be
//! unmapped and other memory mapped in its place, the device goes on writing to the former pages,
//! which are nobody's. The new ones then hold anything but the page that was asked for, as its check
//! tells: the registration is dropped, and the page read once more.

use crate::lock;
use crate::rdma::{Access, Domain, Local, Memory, Parts, Region};
use crate::region::Hold;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Bytes that are kept registered at most.
const MOST: usize = 256 << 20;
/// The shortest memory that is worth it: registering it takes no longer than copying it once.
pub(super) const LEAST: usize = 128 << 10;
/// Memory is registered by whole pages of the machine.
const PAGE: u64 = 4096;

/// What is registered.
#[derive(Debug)]
pub(super) struct Registrations {
    domain: Arc<Domain>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// By address.
    regions: BTreeMap<u64, Entry>,
    bytes: usize,
    most: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    region: Arc<Region>,
    used: u64,
}

/// Addresses, which somebody sees to.
struct Range(u64, usize);

// SAFETY: registered for local access alone, and requests that name it hold the memory: see `Lent`.
unsafe impl Memory for Range {
    fn range(&self) -> (*const u8, usize) {
        (self.0 as *const u8, self.1)
    }
}

impl Registrations {
    pub(super) fn new(domain: &Arc<Domain>) -> Self {
        let table = Table { regions: BTreeMap::new(), bytes: 0, most: MOST, clock: 0 };
        Self { domain: Arc::clone(domain), table: Mutex::new(table) }
    }

    /// The registration of a region's memory, which is made where there is none; `None` where no
    /// memory may be locked.
    fn get(&self, hold: &Hold) -> Option<Arc<Region>> {
        let start = hold.address(0) & !(PAGE - 1);
        let end = (hold.address(hold.len()) + PAGE - 1) & !(PAGE - 1);
        let mut table = lock(&self.table);
        table.clock += 1;
        let clock = table.clock;
        if let Some((at, entry)) = table.regions.range_mut(..=start).next_back()
            && at + entry.region.len() as u64 >= end
        {
            entry.used = clock;
            return Some(Arc::clone(&entry.region));
        }
        let len = (end - start) as usize;
        if len > table.most {
            return None;
        }
        while table.bytes + len > table.most {
            table.evict();
        }
        match Region::new(&self.domain, Arc::new(Range(start, len)), Access::Local) {
            Ok(region) => {
                let region = Arc::new(region);
                let entry = Entry { region: Arc::clone(&region), used: clock };
                table.bytes += len;
                if let Some(before) = table.regions.insert(start, entry) {
                    table.bytes -= before.region.len();
                }
                Some(region)
            }
            Err(error) => {
                // What is registered has to do.
                tracing::debug!(%error, len, "reads are copied");
                table.most = table.bytes;
                None
            }
        }
    }

    /// What was read by it was not there.
    pub(super) fn forget(&self, region: &Arc<Region>) {
        let mut table = lock(&self.table);
        let same = |entry: &Entry| Arc::ptr_eq(&entry.region, region);
        if table.regions.get(&region.address()).is_some_and(same) {
            table.regions.remove(&region.address());
            table.bytes -= region.len();
        }
    }
}

impl Table {
    /// Drops the registration that was not used for the longest time.
    fn evict(&mut self) {
        let oldest = self.regions.iter().min_by_key(|(_, entry)| entry.used).map(|(at, _)| *at);
        match oldest.and_then(|at| self.regions.remove(&at)) {
            Some(entry) => self.bytes -= entry.region.len(),
            None => self.bytes = 0,
        }
    }
}

/// Parts of a region's memory, lent to the device for a request.
#[derive(Debug)]
pub(super) struct Lent {
    registration: Arc<Region>,
    /// Keeps the memory where it is.
    hold: Hold,
    parts: Vec<(usize, usize)>,
}

impl Lent {
    /// Lends pages at these offsets of a region, at most `most` stretches; `None` where they are more,
    /// or the memory cannot be registered.
    pub(super) fn new(
        registrations: &Registrations,
        hold: Hold,
        pages: impl Iterator<Item = (usize, usize)>,
        most: usize,
    ) -> Option<Self> {
        let mut parts: Vec<(usize, usize)> = Vec::new();
        for (start, len) in pages {
            if start.checked_add(len).is_none_or(|end| end > hold.len()) {
                return None;
            }
            let count = parts.len();
            match parts.last_mut() {
                Some((at, before)) if *at + *before == start => *before += len,
                _ if count == most.min(Parts::MOST) => return None,
                _ => parts.push((start, len)),
            }
        }
        let registration = registrations.get(&hold)?;
        Some(Self { registration, hold, parts })
    }

    /// The registration that it was lent by.
    pub(super) fn registration(&self) -> &Arc<Region> {
        &self.registration
    }
}

// SAFETY: the parts lie in the region, which is registered and held; whoever reads a page uses none
// of its place until it is told that it is there.
unsafe impl Local for Lent {
    fn parts(&self, parts: &mut Parts) {
        for (start, len) in &self.parts {
            let key = self.registration.local_key();
            parts.push(self.hold.address(*start), *len as u32, key);
        }
    }
}

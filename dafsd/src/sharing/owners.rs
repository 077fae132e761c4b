//! The clients that have changed files and have not been told that all of it is stable.

use crate::cache::{CachedFile, Share};
use crate::sync::Mutex;
use dafs_keys::PublicKey;
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Most ranges that one client has over all files before the server makes its oldest file stable.
pub const SHARE: usize = 4096;
/// Most clients that are remembered after they have gone.
const MOST_GONE: usize = 4096;

/// Names one run of a client, in all of its sessions: its key, where it has shown one, and what it
/// calls itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerId([u8; Self::LEN]);

impl OwnerId {
    /// Length in bytes.
    pub const LEN: usize = 48;
    const INSTANCE: usize = 16;
    const KEY: usize = Self::LEN - Self::INSTANCE;

    /// Stands for all owners.
    pub const ALL: Self = Self([0xFF; Self::LEN]);

    /// The owner with this key and instance. `None` where the instance does not have 16 bytes.
    #[must_use]
    pub fn new(key: Option<&PublicKey>, instance: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::LEN];
        if instance.len() != Self::INSTANCE {
            return None;
        }
        let (first, last) = bytes.split_at_mut(Self::KEY);
        if let Some(key) = key {
            first.copy_from_slice(key.as_bytes());
        }
        last.copy_from_slice(instance);
        Some(Self(bytes))
    }

    /// The owner with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The bytes of its key, where it has shown one.
    fn key(&self) -> Option<[u8; Self::KEY]> {
        let key = *self.0.first_chunk()?;
        (key != [0; Self::KEY]).then_some(key)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0[Self::LEN - Self::INSTANCE..] else { return Ok(()) };
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}..")
    }
}

/// Files that an owner has had ranges of, by their numbers, the one that came first in front.
#[derive(Debug, Default)]
struct OwnedFiles {
    order: VecDeque<(u64, Weak<CachedFile>)>,
    known: HashSet<u64, RandomState>,
}

/// A client that may have changes which it has not been told are stable.
#[derive(Debug)]
pub struct Owner {
    id: OwnerId,
    number: u64,
    /// Ranges, over all files.
    ranges: AtomicUsize,
    /// Bytes that it has made dirty; shared with the other owners that have its key.
    dirty: Arc<Share>,
    /// Files with such ranges. Some may have none any more.
    files: Mutex<OwnedFiles>,
    /// Sessions now, and when the last one ended.
    sessions: Mutex<(usize, Option<Instant>)>,
}

impl Owner {
    /// Its name, in all boots.
    #[must_use]
    pub fn id(&self) -> OwnerId {
        self.id
    }

    /// Its name in this boot.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it, with all that have its key, has made dirty.
    #[must_use]
    pub fn dirty(&self) -> &Arc<Share> {
        &self.dirty
    }

    /// The number of its ranges in some file has changed.
    pub fn counts(&self, before: usize, after: usize) {
        if after > before {
            self.ranges.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.ranges.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Whether it has any ranges.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        self.ranges.load(Ordering::Relaxed) > 0
    }

    /// Whether it has used its share up.
    #[must_use]
    pub fn is_over_share(&self) -> bool {
        self.ranges.load(Ordering::Relaxed) > SHARE
    }

    /// Whether it has so much more that nothing is added before some of it is stable.
    #[must_use]
    pub fn is_far_over_share(&self) -> bool {
        self.ranges.load(Ordering::Relaxed) > 4 * SHARE
    }

    /// Notes a file that it has ranges of now.
    pub fn has(&self, file: &Arc<CachedFile>) {
        let OwnedFiles { order, known } = &mut *self.files.lock();
        if !known.insert(file.number()) {
            return;
        }
        if order.len() == order.capacity() {
            order.retain(|(number, other)| {
                let is_unstable = |other: Arc<CachedFile>| other.is_unstable_for(self.number);
                let stays = other.upgrade().is_some_and(is_unstable);
                if !stays {
                    known.remove(number);
                }
                stays
            });
        }
        order.push_back((file.number(), Arc::downgrade(file)));
    }

    /// The file that it has had ranges of for the longest time. It comes last from now on.
    #[must_use]
    pub fn oldest(&self) -> Option<Arc<CachedFile>> {
        let OwnedFiles { order, known } = &mut *self.files.lock();
        while let Some((number, file)) = order.pop_front() {
            if let Some(found) = file.upgrade().filter(|f| f.is_unstable_for(self.number)) {
                order.push_back((number, file));
                return Some(found);
            }
            known.remove(&number);
        }
        None
    }

    fn take_files(&self) -> Vec<Arc<CachedFile>> {
        let files = std::mem::take(&mut *self.files.lock());
        files.order.into_iter().filter_map(|(_, file)| file.upgrade()).collect()
    }
}

/// All owners of this boot.
#[derive(Debug, Default)]
pub struct Owners {
    table: Mutex<HashMap<OwnerId, Arc<Owner>, RandomState>>,
    /// Those that were taken out and could not be cut off.
    left: Mutex<Vec<Arc<Owner>>>,
    made: AtomicU64,
    /// By key.
    shares: Mutex<HashMap<[u8; OwnerId::KEY], Weak<Share>, RandomState>>,
}

impl Owners {
    /// The share of dirty bytes of those that have the same key. Who has shown none has one alone.
    fn share(&self, id: &OwnerId) -> Arc<Share> {
        let Some(key) = id.key() else { return Arc::default() };
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::default();
        shares.insert(key, Arc::downgrade(&share));
        share
    }

    /// The owner with this name, for a session that begins.
    pub fn begin(&self, id: OwnerId) -> Arc<Owner> {
        let mut table = self.table.lock();
        let owner = table.entry(id).or_insert_with(|| {
            Arc::new(Owner {
                id,
                dirty: self.share(&id),
                number: self.made.fetch_add(1, Ordering::Relaxed) + 1,
                ranges: AtomicUsize::new(0),
                files: Mutex::default(),
                sessions: Mutex::default(),
            })
        });
        let mut sessions = owner.sessions.lock();
        *sessions = (sessions.0 + 1, None);
        drop(sessions);
        Arc::clone(owner)
    }

    /// A session of the owner's has ended. `farewell`: the client has said that it will not come
    /// back, and sends nothing again.
    pub fn end(&self, owner: &Arc<Owner>, farewell: bool, now: Instant) {
        let mut table = self.table.lock();
        let mut sessions = owner.sessions.lock();
        sessions.0 = sessions.0.saturating_sub(1);
        if sessions.0 > 0 {
            return;
        }
        sessions.1 = Some(now);
        drop(sessions);
        if farewell {
            table.remove(&owner.id);
            drop(table);
            for file in owner.take_files() {
                file.forget_owner(owner.number);
            }
        }
    }

    /// Takes out the owners that have had no session for so long, and the oldest ones where there
    /// are too many. From those that [have ranges](Owner::has_ranges) nothing must be taken again.
    pub fn take_gone(&self, patience: Duration, now: Instant) -> Vec<Arc<Owner>> {
        let mut table = self.table.lock();
        let mut gone: Vec<(Instant, OwnerId)> = table
            .values()
            .filter_map(|owner| match *owner.sessions.lock() {
                (0, Some(since)) => Some((since, owner.id)),
                _ => None,
            })
            .collect();
        gone.sort_unstable_by_key(|(since, _)| *since);
        let too_many = gone.len().saturating_sub(MOST_GONE);
        let is_over = |at: usize, since: &Instant| {
            at < too_many || now.saturating_duration_since(*since) >= patience
        };
        let over = gone.iter().enumerate().filter(|(at, (since, _))| is_over(*at, since));
        let mut over: Vec<_> = over.filter_map(|(_, (_, id))| table.remove(id)).collect();
        drop(table);
        over.append(&mut self.left.lock());
        over
    }

    /// An owner that was [taken out](Self::take_gone) could not be cut off: it is taken out again
    /// next time.
    pub fn put_back(&self, owner: Arc<Owner>) {
        self.left.lock().push(owner);
    }

    /// Forgets what an owner has, after it was [taken out](Self::take_gone).
    pub fn forget(&self, owner: &Owner) {
        for file in owner.take_files() {
            file.forget_owner(owner.number);
        }
    }
}

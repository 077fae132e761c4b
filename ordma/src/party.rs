//! Whose share of a server something takes.
//!
//! What a server has for all is divided by client, not by connection: who opens more connections gets
//! no more of it.

use crate::complaints::address_of;
use crate::lock;
use foldhash::fast::RandomState as Fast;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

/// A client, as far as it is known: everyone with the same key, or else everyone at the same address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party(u64);

impl Party {
    /// The server itself.
    pub const SERVER: Self = Self(0);

    /// Everyone with this key.
    #[must_use]
    pub fn of_key(key: &dafs_keys::PublicKey) -> Self {
        Self::of(("key", key))
    }

    /// Everyone at the address of this peer.
    #[must_use]
    pub fn of_peer(peer: &str) -> Self {
        Self::of(("address", address_of(peer)))
    }

    /// Numbers that nobody can choose: two clients with the same one would share what is theirs.
    fn of(who: impl Hash) -> Self {
        static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(NUMBERS.hash_one(who) | 1)
    }
}

/// Whose a connection is, which may change.
#[derive(Debug)]
pub(crate) struct PartyCell(AtomicU64);

impl PartyCell {
    /// That of everyone at the address of this peer.
    pub(crate) fn of_peer(peer: &str) -> Self {
        Self(AtomicU64::new(Party::of_peer(peer).0))
    }

    pub(crate) fn get(&self) -> Party {
        Party(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, party: Party) {
        self.0.store(party.0, Ordering::Relaxed);
    }
}

/// What everyone may take part of. Nobody gets more than is left then, so that there is always some
/// for the next.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Party, usize, Fast>,
}

impl Taken {
    fn give_back(&mut self, party: Party, amount: usize) {
        self.all -= amount;
        if let Some(theirs) = self.by.get_mut(&party) {
            *theirs -= amount;
            if *theirs == 0 {
                self.by.remove(&party);
            }
        }
    }
}

/// Part of what there is; given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    party: Party,
    amount: usize,
}

impl Shares {
    /// So much for all.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// Takes a share. What is more than there is for all is given where nobody has any. The error is
    /// how much has been taken by all.
    ///
    /// # Errors
    /// There is not enough left, or the party would have more than is left then.
    pub fn take(self: &Arc<Self>, party: Party, amount: usize) -> Result<Share, usize> {
        let mut taken = lock(&self.taken);
        let theirs = taken.by.get(&party).copied().unwrap_or(0);
        let left = self.most.saturating_sub(taken.all);
        let fits = amount <= left && (theirs == 0 || theirs + amount <= left - amount);
        if !fits && taken.all > 0 {
            return Err(taken.all);
        }
        taken.all += amount;
        *taken.by.entry(party).or_default() += amount;
        drop(taken);
        Ok(Share { shares: Arc::clone(self), party, amount })
    }

    /// How much has been taken by all.
    #[must_use]
    pub fn taken(&self) -> usize {
        lock(&self.taken).all
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.shares.taken).give_back(self.party, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_party_is_a_key_or_an_address() {
        let key = |byte| Party::of_key(&dafs_keys::PublicKey::from_bytes([byte; 32]));
        assert_eq!(key(1), key(1));
        assert_ne!(key(1), key(2));
        assert_eq!(Party::of_peer("10.0.0.1:5"), Party::of_peer("10.0.0.1:77"));
        assert_ne!(Party::of_peer("10.0.0.1:5"), Party::of_peer("10.0.0.2:5"));
        assert_eq!(Party::of_peer("process 1 of user 7"), Party::of_peer("process 2 of user 7"));
        assert_ne!(Party::of_peer("10.0.0.1:5"), Party::SERVER);
    }

    #[test]
    fn nobody_gets_more_than_is_left() {
        let shares = Shares::new(100);
        let (greedy, other, third) = (Party(1), Party(2), Party(3));
        let mut kept = Vec::new();
        while let Ok(share) = shares.take(greedy, 10) {
            kept.push(share);
        }
        assert_eq!(kept.len(), 5);
        while let Ok(share) = shares.take(other, 10) {
            kept.push(share);
        }
        assert!(kept.len() < 10, "and so on");
        kept.push(shares.take(third, 10).unwrap());
        assert!(shares.take(third, 100).is_err());
        drop(kept);
        assert_eq!(shares.taken(), 0);
        let large = shares.take(greedy, 1000).unwrap();
        assert_eq!(shares.take(other, 1).err(), Some(1000));
        drop(large);
        shares.take(other, 1).unwrap();
        assert!(lock(&shares.taken).by.is_empty());
    }
}

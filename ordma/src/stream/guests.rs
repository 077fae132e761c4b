//! Connections that have not said what they want.
//!
//! They have the engine's patience to do so. There are only so many of them, and where there are more,
//! one makes room for the next: the oldest of the address that has most of them. Who means to speak does
//! so at once, and is not the oldest for long.

use super::io;
use crate::lock;
use crate::party::Party;
use foldhash::{HashMap, HashMapExt};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

/// Most of them.
const MOST: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Guests(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// The oldest first.
    guests: BTreeMap<u64, (Party, Weak<OwnedFd>)>,
}

/// Counts as one until dropped.
#[derive(Debug)]
pub(super) struct Counted {
    guests: Arc<Mutex<State>>,
    number: u64,
}

impl Guests {
    /// One more.
    pub(super) fn add(&self, party: Party, socket: &Arc<OwnedFd>) -> Counted {
        let mut state = lock(&self.0);
        let displaced = (state.guests.len() >= MOST).then(|| state.in_the_way()).flatten();
        let socket_of = displaced.and_then(|number| state.guests.remove(&number));
        state.last += 1;
        let number = state.last;
        state.guests.insert(number, (party, Arc::downgrade(socket)));
        drop(state);
        if let Some(socket) = socket_of.and_then(|(_, socket)| socket.upgrade()) {
            // Its event loop learns of it and lets go of the rest.
            io::shut_down(socket.as_fd());
        }
        Counted { guests: Arc::clone(&self.0), number }
    }
}

impl State {
    fn in_the_way(&self) -> Option<u64> {
        let mut counts: HashMap<Party, usize> = HashMap::new();
        self.guests.values().for_each(|(party, _)| *counts.entry(*party).or_default() += 1);
        let (richest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let theirs = self.guests.iter().find(|(_, (party, _))| *party == richest);
        theirs.map(|(number, _)| *number)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock(&self.guests).guests.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_oldest_of_the_address_with_most_makes_room() {
        let guests = Guests::default();
        let come = |peer: &str| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let socket = Arc::new(OwnedFd::from(ours));
            let counted = guests.add(Party::of_peer(peer), &socket);
            (counted, socket, theirs)
        };
        let is_closed = |guest: &mut (Counted, Arc<OwnedFd>, UnixStream)| {
            matches!(guest.2.read(&mut [0]), Ok(0))
        };
        let mut modest = come("10.0.0.2:1");
        let mut many: Vec<_> = (1..MOST).map(|_| come("10.0.0.1:1")).collect();
        assert!(!is_closed(&mut modest) && !many.iter_mut().any(is_closed));
        let mut others: Vec<_> = (0..10).map(|_| come("10.0.0.3:1")).collect();
        let closed = many.iter_mut().map(is_closed).take_while(|closed| *closed).count();
        assert_eq!(closed, 10);
        assert!(!is_closed(&mut modest) && !others.iter_mut().any(is_closed));
        assert_eq!(lock(&guests.0).guests.len(), MOST);
        drop((modest, many, others));
        assert!(lock(&guests.0).guests.is_empty());
    }
}

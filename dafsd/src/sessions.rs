//! All sessions of the server, by id. Plain data; the time is an argument.

use foldhash::fast::RandomState;
use ordma::Party;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Names a session. Random, so that nobody takes over a session that was not told of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; Self::LEN]);

impl SessionId {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// A new id.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::LEN];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The id a client sent, if it has the right length.
    #[must_use]
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A number that other sessions hardly have.
    #[must_use]
    pub fn number(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The first bytes only: who reads the log must not be able to take a session over.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}..")
    }
}

/// The table of sessions. Where it is full, clients have equal shares of it.
#[derive(Debug)]
pub struct Sessions<S> {
    table: HashMap<SessionId, Entry<S>, RandomState>,
    /// What each client has of it.
    parties: HashMap<Party, Theirs, RandomState>,
    max: usize,
}

#[derive(Debug)]
struct Entry<S> {
    party: Party,
    slots: u16,
    session: Arc<S>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Theirs {
    sessions: usize,
    slots: usize,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server has {0} sessions, which is the most it may have; raise sessions.max")]
pub struct TooManySessions(pub usize);

impl<S> Sessions<S> {
    /// A table for at most `max` sessions.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { table: HashMap::default(), parties: HashMap::default(), max }
    }

    /// Adds a session with so many request slots. Where there is no room for it, the client that has
    /// the most sessions loses one, if it has more than this one will have: that which was heard of
    /// longest ago, which is returned and has to be ended.
    ///
    /// # Errors
    /// [`TooManySessions`]; nothing has changed then.
    pub fn insert(
        &mut self,
        id: SessionId,
        (party, slots): (Party, u16),
        session: Arc<S>,
        heard: impl Fn(&S) -> Instant,
    ) -> Result<Option<Arc<S>>, TooManySessions> {
        let mut displaced = None;
        if self.table.len() >= self.max {
            let own = self.theirs(party).sessions;
            let richest = self.parties.iter().max_by_key(|(_, theirs)| theirs.sessions);
            let richest = richest.filter(|(_, theirs)| theirs.sessions > own + 1);
            let (&richest, _) = richest.ok_or(TooManySessions(self.max))?;
            let theirs = self.table.iter().filter(|(_, entry)| entry.party == richest);
            let oldest = theirs.min_by_key(|(_, entry)| heard(&entry.session));
            let oldest = oldest.map(|(id, _)| *id).ok_or(TooManySessions(self.max))?;
            displaced = self.remove(&oldest);
        }
        self.table.insert(id, Entry { party, slots, session });
        let theirs = self.parties.entry(party).or_default();
        theirs.sessions += 1;
        theirs.slots += usize::from(slots);
        Ok(displaced)
    }

    fn theirs(&self, party: Party) -> Theirs {
        self.parties.get(&party).copied().unwrap_or_default()
    }

    /// How many request slots the next session of a client gets, of those it asks for: a quarter at
    /// most of what is left of `most` for all its sessions, and always one.
    #[must_use]
    pub fn slots_for(&self, party: Party, asked: u16, most: usize) -> u16 {
        let left = most.saturating_sub(self.theirs(party).slots);
        let part = u16::try_from(left / 4).unwrap_or(u16::MAX);
        asked.min(part).max(1)
    }

    /// The session with this id.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<&Arc<S>> {
        self.table.get(id).map(|entry| &entry.session)
    }

    /// Forgets a session.
    pub fn remove(&mut self, id: &SessionId) -> Option<Arc<S>> {
        let Entry { party, slots, session } = self.table.remove(id)?;
        self.forget(party, slots);
        Some(session)
    }

    fn forget(&mut self, party: Party, slots: u16) {
        if let Some(theirs) = self.parties.get_mut(&party) {
            theirs.sessions -= 1;
            theirs.slots -= usize::from(slots);
            if theirs.sessions == 0 {
                self.parties.remove(&party);
            }
        }
    }

    /// Takes out the sessions that `expired` says are over.
    pub fn take_expired(&mut self, expired: impl Fn(&S) -> bool) -> Vec<Arc<S>> {
        let taken: Vec<_> =
            self.table.extract_if(|_, entry| expired(&entry.session)).map(|(_, e)| e).collect();
        taken.iter().for_each(|entry| self.forget(entry.party, entry.slots));
        taken.into_iter().map(|entry| entry.session).collect()
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<S>> {
        self.table.values().map(|entry| &entry.session)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    type Numbers = Sessions<u64>;

    fn id() -> SessionId {
        SessionId::random().unwrap()
    }

    fn party(name: &str) -> Party {
        Party::of_peer(name)
    }

    /// Adds a session with this number, which was heard of that long after the beginning.
    fn add(sessions: &mut Numbers, who: &str, number: u64) -> Result<Option<u64>, TooManySessions> {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let heard = |number: &u64| *BEGIN + Duration::from_secs(*number);
        let displaced = sessions.insert(id(), (party(who), 4), Arc::new(number), heard)?;
        Ok(displaced.map(|number| *number))
    }

    #[test]
    fn the_table_is_bounded() {
        let mut sessions = Numbers::new(2);
        assert_eq!(add(&mut sessions, "a", 1), Ok(None));
        assert_eq!(add(&mut sessions, "b", 2), Ok(None));
        assert_eq!(add(&mut sessions, "c", 3), Err(TooManySessions(2)));
        let expired = sessions.take_expired(|number| *number == 1);
        assert_eq!(expired, [Arc::new(1)]);
        assert_eq!(add(&mut sessions, "c", 3), Ok(None));
        assert_eq!(sessions.get(&id()), None);
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn a_full_table_is_shared_by_clients() {
        let mut sessions = Numbers::new(6);
        for number in [12, 11, 13, 14, 15, 16] {
            assert_eq!(add(&mut sessions, "greedy", number), Ok(None));
        }
        assert_eq!(add(&mut sessions, "greedy", 17), Err(TooManySessions(6)));
        // One after the other, until they have as many.
        for number in 1..=3 {
            assert_eq!(add(&mut sessions, "other", number), Ok(Some(10 + number)));
        }
        assert_eq!(add(&mut sessions, "other", 4), Err(TooManySessions(6)));
        assert_eq!(add(&mut sessions, "greedy", 18), Err(TooManySessions(6)));
        assert!(matches!(add(&mut sessions, "third", 30), Ok(Some(_))));
        sessions.take_expired(|_| true);
        assert!(sessions.parties.is_empty() && sessions.is_empty());
    }

    #[test]
    fn request_slots_are_shared_by_a_clients_sessions() {
        let mut sessions = Sessions::new(1000);
        let mut granted = Vec::new();
        for number in 0..400 {
            let slots = sessions.slots_for(party("greedy"), 64, 1024);
            let session = Arc::new(number);
            let added =
                sessions.insert(id(), (party("greedy"), slots), session, |_| Instant::now());
            assert_eq!(added, Ok(None));
            granted.push(slots);
        }
        assert_eq!(granted[..10], [64; 10]);
        assert_eq!(granted[399], 1);
        assert!(granted.iter().map(|slots| usize::from(*slots)).sum::<usize>() < 1024 + 400);
        assert_eq!(sessions.slots_for(party("other"), 64, 1024), 64);
        assert_eq!(sessions.slots_for(party("other"), 3, 1024), 3);
    }

    #[test]
    fn an_id_is_not_in_the_log() {
        let id = SessionId::random().unwrap();
        assert_eq!(format!("{id:?}").len(), 10);
        assert_eq!(SessionId::from_wire(id.as_bytes()), Some(id));
        assert_eq!(SessionId::from_wire(&[1; 15]), None);
    }
}

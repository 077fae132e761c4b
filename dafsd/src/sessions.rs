//! All sessions of the server, by id. Plain data; the time is an argument.

use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

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

/// The table of sessions.
#[derive(Debug)]
pub struct Sessions<S> {
    table: HashMap<SessionId, Arc<S>, RandomState>,
    max: usize,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server has {0} sessions, which is the most it may have; raise sessions.max")]
pub struct TooManySessions(pub usize);

impl<S> Sessions<S> {
    /// A table for at most `max` sessions.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { table: HashMap::default(), max }
    }

    /// Adds a session.
    ///
    /// # Errors
    /// [`TooManySessions`]; nothing has changed then.
    pub fn insert(&mut self, id: SessionId, session: Arc<S>) -> Result<(), TooManySessions> {
        if self.table.len() >= self.max {
            return Err(TooManySessions(self.max));
        }
        self.table.insert(id, session);
        Ok(())
    }

    /// The session with this id.
    #[must_use]
    pub fn get(&self, id: &SessionId) -> Option<&Arc<S>> {
        self.table.get(id)
    }

    /// Forgets a session.
    pub fn remove(&mut self, id: &SessionId) -> Option<Arc<S>> {
        self.table.remove(id)
    }

    /// Takes out the sessions that `expired` says are over.
    pub fn take_expired(&mut self, expired: impl Fn(&S) -> bool) -> Vec<Arc<S>> {
        self.table.extract_if(|_, session| expired(session)).map(|(_, session)| session).collect()
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<S>> {
        self.table.values()
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

    #[test]
    fn the_table_is_bounded() {
        let mut sessions = Sessions::new(2);
        let ids: Vec<_> = (0..3).map(|_| SessionId::random().unwrap()).collect();
        assert_eq!(sessions.insert(ids[0], Arc::new(1)), Ok(()));
        assert_eq!(sessions.insert(ids[1], Arc::new(2)), Ok(()));
        assert_eq!(sessions.insert(ids[2], Arc::new(3)), Err(TooManySessions(2)));
        let expired = sessions.take_expired(|number| *number == 1);
        assert_eq!(expired, [Arc::new(1)]);
        assert_eq!(sessions.insert(ids[2], Arc::new(3)), Ok(()));
        assert_eq!(sessions.get(&ids[0]), None);
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn an_id_is_not_in_the_log() {
        let id = SessionId::random().unwrap();
        assert_eq!(format!("{id:?}").len(), 10);
        assert_eq!(SessionId::from_wire(id.as_bytes()), Some(id));
        assert_eq!(SessionId::from_wire(&[1; 15]), None);
    }
}

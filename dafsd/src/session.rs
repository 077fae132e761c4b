//! One session: request slots, credits, lease, opens, and the link it is reached by. Plain data;
//! the time is an argument.

use crate::reply_cache::RequestSlots;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Least time between two reports of heat that count.
pub const HEAT_INTERVAL: Duration = Duration::from_millis(100);

/// Sizes of a session, granted when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Request slots.
    pub slots: u16,
    /// Files open at the same time.
    pub opens: usize,
    /// How long the session outlives its connection.
    pub lease: Duration,
}

/// A session. `R` is a reply, `L` a link, `O` an open file.
#[derive(Debug)]
pub struct Session<R, L, O> {
    /// Request slots and replies.
    pub slots: RequestSlots<R>,
    limits: SessionLimits,
    link: Option<(u64, L)>,
    renewed: Instant,
    heated: Option<Instant>,
    opens: HashMap<u64, O, RandomState>,
    last_open: u64,
    ended: bool,
}

/// The session has as many files open as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this session has {0} files open, which is the most it may have")]
pub struct TooManyOpens(pub usize);

impl<R, L, O> Session<R, L, O> {
    /// A session that nobody is connected to yet.
    #[must_use]
    pub fn new(limits: SessionLimits, now: Instant) -> Self {
        Self {
            slots: RequestSlots::new(limits.slots.max(1)),
            limits,
            link: None,
            renewed: now,
            heated: None,
            opens: HashMap::default(),
            last_open: 0,
            ended: false,
        }
    }

    /// Requests the client may have outstanding, told with each reply. Never 0.
    #[must_use]
    pub fn credits(&self) -> u16 {
        self.slots.count()
    }

    /// How long the session outlives its connection.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.limits.lease
    }

    /// Takes a new link; the old one, to be closed, is returned.
    pub fn attach(&mut self, id: u64, link: L, now: Instant) -> Option<L> {
        self.renew(now);
        self.link.replace((id, link)).map(|(_, old)| old)
    }

    /// The link `id` is gone; whether it was the session's.
    pub fn detach(&mut self, id: u64, now: Instant) -> bool {
        let is_ours = self.link.as_ref().is_some_and(|(ours, _)| *ours == id);
        if is_ours {
            self.link = None;
            self.renew(now);
        }
        is_ours
    }

    /// The link where the client can be reached.
    #[must_use]
    pub fn link(&self) -> Option<&L> {
        self.link.as_ref().map(|(_, link)| link)
    }

    /// The id of the link where the client can be reached.
    #[must_use]
    pub fn link_id(&self) -> Option<u64> {
        self.link.as_ref().map(|(id, _)| *id)
    }

    /// A message arrived.
    pub fn renew(&mut self, now: Instant) {
        self.renewed = self.renewed.max(now);
    }

    /// When the client was heard of last.
    #[must_use]
    pub fn renewed(&self) -> Instant {
        self.renewed
    }

    /// Whether a report of heat counts. Reports that come faster than [`HEAT_INTERVAL`] do not, so
    /// that nobody's pages gain more than other sessions' by being reported more often.
    pub fn take_heat(&mut self, now: Instant) -> bool {
        let since = self.heated.map(|heated| now.saturating_duration_since(heated));
        let counts = since.is_none_or(|since| since >= HEAT_INTERVAL);
        if counts {
            self.heated = Some(now);
        }
        counts
    }

    /// Whether nobody is connected and the lease has run out, or the session was ended.
    #[must_use]
    pub fn expired(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.renewed);
        self.ended || (self.link.is_none() && idle >= self.limits.lease)
    }

    /// Ends the session: nothing is accepted any more. Gives back what was open.
    pub fn end(&mut self) -> (Option<L>, Vec<O>) {
        self.ended = true;
        let opens = std::mem::take(&mut self.opens).into_values().collect();
        (self.link.take().map(|(_, link)| link), opens)
    }

    /// Whether the session was ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether another file can be opened.
    ///
    /// # Errors
    /// [`TooManyOpens`].
    pub fn check_opens(&self) -> Result<(), TooManyOpens> {
        let most = self.limits.opens;
        if self.opens.len() < most { Ok(()) } else { Err(TooManyOpens(most)) }
    }

    /// Adds an open file; its number is never used again in this session.
    ///
    /// # Errors
    /// [`TooManyOpens`]; nothing has changed then.
    pub fn add_open(&mut self, open: O) -> Result<u64, TooManyOpens> {
        self.check_opens()?;
        self.last_open += 1;
        self.opens.insert(self.last_open, open);
        Ok(self.last_open)
    }

    /// The open file with this number.
    #[must_use]
    pub fn open(&self, id: u64) -> Option<&O> {
        self.opens.get(&id)
    }

    /// Forgets an open file.
    pub fn remove_open(&mut self, id: u64) -> Option<O> {
        self.opens.remove(&id)
    }

    /// How many files are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.opens.len()
    }

    /// Panics where the session contradicts itself; for tests.
    ///
    /// # Panics
    /// See above.
    pub fn check_invariants(&self) {
        self.slots.check_invariants();
        assert!(self.credits() >= 1, "a client without credit could never speak again");
        assert!(self.opens.len() <= self.limits.opens);
        assert!(self.opens.keys().all(|id| (1..=self.last_open).contains(id)));
        assert!(!self.ended || (self.link.is_none() && self.opens.is_empty()));
    }
}

#[cfg(test)]
mod tests;

//! Chunks that are registered with a device, each the first time that it is asked for.

use crate::ChunkId;
use crate::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Chunks that are registered, and those that were refused. `R` is a registration.
#[derive(Debug)]
pub(super) struct Registered<R> {
    /// How long after a refusal it is tried again.
    pause: Duration,
    chunks: Mutex<BTreeMap<ChunkId, State<R>>>,
}

#[derive(Debug)]
enum State<R> {
    There(R),
    /// When it was tried last.
    Refused(Instant),
}

impl<R> Registered<R> {
    /// Without chunks. One that was refused is not tried again before `pause` is over.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, chunks: Mutex::default() }
    }

    /// What `use_it` makes of a chunk's registration, if there is one.
    pub(super) fn get<T>(&self, chunk: ChunkId, use_it: impl FnOnce(&R) -> T) -> Option<T> {
        match lock(&self.chunks).get(&chunk)? {
            State::There(registration) => Some(use_it(registration)),
            State::Refused(_) => None,
        }
    }

    /// Whether a chunk is registered, or was refused.
    pub(super) fn was_tried(&self, chunk: ChunkId) -> bool {
        lock(&self.chunks).contains_key(&chunk)
    }

    /// Like [`get`](Self::get), and registers the chunk where it is not. `refused` is told of the
    /// first error of each chunk, and not of those that follow it.
    pub(super) fn make<T, E>(
        &self,
        chunk: ChunkId,
        now: Instant,
        register: impl FnOnce() -> Result<R, E>,
        refused: impl FnOnce(E),
        use_it: impl FnOnce(&R) -> T,
    ) -> Option<T> {
        let mut chunks = lock(&self.chunks);
        let again = match chunks.get(&chunk) {
            Some(State::There(registration)) => return Some(use_it(registration)),
            Some(State::Refused(at)) if now.saturating_duration_since(*at) < self.pause => {
                return None;
            }
            Some(State::Refused(_)) => true,
            None => false,
        };
        match register() {
            Ok(registration) => {
                let used = use_it(&registration);
                chunks.insert(chunk, State::There(registration));
                Some(used)
            }
            Err(error) => {
                chunks.insert(chunk, State::Refused(now));
                if !again {
                    refused(error);
                }
                None
            }
        }
    }

    /// Forgets a chunk, whose registration is the caller's to drop.
    pub(super) fn remove(&self, chunk: ChunkId) -> Option<R> {
        match lock(&self.chunks).remove(&chunk)? {
            State::There(registration) => Some(registration),
            State::Refused(_) => None,
        }
    }

    /// Drops all registrations; whether there were any.
    pub(super) fn clear(&self) -> bool {
        let mut chunks = lock(&self.chunks);
        let before = chunks.len();
        chunks.retain(|_, state| matches!(state, State::Refused(_)));
        chunks.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const PAUSE: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_is_told_once_and_tried_again() {
        let registered = Registered::new(PAUSE);
        let start = Instant::now();
        let (mut tried, mut told) = (0, 0);
        let mut ask = |chunk, at: Duration, result: Result<u32, ()>| {
            let register = || {
                tried += 1;
                result
            };
            let got = registered.make(chunk, start + at, register, |()| told += 1, |key| *key);
            (got, tried, told)
        };
        assert_eq!(ask(7, Duration::ZERO, Err(())), (None, 1, 1));
        assert_eq!(ask(7, PAUSE / 2, Ok(5)), (None, 1, 1), "too early");
        assert_eq!(ask(8, PAUSE / 2, Err(())), (None, 2, 2), "another one is told of");
        assert_eq!(ask(7, PAUSE, Err(())), (None, 3, 2));
        assert_eq!(ask(7, PAUSE * 2, Ok(5)), (Some(5), 4, 2));
        assert_eq!(ask(7, PAUSE * 2, Ok(6)), (Some(5), 4, 2), "once");
        assert_eq!(registered.get(7, |key| *key), Some(5));
        assert_eq!(registered.get(8, |key| *key), None);
        assert_eq!((registered.remove(7), registered.remove(8)), (Some(5), None));
        assert_eq!(registered.get(7, |key| *key), None);
    }

    #[test]
    fn registrations_are_dropped_and_refusals_stay() {
        let registered = Registered::new(Duration::ZERO);
        let (chunk, now) = (Arc::new(()), Instant::now());
        registered.make(1, now, || Ok::<_, ()>(Arc::clone(&chunk)), |()| (), |_| ());
        registered.make(2, now, || Err(()), |()| (), |_| ());
        assert_eq!(Arc::strong_count(&chunk), 2);
        assert!(registered.clear() && !registered.clear());
        assert_eq!(Arc::strong_count(&chunk), 1);
        let told = |()| panic!("it was told before");
        assert!(registered.make(2, now, || Err(()), told, |_| ()).is_none());
    }
}

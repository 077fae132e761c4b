//! Warnings about what others cause: of one kind from one address a few, and then their number.

use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Warnings of one kind from one address that are told at once.
const AT_ONCE: u32 = 5;
/// How long it takes until one more is told.
const PAUSE: Duration = Duration::from_secs(20);
/// Most kinds and addresses that are kept apart; what comes beyond shares one place for each kind.
const MOST: usize = 64;

/// What was said lately. Plain data.
#[derive(Debug, Default)]
pub struct Complaints {
    said: HashMap<(&'static str, String), Said, RandomState>,
}

#[derive(Debug)]
struct Said {
    /// How many may still be told at `last`.
    left: u32,
    last: Instant,
    untold: u64,
}

impl Complaints {
    /// Whether a warning of this kind about this peer is to be told now, and then how many like it
    /// were not told since the last one. Connections from one address are one peer.
    pub fn take(&mut self, kind: &'static str, peer: &str, now: Instant) -> Option<u64> {
        let mut address = address_of(peer).to_owned();
        if !self.said.contains_key(&(kind, address.clone())) && self.said.len() >= MOST {
            self.forget(now);
            if self.said.len() >= MOST {
                address.clear();
            }
        }
        let said = self.of(kind, address, now);
        let pauses = now.saturating_duration_since(said.last).as_secs() / PAUSE.as_secs();
        if pauses > 0 {
            let more = u32::try_from(pauses).unwrap_or(u32::MAX);
            said.left = said.left.saturating_add(more).min(AT_ONCE);
            said.last = now;
        }
        if said.left == 0 {
            said.untold += 1;
            return None;
        }
        said.left -= 1;
        Some(std::mem::take(&mut said.untold))
    }

    fn of(&mut self, kind: &'static str, address: String, now: Instant) -> &mut Said {
        let new = || Said { left: AT_ONCE, last: now, untold: 0 };
        self.said.entry((kind, address)).or_insert_with(new)
    }

    /// Forgets addresses that have been quiet for so long that they may say everything again. What
    /// was not told of theirs is told with the next warning that has no place of its own.
    fn forget(&mut self, now: Instant) {
        let mut untold = Vec::new();
        self.said.retain(|(kind, address), said| {
            let quiet = now.saturating_duration_since(said.last) >= PAUSE * AT_ONCE;
            let goes = quiet && !address.is_empty();
            if goes && said.untold > 0 {
                untold.push((*kind, said.untold));
            }
            !goes
        });
        for (kind, count) in untold {
            self.of(kind, String::new(), now).untold += count;
        }
    }
}

/// As [`Complaints::take`], of this process, whose log is one.
pub fn take(kind: &'static str, peer: &str) -> Option<u64> {
    static ALL: Mutex<Option<Complaints>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().take(kind, peer, Instant::now())
}

/// A peer without what differs from one of its connections to the next: the port, or the process.
pub(crate) fn address_of(peer: &str) -> &str {
    if let Some(at) = peer.find("user ") {
        return &peer[at..];
    }
    match peer.rsplit_once(':') {
        Some((address, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => address,
        _ => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_told_and_the_others_counted() {
        let (mut complaints, begin) = (Complaints::default(), Instant::now());
        let mut told = |kind, peer: &str, now| complaints.take(kind, peer, now);
        for port in 0..AT_ONCE {
            assert_eq!(told("refused", &format!("10.0.0.1:{port}"), begin), Some(0));
        }
        for port in 0..1000 {
            assert_eq!(told("refused", &format!("10.0.0.1:{port}"), begin), None);
        }
        // Another kind, another address, and other processes of one user.
        assert_eq!(told("closed", "10.0.0.1:9", begin), Some(0));
        assert_eq!(told("refused", "[::1]:9", begin), Some(0));
        for process in 0..AT_ONCE {
            let peer = format!("process {process} of user 7");
            assert_eq!(told("refused", &peer, begin), Some(0));
        }
        assert_eq!(told("refused", "process 99 of user 7", begin), None);

        assert_eq!(told("refused", "10.0.0.1:1", begin + PAUSE), Some(1000));
        assert_eq!(told("refused", "10.0.0.1:1", begin + PAUSE), None);
        let later = begin + PAUSE * 1000;
        assert_eq!(told("refused", "10.0.0.1:1", later), Some(1));
        let more = (0..100).filter(|_| told("refused", "10.0.0.1:1", later).is_some()).count();
        assert_eq!(more, AT_ONCE as usize - 1);
    }

    #[test]
    fn many_addresses_share_what_is_left() {
        let (mut complaints, begin) = (Complaints::default(), Instant::now());
        let mut flood = |now| {
            let peers = (0..10_000).map(|n| format!("10.0.{}.{}:1", n / 256, n % 256));
            peers.filter(|peer| complaints.take("refused", peer, now).is_some()).count()
        };
        let most = MOST + AT_ONCE as usize;
        assert!((MOST..=most).contains(&flood(begin)));
        assert!(flood(begin) <= MOST * AT_ONCE as usize);
        assert!(complaints.said.len() <= MOST + 1);
        // The places come back, and the count is not lost.
        let later = begin + PAUSE * AT_ONCE * 2;
        assert!(complaints.take("refused", "192.168.0.1:1", later).is_some());
    }
}

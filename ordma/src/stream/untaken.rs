//! What waits for clients that do not take it.
//!
//! A reply that a client does not take waits in the server's memory, and the client decides for how
//! long. So what waits for all clients together is bounded: where it is more, a client with the most of
//! it loses a connection. And whatever waits has to move: who takes too little of it for too long is
//! cut off, also where there is room.

use super::link::StreamLink;
use super::server::Server;
use crate::engine::LinkError;
use crate::lock;
use crate::os;
use crate::party::Party;
use foldhash::{HashMap, HashMapExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// What a client takes, or sends of what the server fetches, within the engine's time for that, or it
/// is cut off.
const LEAST: u64 = 64 << 10;
/// Longest time between two looks at those for whom something waits.
const LOOKS: Duration = Duration::from_secs(1);
/// Memory is given back to the system after as much has waited.
const MUCH: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Untaken {
    /// Bytes that wait for all clients.
    held: AtomicUsize,
    /// The most that there were since memory was given back.
    peak: AtomicUsize,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    links: HashMap<u64, Seen>,
    /// Another look will come.
    looks: bool,
}

/// A link for which something waits.
#[derive(Debug)]
struct Seen {
    link: Weak<StreamLink>,
    /// When enough had moved last, and how much that was; `None` before the first look.
    moved: Option<(Instant, u64)>,
}

impl Untaken {
    /// So many bytes wait instead of so many.
    pub(super) fn change(&self, before: usize, after: usize) {
        if after > before {
            let held = self.held.fetch_add(after - before, Ordering::Relaxed) + (after - before);
            self.peak.fetch_max(held, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl Server {
    /// Something waits for the client of a link: it is looked at from now on.
    pub(super) fn watch(self: &Arc<Self>, link: &Arc<StreamLink>) {
        let mut watched = lock(&self.untaken.watched);
        let new = || Seen { link: Arc::downgrade(link), moved: None };
        watched.links.entry(link.id).or_insert_with(new);
        if !std::mem::replace(&mut watched.looks, true) {
            self.look_later();
        }
    }

    fn look_later(self: &Arc<Self>) {
        let server = Arc::downgrade(self);
        let period = LOOKS.min(self.settings.take_patience / 4);
        let look = move || {
            if let Some(server) = server.upgrade() {
                server.look();
            }
        };
        self.clock().at(Instant::now() + period, Box::new(look));
    }

    /// Looks at those for whom something waits.
    fn look(self: &Arc<Self>) {
        let now = Instant::now();
        let mut late = Vec::new();
        let mut watched = lock(&self.untaken.watched);
        watched.links.retain(|_, seen| {
            let link = seen.link.upgrade().filter(|link| !link.is_closing());
            let Some((link, moved)) = link.and_then(|link| link.moved().map(|m| (link, m))) else {
                return false;
            };
            let (since, before) = *seen.moved.get_or_insert((now, moved));
            if moved >= before + LEAST {
                seen.moved = Some((now, moved));
            } else if now.saturating_duration_since(since) >= self.settings.take_patience {
                late.push(link);
            }
            true
        });
        let held = self.untaken.held.load(Ordering::Relaxed);
        let peak = self.untaken.peak.load(Ordering::Relaxed);
        let goes_back = peak >= MUCH && held < peak / 4;
        if goes_back {
            self.untaken.peak.store(held, Ordering::Relaxed);
        }
        watched.looks = !watched.links.is_empty() || peak >= MUCH && !goes_back;
        if watched.looks {
            self.look_later();
        }
        drop(watched);
        for link in late {
            let time = self.settings.take_patience;
            link.fail(link.lost(format_args!(
                "the client has taken less than {LEAST} bytes in {time:?} of what waits for it"
            )));
        }
        if goes_back {
            os::give_memory_back();
        }
    }

    /// Sees to it that no more waits than may: of the client for which most does, the link goes that
    /// has taken nothing for longest.
    pub(super) fn make_room(&self) {
        let most = self.settings.send_memory;
        if self.untaken.held.load(Ordering::Relaxed) <= most {
            return;
        }
        let mut waiting = Vec::new();
        let mut parties: HashMap<Party, usize> = HashMap::new();
        for seen in lock(&self.untaken.watched).links.values() {
            let link = seen.link.upgrade().filter(|link| !link.is_closing());
            let Some((link, untaken)) = link.and_then(|l| l.untaken().map(|u| (l, u))) else {
                continue;
            };
            let (bytes, since) = untaken;
            *parties.entry(link.party()).or_default() += bytes;
            waiting.push((since, bytes, link));
        }
        // Those that are closing will give back what is theirs.
        let mut all: usize = parties.values().sum();
        waiting.sort_by_key(|(since, ..)| *since);
        while all > most {
            let richest = parties.iter().max_by_key(|(_, bytes)| **bytes).map(|(party, _)| *party);
            let at = waiting.iter().position(|(.., link)| Some(link.party()) == richest);
            let Some((_, bytes, link)) = at.map(|at| waiting.remove(at)) else { return };
            if let Some(theirs) = richest.and_then(|richest| parties.get_mut(&richest)) {
                *theirs -= bytes;
            }
            all -= bytes;
            let reason = format!(
                "the client does not take its replies: more than {most} bytes wait for all clients"
            );
            link.fail(LinkError::Lost { peer: link.peer.clone(), reason });
        }
    }
}

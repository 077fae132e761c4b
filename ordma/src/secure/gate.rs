//! What stands between an engine and the service.

use super::greeting::{Judge, Policy, Step};
use super::link::{Mode, SecureLink};
use super::rate::Bucket;
use super::{Secured, message, scratch};
use crate::complaints;
use crate::engine::{Link, LinkError, Service};
use crate::lock;
use dafs_keys::Identity;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// The time now. A function, for engines with a clock of their own.
pub type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// How many handshakes a server does. Each costs some tenths of a millisecond of the engine's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Handshakes a second that are answered in the long run; those beyond are refused. At least 1.
    pub handshakes: u32,
    /// Handshakes that are answered at once after a quiet time. At least 1.
    pub burst: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { handshakes: 200, burst: 500 }
    }
}

/// What came of the links so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients that are known by their keys.
    pub secured: u64,
    /// Handshakes that were refused, those for want of time included.
    pub refused: u64,
    /// Handshakes that were refused for want of time.
    pub busy: u64,
    /// Links that were closed because what came over them did not open, or was none of a
    /// handshake.
    pub broken: u64,
}

#[derive(Debug, Default)]
struct Counters {
    secured: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
    broken: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A [`Service`] that does the handshake, opens what comes, and has another service do the rest.
///
/// The other service is told at once of links that connect, so that it can limit their number and
/// close those that say nothing for too long. No message reaches it before the client has shown that
/// it is there, or has begun without a handshake. It must not [send](Link::send) or
/// [allow reads](Link::allow_reads) before the first message of a link, which is closed then.
pub struct Gate {
    service: Arc<dyn Service>,
    identity: Arc<Identity>,
    policy: Arc<dyn Policy>,
    clock: Clock,
    handshakes: Mutex<Bucket>,
    links: RwLock<HashMap<u64, Arc<SecureLink>, RandomState>>,
    counters: Counters,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate before `service`. `clock` is that of the engines.
    #[must_use]
    pub fn new(
        service: Arc<dyn Service>,
        identity: Arc<Identity>,
        policy: Arc<dyn Policy>,
        settings: Settings,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            service,
            identity,
            policy,
            clock,
            handshakes: Mutex::new(Bucket::new(settings.handshakes, settings.burst)),
            links: RwLock::default(),
            counters: Counters::default(),
        })
    }

    /// What came of the links so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            secured: load(&self.counters.secured),
            refused: load(&self.counters.refused),
            busy: load(&self.counters.busy),
            broken: load(&self.counters.broken),
        }
    }

    fn link(&self, id: u64) -> Option<Arc<SecureLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Whether there is time for another handshake.
    fn has_time(&self) -> bool {
        let has_time = lock(&self.handshakes).take((self.clock)());
        if !has_time {
            count(&self.counters.busy);
        }
        has_time
    }

    /// A message before it is known what the link is.
    fn greet(&self, link: &Arc<SecureLink>, head: &[u8], data: &[u8]) {
        scratch::with(|plain| {
            let judge = Judge {
                identity: &self.identity,
                policy: &*self.policy,
                has_time: &|| self.has_time(),
            };
            let step = lock(&link.greeting).step(head, !data.is_empty(), &judge, plain);
            match step {
                Step::Answer(packet) => link.send_packet(&packet),
                Step::Refuse { packet, why, client } => {
                    count(&self.counters.refused);
                    let peer = link.peer();
                    match client {
                        Some(client) => {
                            if let Some(untold) = complaints::take("client refused", &peer) {
                                tracing::warn!(peer, %client, why, untold, "client refused");
                            }
                        }
                        None => tracing::debug!(peer, why, "handshake refused"),
                    }
                    link.send_packet(&packet);
                }
                Step::Plain => {
                    link.settle(Mode::Plain);
                    self.service.message(&shown(link), head, data);
                }
                Step::Secure(secured) => {
                    count(&self.counters.secured);
                    link.settle(Mode::Secure(Arc::clone(&secured)));
                    self.deliver(link, &secured, plain, data);
                }
                Step::Close(why) => self.break_off(link, why),
            }
        });
    }

    /// Passes on a message that was opened, with its data.
    fn deliver(&self, link: &Arc<SecureLink>, secured: &Secured, plain: &[u8], data: &[u8]) {
        let (seal, head) = match message::decode(plain, !data.is_empty()) {
            Ok(message) => message,
            Err(why) => return self.break_off(link, why),
        };
        let Some(seal) = seal else { return self.service.message(&shown(link), head, &[]) };
        scratch::with(|open| {
            open.extend_from_slice(data);
            match secured.established.writes.open(&seal, open) {
                Ok(()) => self.service.message(&shown(link), head, open),
                Err(_) => self.break_off(link, "data was changed on the way"),
            }
        });
    }

    /// Closes a link over which something came that its client cannot have sent.
    fn break_off(&self, link: &SecureLink, why: &str) {
        if link.finish() {
            count(&self.counters.broken);
            let peer = link.peer();
            if let Some(untold) = complaints::take("broken", &peer) {
                tracing::warn!(peer, why, untold, "closing the connection");
            }
            link.close(why);
        }
    }
}

fn shown(link: &Arc<SecureLink>) -> Arc<dyn Link> {
    Arc::<SecureLink>::clone(link)
}

impl Service for Gate {
    fn connected(&self, link: Arc<dyn Link>) {
        let link = Arc::new(SecureLink::new(link));
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(link.id(), Arc::clone(&link));
        drop(links);
        self.service.connected(link);
    }

    fn message(&self, link: &Arc<dyn Link>, head: &[u8], data: &[u8]) {
        let Some(link) = self.link(link.id()).filter(|link| !link.is_over()) else { return };
        match link.mode() {
            None => self.greet(&link, head, data),
            Some(Mode::Plain) => self.service.message(&shown(&link), head, data),
            Some(Mode::Secure(secured)) => {
                scratch::with(|plain| match secured.channel.open(head, plain) {
                    Ok(()) => self.deliver(&link, secured, plain, data),
                    Err(broken) => self.break_off(&link, &broken.to_string()),
                });
            }
        }
    }

    fn closed(&self, link: &Arc<dyn Link>, reason: &LinkError) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let link = links.remove(&link.id());
        drop(links);
        if let Some(link) = link {
            link.finish();
            let link: Arc<dyn Link> = link;
            self.service.closed(&link, reason);
        }
    }
}

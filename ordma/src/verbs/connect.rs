//! Connecting: a connection for messages, and one for READs beside it.

use super::adverts::Adverts;
use super::capabilities;
use super::credits::{Credits, LEAST_WINDOW, SPARE};
use super::endpoint::{Client, Messages, Parts, VerbsEndpoint};
use super::hello::{ClientHello, Refusal, Welcome, Wish};
use super::keeper::{Kick, keep};
use super::pool::Pool;
use super::reads::{READ_DEPTH, Reads};
use super::server::{WINDOW, tuning};
use super::wire::{INLINE, MessagePair, SENDS, Wire};
use crate::client::{Core, connect_by};
use crate::engine::{Connector, Endpoint, LinkError, Receiver};
use crate::rdma::{
    self, Access, Cap, Channel, CompletionQueue, ConnectionParameters, Domain, Event, EventChannel,
    EventKind, Id, MAX_HELLO, Tuning,
};
use crate::stream::Settings;
use crate::stream::frame::Limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long an attempt may take before another is begun. The kernel's connection manager says again
/// what was lost, but not before four seconds have passed (cma.c, `CMA_CM_RESPONSE_TIMEOUT`).
const PATIENCE: Duration = Duration::from_millis(1500);
const NO_ANSWER: &str = "no answer in time";

#[derive(Debug)]
pub(super) struct VerbsConnector {
    pub(super) address: String,
    pub(super) settings: Settings,
}

/// A connection that is being made.
struct Attempt {
    events: Arc<EventChannel>,
    deadline: Instant,
    /// The address of this host to come from.
    from: Option<IpAddr>,
}

impl Attempt {
    fn left(&self) -> Result<Duration, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(NO_ANSWER.to_owned()) } else { Ok(left) }
    }

    /// The next event, which has to be of this connection.
    fn event(&self, id: &Id) -> Result<Event, String> {
        loop {
            let event = self.events.next().map_err(|error| error.to_string())?;
            if let Some(event) = event {
                match event.kind {
                    _ if event.id != id.key() => continue,
                    EventKind::Rejected => return Err(rejected(&event)),
                    EventKind::Failed(why) => {
                        return Err(format!("{why} (status {})", event.status));
                    }
                    EventKind::Disconnected => return Err("closed by the server".to_owned()),
                    _ => return Ok(event),
                }
            }
            let timeout = Timespec::try_from(self.left()?).ok();
            let fd = PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN);
            poll(&mut [fd], timeout.as_ref())
                .or_else(|error| if error == rustix::io::Errno::INTR { Ok(0) } else { Err(error) })
                .map_err(|error| error.to_string())?;
        }
    }

    /// Finds device and way to an address.
    fn resolve(&self, address: SocketAddr) -> Result<Id, String> {
        let text = |error: rdma::Error| error.to_string();
        let id = Id::new(&self.events).map_err(text)?;
        if let Some(from) = self.from {
            id.bind(SocketAddr::new(from, 0)).map_err(text)?;
        }
        id.resolve_address(address, self.left()?).map_err(text)?;
        let EventKind::AddressResolved = self.event(&id)?.kind else {
            return Err("an address that is not resolved".to_owned());
        };
        id.resolve_route(self.left()?).map_err(text)?;
        let EventKind::RouteResolved = self.event(&id)?.kind else {
            return Err("a route that is not resolved".to_owned());
        };
        Ok(id)
    }

    /// Asks for a connection: what the server says, and how many READs it can have under way: those
    /// that it answers.
    fn ask(
        &self,
        id: &Id,
        hello: ClientHello,
        pair: u32,
        depths: (u8, u8),
    ) -> Result<(Welcome, u8), String> {
        let hello = hello.encode();
        debug_assert!(hello.len() <= MAX_HELLO);
        let (reads_in, reads_out) = depths;
        let asked = id.connect(ConnectionParameters { pair, reads_in, reads_out, private: &hello });
        asked.map_err(|error| error.to_string())?;
        let event = self.event(id)?;
        let EventKind::Accepted { depths: (_, depth) } = event.kind else {
            return Err(format!("no answer, but {:?}", event.kind));
        };
        Ok((Welcome::decode(&event.private)?, depth))
    }
}

fn rejected(event: &Event) -> String {
    match Refusal::decode(&event.private) {
        Some(refusal) => format!("the server refuses: {refusal}"),
        // The kernel's answer where nobody listens (enum ib_cm_rej_reason).
        None if event.status == 8 => "nobody listens there".to_owned(),
        None => format!("refused for reason {} of the connection manager", event.status),
    }
}

impl VerbsConnector {
    fn try_connect(
        &self,
        receiver: Arc<dyn Receiver>,
        deadline: Instant,
    ) -> Result<VerbsEndpoint, String> {
        let (address, from) = match self.address.split_once('@') {
            Some((address, from)) => {
                let wrong = |_| format!("{from:?} is no address of this host");
                (address, Some(from.parse().map_err(wrong)?))
            }
            None => (&*self.address, None),
        };
        let addresses = address.to_socket_addrs().map_err(|error| error.to_string())?;
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            loop {
                let events = EventChannel::new().map_err(|error| error.to_string())?;
                let until = deadline.min(Instant::now() + PATIENCE);
                let attempt = Attempt { events, deadline: until, from };
                match self.connect_to(&attempt, address, Arc::clone(&receiver)) {
                    Ok(endpoint) => return Ok(endpoint),
                    Err(why) => last = why,
                }
                if last != NO_ANSWER || Instant::now() >= deadline {
                    break;
                }
            }
        }
        Err(last)
    }

    fn connect_to(
        &self,
        attempt: &Attempt,
        address: SocketAddr,
        receiver: Arc<dyn Receiver>,
    ) -> Result<VerbsEndpoint, String> {
        let text = |error: rdma::Error| error.to_string();
        let id = attempt.resolve(address)?;
        let device = id.device().ok_or("an address behind no RDMA device")?;
        let info = device.info().map_err(text)?;
        let domain = Domain::new(device).map_err(text)?;
        let channel = Channel::new(device).map_err(text)?;
        let sends = CompletionQueue::new(device, SENDS + 1, Some(&channel)).map_err(text)?;
        let most = WINDOW + SPARE + 1;
        let receives = CompletionQueue::new(device, most, Some(&channel)).map_err(text)?;
        let cap = Cap { sends: SENDS, receives: most, parts: 1, inline: INLINE };
        let pair = MessagePair::new(&domain, &sends, &receives, cap).map_err(text)?;
        let pair = Arc::new(pair);
        let own_limits = self.settings.limits();
        let hello = ClientHello {
            wish: Wish::Messages,
            mtu: info.mtu as u16,
            window: WINDOW as u16,
            limits: own_limits,
        };
        // The server reads from this side's memory, and writes to it: to what is lent.
        let reads_in = info.reads_in.min(READ_DEPTH);
        let (welcome, _) = attempt.ask(&id, hello, pair.number(), (reads_in, 1))?;
        if u32::from(welcome.window) < LEAST_WINDOW {
            return Err("the server posts too few receives".to_owned());
        }
        let packet = welcome.packet as usize;
        let packets =
            Arc::new(Pool::new(&domain, Access::Local, packet, 64 * packet, 512 * packet));
        let buffer = || {
            let short = || "no buffers for packets".to_owned();
            packets.take().map_err(text)?.ok_or_else(short)
        };
        let mtu = info.mtu.min(welcome.mtu.into());
        let both = Tuning { remote_read: true, remote_write: true, reads_in, ..tuning(mtu) };
        pair.init(&id, &both).map_err(text)?;
        for _ in 0..WINDOW + SPARE {
            pair.post_receive(buffer()?).map_err(text)?;
        }
        pair.connect(&id, &both).map_err(text)?;
        id.establish().map_err(text)?;
        let peer = address.to_string();
        let wire = Arc::new(Wire::new(
            Arc::clone(&pair),
            Credits::new(WINDOW, welcome.window.into()),
            Arc::clone(&packets),
            None,
            Arc::default(),
            packet,
            peer.clone(),
        ));
        let keeper = Kick::new().map_err(|error| error.to_string())?;
        let geometry = welcome.geometry;
        let reads =
            Reads::new(device, &domain, geometry, mtu, Arc::clone(&wire), Arc::clone(&keeper));
        let reads = reads.map_err(text)?;
        let nonce = self.connect_reads(attempt, address, welcome.ticket, &reads, info.mtu)?;
        let messages = Messages::new(Parts {
            peer,
            channel,
            pair,
            limits: welcome.limits,
            own_limits,
            receiver: Arc::clone(&receiver),
            spare: buffer()?,
            adverts: Adverts::new(&domain, Arc::clone(&wire)),
            wire,
            reads: Arc::clone(&reads),
            nonce,
            connection: id,
        });
        let lane = Arc::<Reads>::clone(&reads);
        let core = Core::new(messages, Some(lane), receiver, self.settings.spin);
        let core = core.map_err(|error| error.to_string())?;
        let capabilities = capabilities(geometry);
        let client = Arc::new(Client { core, reads, capabilities });
        let (kept, events, kick) =
            (Arc::clone(&client), Arc::clone(&attempt.events), Arc::clone(&keeper));
        let thread = std::thread::Builder::new().name("dafs-keeper".to_owned());
        let thread = thread.spawn(move || keep(&kept, &events, &kick));
        let thread = Mutex::new(Some(thread.map_err(|error| error.to_string())?));
        Ok(VerbsEndpoint { client, keeper, thread })
    }

    /// Makes the connection for READs; the nonce that its proof is over.
    fn connect_reads(
        &self,
        attempt: &Attempt,
        address: SocketAddr,
        ticket: [u8; 16],
        reads: &Reads,
        mtu: u32,
    ) -> Result<[u8; 16], String> {
        let id = attempt.resolve(address)?;
        let limits = Limits { head: 0, data: 0 };
        let hello = ClientHello { wish: Wish::Reads(ticket), mtu: mtu as u16, window: 0, limits };
        let (welcome, depth) = attempt.ask(&id, hello, reads.number(), (1, reads.depth()))?;
        let begun = reads.begin(id, welcome.mtu.into(), depth);
        begun.map_err(|error| error.to_string())?;
        Ok(welcome.ticket)
    }
}

impl Connector for VerbsConnector {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        connect_by(&self.address, timeout, |deadline| self.try_connect(receiver, deadline))
    }

    fn target(&self) -> String {
        self.address.clone()
    }
}

use super::*;
use ordma::{Capabilities, ReadAccess, Tag};
use std::pin::pin;

/// A link that only knows whether it was closed.
#[derive(Debug, Default)]
struct Closes(Mutex<usize>);

impl Link for Closes {
    fn id(&self) -> u64 {
        1
    }
    fn peer(&self) -> String {
        "fake".into()
    }
    fn capabilities(&self) -> Capabilities {
        unreachable!("nobody asks")
    }
    fn send(&self, _: &[u8], _: &[u8]) {}
    fn write_to(&self, _: Tag, _: Vec<u8>) -> Transfer {
        Transfer::new()
    }
    fn read_from(&self, _: Tag, _: u64, _: Vec<u8>) -> Transfer {
        Transfer::new()
    }
    fn allow_reads(&self, _: Option<ReadAccess>) {}
    fn close(&self, _: &str) {
        *self.0.lock() += 1;
    }
}

type Wait<T> = Pin<Box<dyn Future<Output = T>>>;

fn poll<T>(future: &mut Wait<T>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

struct World {
    transfers: Arc<Transfers>,
    now: Instant,
}

/// A session of its own client, or one of several.
fn session(party: &str) -> Asking {
    Asking { session: SessionId::random().unwrap(), party: Party::of_peer(party) }
}

impl World {
    fn new(permits: usize) -> Self {
        Self { transfers: Transfers::new(permits), now: Instant::now() }
    }

    fn ask(&self, asking: Asking) -> Wait<Result<Permit, OpError>> {
        let (transfers, now) = (Arc::clone(&self.transfers), self.now);
        let mut wait: Wait<_> = Box::pin(async move { transfers.acquire(asking, now).await });
        match poll(&mut wait) {
            Some(answer) => Box::pin(std::future::ready(answer)),
            None => wait,
        }
    }

    fn take(&self, asking: Asking) -> Option<Permit> {
        poll(&mut self.ask(asking)).map(|permit| permit.unwrap())
    }

    /// Begins a transfer that stays where it is.
    fn stall(&self, permit: Permit, link: &Arc<Closes>) -> (Transfer, Wait<()>) {
        let (transfer, link): (_, Arc<dyn Link>) = (Transfer::new(), Arc::<Closes>::clone(link));
        let (moving, transfer) = (transfer.clone(), transfer);
        transfer.advance(0);
        let mut under_way: Wait<()> = Box::pin(async move {
            permit.until(&link, moving).await.unwrap_err();
        });
        assert!(poll(&mut under_way).is_none());
        (transfer, under_way)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.transfers.tick(self.now);
    }
}

fn lost() -> Result<Vec<u8>, LinkError> {
    Err(LinkError::Closed("test".into()))
}

#[test]
fn sessions_and_clients_have_part_of_the_permits() {
    let world = World::new(8);
    let (one, another, other) = (session("a"), session("a"), session("b"));
    let take = |asking| std::iter::from_fn(|| world.take(asking)).collect::<Vec<_>>();
    let first = take(one);
    assert_eq!(first.len(), 4, "a session has half of them");
    let second = take(another);
    assert_eq!(second.len(), 2, "and a client three quarters");
    let third = take(other);
    assert_eq!(third.len(), 2);
    assert_eq!(world.transfers.held(), 8);
    drop((first, second, third));
    assert_eq!(world.transfers.held(), 0);
    world.transfers.tick(Instant::now());
    let state = world.transfers.state.lock();
    assert!(state.sessions.is_empty() && state.parties.is_empty());
}

#[test]
fn permits_go_round() {
    let world = World::new(2);
    let held = world.take(session("busy")).unwrap();
    let _other = world.take(session("too")).unwrap();
    let (greedy, modest) = (session("greedy"), session("modest"));
    let mut asked: Vec<_> = (0..10).map(|_| world.ask(greedy)).collect();
    let mut turn = world.ask(modest);
    drop(held);
    let got = asked.iter_mut().find_map(poll).unwrap().unwrap();
    assert!(poll(&mut turn).is_none());
    drop(got);
    drop(poll(&mut turn).expect("its turn").unwrap());
    // Who does not wait any more takes nothing.
    drop(asked);
    assert_eq!(world.transfers.held(), 1);
}

#[test]
fn who_stands_still_loses_its_connection_only_where_others_want_its_permit() {
    let mut world = World::new(8);
    let link = Arc::new(Closes::default());
    let mut stopped = Vec::new();
    for number in 0..5 {
        let permit = world.take(session(&format!("stopped {number}"))).unwrap();
        stopped.push(world.stall(permit, &link));
    }
    world.pass(STALL * 100);
    assert_eq!(*link.0.lock(), 0, "there are permits for others");
    for number in 5..8 {
        let permit = world.take(session(&format!("stopped {number}"))).unwrap();
        stopped.push(world.stall(permit, &link));
    }
    // One that moves is left alone, however long it takes.
    for _ in 0..100 {
        let moved = stopped[0].0.moved().unwrap();
        stopped[0].0.advance(moved + LEAST);
        world.pass(STALL / 2);
        if *link.0.lock() > 0 {
            break;
        }
    }
    assert_eq!(*link.0.lock(), 2, "a quarter is free for others again");
    for (transfer, under_way) in &mut stopped[1..3] {
        transfer.complete(lost());
        poll(under_way).unwrap();
    }
    world.pass(STALL * 100);
    assert_eq!((world.transfers.held(), *link.0.lock()), (6, 2));
    let [one, two] = [(); 2].map(|()| world.take(session("honest")).unwrap());
    drop((one, two));
}

#[test]
fn what_waits_for_others_too_long_travels_in_messages() {
    let mut world = World::new(1);
    let link = Arc::new(Closes::default());
    let first = session("first");
    let permit = world.take(first).unwrap();
    let (transfer, mut under_way) = world.stall(permit, &link);
    let (mut own, mut late) = (world.ask(first), world.ask(session("late")));
    for step in 1..10 {
        transfer.advance(step * LEAST);
        world.pass(WAIT);
    }
    let refused = poll(&mut late).unwrap().unwrap_err();
    assert_eq!((refused.status, refused.unexecuted), (Status::Transfer, true));
    assert!(poll(&mut own).is_none(), "its own transfer is what it waits for");
    assert_eq!(*link.0.lock(), 0);
    transfer.complete(lost());
    poll(&mut under_way).unwrap();
    assert!(pin!(own).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    assert_eq!(world.transfers.held(), 0);
}

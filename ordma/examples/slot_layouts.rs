//! Which layout of slots a READ likes best: payloads and footers apart, or each footer behind its
//! payload. Raw verbs, client and server in one process; needs an RDMA device at the address given
//! (10.9.9.1).
//!
//! usage: slot_layouts [ADDRESS] [MILLISECONDS]

use ordma::rdma::{
    Access, Block, Cap, CompletionQueue, ConnectionParameters, Domain, Event, EventChannel,
    EventKind, Id, Op, QueuePair, Remote, Slab, Tuning, Work,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const FOOTER: usize = 64;
const RUN: usize = 16;
const BLOCK: usize = RUN * (PAGE + FOOTER);

type Pair = QueuePair<Block, ()>;

struct Side {
    id: Id,
    queue: Arc<CompletionQueue>,
    pair: Pair,
    tuning: Tuning,
    slab: Arc<Slab>,
}

fn side(id: Id) -> Result<Side, Box<dyn std::error::Error>> {
    let device = id.device().ok_or("no device")?;
    let info = device.info()?;
    let domain = Domain::new(device)?;
    let queue = CompletionQueue::new(device, 256, None)?;
    let pair =
        Pair::new(&domain, &queue, &queue, Cap { sends: 128, receives: 1, parts: 4, inline: 0 })?;
    let tuning = Tuning {
        remote_read: true,
        remote_write: false,
        timeout: 14,
        retries: 6,
        not_ready_retries: 6,
        not_ready_timer: 1,
        mtu: info.mtu,
        reads_out: info.reads_out.min(16),
        reads_in: info.reads_in.min(16),
        packets: None,
    };
    let slab = Slab::new(&domain, BLOCK, 64, Access::RemoteWrite)?;
    Ok(Side { id, queue, pair, tuning, slab })
}

fn event(channel: &Arc<EventChannel>) -> Result<Event, Box<dyn std::error::Error>> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Some(event) = channel.next()? {
            return Ok(event);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("no event in time".into())
}

fn connect(ip: IpAddr) -> Result<(Side, Side, Id), Box<dyn std::error::Error>> {
    let (here, there) = (EventChannel::new()?, EventChannel::new()?);
    let listening = Id::new(&there)?;
    listening.bind(SocketAddr::new(ip, 0))?;
    listening.listen(1)?;
    let id = Id::new(&here)?;
    id.resolve_address(SocketAddr::new(ip, listening.port()), Duration::from_secs(2))?;
    event(&here)?;
    id.resolve_route(Duration::from_secs(2))?;
    event(&here)?;
    let client = side(id)?;
    let parameters = |side: &Side| ConnectionParameters {
        pair: side.pair.number(),
        reads_in: side.tuning.reads_in,
        reads_out: side.tuning.reads_out,
        private: &[],
    };
    client.id.connect(parameters(&client))?;
    let EventKind::Request { id, .. } = event(&there)?.kind else {
        return Err("no request".into());
    };
    let server = side(id)?;
    server.pair.init(&server.id, &server.tuning)?;
    server.pair.connect(&server.id, &server.tuning)?;
    server.id.accept(parameters(&server))?;
    event(&here)?;
    client.pair.init(&client.id, &client.tuning)?;
    client.pair.connect(&client.id, &client.tuning)?;
    client.id.establish()?;
    Ok((client, server, listening))
}

/// One access: the lengths of its READs.
fn access(client: &Side, remote: Remote, lens: &[usize]) -> Result<(), Box<dyn std::error::Error>> {
    let mut at = 0;
    let works: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(i, len)| {
            let mut local = client.slab.take().expect("a block");
            local.set_len(*len);
            let remote = Remote { address: remote.address + at as u64, ..remote };
            at += len;
            Work { op: Op::Read(remote), local, signaled: i + 1 == lens.len() }
        })
        .collect();
    client.pair.post(works)?;
    let (mut found, mut done) = (Vec::new(), Vec::new());
    while client.queue.poll(&mut found)? == 0 {
        std::hint::spin_loop();
    }
    client.pair.sent(&found[0], &mut done);
    match done.iter().all(|(_, status)| status.is_success()) {
        true => Ok(()),
        false => Err("a READ failed".into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let ip = args.next().unwrap_or_else(|| "10.9.9.1".into()).parse()?;
    let time = Duration::from_millis(args.next().map_or(Ok(1000), |text| text.parse())?);
    let (client, server, _listening) = connect(ip)?;
    let source = server.slab.take().ok_or("no block")?;
    let pages: Vec<usize> = vec![PAGE; RUN];
    let rows: [(&str, Vec<usize>); 7] = [
        ("4 KiB", vec![PAGE]),
        ("4 KiB and 64 B apart", vec![PAGE, FOOTER]),
        ("4 KiB with 64 B behind", vec![PAGE + FOOTER]),
        ("64 KiB", vec![RUN * PAGE]),
        ("64 KiB and 1 KiB apart", vec![RUN * PAGE, RUN * FOOTER]),
        ("16 x (4 KiB with 64 B behind) in one", vec![RUN * (PAGE + FOOTER)]),
        ("16 x 4 KiB, 1 KiB apart", [&pages[..], &[RUN * FOOTER]].concat()),
    ];
    // Rows take turns, so that all see the same machine.
    let mut best = vec![Vec::new(); rows.len()];
    let end = Instant::now() + time * rows.len() as u32;
    while Instant::now() < end {
        for (times, (_, lens)) in best.iter_mut().zip(&rows) {
            for _ in 0..50 {
                let begun = Instant::now();
                access(&client, source.remote(), lens)?;
                times.push(begun.elapsed());
            }
        }
    }
    for (times, (name, _)) in best.iter_mut().zip(&rows) {
        times.sort();
        println!("{:>40}  p50 {:8.2} us", name, times[times.len() / 2].as_secs_f64() * 1e6);
    }
    Ok(())
}

//! Someone between client and server, who sees and changes what passes. Over tcp.

use crate::guarded::Guarded;
use crate::harness::*;
use ordma::{Connector, LinkError, ReadAccess};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HELLO: usize = 32;
const WELCOME: usize = 48;
const HEADER: usize = 24;

/// What becomes of the frames of one direction: given the number of a frame and its bytes, what is
/// passed on.
type Rule = Box<dyn FnMut(usize, Vec<u8>) -> Vec<u8> + Send>;

fn as_it_is() -> Rule {
    Box::new(|_, frame| frame)
}

/// Passes one client's connections on; where to.
fn between(server: &str, up: Rule, down: Rule) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = server.to_owned();
    std::thread::spawn(move || {
        let first = accept(&listener, &server);
        pass(first, up, down);
        // Who is refused does not come with a second connection.
        let (client, server) = accept(&listener, &server);
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut &client, &mut &server);
        let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    });
    address
}

fn accept(listener: &TcpListener, server: &str) -> (TcpStream, TcpStream) {
    let (client, _) = listener.accept().unwrap();
    let server = TcpStream::connect(server).unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

fn pass((client, server): (TcpStream, TcpStream), up: Rule, down: Rule) {
    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || pass_frames(from, to, HELLO, up));
    std::thread::spawn(move || pass_frames(server, client, WELCOME, down));
}

fn pass_frames(mut from: TcpStream, mut to: TcpStream, hello: usize, mut rule: Rule) {
    let mut number = 0;
    let mut pass = || {
        let mut first = vec![0; hello];
        from.read_exact(&mut first)?;
        to.write_all(&first)?;
        loop {
            let mut frame = vec![0; HEADER];
            from.read_exact(&mut frame)?;
            let (head, data) = lengths(&frame);
            frame.resize(HEADER + head + data, 0);
            from.read_exact(&mut frame[HEADER..])?;
            to.write_all(&rule(number, frame))?;
            number += 1;
        }
    };
    let ended: std::io::Result<()> = pass();
    assert!(ended.is_err());
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Lengths of a frame's head and data.
fn lengths(frame: &[u8]) -> (usize, usize) {
    let head = u32::from_le_bytes(frame[4..8].try_into().unwrap());
    (head as usize, u64::from_le_bytes(frame[8..16].try_into().unwrap()) as usize)
}

fn set_lengths(frame: &mut [u8], head: usize, data: usize) {
    frame[4..8].copy_from_slice(&(head as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&(data as u64).to_le_bytes());
}

struct Stage {
    guarded: Arc<Guarded>,
    world: World,
}

impl Stage {
    fn new() -> Self {
        let guarded = Guarded::new(Row::tcp());
        let world = World::new(&guarded.row());
        Self { guarded, world }
    }

    fn connect(&self, up: Rule, down: Rule) -> Result<Client, LinkError> {
        let address = between(&self.world.listener.address(), up, down);
        let connector =
            self.guarded.connector_as(&self.guarded.client, self.guarded.server.public(), &address);
        let receiver = Arc::new(Inbox::default());
        let endpoint = connector.connect(receiver.clone(), PATIENCE)?;
        let link =
            self.world.service.0.wait("the link", |seen| seen.connected.last().map(Arc::clone));
        let key = Arc::clone(&self.world.key);
        Ok(Client { endpoint, receiver, link, key, access: ReadAccess::default() })
    }

    fn failure(&self, up: Rule, down: Rule) -> String {
        self.connect(up, down).err().expect("no connection").to_string()
    }

    fn broken(&self) -> u64 {
        self.guarded.gate().counts().broken
    }
}

/// What can be done to one of several frames that follow each other.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Turns a bit of the byte at this place of the head; counted from the end if negative.
    Head(isize),
    Data(isize),
    Drop,
    Repeat,
    /// The next one comes first.
    Reorder,
    /// Takes the data away, or puts some there.
    Strip,
    Append,
    /// The head's last byte becomes the data's first.
    Shift,
}

const TO_HEADS: [Harm; 7] = [
    Harm::Head(0),
    Harm::Head(9),
    Harm::Head(-1),
    Harm::Drop,
    Harm::Repeat,
    Harm::Reorder,
    Harm::Shift,
];
const TO_DATA: [Harm; 4] = [Harm::Data(0), Harm::Data(-1), Harm::Strip, Harm::Append];

/// A rule that harms one frame.
fn harm(which: usize, harm: Harm) -> Rule {
    let mut held = Vec::new();
    Box::new(move |number, mut frame| {
        if number == which + 1 {
            frame.append(&mut held);
        }
        if number != which {
            return frame;
        }
        let (head, data) = lengths(&frame);
        let place = |len: usize, at: isize| {
            if at < 0 { len.checked_add_signed(at).unwrap() } else { at as usize }
        };
        match harm {
            Harm::Head(at) => frame[HEADER + place(head, at)] ^= 0x10,
            Harm::Data(at) => frame[HEADER + head + place(data, at)] ^= 0x10,
            Harm::Drop => frame.clear(),
            Harm::Repeat => frame.extend(frame.clone()),
            Harm::Reorder => held = std::mem::take(&mut frame),
            Harm::Strip => {
                frame.truncate(HEADER + head);
                set_lengths(&mut frame, head, 0);
            }
            Harm::Append => {
                frame.extend([7; 100]);
                set_lengths(&mut frame, head, data + 100);
            }
            Harm::Shift => set_lengths(&mut frame, head - 1, data + 1),
        }
        frame
    })
}

/// Frames of one direction are harmed from here on: the first is the handshake's.
const HARMED: usize = 4;

#[test]
fn what_is_changed_on_the_way_up_ends_the_connection() {
    let stage = Stage::new();
    for (broken, what) in TO_HEADS.into_iter().chain(TO_DATA).enumerate() {
        let client = stage.connect(harm(HARMED, what), as_it_is()).unwrap();
        // Data behind every other message, the harmed one among them, but where some is added.
        let odd = usize::from(matches!(what, Harm::Append));
        for i in 0..8u8 {
            let with_data = usize::from(i) % 2 != odd;
            let data = if with_data { pattern(3000) } else { Vec::new() };
            // Fails where the server has hung up.
            let _ = client.endpoint.send(&[b'k', i], &[segment(data)]);
        }
        stage.world.wait_closed(client.link.id());
        client.closed();
        let came = stage.world.service.0.change(|seen| std::mem::take(&mut seen.messages));
        let heads: Vec<_> = came.iter().map(|(_, head, _)| head[1]).collect();
        // A frame that comes twice is good the first time.
        let good = if matches!(what, Harm::Repeat) { HARMED } else { HARMED - 1 };
        assert_eq!(heads, (0..good as u8).collect::<Vec<_>>(), "{what:?}");
        for (_, head, data) in came {
            let with_data = usize::from(head[1]) % 2 != odd;
            assert!(data == if with_data { pattern(3000) } else { Vec::new() });
        }
        assert_eq!(stage.broken(), broken as u64 + 1, "{what:?}");
        assert_eq!(client.receiver.closed.lock().unwrap().len(), 1);
    }
    stage.world.service.0.change(|seen| assert_eq!(seen.connected.len(), seen.closed.len()));
}

#[test]
fn what_is_changed_on_the_way_down_ends_the_connection() {
    let stage = Stage::new();
    for what in TO_HEADS {
        let client = stage.connect(as_it_is(), harm(HARMED, what)).unwrap();
        for i in 0..8u8 {
            client.endpoint.send(&[b'e', i], &[segment(pattern(100))]).unwrap();
        }
        let error = client.closed();
        assert!(matches!(error, LinkError::Protocol { .. }), "{what:?}: {error}");
        assert!(client.endpoint.send(b"e", &[]).is_err());
        client.endpoint.drive(MESSAGES, Duration::from_millis(1));
        client.endpoint.close();
        let messages = client.receiver.messages.lock().unwrap();
        let heads: Vec<_> = messages.iter().map(|(head, _)| head[1]).collect();
        let good = if matches!(what, Harm::Repeat) { HARMED } else { HARMED - 1 };
        assert_eq!(heads, (0..good as u8).collect::<Vec<_>>(), "{what:?}");
        assert_eq!(client.receiver.closed.lock().unwrap().len(), 1);
    }
    assert_eq!(stage.broken(), 0);
}

#[test]
fn a_handshake_that_is_changed_on_the_way_fails() {
    let stage = Stage::new();
    // The level, the client's ephemeral key, its encrypted key, the last byte.
    for at in [4, 5, 50, -1] {
        let error = stage.failure(harm(0, Harm::Head(at)), as_it_is());
        assert!(error.contains("changed on its way") || error.contains("level"), "{at}: {error}");
    }
    let error = stage.failure(harm(0, Harm::Head(3)), as_it_is());
    assert!(error.contains("version 17"), "{error}");
    for at in [4, 50, -1] {
        let error = stage.failure(as_it_is(), harm(0, Harm::Head(at)));
        assert!(error.contains("known_servers"), "{at}: {error}");
    }
    stage.world.service.0.change(|seen| assert_eq!(seen.calls, 0));
    assert_eq!(stage.guarded.gate().counts().secured, 0);
}

/// Keeps what passes.
fn record(into: &Arc<Mutex<Vec<u8>>>) -> Rule {
    let into = Arc::clone(into);
    Box::new(move |_, frame| {
        into.lock().unwrap().extend(&frame);
        frame
    })
}

#[test]
fn a_recorded_session_shows_nothing_and_leads_nowhere() {
    let stage = Stage::new();
    let (up, down) = (Arc::default(), Arc::default());
    let client = stage.connect(record(&up), record(&down)).unwrap();
    let (head, data) = (b"e: what nobody else may read".to_vec(), pattern(3000));
    client.echo(&head, &data);
    client.endpoint.close();
    stage.world.wait_closed(client.link.id());
    let (up, down) = (up.lock().unwrap().clone(), down.lock().unwrap().clone());
    let shows = |bytes: &[u8], what: &[u8]| bytes.windows(16).any(|at| at == &what[4..20]);
    assert!(!shows(&up, &head) && !shows(&down, &head) && !shows(&up, &data));
    assert!(shows(&down, &data), "what guards this is not of this layer");

    let calls = stage.world.calls();
    let mut thief = TcpStream::connect(stage.world.listener.address()).unwrap();
    thief.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = [0; HELLO];
    hello[..8].copy_from_slice(b"\xDAFSordma");
    (hello[8], hello[10]) = (1, 1);
    thief.write_all(&hello).unwrap();
    thief.read_exact(&mut [0; WELCOME]).unwrap();
    thief.write_all(&up).unwrap();
    // The server answers the beginning, and hangs up over what follows.
    let mut answer = Vec::new();
    let _ = thief.read_to_end(&mut answer);
    assert!(answer.len() < 300);
    let thief = stage.world.service.0.change(|seen| Arc::clone(seen.connected.last().unwrap()));
    assert_ne!(thief.id(), client.link.id());
    stage.world.wait_closed(thief.id());
    assert!(thief.channel().is_none());
    assert_eq!((stage.world.calls(), stage.broken()), (calls, 1));
    let secured = stage.guarded.gate().counts().secured;
    assert_eq!(secured, 1);
}

#[test]
fn seals_are_of_the_messages_that_the_channel_carries() {
    // What two messages bring cannot be exchanged, although both were sealed by the client.
    let stage = Stage::new();
    let mut first: Option<Vec<u8>> = None;
    let swap: Rule = Box::new(move |number, mut frame| {
        let (head, data) = lengths(&frame);
        let place = HEADER + head..HEADER + head + data;
        match number {
            1 => first = Some(frame[place].to_vec()),
            2 => frame[place].copy_from_slice(first.as_ref().unwrap()),
            _ => {}
        }
        frame
    });
    let client = stage.connect(swap, as_it_is()).unwrap();
    for i in 0..2u8 {
        client.endpoint.send(&[b'k', i], &[segment(vec![i; 100])]).unwrap();
    }
    stage.world.wait_closed(client.link.id());
    let came = stage.world.service.0.change(|seen| std::mem::take(&mut seen.messages));
    assert!(came.len() == 1 && came[0].2 == [0; 100]);
}

//! Takes frames off a connection.
//!
//! What arrives goes into a scratch buffer that is lent for the call. Frames that are there whole are
//! handed on where they lie. Only while a frame is incomplete does the inbox hold memory of its
//! own, and no more than twice what has arrived of it; bulk data goes straight to its place.

use super::frame::{BadFrame, HEADER_LEN, Header, Kind, Limits};
use super::io;
use super::memory::Arriving;
use crate::region::Iovecs;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

/// What becomes of frames.
pub(crate) trait Handler {
    /// Where bulk data goes.
    type Body: Body;
    /// Takes a frame that is here whole.
    fn whole(&mut self, header: &Header, head: &[u8], data: &[u8]) -> Result<(), String>;
    /// Where the data of a [`Kind::Data`] or [`Kind::PullData`] frame goes.
    fn place(&mut self, header: &Header) -> Result<Self::Body, String>;
    /// All of a frame's data is in its place.
    fn placed(&mut self, body: Self::Body);
}

/// The place of a frame's bulk data.
pub(crate) trait Body {
    /// Puts the next bytes there.
    fn put(&mut self, bytes: &[u8]);
    /// Receives the next bytes, at most `left`, straight into their place, and what follows them
    /// into `scratch`. Returns how many of each, or `None` where nothing has arrived.
    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        left: usize,
        scratch: &mut [u8],
    ) -> std::io::Result<Option<(usize, usize)>>;
}

/// Why no more frames come.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The peer closed the connection.
    Eof,
    /// The connection broke.
    Io(std::io::Error),
    /// The peer sent what it must not.
    Protocol(String),
}

/// What one look at the connection brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// Bytes that arrived.
    pub(crate) bytes: usize,
    /// Frames that were completed by them.
    pub(crate) frames: usize,
    /// There was room for more than arrived, so that for now there is no more.
    pub(crate) drained: bool,
}

/// The receiving side of a connection.
#[derive(Debug)]
pub(crate) struct Inbox<B> {
    limits: Limits,
    state: State<B>,
}

#[derive(Debug)]
enum State<B> {
    /// Between frames.
    Idle,
    /// Part of a header.
    Short([u8; HEADER_LEN], u8),
    /// Part of a frame that is handed on whole.
    Gather(Header, Vec<u8>),
    /// Bulk data on the way to its place.
    Place(B, u64),
}

impl<B: Body> Inbox<B> {
    /// An inbox between frames.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: State::Idle }
    }

    /// The incomplete frame that this inbox holds memory for.
    pub(crate) fn gathering(&self) -> Option<Arriving> {
        match &self.state {
            State::Gather(header, buffer) => {
                Some(Arriving { bytes: header.body_len(), here: buffer.len() })
            }
            _ => None,
        }
    }

    /// Forgets what has arrived of an incomplete frame.
    pub(crate) fn clear(&mut self) {
        self.state = State::Idle;
    }

    /// Receives once, without blocking, at most `first` bytes where it is not known what they are,
    /// and hands on what is complete.
    pub(crate) fn receive<H: Handler<Body = B>>(
        &mut self,
        socket: BorrowedFd<'_>,
        scratch: &mut [u8],
        first: usize,
        handler: &mut H,
    ) -> Result<Got, Ended> {
        const NOTHING: Got = Got { bytes: 0, frames: 0, drained: true };
        let (mut bytes, mut frames) = (0, 0);
        let in_scratch;
        let drained;
        match &mut self.state {
            State::Idle | State::Short(..) => {
                let kept = match &self.state {
                    State::Short(part, len) => {
                        scratch[..usize::from(*len)].copy_from_slice(&part[..usize::from(*len)]);
                        usize::from(*len)
                    }
                    _ => 0,
                };
                let end = scratch.len().min(kept + first);
                let Some(n) = received(io::receive(socket, &mut scratch[kept..end]))? else {
                    return Ok(NOTHING);
                };
                self.state = State::Idle;
                bytes += n;
                in_scratch = kept + n;
                drained = in_scratch < end;
            }
            State::Gather(header, buffer) => {
                let want = header.body_len() - buffer.len();
                // Grows with what has arrived, not with what was announced.
                let room = want.min(buffer.len().max(MIN_GROWTH));
                let at = buffer.len();
                buffer.reserve_exact(room);
                let spill_len = if room == want { scratch.len() } else { 0 };
                let mut iovecs = Iovecs::new();
                iovecs.push(buffer.spare_capacity_mut().as_mut_ptr().cast(), room);
                iovecs.push(scratch.as_mut_ptr(), spill_len);
                // SAFETY: `room` bytes were just reserved behind the buffer's end, and `scratch` is
                // exclusively ours; both outlive the call.
                let got = unsafe { io::receive_raw(socket, &mut iovecs) };
                let n = got.as_ref().ok().and_then(|n| *n).unwrap_or(0).min(room);
                // SAFETY: the call filled the first `n` of the reserved bytes.
                unsafe { buffer.set_len(at + n) };
                let Some(all) = received(got)? else { return Ok(NOTHING) };
                bytes += all;
                in_scratch = all - n;
                drained = all < room + spill_len;
                if n == want {
                    let State::Gather(header, buffer) =
                        std::mem::replace(&mut self.state, State::Idle)
                    else {
                        unreachable!("the state was just matched")
                    };
                    let (head, data) = buffer.split_at(header.head_len as usize);
                    handler.whole(&header, head, data).map_err(Ended::Protocol)?;
                    frames += 1;
                }
            }
            State::Place(body, left) => {
                let want = usize::try_from(*left).unwrap_or(usize::MAX);
                let spill_len = scratch.len();
                let Some((n, spilled)) = body.receive(socket, want, scratch).map_err(Ended::Io)?
                else {
                    return Ok(NOTHING);
                };
                if n + spilled == 0 {
                    return Err(Ended::Eof);
                }
                bytes += n + spilled;
                in_scratch = spilled;
                *left -= n as u64;
                drained = *left > 0 || spilled < spill_len;
                if *left == 0 {
                    self.finish_place(handler);
                    frames += 1;
                }
            }
        }
        frames += self.parse(&scratch[..in_scratch], handler)?;
        Ok(Got { bytes, frames, drained })
    }

    /// Takes apart bytes that are here; the state is idle.
    fn parse<H: Handler<Body = B>>(
        &mut self,
        mut bytes: &[u8],
        handler: &mut H,
    ) -> Result<usize, Ended> {
        let mut frames = 0;
        while let Some((start, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
            let bad = |error: BadFrame| Ended::Protocol(error.to_string());
            let header = Header::decode(start, self.limits).map_err(bad)?;
            if matches!(header.kind, Kind::Data | Kind::PullData) {
                let mut body = handler.place(&header).map_err(Ended::Protocol)?;
                let here = usize::try_from(header.data_len).unwrap_or(usize::MAX).min(rest.len());
                body.put(&rest[..here]);
                bytes = &rest[here..];
                self.state = State::Place(body, header.data_len - here as u64);
                if header.data_len > here as u64 {
                    return Ok(frames);
                }
                self.finish_place(handler);
            } else if rest.len() >= header.body_len() {
                let (body, after) = rest.split_at(header.body_len());
                let (head, data) = body.split_at(header.head_len as usize);
                handler.whole(&header, head, data).map_err(Ended::Protocol)?;
                bytes = after;
            } else {
                self.state = State::Gather(header, rest.to_vec());
                return Ok(frames);
            }
            frames += 1;
        }
        if !bytes.is_empty() {
            let mut part = [0; HEADER_LEN];
            part[..bytes.len()].copy_from_slice(bytes);
            self.state = State::Short(part, bytes.len() as u8);
        }
        Ok(frames)
    }

    fn finish_place<H: Handler<Body = B>>(&mut self, handler: &mut H) {
        if let State::Place(body, _) = std::mem::replace(&mut self.state, State::Idle) {
            handler.placed(body);
        }
    }
}

/// Least that the memory of an incomplete frame grows by.
const MIN_GROWTH: usize = 4096;

fn received(result: std::io::Result<Option<usize>>) -> Result<Option<usize>, Ended> {
    match result {
        Ok(Some(0)) => Err(Ended::Eof),
        Ok(n) => Ok(n),
        Err(error) => Err(Ended::Io(error)),
    }
}

/// Receives into two buffers, the first one first.
pub(crate) fn receive_two(
    socket: BorrowedFd<'_>,
    first: &mut [u8],
    second: &mut [u8],
) -> std::io::Result<Option<usize>> {
    use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
    let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
    loop {
        let mut control = RecvAncillaryBuffer::default();
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::DONTWAIT) {
            Ok(message) => return Ok(Some(message.bytes)),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[derive(Default)]
    struct Log(Vec<(u64, Vec<u8>, Vec<u8>)>);

    struct Keep(u64, Vec<u8>);

    impl Body for Keep {
        fn put(&mut self, bytes: &[u8]) {
            self.1.extend_from_slice(bytes);
        }
        fn receive(
            &mut self,
            socket: BorrowedFd<'_>,
            left: usize,
            scratch: &mut [u8],
        ) -> std::io::Result<Option<(usize, usize)>> {
            let mut here = vec![0; left];
            let got = receive_two(socket, &mut here, scratch)?;
            Ok(got.map(|n| {
                self.1.extend_from_slice(&here[..n.min(left)]);
                (n.min(left), n - n.min(left))
            }))
        }
    }

    impl Handler for Log {
        type Body = Keep;
        fn whole(&mut self, header: &Header, head: &[u8], data: &[u8]) -> Result<(), String> {
            self.0.push((header.tag, head.to_vec(), data.to_vec()));
            Ok(())
        }
        fn place(&mut self, header: &Header) -> Result<Keep, String> {
            Ok(Keep(header.tag, Vec::new()))
        }
        fn placed(&mut self, body: Keep) {
            self.0.push((body.0, Vec::new(), body.1));
        }
    }

    const LIMITS: Limits = Limits { head: 1000, data: 100_000 };

    #[test]
    fn frames_arrive_however_they_are_cut() {
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (i, len) in [0usize, 1, 23, 24, 25, 500, 20_000, 0, 3].into_iter().enumerate() {
            let (head, data) = (vec![i as u8; len.min(300)], vec![!(i as u8); len]);
            if i % 3 == 2 {
                wire.extend(Header::data(Kind::Data, i as u64, len).encode());
                wire.extend(&data);
                expected.push((i as u64, Vec::new(), data));
            } else {
                wire.extend(Header::message(head.len(), len).encode());
                wire.extend(&head);
                wire.extend(&data);
                expected.push((0, head, data));
            }
        }
        for cut in [1, 7, 24, 100, 4096, 1 << 20] {
            let (mut a, b) = UnixStream::pair().unwrap();
            let mut inbox = Inbox::new(LIMITS);
            let mut log = Log::default();
            let mut scratch = [0; 600];
            for part in wire.chunks(cut) {
                a.write_all(part).unwrap();
                while inbox.receive(b.as_fd(), &mut scratch, 600, &mut log).unwrap().bytes > 0 {}
            }
            assert_eq!(log.0, expected, "cut into {cut}");
            drop(a);
            let end = inbox.receive(b.as_fd(), &mut scratch, 600, &mut log);
            assert!(matches!(end, Err(Ended::Eof)));
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::<Keep>::new(LIMITS);
        a.write_all(&Header::message(10, 90_000).encode()).unwrap();
        a.write_all(&[1; 10]).unwrap();
        let mut scratch = [0; 600];
        for _ in 0..2 {
            inbox.receive(b.as_fd(), &mut scratch, 600, &mut Log::default()).unwrap();
        }
        assert_eq!(inbox.gathering(), Some(Arriving { bytes: 90_010, here: 10 }));
        let State::Gather(_, buffer) = &inbox.state else { panic!("not gathering") };
        assert!(buffer.capacity() <= MIN_GROWTH + 10);
    }
}

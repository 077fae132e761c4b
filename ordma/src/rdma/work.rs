//! Work requests: what they name, and how their completions are told apart.

use rdma_mummy_sys::ibv_sge;

/// Most parts of a work request that are asked for of a device.
pub(super) const MOST_PARTS: usize = 16;

/// The local memory that a work request names.
pub struct Parts {
    pub(super) items: [ibv_sge; MOST_PARTS],
    pub(super) len: usize,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Parts {
    pub(super) fn new() -> Self {
        Self { items: [ibv_sge { addr: 0, length: 0, lkey: 0 }; MOST_PARTS], len: 0 }
    }

    /// Most parts of a request.
    pub const MOST: usize = MOST_PARTS;

    /// Adds a part; `false` where there are too many.
    pub(crate) fn push(&mut self, addr: u64, length: u32, lkey: u32) -> bool {
        let room = self.len < MOST_PARTS;
        if room {
            self.items[self.len] = ibv_sge { addr, length, lkey };
            self.len += 1;
        }
        room
    }
}

/// Memory that is given to a device for the time of a work request.
///
/// # Safety
/// What [`parts`](Self::parts) names is registered in the queue pair's domain, and stays so, and in
/// place, until the value is dropped. Where the device writes, nobody else reads or writes meanwhile.
/// Where it reads, others write by raw copies alone, if at all, and no reference to the bytes exists
/// while they do: what the device finds then is any mixture of before and after.
pub unsafe trait Local: Send {
    /// Names the memory.
    fn parts(&self, parts: &mut Parts);
}

// SAFETY: as for the first alone.
unsafe impl<L: Local, T: Send> Local for (L, T) {
    fn parts(&self, parts: &mut Parts) {
        self.0.parts(parts);
    }
}

// SAFETY: names nothing.
unsafe impl Local for () {
    fn parts(&self, _: &mut Parts) {}
}

/// Memory of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it begins, in the peer's terms.
    pub address: u64,
    /// The peer's key of the region that it lies in.
    pub key: u32,
}

/// What a work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sends a message.
    Send,
    /// Sends a message once all READs before it have completed. Any other may be there while one of
    /// them still reads the peer's memory.
    SendAfterReads,
    /// Reads the peer's memory.
    Read(Remote),
    /// Writes the peer's memory.
    Write(Remote),
    /// Sends a message, and asks the peer's device to invalidate a key: no peer of ours has one that
    /// can be. For tests of what a hostile one can do.
    SendInvalidate(u32),
}

/// A work request for a send queue.
#[derive(Debug)]
pub struct Work<S> {
    /// What it does.
    pub op: Op,
    /// With which memory of this side.
    pub local: S,
    /// Whether its success is told. A failure always is, and so is the success of all before a
    /// request whose success is.
    pub signaled: bool,
}

/// What a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request of a send queue.
    Send,
    /// A request of a receive queue.
    Receive,
}

/// Names a work request within its queue pair: its queue, the life of the queue pair (each reset
/// begins a new one), and its number within that life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrId {
    /// Which queue.
    pub kind: Kind,
    /// The queue pair's life, modulo 2^24.
    pub life: u32,
    /// The request's number on the queue, modulo 2^32.
    pub number: u32,
}

const LIFE: u32 = (1 << 24) - 1;

impl WrId {
    pub(super) fn new(kind: Kind, life: u32, number: u32) -> Self {
        Self { kind, life: life & LIFE, number }
    }

    pub(super) fn encode(self) -> u64 {
        let kind = match self.kind {
            Kind::Send => 1u64,
            Kind::Receive => 2,
        };
        kind << 56 | u64::from(self.life) << 32 | u64::from(self.number)
    }

    /// `None` for what this layer never posted.
    pub(super) fn decode(bits: u64) -> Option<Self> {
        let kind = match bits >> 56 {
            1 => Kind::Send,
            2 => Kind::Receive,
            _ => return None,
        };
        Some(Self { kind, life: (bits >> 32) as u32 & LIFE, number: bits as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were() {
        for kind in [Kind::Send, Kind::Receive] {
            for (life, number) in [(0, 0), (5, u32::MAX), (LIFE, 7)] {
                let id = WrId::new(kind, life, number);
                assert_eq!(WrId::decode(id.encode()), Some(id));
            }
            assert_eq!(WrId::new(kind, LIFE + 3, 0).life, 2);
        }
        assert_eq!(WrId::decode(0), None);
    }

    #[test]
    fn parts_are_bounded() {
        let mut parts = Parts::new();
        assert!((0..MOST_PARTS).all(|i| parts.push(i as u64, 1, 2)));
        assert!(!parts.push(0, 1, 2));
        assert_eq!(parts.len, MOST_PARTS);
    }
}

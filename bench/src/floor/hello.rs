//! What a connection to a peer begins with.

use super::{Exchange, Waiting};

/// Bytes of it.
pub(super) const HELLO: usize = 16;

/// What a peer is to do for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The lengths of requests and replies.
    pub(super) exchange: Exchange,
    /// Most requests under way. Over sockets it does not matter.
    pub(super) depth: usize,
    /// How to wait for requests.
    pub(super) waiting: Waiting,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO] {
        let Self { exchange: Exchange { request, reply }, depth, waiting } = *self;
        let waiting = match waiting {
            Waiting::Blocking => 0,
            Waiting::Spinning => 1,
            Waiting::Polling => 2,
        };
        let mut bytes = [0; HELLO];
        for (to, number) in bytes.chunks_exact_mut(4).zip([request, reply, depth, waiting]) {
            to.copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HELLO]) -> Self {
        let number = |i: usize| {
            bytes[4 * i..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four) as usize)
        };
        let waiting = match number(3) {
            0 => Waiting::Blocking,
            1 => Waiting::Spinning,
            _ => Waiting::Polling,
        };
        let exchange = Exchange { request: number(0), reply: number(1) };
        Self { exchange, depth: number(2), waiting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_understood() {
        let exchange = Exchange { request: 56, reply: 4176 };
        for waiting in [Waiting::Blocking, Waiting::Spinning, Waiting::Polling] {
            let hello = Hello { exchange, depth: 64, waiting };
            assert_eq!(Hello::decode(&hello.encode()), hello);
        }
    }
}

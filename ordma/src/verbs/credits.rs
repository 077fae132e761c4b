//! Credits: nobody sends what the other side has posted no receive for.
//!
//! Each side tells the other, in every packet, how many receives it has posted anew: so many packets
//! with content may follow. Where there is nothing to say but that, a packet without content says it.
//! It takes no credit, for two sides that wait for credits must be able to give each other some; one
//! receive more than is told is posted for it, and there is no second one on the way before the peer
//! has said that it has handled the first. Plain data.

/// The least receives that a side posts for packets with content.
pub(super) const LEAST_WINDOW: u32 = 2;
/// Receives that are posted besides, for a packet that only grants.
pub(super) const SPARE: u32 = 1;
/// The most that a peer may grant in all; more is nonsense.
const MOST: u32 = 1 << 16;

/// One side's credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credits {
    /// Packets with content that may be sent.
    out: u32,
    /// Receives that are posted for packets with content when none is being handled.
    window: u32,
    /// Receives that were posted, of which the peer does not know.
    untold: u32,
    /// Packets without content sent, and how many of them the peer has handled, modulo 256.
    grants: u8,
    heard: u8,
    /// Packets without content handled, modulo 256.
    handled: u8,
}

/// What a packet says of credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Receives posted anew.
    pub(super) granted: u16,
    /// Packets without content handled, modulo 256.
    pub(super) handled: u8,
}

/// What is wrong with what a peer says of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadCredits {
    #[error("more credits than there can be")]
    TooMany,
    #[error("it has handled packets that were not sent")]
    NotSent,
}

impl Credits {
    /// With a window of receives of one's own, of which the peer knows, and one of the peer's.
    pub(super) fn new(own: u32, peer: u32) -> Self {
        Self { out: peer, window: own, untold: 0, grants: 0, heard: 0, handled: 0 }
    }

    /// Whether a packet with content may be sent.
    pub(super) fn may_send(&self) -> bool {
        self.out > 0
    }

    /// Whether a packet without content is to be sent: the peer may be waiting for credits.
    pub(super) fn owes(&self) -> bool {
        self.untold >= self.window.div_ceil(2) && self.grants == self.heard
    }

    /// A packet is sent; what it is to say.
    pub(super) fn send(&mut self, content: bool) -> Told {
        if content {
            debug_assert!(self.out > 0);
            self.out = self.out.saturating_sub(1);
        } else {
            self.grants = self.grants.wrapping_add(1);
        }
        let granted = u16::try_from(self.untold).unwrap_or(u16::MAX);
        self.untold -= u32::from(granted);
        Told { granted, handled: self.handled }
    }

    /// A packet has come that says this; its receive is posted again, or will be at once. Where it had
    /// content and is not `again`, there is one less from now on.
    pub(super) fn told(
        &mut self,
        told: Told,
        content: bool,
        again: bool,
    ) -> Result<(), BadCredits> {
        debug_assert!(again || content && self.window > LEAST_WINDOW);
        self.out += u32::from(told.granted);
        if self.out > MOST {
            return Err(BadCredits::TooMany);
        }
        // At most one is on the way.
        if told.handled != self.heard && told.handled != self.grants {
            return Err(BadCredits::NotSent);
        }
        self.heard = told.handled;
        if content && again {
            self.untold += 1;
        } else if content {
            self.window -= 1;
        } else {
            self.handled = self.handled.wrapping_add(1);
        }
        Ok(())
    }

    /// So many receives more than before were posted.
    pub(super) fn grow(&mut self, more: u32) {
        self.window += more;
        self.untold += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A side of the model: what it has to send, and the packets on the way to it.
    struct Side {
        credits: Credits,
        posted: u32,
        to_send: u32,
        arriving: VecDeque<(Told, bool)>,
        got: u32,
    }

    impl Side {
        fn new(own: u32, peer: u32) -> Self {
            let credits = Credits::new(own, peer);
            Self { credits, posted: own + SPARE, to_send: 0, arriving: VecDeque::new(), got: 0 }
        }

        /// Sends what it may, as the engine does.
        fn pump(&mut self, peer: &mut Self) {
            while self.to_send > 0 && self.credits.may_send() {
                self.to_send -= 1;
                peer.arriving.push_back((self.credits.send(true), true));
            }
            if self.credits.owes() {
                peer.arriving.push_back((self.credits.send(false), false));
            }
            // Never more on the way than there are receives for.
            assert!(peer.arriving.len() as u32 <= peer.posted, "a packet without a receive");
        }

        /// Handles one packet; whether there was one.
        fn handle(&mut self, shrink: bool) -> bool {
            let Some((told, content)) = self.arriving.pop_front() else { return false };
            let shrink = shrink && content && self.credits.window > LEAST_WINDOW;
            // The receive that it took is posted again, or not.
            self.posted -= u32::from(shrink);
            self.credits.told(told, content, !shrink).unwrap();
            self.got += u32::from(content);
            true
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(bool, u32),
        Pump(bool),
        Handle(bool, bool),
        Grow(bool, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), 1u32..40).prop_map(|(a, n)| Step::Want(a, n)),
            any::<bool>().prop_map(Step::Pump),
            any::<bool>().prop_map(|a| Step::Handle(a, false)),
            any::<(bool, bool)>().prop_map(|(a, shrink)| Step::Handle(a, shrink)),
            (any::<bool>(), 1u32..8).prop_map(|(a, n)| Step::Grow(a, n)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn all_arrives_and_nothing_without_a_receive(
            own in LEAST_WINDOW..40, peer in LEAST_WINDOW..40,
            steps in prop::collection::vec(step(), 0..300))
        {
            let (mut a, mut b) = (Side::new(own, peer), Side::new(peer, own));
            let (mut from_a, mut from_b) = (0, 0);
            for step in steps {
                match step {
                    Step::Want(true, n) => (a.to_send, from_a) = (a.to_send + n, from_a + n),
                    Step::Want(false, n) => (b.to_send, from_b) = (b.to_send + n, from_b + n),
                    Step::Pump(true) => a.pump(&mut b),
                    Step::Pump(false) => b.pump(&mut a),
                    Step::Handle(true, shrink) => drop(a.handle(shrink)),
                    Step::Handle(false, shrink) => drop(b.handle(shrink)),
                    Step::Grow(true, n) => {
                        a.posted += n;
                        a.credits.grow(n);
                    }
                    Step::Grow(false, n) => {
                        b.posted += n;
                        b.credits.grow(n);
                    }
                }
            }
            // Each side pumps whenever something has arrived; then all comes to rest.
            let mut packets = 0;
            a.pump(&mut b);
            b.pump(&mut a);
            loop {
                let (in_a, in_b) = (a.handle(false), b.handle(false));
                a.pump(&mut b);
                b.pump(&mut a);
                if !in_a && !in_b && a.arriving.is_empty() && b.arriving.is_empty() {
                    break;
                }
                packets += 1;
                prop_assert!(packets < 100_000, "credits go back and forth for ever");
            }
            prop_assert_eq!((a.to_send, b.to_send), (0, 0), "stuck: {:?} {:?}", a.credits, b.credits);
            prop_assert_eq!((b.got, a.got), (from_a, from_b));
        }
    }

    #[test]
    fn a_peer_that_grants_without_end_is_found_out() {
        let mut credits = Credits::new(4, 4);
        let told = Told { granted: u16::MAX, handled: 0 };
        assert!((0..2).any(|_| credits.told(told, true, true) == Err(BadCredits::TooMany)));
        let told = Told { granted: 0, handled: 1 };
        assert_eq!(Credits::new(4, 4).told(told, true, true), Err(BadCredits::NotSent));
    }
}

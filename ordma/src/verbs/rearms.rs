//! How often a client's queue pair for READs is brought back. Plain data.
//!
//! Each time costs the server's event loop four calls of the device. So a few times go at once, as where
//! a chunk went under several READs, and more only as time passes: what is asked for too early is done
//! when its time has come, and the client reads by RPC until then.

use std::time::{Duration, Instant};

/// Times that go at once.
const AT_ONCE: u32 = 16;
/// How long it takes until one more does.
const PAUSE: Duration = Duration::from_millis(250);

/// What a client asks for: the number of the queue pair's next life, and of the client's first packet.
pub(super) type Asked = (u32, u32);

/// How often a queue pair was brought back lately.
#[derive(Debug)]
pub(super) struct Rearms {
    left: u32,
    /// When `left` was right.
    at: Instant,
    waits: Option<Asked>,
}

impl Rearms {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, at: now, waits: None }
    }

    /// The client asks. The error says what is wrong with that: it has to wait for each answer.
    pub(super) fn ask(&mut self, asked: Asked) -> Result<(), &'static str> {
        match self.waits.replace(asked) {
            None => Ok(()),
            Some(_) => Err("its READs are to be brought back too often: again before they are"),
        }
    }

    /// What is to be done now; when to look again, where it is too early. `None` where nothing waits.
    pub(super) fn due(&mut self, now: Instant) -> Option<Result<Asked, Instant>> {
        let asked = self.waits?;
        let pauses = now.saturating_duration_since(self.at).as_millis() / PAUSE.as_millis();
        let more = u32::try_from(pauses).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(AT_ONCE);
        if self.left == AT_ONCE {
            self.at = now;
        } else {
            self.at += PAUSE * more;
        }
        if self.left == 0 {
            return Some(Err(self.at + PAUSE));
        }
        self.left -= 1;
        self.waits = None;
        Some(Ok(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_go_at_once_and_then_one_a_pause() {
        let begin = Instant::now();
        let mut rearms = Rearms::new(begin);
        assert_eq!(rearms.due(begin), None);
        for life in 0..AT_ONCE {
            rearms.ask((life, 7)).unwrap();
            assert_eq!(rearms.due(begin), Some(Ok((life, 7))));
        }
        rearms.ask((99, 7)).unwrap();
        assert_eq!(rearms.due(begin), Some(Err(begin + PAUSE)));
        assert_eq!(rearms.due(begin + PAUSE / 2), Some(Err(begin + PAUSE)));
        assert!(rearms.ask((100, 7)).is_err(), "the last was not answered");
        let mut now = begin + PAUSE;
        assert_eq!(rearms.due(now), Some(Ok((100, 7))));
        let mut count = 0;
        let until = now + PAUSE * 20;
        while now < until {
            rearms.ask((count, 7)).unwrap();
            match rearms.due(now) {
                Some(Err(then)) => {
                    now = then;
                    assert!(matches!(rearms.due(now), Some(Ok(_))));
                }
                done => assert!(matches!(done, Some(Ok(_)))),
            }
            count += 1;
        }
        assert_eq!(count, 20);
        // After a rest all is as it was.
        now += PAUSE * 1000;
        for life in 0..AT_ONCE {
            rearms.ask((life, 7)).unwrap();
            assert_eq!(rearms.due(now), Some(Ok((life, 7))));
        }
        rearms.ask((1, 7)).unwrap();
        assert_eq!(rearms.due(now), Some(Err(now + PAUSE)));
    }
}

//! Several addresses of one name: the first that answers is taken.
//!
//! In the spirit of RFC 8305: each address has a short time to itself before the next one is tried beside
//! it, so that one that is silent costs that time and no more. Where there is but one address, nothing runs
//! beside anything.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long an address has to itself.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried.
const MOST: usize = 16;

/// The addresses of a `host:port`. A resolver that does not answer is waited for until the deadline.
pub fn resolve(name: &str, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let (sender, receiver) = mpsc::channel();
    let owned = name.to_owned();
    let look = move || {
        let found = owned.to_socket_addrs().map(|found| found.take(MOST).collect::<Vec<_>>());
        // Nobody may be waiting any more.
        _ = sender.send(found.map_err(|error| error.to_string()));
    };
    spawn("dafs-resolve", look)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let found = receiver.recv_timeout(left);
    match found.unwrap_or_else(|_| Err("the name's addresses were not told in time".to_owned()))? {
        found if found.is_empty() => Err("the name has no address".to_owned()),
        found => Ok(found),
    }
}

/// What `attempt` gives for the first address for which it succeeds. Attempts end by the deadline by
/// themselves; those that are not needed any more are left to that.
///
/// # Errors
/// What each attempt said, if none succeeded.
pub fn first<T: Send + 'static>(
    addresses: Vec<SocketAddr>,
    deadline: Instant,
    attempt: impl Fn(SocketAddr, Instant) -> Result<T, String> + Send + Sync + 'static,
) -> Result<(T, SocketAddr), String> {
    if let [address] = addresses[..] {
        return attempt(address, deadline).map(|made| (made, address));
    }
    let (sender, receiver) = mpsc::channel();
    let attempt = Arc::new(attempt);
    let mut waiting = addresses.into_iter();
    let (mut running, mut failed) = (0_usize, Vec::new());
    loop {
        if let Some(address) = waiting.next() {
            let (sender, attempt) = (sender.clone(), Arc::clone(&attempt));
            let run = move || _ = sender.send((address, attempt(address, deadline)));
            match spawn("dafs-connect", run) {
                Ok(()) => running += 1,
                Err(why) => failed.push(format!("{address}: {why}")),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let none_left = waiting.len() == 0;
        if running == 0 && none_left {
            return Err(failed.join("; "));
        }
        // The attempts themselves watch the deadline, and say what went wrong by then.
        let patience = if none_left { left + HEAD_START } else { HEAD_START.min(left) };
        match receiver.recv_timeout(patience) {
            Ok((address, Ok(made))) => return Ok((made, address)),
            Ok((address, Err(why))) => {
                running -= 1;
                failed.push(format!("{address}: {why}"));
            }
            Err(RecvTimeoutError::Timeout) if none_left => {
                failed.push("no connection in time".to_owned());
                return Err(failed.join("; "));
            }
            // The next one's turn. This end holds a sender, so that the other error does not come.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).map_err(|error| format!("no thread to connect: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_silent_address_does_not_keep_the_next_one() {
        let (quiet, silence) = mpsc::channel::<()>();
        let silence = Mutex::new(silence);
        let made = first(vec![address(1), address(2), address(3)], soon(), move |at, _| {
            if at == address(2) {
                return Ok("second");
            }
            // Until the race is over; with a wait of its own it would win by the deadline.
            _ = silence.lock().map(|silence| silence.recv());
            Err("silent".to_owned())
        });
        assert_eq!(made, Ok(("second", address(2))));
        drop(quiet);
    }

    #[test]
    fn all_that_failed_is_told() {
        let made: Result<((), _), _> =
            first(vec![address(1), address(2)], soon(), |at, _| Err(format!("not {}", at.ip())));
        let told = made.unwrap_err();
        assert_eq!(told, "127.0.0.1:1: not 127.0.0.1; 127.0.0.2:1: not 127.0.0.2");
        let made: Result<((), _), _> = first(vec![address(1)], soon(), |_, _| Err("no".into()));
        assert_eq!(made.unwrap_err(), "no");
        let made: Result<((), _), _> = first(Vec::new(), soon(), |_, _| Err("no".into()));
        assert!(made.is_err());
    }

    #[test]
    fn silence_of_all_ends_at_the_deadline() {
        let (quiet, silence) = mpsc::channel::<()>();
        let silence = Mutex::new(silence);
        let deadline = Instant::now() + Duration::from_millis(20);
        let made: Result<((), _), _> =
            first(vec![address(1), address(2)], deadline, move |_, _| {
                _ = silence.lock().map(|silence| silence.recv());
                Err("silent".to_owned())
            });
        assert_eq!(made.unwrap_err(), "no connection in time");
        drop(quiet);
    }

    #[test]
    fn addresses_need_no_resolver() {
        assert_eq!(resolve("127.0.0.1:1", Instant::now()), Ok(vec![address(1)]));
        assert_eq!(resolve("[::1]:7", Instant::now()).unwrap()[0].port(), 7);
        assert!(resolve("host.invalid:1", soon()).is_err());
        assert!(resolve("localhost:1", soon()).unwrap().iter().all(|at| at.port() == 1));
    }
}

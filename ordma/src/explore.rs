//! Tests that drive every interleaving of a few threads.
//!
//! The code under test runs on real threads, of which one at a time moves: at each
//! [`schedule_point`](crate::schedule_point) the explorer decides who goes on. It runs the whole
//! scenario again and again, each time with the next schedule in depth-first order, until it has
//! seen all those with at most a given number of preemptions (most bugs need one or two: Musuvathi
//! and Qadeer, "Iterative Context Bounding", 2007).

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What an exploration has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Schedules that were run.
    pub schedules: usize,
    /// They were all there are within the bound.
    pub complete: bool,
}

/// A thread of a scenario.
pub type Actor = Box<dyn FnOnce() + Send>;

thread_local! {
    static ME: RefCell<Option<(Arc<Scheduler>, usize)>> = const { RefCell::new(None) };
}

struct Scheduler {
    state: Mutex<State>,
    turn: Condvar,
    preemptions: usize,
}

#[derive(Default)]
struct State {
    current: usize,
    actors: Vec<Condition>,
    /// The decisions of this run: what could be chosen, and which was.
    path: Path,
    depth: usize,
    preempted: usize,
    /// Which actors have done something since they stopped last.
    got_on: Vec<bool>,
    trace: Trace,
    failed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Condition {
    #[default]
    Ready,
    /// Waits for something that another one has to do first.
    Blocked,
    Done,
}

impl State {
    /// Lets the blocked actors look again.
    fn wake(&mut self) {
        for actor in &mut self.actors {
            if *actor == Condition::Blocked {
                *actor = Condition::Ready;
            }
        }
    }
}

/// Runs the scenario that `scenario` sets up under every schedule with at most `preemptions`
/// preemptions, or under the first `most` of them. The actors of one run start together; after each
/// run `check` is called.
///
/// # Panics
/// With the schedule, where an actor or `check` panics or no actor can go on.
pub fn explore<S>(
    preemptions: usize,
    most: usize,
    mut scenario: impl FnMut() -> (S, Vec<Actor>),
    mut check: impl FnMut(S),
) -> Explored {
    let mut path = Vec::new();
    for schedules in 1..=most {
        let (subject, actors) = scenario();
        let trace;
        (path, trace) = run(preemptions, std::mem::take(&mut path), actors);
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| check(subject))) {
            print_trace(&trace);
            std::panic::resume_unwind(panic);
        }
        while let Some((options, chosen)) = path.last_mut() {
            if *chosen + 1 < options.len() {
                *chosen += 1;
                break;
            }
            path.pop();
        }
        if path.is_empty() {
            return Explored { schedules, complete: true };
        }
    }
    Explored { schedules: most, complete: false }
}

/// What could be chosen at each decision, and which was.
type Path = Vec<(Vec<usize>, usize)>;
/// Which actor stopped where.
type Trace = Vec<(usize, &'static str)>;

fn print_trace(trace: &Trace) {
    eprintln!("the schedule that failed (actor: where it stopped):");
    for (actor, point) in trace {
        eprintln!("  {actor}: {point}");
    }
}

fn run(preemptions: usize, path: Path, actors: Vec<Actor>) -> (Path, Trace) {
    let scheduler = Arc::new(Scheduler {
        state: Mutex::new(State {
            actors: vec![Condition::Ready; actors.len()],
            got_on: vec![true; actors.len()],
            path,
            current: usize::MAX,
            ..State::default()
        }),
        turn: Condvar::new(),
        preemptions,
    });
    let threads: Vec<_> = actors
        .into_iter()
        .enumerate()
        .map(|(number, actor)| {
            let scheduler = Arc::clone(&scheduler);
            std::thread::spawn(move || {
                ME.set(Some((Arc::clone(&scheduler), number)));
                scheduler.wait_for_turn(scheduler.lock(), number);
                let result = std::panic::catch_unwind(AssertUnwindSafe(actor));
                ME.set(None);
                scheduler.done(number, result.is_err());
                result
            })
        })
        .collect();
    scheduler.start();
    let mut failure = None;
    for thread in threads {
        if let Err(panic) = thread.join().unwrap_or_else(Err) {
            failure.get_or_insert(panic);
        }
    }
    let mut state = scheduler.lock();
    let trace = std::mem::take(&mut state.trace);
    if let Some(panic) = failure {
        print_trace(&trace);
        drop(state);
        std::panic::resume_unwind(panic);
    }
    (std::mem::take(&mut state.path), trace)
}

/// Whether the calling thread is an actor of an exploration.
#[must_use]
pub fn is_on() -> bool {
    ME.with_borrow(Option::is_some)
}

/// A place where another actor may go on. Nothing on other threads.
pub fn point(name: &'static str) {
    stop(name, Condition::Ready);
}

/// The actor cannot go on until another one has done something.
///
/// # Panics
/// When no other actor can go on either.
pub fn blocked() {
    stop("blocked", Condition::Blocked);
}

/// The actor was [`blocked`] and has got what it waited for.
pub fn unblocked() {
    if let Some((scheduler, me)) = ME.with_borrow(Clone::clone) {
        scheduler.lock().got_on[me] = true;
    }
}

fn stop(name: &'static str, as_what: Condition) {
    let Some((scheduler, me)) = ME.with_borrow(Clone::clone) else { return };
    if std::thread::panicking() {
        return;
    }
    let mut state = scheduler.lock();
    assert!(!state.failed, "another actor failed");
    state.trace.push((me, name));
    // If it has got on since it stopped last, those who wait may find what they wait for.
    if as_what == Condition::Ready || state.got_on[me] {
        state.wake();
    }
    state.got_on[me] = as_what == Condition::Ready;
    state.actors[me] = as_what;
    scheduler.choose(&mut state, Some(me));
    scheduler.wait_for_turn(state, me);
}

impl Scheduler {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) {
        let mut state = self.lock();
        self.choose(&mut state, None);
    }

    fn wait_for_turn(&self, mut state: MutexGuard<'_, State>, me: usize) {
        while state.current != me && !state.failed {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        assert!(!state.failed || std::thread::panicking(), "another actor failed");
    }

    fn done(&self, me: usize, panicked: bool) {
        let mut state = self.lock();
        state.failed |= panicked;
        state.wake();
        state.actors[me] = Condition::Done;
        if state.actors.iter().any(|actor| *actor != Condition::Done) {
            self.choose(&mut state, None);
        }
    }

    /// Decides who goes on: whoever stopped (`me`) if it can, else one of the others.
    fn choose(&self, state: &mut State, me: Option<usize>) {
        let ready = |actor: usize| state.actors[actor] == Condition::Ready;
        let me = me.filter(|me| ready(*me));
        let mut options: Vec<usize> = me.into_iter().collect();
        if me.is_none() || state.preempted < self.preemptions {
            options.extend((0..state.actors.len()).filter(|a| ready(*a) && Some(*a) != me));
        }
        if options.is_empty() {
            state.failed = true;
            self.turn.notify_all();
            panic!("deadlock: no actor can go on; trace {:?}", state.trace);
        }
        let next = if options.len() == 1 {
            options[0]
        } else {
            if state.depth == state.path.len() {
                state.path.push((options, 0));
            } else if state.path[state.depth].0 != options {
                state.failed = true;
                self.turn.notify_all();
                panic!(
                    "the scenario takes another course than before: {:?} could be chosen, and now \
                     {options:?}; trace {:?}",
                    state.path[state.depth].0, state.trace
                );
            }
            let (options, chosen) = &state.path[state.depth];
            let next = options[*chosen];
            state.depth += 1;
            next
        };
        if me.is_some_and(|me| me != next) {
            state.preempted += 1;
        }
        state.current = next;
        self.turn.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn lost_update(preemptions: usize) -> (Explored, BTreeSet<u32>) {
        let mut seen = BTreeSet::new();
        let explored = explore(
            preemptions,
            10_000,
            || {
                let counter = Arc::new(AtomicU32::new(0));
                let actor = |counter: Arc<AtomicU32>| -> Actor {
                    Box::new(move || {
                        let value = counter.load(Ordering::Relaxed);
                        point("between load and store");
                        counter.store(value + 1, Ordering::Relaxed);
                    })
                };
                (Arc::clone(&counter), vec![actor(Arc::clone(&counter)), actor(counter)])
            },
            |counter| {
                seen.insert(counter.load(Ordering::Relaxed));
            },
        );
        (explored, seen)
    }

    #[test]
    fn finds_the_lost_update() {
        let (explored, seen) = lost_update(2);
        assert!(explored.complete && explored.schedules > 2, "{explored:?}");
        assert_eq!(seen, BTreeSet::from([1, 2]));
        assert_eq!(lost_update(0).1, BTreeSet::from([2]));
    }

    #[test]
    fn reports_a_deadlock() {
        let result = std::panic::catch_unwind(|| {
            explore(0, 10, || ((), vec![Box::new(blocked) as Actor]), |()| ());
        });
        assert!(result.is_err());
    }
}

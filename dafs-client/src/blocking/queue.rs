//! Many operations in flight from one thread.

use super::File;
use crate::counters::ReadReport;
use crate::error::Result;
use crate::ops::Core;
use crate::options::{Path, Stability};
use crate::session::pump::{ThreadWaker, poll_wanting, this_thread};
use crate::sync::{Boxed, lock};
use crate::{read, write};
use ordma::Region;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// Keeps reads and writes in flight, any number at a time, from one thread: submit some, wait for
/// whichever ends first, submit the next in its place.
///
/// Buffers are handed over and come back with the completion. An operation begins when it is
/// submitted, and goes on only while the thread that holds the queue is in one of its methods. The
/// queue's files must belong to the client it was made from, or their operations go on late.
pub struct Queue {
    core: Core,
    tasks: Vec<Task>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    done: VecDeque<Completion>,
    in_flight: usize,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// How an operation went.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A read, with how it was served.
    Read(ReadReport),
    /// A write: bytes written.
    Written(usize),
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Completion {
    /// What the operation was submitted under.
    pub token: u64,
    /// How it went.
    pub result: Result<Outcome>,
    /// The buffer, with what was read.
    pub buffer: Vec<u8>,
}

struct Task {
    future: Option<Boxed<'static, Completion>>,
    waker: Waker,
    /// What it waits for.
    wanted: u8,
}

/// The tasks that can go on.
struct Ready {
    places: Mutex<VecDeque<usize>>,
    thread: Mutex<Arc<ThreadWaker>>,
}

struct TaskWaker {
    ready: Arc<Ready>,
    place: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.ready.places).push_back(self.place);
        let thread = Arc::clone(&lock(&self.ready.thread));
        thread.wake();
    }
}

impl Queue {
    /// A queue of a client's.
    #[must_use]
    pub fn new(client: &super::Client) -> Self {
        let ready = Ready { places: Mutex::default(), thread: Mutex::new(this_thread()) };
        Self {
            core: client.core.clone(),
            tasks: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(ready),
            done: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// Operations submitted whose completion was not handed out yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.in_flight + self.done.len()
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a read of up to `buffer.len()` bytes at `offset`.
    pub fn read(&mut self, file: &File, buffer: Vec<u8>, offset: u64, path: Path, token: u64) {
        let file = Arc::clone(&file.file);
        self.submit(Box::pin(async move {
            let region = Region::owned(buffer);
            let to = region.segment(0, region.len());
            let result = read::read(&file, &to, offset, path).await.map(Outcome::Read);
            Completion { token, result, buffer: region.take().unwrap_or_default() }
        }));
    }

    /// Begins a write of the buffer at `offset`.
    pub fn write(
        &mut self,
        file: &File,
        buffer: Vec<u8>,
        offset: u64,
        stability: Stability,
        token: u64,
    ) {
        let file = Arc::clone(&file.file);
        self.submit(Box::pin(async move {
            let region = Region::owned(buffer);
            let from = region.segment(0, region.len());
            let result = write::write(&file, &from, offset, stability).await.map(Outcome::Written);
            Completion { token, result, buffer: region.take().unwrap_or_default() }
        }));
    }

    fn submit(&mut self, future: Boxed<'static, Completion>) {
        let place = match self.free.pop() {
            Some(place) => {
                self.tasks[place].future = Some(future);
                place
            }
            None => {
                let place = self.tasks.len();
                let waker = TaskWaker { ready: Arc::clone(&self.ready), place };
                let waker = Waker::from(Arc::new(waker));
                self.tasks.push(Task { future: Some(future), waker, wanted: 0 });
                place
            }
        };
        self.in_flight += 1;
        self.poll(place);
    }

    fn poll(&mut self, place: usize) {
        let task = &mut self.tasks[place];
        let Some(future) = &mut task.future else { return };
        let (result, wanted) = poll_wanting(future.as_mut(), &mut Context::from_waker(&task.waker));
        task.wanted = wanted;
        if let Poll::Ready(completion) = result {
            task.future = None;
            task.wanted = 0;
            self.free.push(place);
            self.in_flight -= 1;
            self.done.push_back(completion);
        }
    }

    /// Goes on with what can go on, without waiting, and hands out a completion if there is one.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.go_on(Some(Duration::ZERO));
        }
        self.done.pop_front()
    }

    /// Waits for the next completion; `None` if nothing is in flight.
    pub fn wait(&mut self) -> Option<Completion> {
        while self.done.is_empty() && self.in_flight > 0 {
            self.go_on(None);
        }
        self.done.pop_front()
    }

    /// The same for not much longer than `timeout`; `None` also if that is over.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Completion> {
        let end = Instant::now().checked_add(timeout);
        while self.done.is_empty() && self.in_flight > 0 {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            self.go_on(left);
        }
        self.done.pop_front()
    }

    fn go_on(&mut self, timeout: Option<Duration>) {
        let me = this_thread();
        {
            let mut thread = lock(&self.ready.thread);
            if !Arc::ptr_eq(&thread, &me) {
                *thread = Arc::clone(&me);
            }
        }
        // Before the tasks are looked at: what wakes from here on ends the wait below.
        me.reset();
        if !self.poll_ready() {
            let wanted = self.tasks.iter().fold(0, |wanted, task| wanted | task.wanted);
            let session = &self.core.owner;
            session.wait_once(&me, wanted, timeout);
            self.poll_ready();
        }
    }

    /// Polls the tasks that were woken; whether there was one.
    fn poll_ready(&mut self) -> bool {
        let mut any = false;
        loop {
            let place = lock(&self.ready.places).pop_front();
            let Some(place) = place else { return any };
            any = true;
            self.poll(place);
        }
    }
}

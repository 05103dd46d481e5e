//! Threads that serve one session after the other: a new thread costs a guest some page faults, and those are
//! most of what a short command takes where memory is virtualised twice.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::prctl;

/// Stack of a thread, in bytes; the largest buffers are on the heap.
const STACK_BYTES: usize = 256 * 1024;
/// Threads that may wait for work: a few sessions' worth.
const MAX_IDLE: usize = 16;
/// How long a thread waits for more work before it ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// What `ps -L` shows of a thread at work, and of one that waits.
const NAME: &CStr = c"session";
const IDLE_NAME: &CStr = c"session-idle";

type Job = Box<dyn FnOnce() + Send>;

/// Of this process, as its threads are.
static POOL: Pool =
    Pool { state: Mutex::new(State { idle: 0, jobs: VecDeque::new() }), more: Condvar::new() };

struct Pool {
    state: Mutex<State>,
    more: Condvar,
}

struct State {
    /// Threads that wait, besides those for which there is a job already.
    idle: usize,
    jobs: VecDeque<Job>,
}

/// Work in a thread of its own, of a session or of another connection.
#[derive(Debug)]
pub(crate) struct Working<T> {
    result: Receiver<thread::Result<T>>,
}

impl<T> Working<T> {
    /// Waits for its end; an error when it panicked.
    pub(crate) fn join(self) -> thread::Result<T> {
        self.result.recv().unwrap_or_else(|gone| Err(Box::new(gone)))
    }
}

/// Gives the work to a thread that waits, or to a new one.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<Working<T>> {
    let (sender, result) = sync_channel(1);
    let job = Box::new(move || {
        // Nobody may want to know.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
    });
    let mut state = POOL.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.idle > 0 {
        state.idle -= 1;
        state.jobs.push_back(job);
        POOL.more.notify_one();
        return Ok(Working { result });
    }
    drop(state);
    thread::Builder::new().stack_size(STACK_BYTES).spawn(move || serve(job))?;
    Ok(Working { result })
}

fn serve(first: Job) {
    name(NAME);
    first();
    let mut state = POOL.state.lock().unwrap_or_else(PoisonError::into_inner);
    while state.idle < MAX_IDLE {
        state.idle += 1;
        name(IDLE_NAME);
        let waited = POOL.more.wait_timeout_while(state, IDLE_LIMIT, |state| state.jobs.is_empty());
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match state.jobs.pop_front() {
            Some(job) => {
                drop(state);
                name(NAME);
                job();
                state = POOL.state.lock().unwrap_or_else(PoisonError::into_inner);
            }
            None => {
                state.idle -= 1;
                return;
            }
        }
    }
}

fn name(name: &CStr) {
    // Only for people who look.
    let _ = prctl::set_name(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_and_its_thread_serves_again() {
        let who = || thread::current().id();
        let first = spawn(who).unwrap().join().unwrap();
        // It says its result a moment before it waits for more.
        let again = (0..1000).any(|_| spawn(who).unwrap().join().unwrap() == first);
        assert!(again);
    }

    #[test]
    fn a_panic_is_told_and_the_next_work_done() {
        assert!(spawn(|| panic!("as it should")).unwrap().join().is_err());
        assert_eq!(spawn(|| 7).unwrap().join().unwrap(), 7);
    }
}

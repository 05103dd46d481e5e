//! The one place that waits for processes.
//!
//! As the guest's first process (or as a subreaper) the agent inherits every orphan, and each must be
//! reaped. One thread blocks until one has ended; whoever starts a process does it through
//! [`Reaper::spawn`], which registers the process before its end can be seen. A process is reaped only under
//! the lock that `spawn` holds, so the standard library finds a child whose `execve` has failed still there.
//!
//! ```text
//!   children exist ── waitid ──> reaped: told to whoever registered it, orphans are just reaped
//!        ^                            |
//!        | spawn                      v
//!   childless <──────────────────── ECHILD       (nothing polls: both sides are woken)
//! ```

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use nix::libc;

use crate::sys;

/// How a process ended, and when that was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Exit code or signal.
    pub(crate) status: ExitStatus,
    /// When it was reaped.
    pub(crate) at: Instant,
}

/// Told once, from the reaper's thread: it must not wait for anything that waits for the reaper.
type OnEnd = Box<dyn FnOnce(Ended) + Send>;

/// Handle of the reaping thread. The thread lives as long as the process.
pub(crate) struct Reaper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    watched: HashMap<i32, OnEnd>,
    spawned: u64,
    reaped: u64,
    /// The kernel said that there are no children, and none was started since.
    childless: bool,
}

impl Reaper {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Arc<Reaper>> {
        let state = State { childless: true, ..State::default() };
        let reaper = Arc::new(Reaper { state: Mutex::new(state), changed: Condvar::new() });
        let its = Arc::clone(&reaper);
        thread::Builder::new().name("reaper".into()).spawn(move || its.reap())?;
        Ok(reaper)
    }

    /// Starts a process and calls `on_end` when it has ended. The returned handle is only good for the
    /// process's pipes and id: it must not be waited for.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> io::Result<Child> {
        // Holding the lock keeps the reaper from telling of a process that is not in the table yet.
        let mut state = self.lock();
        let child = command.spawn()?;
        state.watched.insert(child.id().cast_signed(), Box::new(on_end));
        state.spawned += 1;
        state.childless = false;
        self.changed.notify_all();
        Ok(child)
    }

    /// Does `it` while no process is started or reaped: process ids stay what they are, and no descriptor
    /// leaks into a new process before it is marked.
    pub(crate) fn undisturbed<T>(&self, it: impl FnOnce() -> T) -> T {
        let _state = self.lock();
        it()
    }

    /// Does `it` if the started process `pid` was not reaped yet, so that the id still means it.
    pub(crate) fn while_alive(&self, pid: u32, it: impl FnOnce()) {
        let state = self.lock();
        if state.watched.contains_key(&pid.cast_signed()) {
            it();
        }
    }

    /// Asks `is_so` again after each process that was reaped. Returns whether it was before `deadline`.
    pub(crate) fn wait_until(&self, deadline: Instant, mut is_so: impl FnMut() -> bool) -> bool {
        let mut seen = self.lock().reaped;
        loop {
            if is_so() {
                return true;
            }
            let mut state = self.lock();
            while state.reaped == seen {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
            }
            seen = state.reaped;
        }
    }

    /// Waits until no child is left, calling `again` after each one that went (its own children have
    /// just become ours). Returns whether that was so before `deadline`.
    pub(crate) fn wait_childless(&self, deadline: Instant, mut again: impl FnMut()) -> bool {
        let mut state = self.lock();
        loop {
            if state.childless {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let reaped = state.reaped;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
            if state.reaped != reaped && !state.childless {
                drop(state);
                again();
                state = self.lock();
            }
        }
    }

    fn reap(&self) {
        let mut seen_spawned = 0;
        loop {
            match sys::wait_any() {
                Ok(pid) => {
                    let mut state = self.lock();
                    // One that is gone was reaped by the failed spawn that it belonged to.
                    let status = sys::reap(pid);
                    state.reaped += 1;
                    // Its id may have become another's, who is watched and has not ended.
                    let told = status.and_then(|status| Some((status, state.watched.remove(&pid)?)));
                    drop(state);
                    self.changed.notify_all();
                    if let Some((status, on_end)) = told {
                        on_end(Ended { status, at: Instant::now() });
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    let mut state = self.lock();
                    if state.spawned == seen_spawned {
                        state.childless = true;
                        self.changed.notify_all();
                    }
                    while state.spawned == seen_spawned {
                        state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
                    }
                    seen_spawned = state.spawned;
                }
                // Only EINTR is left, and no handler is installed: asking again is right.
                Err(_) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

//! The one place that waits for processes.
//!
//! As the guest's first process (or as a subreaper) the agent inherits every orphan, and each must be
//! reaped. One thread blocks until one has ended; whoever starts a process does it through
//! [`Reaper::spawn`]. No lock is held until a new process has executed its program, which may take its time, so one
//! may have ended, and be reaped, before its starter knows its number: while any are being started, the end of each
//! process that nobody asked for is kept.
//!
//! ```text
//!   children exist ── waitid ──> reaped: told to whoever registered it, orphans are just reaped
//!        ^                            |
//!        | spawn                      v
//!   childless <──────────────────── ECHILD       (nothing polls: both sides are woken)
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::fork::{self, Failed, Fork, Forked};
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
    /// Processes that are being started: each has no number yet, or has not told it.
    starting: usize,
    /// While there are some, ends that nobody had asked for: at most one for each number of a process.
    unclaimed: HashMap<i32, Ended>,
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

    /// Starts a process, and calls `on_end` when it has ended, from the reaper's thread or from this one. Returns its
    /// number once it has executed its program.
    pub(crate) fn spawn(
        &self,
        fork: &Fork,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<u32, Failed> {
        self.lock().starting += 1;
        let forked = fork::start(fork);
        let mut state = self.lock();
        state.starting -= 1;
        state.spawned += 1;
        state.childless = false;
        self.changed.notify_all();
        let claimed = forked.as_ref().ok().and_then(|forked| state.claim(forked));
        if state.starting == 0 {
            state.unclaimed.clear();
        }
        let pid = forked?.pid;
        match claimed {
            Some(ended) => {
                drop(state);
                on_end(ended);
            }
            None => _ = state.watched.insert(pid, Box::new(on_end)),
        }
        Ok(pid.cast_unsigned())
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
                    let status = sys::reap(pid);
                    state.reaped += 1;
                    let ended = status.map(|status| Ended { status, at: Instant::now() });
                    let told = ended.and_then(|ended| state.tell(pid, ended));
                    drop(state);
                    self.changed.notify_all();
                    if let Some((ended, on_end)) = told {
                        on_end(ended);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    let mut state = self.lock();
                    if state.spawned == seen_spawned && state.starting == 0 {
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

impl State {
    /// The end of this process, if it was reaped before anybody could ask for it.
    fn claim(&mut self, forked: &Forked) -> Option<Ended> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // One that can still be waited for was not reaped; what is kept under its number was another's.
        match waitid(Id::PIDFd(forked.handle.as_fd()), look) {
            Err(Errno::ECHILD) => self.unclaimed.remove(&forked.pid),
            _ => None,
        }
    }

    /// Whom to tell of an end.
    fn tell(&mut self, pid: i32, ended: Ended) -> Option<(Ended, OnEnd)> {
        let on_end = self.watched.remove(&pid);
        if on_end.is_none() && self.starting > 0 {
            self.unclaimed.insert(pid, ended);
        }
        Some((ended, on_end?))
    }
}

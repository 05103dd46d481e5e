//! Sessions: commands and copies beside the workload (`iii_protocol::session` is the contract).
//!
//! ```text
//!   accept ── a thread per connection ── OPEN ──> command, or copy
//!                                                   │  reader   frames of the client become deeds; waits for nothing else
//!                                                   │  output   pipes or terminal -> client, within its window
//!                                                   │  input    queue of one window -> pipe or terminal
//!                                                   └─ session  waits for the end, makes it complete, says it
//! ```
//!
//! Every process of a session is in one confinement of the platform, so that the end of a command, a kill, a
//! timeout and a lost client reach all of them. When the worker ends, the connections are closed without a
//! word: an END would say that the command ended by itself.

mod command;
mod connection;
mod copying;
mod frames;
mod inbound;
mod open;
mod outbound;
mod pump;
mod terminal;
mod threads;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use iii_protocol::guest::ProcessPlan;
use iii_protocol::session::MAX_SESSIONS;
use nix::libc;

use crate::console;
use crate::platform::SessionHost;
use crate::reaper::Reaper;
use crate::sys;

// What carries bytes within windows is not a session's alone.
pub(crate) use connection::Connection;
pub(crate) use frames::ConnectionReader;
pub(crate) use inbound::{Inbound, Next};
pub(crate) use outbound::Outbound;
pub(crate) use pump::{poll_again, wait_for, write_all};
pub(crate) use threads::spawn;

/// Connections at a time: sessions, and those that were answered and not closed by their client yet.
const MAX_CONNECTIONS: usize = 2 * MAX_SESSIONS;
/// How long accepting rests when the machine is out of something and no session ends.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// All sessions of this machine.
pub(crate) struct Sessions(Arc<Shared>);

/// What the sessions have in common.
struct Shared {
    host: Arc<dyn SessionHost>,
    reaper: Arc<Reaper>,
    workload: ProcessPlan,
    /// Whether processes may still be started; held for reading while one is.
    open: RwLock<bool>,
    live: Mutex<Live>,
    /// A connection or a session ended.
    changed: Condvar,
}

#[derive(Default)]
struct Live {
    connections: HashMap<u64, Arc<Connection>>,
    next_connection: u64,
    sessions: usize,
    last_session: u64,
}

impl Sessions {
    /// Takes sessions on `listener` from now on.
    pub(crate) fn start(
        listener: OwnedFd,
        host: Arc<dyn SessionHost>,
        reaper: Arc<Reaper>,
        workload: ProcessPlan,
    ) -> io::Result<Sessions> {
        let (open, live, changed) = (RwLock::new(true), Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { host, reaper, workload, open, live, changed });
        let its = Arc::clone(&shared);
        spawn(move || its.accept_all(&listener))?;
        Ok(Sessions(shared))
    }

    /// Ends every connection without a word and starts nothing more. The processes are left to the caller,
    /// who ends everything there is.
    pub(crate) fn close(&self) {
        // Waits for those that are being started, so that the caller's kill meets them.
        *self.0.open.write().unwrap_or_else(PoisonError::into_inner) = false;
        for connection in self.0.live().connections.values() {
            connection.close();
        }
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn accept_all(self: &Arc<Shared>, listener: &OwnedFd) {
        while self.wait_for_room() {
            match sys::accept(listener) {
                Ok(stream) if self.host.admits(&stream) => self.take(stream),
                // The peer has left already, or is not allowed to come.
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::ECONNABORTED) => {}
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => self.rest(),
                    _ => {
                        console::say(format_args!("no more sessions: {error}"));
                        return;
                    }
                },
            }
        }
    }

    /// Waits until one more connection is allowed; `false` when none will ever be.
    fn wait_for_room(&self) -> bool {
        let mut live = self.live();
        while live.connections.len() >= MAX_CONNECTIONS && *self.gate() {
            live = self.changed.wait(live).unwrap_or_else(PoisonError::into_inner);
        }
        *self.gate()
    }

    fn rest(&self) {
        // Whatever it is that wakes or not: accepting is simply tried again.
        drop(self.changed.wait_timeout(self.live(), ACCEPT_REST));
    }

    fn take(self: &Arc<Shared>, stream: OwnedFd) {
        let connection = Arc::new(Connection::new(stream));
        let mut live = self.live();
        let number = live.next_connection;
        live.next_connection += 1;
        live.connections.insert(number, Arc::clone(&connection));
        drop(live);
        if !*self.gate() {
            // Closing may have missed it.
            connection.close();
        }
        let its = Arc::clone(self);
        let spawned = spawn(move || {
            open::serve(&its, &connection);
            its.forget(number);
        });
        if let Err(error) = spawned {
            console::say(format_args!("a session is dropped: {error}"));
            self.forget(number);
        }
    }

    fn forget(&self, connection: u64) {
        self.live().connections.remove(&connection);
        self.changed.notify_all();
    }

    /// Counts one more session for as long as the result lives; `None` when there are too many.
    fn admit(self: &Arc<Shared>) -> Option<Admitted> {
        let mut live = self.live();
        if live.sessions >= MAX_SESSIONS {
            return None;
        }
        live.sessions += 1;
        live.last_session += 1;
        Some(Admitted { shared: Arc::clone(self), number: live.last_session })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> RwLockReadGuard<'_, bool> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that is counted.
struct Admitted {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.live().sessions -= 1;
        self.shared.changed.notify_all();
    }
}

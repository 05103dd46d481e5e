//! Connections to guests between two sessions.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::session::wire::Wire;

/// How many connections to one machine are kept for later: enough for what asks for one command after the other.
const MAX_IDLE: usize = 2;

/// Those of all machines.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<Waiting>>);

#[derive(Debug)]
struct Waiting {
    /// The machine's socket. One that has another machine behind it by now leads nowhere.
    socket: PathBuf,
    guest: Wire,
}

impl Idle {
    /// A connection to this machine that was kept.
    pub(super) fn take(&self, socket: &Path) -> Option<Wire> {
        let mut all = self.lock();
        let found = all.iter().rposition(|waiting| waiting.socket == socket)?;
        Some(all.swap_remove(found).guest)
    }

    /// Keeps one whose session has ended, unless there are enough.
    pub(super) fn keep(&self, socket: PathBuf, guest: Wire) {
        let mut all = self.lock();
        if all.iter().filter(|waiting| waiting.socket == socket).count() < MAX_IDLE {
            all.push(Waiting { socket, guest });
        }
    }

    /// Without those whose machine has ended.
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|waiting| is_open_and_silent(&waiting.guest));
        all
    }
}

/// A guest that speaks first has broken the contract.
fn is_open_and_silent(guest: &Wire) -> bool {
    // The kernel is asked: the runtime may not have heard of it yet.
    let seen = recv(guest.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    seen == Err(Errno::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as Guest;

    use super::*;

    fn connection() -> (Wire, Guest) {
        let (ours, theirs) = Guest::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Wire::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_machine_gets_its_own_connections_back_and_no_dead_ones() {
        let idle = Idle::default();
        let (web, db) = (PathBuf::from("/web"), PathBuf::from("/db"));
        assert!(idle.take(&web).is_none());
        let kept: Vec<Guest> = (0..MAX_IDLE + 1)
            .map(|_| {
                let (ours, theirs) = connection();
                idle.keep(web.clone(), ours);
                theirs
            })
            .collect();
        assert!(idle.take(&db).is_none());
        let mut probe = [0];
        // The first of them was too many.
        let closed = |guest: &Guest, probe: &mut [u8]| {
            recv(guest.as_raw_fd(), probe, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) == Ok(0)
        };
        assert_eq!(kept.iter().filter(|guest| closed(guest, &mut probe)).count(), 1);
        assert!(idle.take(&web).is_some());
        let mut kept = kept;
        for guest in &mut kept {
            let _ = guest.write_all(b"?");
        }
        assert!(idle.take(&web).is_none(), "one that speaks first");
        let (ours, theirs) = connection();
        idle.keep(web.clone(), ours);
        drop(theirs);
        assert!(idle.take(&web).is_none(), "one whose machine has ended");
    }
}

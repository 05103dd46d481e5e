//! The outside of a stack: binding its ports, starting its thread, watching and ending it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::{fmt, io, net::SocketAddr};

use iii_protocol::network::{Egress, Network};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::link::Link;
use crate::ports::{BindError, BoundPorts};
use crate::report::Event;
use crate::settings::Settings;
use crate::stack::{Shared, receive};

/// A number that only the stack changes, and anybody may read at any time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// What a stack has done since it began.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Frames received.
    pub frames_from_guest: Counter,
    /// Frames sent.
    pub frames_to_guest: Counter,
    /// Frames and datagrams that were thrown away because the guest does not take its frames, or too large.
    pub frames_dropped: Counter,
    /// Frames of the guest that cannot be read.
    pub malformed: Counter,
    /// Frames that were not from the guest's addresses.
    pub spoofed: Counter,
    /// Things the policy refused.
    pub denied: Counter,
    /// Events that nobody read in time.
    pub events_dropped: Counter,
    /// Connections and flows that were one too many.
    pub over_limit: Counter,
    /// Connections of the guest that the outside accepted.
    pub tcp_opened: Counter,
    /// Connections of the guest that the outside refused or did not answer.
    pub tcp_failed: Counter,
    /// Connections to published ports.
    pub tcp_accepted: Counter,
    /// Connections there are now.
    pub tcp_open: Counter,
    /// Flows of datagrams and echo requests.
    pub udp_opened: Counter,
    /// Datagrams of the guest that did not arrive, as the host's kernel says.
    pub udp_failed: Counter,
    /// Questions to the gateway's DNS.
    pub dns_queries: Counter,
    /// Those that no resolver answered.
    pub dns_failed: Counter,
}

/// The network of one guest.
#[derive(Debug)]
pub struct Stack;

impl Stack {
    /// Binds the published ports, before the guest begins. Raises the process's limit of open files to the hardest it
    /// may have: each connection is a descriptor.
    ///
    /// # Errors
    /// [`BindError`] for the first port that cannot be had; none is bound then.
    pub fn bind(network: &Network, settings: Settings) -> Result<Bound, BindError> {
        raise_open_files();
        let ports = BoundPorts::bind(&network.ports)?;
        Ok(Bound { egress: network.egress.clone(), settings, ports })
    }
}

/// A soft limit of 1024 is usual, and meant for programs that use `select`.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, hard, "the limit of open files stays");
    }
}

/// A stack whose ports are bound, before it has a guest.
#[derive(Debug)]
pub struct Bound {
    egress: Egress,
    settings: Settings,
    ports: BoundPorts,
}

impl Bound {
    /// Where the published ports are, TCP before UDP, each in the order given. A port 0 has become a real one.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.addresses()
    }

    /// Starts the stack on a thread of its own, so that a flood from the guest holds up nobody else. `guest` is the
    /// stack's end of [`pair`](crate::pair), or of a pair of Unix datagram sockets.
    ///
    /// # Errors
    /// No thread, no runtime, or `guest` is not a socket.
    pub fn start(self, guest: OwnedFd) -> io::Result<Handle> {
        let Bound { egress, settings, ports } = self;
        let counters = Arc::new(Counters::default());
        let (events, receiver) = mpsc::channel(settings.limits.events.max(1));
        let (stop, stopped) = oneshot::channel::<()>();
        let (begun, beginning) = std::sync::mpsc::sync_channel(1);
        let thread_counters = Arc::clone(&counters);
        let thread = std::thread::Builder::new().name("netstack".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(error))),
            };
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let set_up = Link::new(guest, Arc::clone(&thread_counters)).and_then(|link| {
                    let shared = Shared::new(link, egress, settings, thread_counters, events);
                    ports.serve(&shared).map(|()| shared)
                });
                let shared = match set_up {
                    Ok(shared) => shared,
                    Err(error) => return drop(begun.send(Err(error))),
                };
                // Nobody waiting for it any more is as good as stopping.
                let _ = begun.send(Ok(()));
                tokio::select! {
                    _ = stopped => {}
                    _ = receive(std::rc::Rc::clone(&shared)) => {}
                    _ = shared.link.run() => {}
                    () = shared.summarise() => {}
                }
            });
        })?;
        match beginning.recv() {
            Ok(Ok(())) => Ok(Handle { events: receiver, counters, stop: Some(stop), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the thread of the network ended")),
        }
    }
}

/// A running stack. Dropping it ends the stack and closes all its sockets.
pub struct Handle {
    events: mpsc::Receiver<Event>,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// The next event; `None` once the stack has ended, which it does by itself when the guest's end is gone. Safe to
    /// cancel.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event if there is one already.
    pub fn try_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the network panicked");
        }
    }
}

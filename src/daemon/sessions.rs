//! Sessions: the daemon joins a client's connection to one of the guest's, and looks at no payload in it.
//!
//! ```text
//!  POST .../session, Upgrade: iii-session/1
//!    is it one of ours? -> does the worker run? -> a connection to its machine -> 101 -> carry bytes
//!                                                    │  one that is idle, or a new one       │
//!                                                    └────────────── idle ◀── END, AGAIN ────┘
//! ```
//!
//! A connection to a guest is kept when its session has ended in order: to make one and to close it is
//! a good part of a short command.
//!
//! libkrun writes to the host's sockets in blocking mode, so that one which is not read would hold up every
//! connection of its machine. Therefore both directions are always read, into a buffer each; the windows of
//! [`iii_protocol::session`] keep an honest end far below its limit, and an end that goes over it loses its
//! session. When one end closes, the other is closed at once, or kept.

mod carry;
mod idle;
mod order;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use iii_protocol::api::{ErrorBody, ErrorCode, Phase, WorkerStatus};
use iii_protocol::session::{MAX_SESSIONS, UPGRADE};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::reply::ApiError;
use super::routes::Edge;
use super::server::closed;
use crate::session::wire::Wire;
use crate::vm::SESSION_SOCKET;

pub use carry::MAX_WAITING_BYTES;
use carry::{Carried, carry};
use idle::Idle;

/// How many sessions all workers together may have at a time: four workers at the agent's own limit. Each holds two file
/// descriptors, and one more for an end that has no room; [`super::MAX_OPEN_FILES`] is enough for all.
pub const MAX_SESSIONS_AT_ONCE: usize = 4 * MAX_SESSIONS;
/// How long a machine may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections to one machine are being made at a time: libkrun's socket has a backlog of 5, and
/// each of these waits in a thread of its own.
pub const MAX_CONNECTING: usize = 8;

/// What all sessions share.
#[derive(Debug)]
pub struct Sessions {
    slots: Arc<Semaphore>,
    /// Per worker, so that a machine which accepts nothing keeps nobody else waiting.
    connecting: Mutex<HashMap<String, Arc<Semaphore>>>,
    idle: Arc<Idle>,
}

impl Default for Sessions {
    fn default() -> Sessions {
        let slots = Arc::new(Semaphore::new(MAX_SESSIONS_AT_ONCE));
        Sessions { slots, connecting: Mutex::default(), idle: Arc::default() }
    }
}

impl Sessions {
    fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.slots.clone().try_acquire_owned().map_err(|_| {
            ApiError(ErrorBody {
                code: ErrorCode::Host,
                message: format!("the daemon carries {MAX_SESSIONS_AT_ONCE} sessions already, its limit"),
                hint: Some("end some `iii worker exec`, then try again".to_owned()),
            })
        })
    }

    fn connecting(&self, worker: &str) -> Arc<Semaphore> {
        let mut all = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waits for are as good as new ones.
        all.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        all.entry(worker.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(MAX_CONNECTING))).clone()
    }

    /// Connects to a machine's socket; waits in line where many want to.
    async fn connect(&self, worker: &str, path: &Path) -> io::Result<Wire> {
        // Nearly always there is room in its backlog, and no need for a thread that could wait.
        match connect_at_once(path) {
            Err(Errno::EAGAIN) => {}
            connected => return Wire::new(StdUnixStream::from(connected?)),
        }
        let connecting = self.connecting(worker);
        let turn = tokio::time::timeout(CONNECT_TIMEOUT, connecting.acquire_owned());
        let turn = turn.await?.map_err(io::Error::other)?;
        let path = path.to_owned();
        let connected = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            connect_patiently(&path)
        });
        Wire::new(connected.await.map_err(io::Error::other)??)
    }
}

/// `EAGAIN` when the backlog is full.
fn connect_at_once(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Waits in the kernel while the backlog is full: a socket that does not block would be refused there.
fn connect_patiently(path: &Path) -> io::Result<StdUnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = i64::try_from(CONNECT_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&fd, SendTimeout, &TimeVal::milliseconds(timeout))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?).map_err(|e| match e {
        Errno::EAGAIN => io::Error::from(io::ErrorKind::TimedOut),
        e => e.into(),
    })?;
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Opens a session of the worker: the answer is `101`, and from then on the connection is the session's.
pub(super) async fn open(edge: &Edge, name: &str, mut request: Request) -> Result<Response, ApiError> {
    if !wants_session(request.headers()) {
        return Err(no_upgrade());
    }
    // Not there either when the request is HTTP/1.0.
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(no_upgrade)?;
    let view = edge.view(name).await?;
    may_have_sessions(&view.status.borrow())?;
    let slot = edge.sessions.slot()?;
    let socket = edge.home.machine_run(&edge.project, name).join(SESSION_SOCKET);
    let guest = match edge.sessions.idle.take(&socket) {
        Some(guest) => guest,
        None => edge.sessions.connect(name, &socket).await.map_err(|e| unreachable_machine(name, &e))?,
    };
    let idle = Arc::clone(&edge.sessions.idle);
    let session = Session { worker: name.to_owned(), socket, guest, idle, _slot: slot };
    tokio::spawn(session.carry_upgraded(upgrade, edge.closing.clone()));
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE)
        .body(Body::empty());
    response.map_err(|e| ApiError::internal(format!("no answer could be made: {e}")))
}

fn wants_session(headers: &HeaderMap) -> bool {
    let names = |header, wanted: &str| {
        let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, UPGRADE)
}

fn no_upgrade() -> ApiError {
    ApiError(ErrorBody {
        code: ErrorCode::BadRequest,
        message: "a session needs a connection that can be upgraded".to_owned(),
        hint: Some(format!(
            "ask with HTTP/1.1, `Connection: Upgrade` and `Upgrade: {UPGRADE}`, or use `iii worker exec`"
        )),
    })
}

fn unreachable_machine(name: &str, error: &io::Error) -> ApiError {
    let why = match error.kind() {
        io::ErrorKind::TimedOut => format!("it did not answer within {CONNECT_TIMEOUT:?}"),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "nobody listens on its session socket".to_owned()
        }
        _ => error.to_string(),
    };
    ApiError(ErrorBody {
        code: ErrorCode::Host,
        message: format!("the machine of `{name}` cannot be reached: {why}"),
        hint: Some(format!("`iii worker status {name}` shows how it is; restart it if it stays so")),
    })
}

/// Only the agent of a worker that runs, or that waits for a look at its project, takes sessions.
fn may_have_sessions(status: &WorkerStatus) -> Result<(), ApiError> {
    let name = &status.name;
    let last = status.exits.first().map(|exit| format!(" ({})", exit.cause)).unwrap_or_default();
    let start = || format!("start it with `iii worker start {name}`");
    let wait = || format!("`iii worker start {name}` waits until it runs");
    let logs = || format!("see what it wrote: `iii worker logs {name}`");
    let (message, hint) = match status.phase {
        Phase::Running => return Ok(()),
        // Its project could not be made ready, and its machine is up for a look.
        Phase::Failed if status.vmm_pid.is_some() => return Ok(()),
        Phase::Stopped => (format!("`{name}` is stopped"), start()),
        Phase::Preparing => (format!("`{name}` is still preparing: it has no machine yet"), wait()),
        Phase::Booting => (format!("`{name}` is still booting"), wait()),
        Phase::Stopping => (format!("`{name}` is stopping"), start()),
        Phase::Backoff => (format!("`{name}` has ended{last} and waits to be started again"), logs()),
        Phase::CrashLoop => (format!("`{name}` crashes again and again{last}"), logs()),
        Phase::Failed => match &status.cause {
            Some(cause) => {
                let hint = cause.hint.clone().unwrap_or_else(start);
                (format!("`{name}` has failed: {}", cause.message), hint)
            }
            None => (format!("`{name}` has failed{last}"), logs()),
        },
    };
    Err(ApiError(ErrorBody { code: ErrorCode::Conflict, message, hint: Some(hint) }))
}

/// One session that is connected to its machine.
struct Session {
    worker: String,
    /// Of the machine.
    socket: PathBuf,
    guest: Wire,
    /// Where `guest` goes when another session may follow.
    idle: Arc<Idle>,
    _slot: OwnedSemaphorePermit,
}

impl Session {
    async fn carry_upgraded(self, upgrade: OnUpgrade, mut closing: watch::Receiver<bool>) {
        let upgraded = tokio::select! {
            upgraded = upgrade => upgraded,
            () = closed(&mut closing) => return,
        };
        match upgraded.map(Upgraded::downcast::<TokioIo<UnixStream>>) {
            Ok(Ok(parts)) => match parts.io.into_inner().into_std().and_then(Wire::new) {
                Ok(client) => tokio::select! {
                    end = carry(&client, parts.read_buf, &self.guest) => self.finish(end),
                    () = closed(&mut closing) => {}
                },
                Err(e) => {
                    tracing::warn!(error = %e, "a client's connection cannot be watched: session closed")
                }
            },
            Ok(Err(_)) => tracing::error!("an upgraded connection is no socket"),
            Err(e) => tracing::debug!(error = %e, "a client left before its session"),
        }
    }

    fn finish(self, end: Carried) {
        let worker = &self.worker;
        match end {
            Carried::Closed => {}
            Carried::Again => self.idle.keep(self.socket, self.guest),
            Carried::GuestExceeded => {
                tracing::warn!(%worker, "the guest sent more than a session may: session closed");
            }
            Carried::ClientExceeded => {
                tracing::warn!(%worker, "a client sent more than a session may: session closed");
            }
        }
    }
}

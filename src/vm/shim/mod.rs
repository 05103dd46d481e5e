//! `iii __shim`: owns one machine and outlives the daemon.
//!
//! ```text
//!            agent says Hello, gets its plan       agent says Started
//!  Booting ─────────────────────────────────────────────────────────▶ Running
//!     │ deadline, VMM ends                     stop, orphaned │  │ agent says Exit, VMM ends
//!     └──────────────▶ Ended ◀──────────────── Stopping ◀─────┘  │
//!                        ▲                        │              │
//!                        └────────────────────────┴──────────────┘
//! ```
//! A process of its own because libkrun ends its process with the guest and a crashed daemon would take
//! its machines along. It is born with the lock of its run folder as standard output, so there is never
//! a moment in which a machine runs and nobody holds the lock, and with the daemon's link as standard
//! input.

mod agent_link;
mod console;
mod daemon_link;
mod engine;
mod machine;
mod network;
mod output;
mod spawn;

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use iii_protocol::shim::KIND_LAUNCH;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

pub use console::CONSOLE_NAME;

use self::output::Output;
use super::spec::MachineSpec;
use super::wire::FrameReader;
use crate::fsutil::sweep_temporary;
use crate::logs::{DEFAULT_RING_BYTES, LogRing};

/// The socket a daemon attaches to, in the run folder.
pub(super) const SHIM_SOCKET: &str = "shim.sock";
/// The lock a shim holds for all its life, in the run folder.
pub const SHIM_LOCK: &str = "lock";
/// The shim's last word, in the run folder: an `ExitRecord` as JSON.
pub(super) const EXIT_FILE: &str = "exit.json";
/// What the shim itself has to say, in the run folder.
pub(super) const SHIM_LOG: &str = "shim.log";
/// Where the guest's control connection arrives, in the run folder.
pub(super) const AGENT_SOCKET: &str = "agent.sock";
/// Where sessions reach the guest, in the run folder; the VMM listens on it.
pub const SESSION_SOCKET: &str = "session.sock";
/// Where the guest's connections to its engine arrive, in the run folder.
pub(super) const ENGINE_SOCKET: &str = "engine.sock";
/// Sockets of the run folder: what the longest of their paths decides, and what a killed shim leaves.
pub(super) const SOCKETS: [&str; 4] = [SHIM_SOCKET, AGENT_SOCKET, SESSION_SOCKET, ENGINE_SOCKET];

/// Takes the sockets of a machine that has ended out of its run folder. The caller holds the folder's lock.
pub(super) fn remove_sockets(run_dir: &Path) {
    for socket in SOCKETS {
        // Gone already is as good.
        let _ = fs::remove_file(run_dir.join(socket));
    }
}

/// First frame of the birth link: the machine and its places.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShimSpec {
    /// The machine.
    pub(super) machine: MachineSpec,
    /// Sockets, lock, last word.
    pub(super) run_dir: PathBuf,
    /// Output and console.
    pub(super) log_dir: PathBuf,
    /// Writable disk.
    pub(super) scratch_disk: PathBuf,
    /// It was made in the place of one that was for another base image.
    pub(super) base_changed: bool,
    /// The least number of its first log record.
    pub(super) first_seq: u64,
    /// Guest kernel; `None` runs the agent as a plain process (test builds only).
    pub(super) libkrunfw: Option<PathBuf>,
}

/// Entry point of the hidden subcommand.
pub fn run() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(start()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a machine needs around it.
struct Places {
    daemons: UnixListener,
    agents: UnixListener,
    engine: UnixListener,
    ring: Arc<LogRing>,
    output: Output,
}

impl Places {
    fn set_up(spec: &ShimSpec) -> anyhow::Result<Places> {
        for stale in SOCKETS.into_iter().chain([EXIT_FILE]) {
            let path = spec.run_dir.join(stale);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        sweep_temporary(&spec.run_dir);
        let listen = |name| UnixListener::bind(spec.run_dir.join(name));
        let daemons = listen(SHIM_SOCKET).context("cannot listen for daemons")?;
        let agents = listen(AGENT_SOCKET).context("cannot listen for the agent")?;
        let engine = listen(ENGINE_SOCKET).context("cannot listen for the guest's way to its engine")?;
        let ring = Arc::new(LogRing::new(DEFAULT_RING_BYTES));
        let output = Output::open(&spec.log_dir, spec.machine.generation, spec.first_seq, Arc::clone(&ring))?;
        Ok(Places { daemons, agents, engine, ring, output })
    }
}

async fn start() -> anyhow::Result<()> {
    // A closed terminal is the daemon's business. Without these handlers it would end the machine too.
    let _hangup = signal(SignalKind::hangup())?;
    let _interrupt = signal(SignalKind::interrupt())?;
    let terminate = signal(SignalKind::terminate())?;

    // Standard input is the birth link. The duplicate closes on exec, so the VMM does not get it.
    let birth = StdUnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    birth.set_nonblocking(true)?;
    let lock: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned()?;
    let (reader, writer) = UnixStream::from_std(birth)?.into_split();
    let mut reader = FrameReader::new(reader);
    let Some(frame) = reader.next().await.context("the birth link broke")? else {
        bail!("the daemon left before it said what to run");
    };
    if frame.kind != KIND_LAUNCH {
        bail!("the first frame is of kind {}, not a launch", frame.kind);
    }
    let spec: ShimSpec = frame.parse()?;

    let run_dir = spec.run_dir.clone();
    let result = match Places::set_up(&spec) {
        Ok(places) => machine::run(spec, reader, writer, places, terminate).await,
        Err(error) => {
            // Without a word from us the daemon could only say that we were killed.
            machine::could_not_start(&spec, &error).and(Err(error))
        }
    };
    remove_sockets(&run_dir);
    drop(lock);
    result
}

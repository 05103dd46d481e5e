//! `iii __vmm`: reads its configuration from standard input and becomes the machine.
//!
//! A process of its own because libkrun takes the whole process; hidden because only the shim starts it.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::krun::{self, VmmConfig};

/// Exit status when the VM was never entered; the reason is on standard error.
const EXIT_NOT_ENTERED: u8 = 125;
/// The most bytes of configuration that are read.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// What `iii __vmm` reads from its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmmOrder {
    /// Process id of the shim; there is no machine without it.
    pub(super) shim_pid: u32,
    /// What to become.
    pub(super) kind: VmmKind,
}

/// The Unix sockets of the host that the guest's vsock ports are mapped to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestSockets {
    /// The guest's control connection arrives here.
    pub(super) control: PathBuf,
    /// The VMM listens here and carries each connection to the guest's session port.
    pub(super) sessions: PathBuf,
}

/// What to become.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum VmmKind {
    /// A libkrun machine.
    Krun(VmmConfig),
    /// The agent as a plain process, for tests without hardware virtualisation.
    #[cfg(feature = "process-launcher")]
    Process {
        /// The agent's way to the host and back.
        sockets: GuestSockets,
        /// Locked while the process runs, as a real machine locks its disk.
        scratch_disk: PathBuf,
    },
}

/// Entry point; never returns while the machine runs.
pub fn run() -> ExitCode {
    let error = match start() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    complain(&error);
    ExitCode::from(EXIT_NOT_ENTERED)
}

#[expect(clippy::print_stderr, reason = "standard error is the console, which the shim reads")]
fn complain(error: &anyhow::Error) {
    eprintln!("iii: {error:#}");
}

fn start() -> anyhow::Result<std::convert::Infallible> {
    // The machine must not outlive the shim that knows about it. The flag is about the parent's end to
    // come; a shim that ended before it was set (it may have left its order in the pipe) is not the
    // parent any more.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_CONFIG_BYTES).read_to_end(&mut text)?;
    let VmmOrder { shim_pid, kind } = serde_json::from_slice(&text)?;
    let parent = u32::try_from(nix::unistd::getppid().as_raw())?;
    anyhow::ensure!(parent == shim_pid, "the shim ended before its machine began");

    match kind {
        VmmKind::Krun(config) => {
            let _scratch = lock_disk(&config.scratch_disk)?;
            Err(krun::enter(&config).into())
        }
        #[cfg(feature = "process-launcher")]
        VmmKind::Process { sockets, scratch_disk } => {
            let scratch = lock_disk(&scratch_disk)?;
            super::process::become_agent(&sockets, scratch)
        }
    }
}

/// Waits until no other machine has the disk (one that is being killed holds it for some milliseconds).
fn lock_disk(path: &std::path::Path) -> anyhow::Result<File> {
    let disk = File::options().read(true).write(true).open(path)?;
    disk.lock()?;
    Ok(disk)
}

//! `iii __vmm`: takes its order from standard input, a Unix socket, and becomes the machine.
//!
//! A process of its own because libkrun takes the whole process; hidden because only the shim starts it.

use std::fs::{File, TryLockError};
use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};

use super::jail;
use super::krun::{self, VmmConfig};

/// Exit status when the VM was never entered; the reason is on standard error.
const EXIT_NOT_ENTERED: u8 = 125;
/// The most bytes of an order: what a socket surely has room for. An order names a handful of paths.
pub(super) const MAX_ORDER_BYTES: usize = 64 * 1024;

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
    /// The guest's connections to its engine arrive here.
    pub(super) engine: PathBuf,
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
    say(format_args!("{error:#}"));
    ExitCode::from(EXIT_NOT_ENTERED)
}

#[expect(clippy::print_stderr, reason = "standard error is the console, which the shim reads")]
fn say(line: std::fmt::Arguments<'_>) {
    eprintln!("iii: {line}");
}

fn start() -> anyhow::Result<std::convert::Infallible> {
    // The machine must not outlive the shim that knows about it. The flag is about the parent's end to
    // come; a shim that ended before it was set (it may have left its order in the pipe) is not the
    // parent any more.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (text, network) = read_order(std::io::stdin().as_fd())?;
    let VmmOrder { shim_pid, kind } = serde_json::from_slice(&text)?;
    let parent = u32::try_from(nix::unistd::getppid().as_raw())?;
    anyhow::ensure!(parent == shim_pid, "the shim ended before its machine began");

    match kind {
        VmmKind::Krun(config) => {
            let _scratch = lock_disk(&config.scratch_disk)?;
            let network = network.context("the order came without the network's descriptor")?;
            // Before libkrun has any thread.
            jail::drop_network().context("the VMM cannot give up the host's network")?;
            Err(krun::enter(&config, network).into())
        }
        #[cfg(feature = "process-launcher")]
        VmmKind::Process { sockets, scratch_disk } => {
            let scratch = lock_disk(&scratch_disk)?;
            super::process::become_agent(&sockets, scratch)
        }
    }
}

/// The whole order, and the descriptor that came along with it: open in this process, and owned by nobody yet.
fn read_order(stdin: BorrowedFd<'_>) -> anyhow::Result<(Vec<u8>, Option<RawFd>)> {
    let (mut text, mut network) = (Vec::new(), None);
    let mut buffer = vec![0u8; MAX_ORDER_BYTES];
    loop {
        let mut space = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stdin.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                network = network.or(descriptors.first().copied());
            }
        }
        let bytes = message.bytes;
        if bytes == 0 {
            return Ok((text, network));
        }
        anyhow::ensure!(text.len() + bytes <= MAX_ORDER_BYTES, "the order is too long");
        text.extend_from_slice(&buffer[..bytes]);
    }
}

/// Waits until no other machine has the disk (one that is being killed holds it for some milliseconds).
fn lock_disk(path: &std::path::Path) -> anyhow::Result<File> {
    let disk = File::options().read(true).write(true).open(path)?;
    match disk.try_lock() {
        Ok(()) => return Ok(disk),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    // If it takes longer than that, this is why the boot ends at its deadline.
    say(format_args!("waiting until no other machine has {}", path.display()));
    disk.lock()?;
    Ok(disk)
}

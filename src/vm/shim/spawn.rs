//! Starts the VMM process of a machine.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::console::Console;
use super::{AGENT_SOCKET, ENGINE_SOCKET, SESSION_SOCKET, ShimSpec};
use crate::vm::krun::{NetworkLink, VmmConfig};
use crate::vm::vmm::{GuestSockets, MAX_ORDER_BYTES, VmmKind, VmmOrder};

/// Starts `iii __vmm` and tells it what to become; its outputs are the console. `network` is the guest's end of its
/// network device: it goes along with the order, so that no process inherits it.
pub(super) async fn spawn_vmm(spec: &ShimSpec, network: &OwnedFd) -> anyhow::Result<(Child, Console)> {
    let sockets = GuestSockets {
        control: spec.run_dir.join(AGENT_SOCKET),
        sessions: spec.run_dir.join(SESSION_SOCKET),
        engine: spec.run_dir.join(ENGINE_SOCKET),
    };
    let kind = match &spec.libkrunfw {
        Some(libkrunfw) => VmmKind::Krun(VmmConfig {
            cpus: spec.machine.resources.cpus,
            memory_mib: spec.machine.resources.memory_mib,
            root_disk: spec.machine.root_disk.clone(),
            scratch_disk: spec.scratch_disk.clone(),
            sockets,
            libkrunfw: libkrunfw.clone(),
            network_link: NetworkLink::default(),
        }),
        #[cfg(feature = "process-launcher")]
        None => VmmKind::Process { sockets, scratch_disk: spec.scratch_disk.clone() },
        #[cfg(not(feature = "process-launcher"))]
        None => anyhow::bail!("no guest kernel was named"),
    };
    let (receiver, sender) = std::io::pipe()?;
    let (ours, theirs) = UnixStream::pair()?;
    let vmm = Command::new("/proc/self/exe")
        .arg0("iii")
        .arg("__vmm")
        .stdin(OwnedFd::from(theirs))
        .stdout(sender.try_clone()?)
        .stderr(sender)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the VMM process")?;
    let receiver = pipe::Receiver::from_owned_fd(receiver.into())?;
    let console = Console::start(receiver, &spec.log_dir).context("cannot open the console file")?;
    let order = serde_json::to_vec(&VmmOrder { shim_pid: std::process::id(), kind })?;
    give_order(&ours, &order, network).context("the VMM did not take its configuration")?;
    Ok((vmm, console))
}

/// An empty socket has room for an order at once, so this never waits.
fn give_order(vmm: &UnixStream, order: &[u8], network: &OwnedFd) -> anyhow::Result<()> {
    anyhow::ensure!(order.len() <= MAX_ORDER_BYTES, "it has {} bytes", order.len());
    let descriptors = [network.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(vmm.as_raw_fd(), &[IoSlice::new(order)], &rights, MsgFlags::MSG_DONTWAIT, None)?;
    anyhow::ensure!(sent == order.len(), "it took {sent} of {} bytes", order.len());
    Ok(())
}

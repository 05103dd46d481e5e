//! Starts the VMM process of a machine.

use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::console::Console;
use super::{AGENT_SOCKET, SESSION_SOCKET, ShimSpec};
use crate::vm::krun::VmmConfig;
use crate::vm::vmm::{GuestSockets, VmmKind, VmmOrder};

/// Starts `iii __vmm` and tells it what to become; its outputs are the console.
pub(super) async fn spawn_vmm(spec: &ShimSpec) -> anyhow::Result<(Child, Console)> {
    let sockets = GuestSockets {
        control: spec.run_dir.join(AGENT_SOCKET),
        sessions: spec.run_dir.join(SESSION_SOCKET),
    };
    let kind = match &spec.libkrunfw {
        Some(libkrunfw) => VmmKind::Krun(VmmConfig {
            cpus: spec.machine.resources.cpus,
            memory_mib: spec.machine.resources.memory_mib,
            root_disk: spec.machine.root_disk.clone(),
            scratch_disk: spec.scratch_disk.clone(),
            sockets,
            libkrunfw: libkrunfw.clone(),
        }),
        #[cfg(feature = "process-launcher")]
        None => VmmKind::Process { sockets, scratch_disk: spec.scratch_disk.clone() },
        #[cfg(not(feature = "process-launcher"))]
        None => anyhow::bail!("no guest kernel was named"),
    };
    let (receiver, sender) = std::io::pipe()?;
    let mut vmm = Command::new("/proc/self/exe")
        .arg0("iii")
        .arg("__vmm")
        .stdin(Stdio::piped())
        .stdout(sender.try_clone()?)
        .stderr(sender)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the VMM process")?;
    let receiver = pipe::Receiver::from_owned_fd(receiver.into())?;
    let console = Console::start(receiver, &spec.log_dir).context("cannot open the console file")?;
    let mut stdin = vmm.stdin.take().context("the VMM has no standard input")?;
    let order = VmmOrder { shim_pid: std::process::id(), kind };
    stdin.write_all(&serde_json::to_vec(&order)?).await.context("the VMM did not take its configuration")?;
    Ok((vmm, console))
}

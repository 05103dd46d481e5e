//! Shim to agent, over vsock port [`CONTROL_PORT`] (a Unix socket on the host's side).
//!
//! The agent connects out and says [`Hello`]; that is the ready signal, nobody probes. The shim answers
//! with the [`BootPlan`]; the agent mounts, starts the workload and says [`Started`], or [`Exit`] with
//! [`ExitCause::CouldNotStart`](crate::exit::ExitCause). Output frames come in the order they were read. [`Exit`] is the agent's last
//! word: everything the workload wrote has been sent before it, and the agent powers the guest off
//! only after [`KIND_EXIT_ACK`] (or when the link is gone).
//!
//! A plan with [`BootPlan::hold`] parts mounting and starting: the agent says [`KIND_HELD`] when sessions
//! are taken, and starts the workload at [`KIND_GO`]. A [`Stop`] meanwhile ends the machine at once.
//!
//! [`KIND_RESTART`] ends the workload and starts it again in the same machine: all output of the old one, then
//! [`Started`]. A workload that ended by itself before is the machine's end as ever: [`Exit`] is the answer then.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::exit::ExitCause;

/// The vsock port of the control link; the guest connects to CID 2 (the host).
pub const CONTROL_PORT: u32 = 1024;
/// The version both sides must share; the agent is embedded in the binary, so they always do.
pub const VERSION: u32 = 1;
/// What a [`CouldNotStart`](crate::exit::ExitCause::CouldNotStart) of the guest is about when it cannot mount the disk
/// with the image's files: the host, which knows what it was built from, looks whether it is damaged.
pub const ROOT_DISK: &str = "root disk";
/// What a [`CouldNotStart`](crate::exit::ExitCause::CouldNotStart) of the guest is about when its writable disk is
/// damaged: the host knows more of that disk.
pub const SCRATCH_DISK: &str = "scratch disk";
/// Environment variable of the agent that names a Unix socket to use instead of vsock. Set only by the
/// process launcher of test builds.
pub const AGENT_SOCKET_ENV: &str = "III_AGENT_SOCKET";

/// Agent to shim: [`Hello`].
pub const KIND_HELLO: u8 = 1;
/// Shim to agent: [`BootPlan`].
pub const KIND_PLAN: u8 = 2;
/// Agent to shim: [`Started`].
pub const KIND_STARTED: u8 = 3;
/// Shim to agent: [`Stop`].
pub const KIND_STOP: u8 = 4;
/// Agent to shim: [`Exit`].
pub const KIND_EXIT: u8 = 5;
/// Shim to agent: the exit is on the host's disk; power off. No payload.
pub const KIND_EXIT_ACK: u8 = 6;
/// Shim to agent: start the workload. The answer to [`KIND_HELD`]. No payload.
pub const KIND_GO: u8 = 7;
/// Agent to shim: all is mounted, sessions are taken, and the workload waits for [`KIND_GO`]. Only with
/// [`BootPlan::hold`]. No payload.
pub const KIND_HELD: u8 = 8;
/// Shim to agent: end the workload as by this [`Stop`], but nothing else of the guest, and start it again.
pub const KIND_RESTART: u8 = 9;
/// Agent to shim: workload output, [`output_payload`].
pub const KIND_STDOUT: u8 = 16;
/// Agent to shim: workload error output, [`output_payload`].
pub const KIND_STDERR: u8 = 17;

/// The agent's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// The guest kernel's release, as `uname -r` says.
    pub kernel: String,
    /// Milliseconds since the guest's kernel started.
    pub uptime_ms: u64,
}

/// Everything the agent needs to become the worker. Nothing of it is ever on a command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootPlan {
    /// [`VERSION`] of the shim.
    pub version: u32,
    /// Nanoseconds since the Unix epoch by the host's clock, when the plan was made; the guest's is set to it.
    pub now_ns: Option<u64>,
    /// The guest's host name: the worker's name.
    pub hostname: String,
    /// What the root file system is made of.
    pub root: RootPlan,
    /// The network device; `None` leaves the machine with its loopback.
    pub network: Option<GuestNetwork>,
    /// The port of the guest's loopback that leads to the engine ([`crate::engine`]).
    pub engine_port: Option<u16>,
    /// Whether the workload waits for [`KIND_GO`].
    pub hold: bool,
    /// The worker's own process.
    pub workload: ProcessPlan,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RootPlan {
    /// A read-only EROFS root disk below a writable ext4 scratch disk, joined by overlayfs.
    Overlay {
        /// Guest path of the root disk's block device, such as `/dev/vda`.
        lower: String,
        /// Guest path of the scratch disk's block device, such as `/dev/vdb`.
        upper: String,
    },
    /// The agent's own surroundings, unchanged: only for the process launcher of test builds.
    Surroundings,
}

/// How the guest sets its one network device up; nobody on the link has to be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNetwork {
    /// The device's hardware address, by which it is recognised.
    pub mac: [u8; 6],
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Its addresses, each with a way out.
    pub addresses: Vec<GuestAddress>,
    /// Whom to ask for names; none means that there is nobody.
    pub dns: Vec<IpAddr>,
    /// Names that are known without asking.
    pub hosts: Vec<(String, IpAddr)>,
}

/// One address of the guest's network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Where everything else goes; of the same family.
    pub gateway: IpAddr,
}

/// A process to run in the guest, as the image's config and the worker's entry say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessPlan {
    /// Program and arguments, never empty; a program without `/` is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment, in order; later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory; made when missing, as Docker does.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid`... as the OCI image config's `User`; empty means root.
    pub user: String,
}

/// Agent to shim: the workload has been executed (`execve` succeeded). Again after each [`KIND_RESTART`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// The workload's process id in the guest.
    pub pid: u32,
}

/// Shim to agent: end the workload. A second one shortens the grace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Signal number to send to the workload's process group first.
    pub signal: i32,
    /// Milliseconds until SIGKILL to everything; 0 kills at once.
    pub grace_ms: u64,
}

/// The agent's last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Why the workload ended.
    pub cause: ExitCause,
    /// How long it ran, in milliseconds of the guest's monotonic clock.
    pub uptime_ms: u64,
}

/// Payload of an output frame: `u64 nanoseconds since the Unix epoch, big endian, guest clock | bytes`.
pub fn output_payload(at_ns: u64, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8 + bytes.len());
    payload.extend_from_slice(&at_ns.to_be_bytes());
    payload.extend_from_slice(bytes);
    payload
}

/// Takes [`output_payload`] apart; `None` when it is too short.
pub fn parse_output(payload: &[u8]) -> Option<(u64, &[u8])> {
    let (at, bytes) = payload.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at), bytes))
}

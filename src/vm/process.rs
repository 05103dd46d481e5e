//! The process launcher of test builds: the agent as a plain process instead of a machine.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use iii_protocol::guest::AGENT_SOCKET_ENV;
use iii_protocol::session::SESSION_SOCKET_ENV;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::agent_binary::AGENT;
use super::vmm::GuestSockets;

/// Replaces this process by the agent. `scratch` stays open, and so locked, across the exec.
pub(super) fn become_agent(sockets: &GuestSockets, scratch: File) -> anyhow::Result<Infallible> {
    fcntl(&scratch, FcntlArg::F_SETFD(FdFlag::empty()))?;
    // The file cannot be written to a folder and run from there: another thread's fork would hold it
    // open for writing ("text file busy"). A memory file has no such window.
    let mut agent = File::from(memfd_create(c"iii-agent", MFdFlags::MFD_CLOEXEC)?);
    agent.write_all(AGENT)?;
    let error = Command::new(format!("/proc/self/fd/{}", agent.as_raw_fd()))
        .env(AGENT_SOCKET_ENV, &sockets.control)
        .env(SESSION_SOCKET_ENV, &sockets.sessions)
        .exec();
    Err(error.into())
}

//! What differs between the guest's first process and the plain process of test builds.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use iii_protocol::guest::BootPlan;

use crate::engine::EngineDoor;
use crate::error::StartError;
use crate::fork::Limit;
use crate::user::Identity;

/// Every worker has this folder.
pub(crate) const WORKSPACE: &str = "/workspace";

/// Where the agent lives. Everything else is shared by both kinds.
pub(crate) trait Platform {
    /// Connects to the shim.
    fn connect(&self) -> io::Result<File>;

    /// What can be done while the boot plan is on its way.
    fn prepare(&mut self) -> Result<(), StartError>;

    /// Makes the root file system and all that the workload finds in place.
    fn enter(&mut self, plan: &BootPlan) -> Result<(), StartError>;

    /// Whom to run the workload as; `None` stays who the agent is.
    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError>;

    /// What the workload's launch does beyond the plan.
    fn launch_settings(&self) -> LaunchSettings;

    /// Listens for sessions; `None` where there are none. A connection is one session.
    fn listen(&self) -> io::Result<Option<OwnedFd>>;

    /// Listens on `port` where programs look for their engine; `None` where they find the engine itself there.
    fn engine_door(&self, port: u16) -> io::Result<Option<EngineDoor>>;

    /// What the sessions' threads need of the platform.
    fn session_host(&self) -> Arc<dyn SessionHost>;

    /// Sends SIGKILL to every process but the agent. May have to be repeated while children still end.
    fn kill_everything(&self);

    /// Sends SIGKILL to the workload's processes, however they forked, and to no session's. Returns whether there
    /// was none. `leader` is the workload's first process, which may have ended.
    fn kill_workload(&self, leader: u32) -> bool;

    /// Takes away what an ended workload has left of its confinement, so that another one can be started.
    fn renew_workload(&mut self);

    /// How many processes the kernel has killed so far because memory ran out.
    fn oom_kills(&self) -> u64;

    /// Brings everything written onto the disks.
    fn flush(&self);

    /// Ends the machine, or the process. Returns only when that failed.
    fn power_off(&self);
}

/// The platform as the sessions' threads see it.
pub(crate) trait SessionHost: Send + Sync {
    /// Whether this connection may be a session: whoever may not be is another process of the guest.
    fn admits(&self, connection: &OwnedFd) -> bool;

    /// Whom to run a session as; `None` stays who the agent is.
    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError>;

    /// Where a session runs that names no folder.
    fn default_cwd(&self) -> &'static str;

    /// Makes what holds the processes of the session with this number together.
    fn confine(&self, session: u64) -> Result<Box<dyn Confinement>, StartError>;
}

/// What holds a session's processes together, however they fork. Dropping it leaves nothing behind, once
/// the processes are gone.
pub(crate) trait Confinement: Send + Sync {
    /// What makes a new process one of the session.
    fn launch_settings(&self) -> LaunchSettings;

    /// Process ids of all processes of the session.
    fn members(&self) -> Vec<i32>;

    /// Sends SIGKILL to all of them. Returns whether there was none.
    fn kill(&self) -> bool;
}

/// The platform's part of a [`crate::launch::Launch`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LaunchSettings {
    /// The `cgroup.procs` file the process enters by.
    pub(crate) cgroup_procs: Option<PathBuf>,
    /// Limits it takes on.
    pub(crate) limits: Vec<Limit>,
    /// Whether the process dies with the thread of the agent that started it.
    pub(crate) die_with_agent: bool,
}

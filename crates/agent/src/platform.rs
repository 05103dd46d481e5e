//! What differs between the guest's first process and the plain process of test builds.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use iii_protocol::guest::BootPlan;

use crate::error::StartError;
use crate::user::Identity;

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

    /// What the exec stage does beyond the plan.
    fn stage(&self) -> StageSettings;

    /// Sends SIGKILL to every process but the agent. May have to be repeated while children still end.
    fn kill_everything(&self);

    /// How many processes the kernel has killed so far because memory ran out.
    fn oom_kills(&self) -> u64;

    /// Brings everything written onto the disks.
    fn flush(&self);

    /// Ends the machine, or the process. Returns only when that failed.
    fn power_off(&self);
}

/// The platform's part of the exec stage's plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StageSettings {
    /// The `cgroup.procs` file the workload enters by.
    pub(crate) cgroup_procs: Option<PathBuf>,
    /// Limit of open files, soft and hard.
    pub(crate) open_files: Option<u64>,
    /// Whether the workload dies with the agent.
    pub(crate) die_with_agent: bool,
}

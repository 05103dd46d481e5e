//! The exec stage: the agent's own binary, started once more between the agent and the workload.
//!
//! What has to happen in the new process before `execve` (session, groups, user, signals) is not possible
//! between `fork` and `execve` without unsafe code, so the agent starts itself under the name
//! [`STAGE_NAME`] and the stage turns itself into the workload. Its standard input is one end of a socket
//! pair: the plan comes in over it and an error goes back. That end is closed by a successful `execve`, so
//! "end of stream without an error" is how the agent knows that the workload runs. Nothing of the plan is
//! ever in the arguments or the environment of the stage.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::error::StartError;
use crate::explain;
use crate::sys;
use crate::user::Identity;

/// Argument zero that makes the binary a stage.
pub(crate) const STAGE_NAME: &str = "iii-agent-exec";
/// Searched when the environment has no `PATH`: the default of Docker.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The workload's first umask.
const UMASK: u32 = 0o022;
/// Status of a stage that failed; nobody reads it.
const FAILED: i32 = 127;

/// Everything the stage has to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StagePlan {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment, no name twice.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory, existing.
    pub(crate) cwd: String,
    /// User and groups to take on; `None` keeps those of the agent.
    pub(crate) identity: Option<Identity>,
    /// The `cgroup.procs` file to enter by.
    pub(crate) cgroup_procs: Option<PathBuf>,
    /// Limit of open files, soft and hard.
    pub(crate) open_files: Option<u64>,
    /// Die when the agent dies: for an agent that is not the first process.
    pub(crate) die_with_agent: bool,
}

/// Becomes the workload, or reports why not and ends. Never returns.
pub(crate) fn main() -> ! {
    // Without its socket the stage was not started by the agent, and there is nobody to tell.
    let Ok(mut agent) = take_socket() else { std::process::exit(FAILED) };
    let error = match become_workload(&mut agent) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let report = serde_json::to_vec(&error).unwrap_or_default();
    let _ = agent.write_all(&report);
    std::process::exit(FAILED)
}

/// Moves the socket from standard input to a descriptor that `execve` closes.
fn take_socket() -> io::Result<File> {
    // The clone is close-on-exec and never one of the three standard descriptors.
    let moved = io::stdin().as_fd().try_clone_to_owned()?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    unistd::dup2_stdin(&null)?;
    Ok(File::from(moved))
}

fn become_workload(agent: &mut File) -> Result<std::convert::Infallible, StartError> {
    let failed = |message: &str| StartError::new("exec", format!("the agent's plan: {message}"));
    let mut plan = Vec::new();
    agent.read_to_end(&mut plan).map_err(|error| failed(&error.to_string()))?;
    let plan: StagePlan = serde_json::from_slice(&plan).map_err(|error| failed(&error.to_string()))?;

    if let Some(procs) = &plan.cgroup_procs {
        // 0 means the writing process (cgroups(7)).
        std::fs::write(procs, "0").map_err(|error| step("cgroup", procs.display(), error))?;
    }
    unistd::setsid().map_err(|error| step("session", "setsid", error))?;
    umask(Mode::from_bits_truncate(UMASK));
    if let Some(limit) = plan.open_files {
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
            .map_err(|error| step("limits", "open files", error))?;
    }
    // Entered while still root: the folder may be closed to the workload's user, as Docker allows.
    unistd::chdir(Path::new(&plan.cwd)).map_err(|error| step("working directory", &plan.cwd, error))?;
    if let Some(identity) = &plan.identity {
        take_on(identity).map_err(|error| step("user", identity.uid, error))?;
    }
    if plan.die_with_agent {
        // After the change of user, which would reset it.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| step("exec", "prctl", error))?;
    }
    sys::reset_signals();
    exec(&plan)
}

fn take_on(identity: &Identity) -> nix::Result<()> {
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    unistd::setgroups(&groups)?;
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)
}

fn exec(plan: &StagePlan) -> Result<std::convert::Infallible, StartError> {
    let argv = strings(plan.argv.iter().cloned())?;
    let env = strings(plan.env.iter().map(|(name, value)| format!("{name}={value}")))?;
    let search = plan.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let name = plan.argv.first().map(String::as_str).unwrap_or_default();
    let program = explain::look_up(name, search)?;
    let path = strings([program.display().to_string()])?.remove(0);
    Err(match unistd::execve(&path, &argv, &env) {
        Ok(never) => match never {},
        Err(errno) => explain::explain(&program, errno),
    })
}

fn strings(items: impl IntoIterator<Item = String>) -> Result<Vec<CString>, StartError> {
    items
        .into_iter()
        .map(|item| {
            // The text is not shown: it may be a secret of the environment.
            CString::new(item)
                .map_err(|_| StartError::new("exec", "an argument or a variable contains a zero byte"))
        })
        .collect()
}

fn step(what: &str, subject: impl std::fmt::Display, error: impl Into<io::Error>) -> StartError {
    let error: io::Error = error.into();
    let reason = match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    };
    StartError::new(what, format!("{subject}: {reason}"))
}

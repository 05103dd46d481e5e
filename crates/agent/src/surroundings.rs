//! The agent as a plain process, for the process launcher of test builds: no mounts, no host name, no power.
//!
//! It is a subreaper, so the workload's orphans become its children and are found and ended like in a guest.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use iii_protocol::guest::{AGENT_SOCKET_ENV, BootPlan, RootPlan};
use nix::libc::SIGKILL;
use nix::sys::prctl;
use nix::unistd::geteuid;

use crate::error::StartError;
use crate::platform::{LaunchSettings, Platform};
use crate::sys;
use crate::user::{self, Identity};

/// The machine this process happens to run on.
#[derive(Debug)]
pub(crate) struct Surroundings {
    socket: PathBuf,
}

impl Surroundings {
    /// From the environment; `None` when this is not a process launcher's agent.
    pub(crate) fn from_env() -> Option<Surroundings> {
        std::env::var_os(AGENT_SOCKET_ENV).map(|socket| Surroundings { socket: socket.into() })
    }
}

impl Platform for Surroundings {
    fn connect(&self) -> io::Result<File> {
        Ok(File::from(OwnedFd::from(UnixStream::connect(&self.socket)?)))
    }

    fn prepare(&mut self) -> Result<(), StartError> {
        prctl::set_child_subreaper(true).map_err(|error| StartError::new("process", error.desc()))
    }

    fn enter(&mut self, plan: &BootPlan) -> Result<(), StartError> {
        match plan.root {
            RootPlan::Surroundings => Ok(()),
            RootPlan::Overlay { .. } => {
                Err(StartError::new("root disk", "a plain process cannot mount the root file system"))
            }
        }
    }

    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError> {
        if user.is_empty() || !geteuid().is_root() {
            return Ok(None);
        }
        let read = |path| fs::read(path).unwrap_or_default();
        user::resolve(user, &read("/etc/passwd"), &read("/etc/group"))
            .map(Some)
            .map_err(|error| StartError::new("user", error))
    }

    fn launch_settings(&self) -> LaunchSettings {
        LaunchSettings { die_with_agent: true, ..LaunchSettings::default() }
    }

    fn kill_everything(&self) {
        for pid in descendants(std::process::id(), &parents()) {
            // One that has ended meanwhile is as good as killed.
            let _ = sys::kill(pid.cast_signed(), SIGKILL);
        }
    }

    /// The count of the whole host says nothing about one process of it.
    fn oom_kills(&self) -> u64 {
        0
    }

    fn flush(&self) {}

    fn power_off(&self) {}
}

/// Parent of every process, from `/proc/<pid>/stat` (proc_pid_stat(5)).
fn parents() -> HashMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect()
}

/// The fourth field; the second is a name in parentheses that may itself hold blanks and parentheses.
fn parent(stat: &[u8]) -> Option<u32> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn descendants(root: u32, parents: &HashMap<u32, u32>) -> HashSet<u32> {
    let mut found = HashSet::new();
    let mut generation = HashSet::from([root]);
    while !generation.is_empty() {
        generation = parents
            .iter()
            .filter(|(pid, parent)| generation.contains(parent) && !found.contains(*pid) && **pid != root)
            .map(|(pid, _)| *pid)
            .collect();
        found.extend(&generation);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent(b"42 (a) b) c) S 7 42 42 0"), Some(7));
        assert_eq!(parent(b"42"), None);
    }

    #[test]
    fn descendants_are_those_below_only() {
        let parents = HashMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1), (13, 10)]);
        assert_eq!(descendants(10, &parents), HashSet::from([11, 12, 13]));
        assert_eq!(descendants(12, &parents), HashSet::new());
    }
}

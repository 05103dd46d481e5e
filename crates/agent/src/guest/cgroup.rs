//! The workload's cgroup (cgroup v2, cgroups(7)): to end all of it at once, and to know of memory kills.

use std::fs;
use std::path::PathBuf;

use crate::console;

const ROOT: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";
/// Counts the processes killed for want of memory since boot, with or without a memory controller.
const VMSTAT: &str = "/proc/vmstat";

/// The workload's leaf; absent when the kernel has no cgroup v2.
#[derive(Debug, Default)]
pub(super) struct Workload {
    exists: bool,
}

impl Workload {
    /// Makes the leaf, with memory accounting where the kernel has it.
    pub(super) fn make() -> Workload {
        // Without the controller there is no memory.events; the count of the whole guest does then.
        let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory");
        let exists = match fs::create_dir(WORKLOAD) {
            Ok(()) => true,
            Err(error) => {
                console::say(format_args!("going on without a cgroup for the workload: {error}"));
                false
            }
        };
        Workload { exists }
    }

    /// Where a process enters.
    pub(super) fn procs(&self) -> Option<PathBuf> {
        self.exists.then(|| PathBuf::from(format!("{WORKLOAD}/cgroup.procs")))
    }

    /// SIGKILL to all of it, forks in flight included.
    pub(super) fn kill(&self) {
        if self.exists {
            // An error means a kernel before 5.14; the caller signals every process besides.
            let _ = fs::write(format!("{WORKLOAD}/cgroup.kill"), "1");
        }
    }

    /// Processes of the workload killed for want of memory so far.
    pub(super) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(format!("{WORKLOAD}/memory.events")).ok();
        let counted = events.and_then(|text| counter(&text, "oom_kill"));
        counted.unwrap_or_else(|| {
            fs::read_to_string(VMSTAT).ok().and_then(|text| counter(&text, "oom_kill")).unwrap_or(0)
        })
    }
}

/// The value of `name` in lines of `name value`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_kills_are_read_by_their_exact_name() {
        let events = "low 0\nhigh 0\nmax 0\noom 4\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(counter(events, "oom_kill"), Some(3));
        assert_eq!(counter("nr_free_pages 1\noom_kill 12", "oom_kill"), Some(12));
        assert_eq!(counter("oom_killer 12\n", "oom_kill"), None);
    }
}

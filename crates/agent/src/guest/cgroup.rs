//! The cgroups (v2, cgroups(7)) of the workload and of each session: to end all of one at once, and to know
//! of the workload's memory kills.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc::SIGKILL;

use crate::console;
use crate::platform::{Confinement, LaunchSettings};
use crate::sys;

const ROOT: &str = "/sys/fs/cgroup";
const PROCS: &str = "cgroup.procs";
const KILL: &str = "cgroup.kill";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";
/// Beside the workload, so that what is killed in a session is not counted as the workload's.
const SESSIONS: &str = "/sys/fs/cgroup/sessions";
/// So many leaves in a row may be held by what cannot be killed.
const MAX_STUCK: usize = 16;
/// Counts the processes killed for want of memory since boot, with or without a memory controller.
const VMSTAT: &str = "/proc/vmstat";

/// The workload's leaf; absent when the kernel has no cgroup v2.
#[derive(Debug, Default)]
pub(super) struct Workload {
    folder: Option<PathBuf>,
}

impl Workload {
    /// Makes the leaf, with memory accounting where the kernel has it.
    pub(super) fn make() -> Workload {
        // Without the controller there is no memory.events; the count of the whole guest does then.
        let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory");
        Workload::make_at(Path::new(WORKLOAD))
    }

    fn make_at(folder: &Path) -> Workload {
        let folder = match fs::create_dir(folder) {
            Ok(()) => Some(folder.to_owned()),
            Err(error) => {
                console::say(format_args!("going on without a cgroup for the workload: {error}"));
                None
            }
        };
        Workload { folder }
    }

    /// Makes another leaf for another start. A workload may have divided its own into groups, with controllers for
    /// them, and the kernel lets no process into one that is divided (EBUSY).
    pub(super) fn renew(&mut self) {
        let Some(folder) = self.folder.take() else { return };
        remove(&folder);
        let name = folder.file_name().unwrap_or_default();
        // One that holds a process which cannot be killed stays, and is left to it.
        let mut next = folder.clone();
        for number in 2..=MAX_STUCK {
            if !next.exists() {
                break;
            }
            next = folder.with_file_name(format!("{}-{number}", name.display()));
        }
        *self = Workload::make_at(&next);
    }

    /// Where a process enters.
    pub(super) fn procs(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(PROCS))
    }

    /// SIGKILL to all of it, forks in flight included.
    pub(super) fn kill(&self) {
        if let Some(folder) = &self.folder {
            // An error means a kernel before 5.14; the caller signals every process besides.
            let _ = fs::write(folder.join(KILL), "1");
        }
    }

    /// Whether nobody is in it; `None` where there is no such leaf.
    pub(super) fn is_empty(&self) -> Option<bool> {
        self.folder.as_deref().map(is_empty)
    }

    /// Processes of the workload killed for want of memory so far.
    pub(super) fn oom_kills(&self) -> u64 {
        let events = self.folder.as_ref().and_then(|it| fs::read_to_string(it.join("memory.events")).ok());
        let counted = events.and_then(|text| counter(&text, "oom_kill"));
        counted.unwrap_or_else(|| {
            fs::read_to_string(VMSTAT).ok().and_then(|text| counter(&text, "oom_kill")).unwrap_or(0)
        })
    }
}

/// A session's leaf, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    folder: PathBuf,
    settings: LaunchSettings,
}

impl Session {
    /// Makes the leaf of the session with this number; its processes take on `settings` too.
    pub(super) fn make(number: u64, settings: LaunchSettings) -> io::Result<Session> {
        Session::make_in(Path::new(SESSIONS), number, settings)
    }

    fn make_in(parent: &Path, number: u64, mut settings: LaunchSettings) -> io::Result<Session> {
        let folder = parent.join(number.to_string());
        fs::create_dir_all(&folder)?;
        settings.cgroup_procs = Some(folder.join(PROCS));
        Ok(Session { folder, settings })
    }

    fn is_empty(&self) -> bool {
        is_empty(&self.folder)
    }
}

fn is_empty(folder: &Path) -> bool {
    let events = fs::read_to_string(folder.join("cgroup.events"));
    // Gone is empty.
    events.ok().and_then(|text| counter(&text, "populated")).is_none_or(|populated| populated == 0)
}

impl Confinement for Session {
    fn launch_settings(&self) -> LaunchSettings {
        self.settings.clone()
    }

    fn members(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for folder in below(&self.folder) {
            let procs = fs::read_to_string(folder.join(PROCS)).unwrap_or_default();
            // 0 is a process of another namespace, which has no number here.
            found.extend(procs.lines().filter_map(|line| line.parse().ok()).filter(|&pid: &i32| pid > 0));
        }
        found
    }

    fn kill(&self) -> bool {
        if self.is_empty() {
            return true;
        }
        if fs::write(self.folder.join(KILL), "1").is_err() {
            // A kernel before 5.14; forks in flight are met the next time.
            for pid in self.members() {
                let _ = sys::kill(pid, SIGKILL);
            }
        }
        false
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Removes a leaf, with the groups that its processes have made in it; the deepest goes first.
fn remove(folder: &Path) {
    for folder in below(folder).iter().rev() {
        if let Err(error) = fs::remove_dir(folder) {
            console::say(format_args!("{} stays: {error}", folder.display()));
        }
    }
}

/// The folder and all below it, each before its children.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let children: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
        found.extend(children);
        next += 1;
    }
    found
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

    /// Where this host has cgroups of version 2, if this user may make some.
    fn version_2(test: &str) -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        let folder =
            Path::new(mount.split(' ').nth(1)?).join(format!("iii-test-{test}-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        Some(folder)
    }

    #[test]
    fn a_sessions_leaf_holds_kills_and_removes_all_of_it() {
        let Some(parent) = version_2("session") else {
            eprintln!("SKIPPED: no cgroups of version 2 to write to");
            return;
        };
        let leaf = Session::make_in(&parent, 7, LaunchSettings::default()).expect("a leaf");
        assert!(leaf.kill() && leaf.members().is_empty(), "nobody is in it yet");
        let procs = leaf.launch_settings().cgroup_procs.expect("a way in");
        let mut inner = std::process::Command::new("sh");
        // In a group of its own below, where the leaf itself has no process.
        let inside = parent.join("7/inside");
        fs::create_dir(&inside).expect("a group of its own");
        let script = format!(
            "echo 0 > {}; (sleep 600 & echo 0 > {}/{PROCS}; exec sleep 600)",
            procs.display(),
            inside.display()
        );
        let mut child = inner.args(["-c", &script]).spawn().expect("sh");
        while leaf.members().len() < 3 {
            assert!(child.try_wait().expect("status").is_none(), "it cannot enter");
            std::thread::yield_now();
        }
        assert!(!leaf.kill());
        child.wait().expect("it is killed");
        // The others are children of whoever reaps orphans here.
        while !leaf.kill() {
            std::thread::yield_now();
        }
        drop(leaf);
        assert!(!parent.join("7").exists());
        fs::remove_dir(&parent).expect("empty");
    }

    #[test]
    fn a_workload_that_divided_its_leaf_gets_another_one_that_takes_processes() {
        let Some(parent) = version_2("workload") else {
            eprintln!("SKIPPED: no cgroups of version 2 to write to");
            return;
        };
        let mut workload = Workload::make_at(&parent.join("workload"));
        let procs = workload.procs().expect("a way in");
        fs::create_dir_all(parent.join("workload/a/b")).expect("groups of its own");
        // What makes the kernel refuse processes; without such a controller only the groups are in the way.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+pids");
        let _ = fs::write(parent.join("workload/cgroup.subtree_control"), "+pids");
        assert_eq!(workload.is_empty(), Some(true));
        workload.renew();
        assert!(!parent.join("workload/a").exists());
        assert_eq!(workload.procs(), Some(procs.clone()), "under the same name");
        let script = format!("echo 0 > {} && exec sleep 600", procs.display());
        let mut child = std::process::Command::new("sh").args(["-c", &script]).spawn().expect("sh");
        while workload.is_empty() == Some(true) {
            assert!(child.try_wait().expect("status").is_none(), "it cannot enter");
            std::thread::yield_now();
        }
        // One that holds somebody stays.
        workload.renew();
        assert!(workload.procs().is_some_and(|other| other != procs));
        child.kill().expect("alive");
        child.wait().expect("killed");
        for leaf in ["workload", "workload-2"] {
            remove(&parent.join(leaf));
        }
        fs::remove_dir(&parent).expect("empty");
    }
}

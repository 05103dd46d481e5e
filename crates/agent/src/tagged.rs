//! A session's processes held together without a cgroup: every one of them carries a mark.
//!
//! The mark has to pass on to every descendant, also to one that left its session and whose parents are gone,
//! and it must not be seen by ordinary programs. A limit of resources does that: of `RLIMIT_MSGQUEUE`, the hard
//! value is the session's own, a little below the usual one, and the soft value is the agent's own.
//! `/proc/<pid>/limits` tells both.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::libc::{RLIMIT_MSGQUEUE, SIGKILL};
use nix::sys::resource::{Resource, getrlimit};

use crate::fork::Limit;
use crate::platform::{Confinement, LaunchSettings};
use crate::sys;

/// So many sessions have marks of their own at a time.
const MARKS: u64 = 16 * 1024;
/// The line of `/proc/<pid>/limits` (proc_pid_limits(5)).
const LINE: &str = "Max msgqueue size";
/// So often all processes are looked through at most, on a machine where some always end meanwhile.
const LOOKS: usize = 2;
/// Taken for "unlimited".
const MOST: u64 = 1 << 30;

/// The processes of each mark, as they were at one time. Sessions that ask together are answered by one look.
#[derive(Debug, Default)]
pub(crate) struct Census(Mutex<Option<(Instant, Marked)>>);

/// Process ids by mark.
type Marked = HashMap<Mark, Vec<i32>>;

/// Soft and hard value.
type Mark = (u64, u64);

impl Census {
    /// The processes with this mark, at a time after the call.
    fn members(&self, mark: Mark) -> Vec<i32> {
        let asked = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, marks) = match last.take() {
            Some((at, marks)) if at > asked => last.insert((at, marks)),
            _ => last.insert((Instant::now(), marked())),
        };
        marks.get(&mark).cloned().unwrap_or_default()
    }
}

/// All processes there are, by their mark.
fn marked() -> Marked {
    look_again(process_ids, mark)
}

/// Reads the `mark` of every process that `list` names.
///
/// One that ends between the two may have started another one that the list does not have yet, and with nobody
/// found a session counts as ended. So there is another look then, until one has met everybody it named.
fn look_again(list: impl Fn() -> Vec<i32>, mark: impl Fn(i32) -> io::Result<Option<Mark>>) -> Marked {
    let mut found = Marked::new();
    for _ in 0..LOOKS {
        found.clear();
        let mut all_met = true;
        for pid in list() {
            match mark(pid) {
                Ok(Some(mark)) => found.entry(mark).or_default().push(pid),
                Ok(None) => {}
                Err(_) => all_met = false,
            }
        }
        if all_met {
            break;
        }
    }
    found
}

fn process_ids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The mark of one session.
#[derive(Debug)]
pub(crate) struct Tagged {
    mark: Mark,
    settings: LaunchSettings,
    census: Arc<Census>,
}

impl Tagged {
    /// Of the session with this number; its processes take on `settings` too.
    pub(crate) fn new(session: u64, mut settings: LaunchSettings, census: Arc<Census>) -> Tagged {
        let usual = getrlimit(Resource::RLIMIT_MSGQUEUE).map_or(MOST, |(_, hard)| hard.min(MOST));
        let hard = usual.saturating_sub(1 + session % MARKS);
        let soft = u64::from(std::process::id()) % (hard / 2).max(1);
        settings.limits.push(Limit { resource: RLIMIT_MSGQUEUE, soft, hard });
        Tagged { mark: (soft, hard), settings, census }
    }
}

impl Confinement for Tagged {
    fn launch_settings(&self) -> LaunchSettings {
        self.settings.clone()
    }

    fn members(&self) -> Vec<i32> {
        self.census.members(self.mark)
    }

    fn kill(&self) -> bool {
        let members = self.members();
        for &pid in &members {
            // One that has ended meanwhile is as good as killed.
            let _ = sys::kill(pid, SIGKILL);
        }
        members.is_empty()
    }
}

/// Sends SIGKILL to every descendant of this process.
pub(crate) fn kill_descendants() {
    for pid in descendants(std::process::id(), &parents()) {
        let _ = sys::kill(pid.cast_signed(), SIGKILL);
    }
}

/// Fails when the process is gone.
fn mark(pid: i32) -> io::Result<Option<Mark>> {
    Ok(parse_mark(&fs::read_to_string(format!("/proc/{pid}/limits"))?))
}

/// Soft value, hard value, unit. `None` for one without limits, which has no mark.
fn parse_mark(limits: &str) -> Option<Mark> {
    let values = limits.lines().find_map(|line| line.strip_prefix(LINE))?;
    let mut values = values.split_ascii_whitespace().map(str::parse);
    Some((values.next()?.ok()?, values.next()?.ok()?))
}

/// Parent of every process, from `/proc/<pid>/stat` (proc_pid_stat(5)).
fn parents() -> HashMap<u32, u32> {
    let known = |pid: i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid.cast_unsigned(), parent(&stat)?))
    };
    process_ids().into_iter().filter_map(known).collect()
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
    use std::cell::Cell;

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

    #[test]
    fn the_child_of_one_that_ended_during_the_look_is_found() {
        const MINE: Mark = (1, 2);
        let (looks, forked) = (Cell::new(0), Cell::new(false));
        let list = || {
            looks.set(looks.get() + 1);
            if forked.get() { vec![7, 31] } else { vec![7, 30] }
        };
        let mark = |pid| match pid {
            // It starts 31 and ends.
            30 => {
                forked.set(true);
                Err(io::ErrorKind::NotFound.into())
            }
            31 => Ok(Some(MINE)),
            _ => Ok(None),
        };
        let found = look_again(list, mark);
        assert_eq!(found, Marked::from([(MINE, vec![31])]));
        assert_eq!(looks.get(), 2, "the second look met everybody");
    }

    #[test]
    fn looking_ends_though_processes_always_end() {
        let looks = Cell::new(0);
        let list = || {
            looks.set(looks.get() + 1);
            vec![7, 30]
        };
        let mark = |pid| if pid == 7 { Ok(Some((1, 2))) } else { Err(io::ErrorKind::NotFound.into()) };
        let found = look_again(list, mark);
        assert_eq!((found, looks.get()), (Marked::from([((1, 2), vec![7])]), LOOKS));
    }

    #[test]
    fn the_mark_is_both_limits() {
        let limits = "Max pending signals       95832                95832                signals   \n\
            Max msgqueue size         4711                 819198               bytes     \n";
        assert_eq!(parse_mark(limits), Some((4711, 819_198)));
        let own = mark(std::process::id().cast_signed()).expect("this one lives").expect("it has limits");
        assert!(Census::default().members(own).contains(&std::process::id().cast_signed()));
    }
}

//! What is shown, beside what the system says.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use iii_protocol::api::{Desired, Phase, WorkerList, WorkerStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::bed::{Bed, Daemon};
use super::{Hit, Victim};
use crate::support::registry::digest;

/// A process's state letter and parent.
fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Whether it is there, and not merely waiting for its parent to hear of its end.
pub(super) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Whether there was somebody to kill.
pub(super) fn kill_9(pid: i32) -> bool {
    is_alive(pid) && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
}

/// The processes of this bed's machines, as the system knows them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Machines {
    pub(super) shims: Vec<i32>,
    /// The children of those.
    pub(super) vmms: Vec<i32>,
    /// Processes of this bed that belong to no shim: daemons, pulls, and whatever should not be there.
    others: Vec<i32>,
}

impl Machines {
    pub(super) fn of(bed: &Bed) -> Machines {
        let alive: Vec<_> = bed.processes().into_iter().filter(|pid| is_alive(*pid)).collect();
        let shims: Vec<_> = bed.processes_named("__shim").into_iter().filter(|pid| is_alive(*pid)).collect();
        let is_of_a_shim = |mut pid: i32| {
            loop {
                match stat(pid) {
                    Some(_) if shims.contains(&pid) => return true,
                    Some((_, parent)) if parent > 1 => pid = parent,
                    _ => return false,
                }
            }
        };
        let (inside, others): (Vec<i32>, Vec<i32>) = alive.into_iter().partition(|pid| is_of_a_shim(*pid));
        let is_vmm = |pid: &i32| stat(*pid).is_some_and(|(_, parent)| shims.contains(&parent));
        let vmms = inside.into_iter().filter(is_vmm).collect();
        Machines { shims, vmms, others }
    }

    /// The shim and the VMM of the only machine, if there is one.
    pub(super) fn only(&self, context: &str) -> Option<(i32, i32)> {
        match (self.shims.as_slice(), self.vmms.as_slice()) {
            ([], []) => None,
            ([shim], [vmm]) => Some((*shim, *vmm)),
            _ => panic!("{context}: before anything was killed there is {self:?}"),
        }
    }
}

/// Looks again until what it sees is as it has to be; else says what it saw last.
fn look<T>(bed: &Bed, context: &str, mut see: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match see() {
            Ok(seen) => return seen,
            Err(wrong) => assert!(started.elapsed() < bed.patience(), "{context}: {wrong}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `iii worker list`, as it is answered now. While a daemon is dying it may say so.
fn list(bed: &Bed) -> Result<WorkerStatus, String> {
    let run = bed.iii(&["worker", "list", "--json"]);
    if run.code != Some(0) {
        return Err(run.stderr);
    }
    let list: WorkerList = serde_json::from_str(&run.text()).unwrap();
    let [web] = list.workers.as_slice() else { panic!("not one worker: {list:?}") };
    Ok(web.clone())
}

/// Waits until nothing changes any more by itself; then list, status, processes and sockets tell the same.
pub(super) fn settled(bed: &Bed, daemon: &Daemon, context: &str) -> WorkerStatus {
    let daemon = i32::try_from(daemon.pid()).unwrap();
    look(bed, context, || {
        let listed = list(bed)?;
        let machines = Machines::of(bed);
        let Some(status) = bed.status("web") else { return Err("no status".to_owned()) };
        if status != listed {
            return Err(format!("it changes: {listed:#?}, then {status:#?}"));
        }
        let pid = |pid: Option<u32>| pid.map(|pid| i32::try_from(pid).unwrap());
        let shown = Machines {
            shims: pid(status.shim_pid).into_iter().collect(),
            vmms: pid(status.vmm_pid).into_iter().collect(),
            others: vec![daemon],
        };
        let sockets = machine_sockets(bed);
        let is_as_wanted = match status.desired {
            Desired::Running => status.phase == Phase::Running && shown.vmms.len() == 1,
            Desired::Stopped => {
                status.phase == Phase::Stopped && shown.shims.is_empty() && sockets.is_empty()
            }
        };
        if is_as_wanted && shown == machines {
            Ok(status)
        } else {
            Err(format!("{machines:?}, sockets {sockets:?}, and shown is {status:#?}"))
        }
    })
}

/// The sockets of this bed's machines.
fn machine_sockets(bed: &Bed) -> Vec<std::path::PathBuf> {
    let is_machines = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|e| e == "sock") && !path.ends_with("iii.sock")
    };
    bed.files().into_iter().filter(is_machines).collect()
}

/// Without a daemon: pulls end with it, and list says `running` as long as there is a shim, and no longer.
pub(super) fn told_offline(bed: &Bed, context: &str) {
    look(bed, context, || {
        let before = Machines::of(bed);
        let listed = list(bed)?;
        let after = Machines::of(bed);
        let expected = if after.shims.is_empty() { Phase::Stopped } else { Phase::Running };
        let pulls = bed.processes_named("__pull");
        match before.shims == after.shims && listed.phase == expected && pulls.is_empty() {
            true => Ok(()),
            false => Err(format!("{before:?}, then {after:?}, pulls {pulls:?}, and listed is {listed:#?}")),
        }
    });
}

/// The changes of a worker's status, as the daemon tells them.
pub(super) struct Events(Receiver<WorkerStatus>);

impl Events {
    /// From now on, and until the daemon ends.
    pub(super) fn of(bed: &Bed, worker: &str) -> Events {
        let mut stream = UnixStream::connect(bed.socket().unwrap()).unwrap();
        write!(stream, "GET /v1/workers/{worker}/watch HTTP/1.0\r\nHost: iii\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines();
        let head = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty());
        assert!(head.collect::<String>().contains(" 200"), "nobody can watch `{worker}`");
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(status) = serde_json::from_str(&line) else { return };
                if sender.send(status).is_err() {
                    return;
                }
            }
        });
        Events(events)
    }

    /// Waits for the event that tells of the end of what was killed, and why it ended.
    pub(super) fn tell_the_end_of(&self, hit: &Hit, victim: Victim, patience: Duration, context: &str) {
        let deadline = Instant::now() + patience;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(status) = self.0.recv_timeout(left) else {
                panic!("{context}: the end of generation {} is never told: {seen:#?}", hit.generation);
            };
            if let Some(exit) = status.exits.iter().find(|exit| exit.generation == hit.generation) {
                assert!(victim.is_told_by(exit), "{context}: {exit:?} is not what happened");
                assert!(!hit.is_shown_in(&status), "{context}: it shows a dead process: {status:#?}");
                return;
            }
            seen.push((status.phase, status.generation, status.shim_pid, status.vmm_pid));
        }
    }

    /// Nothing that was told since then names the dead process.
    pub(super) fn never_show(&self, hit: &Hit, context: &str) {
        for status in self.0.try_iter() {
            assert!(!hit.is_shown_in(&status), "{context}: it shows a dead process: {status:#?}");
        }
    }
}

impl Hit {
    fn is_shown_in(&self, status: &WorkerStatus) -> bool {
        let pid = u32::try_from(self.pid).ok();
        status.shim_pid == pid || status.vmm_pid == pid
    }
}

/// What counts as pulled is what its digest says, and each root disk that counts is a sound file system.
pub(super) fn images_are_whole(bed: &Bed, context: &str) {
    let named = |path: &std::path::Path, extension: &str| {
        (path.extension().unwrap_or_default() == extension).then(|| path.file_stem().unwrap().to_owned())
    };
    let files = bed.files();
    for path in files.iter().filter(|path| path.parent().unwrap().ends_with("blobs/sha256")) {
        if path.extension().is_none() {
            let expected = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(digest(&fs::read(path).unwrap()), format!("sha256:{expected}"), "{context}");
        }
    }
    let mut disks = 0;
    for path in files.iter().filter(|path| path.parent().unwrap().ends_with("images")) {
        let Some(hex) = named(path, "json") else { continue };
        let disk = path.with_file_name(hex).with_extension("erofs");
        let checked = Command::new("fsck.erofs").arg(&disk).output().unwrap();
        assert!(checked.status.success(), "{context}: {}: {checked:?}", disk.display());
        disks += 1;
    }
    assert!(disks > 0, "{context}: no image at all");
}

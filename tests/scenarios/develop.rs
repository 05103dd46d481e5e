//! The develop loop: an edit is brought into the running machine, and no machine is started for it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Child;

use iii_protocol::api::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::bed::{Bed, shell_layer};
use crate::support::registry::image;

/// Serves until it is asked to end; a greeting of `crash` ends it by itself.
const START: &str = "trap 'echo bye; exit 0' TERM; grep -q crash greeting && exit 7; echo serving $(cat greeting); \
                     while :; do sleep 1 & wait $!; done";
/// What makes the kernel refuse the next process of the same group (EBUSY); only a machine has such groups.
const DIVIDE: &str = "g=/sys/fs/cgroup$(grep -o '/.*' /proc/self/cgroup); mkdir $g/part && echo 0 > $g/part/cgroup.procs \
                      && echo +memory > $g/cgroup.subtree_control && echo divided; ";

/// A project, with `watch` or without.
struct Developed {
    bed: Bed,
    folder: PathBuf,
}

impl Developed {
    fn new(watch: bool, install: &str) -> Developed {
        let bed = Bed::new();
        let base = bed.push("base", &image(&[shell_layer()], json!({})));
        let folder = bed.project().join("app");
        fs::create_dir(&folder).unwrap();
        let (boot, before) = match bed.is_process_tier() {
            true => ("30s", ""),
            false => ("120s", DIVIDE),
        };
        bed.write_config(&format!(
            "workers:\n  - name: app\n    worker_path: {}\n    watch: {watch}\n    boot_timeout: {boot}\n",
            folder.display()
        ));
        let developed = Developed { bed, folder };
        developed.write("greeting", "hello");
        developed.write("requirements.txt", "a==1\n");
        developed.write(
            "iii.worker.yaml",
            &format!(
                "name: app\nruntime: {{kind: python, base_image: '{base}'}}\nresources: {{memory: 256, cpus: 1}}\n\
                 scripts:\n  setup: ''\n  install: {install}\n  start: \"{before}{START}\"\n"
            ),
        );
        developed
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    fn events(&self) -> String {
        self.bed.ok(&["worker", "logs", "--events", "app"])
    }

    /// How often the log holds a text.
    fn logged(&self, text: &str) -> usize {
        self.bed.ok(&["worker", "logs", "app"]).matches(text).count()
    }
}

/// `iii worker dev`, and the file that it writes to.
struct Dev {
    child: Child,
    out: PathBuf,
}

impl Dev {
    fn start(bed: &Bed) -> Dev {
        let out = bed.project().join("dev.out");
        let file = File::create(&out).unwrap();
        let mut command = bed.command(&["worker", "dev", "app"]);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Dev { child, out }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // One that has ended is as good.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn an_edit_restarts_the_workload_in_the_machine_that_runs() {
    let developed = Developed::new(true, "cat requirements.txt");
    symlink("/etc/passwd", developed.folder.join("outside")).unwrap();
    let bed = &developed.bed;
    let daemon = bed.daemon();
    let before = bed.wait_phase("app", Phase::Running);
    bed.wait_log("app", "serving hello");
    let session = bed.ok(&["worker", "exec", "--detach", "app", "--", "/bin/sh", "-c", "sleep 3600"]);
    assert!(!session.is_empty());
    developed.write("greeting", "changed");
    bed.wait_log("app", "serving changed");
    bed.wait_log("app", "bye");
    developed.write("requirements.txt", "a==2\n");
    bed.until("the install runs again", || {
        developed.events().contains("install runs (requirements.txt changed)")
    });
    bed.until("the daemon has a line for each restart", || {
        let restarts = daemon.output().matches("app  restarted in place").count();
        restarts >= 2 && restarts + 1 == developed.logged("serving ")
    });
    let after = bed.wait("app", "up to date", |s| s.detail.is_none() && s.phase == Phase::Running);
    assert_eq!((after.generation, after.vmm_pid, after.restarts), (before.generation, before.vmm_pid, 0));
    assert!(after.exits.is_empty());
    assert_eq!(developed.events().matches("outside").count(), 1, "{}", developed.events());
    if !bed.is_process_tier() {
        assert!(developed.logged("divided") >= 3, "its groups were in the way");
    }
}

#[test]
fn an_install_that_fails_leaves_the_old_workload_until_an_edit_mends_it() {
    let developed = Developed::new(false, "echo looking; test ! -e broken");
    let bed = &developed.bed;
    let _daemon = bed.daemon();
    let before = bed.wait_phase("app", Phase::Running);
    let mut dev = Dev::start(bed);
    bed.until("it is followed", || dev.said().contains("its files are followed"));
    developed.write("broken", "");
    // Nothing that comes later may be met by an install without it.
    bed.until("it is there", || dev.said().contains("app: restarted in place"));
    developed.write("greeting", "late");
    developed.write("requirements.txt", "a==2\n");
    let status = bed.wait("app", "told", |s| {
        s.detail
            .as_ref()
            .is_some_and(|detail| detail.contains("not in force: install failed (exit code 1): `"))
    });
    assert_eq!((status.phase, status.vmm_pid), (Phase::Running, before.vmm_pid));
    for told in ["install failed (exit code 1): `echo looking; test", "next edit tries again"] {
        bed.until(told, || developed.events().contains(told) && dev.said().contains(told));
    }
    assert!(developed.events().contains("last lines:\nlooking"), "{}", developed.events());
    bed.until("what it wrote is shown as it comes", || dev.said().contains("install | looking\n"));
    assert!(!dev.said().contains("last lines:"), "and only then: {}", dev.said());
    fs::remove_file(developed.folder.join("broken")).unwrap();
    bed.wait_log("app", "serving late");
    bed.until("it is shown", || {
        dev.said().contains("serving late") && dev.said().contains("app: restarted in place")
    });
    let after = bed.wait("app", "mended", |s| s.detail.is_none() && s.phase == Phase::Running);
    assert_eq!((after.generation, after.restarts), (before.generation, 0));

    // Who leaves ends nothing.
    kill(Pid::from_raw(i32::try_from(dev.child.id()).unwrap()), Signal::SIGINT).unwrap();
    dev.child.wait().unwrap();
    assert_eq!(bed.status("app").unwrap().phase, Phase::Running);
}

#[test]
fn a_crash_counts_as_ever_and_a_restart_in_place_never_does() {
    let developed = Developed::new(true, "echo installed");
    let bed = &developed.bed;
    let _daemon = bed.daemon();
    bed.wait_log("app", "serving hello");
    developed.write("greeting", "crash");
    let crashed = bed.wait("app", "restarted by its policy", |s| s.restarts > 0);
    assert_eq!(crashed.exits[0].cause.to_string(), "exit 7");
    assert!(!crashed.exits[0].requested);
    developed.write("greeting", "mended");
    bed.wait_log("app", "serving mended");
    let before = bed.wait("app", "up to date", |s| s.detail.is_none() && s.phase == Phase::Running);
    for greeting in ["one", "two"] {
        developed.write("greeting", greeting);
        bed.wait_log("app", &format!("serving {greeting}"));
    }
    let after = bed.wait("app", "up to date", |s| s.detail.is_none() && s.phase == Phase::Running);
    assert_eq!(
        (after.restarts, after.exits, after.generation),
        (before.restarts, before.exits, before.generation)
    );
}

#[test]
fn a_daemon_killed_during_an_edit_is_followed_by_one_that_brings_it_in() {
    let developed = Developed::new(true, "echo installed");
    let bed = &developed.bed;
    let daemon = bed.daemon();
    bed.wait_log("app", "serving hello");
    let before = bed.wait("app", "up to date", |s| s.detail.is_none() && s.phase == Phase::Running);
    developed.write("greeting", "half");
    daemon.kill();
    developed.write("greeting", "whole");
    let _daemon = bed.daemon();
    bed.wait_log("app", "serving whole");
    let after = bed.wait("app", "up to date", |s| s.detail.is_none() && s.phase == Phase::Running);
    assert_eq!((after.generation, after.vmm_pid, after.restarts), (before.generation, before.vmm_pid, 0));
    assert!(after.exits.is_empty());
}

#[test]
fn an_install_that_failed_is_tried_by_the_next_daemon_if_its_project_was_edited_meanwhile_and_else_left() {
    let developed = Developed::new(true, "echo tried; test -e fixed");
    let bed = &developed.bed;
    let daemon = bed.daemon();
    let failed = bed.wait_phase("app", Phase::Failed);
    // For a time so young that an edit may hide in it.
    daemon.kill();
    let daemon = bed.daemon();
    let found = bed.wait_phase("app", Phase::Failed);
    assert_eq!((found.generation, found.vmm_pid), (failed.generation, failed.vmm_pid));
    daemon.kill();
    developed.write("fixed", "");
    let _daemon = bed.daemon();
    bed.wait_log("app", "serving hello");
    assert_eq!(developed.events().matches("install runs (it has not finished yet)").count(), 2);
}

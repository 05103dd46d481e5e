//! Nothing is lost when something dies.

use iii_protocol::api::Phase;
use iii_protocol::exit::ExitCause;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bed::{Bed, shell_layer};
use super::lifecycle::{SERVE, web};
use crate::support::registry::image;

fn kill_pid(pid: Option<u32>) {
    kill(Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
}

/// Counts up for ever, so that a gap or a restart shows.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";

#[test]
fn kill_9_of_the_daemon_stops_no_worker_and_the_next_one_takes_over() {
    let bed = Bed::new();
    let count = bed.script_image("count", COUNT);
    let flaky = "mkdir -p /var/tmp; if [ -e $MARK ]; then exec sleep 1000; fi; touch $MARK; sync; exit 5";
    let flaky = bed.script_image("flaky", flaky);
    let mark = format!("/var/tmp/{}", bed.home().parent().unwrap().file_name().unwrap().to_str().unwrap());
    let count_name = "count";
    bed.configure(&[
        bed.entry(count_name, &count, &[]),
        bed.entry("flaky", &flaky, &[&format!("config: {{ MARK: {mark} }}")]),
    ]);
    let daemon = bed.daemon();
    let before = bed.wait_phase(count_name, Phase::Running);
    bed.wait("flaky", "restarted", |status| status.restarts == 1 && status.phase == Phase::Running);
    bed.wait_log(count_name, "3\n");
    daemon.kill();

    // Without a daemon: it goes on, and list says so.
    let list = bed.ok(&["worker", "list"]);
    assert!(list.contains("running"), "{list}");
    let seen = bed.ok(&["worker", "logs", count_name]).lines().count();
    bed.until("more output without a daemon", || {
        bed.ok(&["worker", "logs", count_name]).lines().count() > seen + 3
    });

    let _daemon = bed.daemon();
    let after = bed.wait_phase(count_name, Phase::Running);
    assert_eq!(after.generation, before.generation, "the same machine");
    assert_eq!(after.running_since, before.running_since);
    assert_eq!((after.shim_pid, after.vmm_pid), (before.shim_pid, before.vmm_pid));
    let flaky = bed.wait_phase("flaky", Phase::Running);
    assert_eq!((flaky.restarts, flaky.exits.len()), (1, 1), "counts and causes are kept");
    assert_eq!(flaky.exits[0].cause, ExitCause::Exit { code: 5 });
    // In the process tier the mark is on this machine's own disk.
    let _ = std::fs::remove_file(&mark);

    let last: u64 = bed.ok(&["worker", "logs", count_name, "-n", "1"]).trim().parse().unwrap();
    bed.wait_log(count_name, &format!("\n{}\n", last + 5));
    let log = bed.ok(&["worker", "logs", count_name]);
    let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(
        numbers.iter().zip(1..).all(|(got, want)| *got == want),
        "no line is lost or doubled: {numbers:?}"
    );
    bed.ok(&["worker", "stop", count_name]);
}

#[test]
fn a_machine_without_a_daemon_ends_after_the_orphan_grace() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let workers = bed.entry("web", &reference, &[]);
    bed.write_config(&format!("orphan_grace: 300ms\nworkers:\n{workers}"));
    let daemon = bed.daemon();
    bed.wait_log("web", "ready");
    daemon.kill();
    bed.until("the orphan has ended", || bed.processes().is_empty());
    assert!(bed.ok(&["worker", "logs", "web"]).ends_with("bye\n"), "it was asked politely");
    let list = bed.ok(&["worker", "list"]);
    assert!(!list.contains("running"), "{list}");
    let _daemon = bed.daemon();
    let status = bed.wait_phase("web", Phase::Running);
    assert_eq!(status.generation, 2);
    assert_eq!(status.exits[0].cause, ExitCause::Exit { code: 0 });
}

#[test]
fn a_workload_that_ends_while_no_daemon_is_there_is_not_forgotten() {
    let bed = Bed::new();
    let reference = bed.script_image("job", "echo begin; sleep 3; exit 6");
    bed.configure(&[bed.entry("job", &reference, &["restart: never"])]);
    let daemon = bed.daemon();
    bed.wait_log("job", "begin");
    daemon.kill();
    bed.until("the machine has ended", || bed.processes().is_empty());
    let _daemon = bed.daemon();
    let status = bed.wait("job", "known to have ended", |status| !status.exits.is_empty());
    assert!(status.exits.iter().any(|exit| exit.cause == ExitCause::Exit { code: 6 }), "{status:#?}");
}

#[test]
fn kill_9_of_a_shim_ends_its_machine_and_the_worker_comes_back() {
    let (bed, _, _daemon) = web();
    let before = bed.wait_phase("web", Phase::Running);
    kill_pid(before.shim_pid);
    let after = bed.wait("web", "back", |status| status.phase == Phase::Running && status.generation == 2);
    assert_eq!(after.exits[0].cause, ExitCause::ShimDied);
    assert_ne!(after.vmm_pid, before.vmm_pid);
    let vmm = i32::try_from(before.vmm_pid.unwrap()).unwrap();
    assert!(!bed.processes().contains(&vmm), "the old machine is gone");
}

#[test]
fn kill_9_of_a_vmm_is_vmm_died_and_the_worker_comes_back() {
    let (bed, _, _daemon) = web();
    let before = bed.wait_phase("web", Phase::Running);
    kill_pid(before.vmm_pid);
    let after = bed.wait("web", "back", |status| status.phase == Phase::Running && status.generation == 2);
    assert!(matches!(after.exits[0].cause, ExitCause::VmmDied { .. }), "{:?}", after.exits[0]);
    assert!(bed.ok(&["worker", "list"]).contains("vmm-died"));
}

#[test]
fn a_worker_that_left_the_config_while_no_daemon_was_there_is_stopped() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[]), bed.entry("other", &reference, &[])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    let other = bed.wait_phase("other", Phase::Running);
    daemon.kill();
    bed.configure(&[bed.entry("web", &reference, &["config: { NEW: value }"])]);
    let _daemon = bed.daemon();
    let shim = i32::try_from(other.shim_pid.unwrap()).unwrap();
    bed.until("the machine of the entry that is gone has ended", || !bed.processes().contains(&shim));
    bed.wait("web", "restarted with its new environment", |status| {
        status.phase == Phase::Running && status.generation == 2
    });
}

#[test]
fn kill_9_of_a_pull_is_tried_again_and_one_ends_with_its_daemon() {
    let bed = Bed::new();
    let built = image(&[shell_layer()], serde_json::json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] }));
    let reference = bed.push("web", &built);
    let gate = bed.registry.gate_after(&built.layers[0].digest(), 4096);
    bed.configure(&[bed.entry("web", &reference, &["restart: { delay: 10ms }"])]);
    let first = bed.daemon();
    bed.until("a pull is under way", || !bed.processes_named("__pull").is_empty());
    first.kill();
    bed.until("the pull has ended with its daemon", || bed.processes_named("__pull").is_empty());

    let daemon = bed.daemon();
    bed.until("another pull is under way", || !bed.processes_named("__pull").is_empty());
    for pid in bed.processes_named("__pull") {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    gate.open();
    bed.wait_phase("web", Phase::Running);
    assert!(daemon.output().contains("the process that pulls ended without a result"), "{}", daemon.output());
    assert!(bed.processes_named("__pull").is_empty(), "a pull that is done has left");
}

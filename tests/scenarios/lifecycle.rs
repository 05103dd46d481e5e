//! From an image to a running worker and away again.

use iii_protocol::api::{Desired, Phase, WorkerList, WorkerType};
use iii_protocol::exit::ExitCause;
use serde_json::json;

use super::bed::{Bed, Daemon, shell_layer};
use crate::support::registry::image;

/// A workload that says a word and stays until it is told to go.
pub const SERVE: &str = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done";

/// The running worker `web`, which does that, and the reference of its image.
pub(super) fn web() -> (Bed, String, Daemon) {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    (bed, reference, daemon)
}

#[test]
fn a_worker_is_added_without_a_daemon_and_runs_when_one_starts() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.ok(&["worker", "add", &reference]);
    let config = std::fs::read_to_string(bed.config()).unwrap();
    assert!(config.contains("name: web") && config.contains(&reference), "{config}");
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let daemon = bed.daemon();
    let status = bed.wait_phase("web", Phase::Running);
    assert_eq!(status.worker_type, WorkerType::Oci);
    assert_eq!((status.generation, status.restarts), (1, 0));
    assert!(status.image_digest.unwrap().starts_with("sha256:"));
    bed.wait_log("web", "ready\n");
    daemon.stop();
    assert!(bed.ok(&["worker", "logs", "web"]).ends_with("bye\n"), "the last words are kept");
    bed.assert_nothing_left();
}

#[test]
fn adding_with_a_daemon_starts_at_once_and_removing_takes_everything_away() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.write_config("# mine\nworkers:\n  # nothing yet\n");
    let _daemon = bed.daemon();
    bed.ok(&["worker", "add", &reference, "--name", "front"]);
    assert_eq!(bed.status("front").unwrap().phase, Phase::Running);
    let config = std::fs::read_to_string(bed.config()).unwrap();
    assert!(config.contains("# mine") && config.contains("# nothing yet"), "{config}");

    let list = bed.ok(&["worker", "list"]);
    let mut lines = list.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "TYPE", "STATUS", "UPTIME", "RESTARTS", "LAST-EXIT"]);
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["front", "OCI", "running"]);

    let again = bed.iii(&["worker", "add", &reference, "--name", "front"]);
    assert_eq!(again.code, Some(1), "{}", again.stderr);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);

    bed.ok(&["worker", "remove", "front", "--yes"]);
    let list: WorkerList = serde_json::from_str(&bed.ok(&["worker", "list", "--json"])).unwrap();
    assert!(list.workers.is_empty());
    assert!(!bed.home().join("managed/front").exists());
    assert!(bed.home().join("blobs/sha256").read_dir().unwrap().count() > 0, "layers stay");
}

#[test]
fn stop_start_and_restart_do_what_they_say_and_may_be_repeated() {
    let (bed, _, _daemon) = web();
    bed.wait_log("web", "ready");
    for _ in 0..2 {
        bed.ok(&["worker", "stop", "web"]);
        let status = bed.status("web").unwrap();
        assert_eq!((status.phase, status.desired), (Phase::Stopped, Desired::Stopped));
        assert_eq!(status.exits[0].cause, ExitCause::Exit { code: 0 });
        assert!(status.exits[0].requested);
        assert_eq!(status.exits.len(), 1);
    }
    for _ in 0..2 {
        bed.ok(&["worker", "start", "web"]);
        let status = bed.status("web").unwrap();
        assert_eq!((status.phase, status.generation), (Phase::Running, 2));
    }
    bed.ok(&["worker", "restart", "web"]);
    let status = bed.status("web").unwrap();
    assert_eq!((status.phase, status.generation, status.restarts), (Phase::Running, 3, 0));
    let unknown = bed.iii(&["worker", "stop", "wbe"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("web"), "{}", unknown.stderr);
}

#[test]
fn a_stopped_worker_stays_stopped_when_the_daemon_comes_back() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[]), bed.entry("other", &reference, &[])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    bed.ok(&["worker", "stop", "web"]);
    daemon.stop();
    let _daemon = bed.daemon();
    bed.wait_phase("other", Phase::Running);
    let status = bed.status("web").unwrap();
    assert_eq!((status.phase, status.desired), (Phase::Stopped, Desired::Stopped));
}

#[test]
fn the_workload_gets_the_images_and_the_entrys_environment() {
    let bed = Bed::new();
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["env; pwd; echo done; exec sleep 1000"],
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "FROM_IMAGE=1", "BOTH=image"],
        "WorkingDir": "/tmp",
    });
    let reference = bed.push("envy", &image(&[shell_layer()], config));
    let env = [
        "config:",
        "  BOTH: entry",
        "  nested: { inner: { deep: yes please } }",
        "  http_proxy: p",
        "  list: [1, two]",
        "  EXPANDED: ${III_TEST_SET}/x",
        "  DEFAULTED: ${III_TEST_UNSET:-fallback}",
        "  MONEY: 5$$",
    ];
    bed.configure(&[bed.entry("envy", &reference, &env)]);
    let _daemon = bed.daemon_with(&[("III_TEST_SET", "value")]);
    bed.wait_log("envy", "done\n");
    let log = bed.ok(&["worker", "logs", "envy"]);
    let lines: Vec<_> = log.lines().collect();
    for expected in [
        "FROM_IMAGE=1",
        "BOTH=entry",
        "NESTED_INNER_DEEP=yes please",
        "http_proxy=p",
        "HTTP_PROXY=p",
        "LIST=[1,\"two\"]",
        "EXPANDED=value/x",
        "DEFAULTED=fallback",
        "MONEY=5$",
        "III_WORKER_NAME=envy",
        "III_ISOLATION=libkrun",
        "/tmp",
    ] {
        assert!(lines.contains(&expected), "{expected} is missing in\n{log}");
    }
    assert!(
        !log.contains("III_HOME") && !log.contains("III_TEST_SET"),
        "the host's environment leaked:\n{log}"
    );
}

#[test]
fn a_workload_that_ignores_the_stop_signal_is_killed_after_its_grace() {
    let bed = Bed::new();
    let reference = bed.script_image("deaf", "trap '' TERM; echo ready; while :; do sleep 1000; done");
    bed.configure(&[bed.entry("deaf", &reference, &["stop_timeout: 300ms"])]);
    let _daemon = bed.daemon();
    bed.wait_log("deaf", "ready");
    bed.ok(&["worker", "stop", "deaf"]);
    let status = bed.status("deaf").unwrap();
    assert_eq!(status.exits[0].cause, ExitCause::Signal { signal: 9 });
}

#[test]
fn the_images_stop_signal_is_used() {
    let bed = Bed::new();
    let script = "trap 'echo got usr1; exit 3' USR1; trap 'echo got term; exit 4' TERM; echo ready; \
                  while :; do sleep 1 & wait $!; done";

    /// The running worker `web`, which does that, and the reference of its image.
    pub(super) fn web() -> (Bed, String, Daemon) {
        let bed = Bed::new();
        let reference = bed.script_image("web", SERVE);
        bed.configure(&[bed.entry("web", &reference, &[])]);
        let daemon = bed.daemon();
        bed.wait_phase("web", Phase::Running);
        (bed, reference, daemon)
    }
    let config = json!({ "Entrypoint": ["/bin/sh", "-c", script], "StopSignal": "SIGUSR1" });
    let reference = bed.push("polite", &image(&[shell_layer()], config));
    bed.configure(&[bed.entry("polite", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("polite", "ready");
    bed.ok(&["worker", "stop", "polite"]);
    assert_eq!(bed.status("polite").unwrap().exits[0].cause, ExitCause::Exit { code: 3 });
}

#[test]
fn two_workers_of_one_image_pull_and_build_it_once() {
    let bed = Bed::new();
    let built = image(&[shell_layer()], json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] }));
    let reference = bed.push("shared", &built);
    bed.configure(&[bed.entry("one", &reference, &[]), bed.entry("two", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_phase("one", Phase::Running);
    bed.wait_phase("two", Phase::Running);
    let digest = built.layers[0].digest();
    assert_eq!(bed.registry.bytes_served(&digest), built.layers[0].blob.len() as u64);
    let disks = std::fs::read_dir(bed.home().join("images")).unwrap().flatten();
    let disks = disks.filter(|entry| entry.path().extension().is_some_and(|e| e == "erofs")).count();
    assert_eq!(disks, 1);
}

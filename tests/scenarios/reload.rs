//! Edits of config.yaml while the daemon runs.

use std::time::{Duration, Instant};

use iii_protocol::api::{Phase, WorkerList};

use super::bed::Bed;
use super::lifecycle::{SERVE, web};

fn list(bed: &Bed) -> WorkerList {
    serde_json::from_str(&bed.get("/v1/workers").unwrap()).unwrap()
}

fn names(bed: &Bed) -> Vec<String> {
    list(bed).workers.into_iter().map(|worker| worker.name).collect()
}

/// What is promised of an edit, and of how many it is measured: on a busy machine a single one may be late.
const REFLECTED: Duration = Duration::from_secs(1);
const EDITS: usize = 9;

#[test]
fn list_reflects_an_edit_within_a_second() {
    let bed = Bed::new();
    // Nothing is to be started: only the list counts here.
    let reference = bed.registry.reference("never-pushed:latest");
    let _daemon = bed.daemon();
    let mut taken = Vec::new();
    for edit in 0..EDITS {
        let wanted: Vec<_> = (0..=edit % 3).map(|n| format!("w{edit}-{n}")).collect();
        bed.configure(&wanted.iter().map(|name| bed.entry(name, &reference, &[])).collect::<Vec<_>>());
        let edited = Instant::now();
        bed.until("list shows the edit and nothing else", || {
            let list: WorkerList = serde_json::from_str(&bed.ok(&["worker", "list", "--json"])).unwrap();
            list.workers.iter().map(|worker| &worker.name).eq(&wanted)
        });
        taken.push(edited.elapsed());
    }
    taken.sort_unstable();
    // An emulated host is slower than any promise.
    let in_time = taken[EDITS / 2] < REFLECTED;
    assert!(in_time || !bed.is_process_tier(), "half of the edits took longer: {taken:?}");
}

#[test]
fn an_edit_starts_what_is_new_stops_what_is_gone_and_restarts_only_what_changed() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let entry = |name: &str, more: &[&str]| bed.entry(name, &reference, more);
    bed.configure(&[entry("same", &[]), entry("changed", &[]), entry("gone", &[])]);
    let _daemon = bed.daemon();
    for name in ["same", "changed", "gone"] {
        bed.wait_phase(name, Phase::Running);
    }
    let before = bed.status("same").unwrap();
    bed.configure(&[
        entry("same", &["stop_timeout: 3s"]),
        entry("changed", &["config: { A: b }"]),
        entry("new", &[]),
    ]);
    bed.until("list shows the edit", || names(&bed).contains(&"new".to_owned()));
    bed.wait_phase("new", Phase::Running);
    bed.wait("changed", "restarted", |status| status.generation == 2 && status.phase == Phase::Running);
    bed.until("the one that is gone is not listed", || !names(&bed).contains(&"gone".to_owned()));
    let after = bed.status("same").unwrap();
    assert_eq!((after.generation, after.vmm_pid), (before.generation, before.vmm_pid), "left alone");
}

#[test]
fn an_editor_that_replaces_the_file_is_followed() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let _daemon = bed.daemon();
    for (round, name) in ["one", "two", "three"].into_iter().enumerate() {
        let swap = bed.project().join(format!(".config.yaml.swp{round}"));
        std::fs::write(&swap, format!("workers:\n{}", bed.entry(name, &reference, &[]))).unwrap();
        std::fs::rename(&swap, bed.config()).unwrap();
        bed.wait_phase(name, Phase::Running);
    }
}

#[test]
fn a_broken_file_changes_nothing_and_is_shown_until_it_is_mended() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let good = bed.entry("web", &reference, &[]);
    bed.configure(std::slice::from_ref(&good));
    let daemon = bed.daemon();
    let before = bed.wait_phase("web", Phase::Running);
    bed.write_config(&format!("workers:\n{good}    imagee: typo\n"));
    bed.until("list says what is wrong", || list(&bed).config_error.is_some());
    let error = list(&bed).config_error.unwrap();
    assert!(error.contains("imagee") && error.contains("image") && error.contains('^'), "{error}");
    // `workers:` comes before the entry, the mistake right after it.
    assert!(error.contains(&format!("config.yaml:{}:", good.lines().count() + 2)), "{error}");
    assert_eq!(bed.status("web").unwrap().vmm_pid, before.vmm_pid);
    let shown = bed.iii(&["worker", "list"]);
    assert!(shown.stderr.contains("imagee") && shown.text().contains("running"), "{}", shown.stderr);
    bed.until("the daemon says it too", || daemon.output().contains("imagee"));
    bed.write_config("workers: [\n");
    bed.until("the new error is shown", || list(&bed).config_error.is_some_and(|e| !e.contains("imagee")));
    bed.configure(&[good]);
    bed.until("nothing is wrong any more", || list(&bed).config_error.is_none());
    assert_eq!(bed.status("web").unwrap().vmm_pid, before.vmm_pid, "still the same machine");
}

#[test]
fn a_config_file_that_vanishes_stops_nothing() {
    let (bed, _, _daemon) = web();
    std::fs::remove_file(bed.config()).unwrap();
    bed.until("list says so", || list(&bed).config_error.is_some());
    assert_eq!(bed.status("web").unwrap().phase, Phase::Running);
}

#[test]
fn an_unset_variable_fails_that_worker_alone_until_it_is_mended() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let broken = bed.entry("broken", &reference, &["config: { KEY: '${III_TEST_NOT_SET}' }"]);
    bed.configure(&[broken, bed.entry("fine", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_phase("fine", Phase::Running);
    let status = bed.wait_phase("broken", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(cause.message.contains("III_TEST_NOT_SET") && cause.message.contains("config.yaml"), "{cause:?}");
    let mended = bed.entry("broken", &reference, &["config: { KEY: '${III_TEST_NOT_SET:-x}' }"]);
    bed.configure(&[mended, bed.entry("fine", &reference, &[])]);
    bed.wait_phase("broken", Phase::Running);
}

#[test]
fn a_hundred_quick_edits_end_in_the_last_one() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let _daemon = bed.daemon();
    for round in 0..100 {
        bed.configure(&[bed.entry(&format!("w{}", round % 3), &reference, &[])]);
        std::thread::sleep(Duration::from_millis(5));
    }
    bed.wait_phase("w0", Phase::Running);
    bed.until("only the last one is left", || {
        let workers = list(&bed).workers;
        workers.len() == 1 && workers[0].name == "w0"
    });
}

//! A local project beside an image's worker: its first and later starts, an edit, and the copy of many files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iii_protocol::api::Phase;

use crate::bed::Bed;
use crate::{Follower, MEMORY_MIB, ROUNDS, cold_start, median, row, seconds};

/// A big project.
const FILES: usize = 50_000;
/// In each of its folders.
const FILES_IN_FOLDER: usize = 500;

/// Rows for a project that starts from `base` and runs `script`, which says `ready`. Other entries of the file are
/// `others`; `cold` is what an image's worker of the same size takes.
pub(crate) fn rows(bed: &Bed, others: &[String], base: &str, script: &str, cold: Duration) -> Vec<String> {
    let folder = bed.project().join("app");
    fs::create_dir(&folder).expect("a folder");
    let manifest = serde_json::json!({
        "name": "app",
        "runtime": { "kind": "python", "base_image": base },
        "resources": { "memory": MEMORY_MIB, "cpus": 1 },
        "scripts": { "setup": "", "install": "", "start": script },
    });
    // JSON is YAML.
    fs::write(folder.join("iii.worker.yaml"), manifest.to_string()).expect("a manifest");
    fs::write(folder.join("file"), "").expect("a file");
    let entry = format!(
        "  - name: app\n    worker_path: {}\n    watch: true\n    resources: {{ disk: 4GiB }}\n",
        folder.display()
    );
    let entries: Vec<String> = others.iter().cloned().chain([entry]).collect();
    bed.configure(&entries);
    bed.wait_phase("app", Phase::Running);
    bed.wait_log("app", "ready");

    let firsts = median((0..ROUNDS).map(|_| first_start(bed, &folder)).collect());
    let starts = (0..ROUNDS).map(|_| {
        bed.ok(&["worker", "stop", "app"]);
        cold_start(bed, "app")
    });
    let start = median(starts.collect());
    let machine = idle_machine(bed);
    let edits = median((0..ROUNDS).map(|round| edit(bed, &folder, round)).collect());
    assert_eq!(idle_machine(bed), machine, "an edit started another machine");

    bed.ok(&["worker", "stop", "app"]);
    many(&folder);
    let copied = cold_start(bed, "app");
    let again = edit(bed, &folder, ROUNDS);
    bed.ok(&["worker", "stop", "app"]);
    let times = |what: Duration| what.as_secs_f64() / cold.as_secs_f64();
    let second = format!("{} = {:.2} x an image's", seconds(start), times(start));
    let in_place = format!("{} = {:.2} x a cold start", seconds(edits), times(edits));
    vec![
        row("project, first start, no install", seconds(firsts), "", true),
        row("project, second start", second, "1.15 x", times(start) <= 1.15),
        row("project, edit to restarted", in_place, "0.15 x", times(edits) <= 0.15),
        row("project, start with 50,000 new", seconds(copied), "", true),
        row("project, edit among them", seconds(again), "", true),
    ]
}

/// From `add` to its end with a running worker: the old disk goes, a new one is made, and the project copied to it.
fn first_start(bed: &Bed, folder: &Path) -> Duration {
    let began = Instant::now();
    bed.ok(&["worker", "add", "--force", &folder.display().to_string()]);
    began.elapsed()
}

/// The machine, once nothing is brought into it any more.
fn idle_machine(bed: &Bed) -> u64 {
    let idle = bed.wait("app", "up to date", |s| s.phase == Phase::Running && s.detail.is_none());
    idle.generation
}

/// From the write of a file to the restarted workload's first line in a follower's hands.
fn edit(bed: &Bed, folder: &Path, round: usize) -> Duration {
    idle_machine(bed);
    let mut follower = Follower::start(bed, "app");
    let began = Instant::now();
    fs::write(folder.join("file"), format!("round {round}")).expect("a file");
    assert_eq!(follower.line(), "ready\n");
    began.elapsed()
}

fn many(folder: &Path) {
    for number in 0..FILES {
        let parent = folder.join(format!("src/{}", number / FILES_IN_FOLDER));
        if number % FILES_IN_FOLDER == 0 {
            fs::create_dir_all(&parent).expect("a folder");
        }
        fs::write(parent.join(format!("{number}.js")), format!("export const n = {number};\n"))
            .expect("a file");
    }
}

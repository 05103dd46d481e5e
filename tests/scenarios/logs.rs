//! `iii worker logs`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use iii_protocol::api::Phase;

use super::bed::Bed;

#[test]
fn stdout_and_stderr_are_told_apart_and_bytes_are_exact() {
    let bed = Bed::new();
    let script =
        r"printf 'out\000\377\n'; printf 'err\n' >&2; printf 'no newline'; printf 'e2' >&2; sleep 1000";
    let short = bed.script_image("bytes", &script.replace("; sleep 1000", ""));
    bed.configure(&[bed.entry("bytes", &short, &["restart: never"])]);
    let _daemon = bed.daemon();
    bed.wait("bytes", "ended", |status| !status.exits.is_empty());
    let run = bed.iii(&["worker", "logs", "bytes"]);
    assert_eq!(run.stdout, b"out\x00\xff\nno newline");
    assert_eq!(run.stderr, "err\ne2");
}

#[test]
fn many_lines_just_before_the_exit_all_arrive_in_order() {
    let bed = Bed::new();
    let reference = bed.script_image("burst", "seq 1 20000; exit 0");
    bed.configure(&[bed.entry("burst", &reference, &["restart: never"])]);
    let _daemon = bed.daemon();
    bed.wait("burst", "ended", |status| !status.exits.is_empty());
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert_eq!(bed.ok(&["worker", "logs", "burst"]), expected);
    assert_eq!(bed.ok(&["worker", "logs", "burst", "-n", "2"]), "19999\n20000\n");
    assert_eq!(bed.ok(&["worker", "logs", "burst", "--tail", "0"]), "");
}

#[test]
fn follow_shows_what_comes_and_survives_a_restart_of_the_worker() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "echo begin; exec sleep 1000");
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("web", "begin");
    let mut follow = bed
        .command(&["worker", "logs", "web", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "begin");
    bed.ok(&["worker", "restart", "web"]);
    assert_eq!(lines.next().unwrap().unwrap(), "begin");
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(bed.ok(&["worker", "logs", "web", "--previous"]), "begin\n");
}

#[test]
fn timestamps_since_and_json_are_there() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "echo hello; exec sleep 1000");
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("web", "hello");
    let stamped = bed.ok(&["worker", "logs", "web", "-t"]);
    let (ts, text) = stamped.trim_end().split_once(' ').unwrap();
    let ts: jiff::Timestamp = ts.parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(ts);
    assert!(age.as_secs().abs() < 120, "the guest's clock is {age:#} off");
    assert_eq!(text, "hello");
    assert_eq!(bed.ok(&["worker", "logs", "web", "--since", "2h"]), "hello\n");
    assert_eq!(bed.ok(&["worker", "logs", "web", "--since", "2100-01-01T00:00:00Z"]), "");
    let json = bed.ok(&["worker", "logs", "web", "--json"]);
    let record: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(record["text"], "hello\n");
    assert_eq!(record["stream"], "stdout");
}

#[test]
fn logs_of_a_stopped_worker_and_without_a_daemon_are_still_there() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "echo kept; exec sleep 1000");
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let daemon = bed.daemon();
    bed.wait_log("web", "kept");
    bed.ok(&["worker", "stop", "web"]);
    assert_eq!(bed.status("web").unwrap().phase, Phase::Stopped);
    assert_eq!(bed.ok(&["worker", "logs", "web"]), "kept\n");
    daemon.stop();
    assert_eq!(bed.ok(&["worker", "logs", "web"]), "kept\n");
    let unknown = bed.iii(&["worker", "logs", "nobody"]);
    assert_eq!(unknown.code, Some(1));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let bed = Bed::new();
    let reference = bed.script_image("burst", "seq 1 50000; exec sleep 1000");
    bed.configure(&[bed.entry("burst", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("burst", "50000\n");
    let mut logs = bed
        .command(&["worker", "logs", "burst"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(logs.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "1\n");
    let output = logs.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn output_is_shown_after_somebody_deleted_the_log_files() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "seq 1 100; echo ready; exec sleep 1000");
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("web", "ready");
    bed.ok(&["worker", "stop", "web"]);
    std::fs::remove_dir_all(bed.home().join("logs/web")).unwrap();
    bed.ok(&["worker", "start", "web"]);
    bed.until("both runs are shown", || {
        bed.ok(&["worker", "logs", "web"]).lines().filter(|line| *line == "ready").count() == 2
    });
}

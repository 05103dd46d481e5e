//! The daemon itself: start, refusal, signals.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use iii_protocol::api::{Desired, Phase, WorkerList};
use nix::sys::signal::Signal;

use super::bed::Bed;
use super::lifecycle::SERVE;

#[test]
fn a_missing_config_file_is_created_and_said_so() {
    let bed = Bed::new();
    std::fs::remove_file(bed.config()).unwrap();
    let daemon = bed.daemon();
    assert!(bed.config().exists());
    assert!(daemon.output().contains("config.yaml"), "{}", daemon.output());
    daemon.stop();
}

#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let bed = Bed::new();
    let daemon = bed.daemon();
    let second = bed.iii(&[]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains(&daemon.pid().to_string()), "{}", second.stderr);
    assert!(bed.get("/v1/workers").is_some(), "the first one still answers");
}

#[test]
fn the_socket_is_for_its_owner_only_and_gone_at_the_end() {
    let bed = Bed::new();
    let daemon = bed.daemon();
    let run = std::fs::read_dir(bed.home().join("run")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(run.join("iii.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.stop();
    bed.assert_nothing_left();
}

#[test]
fn one_signal_stops_all_workers_politely_and_desired_state_is_kept() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bed = Bed::new();
        let reference = bed.script_image("web", SERVE);
        bed.configure(&[bed.entry("a", &reference, &[]), bed.entry("b", &reference, &[])]);
        let mut daemon = bed.daemon();
        for name in ["a", "b"] {
            bed.wait_log(name, "ready");
        }
        daemon.signal(signal);
        assert_eq!(daemon.wait(), 0, "{}", daemon.output());
        bed.assert_nothing_left();
        for name in ["a", "b"] {
            assert!(bed.ok(&["worker", "logs", name]).ends_with("bye\n"));
        }
        let _daemon = bed.daemon();
        let status = bed.wait_phase("a", Phase::Running);
        assert_eq!(status.desired, Desired::Running);
    }
}

#[test]
fn a_second_signal_kills_what_does_not_want_to_end() {
    let bed = Bed::new();
    let reference = bed.script_image("deaf", "trap '' TERM; echo ready; while :; do sleep 1000; done");
    bed.configure(&[bed.entry("deaf", &reference, &["stop_timeout: 10m"])]);
    let mut daemon = bed.daemon();
    bed.wait_log("deaf", "ready");
    let began = Instant::now();
    daemon.signal(Signal::SIGINT);
    bed.until("the daemon says who is slow", || daemon.output().contains("deaf  stopping"));
    daemon.signal(Signal::SIGINT);
    daemon.wait();
    assert!(began.elapsed() < bed.patience());
    bed.assert_nothing_left();
}

#[test]
fn a_bad_request_gets_an_answer_that_says_what_is_wrong() {
    let bed = Bed::new();
    let _daemon = bed.daemon();
    let run = std::fs::read_dir(bed.home().join("run")).unwrap().next().unwrap().unwrap().path();
    let ask = |text: &str| {
        use std::io::Read as _;
        let mut stream = std::os::unix::net::UnixStream::connect(run.join("iii.sock")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    assert!(ask("GET /nowhere HTTP/1.0\r\n\r\n").contains("not-found"));
    assert!(ask("DELETE /v1/workers HTTP/1.0\r\n\r\n").contains(" 405 "));
    let bad =
        "POST /v1/images/pull HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n{\"a\"";
    assert!(ask(bad).contains("bad-request"));
    assert!(ask("rubbish\r\n\r\n").contains(" 400 "));
}

#[test]
fn without_a_daemon_list_tells_the_truth_and_start_says_what_to_do() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let list: WorkerList = serde_json::from_str(&bed.ok(&["worker", "list", "--json"])).unwrap();
    assert_eq!(list.workers[0].phase, Phase::Stopped);
    let start = bed.iii(&["worker", "start", "web"]);
    assert_eq!(start.code, Some(1));
    assert!(start.stderr.contains("hint:") && start.stderr.contains("iii"), "{}", start.stderr);
}

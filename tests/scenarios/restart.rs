//! What happens when a workload ends by itself.

use iii_protocol::api::{Desired, Phase};
use iii_protocol::exit::ExitCause;

use super::bed::Bed;

#[test]
fn a_worker_that_exits_is_restarted_and_the_cause_is_shown() {
    let bed = Bed::new();
    let reference = bed.script_image("flaky", "echo going; sleep 0.2; exit 7");
    bed.configure(&[bed.entry("flaky", &reference, &["restart: { delay: 100ms, max_delay: 200ms }"])]);
    let _daemon = bed.daemon();
    let status = bed.wait("flaky", "restarted twice", |status| status.restarts >= 2);
    assert_eq!(status.exits[0].cause, ExitCause::Exit { code: 7 });
    assert_eq!(status.desired, Desired::Running);
    let list = bed.ok(&["worker", "list"]);
    assert!(list.contains("exit 7"), "{list}");
}

#[test]
fn a_worker_that_keeps_dying_is_shown_as_crash_loop_and_still_retried() {
    let bed = Bed::new();
    let reference = bed.script_image("loopy", "exit 1");
    bed.configure(&[bed.entry("loopy", &reference, &["restart: { delay: 10ms, max_delay: 300ms }"])]);
    let _daemon = bed.daemon();
    let looping = bed.wait_phase("loopy", Phase::CrashLoop);
    bed.wait("loopy", "tried again", |status| status.generation > looping.generation);
    let began = std::time::Instant::now();
    bed.ok(&["worker", "stop", "loopy"]);
    assert!(began.elapsed() < bed.patience() / 2);
    assert_eq!(bed.status("loopy").unwrap().phase, Phase::Stopped);
}

#[test]
fn max_restarts_ends_in_failed_with_the_cause() {
    let bed = Bed::new();
    let reference = bed.script_image("limited", "exit 9");
    let restart = "restart: { max_restarts: 2, delay: 10ms }";
    bed.configure(&[bed.entry("limited", &reference, &[restart])]);
    let _daemon = bed.daemon();
    let status = bed.wait_phase("limited", Phase::Failed);
    assert_eq!((status.generation, status.restarts), (3, 2));
    assert!(status.cause.unwrap().message.contains("exit 9"));
    // A start is a new beginning: the count is too.
    bed.iii(&["worker", "start", "limited"]);
    let status =
        bed.wait("limited", "failed again", |status| status.phase == Phase::Failed && status.generation == 6);
    assert_eq!(status.restarts, 2);
}

#[test]
fn policies_decide_whether_an_end_is_final() {
    let bed = Bed::new();
    let good = bed.script_image("good", "exit 0");
    let bad = bed.script_image("bad", "exit 1");
    bed.configure(&[
        bed.entry("never", &bad, &["restart: never"]),
        bed.entry("on-failure-good", &good, &["restart: on-failure"]),
        bed.entry("on-failure-bad", &bad, &["restart: { policy: on-failure, delay: 10ms }"]),
        bed.entry("unless-stopped", &good, &["restart: { delay: 10ms }"]),
    ]);
    let _daemon = bed.daemon();
    bed.wait("on-failure-bad", "restarted", |status| status.restarts >= 1);
    bed.wait("unless-stopped", "restarted", |status| status.restarts >= 1);
    for name in ["never", "on-failure-good"] {
        let status = bed.wait(name, "ended", |status| !status.exits.is_empty());
        let ended =
            bed.wait(name, "at rest", |status| matches!(status.phase, Phase::Stopped | Phase::Failed));
        assert_eq!((status.generation, ended.restarts), (1, 0), "{name}");
    }
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let bed = Bed::new();
    let reference = bed.script_image("shot", "kill -SEGV $$; sleep 5");
    bed.configure(&[bed.entry("shot", &reference, &["restart: never"])]);
    let _daemon = bed.daemon();
    let status = bed.wait("shot", "ended", |status| !status.exits.is_empty());
    assert_eq!(status.exits[0].cause, ExitCause::Signal { signal: 11 });
}

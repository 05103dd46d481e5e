//! A workload that waits for its project: sessions first, then Go.

use std::fs;

use iii_protocol::exit::ExitCause;
use iii_protocol::guest::{BootPlan, Exit, KIND_EXIT, KIND_HELD, KIND_PLAN};
use iii_protocol::session::EndCause;

use crate::client::{Client, OK, outcome, script};
use crate::shim::{Shim, boot_plan, is_alive, process, sh, until};

/// The next frame is the last word, and `pid` has ended before it.
#[track_caller]
fn could_not_start(shim: &mut Shim, pid: &str) -> (String, String) {
    let frame = shim.hear();
    assert_eq!(frame.kind, KIND_EXIT);
    assert!(!is_alive(pid), "the session's command outlives the last word");
    match frame.parse::<Exit>().expect("Exit").cause {
        ExitCause::CouldNotStart { what, message, .. } => (what, message),
        other => panic!("started and ended with {other}"),
    }
}

#[test]
fn a_held_workload_finds_what_sessions_have_made_and_starts_at_go() {
    let mut shim = Shim::new();
    let path = shim.path("made");
    shim.hold(sh(&format!("cat {path}")));
    let (cause, ..) = outcome(&shim, script(&format!("echo of a session > {path}")));
    assert_eq!(cause, OK);
    shim.go();
    let life = shim.hear_all();
    assert_eq!(life.text(), "of a session\n");
    assert_eq!(life.exit.cause, ExitCause::Exit { code: 0 });
}

#[test]
fn sessions_of_a_held_machine_have_the_workloads_environment_and_outlive_go() {
    let mut shim = Shim::new();
    let mut workload = sh("exec sleep 3600");
    workload.env.push(("A".into(), "the workload's".into()));
    shim.hold(workload);
    let mut client = Client::run(&shim, script("echo $A; exec sleep 3600"));
    client.until_said("the workload's");
    shim.go();
    shim.hear_started();
    assert_eq!(outcome(&shim, script("exit 3")).0, EndCause::Exit { code: 3 });
    assert!(is_alive(&client.pid()));
    shim.stop(15, 60_000);
    client.until_closed();
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 15 });
}

#[test]
fn a_stop_of_a_held_workload_ends_everything_at_once() {
    let mut shim = Shim::new();
    let ran = shim.path("ran");
    shim.hold(sh(&format!("touch {ran}")));
    let mut client = Client::run(&shim, script("trap '' TERM HUP; echo there; while :; do sleep 1; done"));
    client.until_said("there");
    // The grace is the workload's, which does not run.
    shim.stop(15, 600_000);
    // Its client hears of a lost worker, not of a command that was killed.
    client.until_closed();
    let (what, message) = could_not_start(&mut shim, &client.pid());
    assert_eq!((what.as_str(), message.as_str()), ("start", "stopped before the workload was started"));
    assert!(fs::metadata(ran).is_err());
}

#[test]
fn a_host_that_leaves_a_held_workload_leaves_nothing_behind() {
    let mut shim = Shim::new();
    shim.hold(process(&["true"]));
    let client = Client::run(&shim, script("exec sleep 3600"));
    shim.hang_up();
    shim.wait_for_agent();
    until("the session's command is gone", || !is_alive(&client.pid()));
}

#[test]
fn a_held_workload_that_cannot_be_started_takes_its_sessions_along() {
    let mut shim = Shim::new();
    shim.hold(process(&["no-such-command"]));
    let client = Client::run(&shim, script("exec sleep 3600"));
    shim.go();
    let (what, message) = could_not_start(&mut shim, &client.pid());
    assert!(what == "exec" && message.contains("no-such-command"), "{what}: {message}");
}

#[test]
fn a_go_that_nobody_waits_for_starts_nothing_twice_and_is_never_waited_for_in_vain() {
    let mut shim = Shim::new();
    shim.plan(sh("exec sleep 3600"));
    shim.hear_started();
    shim.go();
    assert_eq!(outcome(&shim, script("exit 3")).0, EndCause::Exit { code: 3 });
    shim.stop(15, 60_000);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 15 });
    for _ in 0..10 {
        let mut shim = Shim::new();
        shim.say(KIND_PLAN, &BootPlan { hold: true, ..boot_plan(sh("exit 7")) });
        shim.go();
        // It came before the workload was held, or in time.
        let first = shim.hear();
        let held = first.kind == KIND_HELD;
        let last = if held { shim.hear_all().exit } else { first.parse().expect("Exit") };
        match last.cause {
            ExitCause::Exit { code } => assert!(held && code == 7),
            ExitCause::CouldNotStart { message, .. } => {
                assert!(!held && message == "the host is ahead of the guest", "{message}");
            }
            other => panic!("ended with {other}"),
        }
    }
}

//! A workload that is started again in a machine that stays.

use iii_protocol::exit::ExitCause;

use crate::client::{Client, script};
use crate::shim::{Shim, is_alive, sh};

const TERM: i32 = 15;
/// Longer than any test: only a deadline that is passed over reaches it.
const LONG_MS: u64 = 600_000;

#[test]
fn a_restart_ends_the_workload_politely_and_starts_it_again() {
    let mut shim = Shim::new();
    shim.plan(sh(
        "exec 2>/dev/null; trap 'echo bye; exit 0' TERM; echo \"run $$\"; while :; do sleep 0.02; done",
    ));
    let first = shim.hear_started();
    assert!(shim.hear_output("run").contains(&first.pid.to_string()));
    shim.restart(TERM, LONG_MS);
    // All that the old one wrote comes before the new one is said to run.
    shim.hear_output("bye");
    let second = shim.hear_started();
    assert_ne!(first.pid, second.pid);
    shim.hear_output("run");
    shim.stop(TERM, LONG_MS);
    shim.hear_output("bye");
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Exit { code: 0 });
}

#[test]
fn a_restart_kills_the_deaf_with_all_they_started_and_spares_sessions() {
    let mut shim = Shim::new();
    shim.plan(sh("trap '' TERM; setsid sleep 3600 & echo \"left $!\"; while :; do sleep 0.02; done"));
    shim.hear_started();
    let said = shim.hear_output("\n");
    let left = said.trim().rsplit(' ').next().expect("a process id").to_owned();
    let mut client = Client::run(&shim, script("echo here; exec sleep 3600"));
    client.until_said("here");
    shim.restart(TERM, 1);
    shim.hear_started();
    assert!(!is_alive(&left), "what the workload started outlives its restart");
    assert!(is_alive(&client.pid()), "a session does not belong to the workload");
    shim.stop(TERM, 0);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 9 });
}

#[test]
fn a_stop_during_a_restart_ends_the_machine() {
    let mut shim = Shim::new();
    shim.plan(sh("trap '' TERM; echo up; while :; do sleep 0.02; done"));
    shim.hear_started();
    shim.hear_output("up");
    shim.restart(TERM, LONG_MS);
    shim.stop(TERM, 1);
    let life = shim.hear_all();
    assert!(life.started.is_none(), "it was started again: {life:?}");
    assert_eq!(life.exit.cause, ExitCause::Signal { signal: 9 });
}

#[test]
fn a_workload_that_cannot_be_started_again_is_the_machines_end() {
    let mut shim = Shim::new();
    let folder = shim.path("cwd");
    let mut workload = sh("rmdir \"$OLD\" && : > \"$OLD\"; echo up; exec sleep 3600");
    workload.env.push(("OLD".into(), folder.clone()));
    workload.cwd = folder;
    shim.plan(workload);
    shim.hear_started();
    shim.hear_output("up");
    shim.restart(TERM, LONG_MS);
    let life = shim.hear_all();
    assert!(life.exit.cause.is_could_not_start(), "{life:?}");
}

//! How a workload ends, by itself or because it has to, and that nothing of it is left.

use std::fs;
use std::time::{Duration, Instant};

use iii_protocol::exit::ExitCause;

use crate::shim::{Shim, is_alive, live, sh, until};

#[test]
fn the_exit_code_is_the_workloads() {
    for code in [0, 1, 7, 255] {
        let life = live(sh(&format!("exit {code}")));
        assert!(life.started.is_some());
        assert_eq!(life.exit.cause, ExitCause::Exit { code });
    }
}

#[test]
fn a_death_by_signal_is_told_apart_from_an_exit_code() {
    for signal in [6, 9, 15, 37] {
        let life = live(sh(&format!("ulimit -c 0; kill -{signal} $$; sleep 600")));
        assert_eq!(life.exit.cause, ExitCause::Signal { signal });
    }
}

#[test]
fn the_uptime_is_that_of_the_workload() {
    let life = live(sh("sleep 0.3"));
    assert!((300..20_000).contains(&life.exit.uptime_ms), "{}", life.exit.uptime_ms);
}

#[test]
fn a_polite_stop_lets_the_workload_end_in_its_own_way() {
    let mut shim = Shim::new();
    shim.plan(sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done"));
    shim.hear_started();
    shim.hear_output("ready");
    shim.stop(15, 60_000);
    let life = shim.hear_all();
    assert_eq!((life.exit.cause.clone(), life.text()), (ExitCause::Exit { code: 3 }, "bye\n".to_owned()));
}

#[test]
fn the_stop_signal_is_the_images_even_a_real_time_one() {
    let mut shim = Shim::new();
    shim.plan(sh("exec sleep 600"));
    shim.hear_started();
    shim.stop(37, 60_000);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 37 });
}

#[test]
fn a_stop_reaches_the_whole_process_group() {
    let mut shim = Shim::new();
    // The shell survives the signal and would wait for ever for a child that did not get it.
    shim.plan(sh("trap : TERM; sh -c 'echo ready; exec sleep 600' & wait $!; wait $!; exit 5"));
    shim.hear_started();
    shim.hear_output("ready");
    shim.stop(15, 10_000);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Exit { code: 5 });
}

#[test]
fn a_workload_that_ignores_the_signal_is_killed_after_the_grace() {
    let mut shim = Shim::new();
    shim.plan(sh("trap '' TERM; echo ready; while :; do sleep 0.02; done"));
    shim.hear_started();
    shim.hear_output("ready");
    let asked = Instant::now();
    shim.stop(15, 300);
    let life = shim.hear_all();
    assert_eq!(life.exit.cause, ExitCause::Signal { signal: 9 });
    assert!(asked.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_second_stop_without_grace_kills_at_once() {
    let mut shim = Shim::new();
    shim.plan(sh("trap '' TERM; echo ready; while :; do sleep 0.02; done"));
    shim.hear_started();
    shim.hear_output("ready");
    shim.stop(15, 600_000);
    shim.stop(15, 0);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 9 });
}

#[test]
fn daemons_of_the_workload_end_with_it_though_they_hold_its_output() {
    let mut shim = Shim::new();
    let pid_file = shim.path("pid");
    let daemon = format!("echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600");
    fs::write(shim.path("daemon"), daemon).expect("write");
    let daemon = shim.path("daemon");
    // Twice away: the daemon's parent has ended, and its session is its own.
    shim.plan(sh(&format!(
        "sh -c 'setsid sh {daemon} &'; while ! test -s {pid_file}; do sleep 0.01; done; echo done; exit 4"
    )));
    shim.hear_started();
    shim.hear_output("done");
    let daemon = fs::read_to_string(&pid_file).expect("pid");
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Exit { code: 4 });
    assert!(!is_alive(&daemon), "{daemon} is still there");
}

#[test]
fn orphans_are_reaped_while_the_workload_runs() {
    let mut shim = Shim::new();
    // Each inner shell leaves a child behind that ends only after its parent.
    let orphans = "for i in 1 2 3 4 5; do sh -c '(sleep 0.1; exit 1) & echo $!'; done";
    shim.plan(sh(&format!("{orphans}; echo all; exec sleep 600")));
    shim.hear_started();
    let said = shim.hear_output("all");
    for pid in said.lines().take(5) {
        until("the orphan is gone, not a zombie", || !std::path::Path::new("/proc").join(pid).exists());
    }
    shim.stop(9, 60_000);
    assert_eq!(shim.hear_all().exit.cause, ExitCause::Signal { signal: 9 });
}

#[test]
fn a_lost_link_ends_everything() {
    let mut shim = Shim::new();
    shim.plan(sh("trap '' TERM; setsid sleep 600 & echo $! $$ ready; wait"));
    shim.hear_started();
    let said = shim.hear_output("ready");
    shim.hang_up();
    shim.wait_for_agent();
    for pid in said.split_ascii_whitespace().take(2) {
        assert!(!is_alive(pid), "{pid} outlived the link");
    }
}

#[test]
fn a_talking_workload_does_not_keep_a_lost_link_alive() {
    let mut shim = Shim::new();
    shim.plan(sh("exec yes"));
    let pid = shim.hear_started().pid;
    shim.hear_output("y");
    shim.hang_up();
    shim.wait_for_agent();
    assert!(!is_alive(&pid.to_string()));
}

//! Signals, and sessions whose worker or daemon goes away.

use std::io::Read as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::bed::Bed;
use super::web;

/// A command that has said `ready`.
fn ready(bed: &Bed, script: &str) -> Child {
    let mut child = bed
        .command(&["worker", "exec", "web", "/bin/sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    child
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn left(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn ctrl_c_interrupts_and_a_second_one_kills() {
    let (bed, _daemon) = web();
    let child = ready(&bed, "trap 'exit 42' INT; echo ready; while :; do sleep 1 & wait $!; done");
    signal(&child, Signal::SIGINT);
    assert_eq!(left(child), (Some(42), String::new()));
    let mut child = ready(&bed, "trap '' INT; echo ready; while :; do sleep 1; done");
    // Two within a second, however slowly this host schedules its processes.
    bed.until("killed by the second one", || {
        signal(&child, Signal::SIGINT);
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(left(child), (Some(130), String::new()));
}

#[test]
fn a_stop_of_the_worker_ends_its_sessions_with_the_cause() {
    let (bed, _daemon) = web();
    let child = ready(&bed, "echo ready; sleep 1000");
    bed.ok(&["worker", "stop", "web"]);
    let (code, said) = left(child);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("worker `web` was stopped while the command ran"), "{said}");
}

#[test]
fn a_killed_daemon_ends_its_sessions_as_lost() {
    let (bed, daemon) = web();
    let child = ready(&bed, "echo ready; sleep 1000");
    daemon.kill();
    let (code, said) = left(child);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("the connection was lost: the daemon is gone"), "{said}");
}

use std::path::Path;

use iii_protocol::guest::Started;
use iii_protocol::log::Wanted;
use iii_protocol::shim::MachinePhase;
use tokio::net::UnixStream;
use tokio::process::Child;

use super::super::tests::{hello, machine};
use super::*;
use crate::logs::disk::{DiskQuery, read};

fn started() -> Frame {
    Frame::json(guest::KIND_STARTED, &Started { pid: 1 })
}

/// A machine whose workload runs, and whose project is being copied.
fn syncing(dir: &Path) -> (Machine, Child, UnixStream) {
    let (mut machine, vmm, guest) = machine(dir);
    machine.on_frame(&hello()).unwrap();
    machine.on_frame(&started()).unwrap();
    machine.refresh.state = State::Syncing;
    (machine, vmm, guest)
}

fn done(changed: bool) -> News {
    News::Done(Done { changed })
}

fn failed() -> News {
    News::Failed(Failed {
        what: "install".into(),
        message: "install failed (exit code 1): `npm install`; its last lines:\nno such package".into(),
        hint: Some("`iii worker start` tries again".into()),
    })
}

fn activity(machine: &Machine) -> Option<String> {
    machine.status.borrow().activity.clone()
}

/// What the log says besides the workload's output.
fn events(dir: &Path) -> String {
    let query = DiskQuery { wanted: Wanted::Events, ..DiskQuery::default() };
    let records = read(dir, &query).unwrap();
    records.map(|record| String::from_utf8(record.unwrap().bytes).unwrap()).collect()
}

fn is_running(machine: &Machine) -> bool {
    matches!(machine.status.borrow().phase, MachinePhase::Running { .. })
}

#[tokio::test]
async fn an_edit_that_changes_nothing_leaves_the_workload_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = syncing(dir.path());
    machine.on_preparation(News::Progress("copying".into()));
    assert_eq!(activity(&machine).as_deref(), Some("copying"));
    machine.on_preparation(done(false));
    assert_eq!((machine.refresh.state, activity(&machine)), (State::Idle, None));
    assert!(is_running(&machine) && machine.kill_at.is_none());
    assert!(machine.on_frame(&started()).is_err(), "nobody asked for a restart");
}

#[tokio::test]
async fn an_edit_restarts_the_workload_within_its_limits_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = syncing(dir.path());
    machine.on_preparation(done(true));
    assert!(machine.refresh.is_restarting() && is_running(&machine));
    assert!(machine.kill_at.is_some() && activity(&machine).is_some());
    machine.on_frame(&started()).unwrap();
    assert_eq!((machine.refresh.state, activity(&machine)), (State::Idle, None));
    assert!(is_running(&machine) && machine.kill_at.is_none());
    assert!(machine.on_frame(&started()).is_err());
}

#[tokio::test]
async fn a_failed_install_leaves_the_old_workload_until_another_edit_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = syncing(dir.path());
    machine.on_preparation(failed());
    assert!(is_running(&machine) && machine.kill_at.is_none());
    let told = activity(&machine).unwrap();
    assert_eq!(told, format!("{NOT_IN_FORCE}: install failed (exit code 1): `npm install`"));
    let events = events(dir.path());
    assert!(events.contains("its last lines:\nno such package\n") && events.contains(RUNS_ON), "{events}");
    assert!(!events.contains("worker start"), "it runs: {events}");
    // The files of the first edit are there already: what runs is older than they are.
    machine.refresh.state = State::Syncing;
    machine.on_preparation(done(false));
    assert!(machine.refresh.is_restarting());
}

#[tokio::test]
async fn a_copy_that_fails_says_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = syncing(dir.path());
    let (what, hint) = ("copy".to_owned(), Some("raise `disk`".to_owned()));
    machine.on_preparation(News::Failed(Failed { what, message: "No space left".into(), hint }));
    assert_eq!(events(dir.path()), format!("No space left\nhint: raise `disk`\n{RUNS_ON}\n"));
}

#[tokio::test]
async fn what_is_not_copied_is_told_once_and_not_with_every_edit() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = syncing(dir.path());
    let skipped = |lines: &[&str]| News::Skipped(lines.iter().map(|&line| line.to_owned()).collect());
    machine.on_preparation(skipped(&["a is a pipe"]));
    machine.on_preparation(skipped(&["a is a pipe"]));
    machine.on_preparation(skipped(&["a is a pipe", "b is a socket"]));
    assert_eq!(events(dir.path()), "a is a pipe\nb is a socket\n");
    machine.on_preparation(skipped(&[]));
    machine.on_preparation(skipped(&["b is a socket"]));
    assert!(events(dir.path()).ends_with("b is a socket\nb is a socket\n"), "it was away meanwhile");
}

#[tokio::test]
async fn a_stop_goes_before_a_restart_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut vmm, _guest) = syncing(dir.path());
    machine.on_preparation(done(true));
    machine.stop(1000, &mut vmm);
    machine.resync();
    machine.on_frame(&started()).unwrap();
    assert!(matches!(machine.status.borrow().phase, MachinePhase::Stopping { .. }));
    assert_eq!((machine.refresh.state, activity(&machine)), (State::Idle, None));
    assert!(machine.kill_at.is_some());
}

#[tokio::test]
async fn a_workload_that_does_not_come_back_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut vmm, _guest) = syncing(dir.path());
    machine.on_preparation(done(true));
    machine.on_deadline(&mut vmm);
    let verdict = format!("{:?}", machine.verdict.unwrap());
    assert!(verdict.contains("restart") && verdict.contains("the one before it"), "{verdict}");
}

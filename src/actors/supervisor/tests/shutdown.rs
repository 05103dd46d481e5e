//! The daemon's end.

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorCode, Phase, PullEvent, PullRequest};
use iii_protocol::exit::ExitCause;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fakes::Behaviour;
use super::project::Project;
use crate::actors::messages::SupervisorMsg;

/// A restart whose answer nobody waits for, because its actor panics.
fn restart_unheard(name: &str) -> SupervisorMsg {
    let reply = ractor::concurrency::oneshot().0.into();
    SupervisorMsg::Restart { name: name.into(), grace_ms: None, reply }
}

fn slow(secs: u64) -> Behaviour {
    Behaviour { stop_takes: Duration::from_secs(secs), ..Behaviour::default() }
}

#[tokio::test(start_paused = true)]
async fn all_go_down_at_once_and_want_to_run_again() {
    let project = Project::named(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        project.host.behave(name, slow(8));
    }
    let daemon = project.daemon().await;
    for name in ["a", "b", "c"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    let at = Instant::now();
    daemon.shut_down().await;
    assert!(at.elapsed() < Duration::from_secs(9), "{:?}", at.elapsed());
    assert!(project.host.machines().is_empty());
    let lines = project.lines.lock().unwrap().join("\n");
    assert!(lines.contains("b: stopping (has not ended yet; killed at "), "{lines}");

    let daemon = project.daemon().await;
    for name in ["a", "b", "c"] {
        let status = daemon.until_phase(name, Phase::Running).await;
        assert_eq!((status.desired, status.restarts), (Desired::Running, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_new_begins_while_the_daemon_goes_down() {
    let project = Project::named(&["a", "b"]);
    project.host.behave("a", slow(8));
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    daemon.root.cast(SupervisorMsg::Shutdown { force: false }).unwrap();
    daemon.until_phase("b", Phase::Stopped).await;
    assert_eq!(daemon.start("b").await.unwrap_err().code, ErrorCode::ShuttingDown);
    assert_eq!(daemon.restart("b").await.unwrap_err().code, ErrorCode::ShuttingDown);
    assert_eq!(daemon.reload().await.unwrap_err().code, ErrorCode::ShuttingDown);
    let (events, mut seen) = mpsc::channel(1);
    let request = PullRequest { reference: "r/x".into(), force: false, to_start: false };
    daemon.root.cast(SupervisorMsg::Pull { request, events }).unwrap();
    let Some(PullEvent::Failed { error }) = seen.recv().await else { panic!("not refused") };
    assert_eq!(error.code, ErrorCode::ShuttingDown);
    // A stop is never refused, and counts for the next daemon.
    daemon.stop("a", None).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), daemon.handle).await.unwrap().unwrap();
    let daemon = project.daemon().await;
    daemon.until_phase("b", Phase::Running).await;
    assert_eq!(daemon.until_phase("a", Phase::Stopped).await.desired, Desired::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_second_request_kills() {
    let project = Project::named(&["a"]);
    project.host.behave("a", slow(60));
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    let at = Instant::now();
    daemon.root.cast(SupervisorMsg::Shutdown { force: false }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.root.cast(SupervisorMsg::Shutdown { force: true }).unwrap();
    tokio::time::timeout(Duration::from_secs(60), daemon.handle).await.unwrap().unwrap();
    assert!(at.elapsed() < Duration::from_secs(2));
    assert!(project.host.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn it_ends_in_every_state_of_its_workers() {
    // Stopped, failed, in backoff, launching, pulling, and none at all.
    let daemon = Project::named(&[]).daemon().await;
    daemon.shut_down().await;

    let project = Project::named(&["a", "b", "c", "pulling"]);
    project.images.0.lock().unwrap().takes = Duration::from_secs(1000);
    let launch = Behaviour { launch_takes: Duration::from_secs(30), ..Behaviour::default() };
    project.host.behave("c", launch);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.stop("a", None).await.unwrap();
    daemon.until_phase("b", Phase::Running).await;
    let ends = Some((Duration::from_millis(10), ExitCause::Exit { code: 1 }));
    project.host.behave("b", Behaviour { ends, ..Behaviour::default() });
    project.panic_at("b", Phase::Booting, 100);
    daemon.root.cast(restart_unheard("b")).unwrap();
    daemon.until_phase("b", Phase::Failed).await;
    project.panic_at("b", Phase::Booting, 0);
    daemon.until("c", |s| s.detail.as_deref() == Some("launching the machine")).await;
    let at = Instant::now();
    daemon.shut_down().await;
    assert!(at.elapsed() < Duration::from_secs(31), "{:?}", at.elapsed());
    assert!(project.host.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_ended_does_not_keep_the_daemon() {
    let project = Project::named(&["a"]);
    let stuck = Behaviour { launch_takes: Duration::from_secs(5000), ..Behaviour::default() };
    project.host.behave("a", stuck);
    let daemon = project.daemon().await;
    daemon.until("a", |s| s.detail.as_deref() == Some("launching the machine")).await;
    let at = Instant::now();
    daemon.shut_down().await;
    assert!(at.elapsed() < Duration::from_secs(40), "{:?}", at.elapsed());
}

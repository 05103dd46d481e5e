//! Workloads that die, starts that fail, actors that panic.

use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, Phase};
use iii_protocol::exit::ExitCause;
use tokio::time::Instant;

use super::fakes::Behaviour;
use super::project::{Project, error, eventually, until};
use crate::actors::worker::tests::worker_config;
use crate::config::schema::{RestartPolicy, Source};

fn dies_after(ms: u64, code: i32) -> Behaviour {
    let ends = Some((Duration::from_millis(ms), ExitCause::Exit { code }));
    Behaviour { ends, ..Behaviour::default() }
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_restarted_at_once_and_told() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let at = Instant::now();
    project.host.end("a", ExitCause::Signal { signal: 11 });
    let status = daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    assert!(at.elapsed() < Duration::from_millis(250));
    assert_eq!(status.restarts, 1);
    assert_eq!(status.exits[0].cause, ExitCause::Signal { signal: 11 });
    assert_eq!((status.exits[0].generation, status.exits[0].requested), (1, false));
    assert!(status.exits[0].uptime_ms >= 5000);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_keeps_dying_is_a_crash_loop_and_still_tried() {
    let project = Project::named(&["a"]);
    project.host.behave("a", dies_after(10, 7));
    let daemon = project.daemon().await;
    let status = daemon.until_phase("a", Phase::CrashLoop).await;
    assert_eq!(status.exits.len(), 5);
    assert!(status.cause.unwrap().message.contains("exit 7"));
    let launches = project.host.launches_of("a");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let more = project.host.launches_of("a") - launches;
    assert!((19..40).contains(&more), "{more} tries in ten minutes");
    assert_eq!(daemon.list().await.workers[0].exits.len(), 10);

    // Mended, and started by hand: at once, with a clean slate.
    project.host.behave("a", Behaviour::default());
    daemon.start("a").await.unwrap();
    let status = daemon.until_phase("a", Phase::Running).await;
    assert_eq!(status.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn max_restarts_ends_in_failure() {
    let mut config = worker_config("a");
    config.restart.max_restarts = Some(2);
    let project = Project::new(&[config]);
    project.host.behave("a", dies_after(10, 7));
    let daemon = project.daemon().await;
    let status = daemon.until_phase("a", Phase::Failed).await;
    assert_eq!((status.restarts, project.host.launches_of("a")), (2, 3));
    assert!(status.cause.unwrap().message.contains("`max_restarts: 2`"));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_is_not_run_again() {
    let mut config = worker_config("a");
    config.restart.policy = RestartPolicy::OnFailure;
    let project = Project::new(&[config]);
    project.host.behave("a", dies_after(10, 0));
    let daemon = project.daemon().await;
    let status = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!((status.generation, status.cause), (1, None));
}

#[tokio::test(start_paused = true)]
async fn three_starts_that_fail_are_enough() {
    let project = Project::named(&["a"]);
    let launch_errors = (1..=4).map(|n| error(&format!("no KVM {n}"))).collect();
    project.host.behave("a", Behaviour { launch_errors, ..Behaviour::default() });
    let daemon = project.daemon().await;
    let at = Instant::now();
    let status = daemon.until_phase("a", Phase::Failed).await;
    assert!(at.elapsed() < Duration::from_secs(1));
    assert_eq!(status.cause.unwrap().message, "no KVM 3 (3 tries)");
    assert_eq!((status.restarts, project.host.launches_of("a")), (0, 3));
    daemon.start("a").await.unwrap();
    let status = daemon.until_phase("a", Phase::Running).await;
    assert_eq!(status.generation, 5);
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_cannot_be_executed_fails_with_its_cause() {
    let project = Project::named(&["a"]);
    let cause = ExitCause::CouldNotStart {
        what: "exec".into(),
        message: "/bin/nope: no such file".into(),
        hint: Some("look at the image".into()),
    };
    let ends = Some((Duration::ZERO, cause));
    project.host.behave("a", Behaviour { ends, ..Behaviour::default() });
    let daemon = project.daemon().await;
    let status = daemon.until_phase("a", Phase::Failed).await;
    let cause = status.cause.unwrap();
    assert_eq!(cause.message, "exec: /bin/nope: no such file (3 tries)");
    assert_eq!(cause.hint.as_deref(), Some("look at the image"));
}

#[tokio::test(start_paused = true)]
async fn what_only_an_edit_can_mend_fails_at_once() {
    let mut unset = worker_config("a");
    let message = "`FOO` is not set (config.yaml:7)".to_owned();
    unset.env = Err(ErrorBody { code: ErrorCode::BadConfig, message: message.clone(), hint: None });
    let mut local = worker_config("b");
    local.source = Source::Local { path: "/src/b".into(), exclude: Vec::new() };
    let mut nothing = worker_config("c");
    nothing.source = Source::None;
    let project = Project::new(&[unset, local, nothing]);
    let daemon = project.daemon().await;
    let cause = daemon.until_phase("a", Phase::Failed).await.cause.unwrap();
    assert_eq!((cause.code, cause.message), (ErrorCode::BadConfig, message));
    let cause = daemon.until_phase("b", Phase::Failed).await.cause.unwrap();
    assert_eq!(cause.message, "there is no folder /src/b");
    daemon.until_phase("c", Phase::Failed).await;
    assert!(project.host.lock().launches.is_empty());

    project.edit(|config| config.workers[0].env = Ok(Vec::new()));
    assert_eq!(daemon.reload().await.unwrap().changed, ["a"]);
    daemon.until_phase("a", Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_hangs_is_ended_even_if_its_shim_hangs_too() {
    let mut config = worker_config("a");
    config.boot_timeout = Some(Duration::from_secs(3));
    config.restart.policy = RestartPolicy::Never;
    let project = Project::new(&[config]);
    project.host.behave("a", Behaviour { boot: None, ..Behaviour::default() });
    let daemon = project.daemon().await;
    let booting = daemon.until_phase("a", Phase::Booting).await;
    assert!(booting.until.is_some());
    let at = Instant::now();
    let failed = daemon.until_phase("a", Phase::Failed).await;
    assert!(failed.cause.unwrap().message.starts_with("boot: the machine did not come up in time"));
    assert!(at.elapsed() < Duration::from_secs(10));
    assert!(project.host.machines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_panics_is_replaced_and_its_machine_taken_over() {
    let project = Project::named(&["a", "b"]);
    project.panic_at("a", Phase::Running, 1);
    let daemon = project.daemon().await;
    let view = daemon.view("a").await;
    let mut status = view.status.clone();
    until(&mut status, |s| s.phase == Phase::Running).await;
    eventually("the panic", || project.panics.lock().unwrap().iter().all(|(_, _, left)| *left == 0)).await;
    let back = until(&mut status, |s| s.phase == Phase::Running && s.detail.is_none()).await;
    assert_eq!(back.generation, 1);
    assert_eq!(project.host.launches_of("a"), 1);
    // The watch and the ring of before are those of now, and the new actor is in command.
    assert!(std::sync::Arc::ptr_eq(&view.ring, &daemon.view("a").await.ring));
    daemon.stop("a", None).await.unwrap();
    until(&mut status, |s| s.phase == Phase::Stopped).await;
    assert_eq!(daemon.until_phase("b", Phase::Running).await.generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_middle_of_a_launch_does_not_end_in_two_machines() {
    let project = Project::named(&["a"]);
    let slow = Behaviour { launch_takes: Duration::from_secs(5), ..Behaviour::default() };
    project.host.behave("a", slow);
    let daemon = project.daemon().await;
    daemon.until("a", |s| s.detail.as_deref() == Some("launching the machine")).await;
    // The next thing to be announced is the stop.
    project.panic_at("a", Phase::Stopping, 1);
    daemon
        .root
        .cast(crate::actors::messages::SupervisorMsg::Restart {
            name: "a".into(),
            grace_ms: None,
            reply: ractor::concurrency::oneshot().0.into(),
        })
        .unwrap();
    daemon.until_phase("a", Phase::Running).await;
    assert_eq!(project.host.machines(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_keeps_panicking_is_shown_as_failed_and_harms_nobody_else() {
    let project = Project::named(&["a", "b"]);
    project.host.behave("a", dies_after(10, 1));
    project.panic_at("a", Phase::Booting, 100);
    let daemon = project.daemon().await;
    daemon.until_phase("b", Phase::Running).await;
    let failed = daemon.until_phase("a", Phase::Failed).await;
    let cause = failed.cause.unwrap();
    assert_eq!(cause.code, ErrorCode::Internal);
    assert!(cause.message.starts_with("internal error"), "{}", cause.message);
    assert_eq!(daemon.list().await.workers[1].phase, Phase::Running);

    // The user may try again, also to stop the machine that is still there.
    project.panic_at("a", Phase::Booting, 0);
    project.host.behave("a", Behaviour::default());
    daemon.stop("a", None).await.unwrap();
    daemon.until_phase("a", Phase::Stopped).await;
    eventually("its machine is gone", || project.host.machines() == ["b"]).await;
    daemon.start("a").await.unwrap();
    daemon.until_phase("a", Phase::Running).await;
}

//! A daemon dies, machines live on, the next daemon takes them over.

use std::time::Duration;

use iii_protocol::api::{Desired, Phase};
use iii_protocol::exit::{ExitCause, ExitRecord};

use super::fakes::Behaviour;
use super::project::{Project, error, eventually};
use crate::actors::worker::tests::worker_config;
use crate::config::schema::RestartPolicy;

#[tokio::test(start_paused = true)]
async fn a_killed_daemon_takes_no_machine_along_and_the_next_one_takes_over() {
    let project = Project::named(&["a", "b"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    project.host.end("a", ExitCause::Exit { code: 7 });
    let before = daemon.until("a", |s| s.phase == Phase::Running && s.restarts == 1).await;
    daemon.until_phase("b", Phase::Running).await;
    daemon.kill().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(project.host.machines(), ["a", "b"]);

    let daemon = project.daemon().await;
    let after = daemon.until_phase("a", Phase::Running).await;
    assert_eq!(
        (after.generation, after.restarts, after.running_since, &after.exits),
        (before.generation, before.restarts, before.running_since, &before.exits)
    );
    daemon.until_phase("b", Phase::Running).await;
    assert_eq!(project.host.lock().launches.len(), 3);

    // What was taken over is as much in hand as what was launched.
    daemon.stop("a", None).await.unwrap();
    daemon.until_phase("a", Phase::Stopped).await;
    project.host.end("b", ExitCause::Oom);
    daemon.until("b", |s| s.phase == Phase::Running && s.generation == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_entry_changed_meanwhile_is_restarted() {
    let project = Project::named(&["a", "b"]);
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    daemon.kill().await;
    project.edit(|config| {
        config.workers[0].env = Ok(vec![("NEW".into(), "1".into())]);
        config.workers[1].stop_timeout = Duration::from_secs(33);
    });
    let daemon = project.daemon().await;
    daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    assert_eq!(daemon.until_phase("b", Phase::Running).await.generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_stays_when_its_image_is_no_longer_known() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.kill().await;
    project.images.0.lock().unwrap().here.clear();
    let daemon = project.daemon().await;
    assert_eq!(daemon.until_phase("a", Phase::Running).await.generation, 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_daemon_saw_is_recorded_and_judged() {
    let mut once = worker_config("b");
    once.restart.policy = RestartPolicy::Never;
    let project = Project::new(&[worker_config("a"), once]);
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    daemon.kill().await;
    for name in ["a", "b"] {
        project.host.end(name, ExitCause::Exit { code: 5 });
    }
    eventually("both end", || project.host.machines().is_empty()).await;
    let daemon = project.daemon().await;
    let a = daemon.until_phase("a", Phase::Running).await;
    assert_eq!((a.generation, a.restarts), (2, 1));
    assert_eq!(a.exits[0].cause, ExitCause::Exit { code: 5 });
    let b = daemon.until_phase("b", Phase::Failed).await;
    assert!(b.cause.unwrap().message.contains("exit 5"));
    assert_eq!(b.generation, 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_seen_and_is_told_again_counts_once() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.stop("a", None).await.unwrap();
    let seen = daemon.until_phase("a", Phase::Stopped).await.exits[0].clone();
    daemon.shut_down().await;
    let again = ExitRecord { requested: false, ..seen.clone() };
    project.host.lock().ended.insert("a".into(), again);
    let daemon = project.daemon().await;
    let status = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!(status.exits, [seen]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_should_not_run_is_stopped() {
    let project = Project::named(&["a", "b"]);
    project.host.behave("a", Behaviour { stop_takes: Duration::from_secs(8), ..Behaviour::default() });
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    // Desired: stopped; the daemon dies before it has asked the machine for it.
    daemon.stop("a", None).await.unwrap();
    daemon.kill().await;
    // No longer configured.
    project.edit(|config| config.workers.retain(|worker| worker.name == "a"));
    let daemon = project.daemon().await;
    let a = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!(a.desired, Desired::Stopped);
    eventually("the stray is down", || project.host.machines().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let names: Vec<String> = daemon.list().await.workers.into_iter().map(|w| w.name).collect();
    assert_eq!(names, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_is_killed_is_an_end_of_its_own() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    project.host.vanish("a");
    let status = daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    assert_eq!(status.exits[0].cause, ExitCause::ShimDied);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_looked_for_is_looked_for_again() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.kill().await;
    project.host.lock().adopt_errors.insert("a".into(), [error("no answer")].into());
    let daemon = project.daemon().await;
    let backoff = daemon.until_phase("a", Phase::Backoff).await;
    assert_eq!(backoff.cause.unwrap().message, "no answer");
    assert_eq!(daemon.until_phase("a", Phase::Running).await.generation, 1);
    assert_eq!(project.host.launches_of("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_launch_without_an_answer_does_not_end_in_two_machines() {
    let project = Project::named(&["a"]);
    let stuck = Behaviour { launch_takes: Duration::from_secs(3000), ..Behaviour::default() };
    project.host.behave("a", stuck);
    let daemon = project.daemon().await;
    let backoff = daemon.until_phase("a", Phase::Backoff).await;
    assert!(backoff.cause.unwrap().message.contains("took longer than 60 s"));
    assert!(backoff.exits[0].cause.is_could_not_start());
    project.host.behave("a", Behaviour::default());
    daemon.until_phase("a", Phase::Running).await;
    assert_eq!(project.host.machines(), ["a"]);
}

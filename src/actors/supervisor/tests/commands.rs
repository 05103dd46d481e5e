//! start, stop, restart, list, view.

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorCode, Phase};
use iii_protocol::exit::ExitCause;

use super::fakes::Behaviour;
use super::project::Project;
use crate::actors::messages::SupervisorMsg;
use crate::actors::worker::tests::worker_config;
use crate::config::schema::RestartPolicy;

#[tokio::test(start_paused = true)]
async fn all_configured_workers_are_started_and_listed_in_order() {
    let project = Project::named(&["b", "a", "c"]);
    let daemon = project.daemon().await;
    for name in ["a", "b", "c"] {
        let status = daemon.until_phase(name, Phase::Running).await;
        assert_eq!((status.generation, status.restarts), (1, 0));
        assert_eq!(status.image_digest.as_deref(), Some("sha256:00"));
        assert_eq!((status.shim_pid, status.vmm_pid), (Some(1001), Some(2001)));
        assert!(status.running_since.is_some());
        assert!(status.log_dir.ends_with(&format!("home/logs/{name}")));
    }
    let names: Vec<String> = daemon.list().await.workers.into_iter().map(|w| w.name).collect();
    assert_eq!(names, ["b", "a", "c"]);
    let lines = project.lines.lock().unwrap().clone();
    let of_a: Vec<&String> = lines.iter().filter(|line| line.starts_with("a: ")).collect();
    assert_eq!(of_a, ["a: preparing (getting the image)", "a: booting", "a: running"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_known_gets_a_suggestion() {
    let daemon = Project::named(&["resizer"]).daemon().await;
    let error = daemon.start("resiser").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.hint.as_deref(), Some("did you mean `resizer`?"));
    let name = "zzz".to_owned();
    let error = daemon.ask(|reply| SupervisorMsg::View { name, reply }).await.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("`iii worker list` shows all workers"));
}

#[tokio::test(start_paused = true)]
async fn start_and_stop_are_idempotent() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    let again = daemon.start("a").await.unwrap();
    assert_eq!((again.phase, again.generation), (Phase::Running, 1));
    for _ in 0..3 {
        daemon.stop("a", None).await.unwrap();
    }
    let stopped = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!(stopped.desired, Desired::Stopped);
    assert!(stopped.exits[0].requested);
    assert_eq!(daemon.stop("a", None).await.unwrap().phase, Phase::Stopped);
    assert_eq!(project.host.machines(), [""; 0]);
    daemon.start("a").await.unwrap();
    assert_eq!(daemon.until_phase("a", Phase::Running).await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_works_in_every_state() {
    let slow = Behaviour {
        launch_takes: Duration::from_secs(20),
        boot: Some(Duration::from_secs(20)),
        ..Behaviour::default()
    };
    // While the image is pulled.
    let project = Project::named(&["a"]);
    project.images.0.lock().unwrap().here.clear();
    project.images.0.lock().unwrap().takes = Duration::from_secs(100);
    let daemon = project.daemon().await;
    daemon.until("a", |s| s.detail.as_deref().is_some_and(|d| d.starts_with("pulling"))).await;
    assert_eq!(daemon.stop("a", None).await.unwrap().phase, Phase::Stopped);
    assert_eq!(project.host.launches_of("a"), 0);

    // While the launcher is busy.
    let project = Project::named(&["a"]);
    project.host.behave("a", slow.clone());
    let daemon = project.daemon().await;
    daemon.until("a", |s| s.detail.as_deref() == Some("launching the machine")).await;
    assert_eq!(daemon.stop("a", None).await.unwrap().phase, Phase::Stopping);
    daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!((project.host.launches_of("a"), project.host.machines().len()), (1, 0));

    // While it boots.
    let project = Project::named(&["a"]);
    project.host.behave("a", slow);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Booting).await;
    assert_eq!(daemon.stop("a", None).await.unwrap().phase, Phase::Stopping);
    daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!(project.host.machines().len(), 0);

    // While it waits for its next try.
    let project = Project::named(&["a"]);
    let exit = (Duration::from_millis(5), ExitCause::Exit { code: 3 });
    project.host.behave("a", Behaviour { ends: Some(exit), ..Behaviour::default() });
    let daemon = project.daemon().await;
    let backoff = daemon.until_phase("a", Phase::Backoff).await;
    assert!(backoff.until.is_some());
    assert_eq!(backoff.cause.unwrap().message, "the workload ended: exit 3");
    let launches = project.host.launches_of("a");
    assert_eq!(daemon.stop("a", None).await.unwrap().phase, Phase::Stopped);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(project.host.launches_of("a"), launches);
}

#[tokio::test(start_paused = true)]
async fn a_restart_gives_a_new_machine_and_never_two() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    for generation in 2..5 {
        daemon.restart("a").await.unwrap();
        daemon.until("a", |s| s.phase == Phase::Running && s.generation == generation).await;
        assert_eq!(project.host.machines(), ["a"]);
    }
    assert_eq!(daemon.list().await.workers[0].restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn the_users_grace_is_what_the_machine_gets() {
    let project = Project::named(&["a"]);
    project.host.behave("a", Behaviour { stop_takes: Duration::from_secs(60), ..Behaviour::default() });
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.stop("a", None).await.unwrap();
    let slow = daemon.until("a", |s| s.detail.is_some()).await;
    assert!(slow.detail.unwrap().starts_with("has not ended yet; killed at "));
    daemon.stop("a", Some(0)).await.unwrap();
    let stopped = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!(stopped.exits[0].cause, ExitCause::Signal { signal: 9 });
    assert_eq!(project.host.lock().stops, [("a".to_owned(), 10_000), ("a".to_owned(), 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ignores_its_stop_is_killed_soon_after_its_grace() {
    let project = Project::named(&["a"]);
    project.host.behave("a", Behaviour { deaf: true, ..Behaviour::default() });
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    let asked = tokio::time::Instant::now();
    daemon.stop("a", Some(1000)).await.unwrap();
    daemon.until_phase("a", Phase::Stopped).await;
    let took = asked.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(7), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_user_wants_is_known_to_the_next_daemon() {
    let mut always = worker_config("b");
    always.restart.policy = RestartPolicy::Always;
    let project = Project::new(&[worker_config("a"), always]);
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
        daemon.stop(name, None).await.unwrap();
        daemon.until_phase(name, Phase::Stopped).await;
    }
    daemon.shut_down().await;
    let daemon = project.daemon().await;
    assert_eq!(daemon.until_phase("b", Phase::Running).await.generation, 2);
    let a = daemon.until_phase("a", Phase::Stopped).await;
    assert_eq!((a.desired, a.generation, a.exits.len()), (Desired::Stopped, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn another_projects_worker_of_the_same_name_is_left_alone() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.shut_down().await;

    let mut other = Project::named(&["a"]);
    let home = project.dir.path().join("home");
    let elsewhere = tempfile::tempdir().unwrap();
    other.config_path = elsewhere.path().join("config.yaml");
    std::fs::write(&other.config_path, "").unwrap();
    other.dir = project.dir;
    assert!(home.exists());
    let daemon = other.daemon().await;
    let failed = daemon.until_phase("a", Phase::Failed).await;
    let cause = failed.cause.unwrap();
    assert_eq!(cause.code, ErrorCode::Conflict);
    assert!(cause.message.contains(&project.config_path.display().to_string()), "{}", cause.message);
    assert_eq!(other.host.launches_of("a"), 0);
    assert_eq!(daemon.stop("a", None).await.unwrap().name, "a");
    daemon.until_phase("a", Phase::Stopped).await;

    // Once that project is gone, so is the conflict.
    std::fs::remove_file(&project.config_path).unwrap();
    daemon.start("a").await.unwrap();
    daemon.until_phase("a", Phase::Running).await;
}

//! Edits of config.yaml.

use std::time::Duration;

use iii_protocol::api::{ErrorCode, Phase};

use super::fakes::Behaviour;
use super::project::{Project, eventually};
use crate::actors::worker::tests::worker_config;

#[tokio::test(start_paused = true)]
async fn only_what_changed_is_touched() {
    let project = Project::named(&["a", "b", "c"]);
    let daemon = project.daemon().await;
    for name in ["a", "b", "c"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    project
        .images
        .0
        .lock()
        .unwrap()
        .here
        .insert("registry.test/d".into(), crate::actors::worker::tests::image());
    project.edit(|config| {
        config.workers[0].env = Ok(vec![("NEW".into(), "1".into())]);
        config.workers[1].restart.max_restarts = Some(3);
        config.workers.remove(2);
        config.workers.insert(0, worker_config("d"));
    });
    let mut changed = daemon.reload().await.unwrap().changed;
    changed.sort();
    assert_eq!(changed, ["a", "b", "c", "d"]);
    // Whoever waited for the reload no longer sees the old state of what is restarted.
    assert_ne!(daemon.view("a").await.status.borrow().phase, Phase::Running);
    daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    daemon.until_phase("d", Phase::Running).await;
    assert_eq!(daemon.until_phase("b", Phase::Running).await.generation, 1);
    eventually("c is down", || project.host.machines() == ["a", "b", "d"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let names: Vec<String> = daemon.list().await.workers.into_iter().map(|w| w.name).collect();
    assert_eq!(names, ["d", "a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_changes_nothing_and_is_told_until_it_is_mended() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    let good = project.says.lock().unwrap().clone();
    *project.says.lock().unwrap() = Err("config.yaml:3:1: nonsense".into());
    for _ in 0..2 {
        let error = daemon.reload().await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::BadConfig, "config.yaml:3:1: nonsense"));
        let list = daemon.list().await;
        assert_eq!(list.config_error.as_deref(), Some("config.yaml:3:1: nonsense"));
        assert_eq!(list.workers[0].phase, Phase::Running);
    }
    *project.says.lock().unwrap() = good;
    assert!(daemon.reload().await.unwrap().changed.is_empty());
    assert_eq!(daemon.list().await.config_error, None);
    let lines = project.lines.lock().unwrap().clone();
    let about: Vec<&String> = lines.iter().filter(|line| line.starts_with("config: ")).collect();
    assert_eq!(about, ["config: Err(\"config.yaml:3:1: nonsense\")", "config: Ok([])"]);
}

#[tokio::test]
async fn an_edit_is_in_force_within_a_second() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    project.edit(|config| config.workers.push(worker_config("b")));
    std::fs::write(&project.config_path, "# touched\n").unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(1);
    while daemon.list().await.workers.len() < 2 {
        assert!(tokio::time::Instant::now() < until, "not within a second");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.until_phase("b", Phase::Running).await;
    daemon.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_removed_and_added_again_runs_again() {
    let project = Project::named(&["a"]);
    project.host.behave("a", Behaviour { stop_takes: Duration::from_secs(5), ..Behaviour::default() });
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    // Added again while it is still going down.
    project.edit(|config| config.workers.clear());
    daemon.reload().await.unwrap();
    daemon.until_phase("a", Phase::Stopping).await;
    let error = daemon.start("a").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    project.edit(|config| config.workers.push(worker_config("a")));
    daemon.reload().await.unwrap();
    daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    // Added again after it has gone.
    project.edit(|config| config.workers.clear());
    daemon.reload().await.unwrap();
    eventually("it is down", || project.host.machines().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(daemon.list().await.workers.is_empty());
    project.edit(|config| config.workers.push(worker_config("a")));
    daemon.reload().await.unwrap();
    let status = daemon.until_phase("a", Phase::Running).await;
    assert_eq!(status.generation, 3);
}

#[tokio::test(start_paused = true)]
async fn an_edit_of_a_stopped_worker_does_not_start_it() {
    let project = Project::named(&["a"]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.stop("a", None).await.unwrap();
    daemon.until_phase("a", Phase::Stopped).await;
    project.edit(|config| config.workers[0].env = Ok(vec![("X".into(), "1".into())]));
    daemon.reload().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(daemon.list().await.workers[0].phase, Phase::Stopped);
    daemon.start("a").await.unwrap();
    daemon.until_phase("a", Phase::Running).await;
    let env = project.host.lock().launches[1].process.env.clone();
    assert!(env.contains(&("X".into(), "1".into())));
}

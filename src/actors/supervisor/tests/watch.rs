//! A project is edited while its worker runs. In real time: the system tells of edits when it likes.

use std::fs;

use iii_protocol::api::Phase;
use iii_protocol::exit::ExitCause;

use super::project::{Project, eventually};
use crate::actors::worker::tests::worker_config;
use crate::config::schema::{RestartPolicy, Source, WorkerConfig};

fn manifest(start: &str) -> String {
    format!(
        "name: a\nruntime: {{kind: javascript, base_image: registry.test/a}}\n\
         scripts: {{setup: '', install: '', start: '{start}'}}\n"
    )
}

/// The worker `a`, made from a folder with a manifest and one file.
fn local(watch: bool) -> (tempfile::TempDir, WorkerConfig) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("iii.worker.yaml"), manifest("one")).unwrap();
    fs::write(dir.path().join("file"), "1").unwrap();
    let source = Source::Local { path: dir.path().into(), exclude: Vec::new() };
    (dir, WorkerConfig { source, watch, ..worker_config("a") })
}

/// Another worker of the same project that is watched: what it was told of, others could have been told of too.
fn witness(worker: &WorkerConfig) -> WorkerConfig {
    WorkerConfig { name: "b".to_owned(), watch: true, ..worker.clone() }
}

fn resyncs(project: &Project, name: &str) -> usize {
    project.host.lock().resyncs.iter().filter(|told| *told == name).count()
}

/// Edits the project, and waits until this worker's machine is told.
async fn edit_until_told(project: &Project, dir: &tempfile::TempDir, name: &str) {
    let before = resyncs(project, name);
    let file = dir.path().join("file");
    let longer = fs::read_to_string(&file).unwrap() + "x";
    fs::write(&file, longer).unwrap();
    eventually("the machine is told of the edit", || resyncs(project, name) > before).await;
}

/// Once the first look was told: nothing else is under way then.
async fn first_look(project: &Project, name: &str) {
    eventually("the first look is told", || resyncs(project, name) > 0).await;
}

#[tokio::test]
async fn an_edit_goes_into_the_machine_and_another_manifest_gets_another_machine() {
    let (dir, worker) = local(true);
    let project = Project::new(&[worker]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    first_look(&project, "a").await;
    edit_until_told(&project, &dir, "a").await;
    assert_eq!(project.host.launches_of("a"), 1);
    fs::write(dir.path().join("iii.worker.yaml"), manifest("two")).unwrap();
    daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;

    // One that is no manifest leaves what runs, and says so.
    fs::write(dir.path().join("iii.worker.yaml"), "name: [").unwrap();
    let status = daemon.until("a", |s| s.detail.is_some() && s.phase == Phase::Running).await;
    assert!(status.detail.as_ref().unwrap().contains("not in force"), "{status:?}");
    let said = |lines: &[String]| lines.iter().filter(|line| line.contains("not in force")).count();
    assert_eq!(said(&project.lines.lock().unwrap()), 1, "it is announced");
    fs::write(dir.path().join("iii.worker.yaml"), manifest("two")).unwrap();
    daemon.until("a", |s| s.detail.is_none()).await;
    assert_eq!(project.host.launches_of("a"), 2);
}

#[tokio::test]
async fn who_is_not_watched_is_left_alone_until_somebody_works_on_it() {
    let (dir, worker) = local(false);
    let project = Project::new(&[worker.clone(), witness(&worker)]);
    let daemon = project.daemon().await;
    let view = daemon.view("a").await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.until_phase("b", Phase::Running).await;
    first_look(&project, "b").await;
    edit_until_told(&project, &dir, "b").await;
    assert_eq!(resyncs(&project, "a"), 0);
    let developer = view.developers.join();
    // What was edited before counts too.
    first_look(&project, "a").await;
    edit_until_told(&project, &dir, "a").await;
    drop(developer);
    edit_until_told(&project, &dir, "b").await;
    let before = resyncs(&project, "a");
    edit_until_told(&project, &dir, "b").await;
    assert_eq!(resyncs(&project, "a"), before);

    // The entry turns it on without a restart.
    project.edit(|config| config.workers[0].watch = true);
    daemon.reload().await.unwrap();
    eventually("the first look is told", || resyncs(&project, "a") > before).await;
    assert_eq!(project.host.launches_of("a"), 1);
}

#[tokio::test]
async fn an_edit_starts_what_has_failed_and_not_what_was_stopped() {
    let (dir, mut worker) = local(true);
    worker.restart.policy = RestartPolicy::Never;
    let project = Project::new(&[worker.clone(), witness(&worker)]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    daemon.until_phase("b", Phase::Running).await;
    first_look(&project, "a").await;
    first_look(&project, "b").await;
    project.host.end("a", ExitCause::Exit { code: 1 });
    daemon.until_phase("a", Phase::Failed).await;
    edit_until_told(&project, &dir, "b").await;
    daemon.until("a", |s| s.phase == Phase::Running && s.generation == 2).await;
    daemon.stop("a", None).await.unwrap();
    daemon.until_phase("a", Phase::Stopped).await;
    edit_until_told(&project, &dir, "b").await;
    assert_eq!(project.host.launches_of("a"), 2);
}

#[tokio::test]
async fn a_daemon_that_comes_after_an_edit_has_it_brought_in() {
    let (dir, worker) = local(true);
    let project = Project::new(&[worker]);
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    first_look(&project, "a").await;
    daemon.kill().await;
    let before = resyncs(&project, "a");
    fs::write(dir.path().join("file"), "edited while nobody looks").unwrap();
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Running).await;
    eventually("the machine is told", || resyncs(&project, "a") > before).await;
    assert_eq!(project.host.launches_of("a"), 1);
}

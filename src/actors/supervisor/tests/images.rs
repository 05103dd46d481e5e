//! Pulls: shared, bounded, told, and never lost.

use std::time::Duration;

use iii_protocol::api::{ErrorBody, Phase, PullEvent, PullRequest};
use iii_protocol::exit::ExitCause;
use iii_protocol::guest::ROOT_DISK;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fakes::Behaviour;
use super::project::{Daemon, Project, error};
use crate::actors::image_puller::{MAX_PULLS, PROGRESS_QUEUE};
use crate::actors::messages::SupervisorMsg;
use crate::actors::worker::tests::worker_config;
use crate::config::schema::Source;

fn without_images(names: &[&str], takes: Duration) -> Project {
    let project = Project::named(names);
    {
        let mut images = project.images.0.lock().unwrap();
        images.here.clear();
        images.takes = takes;
    }
    project
}

fn pull(daemon: &Daemon, reference: &str, force: bool, queue: usize) -> mpsc::Receiver<PullEvent> {
    let (events, seen) = mpsc::channel(queue);
    let request = PullRequest { reference: reference.into(), force, to_start: false };
    daemon.root.cast(SupervisorMsg::Pull { request, events }).unwrap();
    seen
}

async fn last(mut seen: mpsc::Receiver<PullEvent>) -> Result<(), ErrorBody> {
    let mut last = None;
    while let Some(event) = seen.recv().await {
        last = Some(event);
    }
    match last {
        Some(PullEvent::Done { .. }) => Ok(()),
        Some(PullEvent::Failed { error }) => Err(error),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn two_workers_and_an_add_of_one_image_pull_it_once() {
    let mut b = worker_config("b");
    b.source = Source::Oci { image: "registry.test/a".into() };
    let project = Project::new(&[worker_config("a"), b]);
    project.images.0.lock().unwrap().here.clear();
    project.images.0.lock().unwrap().takes = Duration::from_secs(10);
    let daemon = project.daemon().await;
    for name in ["a", "b"] {
        let shown = "pulling registry.test/a: 1/2 layers, 1.0 MiB of 2.0 MiB";
        daemon.until(name, |s| s.detail.as_deref() == Some(shown)).await;
    }
    // One who comes late is told what is known.
    let mut seen = pull(&daemon, "registry.test/a", false, PROGRESS_QUEUE);
    assert!(matches!(seen.recv().await, Some(PullEvent::Resolved { layers: 2, .. })));
    assert!(matches!(seen.recv().await, Some(PullEvent::Layer { .. })));
    last(seen).await.unwrap();
    for name in ["a", "b"] {
        daemon.until_phase(name, Phase::Running).await;
    }
    assert_eq!(project.images.0.lock().unwrap().pulls, [("registry.test/a".to_owned(), false)]);
}

#[tokio::test(start_paused = true)]
async fn a_forced_pull_asks_again_and_a_job_outlives_who_asked() {
    let project = without_images(&[], Duration::from_secs(10));
    let daemon = project.daemon().await;
    drop(pull(&daemon, "r/x", false, 1));
    let waiting = pull(&daemon, "r/x", false, 1);
    let forced = pull(&daemon, "r/x", true, 1);
    let forced_too = pull(&daemon, "r/x", true, 1);
    // Queues of one: progress is skipped, the last event is not.
    for seen in [waiting, forced, forced_too] {
        last(seen).await.unwrap();
    }
    let pulls = project.images.0.lock().unwrap().pulls.clone();
    assert_eq!(pulls, [("r/x".to_owned(), false), ("r/x".to_owned(), true)]);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_pulls_run_at_once() {
    let project = without_images(&[], Duration::from_secs(10));
    let daemon = project.daemon().await;
    let pulls: Vec<_> = (0..10).map(|n| pull(&daemon, &format!("r/{n}"), false, 4)).collect();
    for seen in pulls {
        last(seen).await.unwrap();
    }
    assert_eq!(project.images.0.lock().unwrap().most_at_once, MAX_PULLS);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_says_why_and_is_tried_three_times_for_a_worker() {
    let project = without_images(&["a"], Duration::from_secs(1));
    project.images.0.lock().unwrap().errors = (0..3).map(|_| error("no such host")).collect();
    let daemon = project.daemon().await;
    let failed = daemon.until_phase("a", Phase::Failed).await;
    assert_eq!(failed.cause.unwrap().message, "no such host (3 tries)");
    assert_eq!(project.images.0.lock().unwrap().pulls.len(), 3);
    project.images.0.lock().unwrap().errors = [error("denied")].into();
    assert_eq!(last(pull(&daemon, "r/x", false, 4)).await.unwrap_err().message, "denied");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_for_a_machine_that_cannot_run_here() {
    let project = without_images(&["a"], Duration::from_secs(600));
    project.host.lock().unable = Some(error("no KVM"));
    let at = Instant::now();
    let daemon = project.daemon().await;
    let first = daemon.until_phase("a", Phase::Backoff).await;
    assert_eq!(first.cause.unwrap().message, "no KVM");
    let failed = daemon.until_phase("a", Phase::Failed).await;
    assert_eq!(failed.cause.unwrap().message, "no KVM (3 tries)");
    assert!(failed.exits.iter().all(|exit| exit.cause.could_not_start_by("host")), "{:?}", failed.exits);
    let (events, seen) = mpsc::channel(PROGRESS_QUEUE);
    let request = PullRequest { reference: "r/x".into(), force: true, to_start: true };
    daemon.root.cast(SupervisorMsg::Pull { request, events }).unwrap();
    assert_eq!(last(seen).await.unwrap_err().message, "no KVM");
    assert!(at.elapsed() < Duration::from_secs(2));
    assert!(project.images.0.lock().unwrap().pulls.is_empty());

    // A pull alone needs no machine.
    project.images.0.lock().unwrap().takes = Duration::ZERO;
    last(pull(&daemon, "r/x", false, PROGRESS_QUEUE)).await.unwrap();
    project.host.lock().unable = None;
    daemon.start("a").await.unwrap();
    daemon.until_phase("a", Phase::Running).await;
}

fn cannot_mount() -> ExitCause {
    ExitCause::CouldNotStart { what: ROOT_DISK.into(), message: "no superblock".into(), hint: None }
}

#[tokio::test(start_paused = true)]
async fn a_root_disk_that_a_machine_cannot_mount_is_built_again_if_it_is_damaged() {
    let project = Project::named(&["a", "b"]);
    project.images.0.lock().unwrap().damaged.insert("registry.test/a".into());
    let cannot = Behaviour { ends: Some((Duration::ZERO, cannot_mount())), ..Behaviour::default() };
    project.host.behave("a", cannot.clone());
    let daemon = project.daemon().await;
    daemon.until_phase("a", Phase::Backoff).await;
    // The disk that the next machine gets is another one.
    project.host.behave("a", Behaviour::default());
    let status = daemon.until_phase("a", Phase::Running).await;
    assert_eq!((status.generation, status.exits[0].cause.clone()), (2, cannot_mount()));
    {
        let images = project.images.0.lock().unwrap();
        assert_eq!(images.checks, ["registry.test/a"]);
        assert_eq!(images.pulls, [("registry.test/a".to_owned(), false)]);
    }

    // One that is not damaged is not made again; it is looked at before each try, by a later daemon too.
    project.host.behave("b", cannot);
    daemon.restart("b").await.unwrap();
    daemon.until_phase("b", Phase::Failed).await;
    daemon.kill().await;
    let daemon = project.daemon().await;
    daemon.until_phase("b", Phase::Failed).await;
    let images = project.images.0.lock().unwrap();
    assert_eq!(images.checks.iter().filter(|reference| *reference == "registry.test/b").count(), 5);
    assert_eq!(images.pulls.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_panics_is_an_error_and_the_next_one_works() {
    let project = without_images(&[], Duration::from_secs(1));
    project.images.0.lock().unwrap().panics = true;
    let daemon = project.daemon().await;
    let error = last(pull(&daemon, "r/x", false, 4)).await.unwrap_err();
    assert!(error.message.contains("ended abnormally"), "{}", error.message);
    last(pull(&daemon, "r/x", false, 4)).await.unwrap();
}

//! Every route of the table in `iii_protocol::api`, asked as the CLI asks.

use iii::cli::client::{Client, ClientError, worker_path};
use iii_protocol::api::*;
use serde_json::json;

use crate::fake::{Project, status};

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorBody {
    match result {
        Err(ClientError::Refused(body)) => body,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_route_answers_with_its_type() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let client = project.ctx.client();

    let info: DaemonInfo = client.get("/v1/daemon").await.unwrap();
    assert_eq!(info.config_path, project.ctx.config.display().to_string());
    let list: WorkerList = client.get("/v1/workers").await.unwrap();
    assert_eq!(list.workers[0].name, "web");
    let one: WorkerStatus = client.get("/v1/workers/web").await.unwrap();
    assert_eq!(one.phase, Phase::Running);
    let _: WorkerStatus = client.post("/v1/workers/web/start", &json!({})).await.unwrap();
    let _: WorkerStatus = client.post("/v1/workers/web/stop", &json!({"grace_ms": 5})).await.unwrap();
    let _: WorkerStatus = client.post("/v1/workers/web/restart", &json!({})).await.unwrap();
    let reply: ReloadReply = client.post("/v1/reload", &json!({})).await.unwrap();
    assert_eq!(reply.changed, ["web"]);
    assert_eq!(project.asked(), ["start web", "stop web Some(5)", "restart web None", "reload"]);
    daemon.end().await;
}

#[tokio::test]
async fn a_pull_is_told_event_by_event_to_its_end() {
    let project = Project::new("workers: []\n");
    let image = PulledImage {
        digest: "sha256:aa".to_owned(),
        env: vec![],
        root_disk_bytes: 1,
        resources: ResourceHints { memory_mib: Some(512), cpus: None },
        warnings: vec!["odd".to_owned()],
    };
    project.world.lock().unwrap().pull = vec![
        PullEvent::Resolved { digest: "sha256:aa".to_owned(), layers: 0, total_bytes: 0 },
        PullEvent::Done { image: image.clone() },
    ];
    let daemon = project.serve().await;
    let client = project.ctx.client();
    let request = PullRequest { reference: "redis:7".to_owned(), force: true, to_start: false };

    let mut events = client.post_lines("/v1/images/pull", &request).await.unwrap();
    assert!(matches!(events.next_json().await.unwrap(), Some(PullEvent::Resolved { .. })));
    assert_eq!(events.next_json().await.unwrap(), Some(PullEvent::Done { image }));
    assert_eq!(events.next().await.unwrap(), None);

    // A puller that dies without a word is no silence for the client.
    let mut events = client.post_lines("/v1/images/pull", &request).await.unwrap();
    let last: PullEvent = events.next_json().await.unwrap().unwrap();
    assert!(matches!(last, PullEvent::Failed { error } if error.code == ErrorCode::Internal));
    assert_eq!(project.asked(), ["pull redis:7 true", "pull redis:7 true"]);
    daemon.end().await;
}

#[tokio::test]
async fn a_watch_brings_the_present_status_then_each_change_and_ends_with_the_daemon() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Booting));
    let daemon = project.serve().await;
    let mut changes = project.ctx.client().get_lines("/v1/workers/web/watch").await.unwrap();
    assert_eq!(changes.next_json::<WorkerStatus>().await.unwrap().unwrap().phase, Phase::Booting);
    project.world.lock().unwrap().workers["web"].status.send_replace(status("web", Phase::Running));
    assert_eq!(changes.next_json::<WorkerStatus>().await.unwrap().unwrap().phase, Phase::Running);
    daemon.end().await;
    assert!(changes.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_outlives_the_replacement_of_a_workers_actor_and_ends_with_its_removal() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let mut changes = project.ctx.client().get_lines("/v1/workers/web/watch").await.unwrap();
    changes.next().await.unwrap().unwrap();
    // The sender of before goes with the insert.
    project.add(status("web", Phase::Booting));
    assert_eq!(changes.next_json::<WorkerStatus>().await.unwrap().unwrap().phase, Phase::Booting);
    project.world.lock().unwrap().workers.clear();
    assert!(changes.next().await.unwrap().is_none());
    daemon.end().await;
}

#[tokio::test]
async fn what_does_not_exist_is_told_as_such() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let client = project.ctx.client();
    for route in ["", "watch", "logs"] {
        let error = refused(client.get::<()>(&worker_path("wbe", route)).await);
        assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::NotFound, Some("did you mean `web`?")));
    }
    for verb in ["start", "stop", "restart"] {
        let error = refused(client.post::<()>(&worker_path("wbe", verb), &json!({})).await);
        assert_eq!(error.code, ErrorCode::NotFound);
    }
    let error = refused(client.get::<()>("/v2/nothing").await);
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::NotFound, "there is no route GET /v2/nothing")
    );
    let error = refused(client.post::<()>("/v1/workers", &json!({})).await);
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::BadRequest, "/v1/workers does not answer POST")
    );
    daemon.end().await;
}

#[tokio::test]
async fn a_wrong_request_is_told_what_is_wrong_with_it() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let client: Client = project.ctx.client();
    let wrong = [
        refused(client.post::<()>("/v1/workers/web/stop", &json!({"grace": 5})).await),
        refused(client.post::<()>("/v1/images/pull", &json!({})).await),
        refused(client.get::<()>("/v1/workers/web/logs?tail=x").await),
        refused(client.get::<()>("/v1/workers/web/logs?lines=3").await),
        refused(client.get::<()>("/v1/workers/web/logs?follow=true&previous=true").await),
        refused(client.post::<()>("/v1/workers/web/stop", &"x".repeat(100_000)).await),
    ];
    let expected = [
        "unknown field `grace`",
        "missing field `reference`",
        "tail",
        "lines",
        "exclude each other",
        "limit",
    ];
    for (error, expected) in wrong.iter().zip(expected) {
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(expected), "{} should contain {expected}", error.message);
    }
    assert!(project.asked().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn while_the_tree_is_ending_requests_are_refused_as_such() {
    let project = Project::new("workers: []\n");
    let daemon = project.serve().await;
    daemon.supervisor.stop_and_wait(None, None).await.unwrap();
    let error = refused(project.ctx.client().get::<WorkerList>("/v1/workers").await);
    assert_eq!(error.code, ErrorCode::ShuttingDown);
    daemon.end().await;
}

//! Working on a project: its files are followed as long as somebody reads, and not a moment longer.

use std::time::Duration;

use iii::cli::client::ClientError;
use iii_protocol::api::{ErrorCode, Phase, WorkerStatus, WorkerType};
use serde_json::json;

use crate::fake::{Project, status};

fn is_followed(project: &Project) -> bool {
    project.world.lock().unwrap().workers["app"].developers.is_any()
}

#[tokio::test]
async fn a_project_is_followed_for_as_long_as_its_stream_is_read() {
    let project = Project::new("workers: []\n");
    project.add(WorkerStatus { worker_type: WorkerType::Local, ..status("app", Phase::Running) });
    let daemon = project.serve().await;
    let client = project.ctx.client();
    let mut changes = client.post_lines("/v1/workers/app/develop", &json!({})).await.unwrap();
    let first: WorkerStatus = changes.next_json().await.unwrap().unwrap();
    assert_eq!(first.phase, Phase::Running);
    assert!(is_followed(&project));
    drop(changes);
    let gone = async {
        while is_followed(&project) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("who has left follows nothing");
    daemon.end().await;
}

#[tokio::test]
async fn what_is_no_project_cannot_be_worked_on() {
    let project = Project::new("workers: []\n");
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let refused = project.ctx.client().post_lines("/v1/workers/web/develop", &json!({})).await;
    match refused.map(drop) {
        Err(ClientError::Refused(body)) => {
            assert_eq!(body.code, ErrorCode::Conflict);
            assert!(body.message.contains("no local project"), "{}", body.message);
        }
        other => panic!("{other:?}"),
    }
    daemon.end().await;
}

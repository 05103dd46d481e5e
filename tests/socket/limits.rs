//! The daemon serves a bounded number of connections, and says so to those above it.

use iii::cli::client::ClientError;
use iii::daemon::server::{MAX_CONNECTIONS, MAX_REFUSALS};
use iii_protocol::api::{DaemonInfo, ErrorCode};
use tokio::net::UnixStream;

use crate::fake::Project;

#[tokio::test]
async fn one_connection_too_many_is_told_why() {
    let project = Project::new("workers: []\n");
    let daemon = project.serve().await;
    let socket = project.ctx.home.daemon_socket(&project.ctx.project);
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(UnixStream::connect(&socket).await.unwrap());
    }
    let client = project.ctx.client();
    match client.get::<DaemonInfo>("/v1/daemon").await {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.code, ErrorCode::Host);
            assert!(error.message.contains("its limit"), "{}", error.message);
        }
        other => panic!("{other:?}"),
    }
    for _ in 0..MAX_REFUSALS {
        held.push(UnixStream::connect(&socket).await.unwrap());
    }
    assert!(matches!(client.get::<DaemonInfo>("/v1/daemon").await, Err(ClientError::Gone(_))));
    drop(held);
    // The places are free as soon as the daemon has seen that; each answer is true at its time.
    loop {
        match client.get::<DaemonInfo>("/v1/daemon").await {
            Ok(_) => break,
            Err(ClientError::Refused(_) | ClientError::Gone(_)) => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
    }
    daemon.end().await;
}

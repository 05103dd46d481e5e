//! Sessions of a worker, asked for at the daemon.

use iii_protocol::frame::FrameError;
use iii_protocol::session::{Task, UPGRADE};

use super::client::{Client, ClientError, worker_path};
use crate::session::{Session, open_frame, start};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The daemon says no, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What is to be done does not fit into a frame: far too many arguments.
    #[error("the request is too large: {0}")]
    TooLarge(FrameError),
}

/// Opens a session of a worker. Must be called within a runtime, which then moves the frames.
pub async fn open(client: &Client, worker: &str, task: Task) -> Result<Session, OpenError> {
    // Before anybody is asked: it either fits or never will.
    let open = open_frame(task).map_err(OpenError::TooLarge)?;
    let upgraded = client.upgrade(&worker_path(worker, "session"), UPGRADE, &open).await?;
    start(upgraded.stream, upgraded.received, upgraded.unsent)
        .map_err(|source| client.unreachable(source).into())
}

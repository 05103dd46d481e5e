//! What the daemon's edge may ask of the supervisor tree.

use std::sync::Arc;

use iii_protocol::api::{ErrorBody, PullEvent, PullRequest, ReloadReply, WorkerList, WorkerStatus};
use ractor::RpcReplyPort;
use tokio::sync::{mpsc, watch};

use super::config_watcher::Reading;
use super::worker::developers::Developers;
use crate::logs::LogRing;

/// A worker as the edge sees it: status by `watch`, output by ring, no actor messages for either.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// The present status and its changes.
    pub status: watch::Receiver<WorkerStatus>,
    /// The newest output.
    pub ring: Arc<LogRing>,
    /// Who works on its project.
    pub developers: Developers,
}

/// Requests to the root supervisor. Each is legal at any time; names are checked by the root.
#[derive(Debug)]
pub enum SupervisorMsg {
    /// All workers in config order, and what is wrong with the file on disk.
    List {
        /// Answered at once, whatever the workers do.
        reply: RpcReplyPort<WorkerList>,
    },
    /// One worker's status and output.
    View {
        /// The worker.
        name: String,
        /// `not-found` with a "did you mean" hint for an unknown name.
        reply: RpcReplyPort<Result<WorkerView, ErrorBody>>,
    },
    /// Desired state: running. Idempotent; from `failed` and `backoff` it tries again now.
    Start {
        /// The worker.
        name: String,
        /// The status right after acceptance.
        reply: RpcReplyPort<Result<WorkerStatus, ErrorBody>>,
    },
    /// Desired state: stopped. Never refused, idempotent, cancels a pending restart.
    Stop {
        /// The worker.
        name: String,
        /// Instead of the configured grace, milliseconds.
        grace_ms: Option<u64>,
        /// The status right after acceptance.
        reply: RpcReplyPort<Result<WorkerStatus, ErrorBody>>,
    },
    /// Stop, then start.
    Restart {
        /// The worker.
        name: String,
        /// Instead of the configured grace, milliseconds.
        grace_ms: Option<u64>,
        /// The status right after acceptance.
        reply: RpcReplyPort<Result<WorkerStatus, ErrorBody>>,
    },
    /// Reads config.yaml now instead of when the file system tells.
    Reload {
        /// Names that changed, or why the file is not in force.
        reply: RpcReplyPort<Result<ReloadReply, ErrorBody>>,
    },
    /// Pulls an image; the last event is `Done` or `Failed`. Dropping the receiver does not cancel the job.
    Pull {
        /// What and whether to ask the registry again.
        request: PullRequest,
        /// Progress; a full channel skips progress, never the last event.
        events: mpsc::Sender<PullEvent>,
    },
    /// The daemon is told to end: stops all machines in parallel. `force` kills them at once. The root
    /// stops itself when the last one has ended.
    Shutdown {
        /// No grace.
        force: bool,
    },
    /// News from within the tree; the edge cannot make any.
    Fact(Fact),
}

/// What the tree tells its root.
#[derive(Debug)]
pub struct Fact(pub(super) FactKind);

/// See [`Fact`].
#[derive(Debug)]
pub(super) enum FactKind {
    /// Nothing of this worker runs any more, as was asked by `Leave`.
    AtRest {
        /// The worker.
        name: String,
    },
    /// config.yaml was read.
    ConfigRead(Reading),
    /// The shutdown takes too long.
    Overdue {
        /// The deadline was that of the kill.
        killed: bool,
    },
    /// A helper actor that failed too often may be tried again.
    Revive(Helper),
}

/// An actor that serves all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Helper {
    /// The image puller.
    Puller,
    /// The config watcher.
    Watcher,
}

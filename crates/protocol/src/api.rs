//! CLI to daemon: JSON bodies of `/v1`, spoken over HTTP/1.1 on `run/<project>/iii.sock`.
//!
//! | request | reply |
//! |---|---|
//! | `GET /v1/daemon` | [`DaemonInfo`] |
//! | `GET /v1/workers` | [`WorkerList`] |
//! | `GET /v1/workers/{name}` | [`WorkerStatus`] |
//! | `GET /v1/workers/{name}/watch` | NDJSON of [`WorkerStatus`], the current one first, then one per change |
//! | `POST /v1/workers/{name}/develop` | the same; as long as it is read, edits of the worker's project are brought into its machine |
//! | `POST /v1/workers/{name}/start` | [`WorkerStatus`] right after acceptance |
//! | `POST /v1/workers/{name}/stop` | likewise, body [`StopRequest`] |
//! | `POST /v1/workers/{name}/restart` | likewise, body [`StopRequest`] |
//! | `GET /v1/workers/{name}/logs?follow&tail&since&previous&events` | NDJSON of log records ([`crate::log`]), [`LogsQuery`] |
//! | `POST /v1/workers/{name}/session`, `Upgrade: iii-session/1` | `101`, then the frames of [`crate::session`] |
//! | `POST /v1/images/pull` | NDJSON of [`PullEvent`], body [`PullRequest`] |
//! | `POST /v1/reload` | [`ReloadReply`]: config.yaml was read again, now |
//!
//! Errors have a 4xx or 5xx status and an [`ErrorBody`].

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit::ExitRecord;
use crate::log::Wanted;
use crate::network::Network;
use crate::shim::NOT_IN_FORCE;

/// The closed set of error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong (400).
    BadRequest,
    /// No such worker, or no such route (404).
    NotFound,
    /// The request does not fit the present state (409).
    Conflict,
    /// config.yaml does not parse or validate (422).
    BadConfig,
    /// An image could not be resolved, pulled or built (502).
    Image,
    /// A limit or resource of the host: KVM, disk, permission (503).
    Host,
    /// The daemon is going down (503).
    ShuttingDown,
    /// A defect of the daemon (500).
    Internal,
}

/// Body of every reply that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, where and why, lower case.
    pub message: String,
    /// What to do next, if there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What kind of worker; the TYPE column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerType {
    /// A local project folder (`worker_path:`).
    Local,
    /// An OCI image (`image:`).
    Oci,
    /// A native binary; known from existing config files, not run by this version.
    Binary,
    /// An entry with neither image nor path.
    Config,
}

/// The TYPE words of `iii worker list`.
impl std::fmt::Display for WorkerType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            WorkerType::Local => "Local",
            WorkerType::Oci => "OCI",
            WorkerType::Binary => "Binary",
            WorkerType::Config => "Config",
        })
    }
}

/// The STATUS words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not running and not wanted.
    Stopped,
    /// Image, disks.
    Preparing,
    /// The machine is coming up.
    Booting,
    /// The workload runs.
    Running,
    /// On the way down.
    Stopping,
    /// Will be started again at `until`.
    Backoff,
    /// Dies again and again; still retried at `until`.
    CrashLoop,
    /// Given up; `cause` says why.
    Failed,
}

/// The words of [`Phase`] as `list` prints them: `running`, `crash-loop`...
impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Phase::Stopped => "stopped",
            Phase::Preparing => "preparing",
            Phase::Booting => "booting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Backoff => "backoff",
            Phase::CrashLoop => "crash-loop",
            Phase::Failed => "failed",
        })
    }
}

/// What the user last asked for; durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Should run.
    Running,
    /// Should not run.
    Stopped,
}

/// Memory, vCPUs and scratch disk of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Scratch disk, bytes (sparse).
    pub disk_bytes: u64,
}

/// What a machine's network did not let through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// How often.
    pub count: u64,
    /// The newest, for people: `tcp 10.0.0.5:22 (private)`.
    #[serde(default)]
    pub last: Option<String>,
}

/// Everything known about a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its name in config.yaml.
    pub name: String,
    /// Image or project.
    #[serde(rename = "type")]
    pub worker_type: WorkerType,
    /// Where it is now.
    pub phase: Phase,
    /// What is being done: `pulling docker.io/...: 3/5 layers`; of a running worker, what is done to it meanwhile.
    #[serde(default)]
    pub detail: Option<String>,
    /// The cause of the present phase (backoff, crash-loop, failed), with hint.
    #[serde(default)]
    pub cause: Option<ErrorBody>,
    /// When the phase began.
    pub since: Timestamp,
    /// When the phase ends by itself: boot deadline, stop deadline, next retry.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// Since when the workload runs.
    #[serde(default)]
    pub running_since: Option<Timestamp>,
    /// What the user last asked for.
    pub desired: Desired,
    /// Counts starts of the machine.
    pub generation: u64,
    /// Counts state changes since this daemon's start; grows with each `watch` item.
    pub revision: u64,
    /// Automatic restarts since the last explicit start.
    pub restarts: u64,
    /// Newest first, at most ten.
    pub exits: Vec<ExitRecord>,
    /// As the user wrote it.
    #[serde(default)]
    pub image: Option<String>,
    /// `sha256:...` of the manifest, once resolved.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// What the machine gets.
    pub resources: Resources,
    /// What it may reach, and what of it can be reached.
    #[serde(default)]
    pub network: Network,
    /// What its network has refused since the machine's start.
    #[serde(default)]
    pub refused: Refused,
    /// Process id of the shim.
    #[serde(default)]
    pub shim_pid: Option<u32>,
    /// Process id of the VMM.
    #[serde(default)]
    pub vmm_pid: Option<u32>,
    /// Folder of the log files.
    pub log_dir: String,
}

impl WorkerStatus {
    /// Whether nothing will change without a new request or a long wait: what waiting commands wait for.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Stopped | Phase::Running | Phase::Failed)
    }

    /// What is being done, without how far it is: `copying the project` of `copying the project: 5 of 300`.
    pub fn step(&self) -> Option<&str> {
        let detail = self.detail.as_deref()?;
        Some(detail.split_once(": ").map_or(detail, |(step, _)| step))
    }

    /// That and why the last edit of a running worker's project is not in force.
    pub fn not_in_force(&self) -> Option<&str> {
        let detail = self.detail.as_deref().filter(|_| self.phase == Phase::Running)?;
        detail.starts_with(NOT_IN_FORCE).then_some(detail)
    }
}

/// Reply of `GET /v1/workers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerList {
    /// In the order of config.yaml.
    pub workers: Vec<WorkerStatus>,
    /// Why the file on disk is not in force, with line and caret; the last good one is.
    #[serde(default)]
    pub config_error: Option<String>,
}

/// Reply of `GET /v1/daemon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Process id.
    pub pid: u32,
    /// Version of the binary.
    pub version: String,
    /// Absolute path of config.yaml.
    pub config_path: String,
    /// Since when.
    pub started_at: Timestamp,
}

/// Body of stop and restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Instead of the worker's `stop_timeout`, milliseconds; 0 kills at once.
    #[serde(default)]
    pub grace_ms: Option<u64>,
}

/// Query of the logs route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Go on with new records until the client leaves.
    #[serde(default)]
    pub follow: bool,
    /// Only the last N records.
    #[serde(default)]
    pub tail: Option<u64>,
    /// Only records at or after this time.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Only the generation before the last one.
    #[serde(default)]
    pub previous: bool,
    /// Instead of what the workload wrote, what its network refused ([`crate::log::Stream::Event`]).
    #[serde(default)]
    pub events: bool,
}

impl LogsQuery {
    /// Which records are asked for.
    pub fn wanted(&self) -> Wanted {
        if self.events { Wanted::Events } else { Wanted::Output }
    }
}

/// Body of pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// As the user typed it.
    pub reference: String,
    /// Ask the registry even if the reference is known here, and look whether what is here is damaged.
    #[serde(default)]
    pub force: bool,
    /// It is for a worker that is to start: fail before anything is fetched if this host cannot run machines.
    #[serde(default)]
    pub to_start: bool,
}

/// One line of a pull's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PullEvent {
    /// The reference is known by digest now.
    Resolved {
        /// `sha256:...` of the manifest.
        digest: String,
        /// Number of layers.
        layers: usize,
        /// Bytes to download at most, compressed.
        total_bytes: u64,
    },
    /// Bytes of one layer have arrived.
    Layer {
        /// `sha256:...` of the blob.
        digest: String,
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// It was here already.
        cached: bool,
    },
    /// The root disk that is here is compared with what was built.
    Checking {
        /// Bytes of the disk looked at so far.
        done_bytes: u64,
        /// Bytes of the disk in all.
        total_bytes: u64,
    },
    /// The root disk is being built.
    Building {
        /// Compressed layer bytes consumed so far.
        done_bytes: u64,
        /// Compressed layer bytes in all.
        total_bytes: u64,
    },
    /// Ready to start.
    Done {
        /// The image.
        image: PulledImage,
    },
    /// It ends here.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// What `add` needs of a pulled image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    /// `sha256:...` of the manifest.
    pub digest: String,
    /// `KEY=VALUE` as the image declares them.
    pub env: Vec<String>,
    /// Bytes of the root disk.
    pub root_disk_bytes: u64,
    /// What its `/iii/worker.yaml` asks for.
    #[serde(default)]
    pub resources: ResourceHints,
    /// What of its `/iii/worker.yaml` cannot be used, and why; each a line without control characters.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What an image says about the machine it wants; not checked against any limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceHints {
    /// Memory, MiB.
    #[serde(default)]
    pub memory_mib: Option<u32>,
    /// Virtual CPUs.
    #[serde(default)]
    pub cpus: Option<u8>,
}

impl ResourceHints {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == ResourceHints::default()
    }
}

/// Reply of `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// Names that were added, removed or changed.
    pub changed: Vec<String>,
}

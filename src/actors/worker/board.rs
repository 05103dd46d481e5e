//! What others see of a worker. The board outlives the worker's actor.

use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::{Phase, Refused, Resources, WorkerStatus};
use jiff::Timestamp;
use tokio::sync::watch;

use super::state::{Claim, Order, Patience, Preparing, State, Waiting, Worker};
use crate::config::schema::{Source, WorkerConfig};

/// The detail of a worker of which is not known yet whether it runs.
const LOOKING: &str = "looking for a machine that runs already";

/// Whether nothing is known of this worker yet: its machine may run, and not be taken over.
pub fn is_being_claimed(status: &WorkerStatus) -> bool {
    status.phase == Phase::Preparing && status.detail.as_deref() == Some(LOOKING)
}

/// Told of each change that is worth a line; must not block.
pub type Announce = Arc<dyn Fn(&WorkerStatus) + Send + Sync>;

/// The one place where a worker's status becomes visible.
pub struct Board {
    status: watch::Sender<WorkerStatus>,
    announce: Announce,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl Board {
    /// A board that shows `first`, which is not announced.
    pub fn new(first: WorkerStatus, announce: Announce) -> Board {
        Board { status: watch::Sender::new(first), announce }
    }

    /// The present status and its changes.
    pub fn subscribe(&self) -> watch::Receiver<WorkerStatus> {
        self.status.subscribe()
    }

    /// The present status.
    pub fn current(&self) -> WorkerStatus {
        self.status.borrow().clone()
    }

    /// Shows `status` with the next revision, unless nothing in it is new.
    pub fn publish(&self, mut status: WorkerStatus) {
        let old = self.current();
        status.revision = old.revision;
        if status == old {
            return;
        }
        status.revision += 1;
        let announced = is_announced(&old, &status);
        self.status.send_replace(status.clone());
        if announced {
            (self.announce)(&status);
        }
    }
}

/// The progress of a pull and the numbers of processes change too often for a line each.
fn is_announced(old: &WorkerStatus, new: &WorkerStatus) -> bool {
    let key = |status: &WorkerStatus| (status.phase, status.cause.clone(), status.generation);
    let slow_stop = new.phase == Phase::Stopping && new.detail.is_some() && new.detail != old.detail;
    // The workload was restarted in place, or was to be and could not.
    let edit = new.phase == Phase::Running
        && (new.running_since != old.running_since || new.not_in_force() != old.not_in_force());
    // A project on its way to its workload: what is done, not how far it is.
    let step = new.phase == Phase::Booting && new.step() != old.step();
    key(old) != key(new) || slow_stop || edit || step
}

/// What the status says besides the worker itself.
#[derive(Debug, Clone, Default)]
pub struct Surface {
    /// `sha256:...` of the manifest.
    pub image_digest: Option<String>,
    /// The shim's process id.
    pub shim_pid: Option<u32>,
    /// The VMM's process id.
    pub vmm_pid: Option<u32>,
    /// What the machine's network has refused.
    pub refused: Refused,
    /// Folder of the log files.
    pub log_dir: String,
    /// Reference of the image that a project's machine starts from.
    pub base_image: Option<String>,
    /// What the machine may have, where not only the configuration says so.
    pub resources: Option<Resources>,
    /// What is done to the running machine, or came of it.
    pub activity: Option<String>,
    /// Why an edit of the project is not even tried.
    pub unreadable: Option<String>,
}

/// A worker as its status shows it; the revision is the board's.
pub fn status_of(worker: &Worker, config: &WorkerConfig, surface: &Surface) -> WorkerStatus {
    let (cause, until, running_since) = match &worker.state {
        State::Stopped | State::Preparing(_) => (None, None, None),
        State::Booting { deadline, .. } => (None, Some(deadline.wall), None),
        State::Running { since } => (None, None, Some(*since)),
        State::Stopping(stopping) => (None, Some(stopping.kill_at.wall), stopping.running_since),
        State::Backoff { until, cause, .. } => (Some(cause.clone()), Some(until.wall), None),
        State::Unready { cause } | State::Failed { cause } => (Some(cause.clone()), None, None),
    };
    let detail = detail_of(worker, surface);
    let Surface { image_digest, shim_pid, vmm_pid, refused, log_dir, base_image, resources, .. } =
        surface.clone();
    WorkerStatus {
        name: worker.name.clone(),
        worker_type: config.worker_type(),
        phase: worker.phase(),
        detail,
        cause,
        since: worker.since,
        until,
        running_since,
        desired: worker.record.desired,
        generation: worker.record.generation,
        revision: 0,
        restarts: worker.record.restarts,
        exits: worker.record.exits.clone(),
        image: match &config.source {
            Source::Oci { image } => Some(image.clone()),
            Source::Local { .. } => base_image,
            Source::None => None,
        },
        image_digest,
        resources: resources.unwrap_or(config.resources),
        network: config.network.clone(),
        refused,
        shim_pid,
        vmm_pid,
        log_dir,
    }
}

fn detail_of(worker: &Worker, surface: &Surface) -> Option<String> {
    match &worker.state {
        State::Preparing(Preparing::Claim) => match worker.claim {
            Claim::Pending(Order::Stop { .. } | Order::Leave { .. }) => {
                Some("looking for its machine".to_owned())
            }
            Claim::Pending(
                Order::Resume | Order::Recorded | Order::Retry | Order::Start | Order::Restart,
            )
            | Claim::Held => Some(LOOKING.to_owned()),
        },
        State::Preparing(Preparing::Image { detail }) => {
            Some(detail.clone().unwrap_or_else(|| "getting the image".to_owned()))
        }
        State::Preparing(Preparing::Launch { .. }) => Some("launching the machine".to_owned()),
        State::Booting { kills: 0, detail, .. } => detail.clone(),
        State::Running { .. } => surface.unreadable.clone().or_else(|| surface.activity.clone()),
        State::Stopped | State::Unready { .. } | State::Failed { .. } => None,
        State::Booting { .. } => Some("the boot is overdue; killing the machine".to_owned()),
        State::Backoff { attempt, .. } => Some(format!("try {attempt} in a row")),
        State::Stopping(stopping) => match (stopping.patience, stopping.waiting) {
            (Patience::Asked, Waiting::Machine) => None,
            (Patience::Asked | Patience::Slow, Waiting::Launch) => {
                Some("the launch has to end before the machine can be stopped".to_owned())
            }
            (Patience::Slow, Waiting::Machine) => {
                Some(format!("has not ended yet; killed {}", clock_time(stopping.kill_at.wall)))
            }
            (Patience::Killed { times, .. }, _) => Some(format!("killed {times}×, and has not ended yet")),
        },
    }
}

/// `in 8 s` would be wrong a second later, so the time itself is said.
fn clock_time(at: Timestamp) -> String {
    format!("at {at:.0}")
}

/// For the status of a worker that no actor has looked at yet.
pub fn first_status(config: &WorkerConfig, worker: &Worker, log_dir: &str) -> WorkerStatus {
    let surface = Surface { log_dir: log_dir.to_owned(), ..Surface::default() };
    status_of(worker, config, &surface)
}

/// Between two details of a pull that are shown.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

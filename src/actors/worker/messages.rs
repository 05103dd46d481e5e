//! What a worker's actor is told, and what it is born with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::{ErrorBody, WorkerStatus};
use iii_protocol::exit::ExitRecord;
use iii_protocol::shim::ShimStatus;
use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::{oneshot, watch};

use super::board::Board;
use super::developers::Developers;
use super::durable::{Record, Store};
use super::plan::{HostLimits, Recipe};
use super::state::{Failure, Order};
use crate::actors::image_puller::{ImageSource, PullerMsg};
use crate::config::schema::WorkerConfig;
use crate::image::store::RegistrySettings;
use crate::image::types::Image;
use crate::logs::LogRing;
use crate::vm::launcher::{Launcher, Machine};

/// The answer to a command: the status right after acceptance.
pub type StatusReply = RpcReplyPort<Result<WorkerStatus, ErrorBody>>;

/// Requests to a worker's actor, and what its tasks tell it.
#[derive(Debug)]
pub enum WorkerMsg {
    /// Desired state: running.
    Start {
        /// Answered once the desired state is on disk.
        reply: Option<StatusReply>,
    },
    /// Desired state: stopped.
    Stop {
        /// Instead of the configured one.
        grace: Option<Duration>,
        /// Answered once the desired state is on disk.
        reply: StatusReply,
    },
    /// A new machine.
    Restart {
        /// Instead of the configured one.
        grace: Option<Duration>,
        /// Answered once the desired state is on disk.
        reply: StatusReply,
    },
    /// Goes down and stays down, whatever the desired state; then the root is told.
    Leave {
        /// Instead of the configured one.
        grace: Option<Duration>,
    },
    /// The entry in the configuration was edited.
    Reconfigure {
        /// As it is now.
        config: Box<WorkerConfig>,
        /// Whether what runs must be replaced.
        restart: bool,
        /// Told when the status shows it.
        done: oneshot::Sender<()>,
    },
    /// The files of its project are looked at, for the first time or because some have changed.
    ProjectSeen {
        /// They have changed while they were followed.
        edited: bool,
    },
    /// The project was read again, after they were.
    Rechecked {
        /// It has been edited, as far as that counts.
        edited: bool,
        /// What the worker is made of now, and its image, if that is here; or why the project cannot be read.
        result: Box<Result<(Recipe, Option<Image>), ErrorBody>>,
    },
    /// Somebody begins or ceases to work on its project.
    Developers,
    /// The timer.
    Tick,
    /// The record was read and an earlier machine looked for.
    Claimed(Box<Result<Claimed, Failure>>),
    /// The image is on its way.
    Progressed {
        /// Of which start.
        generation: u64,
        /// For people.
        detail: String,
    },
    /// The image is here, or never will be.
    Imaged {
        /// Of which start.
        generation: u64,
        /// What came of it.
        result: Box<Result<(Recipe, Image), Failure>>,
    },
    /// The launcher is through.
    Launched {
        /// Of which start.
        generation: u64,
        /// What came of it.
        result: Result<Machine, Failure>,
    },
    /// A machine's news.
    Machine {
        /// Which.
        generation: u64,
        /// What its shim says.
        status: ShimStatus,
    },
    /// A machine's link ended; its last news came before.
    MachineLost {
        /// Which.
        generation: u64,
    },
}

/// What a claim found.
#[derive(Debug)]
pub struct Claimed {
    /// The worker's durable part.
    pub record: Record,
    /// What an earlier daemon or actor left.
    pub left: Left,
}

/// What an earlier daemon or actor left of a worker.
#[derive(Debug)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// It ended meanwhile.
    Ended(ExitRecord),
    /// It runs.
    Running {
        /// The shim's first word.
        status: Box<ShimStatus>,
        /// The machine; its first event is taken.
        machine: Machine,
        /// What the worker is made of now, and its image, if both can be told.
        wanted: Option<Box<(Recipe, Image)>>,
    },
}

/// What belongs to one worker and outlives its actor.
#[derive(Debug, Clone)]
pub struct Kit {
    /// What others see.
    pub board: Arc<Board>,
    /// The newest output.
    pub ring: Arc<LogRing>,
    /// What outlives the daemon.
    pub store: Arc<Store>,
    /// Who works on its project.
    pub developers: Developers,
    /// Held during a claim and a launch, so that two actors of one worker cannot get two machines.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

/// What all workers share.
#[derive(Clone)]
pub struct Surroundings {
    /// Brings machines up.
    pub launcher: Arc<dyn Launcher>,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
    /// Bounds of the host.
    pub host: HostLimits,
    /// The part of the configuration that is not about one worker.
    pub settings: watch::Receiver<Settings>,
    /// The puller, while there is one.
    pub puller: watch::Receiver<Option<ActorRef<PullerMsg>>>,
}

/// The part of the configuration that is not about one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which servers are asked for images, and how.
    pub registries: RegistrySettings,
    /// How long a machine outlives its daemon.
    pub orphan_grace: Duration,
}

/// How a worker's actor is born.
pub struct WorkerArgs {
    /// The worker's entry.
    pub config: WorkerConfig,
    /// What to do once it is claimed.
    pub order: Order,
    /// What outlives this actor.
    pub kit: Kit,
    /// What all workers share.
    pub around: Surroundings,
    /// Called when nothing of the worker runs any more, after [`WorkerMsg::Leave`].
    pub at_rest: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for WorkerArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerArgs")
            .field("config", &self.config.name)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

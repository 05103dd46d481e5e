//! The actor around `step`: messages in, effects out. Its handlers never wait for anything outside.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::{ErrorBody, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::shim::{MachinePhase, ShimStatus, StopMachine};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::board::{Board, Surface, status_of};
use super::durable::{Record, Store};
use super::plan::{self, Circumstances, HostLimits, millis};
use super::state::{Effect, Failure, Found, Input, Moment, Order, Policy, Remedy, State, Worker};
use super::tasks;
use crate::actors::image_puller::{ImageSource, PullerMsg};
use crate::config::schema::WorkerConfig;
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
        result: Box<Result<Image, Failure>>,
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
        status: ShimStatus,
        /// The machine; its first event is taken.
        machine: Machine,
        /// The image that the worker's reference means now, if it is here, and that reference.
        image: Option<(String, Image)>,
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
    /// Registries spoken to over plain http.
    pub insecure_registries: Vec<String>,
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

/// The actor.
#[derive(Debug)]
pub struct WorkerActor;

/// What changes in the actor.
pub struct WorkerState {
    /// Taken only during a step.
    worker: Worker,
    args: WorkerArgs,
    links: Vec<Link>,
    surface: Surface,
    timer: Option<Timer>,
}

/// The hold on one machine.
struct Link {
    generation: u64,
    commands: mpsc::Sender<StopMachine>,
    running_since: Option<jiff::Timestamp>,
    /// Hands on the machine's events. An actor that is gone must not take the last word with it.
    relay: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

/// Dropping it, also by a panic of the actor, calls it off.
struct Timer {
    due: Instant,
    task: AbortHandle,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Actor for WorkerActor {
    type Msg = WorkerMsg;
    type State = WorkerState;
    type Arguments = WorkerArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<WorkerMsg>,
        args: WorkerArgs,
    ) -> Result<WorkerState, ActorProcessingErr> {
        let worker = Worker::new(&args.config.name, policy_of(&args.config), args.order, Moment::now());
        let log_dir = args.kit.board.current().log_dir;
        let surface = Surface { log_dir, ..Surface::default() };
        Ok(WorkerState { worker, args, links: Vec::new(), surface, timer: None })
    }

    async fn post_start(
        &self,
        myself: ActorRef<WorkerMsg>,
        state: &mut WorkerState,
    ) -> Result<(), ActorProcessingErr> {
        state.perform(&myself, Effect::Claim);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkerMsg>,
        message: WorkerMsg,
        state: &mut WorkerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMsg::Start { reply } => {
                state.step(&myself, Input::Start);
                if let Some(reply) = reply {
                    state.reply_when_durable(reply);
                }
            }
            WorkerMsg::Stop { grace, reply } => {
                state.step(&myself, Input::Stop { grace });
                state.reply_when_durable(reply);
            }
            WorkerMsg::Restart { grace, reply } => {
                state.step(&myself, Input::Restart { grace });
                state.reply_when_durable(reply);
            }
            WorkerMsg::Leave { grace } => state.step(&myself, Input::Leave { grace }),
            WorkerMsg::Reconfigure { config, restart, done } => {
                state.args.config = *config;
                let policy = policy_of(&state.args.config);
                state.step(&myself, Input::Reconfigured { policy, restart });
                // One who does not wait for it may have gone.
                let _gone = done.send(());
            }
            WorkerMsg::Tick => {
                state.timer = None;
                state.step(&myself, Input::Tick);
            }
            WorkerMsg::Claimed(result) => state.claimed(&myself, *result),
            WorkerMsg::Progressed { generation, detail } => {
                state.step(&myself, Input::Progress { generation, detail });
            }
            WorkerMsg::Imaged { generation, result } => state.imaged(&myself, generation, *result),
            WorkerMsg::Launched { generation, result } => state.launched(&myself, generation, result),
            WorkerMsg::Machine { generation, status } => state.machine(&myself, generation, status),
            WorkerMsg::MachineLost { generation } => state.machine_lost(&myself, generation),
        }
        Ok(())
    }
}

/// The part of an entry that decides moves.
pub fn policy_of(config: &WorkerConfig) -> Policy {
    Policy { restart: config.restart, stop_timeout: config.stop_timeout }
}

// From messages to inputs.
impl WorkerState {
    fn claimed(&mut self, myself: &ActorRef<WorkerMsg>, result: Result<Claimed, Failure>) {
        let input = match result {
            Err(failure) => Input::NotClaimed(failure),
            Ok(Claimed { record, left }) => {
                let found = match left {
                    Left::Nothing => Found::Nothing,
                    Left::Ended(exit) => Found::Ended(exit),
                    Left::Running { status, machine, image } => {
                        let wanted = self.wanted_hash(image);
                        self.take_link(myself, status.generation, machine);
                        self.note_news(status.generation, &status);
                        Found::Running { status, wanted }
                    }
                };
                Input::Claimed { record, found: Box::new(found) }
            }
        };
        self.step(myself, input);
    }

    /// The hash of what should run, or `None` when that cannot be told just now.
    fn wanted_hash(&mut self, image: Option<(String, Image)>) -> Option<String> {
        let (looked_up, image) = image?;
        let reference = plan::image_of(&self.args.config).ok()?;
        if reference != looked_up {
            // Edited since: what runs is another image's, which no hash equals.
            return Some(String::new());
        }
        let spec = plan::machine_spec(&self.args.config, &image, self.circumstances(0)).ok()?;
        self.surface.image_digest = Some(image.digest);
        Some(spec.hash())
    }

    fn imaged(&mut self, myself: &ActorRef<WorkerMsg>, generation: u64, result: Result<Image, Failure>) {
        let spec = result.and_then(|image| {
            let spec = plan::machine_spec(&self.args.config, &image, self.circumstances(generation));
            self.surface.image_digest = Some(image.digest);
            spec.map_err(|error| Failure { what: "config", error, remedy: Remedy::None })
        });
        let input = match spec {
            Ok(spec) => Input::Prepared { spec: Box::new(spec) },
            Err(failure) => Input::CouldNotStart { generation, failure },
        };
        self.step(myself, input);
    }

    fn launched(&mut self, myself: &ActorRef<WorkerMsg>, generation: u64, result: Result<Machine, Failure>) {
        let input = match result {
            Ok(machine) => {
                self.take_link(myself, generation, machine);
                Input::Launched { generation }
            }
            Err(failure) => Input::CouldNotStart { generation, failure },
        };
        self.step(myself, input);
    }

    fn take_link(&mut self, myself: &ActorRef<WorkerMsg>, generation: u64, machine: Machine) {
        let Machine { commands, events } = machine;
        let relay = tokio::spawn(tasks::relay(generation, events, myself.clone())).abort_handle();
        self.links.push(Link { generation, commands, running_since: None, relay });
    }

    /// Keeps what the status shows of a machine and what its sudden end would need.
    fn note_news(&mut self, generation: u64, status: &ShimStatus) {
        let Some(index) = self.links.iter().position(|link| link.generation == generation) else { return };
        match &status.phase {
            MachinePhase::Booting { .. } | MachinePhase::Stopping { .. } => {}
            MachinePhase::Running { since } => self.links[index].running_since = Some(*since),
            MachinePhase::Ended { .. } => {
                self.links.remove(index);
                if self.links.is_empty() {
                    (self.surface.shim_pid, self.surface.vmm_pid) = (None, None);
                }
                return;
            }
        }
        (self.surface.shim_pid, self.surface.vmm_pid) = (Some(status.shim_pid), status.vmm_pid);
    }

    fn machine(&mut self, myself: &ActorRef<WorkerMsg>, generation: u64, status: ShimStatus) {
        self.note_news(generation, &status);
        self.step(myself, Input::Machine { generation, phase: status.phase });
    }

    /// The link ended without the last word it owes: the shim must be gone.
    fn machine_lost(&mut self, myself: &ActorRef<WorkerMsg>, generation: u64) {
        let Some(link) = self.links.iter().find(|link| link.generation == generation) else { return };
        let at = jiff::Timestamp::now();
        let ran = link.running_since.map_or(0, |since| at.duration_since(since).as_millis().max(0));
        let exit = ExitRecord {
            generation,
            at,
            uptime_ms: u64::try_from(ran).unwrap_or(u64::MAX),
            cause: ExitCause::ShimDied,
            requested: false,
        };
        self.links.retain(|link| link.generation != generation);
        (self.surface.shim_pid, self.surface.vmm_pid) = (None, None);
        self.step(myself, Input::Machine { generation, phase: MachinePhase::Ended { exit } });
    }
}

// The step and its effects.
impl WorkerState {
    fn step(&mut self, myself: &ActorRef<WorkerMsg>, input: Input) {
        let (worker, effects) = self.worker.clone().step(Moment::now(), rand::random(), input);
        if worker.record != self.worker.record {
            self.args.kit.store.put(worker.record.clone());
        }
        self.worker = worker;
        self.args.kit.board.publish(status_of(&self.worker, &self.args.config, &self.surface));
        self.set_timer(myself);
        for effect in effects {
            self.perform(myself, effect);
        }
    }

    fn perform(&mut self, myself: &ActorRef<WorkerMsg>, effect: Effect) {
        match effect {
            Effect::Claim => self.claim(myself.clone()),
            Effect::Prepare { generation } => self.prepare(myself.clone(), generation),
            Effect::Launch(spec) => {
                let (kit, launcher, actor) =
                    (self.args.kit.clone(), self.args.around.launcher.clone(), myself.clone());
                tokio::spawn(async move {
                    let generation = spec.generation;
                    let result = tasks::launch(*spec, kit, launcher).await;
                    // Without an actor the machine is let go; the next actor adopts it.
                    let _gone = actor.cast(WorkerMsg::Launched { generation, result });
                });
            }
            Effect::End { generation, grace } => self.end(generation, grace),
            Effect::AtRest => (self.args.at_rest)(),
        }
    }

    fn claim(&self, actor: ActorRef<WorkerMsg>) {
        let name = self.args.config.name.clone();
        let reference = plan::image_of(&self.args.config).ok().map(str::to_owned);
        let (kit, around) = (self.args.kit.clone(), self.args.around.clone());
        tokio::spawn(async move {
            let result = tasks::claim(name, reference, kit, around).await;
            let _gone = actor.cast(WorkerMsg::Claimed(Box::new(result)));
        });
    }

    fn prepare(&self, actor: ActorRef<WorkerMsg>, generation: u64) {
        let reference = plan::image_of(&self.args.config).map(str::to_owned);
        let around = self.args.around.clone();
        tokio::spawn(async move {
            let result = match reference {
                Ok(reference) => {
                    let told = actor.clone();
                    let progress = move |detail| {
                        let _gone = told.cast(WorkerMsg::Progressed { generation, detail });
                    };
                    tasks::image(reference, around, progress).await
                }
                Err(error) => Err(Failure { what: "config", error, remedy: Remedy::None }),
            };
            let _gone = actor.cast(WorkerMsg::Imaged { generation, result: Box::new(result) });
        });
    }

    fn end(&self, generation: u64, grace: Duration) {
        let Some(link) = self.links.iter().find(|link| link.generation == generation) else { return };
        let stop = StopMachine { grace_ms: millis(grace) };
        match link.commands.try_send(stop) {
            Ok(()) => {}
            Err(TrySendError::Full(stop)) => {
                let commands = link.commands.clone();
                tokio::spawn(async move { commands.send(stop).await });
            }
            // The machine's last word is on its way.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    fn circumstances(&self, generation: u64) -> Circumstances {
        let orphan_grace = self.args.around.settings.borrow().orphan_grace;
        Circumstances { generation, host: self.args.around.host, orphan_grace }
    }

    fn set_timer(&mut self, myself: &ActorRef<WorkerMsg>) {
        let due = self.worker.state.next_tick();
        if self.timer.as_ref().map(|timer| timer.due) == due {
            return;
        }
        self.timer = due.map(|due| {
            let actor = myself.clone();
            let task = tokio::spawn(async move {
                tokio::time::sleep_until(due).await;
                let _gone = actor.cast(WorkerMsg::Tick);
            });
            Timer { due, task: task.abort_handle() }
        });
    }

    /// What the user was told must not be forgotten by a daemon that is killed right after.
    fn reply_when_durable(&self, reply: StatusReply) {
        let (status, store) = (self.args.kit.board.current(), self.args.kit.store.clone());
        tokio::spawn(async move {
            store.flushed().await;
            // One who no longer waits has the status by other ways.
            let _gone = reply.send(Ok(status));
        });
    }
}

/// A worker whose actor failed too often, as its status shows it.
pub fn shown_as_failed(board: &Board, config: &WorkerConfig, cause: ErrorBody) {
    let mut worker = Worker::new(&config.name, policy_of(config), Order::Recorded, Moment::now());
    worker.state = State::Failed { cause };
    let old = board.current();
    let surface = Surface {
        image_digest: old.image_digest.clone(),
        shim_pid: old.shim_pid,
        vmm_pid: old.vmm_pid,
        log_dir: old.log_dir.clone(),
    };
    let shown = status_of(&worker, config, &surface);
    board.publish(WorkerStatus {
        desired: old.desired,
        generation: old.generation,
        restarts: old.restarts,
        exits: old.exits,
        ..shown
    });
}

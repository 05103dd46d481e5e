//! The actor around `step`: messages in, effects out. Its handlers never wait for anything outside.

use iii_protocol::api::{ErrorBody, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::guest;
use iii_protocol::shim::{MachinePhase, ShimStatus, StopMachine};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::board::{Board, Surface, status_of};
use super::messages::{Claimed, Left, StatusReply, WorkerArgs, WorkerMsg};
use super::plan::{self, Circumstances, Recipe, millis};
use super::project_watch::ProjectWatch;
use super::state::{Effect, Failure, Found, Input, Moment, Order, Policy, Remedy, State, Worker};
use super::tasks;
use crate::config::schema::WorkerConfig;
use crate::image::types::Image;
use crate::vm::launcher::{Machine, MachineCommand};

mod project;

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
    /// While the files of its project are followed.
    watch: Option<ProjectWatch>,
    /// Tells of those who come and go.
    developers: Option<AbortOnDropHandle<()>>,
}

/// The hold on one machine.
struct Link {
    generation: u64,
    commands: mpsc::Sender<MachineCommand>,
    /// Of what it runs, as its shim says.
    spec_hash: Option<String>,
    running_since: Option<jiff::Timestamp>,
    /// Hands on the machine's events. An actor that is gone must not take the last word with it.
    _relay: AbortOnDropHandle<()>,
}

/// Dropping it, also by a panic of the actor, calls it off.
struct Timer {
    due: Instant,
    _task: AbortOnDropHandle<()>,
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
        Ok(WorkerState {
            worker,
            args,
            links: Vec::new(),
            surface,
            timer: None,
            watch: None,
            developers: None,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<WorkerMsg>,
        state: &mut WorkerState,
    ) -> Result<(), ActorProcessingErr> {
        let (mut developers, actor) = (state.args.kit.developers.subscribe(), myself.clone());
        let task = tokio::spawn(async move {
            while developers.changed().await.is_ok() {
                if actor.cast(WorkerMsg::Developers).is_err() {
                    return;
                }
            }
        });
        state.developers = Some(AbortOnDropHandle::new(task));
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
            WorkerMsg::ProjectSeen { edited } => state.recheck(&myself, edited),
            WorkerMsg::Rechecked { edited, result } => state.rechecked(&myself, edited, *result),
            WorkerMsg::Developers => state.follow_project(&myself),
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
                    Left::Running { status, machine, wanted } => {
                        let wanted = self.wanted_hash(wanted);
                        self.take_link(myself, status.generation, machine);
                        self.note_news(status.generation, &status);
                        Found::Running { status: *status, wanted }
                    }
                };
                Input::Claimed { record, found: Box::new(found) }
            }
        };
        self.step(myself, input);
    }

    /// The hash of what should run, or `None` when that cannot be told just now.
    fn wanted_hash(&mut self, wanted: Option<Box<(Recipe, Image)>>) -> Option<String> {
        let (recipe, image) = *wanted?;
        if recipe.source != self.args.config.source {
            // Edited since: what runs is another image's, which no hash equals.
            return Some(String::new());
        }
        let spec = plan::machine_spec(&self.args.config, &recipe, &image, self.circumstances(0)).ok()?;
        self.show(&recipe, image);
        Some(spec.hash())
    }

    /// What the status says of what is run.
    fn show(&mut self, recipe: &Recipe, image: Image) {
        self.surface.image_digest = Some(image.digest);
        self.surface.base_image = Some(recipe.image.clone());
        self.surface.resources = Some(plan::resources(&self.args.config, recipe, self.args.around.host));
    }

    fn imaged(
        &mut self,
        myself: &ActorRef<WorkerMsg>,
        generation: u64,
        result: Result<(Recipe, Image), Failure>,
    ) {
        let spec = result.and_then(|(recipe, image)| {
            let around = self.circumstances(generation);
            let spec = plan::machine_spec(&self.args.config, &recipe, &image, around);
            self.show(&recipe, image);
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
        let relay = AbortOnDropHandle::new(tokio::spawn(tasks::relay(generation, events, myself.clone())));
        self.links.push(Link { generation, commands, spec_hash: None, running_since: None, _relay: relay });
    }

    /// Keeps what the status shows of a machine and what its sudden end would need.
    fn note_news(&mut self, generation: u64, status: &ShimStatus) {
        let Some(index) = self.links.iter().position(|link| link.generation == generation) else { return };
        self.links[index].spec_hash = Some(status.spec_hash.clone());
        match &status.phase {
            MachinePhase::Booting { .. }
            | MachinePhase::Unprepared { .. }
            | MachinePhase::Stopping { .. } => {}
            MachinePhase::Running { since } => self.links[index].running_since = Some(*since),
            MachinePhase::Ended { .. } => {
                self.links.remove(index);
                self.surface.activity = None;
                if self.links.is_empty() {
                    (self.surface.shim_pid, self.surface.vmm_pid) = (None, None);
                }
                return;
            }
        }
        (self.surface.shim_pid, self.surface.vmm_pid) = (Some(status.shim_pid), status.vmm_pid);
        self.surface.refused = status.refused.clone();
        self.surface.activity = status.activity.clone();
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
        self.publish();
        self.set_timer(myself);
        self.follow_project(myself);
        for effect in effects {
            self.perform(myself, effect);
        }
    }

    fn publish(&self) {
        self.args.kit.board.publish(status_of(&self.worker, &self.args.config, &self.surface));
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
            Effect::End { generation, grace } => {
                self.command(generation, MachineCommand::Stop(StopMachine { grace_ms: millis(grace) }));
            }
            // Whatever was edited meanwhile counts as edited.
            Effect::Recheck => self.recheck(myself, true),
            Effect::Resync { generation } => self.command(generation, MachineCommand::Resync),
            Effect::AtRest => {
                let (store, at_rest) = (self.args.kit.store.clone(), self.args.at_rest.clone());
                tokio::spawn(async move {
                    // Whoever comes after this worker finds its last state on disk.
                    store.flushed().await;
                    at_rest();
                });
            }
        }
    }

    fn claim(&self, actor: ActorRef<WorkerMsg>) {
        let config = self.args.config.clone();
        let (kit, around) = (self.args.kit.clone(), self.args.around.clone());
        tokio::spawn(async move {
            let result = tasks::claim(config, kit, around).await;
            let _gone = actor.cast(WorkerMsg::Claimed(Box::new(result)));
        });
    }

    fn prepare(&self, actor: ActorRef<WorkerMsg>, generation: u64) {
        let (config, around) = (self.args.config.clone(), self.args.around.clone());
        let last = self.worker.record.exits.first();
        let doubt = last.is_some_and(|exit| exit.cause.could_not_start_by(guest::ROOT_DISK));
        tokio::spawn(async move {
            let told = actor.clone();
            let progress = move |detail| {
                let _gone = told.cast(WorkerMsg::Progressed { generation, detail });
            };
            let result = tasks::prepare(config, doubt, around, progress).await;
            let _gone = actor.cast(WorkerMsg::Imaged { generation, result: Box::new(result) });
        });
    }

    fn command(&self, generation: u64, command: MachineCommand) {
        let Some(link) = self.links.iter().find(|link| link.generation == generation) else { return };
        match link.commands.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(command)) => {
                let commands = link.commands.clone();
                tokio::spawn(async move { commands.send(command).await });
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
            Timer { due, _task: AbortOnDropHandle::new(task) }
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
        refused: old.refused.clone(),
        log_dir: old.log_dir.clone(),
        base_image: old.image.clone(),
        resources: Some(old.resources),
        activity: None,
        unreadable: None,
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

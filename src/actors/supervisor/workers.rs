//! The workers' actors: born, asked, and born again when one fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use iii_protocol::api::{ErrorBody, ErrorCode, Phase, Resources};
use iii_protocol::network::{Egress, Network};
use ractor::{Actor, ActorId, ActorRef};
use tokio::time::Instant;

use super::intensity::{self, Failures};
use super::{RootState, helper_is_down, shutting_down};
use crate::actors::messages::{Fact, FactKind, Helper, SupervisorMsg};
use crate::actors::worker::actor::{WorkerActor, policy_of, shown_as_failed};
use crate::actors::worker::board::{Board, first_status};
use crate::actors::worker::developers::Developers;
use crate::actors::worker::durable::Store;
use crate::actors::worker::messages::{Kit, StatusReply, WorkerArgs, WorkerMsg};
use crate::actors::worker::state::{Moment, Order, Worker};
use crate::config::engine::EngineUrl;
use crate::config::schema::{OwnResources, RestartConfig, RestartPolicy, Source, WorkerConfig};
use crate::config::suggest::suggest;
use crate::logs::{DEFAULT_RING_BYTES, LogRing};

/// An actor that is born only to bring its worker down.
pub(super) const LEAVE: Order = Order::Leave { grace: None, desired: None };

/// A worker as the root knows it. The kit stays when its actor fails.
pub(super) struct Entry {
    pub(super) config: WorkerConfig,
    pub(super) kit: Kit,
    /// None when it failed too often.
    pub(super) actor: Option<ActorRef<WorkerMsg>>,
    failures: Failures,
    pub(super) presence: Presence,
}

/// Whether a worker is in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is.
    Configured,
    /// Not any more; it is here until its machine has ended.
    Leaving,
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }
}

impl RootState {
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name() == name)
    }

    /// The entry of this name, or the error for a user who may have mistyped it.
    pub(super) fn find(&self, name: &str) -> Result<usize, ErrorBody> {
        self.position(name).ok_or_else(|| {
            let similar = suggest(name, self.entries.iter().map(Entry::name));
            ErrorBody {
                code: ErrorCode::NotFound,
                message: format!("no worker is named `{name}`"),
                hint: Some(match similar {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => "`iii worker list` shows all workers".to_owned(),
                }),
            }
        })
    }

    /// A new worker and its actor.
    pub(super) async fn add_entry(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        config: WorkerConfig,
        order: Order,
    ) {
        let home = &self.args.home;
        let log_dir = home.logs(&config.name).display().to_string();
        let worker = Worker::new(&config.name, policy_of(&config), order, Moment::now());
        let first = first_status(&config, &worker, &log_dir);
        let kit = Kit {
            board: Arc::new(Board::new(first, self.args.announce.clone())),
            ring: Arc::new(LogRing::new(DEFAULT_RING_BYTES)),
            store: Arc::new(Store::new(&config.name, &home.managed(&config.name), &self.owner)),
            developers: Developers::default(),
            gate: Arc::default(),
        };
        let presence =
            if matches!(order, Order::Leave { .. }) { Presence::Leaving } else { Presence::Configured };
        self.entries.push(Entry { config, kit, actor: None, failures: Failures::default(), presence });
        self.spawn_worker(myself, self.entries.len() - 1, order).await;
    }

    /// Machines of workers that left the configuration while no daemon was there.
    pub(super) async fn bring_strays_down(&mut self, myself: &ActorRef<SupervisorMsg>, running: Vec<String>) {
        for name in running {
            if self.position(&name).is_none() {
                tracing::warn!("`{name}` still runs but is no longer configured; it is stopped");
                self.add_entry(myself, stray(name), LEAVE).await;
            }
        }
    }

    /// Gives the entry an actor; a new one takes over what an earlier one left.
    pub(super) async fn spawn_worker(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        index: usize,
        order: Order,
    ) {
        let around = self.surroundings();
        let entry = &mut self.entries[index];
        let (root, name) = (myself.clone(), entry.config.name.clone());
        let args = WorkerArgs {
            config: entry.config.clone(),
            order,
            kit: entry.kit.clone(),
            around,
            at_rest: Arc::new(move || {
                let fact = Fact(FactKind::AtRest { name: name.clone() });
                let _gone = root.cast(SupervisorMsg::Fact(fact));
            }),
        };
        match Actor::spawn_linked(None, WorkerActor, args, myself.get_cell()).await {
            Ok((actor, _)) => entry.actor = Some(actor),
            Err(error) => {
                tracing::error!("the actor of `{}` did not start: {error}", entry.name());
                entry.actor = None;
                show_failed(entry);
            }
        }
    }

    /// A command that makes a worker run.
    pub(super) async fn command_up(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        name: &str,
        reply: StatusReply,
        message: impl FnOnce(StatusReply) -> WorkerMsg,
    ) {
        let refusal = match self.position(name).map(|index| self.entries[index].presence) {
            _ if self.mode.is_shutting_down() => Some(shutting_down()),
            Some(Presence::Leaving) => Some(ErrorBody {
                code: ErrorCode::Conflict,
                message: format!("worker `{name}` is no longer configured and on its way down"),
                hint: Some("add it again first".to_owned()),
            }),
            Some(Presence::Configured) | None => None,
        };
        match refusal {
            Some(error) => {
                let _gone = reply.send(Err(error));
            }
            None => self.command(myself, name, reply, message).await,
        }
    }

    /// Any command to a worker; one whose actor failed too often gets a new one.
    pub(super) async fn command(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        name: &str,
        reply: StatusReply,
        message: impl FnOnce(StatusReply) -> WorkerMsg,
    ) {
        let index = match self.find(name) {
            Ok(index) => index,
            Err(error) => {
                let _gone = reply.send(Err(error));
                return;
            }
        };
        if self.entries[index].actor.is_none() {
            self.entries[index].failures.forgive();
            let order = self.order_of_revival(index);
            self.spawn_worker(myself, index, order).await;
        }
        match &self.entries[index].actor {
            // An actor that fails now drops the reply, which ends the caller's wait with an error.
            Some(actor) => {
                let _failed = actor.cast(message(reply));
            }
            None => {
                let _gone = reply.send(Err(helper_is_down("worker's actor")));
            }
        }
    }

    fn order_of_revival(&self, index: usize) -> Order {
        match self.entries[index].presence {
            Presence::Leaving => LEAVE,
            Presence::Configured if self.mode.is_shutting_down() => LEAVE,
            Presence::Configured => Order::Recorded,
        }
    }

    /// An actor below the root ended; none does so by itself.
    pub(super) async fn child_ended(&mut self, myself: &ActorRef<SupervisorMsg>, id: ActorId, why: &str) {
        let is = |actor: &Option<ActorRef<WorkerMsg>>| actor.as_ref().is_some_and(|a| a.get_id() == id);
        if let Some(index) = self.entries.iter().position(|entry| is(&entry.actor)) {
            return self.worker_ended(myself, index, why).await;
        }
        let now = Instant::now();
        if self.puller.borrow().as_ref().is_some_and(|puller| puller.get_id() == id) {
            tracing::error!("the image puller failed: {why}");
            self.puller.send_replace(None);
            match self.puller_failures.note(now) {
                true => self.revive_later(myself, Helper::Puller),
                false => self.spawn_helper(myself, Helper::Puller).await,
            }
        } else if self.watcher.as_ref().is_some_and(|watcher| watcher.get_id() == id) {
            tracing::error!("the config watcher failed: {why}");
            self.watcher = None;
            match self.watcher_failures.note(now) {
                true => self.revive_later(myself, Helper::Watcher),
                false => self.spawn_helper(myself, Helper::Watcher).await,
            }
        }
    }

    async fn worker_ended(&mut self, myself: &ActorRef<SupervisorMsg>, index: usize, why: &str) {
        let entry = &mut self.entries[index];
        let name = entry.name().to_owned();
        tracing::error!("the actor of `{name}` failed: {why}");
        entry.actor = None;
        if !entry.failures.note(Instant::now()) {
            let order = self.order_of_revival(index);
            return self.spawn_worker(myself, index, order).await;
        }
        show_failed(entry);
        if entry.presence == Presence::Leaving {
            self.entries.remove(index);
        }
        self.shutdown_goes_on(myself, &name);
    }

    /// A worker that was told to leave has nothing running any more.
    pub(super) fn at_rest(&mut self, myself: &ActorRef<SupervisorMsg>, name: &str) {
        let Some(index) = self.position(name) else { return };
        let entry = &self.entries[index];
        // News from before a worker was added again does not count.
        if !matches!(entry.kit.board.current().phase, Phase::Stopped | Phase::Failed) {
            return;
        }
        if entry.presence == Presence::Leaving {
            let entry = self.entries.remove(index);
            if let Some(actor) = entry.actor {
                actor.stop(None);
            }
        }
        self.shutdown_goes_on(myself, name);
    }
}

fn show_failed(entry: &Entry) {
    let cause = ErrorBody {
        code: ErrorCode::Internal,
        message: format!(
            "internal error: its actor failed {} times within {} s",
            intensity::LIMIT,
            intensity::WINDOW.as_secs()
        ),
        hint: Some(format!(
            "the daemon's output has the cause; `iii worker start {}` tries again",
            entry.name()
        )),
    };
    // What failed may be the announcing itself, and must not take the root along.
    let shown = std::panic::catch_unwind(AssertUnwindSafe(|| {
        shown_as_failed(&entry.kit.board, &entry.config, cause);
    }));
    if shown.is_err() {
        tracing::error!("the failure of `{}` could not be announced", entry.name());
    }
}

/// The entry of a worker of which only a running machine is known.
fn stray(name: String) -> WorkerConfig {
    use std::time::Duration;
    WorkerConfig {
        name,
        source: Source::None,
        watch: false,
        env: Ok(Vec::new()),
        engine: EngineUrl::default(),
        resources: Resources { memory_mib: 0, cpus: 0, disk_bytes: 0 },
        own_resources: OwnResources::default(),
        network: Network { egress: Egress::None, ports: Vec::new() },
        restart: RestartConfig {
            policy: RestartPolicy::Never,
            max_restarts: None,
            delay: Duration::ZERO,
            max_delay: Duration::ZERO,
            reset_after: Duration::ZERO,
        },
        stop_timeout: Duration::from_secs(10),
        boot_timeout: None,
    }
}

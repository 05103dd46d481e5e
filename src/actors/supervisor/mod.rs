//! The root: keeps the other actors alive, knows all workers, and is the only one the edge talks to.
//!
//! `workers` holds and revives the workers' actors, `reload` turns an edited configuration into
//! requests to them, `shutdown` brings them all down, `intensity` (pure) says when a failing actor is
//! left alone.

pub mod intensity;
mod reload;
mod shutdown;
#[cfg(test)]
mod tests;
mod workers;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent, PullRequest, WorkerList};
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::intensity::Failures;
use self::shutdown::Mode;
use self::workers::Entry;
use super::config_watcher::{ConfigWatcher, Load, ReloadPort, WatcherArgs, WatcherMsg};
use super::image_puller::{ImagePuller, ImageSource, PullerMsg, Waiter};
use super::messages::{Fact, FactKind, Helper, SupervisorMsg, WorkerView};
use super::worker::board::Announce;
use super::worker::messages::{Settings, Surroundings, WorkerMsg};
use super::worker::plan::HostLimits;
use super::worker::state::Order;
use super::worker::tasks::check_host;
use crate::config::schema::Config;
use crate::home::Home;
use crate::image::store::RegistrySettings;
use crate::vm::launcher::Launcher;

/// Told of each configuration that comes into force, with the names that changed, and of each error
/// that keeps one from it.
pub type AnnounceConfig = Arc<dyn Fn(Result<&[String], &str>) + Send + Sync>;

/// How the tree is born.
#[derive(Clone)]
pub struct RootArgs {
    /// config.yaml, as the user named it.
    pub config_path: PathBuf,
    /// What it says.
    pub config: Config,
    /// Reads it again; see [`load_file`].
    pub load: Load,
    /// Where everything is kept.
    pub home: Home,
    /// Brings machines up.
    pub launcher: Arc<dyn Launcher>,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
    /// Bounds of the host.
    pub host: HostLimits,
    /// Told of each change of a worker that is worth a line.
    pub announce: Announce,
    /// Told of the configuration's changes and errors.
    pub announce_config: AnnounceConfig,
}

impl fmt::Debug for RootArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootArgs").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}

/// The loader of the real file: errors come with line and caret.
pub fn load_file() -> Load {
    Arc::new(|path| crate::config::load::load(path).map_err(|error| error.to_string()))
}

/// Starts the tree. The handle ends when the root does: after a shutdown, or by a defect of its own.
pub async fn start(args: RootArgs) -> Result<(ActorRef<SupervisorMsg>, JoinHandle<()>), SpawnErr> {
    let launcher = args.launcher.clone();
    let running = tokio::task::spawn_blocking(move || launcher.running());
    let running = running.await.map_err(|join| SpawnErr::StartupFailed(Box::new(join)))?;
    Actor::spawn(None, RootSupervisor, (args, running)).await
}

/// The actor.
#[derive(Debug)]
pub struct RootSupervisor;

/// What changes in the actor.
pub struct RootState {
    args: RootArgs,
    /// The canonical path of the file: who owns this project's workers.
    owner: PathBuf,
    config: Config,
    config_error: Option<String>,
    /// In the order of the file; then those that are on their way out.
    entries: Vec<Entry>,
    settings: watch::Sender<Settings>,
    puller: watch::Sender<Option<ActorRef<PullerMsg>>>,
    watcher: Option<ActorRef<WatcherMsg>>,
    puller_failures: Failures,
    watcher_failures: Failures,
    mode: Mode,
}

impl Actor for RootSupervisor {
    type Msg = SupervisorMsg;
    type State = RootState;
    type Arguments = (RootArgs, Vec<String>);

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMsg>,
        (args, running): (RootArgs, Vec<String>),
    ) -> Result<RootState, ActorProcessingErr> {
        let owner = std::fs::canonicalize(&args.config_path).unwrap_or_else(|_| args.config_path.clone());
        let config = args.config.clone();
        let mut state = RootState {
            owner,
            settings: watch::Sender::new(settings_of(&config)),
            puller: watch::Sender::new(None),
            watcher: None,
            puller_failures: Failures::default(),
            watcher_failures: Failures::default(),
            config_error: None,
            entries: Vec::new(),
            mode: Mode::Serving,
            config,
            args,
        };
        state.spawn_helper(&myself, Helper::Puller).await;
        state.spawn_helper(&myself, Helper::Watcher).await;
        for config in state.config.workers.clone() {
            state.add_entry(&myself, config, Order::Resume).await;
        }
        state.bring_strays_down(&myself, running).await;
        Ok(state)
    }

    async fn post_stop(
        &self,
        myself: ActorRef<SupervisorMsg>,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        state.last_things(&myself).await;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        // A reply whose receiver has gone is nobody's loss.
        match message {
            SupervisorMsg::List { reply } => {
                let _gone = reply.send(state.list());
            }
            SupervisorMsg::View { name, reply } => {
                let _gone = reply.send(state.view(&name));
            }
            SupervisorMsg::Start { name, reply } => {
                let message = |reply| WorkerMsg::Start { reply: Some(reply) };
                state.command_up(&myself, &name, reply, message).await;
            }
            SupervisorMsg::Restart { name, grace_ms, reply } => {
                let grace = grace_ms.map(std::time::Duration::from_millis);
                state.command_up(&myself, &name, reply, |reply| WorkerMsg::Restart { grace, reply }).await;
            }
            SupervisorMsg::Stop { name, grace_ms, reply } => {
                let grace = grace_ms.map(std::time::Duration::from_millis);
                state.command(&myself, &name, reply, |reply| WorkerMsg::Stop { grace, reply }).await;
            }
            SupervisorMsg::Reload { reply } => state.reload(reply),
            SupervisorMsg::Pull { request, events } => state.pull(request, events),
            SupervisorMsg::Shutdown { force } => state.shut_down(&myself, force).await,
            SupervisorMsg::Fact(Fact(fact)) => match fact {
                FactKind::AtRest { name } => state.at_rest(&myself, &name),
                FactKind::ConfigRead(reading) => state.config_read(&myself, reading).await,
                FactKind::Overdue { killed } => state.overdue(&myself, killed),
                FactKind::Revive(helper) => state.spawn_helper(&myself, helper).await,
            },
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
            SupervisionEvent::ActorFailed(who, error) => {
                state.child_ended(&myself, who.get_id(), &error.to_string()).await;
            }
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                let why = reason.unwrap_or_else(|| "stopped".to_owned());
                state.child_ended(&myself, who.get_id(), &why).await;
            }
        }
        Ok(())
    }
}

fn settings_of(config: &Config) -> Settings {
    Settings { registries: registries_of(config), orphan_grace: config.orphan_grace }
}

fn registries_of(config: &Config) -> RegistrySettings {
    RegistrySettings { insecure: config.insecure_registries.clone(), mirrors: config.mirrors() }
}

fn shutting_down() -> ErrorBody {
    ErrorBody {
        code: ErrorCode::ShuttingDown,
        message: "the daemon is going down".to_owned(),
        hint: Some("start it again with `iii`".to_owned()),
    }
}

fn helper_is_down(what: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Internal,
        message: format!("the {what} failed and is started again"),
        hint: Some("try again in a minute; the daemon's output has the cause".to_owned()),
    }
}

impl RootState {
    fn list(&self) -> WorkerList {
        WorkerList {
            workers: self.entries.iter().map(|entry| entry.kit.board.current()).collect(),
            config_error: self.config_error.clone(),
        }
    }

    fn view(&self, name: &str) -> Result<WorkerView, ErrorBody> {
        let entry = &self.entries[self.find(name)?];
        Ok(WorkerView {
            status: entry.kit.board.subscribe(),
            ring: entry.kit.ring.clone(),
            developers: entry.kit.developers.clone(),
        })
    }

    fn reload(&self, reply: ReloadPort) {
        if self.mode.is_shutting_down() {
            let _gone = reply.send(Err(shutting_down()));
            return;
        }
        match &self.watcher {
            // A watcher that fails now drops the reply, which ends the caller's wait with an error.
            Some(watcher) => {
                let _failed = watcher.cast(WatcherMsg::Reload { reply });
            }
            None => {
                let _gone = reply.send(Err(helper_is_down("config watcher")));
            }
        }
    }

    fn pull(&self, request: PullRequest, events: mpsc::Sender<PullEvent>) {
        let refused = |error: ErrorBody, events: mpsc::Sender<PullEvent>| {
            tokio::spawn(async move { events.send(PullEvent::Failed { error }).await });
        };
        if self.mode.is_shutting_down() {
            return refused(shutting_down(), events);
        }
        let Some(puller) = self.puller.borrow().clone() else {
            return refused(helper_is_down("image puller"), events);
        };
        let PullRequest { reference, force, to_start } = request;
        let registries = registries_of(&self.config);
        let ask = move |events: mpsc::Sender<PullEvent>| {
            let waiter = Waiter { events: events.clone(), image: None };
            if puller.cast(PullerMsg::Pull { reference, force, registries, waiter }).is_err() {
                refused(helper_is_down("image puller"), events);
            }
        };
        if !to_start {
            return ask(events);
        }
        let launcher = self.args.launcher.clone();
        tokio::spawn(async move {
            match check_host(launcher).await {
                Ok(()) => ask(events),
                Err(error) => refused(error, events),
            }
        });
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            launcher: self.args.launcher.clone(),
            images: self.args.images.clone(),
            host: self.args.host,
            settings: self.settings.subscribe(),
            puller: self.puller.subscribe(),
        }
    }

    async fn spawn_helper(&mut self, myself: &ActorRef<SupervisorMsg>, helper: Helper) {
        let failed = match helper {
            Helper::Puller => {
                let images = self.args.images.clone();
                let spawned = Actor::spawn_linked(None, ImagePuller, images, myself.get_cell()).await;
                spawned.map(|(puller, _)| self.puller.send_replace(Some(puller))).err()
            }
            Helper::Watcher => {
                let root = myself.clone();
                let args = WatcherArgs {
                    path: self.args.config_path.clone(),
                    known: match &self.config_error {
                        Some(error) => Err(error.clone()),
                        None => Ok(self.config.clone()),
                    },
                    load: self.args.load.clone(),
                    tell: Arc::new(move |reading| {
                        let fact = Fact(FactKind::ConfigRead(reading));
                        let _gone = root.cast(SupervisorMsg::Fact(fact));
                    }),
                };
                let spawned = Actor::spawn_linked(None, ConfigWatcher, args, myself.get_cell()).await;
                spawned.map(|(watcher, _)| self.watcher = Some(watcher)).err()
            }
        };
        if let Some(error) = failed {
            tracing::error!("{helper:?} did not start: {error}");
            self.revive_later(myself, helper);
        }
    }

    fn revive_later(&self, myself: &ActorRef<SupervisorMsg>, helper: Helper) {
        let root = myself.clone();
        tokio::spawn(async move {
            tokio::time::sleep(intensity::WINDOW).await;
            let _gone = root.cast(SupervisorMsg::Fact(Fact(FactKind::Revive(helper))));
        });
    }
}

//! A daemon whose supervisor does what the test says: real socket, real routes, real commands.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex};

use iii::actors::messages::{SupervisorMsg, WorkerView};
use iii::actors::worker::developers::Developers;
use iii::cli::context::Context;
use iii::cli::output::Printer;
use iii::daemon::routes::{Edge, router};
use iii::daemon::server;
use iii::daemon::sessions::Sessions;
use iii::daemon::socket::Place;
use iii::home::Home;
use iii::logs::LogRing;
use iii::logs::disk::{DEFAULT_FILE_BYTES, DEFAULT_FILES, LogFiles};
use iii_protocol::api::{
    DaemonInfo, Desired, ErrorBody, ErrorCode, Phase, PullEvent, Refused, ReloadReply, Resources, WorkerList,
    WorkerStatus, WorkerType,
};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::log::{LogRecord, Stream};
use iii_protocol::network::Network;
use jiff::Timestamp;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the test and the fake supervisor share.
#[derive(Debug, Default)]
pub struct World {
    pub workers: BTreeMap<String, FakeWorker>,
    /// What was asked for, in order.
    pub asked: Vec<String>,
    /// The log files that are written to.
    pub files: BTreeMap<String, LogFiles>,
    /// What the next pull says.
    pub pull: Vec<PullEvent>,
    pub config_error: Option<String>,
    /// Why the file is not in force after a reload.
    pub reload_error: Option<ErrorBody>,
}

#[derive(Debug)]
pub struct FakeWorker {
    pub status: watch::Sender<WorkerStatus>,
    pub ring: Arc<LogRing>,
    pub developers: Developers,
    /// What happens after a start or stop was accepted: one after the other.
    pub script: Vec<WorkerStatus>,
}

pub type Shared = Arc<Mutex<World>>;

pub fn status(name: &str, phase: Phase) -> WorkerStatus {
    let now = Timestamp::from_second(1_767_322_800).unwrap();
    WorkerStatus {
        name: name.to_owned(),
        worker_type: WorkerType::Oci,
        phase,
        detail: None,
        cause: None,
        since: now,
        until: None,
        running_since: (phase == Phase::Running).then_some(now),
        desired: Desired::Running,
        generation: 1,
        revision: 1,
        restarts: 0,
        exits: Vec::new(),
        image: Some("redis:7".to_owned()),
        image_digest: None,
        resources: Resources { memory_mib: 2048, cpus: 2, disk_bytes: 16 << 30 },
        network: Network::default(),
        refused: Refused::default(),
        shim_pid: None,
        vmm_pid: None,
        log_dir: String::new(),
    }
}

pub fn exited(mut status: WorkerStatus, cause: ExitCause) -> WorkerStatus {
    let at = status.since;
    let exit = ExitRecord { generation: status.generation, at, uptime_ms: 900, cause, requested: false };
    status.exits.insert(0, exit);
    status
}

/// The fake root.
pub struct Fake;

impl Fake {
    fn change(shared: &Shared, name: &str, what: String) -> Result<WorkerStatus, ErrorBody> {
        let mut world = shared.lock().unwrap();
        world.asked.push(what);
        let Some(worker) = world.workers.get_mut(name) else { return Err(unknown(name)) };
        let mut script = std::mem::take(&mut worker.script).into_iter();
        if let Some(accepted) = script.next() {
            worker.status.send_replace(accepted);
        }
        let accepted = worker.status.borrow().clone();
        let sender = worker.status.clone();
        tokio::spawn(async move {
            for next in script {
                // Each state is seen: the watcher is given its turn. Nothing waits for time.
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                sender.send_replace(next);
            }
        });
        Ok(accepted)
    }
}

pub fn unknown(name: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::NotFound,
        message: format!("there is no worker `{name}`"),
        hint: Some("did you mean `web`?".to_owned()),
    }
}

impl Actor for Fake {
    type Msg = SupervisorMsg;
    type State = Shared;
    type Arguments = Shared;

    async fn pre_start(
        &self,
        _: ActorRef<SupervisorMsg>,
        world: Shared,
    ) -> Result<Shared, ActorProcessingErr> {
        Ok(world)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        shared: &mut Shared,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::List { reply } => {
                let world = shared.lock().unwrap();
                let workers = world.workers.values().map(|w| w.status.borrow().clone()).collect();
                reply.send(WorkerList { workers, config_error: world.config_error.clone() })?;
            }
            SupervisorMsg::View { name, reply } => {
                let world = shared.lock().unwrap();
                let view = world.workers.get(&name).map(|worker| WorkerView {
                    status: worker.status.subscribe(),
                    ring: worker.ring.clone(),
                    developers: worker.developers.clone(),
                });
                reply.send(view.ok_or_else(|| unknown(&name)))?;
            }
            SupervisorMsg::Start { name, reply } => {
                reply.send(Fake::change(shared, &name, format!("start {name}")))?;
            }
            SupervisorMsg::Stop { name, grace_ms, reply } => {
                reply.send(Fake::change(shared, &name, format!("stop {name} {grace_ms:?}")))?;
            }
            SupervisorMsg::Restart { name, grace_ms, reply } => {
                reply.send(Fake::change(shared, &name, format!("restart {name} {grace_ms:?}")))?;
            }
            SupervisorMsg::Reload { reply } => {
                let mut world = shared.lock().unwrap();
                world.asked.push("reload".to_owned());
                reply.send(match world.reload_error.clone() {
                    Some(error) => Err(error),
                    None => Ok(ReloadReply { changed: vec!["web".to_owned()] }),
                })?;
            }
            SupervisorMsg::Pull { request, events } => {
                let mut world = shared.lock().unwrap();
                world.asked.push(format!("pull {} {}", request.reference, request.force));
                for event in world.pull.drain(..) {
                    let _ = events.try_send(event);
                }
            }
            SupervisorMsg::Fact(fact) => unreachable!("only the real tree makes facts: {fact:?}"),
            SupervisorMsg::Shutdown { force } => {
                shared.lock().unwrap().asked.push(format!("shutdown {force}"));
                if force {
                    myself.stop(None);
                }
            }
        }
        Ok(())
    }
}

/// What a command wrote.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn printer() -> (Printer, Captured, Captured) {
    let (out, err) = (Captured::default(), Captured::default());
    (Printer::to(out.clone(), err.clone()), out, err)
}

/// A project folder with a home, and a daemon if the test starts one.
pub struct Project {
    _dir: tempfile::TempDir,
    pub world: Shared,
    pub ctx: Context,
}

impl Project {
    pub fn new(config: &str) -> Project {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, config).unwrap();
        let ctx = Context::new(Home::at(dir.path().join("home")), &path).unwrap();
        Project { _dir: dir, world: Shared::default(), ctx }
    }

    pub fn add(&self, status: WorkerStatus) {
        let log_dir = self.ctx.home.logs(&status.name).display().to_string();
        let status = WorkerStatus { log_dir, ..status };
        let worker = FakeWorker {
            status: watch::Sender::new(status.clone()),
            ring: Arc::new(LogRing::new(1024)),
            developers: Developers::default(),
            script: Vec::new(),
        };
        self.world.lock().unwrap().workers.insert(status.name, worker);
    }

    pub fn script(&self, name: &str, script: impl IntoIterator<Item = WorkerStatus>) {
        self.world.lock().unwrap().workers.get_mut(name).unwrap().script = script.into_iter().collect();
    }

    pub fn asked(&self) -> Vec<String> {
        self.world.lock().unwrap().asked.clone()
    }

    /// Writes a record as a shim does: to the log files first, then to the daemon's ring.
    pub fn log(&self, name: &str, seq: u64, text: &str) {
        let record = record(seq, text);
        let mut world = self.world.lock().unwrap();
        let files = world.files.entry(name.to_owned()).or_insert_with(|| {
            let dir = self.ctx.home.logs(name);
            fs::create_dir_all(&dir).unwrap();
            LogFiles::open(&dir, DEFAULT_FILE_BYTES, DEFAULT_FILES).unwrap()
        });
        files.append(std::slice::from_ref(&record)).unwrap();
        if let Some(worker) = world.workers.get(name) {
            worker.ring.push(record);
        }
    }

    pub async fn serve(&self) -> FakeDaemon {
        let Context { home, config, project, .. } = &self.ctx;
        let place = Place::take(home, project, config).unwrap();
        let listener = place.bind().unwrap();
        let (supervisor, root) = Actor::spawn(None, Fake, self.world.clone()).await.unwrap();
        let (close, closing) = watch::channel(false);
        let info = DaemonInfo {
            pid: std::process::id(),
            version: "0.0.0".to_owned(),
            config_path: config.display().to_string(),
            started_at: Timestamp::now(),
        };
        let edge = Arc::new(Edge {
            supervisor: supervisor.clone(),
            info,
            home: home.clone(),
            project: project.clone(),
            sessions: Sessions::default(),
            closing: closing.clone(),
        });
        let server = tokio::spawn(server::serve(listener, router(edge), closing));
        FakeDaemon { supervisor, root, close, server, _place: place }
    }
}

pub struct FakeDaemon {
    pub supervisor: ActorRef<SupervisorMsg>,
    root: JoinHandle<()>,
    close: watch::Sender<bool>,
    server: JoinHandle<()>,
    _place: Place,
}

impl FakeDaemon {
    /// As `daemon::run` ends: the tree first, then the socket.
    pub async fn end(self) {
        self.supervisor.stop(None);
        self.root.await.unwrap();
        self.close.send_replace(true);
        self.server.await.unwrap();
    }

    /// As after kill -9: nobody says goodbye.
    pub async fn vanish(self) {
        self.server.abort();
        let _ = self.server.await;
        self.supervisor.kill();
        let _ = self.root.await;
    }
}

pub fn record(seq: u64, text: &str) -> LogRecord {
    let ts = Timestamp::from_second(1_767_322_800 + i64::try_from(seq).unwrap()).unwrap();
    let stream = match text.chars().next() {
        Some('!') => Stream::Stderr,
        Some('#') => Stream::Event,
        _ => Stream::Stdout,
    };
    LogRecord { seq, ts, generation: 1, stream, bytes: text.as_bytes().to_vec() }
}

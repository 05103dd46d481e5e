//! A project in a temporary home, and the daemons that come and go in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, Phase, ReloadReply, WorkerList, WorkerStatus};
use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::fakes::{FakeHost, FakeImages};
use crate::actors::messages::{SupervisorMsg, WorkerView};
use crate::actors::supervisor::{RootArgs, start};
use crate::actors::worker::plan::HostLimits;
use crate::actors::worker::tests::{image, worker_config};
use crate::config::schema::{Config, WorkerConfig};
use crate::home::Home;

/// Longer than anything takes here; of paused time, so nobody waits for it.
const LONG: Duration = Duration::from_secs(3600);

/// A project on a host: daemons come and go.
pub(super) struct Project {
    pub(super) dir: tempfile::TempDir,
    pub(super) config_path: PathBuf,
    /// What the file "says"; its real content does not matter.
    pub(super) says: Arc<Mutex<Result<Config, String>>>,
    pub(super) host: FakeHost,
    pub(super) images: FakeImages,
    pub(super) lines: Arc<Mutex<Vec<String>>>,
    /// Announcing a worker in this phase panics, so many times.
    pub(super) panics: Arc<Mutex<Vec<(String, Phase, u32)>>>,
}

pub(super) struct Daemon {
    pub(super) root: ActorRef<SupervisorMsg>,
    pub(super) handle: JoinHandle<()>,
}

pub(super) fn config(workers: &[WorkerConfig]) -> Config {
    Config {
        workers: workers.to_vec(),
        insecure_registries: Vec::new(),
        registries: BTreeMap::new(),
        orphan_grace: Duration::from_secs(60),
    }
}

pub(super) fn error(message: &str) -> ErrorBody {
    ErrorBody { code: ErrorCode::Host, message: message.to_owned(), hint: None }
}

impl Project {
    /// A project whose images are all here.
    pub(super) fn new(workers: &[WorkerConfig]) -> Project {
        let dir = tempfile::tempdir().unwrap();
        let config_path = dir.path().join("config.yaml");
        std::fs::write(&config_path, "workers: []\n").unwrap();
        let images = FakeImages::default();
        for name in ["a", "b", "c"] {
            images.0.lock().unwrap().here.insert(format!("registry.test/{name}"), image());
        }
        Project {
            dir,
            config_path,
            says: Arc::new(Mutex::new(Ok(config(workers)))),
            host: FakeHost::default(),
            images,
            lines: Arc::default(),
            panics: Arc::default(),
        }
    }

    pub(super) fn named(names: &[&str]) -> Project {
        Project::new(&names.iter().map(|name| worker_config(name)).collect::<Vec<_>>())
    }

    /// Changes what the file says; nothing reads it yet.
    pub(super) fn edit(&self, edit: impl FnOnce(&mut Config)) {
        let mut says = self.says.lock().unwrap();
        let mut config = says.clone().unwrap_or_else(|_| config(&[]));
        edit(&mut config);
        *says = Ok(config);
    }

    pub(super) async fn daemon(&self) -> Daemon {
        let (says, lines, config_lines, panics) =
            (self.says.clone(), self.lines.clone(), self.lines.clone(), self.panics.clone());
        let args = RootArgs {
            config_path: self.config_path.clone(),
            config: self.says.lock().unwrap().clone().unwrap(),
            load: Arc::new(move |_| says.lock().unwrap().clone()),
            home: Home::at(self.dir.path().join("home")),
            launcher: Arc::new(self.host.clone()),
            images: Arc::new(self.images.clone()),
            host: HostLimits { cpus: 2, emulated: false },
            announce: Arc::new(move |status: &WorkerStatus| {
                let detail = status.detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default();
                lines.lock().unwrap().push(format!("{}: {}{detail}", status.name, status.phase));
                let mut panics = panics.lock().unwrap();
                let mut due = panics.iter_mut().filter(|(name, phase, left)| {
                    *name == status.name && *phase == status.phase && *left > 0
                });
                if let Some((_, _, left)) = due.next() {
                    *left -= 1;
                    drop(panics);
                    panic!("an announcement that panics, as this test wants it");
                }
            }),
            announce_config: Arc::new(move |result| {
                config_lines.lock().unwrap().push(format!("config: {result:?}"));
            }),
        };
        let (root, handle) = start(args).await.unwrap();
        Daemon { root, handle }
    }

    pub(super) fn panic_at(&self, worker: &str, phase: Phase, times: u32) {
        let mut panics = self.panics.lock().unwrap();
        panics.retain(|(name, at, _)| (name.as_str(), *at) != (worker, phase));
        panics.push((worker.to_owned(), phase, times));
    }
}

impl Daemon {
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> SupervisorMsg,
    ) -> T {
        let (sender, receiver) = oneshot::channel();
        self.root.cast(message(sender.into())).unwrap();
        timeout(LONG, receiver).await.expect("an answer in time").expect("an answer")
    }

    pub(super) async fn list(&self) -> WorkerList {
        self.ask(|reply| SupervisorMsg::List { reply }).await
    }

    pub(super) async fn view(&self, name: &str) -> WorkerView {
        let name = name.to_owned();
        self.ask(|reply| SupervisorMsg::View { name, reply }).await.unwrap()
    }

    pub(super) async fn start(&self, name: &str) -> Result<WorkerStatus, ErrorBody> {
        let name = name.to_owned();
        self.ask(|reply| SupervisorMsg::Start { name, reply }).await
    }

    pub(super) async fn stop(&self, name: &str, grace_ms: Option<u64>) -> Result<WorkerStatus, ErrorBody> {
        let name = name.to_owned();
        self.ask(|reply| SupervisorMsg::Stop { name, grace_ms, reply }).await
    }

    pub(super) async fn restart(&self, name: &str) -> Result<WorkerStatus, ErrorBody> {
        let name = name.to_owned();
        self.ask(|reply| SupervisorMsg::Restart { name, grace_ms: None, reply }).await
    }

    pub(super) async fn reload(&self) -> Result<ReloadReply, ErrorBody> {
        self.ask(|reply| SupervisorMsg::Reload { reply }).await
    }

    pub(super) async fn until(&self, name: &str, is: impl Fn(&WorkerStatus) -> bool) -> WorkerStatus {
        until(&mut self.view(name).await.status, is).await
    }

    pub(super) async fn until_phase(&self, name: &str, phase: Phase) -> WorkerStatus {
        self.until(name, |status| status.phase == phase).await
    }

    /// The daemon is killed: no actor gets to say anything.
    pub(super) async fn kill(self) {
        self.root.kill();
        self.handle.await.unwrap();
    }

    pub(super) async fn shut_down(self) {
        self.root.cast(SupervisorMsg::Shutdown { force: false }).unwrap();
        timeout(LONG, self.handle).await.expect("an end in time").unwrap();
    }
}

pub(super) async fn until(
    status: &mut watch::Receiver<WorkerStatus>,
    is: impl Fn(&WorkerStatus) -> bool,
) -> WorkerStatus {
    let shown = status.clone();
    match timeout(LONG, status.wait_for(is)).await {
        Ok(status) => status.expect("the worker is still there").clone(),
        Err(_) => panic!("it stays at {:?}", *shown.borrow()),
    }
}

/// Waits for something that no channel tells; time is paused, so this costs none.
pub(super) async fn eventually(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

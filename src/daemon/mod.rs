//! The daemon: one per project, in the foreground. It holds the project's lock, serves its socket, tells
//! what happens, and turns signals into an orderly end.
//!
//! ```text
//!  take lock -> bind socket -> start the supervisor tree -> serve
//!  first signal:  stop all machines politely; the socket still answers, who is slow is told
//!  second signal: kill them
//!  third signal:  leave at once; what still runs has its shim to end it
//!  tree has ended: open streams drain, the socket goes away, the lock is released
//! ```

mod logs;
pub mod narrate;
mod reply;
mod root;
pub mod routes;
pub mod server;
pub mod sessions;
mod signals;
pub mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::{DaemonInfo, ErrorBody, Phase, WorkerList, WorkerStatus};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ractor::ActorRef;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::actors::messages::SupervisorMsg;
use crate::actors::worker::board::is_being_claimed;
use crate::home::{Home, ProjectId};
use narrate::{Narrator, Printer};
use routes::Edge;
use sessions::Sessions;
use signals::Signals;
use socket::{Place, SocketError};

/// Threads of the daemon's runtime. The control plane is idle nearly always, and where there are two, each event wakes
/// both.
const WORKER_THREADS: usize = 1;
/// How long a polite stop may take before the slow ones are told, and then between such tellings.
const SLOW_NOTICE: Duration = Duration::from_secs(2);
/// How long the last lines may take to be printed.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How long file work that is under way may hold up the daemon's end.
const LAST_WORK: Duration = Duration::from_millis(500);
/// Environment variable that says what is logged on stderr besides.
pub const LOG_ENV: &str = "III_LOG";
/// File descriptors the daemon wants, if the hard limit allows: connections have one, sessions two to four, machines
/// and files a few. The usual soft limit of 1024 is for programs that use `select`.
pub const MAX_OPEN_FILES: u64 = 4096;
/// How many events may wait to be told.
pub const EVENT_QUEUE: usize = 256;
/// How long commands wait at most until it is known which machines run already. A shim that does not answer
/// takes longer, and its worker is then shown as being looked for.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(2);

/// Something to tell the person in front of the daemon.
#[derive(Debug, Clone)]
pub enum Event {
    /// A worker's status changed.
    Worker(Box<WorkerStatus>),
    /// An edited config.yaml came into force.
    ConfigInForce {
        /// Workers that were added, removed or changed.
        changed: Vec<String>,
    },
    /// An edited config.yaml did not come into force.
    ConfigRefused {
        /// Why, with line and caret.
        error: String,
    },
}

/// A supervisor tree that runs.
#[derive(Debug)]
pub struct Root {
    /// Its root.
    pub supervisor: ActorRef<SupervisorMsg>,
    /// Ends with it.
    pub ended: JoinHandle<()>,
    /// What happens in it. Lossy: only told to people.
    pub events: mpsc::Receiver<Event>,
}

/// What a supervisor tree is started with.
#[derive(Debug, Clone)]
pub struct Project {
    /// Where everything is kept.
    pub home: Home,
    /// config.yaml, canonical.
    pub config: PathBuf,
    /// Names the project in paths.
    pub id: ProjectId,
}

/// Starts a supervisor tree; called within the daemon's runtime.
pub type StartRoot =
    dyn FnOnce(Project) -> Pin<Box<dyn Future<Output = Result<Root, ErrorBody>> + Send>> + Send;

/// Why the daemon did not run, or not to a good end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No place for it.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// config.yaml has no canonical path.
    #[error("cannot find {}: {source}", path.display())]
    Config {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The supervisor tree did not start.
    #[error("{}", .0.message)]
    Start(ErrorBody),
    /// Threads, signals: what every process needs.
    #[error("cannot {action}: {source}")]
    System {
        /// What.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A defect of ours.
    #[error("the supervisor tree ended by itself; machines that run are stopped by their shims")]
    RootEnded,
}

impl DaemonError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            DaemonError::Socket(e) => e.hint(),
            DaemonError::Start(body) => body.hint.clone(),
            DaemonError::RootEnded => {
                Some("start `iii` again within the orphan grace, it takes over what runs".to_owned())
            }
            DaemonError::Config { .. } | DaemonError::System { .. } => None,
        }
    }

    /// Whether the user's input (config.yaml) is at fault, rather than the world.
    pub fn is_bad_input(&self) -> bool {
        use iii_protocol::api::ErrorCode::{BadConfig, BadRequest};
        matches!(self, DaemonError::Start(ErrorBody { code: BadConfig | BadRequest, .. }))
    }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::System { action, source }
}

/// Runs the daemon of the project of `config` until it is told to end.
pub fn run(home: Home, config: &Path) -> Result<(), DaemonError> {
    log_to_stderr();
    raise_open_files();
    run_with(home, config, Box::new(|project| Box::pin(root::start_root(project))))
}

/// `III_LOG` says what: `warn` by default.
fn log_to_stderr() {
    use io::IsTerminal as _;
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var(LOG_ENV)
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_env_filter(filter)
        .init();
}

/// A limit that stays as it is only means that fewer sessions fit in.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = MAX_OPEN_FILES.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(e) = raised {
        tracing::warn!(error = %e, "the limit of open files stays as it is");
    }
}

/// The same with another supervisor tree.
pub fn run_with(home: Home, config: &Path, start: Box<StartRoot>) -> Result<(), DaemonError> {
    let config =
        config.canonicalize().map_err(|source| DaemonError::Config { path: config.to_owned(), source })?;
    let id = ProjectId::of(&config);
    let place = Place::take(&home, &id, &config)?;
    let project = Project { home, config, id };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(system("start threads"))?;
    let printer = Printer::start(io::stdout()).map_err(system("start a thread"))?;
    let ended = runtime.block_on(serve(&place, project, start, &printer));
    runtime.shutdown_timeout(LAST_WORK);
    drop(place);
    printer.finish(LAST_LINES);
    ended
}

async fn serve(
    place: &Place,
    project: Project,
    start: Box<StartRoot>,
    printer: &Printer,
) -> Result<(), DaemonError> {
    let signals = Signals::new().map_err(system("listen for signals"))?;
    // Bound before the tree starts: a command that comes early waits in the backlog for its answer.
    let listener = place.bind()?;
    let info = DaemonInfo {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config_path: project.config.display().to_string(),
        started_at: Timestamp::now(),
    };
    printer.line(format!("iii {} runs {}", info.version, info.config_path));
    let Project { home, id, .. } = project.clone();
    let root = start(project).await.map_err(DaemonError::Start)?;
    let (close, closing) = watch::channel(false);
    let edge = Arc::new(Edge {
        supervisor: root.supervisor,
        info,
        home,
        project: id,
        sessions: Sessions::default(),
        closing: closing.clone(),
    });
    let server = tokio::spawn({
        let edge = edge.clone();
        async move {
            // Until then `list` would not know what runs.
            if tokio::time::timeout(TAKEOVER_LIMIT, taken_over(&edge)).await.is_err() {
                tracing::info!("some machines are not taken over yet; answering all the same");
            }
            server::serve(listener, routes::router(edge), closing).await;
        }
    });
    let ended = supervise(&edge, root.ended, root.events, signals, printer).await;
    close.send_replace(true);
    if let Err(e) = server.await {
        tracing::error!(error = %e, "the server ended badly");
    }
    ended
}

/// Waits until it is known of every worker whether its machine runs already.
async fn taken_over(edge: &Edge) {
    let Ok(list) = edge.call(|reply| SupervisorMsg::List { reply }).await else { return };
    for name in list.workers.into_iter().filter(is_being_claimed).map(|worker| worker.name) {
        // One that is gone meanwhile, with its actor or its entry, is nobody to wait for.
        if let Ok(mut view) = edge.view(&name).await {
            let _gone = view.status.wait_for(|status| !is_being_claimed(status)).await;
        }
    }
}

/// Tells what happens and passes signals on, until the tree has ended.
async fn supervise(
    edge: &Edge,
    mut root: JoinHandle<()>,
    mut events: mpsc::Receiver<Event>,
    mut signals: Signals,
    printer: &Printer,
) -> Result<(), DaemonError> {
    let mut narrator = Narrator::new(TimeZone::system());
    let mut asked = 0;
    let mut notice = std::pin::pin!(tokio::time::sleep(SLOW_NOTICE));
    let mut telling = true;
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => {
                asked += 1;
                match asked {
                    1 => {
                        printer.line(format!("{signal}: stopping all workers; once more kills them"));
                        notice.as_mut().reset(tokio::time::Instant::now() + SLOW_NOTICE);
                    }
                    2 => printer.line(format!("{signal}: killing what still runs")),
                    _ => {
                        printer.line(format!("{signal}: leaving; what still runs ends by itself"));
                        return Ok(());
                    }
                }
                // A root that is gone already is seen by the branch below.
                let _ = edge.supervisor.cast(SupervisorMsg::Shutdown { force: asked > 1 });
            }
            event = events.recv(), if telling => match event {
                Some(event) => {
                    for line in narrator.lines(Timestamp::now(), &event) {
                        printer.line(line);
                    }
                }
                None => telling = false,
            },
            () = notice.as_mut(), if asked > 0 => {
                let list = edge.call(|reply| SupervisorMsg::List { reply }).await;
                if let Some(line) = list.ok().as_ref().and_then(who_is_slow) {
                    printer.line(line);
                }
                notice.as_mut().reset(tokio::time::Instant::now() + SLOW_NOTICE);
            }
            ended = &mut root => {
                while let Ok(event) = events.try_recv() {
                    for line in narrator.lines(Timestamp::now(), &event) {
                        printer.line(line);
                    }
                }
                return match (asked, ended) {
                    (1.., Ok(())) => {
                        printer.line("all workers are stopped");
                        Ok(())
                    }
                    _ => Err(DaemonError::RootEnded),
                };
            }
        }
    }
}

fn who_is_slow(list: &WorkerList) -> Option<String> {
    let slow: Vec<_> = list
        .workers
        .iter()
        .filter(|worker| !matches!(worker.phase, Phase::Stopped | Phase::Failed))
        .map(|worker| worker.name.as_str())
        .collect();
    (!slow.is_empty()).then(|| format!("still stopping: {} (Ctrl-C again kills)", slow.join(", ")))
}

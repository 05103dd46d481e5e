//! Follows config.yaml: notices edits, reads the file when they have settled, tells the root.
//!
//! Folders are watched, not the file: editors replace files, and a watch on a replaced file sees
//! nothing more. When config.yaml is a link, the folders of every link on the way and of the target are
//! watched too. Where the system refuses watches, the file is read again every [`RESTAT_INTERVAL`].

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iii_protocol::api::{ErrorBody, ReloadReply};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::file_events::may_change;
use crate::config::schema::Config;

/// An edit has settled when nothing has happened for this long.
pub const SETTLE: Duration = Duration::from_millis(75);
/// A file that never settles is read after this long all the same.
pub const SETTLE_LIMIT: Duration = Duration::from_millis(500);
/// How often the file is read where it cannot be watched.
pub const RESTAT_INTERVAL: Duration = Duration::from_secs(2);
/// Links followed on the way to the file.
const MAX_LINKS: usize = 16;

/// Reads and validates the file; the error is ready to be shown.
pub type Load = Arc<dyn Fn(&Path) -> Result<Config, String> + Send + Sync>;
/// The answer to a reload request.
pub type ReloadPort = RpcReplyPort<Result<ReloadReply, ErrorBody>>;

/// What the file says now.
#[derive(Debug)]
pub struct Reading {
    /// The configuration, or why it is not one.
    pub result: Result<Config, String>,
    /// Who asked for the reading.
    pub replies: Vec<ReloadPort>,
}

/// Requests to the watcher, and what its tasks tell it.
#[derive(Debug)]
pub enum WatcherMsg {
    /// Read now.
    Reload {
        /// Handed on to the root with the reading.
        reply: ReloadPort,
    },
    /// Something happened to the file.
    Touched,
    /// Nothing has happened for a while.
    Settled,
    /// The file was read.
    Read(Box<Result<Config, String>>),
}

/// How the watcher is born.
pub struct WatcherArgs {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// The configuration in force, and what was said of the file on disk last.
    pub known: Result<Config, String>,
    /// Reads it.
    pub load: Load,
    /// Gets each reading that is new or was asked for.
    pub tell: Arc<dyn Fn(Reading) + Send + Sync>,
}

impl fmt::Debug for WatcherArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatcherArgs").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The actor.
#[derive(Debug)]
pub struct ConfigWatcher;

/// What changes in the actor.
pub struct WatcherState {
    args: WatcherArgs,
    watch: Watch,
    settling: Option<Settling>,
    /// A reading is under way; what came meanwhile waits for the next one.
    reading: Option<Vec<ReloadPort>>,
    again: Option<Vec<ReloadPort>>,
}

struct Settling {
    first: Instant,
    _timer: AbortOnDropHandle<()>,
}

/// How edits are noticed.
enum Watch {
    /// By the system.
    Folders { watcher: RecommendedWatcher, folders: BTreeSet<PathBuf>, interest: Arc<Interest> },
    /// By looking.
    Restat { _timer: AbortOnDropHandle<()> },
}

/// What the system's watcher needs to know; shared with its thread.
struct Interest {
    /// Files and links whose change counts.
    paths: std::sync::Mutex<BTreeSet<PathBuf>>,
    /// A message is in the mailbox already: a storm of events is one message.
    pending: AtomicBool,
}

impl Actor for ConfigWatcher {
    type Msg = WatcherMsg;
    type State = WatcherState;
    type Arguments = WatcherArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<WatcherMsg>,
        args: WatcherArgs,
    ) -> Result<WatcherState, ActorProcessingErr> {
        let watch = start_watch(&myself, &args.path);
        Ok(WatcherState { args, watch, settling: None, reading: None, again: None })
    }

    async fn post_start(
        &self,
        myself: ActorRef<WatcherMsg>,
        state: &mut WatcherState,
    ) -> Result<(), ActorProcessingErr> {
        // The file may have changed between its first reading and the watch.
        state.read(&myself, None);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<WatcherMsg>,
        message: WatcherMsg,
        state: &mut WatcherState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WatcherMsg::Reload { reply } => state.read(&myself, Some(reply)),
            WatcherMsg::Touched => state.touched(&myself),
            WatcherMsg::Settled => {
                state.settling = None;
                state.read(&myself, None);
            }
            WatcherMsg::Read(result) => state.was_read(&myself, *result),
        }
        Ok(())
    }
}

impl WatcherState {
    fn touched(&mut self, myself: &ActorRef<WatcherMsg>) {
        if let Watch::Folders { interest, .. } = &self.watch {
            interest.pending.store(false, Ordering::Release);
        }
        let now = Instant::now();
        let first = self.settling.as_ref().map_or(now, |settling| settling.first);
        let due = (now + SETTLE).min(first + SETTLE_LIMIT);
        let actor = myself.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let _gone = actor.cast(WatcherMsg::Settled);
        });
        self.settling = Some(Settling { first, _timer: AbortOnDropHandle::new(task) });
    }

    fn read(&mut self, myself: &ActorRef<WatcherMsg>, reply: Option<ReloadPort>) {
        if self.reading.is_some() {
            // The reading under way may have begun before the edit.
            self.again.get_or_insert_default().extend(reply);
            return;
        }
        self.reading = Some(reply.into_iter().collect());
        let (load, path, actor) = (self.args.load.clone(), self.args.path.clone(), myself.clone());
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || read_file(&load, &path)).await;
            let result = read.unwrap_or_else(|join| Err(format!("reading the configuration failed: {join}")));
            let _gone = actor.cast(WatcherMsg::Read(Box::new(result)));
        });
    }

    fn was_read(&mut self, myself: &ActorRef<WatcherMsg>, result: Result<Config, String>) {
        self.follow_links(myself);
        let replies = self.reading.take().unwrap_or_default();
        if result != self.args.known || !replies.is_empty() {
            self.args.known = result.clone();
            (self.args.tell)(Reading { result, replies });
        }
        if let Some(replies) = self.again.take() {
            let mut replies = replies.into_iter();
            self.read(myself, replies.next());
            if let Some(reading) = &mut self.reading {
                reading.extend(replies);
            }
        }
    }

    /// Links may lead elsewhere now, and a folder that was away may be back.
    fn follow_links(&mut self, myself: &ActorRef<WatcherMsg>) {
        let path = &self.args.path;
        if !path.exists() && matches!(self.watch, Watch::Folders { .. }) {
            // Its folder may be gone too, and the watch of a folder does not come back with it.
            self.watch = start_watch(myself, path);
            if path.exists() {
                self.touched(myself);
            }
            return;
        }
        match &mut self.watch {
            Watch::Folders { watcher, folders, interest } => {
                let now = paths_of(path);
                let now_folders = folders_of(&now);
                let was = std::mem::replace(&mut *interest.lock(), now.clone());
                if was == now && *folders == now_folders {
                    return;
                }
                for gone in folders.difference(&now_folders) {
                    // It may be gone from the disk as well, and its watch with it.
                    let _unwatched = watcher.unwatch(gone);
                }
                let added = now_folders
                    .difference(folders)
                    .try_for_each(|folder| watcher.watch(folder, RecursiveMode::NonRecursive));
                *folders = now_folders;
                if let Err(error) = added {
                    self.watch = restat(myself, &error);
                }
            }
            Watch::Restat { .. } => {
                if let Ok(watch) = watch_folders(myself, path) {
                    self.watch = watch;
                }
            }
        }
    }
}

impl Interest {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.paths.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wants(&self, event: &notify::Event) -> bool {
        let paths = self.lock();
        let ours = |path: &PathBuf| {
            paths.contains(path) || paths.iter().any(|known| known.parent() == Some(path.as_path()))
        };
        may_change(event.kind)
            && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(ours))
    }
}

fn read_file(load: &Load, path: &Path) -> Result<Config, String> {
    match path.try_exists() {
        Ok(false) => Err(format!("{} is gone; the last good configuration stays in force", path.display())),
        Ok(true) | Err(_) => load(path),
    }
}

fn start_watch(actor: &ActorRef<WatcherMsg>, path: &Path) -> Watch {
    watch_folders(actor, path).unwrap_or_else(|error| {
        tracing::warn!(
            "{} cannot be watched ({error}); it is read every {} s instead",
            path.display(),
            RESTAT_INTERVAL.as_secs()
        );
        restat(actor, &error)
    })
}

fn restat(actor: &ActorRef<WatcherMsg>, why: &notify::Error) -> Watch {
    tracing::debug!("reading the configuration from time to time: {why}");
    let actor = actor.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(RESTAT_INTERVAL).await;
            if actor.cast(WatcherMsg::Settled).is_err() {
                return;
            }
        }
    });
    Watch::Restat { _timer: AbortOnDropHandle::new(task) }
}

fn watch_folders(actor: &ActorRef<WatcherMsg>, path: &Path) -> Result<Watch, notify::Error> {
    let paths = paths_of(path);
    let folders = folders_of(&paths);
    let interest =
        Arc::new(Interest { paths: std::sync::Mutex::new(paths), pending: AtomicBool::new(false) });
    let (seen, actor) = (interest.clone(), actor.clone());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error means that events may have been missed, so it counts as one.
        let wanted = event.as_ref().map_or(true, |event| seen.wants(event));
        if wanted && !seen.pending.swap(true, Ordering::AcqRel) {
            let _gone = actor.cast(WatcherMsg::Touched);
        }
    })?;
    for folder in &folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(Watch::Folders { watcher, folders, interest })
}

/// The file's path and, if it is a link, where that leads, link by link.
fn paths_of(path: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    let mut next = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for _ in 0..MAX_LINKS {
        let target = std::fs::read_link(&next);
        let folder = next.parent().map(Path::to_owned).unwrap_or_default();
        if !paths.insert(next) {
            break;
        }
        match target {
            Ok(target) => next = folder.join(target),
            Err(_) => break,
        }
    }
    if let Ok(real) = std::fs::canonicalize(path) {
        paths.insert(real);
    }
    paths
}

fn folders_of(paths: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    paths.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect()
}

#[cfg(test)]
mod tests;

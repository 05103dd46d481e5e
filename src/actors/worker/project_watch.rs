//! Follows the files of a project: tells when what would be copied of it is another thing than before.
//!
//! The system's events only say that it is worth a look. What counts is the list that a copy goes by
//! ([`files::list`]), so that its rules are the same here. Folders are watched one by one, and none of those that are
//! left out: the packages and builds in them can be more than the system watches. Where it refuses, the files are
//! listed again every [`RELIST_INTERVAL`].

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::actors::file_events::may_change;
use crate::project::files::{self, EntryKind, FileEntry, Files};

/// An edit has settled when nothing has happened for this long: editors write a file in several steps.
pub(super) const SETTLE: Duration = Duration::from_millis(75);
/// What never settles is looked at after this long all the same.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How often the files are listed where they cannot be watched.
pub(super) const RELIST_INTERVAL: Duration = Duration::from_secs(2);
/// Lists in a row for one look, while each shows folders that were not watched yet.
const LOOKS: usize = 5;
/// Paths that have gone which are kept between two looks.
const MAX_GONE: usize = 4096;

/// Dropping it ends it.
#[derive(Debug)]
pub(super) struct ProjectWatch {
    folder: PathBuf,
    exclude: Vec<String>,
    _task: AbortOnDropHandle<()>,
}

impl ProjectWatch {
    /// Calls `tell` after the first look (with `false`), and after each that shows a change (with `true`).
    pub(super) fn start(
        folder: PathBuf,
        exclude: Vec<String>,
        tell: impl Fn(bool) + Send + 'static,
    ) -> ProjectWatch {
        let task = tokio::spawn(run(folder.clone(), exclude.clone(), tell));
        ProjectWatch { folder, exclude, _task: AbortOnDropHandle::new(task) }
    }

    /// Whether it follows these files.
    pub(super) fn is_of(&self, folder: &Path, exclude: &[String]) -> bool {
        self.folder == folder && self.exclude == exclude
    }
}

async fn run(folder: PathBuf, exclude: Vec<String>, tell: impl Fn(bool)) {
    let (touch, mut touched) = mpsc::channel(1);
    let mut eyes = Eyes::open(folder, exclude, touch);
    let mut before = None;
    loop {
        let look = tokio::task::spawn_blocking(move || {
            let seen = eyes.look();
            (eyes, seen)
        });
        let seen = match look.await {
            Ok((back, seen)) => {
                eyes = back;
                seen
            }
            Err(error) => {
                tracing::error!("looking at a project ended abnormally: {error}");
                return;
            }
        };
        if before != Some(seen) {
            tell(before.is_some());
            before = Some(seen);
        }
        if eyes.is_watching() {
            settled(&mut touched).await;
        } else {
            sleep(RELIST_INTERVAL).await;
        }
    }
}

/// Waits for something to happen, and then until it is over.
async fn settled(touched: &mut mpsc::Receiver<()>) {
    // Who touches lives as long as the eyes do.
    let _touched = touched.recv().await;
    let limit = Instant::now() + SETTLE_LIMIT;
    loop {
        let due = (Instant::now() + SETTLE).min(limit);
        match timeout_at(due, touched.recv()).await {
            Ok(Some(())) if Instant::now() < limit => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// What a look shows: all of what is copied, as one number; or that it cannot be listed, which a copy tells better.
type Seen = Option<u64>;

struct Eyes {
    exclude: Vec<String>,
    interest: Arc<Interest>,
    /// `None` where the system refuses.
    watcher: Option<RecommendedWatcher>,
    /// Relative folders.
    watched: BTreeSet<Vec<u8>>,
}

/// What the watcher's thread needs to know.
#[derive(Debug)]
struct Interest {
    folder: PathBuf,
    /// A message that waits already says it all: a storm is one.
    touch: mpsc::Sender<()>,
    state: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The topmost paths that are not copied.
    left_out: HashSet<Vec<u8>>,
    /// Paths that have gone; a folder that comes back under such a name is another one, and not watched yet.
    gone: HashSet<Vec<u8>>,
    /// There are more of them than are kept: any folder may be another one.
    is_flooded: bool,
}

impl Eyes {
    fn open(folder: PathBuf, exclude: Vec<String>, touch: mpsc::Sender<()>) -> Eyes {
        let interest = Arc::new(Interest { folder, touch, state: Mutex::default() });
        let its = interest.clone();
        let watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| its.note(event));
        let watcher = watcher.inspect_err(|error| its_refused(&interest.folder, error)).ok();
        Eyes { exclude, interest, watcher, watched: BTreeSet::new() }
    }

    fn look(&mut self) -> Seen {
        if self.watched.is_empty() {
            self.follow(BTreeSet::from([Vec::new()]));
        }
        let mut seen = None;
        for _ in 0..LOOKS {
            let Ok(listed) = files::list(&self.interest.folder, &self.exclude) else {
                // The folder itself may be gone, and its watch with it.
                self.follow(BTreeSet::new());
                return None;
            };
            seen = Some(fingerprint(&listed.entries));
            // What was made in a folder before it was watched shows in the next list.
            let folders = self.learn(listed);
            if !self.follow(folders) {
                break;
            }
        }
        seen
    }

    /// Whether the system tells of what happens.
    fn is_watching(&self) -> bool {
        self.watcher.is_some() && !self.watched.is_empty()
    }

    /// Gives the folders that are to be watched.
    fn learn(&self, listed: Files) -> BTreeSet<Vec<u8>> {
        self.interest.lock().left_out = listed.left_out.into_iter().collect();
        let folders = listed.entries.into_iter().filter(|entry| entry.kind == EntryKind::Folder);
        folders.map(|entry| entry.path).chain([Vec::new()]).collect()
    }

    /// Watches these folders and no others. Gives whether there is one among them that was not watched.
    fn follow(&mut self, now: BTreeSet<Vec<u8>>) -> bool {
        let (gone, all) = {
            let mut known = self.interest.lock();
            (std::mem::take(&mut known.gone), std::mem::take(&mut known.is_flooded))
        };
        let Some(watcher) = &mut self.watcher else { return false };
        let root = &self.interest.folder;
        self.watched.retain(|folder| {
            let stays = now.contains(folder) && !all && !up(folder).any(|above| gone.contains(above));
            if !stays {
                // Its watch may have gone with it.
                let _unwatched = watcher.unwatch(&root.join(OsStr::from_bytes(folder)));
            }
            stays
        });
        let mut any = false;
        for new in now {
            if self.watched.contains(&new) {
                continue;
            }
            let path = root.join(OsStr::from_bytes(&new));
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    any = true;
                    self.watched.insert(new);
                }
                // It has gone since it was listed; what holds it tells of that. The project's own is looked for again.
                Err(notify::Error { kind: notify::ErrorKind::PathNotFound, .. }) => {}
                Err(error) => {
                    its_refused(root, &error);
                    self.watcher = None;
                    self.watched.clear();
                    return false;
                }
            }
        }
        any
    }
}

fn its_refused(folder: &Path, error: &notify::Error) {
    tracing::warn!(
        "{} cannot be watched ({error}); its files are listed every {} s instead",
        folder.display(),
        RELIST_INTERVAL.as_secs()
    );
}

impl Interest {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: notify::Result<notify::Event>) {
        // An error means that events may have been missed, so it counts as one.
        if event.is_err() || event.is_ok_and(|event| self.wants(&event)) {
            let _waits_already = self.touch.try_send(());
        }
    }

    fn wants(&self, event: &notify::Event) -> bool {
        let changes = may_change(event.kind);
        if !changes || event.need_rescan() || event.paths.is_empty() {
            return changes;
        }
        let mut known = self.lock();
        let mut wanted = false;
        for path in &event.paths {
            let Ok(path) = path.strip_prefix(&self.folder) else { continue };
            let path = path.as_os_str().as_bytes();
            if up(path).any(|above| known.left_out.contains(above)) {
                continue;
            }
            wanted = true;
            if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                match known.gone.len() < MAX_GONE {
                    true => {
                        known.gone.insert(path.to_owned());
                    }
                    false => known.is_flooded = true,
                }
            }
        }
        wanted
    }
}

/// The path, the folders above it, and at last the project's own, which is empty.
fn up(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let above = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
    std::iter::once(path).chain(above).chain(std::iter::once(&b""[..]))
}

/// Equal for equal lists. For this process only.
fn fingerprint(entries: &[FileEntry]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for FileEntry { path, kind, mode } in entries {
        (path, mode).hash(&mut hasher);
        match kind {
            EntryKind::Folder => 0u8.hash(&mut hasher),
            EntryKind::File { size, mtime_ns } => (1u8, size, mtime_ns).hash(&mut hasher),
            EntryKind::Link { target } => (2u8, target).hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;

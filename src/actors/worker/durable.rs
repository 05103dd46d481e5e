//! What outlives the daemon: `managed/<worker>/state.json`.
//!
//! Format, version 1 (written and read by this version; a file of any other version, or one that does
//! not parse, is put aside under another name and defaults are used):
//! `{"version":1,"owner":"/abs/config.yaml","desired":"running","generation":4,"restarts":1,"exits":[...]}`.
//!
//! One task per worker writes the newest record, so writes are neither lost nor overtaken. The store
//! survives its worker's actor: a new one finds in memory what the writer may still be writing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use iii_protocol::api::{Desired, ErrorBody, ErrorCode};
use iii_protocol::exit::ExitRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::fsutil::{PathError, create_private_dir, sweep_temporary, write_atomic};

/// Ends that are remembered per worker.
pub const MAX_EXITS: usize = 10;
const VERSION: u32 = 1;
const FILE: &str = "state.json";
/// Shared by writes, taken alone by whoever removes what killed writes left: the writer of a worker that was
/// removed may still be at work when one of its name is added again.
static WRITES: RwLock<()> = RwLock::new(());

/// The durable part of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the user last asked for.
    pub desired: Desired,
    /// Counts starts.
    pub generation: u64,
    /// Automatic restarts since the last explicit start.
    pub restarts: u64,
    /// Newest first, at most [`MAX_EXITS`], one per generation.
    pub exits: Vec<ExitRecord>,
}

impl Default for Record {
    fn default() -> Record {
        Record { desired: Desired::Running, generation: 0, restarts: 0, exits: Vec::new() }
    }
}

impl Record {
    /// Notes an end; a later word about the same generation replaces the earlier one.
    pub fn note_exit(&mut self, exit: ExitRecord) {
        self.exits.retain(|known| known.generation != exit.generation);
        self.exits.insert(0, exit);
        self.exits.truncate(MAX_EXITS);
    }

    /// Whether the end of this generation is known, or was until later ones took its place.
    pub fn has_exit(&self, generation: u64) -> bool {
        self.exits.iter().any(|exit| exit.generation == generation)
            || self.exits.last().is_some_and(|oldest| generation < oldest.generation)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    owner: PathBuf,
    desired: Desired,
    generation: u64,
    restarts: u64,
    exits: Vec<ExitRecord>,
}

/// Why a worker's record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another project that still exists has a worker of this name.
    #[error("worker `{worker}` belongs to another project, {}", owner.display())]
    Foreign {
        /// The worker.
        worker: String,
        /// That project's config file.
        owner: PathBuf,
    },
    /// The folder or file cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl From<&StateError> for ErrorBody {
    fn from(error: &StateError) -> ErrorBody {
        let (code, hint) = match error {
            StateError::Foreign { .. } => (
                ErrorCode::Conflict,
                "rename the worker in one of the two files, or use another III_HOME for this project"
                    .to_owned(),
            ),
            StateError::Path(path) if path.is_disk_full() => {
                (ErrorCode::Host, "free some space on that disk".to_owned())
            }
            StateError::Path(_) => {
                (ErrorCode::Host, "check the owner and the permissions of that path".to_owned())
            }
        };
        ErrorBody { code, message: error.to_string(), hint: Some(hint) }
    }
}

#[derive(Debug, Default)]
struct Slot {
    version: u64,
    record: Option<Record>,
}

/// The record of one worker, in memory and on disk. Dropping it lets the writer finish.
#[derive(Debug)]
pub struct Store {
    worker: String,
    path: PathBuf,
    owner: PathBuf,
    /// Serialises [`Store::put`] against [`Store::load`].
    slot: Mutex<Slot>,
    wanted: watch::Sender<(u64, Option<Record>)>,
    written: watch::Receiver<u64>,
}

impl Store {
    /// The folder that it is in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// The store of `worker` in `folder` (`managed/<worker>`), owned by the project of config file
    /// `owner`. Reads nothing yet. Must be called on a runtime: it starts the writer.
    pub fn new(worker: &str, folder: &Path, owner: &Path) -> Store {
        let path = folder.join(FILE);
        let (wanted, orders) = watch::channel((0, None));
        let (done, written) = watch::channel(0);
        tokio::spawn(write_newest(path.clone(), owner.to_owned(), orders, done));
        Store {
            worker: worker.to_owned(),
            path,
            owner: owner.to_owned(),
            slot: Mutex::default(),
            wanted,
            written,
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        // Every change under the lock is a single assignment, so a panic cannot leave it half done.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record in memory, or read from disk the first time; takes ownership of a worker nobody has.
    pub async fn load(&self) -> Result<Record, StateError> {
        if let Some(record) = self.slot().record.clone() {
            return Ok(record);
        }
        let (worker, path, owner) = (self.worker.clone(), self.path.clone(), self.owner.clone());
        let read = tokio::task::spawn_blocking(move || read(&worker, &path, &owner)).await;
        let record = match read {
            Ok(result) => result?,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        };
        self.put_at_first(record.clone());
        Ok(record)
    }

    fn put_at_first(&self, record: Record) {
        self.slot().record = Some(record.clone());
        self.put(record);
    }

    /// Makes `record` the newest. Ignored until [`Store::load`] has shown that the worker is ours.
    pub fn put(&self, record: Record) {
        let mut slot = self.slot();
        if slot.record.is_none() {
            return;
        }
        slot.version += 1;
        slot.record = Some(record.clone());
        self.wanted.send_replace((slot.version, Some(record)));
    }

    /// Waits until everything put so far is on disk, or has failed to get there (said in a warning).
    pub async fn flushed(&self) {
        let version = self.slot().version;
        let mut written = self.written.clone();
        // An error means that the writer is gone, which happens only when the runtime goes down.
        let _gone = written.wait_for(|done| *done >= version).await;
    }
}

async fn write_newest(
    path: PathBuf,
    owner: PathBuf,
    mut orders: watch::Receiver<(u64, Option<Record>)>,
    done: watch::Sender<u64>,
) {
    while orders.changed().await.is_ok() {
        let (version, record) = orders.borrow_and_update().clone();
        if let Some(record) = record {
            let (path, owner) = (path.clone(), owner.clone());
            match tokio::task::spawn_blocking(move || write(&path, &owner, record)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("{error}; a restart of the daemon would forget it"),
                Err(join) => tracing::error!("the writer of a worker's state failed: {join}"),
            }
        }
        done.send_replace(version);
    }
}

fn write(path: &Path, owner: &Path, record: Record) -> Result<(), PathError> {
    let Record { desired, generation, restarts, exits } = record;
    let file = OnDisk { version: VERSION, owner: owner.to_owned(), desired, generation, restarts, exits };
    let mut bytes = serde_json::to_vec_pretty(&file).expect("worker states always serialise");
    bytes.push(b'\n');
    let _shared = WRITES.read().unwrap_or_else(PoisonError::into_inner);
    write_atomic(path, &bytes)
}

fn read(worker: &str, path: &Path, owner: &Path) -> Result<Record, StateError> {
    if let Some(folder) = path.parent() {
        create_private_dir(folder)?;
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        Err(error) => return Err(PathError::new("read", path)(error).into()),
    };
    let file = match serde_json::from_slice::<OnDisk>(&bytes) {
        Ok(file) if file.version == VERSION => file,
        Ok(file) => return put_aside(path, &format!("version {} is not known", file.version)),
        Err(error) => return put_aside(path, &error.to_string()),
    };
    if file.owner != owner && file.owner.exists() {
        return Err(StateError::Foreign { worker: worker.to_owned(), owner: file.owner });
    }
    if let Some(folder) = path.parent().filter(|_| file.owner == owner) {
        // Ours alone: a project has one daemon, and this one writes nothing now.
        let _alone = WRITES.write().unwrap_or_else(PoisonError::into_inner);
        sweep_temporary(folder);
    }
    let OnDisk { desired, generation, restarts, mut exits, .. } = file;
    exits.truncate(MAX_EXITS);
    Ok(Record { desired, generation, restarts, exits })
}

/// A file that cannot be understood is kept for a look, out of the way.
fn put_aside(path: &Path, why: &str) -> Result<Record, StateError> {
    let aside = path.with_extension(format!("json.unreadable-{}", Timestamp::now().as_second()));
    fs::rename(path, &aside).map_err(PathError::new("rename", path))?;
    tracing::warn!(
        "{} cannot be understood ({why}); it is now {}, and the worker starts with no history",
        path.display(),
        aside.display()
    );
    Ok(Record::default())
}

#[cfg(test)]
mod tests {
    use iii_protocol::exit::ExitCause;

    use super::*;

    fn exit(generation: u64) -> ExitRecord {
        ExitRecord {
            generation,
            at: Timestamp::UNIX_EPOCH,
            uptime_ms: 5,
            cause: ExitCause::Exit { code: 7 },
            requested: false,
        }
    }

    #[tokio::test]
    async fn a_record_comes_back_after_the_daemon_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, owner) = (dir.path().join("w"), dir.path().join("config.yaml"));
        let store = Store::new("w", &folder, &owner);
        let mut record = store.load().await.unwrap();
        assert_eq!(record, Record::default());
        for generation in 1..=25 {
            record.generation = generation;
            record.desired = Desired::Stopped;
            record.note_exit(exit(generation));
            store.put(record.clone());
        }
        store.flushed().await;
        let again = Store::new("w", &folder, &owner).load().await.unwrap();
        assert_eq!(again, record);
        assert_eq!(again.exits.len(), MAX_EXITS);
        assert_eq!(again.exits[0].generation, 25);
    }

    #[tokio::test]
    async fn the_newest_record_wins_even_when_the_store_is_dropped_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let owner = dir.path().join("config.yaml");
        let store = Store::new("w", dir.path(), &owner);
        store.load().await.unwrap();
        let mut written = store.written.clone();
        for restarts in 1..=100 {
            store.put(Record { restarts, ..Record::default() });
        }
        drop(store);
        // The writer ends, and with it the channel, only after the last write.
        while written.changed().await.is_ok() {}
        assert_eq!(Store::new("w", dir.path(), &owner).load().await.unwrap().restarts, 100);
    }

    #[tokio::test]
    async fn another_projects_worker_is_left_alone_while_that_project_exists() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours.yaml"), dir.path().join("theirs.yaml"));
        fs::write(&theirs, "").unwrap();
        let first = Store::new("w", dir.path(), &theirs);
        first.load().await.unwrap();
        first.put(Record { generation: 9, ..Record::default() });
        first.flushed().await;

        let unfinished = dir.path().join(".tmp-Ab12cd");
        fs::write(&unfinished, "{").unwrap();
        let second = Store::new("w", dir.path(), &ours);
        let error = second.load().await.unwrap_err();
        assert!(matches!(&error, StateError::Foreign { owner, .. } if *owner == theirs));
        let body = ErrorBody::from(&error);
        assert_eq!(body.code, ErrorCode::Conflict);
        assert!(body.message.contains("theirs.yaml"));
        second.put(Record { generation: 1, ..Record::default() });
        second.flushed().await;
        assert!(unfinished.exists(), "what another project may be writing is not touched");
        let kept = Store::new("w", dir.path(), &theirs).load().await.unwrap();
        assert_eq!(kept.generation, 9);
        assert!(!unfinished.exists(), "what a killed daemon of the project left is gone");

        fs::remove_file(&theirs).unwrap();
        assert_eq!(second.load().await.unwrap().generation, 9);
    }

    #[tokio::test]
    async fn a_file_that_is_not_understood_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let newer =
            r#"{"version":2,"owner":"/x","desired":"stopped","generation":1,"restarts":0,"exits":[]}"#;
        for content in ["{broken", newer] {
            fs::write(dir.path().join(FILE), content).unwrap();
            let store = Store::new("w", dir.path(), &dir.path().join("config.yaml"));
            assert_eq!(store.load().await.unwrap(), Record::default());
            let aside = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_string_lossy().contains("unreadable"))
                .unwrap();
            assert_eq!(fs::read_to_string(&aside).unwrap(), content);
            fs::remove_file(aside).unwrap();
            store.flushed().await;
        }
    }
}

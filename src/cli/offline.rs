//! What can be known without a daemon: config.yaml, what the last daemon noted, and whether a machine still
//! runs (its shim holds a lock as long as it does).

use std::fs;
use std::path::Path;

use iii_protocol::api::{Desired, Phase, Refused, Resources, WorkerStatus};
use iii_protocol::exit::ExitRecord;
use jiff::Timestamp;
use serde::Deserialize;

use super::context::Context;
use super::exit::Failure;
use crate::config::schema::{Source, WorkerConfig};
use crate::fsutil::{LockError, LockFile};

/// The STATUS word of a machine that goes on without a daemon: within the orphan grace a new one takes it over.
pub const RUNNING_WORD: &str = "running (no daemon)";

/// The part of `managed/<worker>/state.json` (version 1) that is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Noted {
    version: u32,
    /// The config file whose worker this is.
    pub(super) owner: std::path::PathBuf,
    desired: Desired,
    generation: u64,
    restarts: u64,
    exits: Vec<ExitRecord>,
}

const STATE_VERSION: u32 = 1;

/// What is noted of a worker, whichever project it belongs to.
pub(super) fn noted(ctx: &Context, name: &str) -> Option<(Noted, Timestamp)> {
    let path = ctx.home.managed(name).join("state.json");
    let noted: Noted = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let at = fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
    (noted.version == STATE_VERSION)
        .then(|| (noted, Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)))
}

/// Whether a shim has this worker's machine.
pub fn is_machine_running(ctx: &Context, name: &str) -> Result<bool, Failure> {
    match machine_lock(ctx, name) {
        Ok(_) => Ok(false),
        Err(LockError::Held { .. }) => Ok(true),
        Err(LockError::Path(e)) => Err(e.into()),
    }
}

/// Waits until the shim has left after the daemon let go of its machine: it says its last words then. Holding
/// what is returned keeps the next one from starting. `None` if there never was a machine.
pub(super) async fn ended_machine(ctx: &Context, name: &str) -> Result<Option<LockFile>, Failure> {
    let lock = lock_path(ctx, name);
    // Asked first, so that asking makes no file.
    let acquire = move || lock.exists().then(|| LockFile::acquire(&lock)).transpose();
    tokio::task::spawn_blocking(acquire)
        .await
        .map_err(|e| Failure::failed(format!("waiting for the machine of `{name}` failed: {e}")))?
        .map_err(|e| Failure::failed(e.to_string()))
}

/// What a shim holds for all its life.
fn lock_path(ctx: &Context, name: &str) -> std::path::PathBuf {
    ctx.home.machine_run(&ctx.project, name).join("lock")
}

/// The lock of a machine that does not run, if there ever was one.
pub(super) fn machine_lock(ctx: &Context, name: &str) -> Result<Option<LockFile>, LockError> {
    let path = lock_path(ctx, name);
    if path.exists() { LockFile::try_acquire(&path).map(Some) } else { Ok(None) }
}

/// The state of a configured worker.
pub fn worker_status(ctx: &Context, worker: &WorkerConfig) -> Result<WorkerStatus, Failure> {
    let running = is_machine_running(ctx, &worker.name)?;
    let noted = noted(ctx, &worker.name).filter(|(noted, _)| noted.owner == ctx.config);
    let (noted, at) = noted.map_or((None, None), |(noted, at)| (Some(noted), Some(at)));
    let (image, resources) = machine_of(worker);
    let last_end = noted.as_ref().and_then(|noted| noted.exits.first()).map(|exit| exit.at);
    Ok(WorkerStatus {
        name: worker.name.clone(),
        worker_type: worker.worker_type(),
        phase: if running { Phase::Running } else { Phase::Stopped },
        detail: None,
        cause: worker.env.as_ref().err().cloned(),
        since: last_end.or(at).unwrap_or_else(|| modified(&ctx.config)),
        until: None,
        running_since: None,
        desired: noted.as_ref().map_or(Desired::Running, |noted| noted.desired),
        generation: noted.as_ref().map_or(0, |noted| noted.generation),
        revision: 0,
        restarts: noted.as_ref().map_or(0, |noted| noted.restarts),
        exits: noted.map(|noted| noted.exits).unwrap_or_default(),
        image,
        image_digest: None,
        resources,
        network: worker.network.clone(),
        refused: Refused::default(),
        shim_pid: None,
        vmm_pid: None,
        log_dir: ctx.home.logs(&worker.name).display().to_string(),
    })
}

/// The image a machine starts from, and what the machine gets. A project that cannot be read is no worse listed.
fn machine_of(worker: &WorkerConfig) -> (Option<String>, Resources) {
    let mut resources = worker.resources;
    let image = match &worker.source {
        Source::Oci { image } => Some(image.clone()),
        Source::Local { path, .. } => crate::project::read(path, Some(&worker.name)).ok().map(|plan| {
            resources = worker.own_resources.or(plan.resources());
            plan.base_image.value
        }),
        Source::None => None,
    };
    (image, resources)
}

fn modified(path: &Path) -> Timestamp {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    modified.and_then(|at| Timestamp::try_from(at).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    #[test]
    fn a_projects_machine_is_its_manifests_unless_the_file_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = "name: p\nruntime: {kind: rust, base_image: my/rust}\nresources: {memory: 512, cpus: 3, disk: 8GiB}\n";
        fs::write(dir.path().join("iii.worker.yaml"), manifest).unwrap();
        let machine = |fields: &str| {
            let text = format!("workers: [{{name: p, worker_path: \"{}\", {fields}}}]", dir.path().display());
            let (image, resources) =
                machine_of(&parse(&text, Path::new("c.yaml"), &|_| None).unwrap().workers[0]);
            (image, resources.memory_mib, resources.cpus, resources.disk_bytes >> 30)
        };
        assert_eq!(machine("resources: "), (Some("my/rust".to_owned()), 512, 3, 8));
        assert_eq!(machine("resources: {memory: 4096}"), (Some("my/rust".to_owned()), 4096, 3, 8));
        assert_eq!(machine("resources: {disk: 4GiB}"), (Some("my/rust".to_owned()), 512, 3, 4));
        fs::write(dir.path().join("iii.worker.yaml"), "nonsense: [").unwrap();
        assert_eq!(machine("resources: "), (None, 2048, 2, 16));
    }
}

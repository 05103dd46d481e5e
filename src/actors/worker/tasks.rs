//! What a worker's actor has done for it outside of its handlers. Every task ends with exactly one
//! answer to the actor, also when what it calls panics or hangs.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent};
use iii_protocol::shim::ShimStatus;
use ractor::ActorRef;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::board::PROGRESS_INTERVAL;
use super::durable::StateError;
use super::messages::{Claimed, Kit, Left, Surroundings, WorkerMsg};
use super::plan::{self, Recipe};
use super::state::{Failure, Remedy};
use crate::actors::image_puller::{PROGRESS_QUEUE, PullerMsg, Waiter};
use crate::actors::progress::Progress;
use crate::config::schema::{Source, WorkerConfig};
use crate::image::types::Image;
use crate::project::sync::is_edited as is_edited_since;
use crate::vm::launcher::{Adoption, Launcher, Machine};
use crate::vm::spec::MachineSpec;

/// How long the launcher may take to find a machine and to hear from it.
pub(super) const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the launcher may take to look at the host.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the launcher may take to start a shim; the scratch disk is made in this time.
pub(super) const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `work` to its end, or until the caller gives up; a panic in it becomes an error.
async fn guarded<T: Send + 'static>(
    work: impl Future<Output = Result<T, ErrorBody>> + Send + 'static,
) -> Result<T, ErrorBody> {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(result) => result,
        Err(join) => Err(internal(&format!("a task ended abnormally: {join}"))),
    }
}

fn internal(message: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Internal,
        message: message.to_owned(),
        hint: Some("this is a defect of iii; its log has more".to_owned()),
    }
}

fn too_slow(what: &str, limit: Duration) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Host,
        message: format!("{what} took longer than {} s", limit.as_secs()),
        hint: Some("look at the host's load and disks".to_owned()),
    }
}

/// Reads the worker's record and takes over what an earlier daemon left.
pub(super) async fn claim(config: WorkerConfig, kit: Kit, around: Surroundings) -> Result<Claimed, Failure> {
    // An earlier actor's launch may still be under way; its machine is found only when it is through.
    let _gate = kit.gate.clone().lock_owned().await;
    let record = kit.store.load().await.map_err(|error| Failure {
        what: "state",
        error: ErrorBody::from(&error),
        remedy: match error {
            StateError::Foreign { .. } => Remedy::None,
            StateError::Path(_) => Remedy::Retry,
        },
    })?;
    let (launcher, ring, worker) = (around.launcher.clone(), kit.ring.clone(), config.name.clone());
    let adopt = guarded(async move {
        match launcher.adopt(&worker, ring).await? {
            Adoption::Nothing => Ok(Left::Nothing),
            Adoption::Ended(exit) => Ok(Left::Ended(exit)),
            Adoption::Running(mut machine) => match machine.events.recv().await {
                Some(status) => Ok(Left::Running { status: Box::new(status), machine, wanted: None }),
                None => Err(internal("a running machine was found, but its shim does not answer")),
            },
        }
    });
    let left = match timeout(CLAIM_TIMEOUT, adopt).await {
        Ok(result) => result,
        Err(_) => Err(too_slow("looking for a running machine", CLAIM_TIMEOUT)),
    };
    let left = left.map_err(|error| Failure { what: "adopt", error, remedy: Remedy::Retry })?;
    let left = match left {
        Left::Running { status, machine, .. } => {
            let wanted = match recipe(config).await {
                Ok(recipe) => lookup(&around, &recipe.image).await.map(|image| Box::new((recipe, image))),
                Err(_) => None,
            };
            Left::Running { status, machine, wanted }
        }
        left => left,
    };
    Ok(Claimed { record, left })
}

/// All that a machine needs. `doubt` is whether the last one could not mount its root disk: that is looked at first.
pub(super) async fn prepare(
    config: WorkerConfig,
    doubt: bool,
    around: Surroundings,
    progress: impl Fn(String) + Send,
) -> Result<(Recipe, Image), Failure> {
    let recipe = recipe(config).await;
    let recipe = recipe.map_err(|error| Failure { what: "config", error, remedy: Remedy::None })?;
    // Nobody should wait for a pull to learn that no machine can run here.
    let host = check_host(around.launcher.clone()).await;
    host.map_err(|error| Failure { what: "host", error, remedy: Remedy::Retry })?;
    if doubt {
        progress(format!("checking the root disk of {}", recipe.image));
        let forgotten = guarded(around.images.forget_if_damaged(&recipe.image)).await;
        forgotten.map_err(|error| Failure { what: "image", error, remedy: Remedy::Retry })?;
    }
    let image = image(recipe.image.clone(), around, progress).await?;
    Ok((recipe, image))
}

/// What keeps this host from running machines.
pub(in crate::actors) async fn check_host(launcher: Arc<dyn Launcher>) -> Result<(), ErrorBody> {
    match timeout(CHECK_TIMEOUT, guarded(async move { launcher.check().await })).await {
        Ok(result) => result,
        Err(_) => Err(too_slow("looking at what this host can do", CHECK_TIMEOUT)),
    }
}

/// What the worker is made of; a project is read for it.
pub(super) async fn recipe(config: WorkerConfig) -> Result<Recipe, ErrorBody> {
    match tokio::task::spawn_blocking(move || plan::recipe(&config)).await {
        Ok(recipe) => recipe,
        Err(join) => Err(internal(&format!("a task ended abnormally: {join}"))),
    }
}

/// Whether the worker's project is another one than its disk has; `notes` is the folder of that disk.
pub(super) async fn is_edited(config: &WorkerConfig, notes: PathBuf) -> bool {
    let Source::Local { path, exclude } = config.source.clone() else { return false };
    let look = tokio::task::spawn_blocking(move || is_edited_since(&path, &exclude, &notes));
    look.await.unwrap_or_else(|join| {
        tracing::error!("comparing a project ended abnormally: {join}");
        false
    })
}

/// What the worker is made of after an edit of its project; the image only if it is here.
pub(super) async fn recheck(
    config: WorkerConfig,
    around: Surroundings,
) -> Result<(Recipe, Option<Image>), ErrorBody> {
    let recipe = recipe(config).await?;
    let image = lookup(&around, &recipe.image).await;
    Ok((recipe, image))
}

async fn lookup(around: &Surroundings, reference: &str) -> Option<Image> {
    let (images, reference) = (around.images.clone(), reference.to_owned());
    match tokio::task::spawn_blocking(move || images.lookup(&reference)).await {
        Ok(image) => image,
        Err(join) => {
            tracing::error!("looking for an image ended abnormally: {join}");
            None
        }
    }
}

/// Gets the image of `reference`; the puller is asked only for one that is not here.
async fn image(
    reference: String,
    around: Surroundings,
    progress: impl Fn(String) + Send,
) -> Result<Image, Failure> {
    if let Some(image) = lookup(&around, &reference).await {
        return Ok(image);
    }
    let failure = |error: ErrorBody| {
        let remedy = match error.code {
            ErrorCode::BadRequest | ErrorCode::BadConfig => Remedy::None,
            ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::Image
            | ErrorCode::Host
            | ErrorCode::ShuttingDown
            | ErrorCode::Internal => Remedy::Retry,
        };
        Failure { what: "image", error, remedy }
    };
    let gone = || failure(internal("the image puller failed"));
    let (events, mut seen) = mpsc::channel(PROGRESS_QUEUE);
    let (image, mut answer) = oneshot::channel();
    let request = PullerMsg::Pull {
        reference: reference.clone(),
        force: false,
        registries: around.settings.borrow().registries.clone(),
        waiter: Waiter { events, image: Some(image) },
    };
    let puller = around.puller.borrow().clone().ok_or_else(gone)?;
    puller.cast(request).map_err(|_| gone())?;

    let mut shown = Progress::new(&reference);
    let mut last: Option<Instant> = None;
    loop {
        tokio::select! {
            result = &mut answer => return result.map_err(|_| gone())?.map_err(failure),
            Some(event) = seen.recv() => {
                let first_of_a_kind = matches!(event, PullEvent::Resolved { .. });
                shown.note(&event);
                let is_due = last.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL);
                if is_due || first_of_a_kind {
                    last = Some(Instant::now());
                    progress(shown.to_string());
                }
            }
        }
    }
}

/// Launches a machine. It is not called off when the actor ends: the next actor waits at the gate and
/// finds the machine.
pub(super) async fn launch(
    spec: MachineSpec,
    kit: Kit,
    launcher: Arc<dyn Launcher>,
) -> Result<Machine, Failure> {
    let _gate = kit.gate.clone().lock_owned().await;
    let (ring, store) = (kit.ring.clone(), kit.store.clone());
    let launch = guarded(async move {
        // The new shim takes the last word of the one before away: by then it must be noted on disk.
        store.flushed().await;
        launcher.launch(spec, ring).await
    });
    match timeout(LAUNCH_TIMEOUT, launch).await {
        Ok(Ok(machine)) => Ok(machine),
        Ok(Err(error)) => {
            let remedy = match error.code {
                ErrorCode::BadRequest | ErrorCode::BadConfig => Remedy::None,
                ErrorCode::Conflict | ErrorCode::Internal => Remedy::Reclaim,
                ErrorCode::NotFound | ErrorCode::Image | ErrorCode::Host | ErrorCode::ShuttingDown => {
                    Remedy::Retry
                }
            };
            Err(Failure { what: "launch", error, remedy })
        }
        Err(_) => {
            let error = too_slow("launching the machine", LAUNCH_TIMEOUT);
            Err(Failure { what: "launch", error, remedy: Remedy::Reclaim })
        }
    }
}

/// Hands a machine's events to its actor, and the end of them.
pub(super) async fn relay(
    generation: u64,
    mut events: mpsc::Receiver<ShimStatus>,
    actor: ActorRef<WorkerMsg>,
) {
    while let Some(status) = events.recv().await {
        if actor.cast(WorkerMsg::Machine { generation, status }).is_err() {
            return;
        }
    }
    // An actor that is gone has a successor, which adopts the machine anew.
    let _gone = actor.cast(WorkerMsg::MachineLost { generation });
}

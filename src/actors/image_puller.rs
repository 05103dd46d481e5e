//! Pulls images: one job per reference at a time, shared by all who wait for it.
//!
//! A job goes on when those who asked for it have gone: what it got stays on disk for the next one. Two
//! references to the same digest are two jobs; the image store lets one of them do the work.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent, PulledImage};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::progress::Progress;
use crate::image::store::RegistrySettings;
use crate::image::types::Image;

/// Jobs that run at the same time; each fetches its layers in parallel.
pub const MAX_PULLS: usize = 3;
/// Progress events that may wait for a reader; when full, progress is skipped.
pub const PROGRESS_QUEUE: usize = 64;

/// Where images come from. The real one is the image store; tests pass a fake.
pub trait ImageSource: Send + Sync + 'static {
    /// The image of `reference`, pulled and built if it is not here, or if `force`. `registries` says which
    /// servers are asked, and how.
    fn ensure(
        &self,
        reference: &str,
        force: bool,
        registries: RegistrySettings,
        progress: mpsc::Sender<PullEvent>,
    ) -> BoxFuture<'static, Result<Image, ErrorBody>>;

    /// Looks whether the root disk of the image that `reference` means here was damaged since it was built, and forgets
    /// the image if so: [`ImageSource::ensure`] then makes it again. Returns whether it was forgotten.
    fn forget_if_damaged(&self, reference: &str) -> BoxFuture<'static, Result<bool, ErrorBody>>;

    /// The image that `reference` meant when it was last pulled, if it is here. May read files.
    fn lookup(&self, reference: &str) -> Option<Image>;
}

/// One who waits for a pull.
#[derive(Debug)]
pub struct Waiter {
    /// Progress, and `Done` or `Failed` at last.
    pub events: mpsc::Sender<PullEvent>,
    /// The image itself, for one who starts from it.
    pub image: Option<oneshot::Sender<Result<Image, ErrorBody>>>,
}

/// Requests to the puller, and what its jobs tell it.
pub enum PullerMsg {
    /// Joins the job of this reference or starts one. A forced pull does not join one that is not forced.
    Pull {
        /// What to pull.
        reference: String,
        /// Ask the registry even if it is here.
        force: bool,
        /// Which servers are asked, and how.
        registries: RegistrySettings,
        /// Who asks.
        waiter: Waiter,
    },
    /// A job got on.
    Progressed {
        /// Which.
        job: u64,
        /// How.
        event: PullEvent,
    },
    /// A job ended.
    Finished {
        /// Which.
        job: u64,
        /// How.
        result: Box<Result<Image, ErrorBody>>,
    },
}

impl fmt::Debug for PullerMsg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PullerMsg::Pull { reference, force, .. } => write!(f, "Pull({reference}, force: {force})"),
            PullerMsg::Progressed { job, .. } => write!(f, "Progressed({job})"),
            PullerMsg::Finished { job, result } => write!(f, "Finished({job}, ok: {})", result.is_ok()),
        }
    }
}

/// The actor.
#[derive(Debug)]
pub struct ImagePuller;

/// The jobs under way.
pub struct PullerState {
    images: Arc<dyn ImageSource>,
    slots: Arc<Semaphore>,
    jobs: HashMap<u64, Job>,
    /// Asked for while a job of the same reference was under way that they cannot share.
    queued: VecDeque<Request>,
    next_job: u64,
}

struct Job {
    reference: String,
    force: bool,
    progress: Progress,
    waiters: Vec<Waiter>,
}

struct Request {
    reference: String,
    force: bool,
    registries: RegistrySettings,
    waiter: Waiter,
}

impl Actor for ImagePuller {
    type Msg = PullerMsg;
    type State = PullerState;
    type Arguments = Arc<dyn ImageSource>;

    async fn pre_start(
        &self,
        _myself: ActorRef<PullerMsg>,
        images: Arc<dyn ImageSource>,
    ) -> Result<PullerState, ActorProcessingErr> {
        Ok(PullerState {
            images,
            slots: Arc::new(Semaphore::new(MAX_PULLS)),
            jobs: HashMap::new(),
            queued: VecDeque::new(),
            next_job: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PullerMsg>,
        message: PullerMsg,
        state: &mut PullerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PullerMsg::Pull { reference, force, registries, waiter } => {
                state.pull(&myself, Request { reference, force, registries, waiter });
            }
            PullerMsg::Progressed { job, event } => {
                if let Some(job) = state.jobs.get_mut(&job) {
                    job.progressed(&event);
                }
            }
            PullerMsg::Finished { job, result } => state.finished(&myself, job, &result),
        }
        Ok(())
    }
}

impl PullerState {
    fn pull(&mut self, myself: &ActorRef<PullerMsg>, request: Request) {
        match self.jobs.values_mut().find(|job| job.reference == request.reference) {
            Some(job) if job.force || !request.force => job.join(request.waiter),
            Some(_) => self.queued.push_back(request),
            None => self.start(myself, request),
        }
    }

    fn start(&mut self, myself: &ActorRef<PullerMsg>, request: Request) {
        let Request { reference, force, registries, waiter } = request;
        let id = self.next_job;
        self.next_job += 1;
        let progress = Progress::new(&reference);
        self.jobs.insert(id, Job { reference: reference.clone(), force, progress, waiters: vec![waiter] });
        let (images, slots, actor) = (self.images.clone(), self.slots.clone(), myself.clone());
        tokio::spawn(run_job(id, actor, slots, move |events| {
            images.ensure(&reference, force, registries, events)
        }));
    }

    fn finished(&mut self, myself: &ActorRef<PullerMsg>, id: u64, result: &Result<Image, ErrorBody>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        let last = match result {
            Ok(image) => PullEvent::Done { image: pulled(image) },
            Err(error) => PullEvent::Failed { error: error.clone() },
        };
        for waiter in job.waiters {
            if let Some(image) = waiter.image {
                // One who has gone does not need it.
                let _gone = image.send(result.clone());
            }
            let last = last.clone();
            // The last event is never skipped, so it may have to wait for a slow reader.
            tokio::spawn(async move { waiter.events.send(last).await });
        }
        for request in std::mem::take(&mut self.queued) {
            self.pull(myself, request);
        }
    }
}

impl Job {
    fn join(&mut self, waiter: Waiter) {
        for event in self.progress.replay() {
            if waiter.events.try_send(event).is_err() {
                break;
            }
        }
        self.waiters.push(waiter);
    }

    fn progressed(&mut self, event: &PullEvent) {
        self.progress.note(event);
        for waiter in &self.waiters {
            // A reader that is slow or gone misses progress, nothing else.
            let _skipped = waiter.events.try_send(event.clone());
        }
    }
}

/// Runs one job when there is a slot for it, and tells the actor of it.
async fn run_job(
    job: u64,
    actor: ActorRef<PullerMsg>,
    slots: Arc<Semaphore>,
    ensure: impl FnOnce(mpsc::Sender<PullEvent>) -> BoxFuture<'static, Result<Image, ErrorBody>> + Send + 'static,
) {
    // The semaphore is never closed; the slot is held until the job's end either way.
    let _slot = slots.acquire_owned().await;
    let (events, mut seen) = mpsc::channel(PROGRESS_QUEUE);
    let mut work = tokio::spawn(async move { ensure(events).await });
    let mut open = true;
    let result = loop {
        tokio::select! {
            event = seen.recv(), if open => match event {
                // The end is told by the result; sources may send it as an event, too.
                Some(PullEvent::Done { .. } | PullEvent::Failed { .. }) => {}
                Some(event) => {
                    // A puller that is gone has dropped all who waited; the job still ends well.
                    let _gone = actor.cast(PullerMsg::Progressed { job, event });
                }
                None => open = false,
            },
            result = &mut work => break result,
        }
    };
    let result = result.unwrap_or_else(|join| {
        Err(ErrorBody {
            code: ErrorCode::Internal,
            message: format!("the pull ended abnormally: {join}"),
            hint: Some("this is a defect of iii; its log has more".to_owned()),
        })
    });
    let _gone = actor.cast(PullerMsg::Finished { job, result: Box::new(result) });
}

fn pulled(image: &Image) -> PulledImage {
    PulledImage::from(image)
}

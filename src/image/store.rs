//! The images of this home: looked up without the network, or pulled and built once.
//!
//! ```text
//!   reference ──lookup──▶ there? ── yes ─────────────────────────────────▶ Image
//!       └─ no, or Always: registry ──▶ manifest digest ──▶ there, and with Always as it was built? ── yes ──▶ remember
//!                                                  │                                                the reference
//!                                                  └─ no: lock of the digest ──▶ `assemble`: pull ∥ build
//! ```
//!
//! Everything is shared by processes (two daemons, a CLI without one) through locks on files, so each
//! download and each build happens once, and nothing half-made is ever visible (see [`records`]).

mod assemble;
mod checksum;
mod progress;
mod records;

use std::sync::Arc;

use iii_protocol::api::PullEvent;
use tokio::sync::mpsc;

use super::detached::detached;
use super::digest::Digest;
use super::error::ImageError;
use super::reference::Reference;
use super::registry::{BlobStore, Clients, Endpoint, ImageManifest, Platform, Remote};
use super::types::Image;
use crate::fsutil::{LockError, LockFile, create_private_dir};
use crate::home::Home;
use assemble::Assembly;
use progress::Events;
use records::Records;

pub use super::registry::{
    CONNECT_TIMEOUT, FIRST_DELAY, MAX_DELAY, PARALLEL_LAYERS, RETRIES, RegistrySettings, STALL_TIMEOUT,
    TransferLimits,
};

/// Events that may wait for whoever is told of them; when full, progress is skipped.
const EVENT_QUEUE: usize = 64;

/// Whether an image that is known here is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// The registry is asked only when the reference is not known here.
    IfMissing,
    /// The registry is asked what the reference means now; what is here is not fetched again. A root disk that is here
    /// is read and compared with what was built, and built again if it was damaged since.
    Always,
}

/// Blobs, root disks and what references mean. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct ImageStore {
    home: Home,
    records: Records,
    blobs: BlobStore,
    clients: Clients,
    limits: Arc<TransferLimits>,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore")
            .field("home", &self.home)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ImageStore {
    /// The images of a home; nothing is read or made yet.
    pub fn new(home: &Home) -> ImageStore {
        ImageStore::with_limits(home, TransferLimits::default())
    }

    /// The same with other bounds for downloads.
    pub fn with_limits(home: &Home, limits: TransferLimits) -> ImageStore {
        ImageStore {
            home: home.clone(),
            records: Records::new(home.images()),
            blobs: BlobStore::new(home.blobs()),
            clients: Clients::default(),
            limits: Arc::new(limits),
        }
    }

    /// The image of a reference if it is known here and its root disk is there. Never asks a registry;
    /// blocks only for a few small reads.
    pub fn lookup(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        match self.records.resolve(reference)? {
            Some(digest) => Ok(self.records.image(&digest)?),
            None => Ok(None),
        }
    }

    /// The image of a reference, pulled and built if need be.
    ///
    /// `progress` gets `Resolved`, `Checking`, `Layer` and `Building` events; a full channel skips some. The last word,
    /// `Done` or `Failed`, is the caller's. Dropping the future ends the downloads; what has arrived is
    /// kept for the next attempt.
    pub async fn ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        settings: &RegistrySettings,
        progress: mpsc::Sender<PullEvent>,
    ) -> Result<Image, ImageError> {
        if policy == PullPolicy::IfMissing
            && let Some(image) = self.lookup(reference)?
        {
            return Ok(image);
        }
        let events = Events::new(progress);
        let (remote, digest, manifest) = self.resolve(reference, settings).await?;
        events.resolved(&digest, &manifest);

        create_private_dir(&self.home.blobs())?;
        self.records.create_folders()?;
        if policy == PullPolicy::Always {
            self.check_disk(reference, digest.clone(), events.clone().checking()).await?;
        }
        let image = match self.records.image(&digest)? {
            Some(image) => image,
            None => self.make(&remote, reference, &digest, manifest, events).await?,
        };
        self.records.remember(reference, &digest)?;
        Ok(image)
    }

    /// Looks whether the root disk of what `reference` means here still is what was built, and forgets the image if it
    /// is not: [`ImageStore::ensure`] then makes it again. Machines that run from the old file keep it. Returns whether
    /// it was forgotten. Never asks a registry, but reads the whole disk.
    pub async fn forget_if_damaged(&self, reference: &Reference) -> Result<bool, ImageError> {
        match self.records.resolve(reference)? {
            Some(digest) => self.check_disk(reference, digest, |_, _| ()).await,
            None => Ok(false),
        }
    }

    /// [`ImageStore::ensure`] for one who is told of each event in this very task.
    pub async fn ensure_telling(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        settings: &RegistrySettings,
        mut tell: impl FnMut(PullEvent),
    ) -> Result<Image, ImageError> {
        let (sender, mut events) = mpsc::channel(EVENT_QUEUE);
        let mut job = std::pin::pin!(self.ensure(reference, policy, settings, sender));
        let image = loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => tell(event),
                image = &mut job => break image,
            }
        };
        while let Ok(event) = events.try_recv() {
            tell(event);
        }
        image
    }

    /// What the reference means now, and who says so: its registry's mirror, or the registry itself if it has no
    /// mirror or that has no such image. Any other failure of a mirror is told: to go round it would hide it.
    async fn resolve<'a>(
        &'a self,
        reference: &'a Reference,
        settings: &RegistrySettings,
    ) -> Result<(Remote<'a>, Digest, ImageManifest), ImageError> {
        let own = Endpoint::own(reference, settings);
        let Some(mirror) = Endpoint::mirror(reference, settings) else {
            return self.resolve_at(reference, own).await;
        };
        let registry = reference.registry().to_owned();
        let host = mirror.host.clone();
        match self.resolve_at(reference, mirror).await {
            Err(ImageError::NotFound { reference: missing, .. }) => {
                self.resolve_at(reference, own).await.map_err(|error| ImageError::NotMirrored {
                    reference: missing,
                    registry,
                    mirror: host,
                    error: Box::new(error),
                })
            }
            Err(error) => Err(ImageError::Mirror { registry, error: Box::new(error) }),
            resolved => resolved,
        }
    }

    async fn resolve_at<'a>(
        &'a self,
        reference: &'a Reference,
        endpoint: Endpoint,
    ) -> Result<(Remote<'a>, Digest, ImageManifest), ImageError> {
        let remote = Remote::new(&self.clients, reference, endpoint, &self.limits).await?;
        let (digest, manifest) = remote.resolve(&Platform::host()).await?;
        Ok((remote, digest, manifest))
    }

    /// Makes an image that is not here, unless another process makes it first.
    async fn make(
        &self,
        remote: &Remote<'_>,
        reference: &Reference,
        digest: &Digest,
        manifest: ImageManifest,
        events: Events,
    ) -> Result<Image, ImageError> {
        let assembly = Assembly::plan(self, reference, digest, manifest, events)?;
        let lock = Arc::new(self.lock(reference, digest).await?);
        match self.records.image(digest)? {
            Some(image) => Ok(image),
            None => assembly.run(remote, lock).await,
        }
    }

    async fn check_disk(
        &self,
        reference: &Reference,
        digest: Digest,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<bool, ImageError> {
        let records = self.records.clone();
        let check = move || records.forget_if_damaged(&digest, progress);
        let checked: Result<Result<bool, LockError>, _> = detached("disk-check", check).await;
        Ok(checked.map_err(|e| internal(reference, &e))??)
    }

    async fn lock(&self, reference: &Reference, digest: &Digest) -> Result<LockFile, ImageError> {
        let (records, digest) = (self.records.clone(), digest.clone());
        let locked: Result<Result<LockFile, LockError>, _> =
            detached("image-lock", move || records.lock(&digest)).await;
        Ok(locked.map_err(|e| internal(reference, &e))??)
    }
}

fn internal(reference: &Reference, error: &dyn std::fmt::Display) -> ImageError {
    ImageError::Internal { reference: reference.to_string(), reason: error.to_string() }
}

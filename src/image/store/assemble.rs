//! Making one image: its layers are downloaded side by side while the root disk is built from those that
//! are there already, bottom first.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;

use super::progress::{Events, Throttle, unique};
use super::{ImageStore, internal};
use crate::fsutil::{LockFile, PathError};
use crate::image::build::{BuildError, Compression, Layer, Limits, build_root_disk};
use crate::image::detached::detached;
use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::reference::Reference;
use crate::image::registry::{
    Blob, BlobStore, ConfigFile, ImageManifest, MAX_CONFIG_BYTES, Platform, Remote, parse_config,
};
use crate::image::types::Image;
use crate::image::worker_manifest::WorkerManifest;

use super::records::Records;

/// One image to be made.
pub(super) struct Assembly<'a> {
    store: &'a ImageStore,
    reference: &'a Reference,
    digest: &'a Digest,
    manifest: ImageManifest,
    compressions: Vec<Compression>,
    events: Events,
}

/// What the building thread needs; it outlives a caller that gave up.
struct Build {
    records: Records,
    blobs: BlobStore,
    digest: Digest,
    config: ConfigFile,
    manifest: ImageManifest,
    compressions: Vec<Compression>,
    /// Fires for each blob that is there; dropped when it will not come.
    ready: HashMap<Digest, oneshot::Receiver<()>>,
    downloaded: Arc<AtomicBool>,
    events: Events,
    /// Held to the end of the thread.
    _lock: Arc<LockFile>,
}

enum BuildFailure {
    Path(PathError),
    Build(BuildError),
}

impl<'a> Assembly<'a> {
    /// Refuses what cannot be built before anything is downloaded.
    pub(super) fn plan(
        store: &'a ImageStore,
        reference: &'a Reference,
        digest: &'a Digest,
        manifest: ImageManifest,
        events: Events,
    ) -> Result<Assembly<'a>, ImageError> {
        let compression = |layer: &Blob| {
            Compression::from_media_type(&layer.media_type).ok_or_else(|| ImageError::UnsupportedLayer {
                reference: reference.to_string(),
                media_type: layer.media_type.clone(),
            })
        };
        let compressions = manifest.layers.iter().map(compression).collect::<Result<_, _>>()?;
        Ok(Assembly { store, reference, digest, manifest, compressions, events })
    }

    /// Pulls and builds. Blobs that turn out to be damaged on this disk are fetched again, once.
    pub(super) async fn run(&self, remote: &Remote<'_>, lock: Arc<LockFile>) -> Result<Image, ImageError> {
        let config = self.config(remote).await?;
        match self.attempt(remote, &config, &lock).await? {
            Ok(image) => Ok(image),
            Err(BuildFailure::Build(error)) if !error.is_disk_full() && self.remove_damaged().await? => {
                tracing::warn!(image = %self.reference, %error, "damaged layers are fetched again");
                self.attempt(remote, &config, &lock).await?.map_err(|failure| self.failed(failure))
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    async fn config(&self, remote: &Remote<'_>) -> Result<ConfigFile, ImageError> {
        let blob = &self.manifest.config;
        if blob.size > MAX_CONFIG_BYTES {
            return Err(self.malformed(format!(
                "its config has {} bytes, at most {MAX_CONFIG_BYTES} are read",
                blob.size
            )));
        }
        let blobs = &self.store.blobs;
        if blobs.has(blob) {
            blobs.remove_if_damaged(blob)?;
        }
        blobs.fetch(remote, blob, "config", &|_, _| ()).await?;
        let path = blobs.path(&blob.digest);
        let bytes = fs::read(&path).map_err(PathError::new("read", path))?;
        let config = parse_config(&bytes).map_err(|e| self.malformed(format!("config: {e}")))?;
        let platform = Platform::host();
        if !platform.runs(&config.os, &config.architecture) {
            return Err(ImageError::Platform {
                reference: self.reference.to_string(),
                wanted: platform.to_string(),
                available: vec![format!("{}/{}", config.os, config.architecture)],
            });
        }
        let (diff_ids, layers) = (config.diff_ids.len(), self.manifest.layers.len());
        if diff_ids != layers && diff_ids != 0 {
            return Err(self.malformed(format!("its config names {diff_ids} layers, its manifest {layers}")));
        }
        Ok(config)
    }

    /// Downloads and builds side by side. The outer error is the download's.
    async fn attempt(
        &self,
        remote: &Remote<'_>,
        config: &ConfigFile,
        lock: &Arc<LockFile>,
    ) -> Result<Result<Image, BuildFailure>, ImageError> {
        let downloaded = Arc::new(AtomicBool::new(false));
        let mut ready = HashMap::new();
        let mut wanted = Vec::new();
        for blob in unique(&self.manifest.layers) {
            let (there, receiver) = oneshot::channel();
            ready.insert(blob.digest.clone(), receiver);
            wanted.push((blob.clone(), there));
        }
        let build = Build {
            records: self.store.records.clone(),
            blobs: self.store.blobs.clone(),
            digest: self.digest.clone(),
            config: config.clone(),
            manifest: self.manifest.clone(),
            compressions: self.compressions.clone(),
            ready,
            downloaded: downloaded.clone(),
            events: self.events.clone(),
            _lock: lock.clone(),
        };
        let mut built = std::pin::pin!(detached("image-build", move || build.run()));
        let mut downloads = std::pin::pin!(
            stream::iter(wanted)
                .map(|(blob, there)| self.download(remote, blob, there))
                .buffer_unordered(self.store.limits.parallel_layers)
                .try_collect::<()>()
        );
        let result = tokio::select! {
            // First, so that a download's failure is told and not the build's that follows from it.
            biased;
            downloads = &mut downloads => {
                downloads?;
                downloaded.store(true, Ordering::Relaxed);
                built.await
            }
            // Only a failure can come before the last download.
            built = &mut built => built,
        };
        result.map_err(|e| internal(self.reference, &e))
    }

    async fn download(
        &self,
        remote: &Remote<'_>,
        blob: Blob,
        there: oneshot::Sender<()>,
    ) -> Result<(), ImageError> {
        let throttle = Throttle::new(blob.size);
        let progress = |done: u64, cached: bool| {
            if throttle.passes(done) {
                self.events.layer(&blob, done, cached);
            }
        };
        self.store.blobs.fetch(remote, &blob, "layer", &progress).await?;
        // The build may have failed already.
        let _ = there.send(());
        Ok(())
    }

    /// Whether some layer on disk was not what its name says; such layers are gone now.
    async fn remove_damaged(&self) -> Result<bool, ImageError> {
        let blobs = self.store.blobs.clone();
        let layers: Vec<Blob> = unique(&self.manifest.layers).into_iter().cloned().collect();
        let check = move || -> Result<bool, PathError> {
            let mut damaged = false;
            for layer in &layers {
                damaged |= blobs.remove_if_damaged(layer)?;
            }
            Ok(damaged)
        };
        let checked = detached("blob-check", check).await;
        Ok(checked.map_err(|e| internal(self.reference, &e))??)
    }

    fn failed(&self, failure: BuildFailure) -> ImageError {
        let reference = self.reference.to_string();
        match failure {
            BuildFailure::Path(error) => error.into(),
            BuildFailure::Build(error) if error.is_disk_full() => {
                ImageError::BuildDiskFull { reference, reason: error.to_string() }
            }
            BuildFailure::Build(error) => ImageError::Build { reference, reason: error.to_string() },
        }
    }

    fn malformed(&self, reason: String) -> ImageError {
        ImageError::Malformed { reference: self.reference.to_string(), reason }
    }
}

impl Build {
    fn run(mut self) -> Result<Image, BuildFailure> {
        let result = self.disk();
        if result.is_err() {
            self.records.discard_temp(&self.digest);
        }
        result
    }

    fn disk(&mut self) -> Result<Image, BuildFailure> {
        let mut file = self.records.create_temp(&self.digest).map_err(BuildFailure::Path)?;
        let total = self.manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        let (events, downloaded) = (self.events.clone(), self.downloaded.clone());
        let throttle = Throttle::new(total);
        // While layers still arrive, their own events tell how far it is.
        let mut progress = |done: u64| {
            if downloaded.load(Ordering::Relaxed) && throttle.passes(done) {
                events.building(done, total);
            }
        };
        let mut ready = std::mem::take(&mut self.ready);
        let layers = (0..self.manifest.layers.len()).map(|index| self.layer(index, &mut ready));
        let disk = build_root_disk(layers, &mut file, &Limits::default(), &mut progress)
            .map_err(BuildFailure::Build)?;
        let manifest = disk.worker_manifest.as_deref().map(WorkerManifest::parse).unwrap_or_default();
        for problem in &manifest.problems {
            tracing::warn!(image = %self.digest, "{problem}");
        }
        let blobs = std::iter::once(&self.manifest.config).chain(&self.manifest.layers);
        let mut seen = HashSet::new();
        let blobs = blobs.map(|b| b.digest.to_string()).filter(|d| seen.insert(d.clone())).collect();
        let config = self.config.config.clone();
        self.records.publish(&self.digest, &file, config, manifest, blobs).map_err(BuildFailure::Path)
    }

    /// The next layer, once it is there.
    fn layer(
        &self,
        index: usize,
        ready: &mut HashMap<Digest, oneshot::Receiver<()>>,
    ) -> io::Result<Layer<'static>> {
        let blob = &self.manifest.layers[index];
        if let Some(ready) = ready.remove(&blob.digest) {
            ready.blocking_recv().map_err(|_| io::Error::other("its download was given up"))?;
        }
        Ok(Layer {
            compression: self.compressions[index],
            diff_id: self.config.diff_ids.get(index).cloned(),
            reader: Box::new(File::open(self.blobs.path(&blob.digest))?),
        })
    }
}

//! Pulling images, by what a user sees, against a registry on loopback.

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod errors;
mod formats;
mod mirrors;
mod once;

use std::path::PathBuf;
use std::time::Duration;

use iii::home::Home;
use iii::image::error::ImageError;
use iii::image::reference::Reference;
use iii::image::store::{ImageStore, PullPolicy, RegistrySettings, TransferLimits};
use iii::image::types::Image;
use iii_protocol::api::PullEvent;
use tokio::sync::mpsc;

use support::registry::Registry;

/// Long enough for a loaded machine; only a hang takes it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A home and a registry of its own for each test.
struct World {
    _folder: tempfile::TempDir,
    home: Home,
    registry: Registry,
    store: ImageStore,
}

impl World {
    fn new() -> World {
        World::with_limits(limits())
    }

    fn with_limits(limits: TransferLimits) -> World {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        let store = ImageStore::with_limits(&home, limits);
        World { _folder: folder, home, registry: Registry::start(), store }
    }

    fn reference(&self, rest: &str) -> Reference {
        self.registry.reference(rest).parse().unwrap()
    }

    async fn pull(&self, rest: &str) -> Result<Image, ImageError> {
        self.ensure(rest, PullPolicy::IfMissing).await
    }

    async fn ensure(&self, rest: &str, policy: PullPolicy) -> Result<Image, ImageError> {
        let (events, _) = mpsc::channel(1);
        ensure(&self.store, &self.reference(rest), policy, events).await
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.home.blobs().join(digest.strip_prefix("sha256:").unwrap())
    }

    fn partial(&self, digest: &str) -> PathBuf {
        self.blob(digest).with_extension("partial")
    }

    /// Blob requests so far.
    fn blob_requests(&self, digest: &str) -> usize {
        self.registry.requests(&format!("/blobs/{digest}"))
    }
}

/// The product's limits, but without the waiting.
fn limits() -> TransferLimits {
    TransferLimits {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(5),
        ..TransferLimits::default()
    }
}

async fn ensure(
    store: &ImageStore,
    reference: &Reference,
    policy: PullPolicy,
    events: mpsc::Sender<PullEvent>,
) -> Result<Image, ImageError> {
    let settings = RegistrySettings::default();
    let ensured = store.ensure(reference, policy, &settings, events);
    tokio::time::timeout(PATIENCE, ensured).await.expect("the pull hangs")
}

/// Whether a file with this body is on a root disk (which is not compressed).
fn disk_has(image: &Image, body: &[u8]) -> bool {
    let disk = std::fs::read(&image.root_disk).unwrap();
    assert_eq!(disk.len() as u64, image.root_disk_bytes);
    disk.windows(body.len()).any(|window| window == body)
}

/// The names in a folder, sorted; none if there is no folder.
fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

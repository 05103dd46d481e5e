//! What an image is to the rest of the program.

use std::path::PathBuf;

use iii_protocol::api::PulledImage;
use serde::{Deserialize, Serialize};

use super::worker_manifest::WorkerManifest;

/// The part of an OCI image config that a machine needs (image-spec, `config.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `config.Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `config.Env`, `KEY=VALUE` each.
    #[serde(default)]
    pub env: Vec<String>,
    /// `config.WorkingDir`; empty means `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `config.User`; empty means root.
    #[serde(default)]
    pub user: String,
    /// `config.StopSignal`, such as `SIGQUIT` or `3`; empty means SIGTERM.
    #[serde(default)]
    pub stop_signal: String,
}

/// An image that is ready to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<hex>` of the platform's manifest.
    pub digest: String,
    /// How to run it.
    pub config: ImageConfig,
    /// The finished root disk.
    pub root_disk: PathBuf,
    /// Its size, bytes.
    pub root_disk_bytes: u64,
    /// What it says about the machine it wants.
    pub worker_manifest: WorkerManifest,
}

impl From<&Image> for PulledImage {
    fn from(image: &Image) -> PulledImage {
        PulledImage {
            digest: image.digest.clone(),
            env: image.config.env.clone(),
            root_disk_bytes: image.root_disk_bytes,
            resources: image.worker_manifest.resources,
            warnings: image.worker_manifest.problems.clone(),
        }
    }
}

//! What the tests of this folder share.

use std::path::PathBuf;
use std::time::Duration;

use iii_protocol::api::Resources;
use iii_protocol::network::Network;

use crate::config::engine::EngineUrl;
use crate::config::schema::{OwnResources, RestartConfig, RestartPolicy, Source, WorkerConfig};
use crate::image::types::{Image, ImageConfig};
use crate::image::worker_manifest::WorkerManifest;

/// A worker with every default.
pub fn worker_config(name: &str) -> WorkerConfig {
    WorkerConfig {
        name: name.to_owned(),
        source: Source::Oci { image: format!("registry.test/{name}") },
        watch: false,
        env: Ok(Vec::new()),
        engine: EngineUrl::default(),
        resources: Resources { memory_mib: 256, cpus: 1, disk_bytes: 1 << 30 },
        own_resources: OwnResources::default(),
        network: Network::default(),
        restart: RestartConfig {
            policy: RestartPolicy::UnlessStopped,
            max_restarts: None,
            delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        },
        stop_timeout: Duration::from_secs(10),
        boot_timeout: None,
    }
}

/// An image that can be started from.
pub fn image() -> Image {
    Image {
        digest: "sha256:00".to_owned(),
        config: ImageConfig { cmd: vec!["/bin/work".to_owned()], ..ImageConfig::default() },
        root_disk: PathBuf::from("/images/00.erofs"),
        root_disk_bytes: 4096,
        worker_manifest: WorkerManifest::default(),
    }
}

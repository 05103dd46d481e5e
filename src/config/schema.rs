//! config.yaml after reading: every default filled in, every value of its own type.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use iii_protocol::api::{ErrorBody, Resources, WorkerType};
use iii_protocol::network::Network;

use super::engine::EngineUrl;

/// `orphan_grace:` when the file does not say.
pub const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(60);
/// `stop_timeout:` when the file does not say.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// `resources:` when the file does not say: 2048 MiB, 2 virtual CPUs, 16 GiB of scratch disk.
pub fn default_resources() -> Resources {
    Resources { memory_mib: 2048, cpus: 2, disk_bytes: 16 << 30 }
}

/// What an entry itself says of its machine; something else may fill in the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnResources {
    /// `memory:`, MiB.
    pub memory_mib: Option<u32>,
    /// `cpus:`.
    pub cpus: Option<u8>,
    /// `disk:`, bytes.
    pub disk_bytes: Option<u64>,
}

impl OwnResources {
    /// With the rest from `otherwise`.
    pub fn or(self, otherwise: Resources) -> Resources {
        Resources {
            memory_mib: self.memory_mib.unwrap_or(otherwise.memory_mib),
            cpus: self.cpus.unwrap_or(otherwise.cpus),
            disk_bytes: self.disk_bytes.unwrap_or(otherwise.disk_bytes),
        }
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// In the order of the file; names are unique.
    pub workers: Vec<WorkerConfig>,
    /// Registries (`host[:port]`) that are spoken to over plain http, besides loopback ones:
    /// `insecure_registries:` and the comma list in III_INSECURE_REGISTRIES.
    pub insecure_registries: Vec<String>,
    /// `registries:`, by name (`docker.io`).
    pub registries: BTreeMap<String, RegistryConfig>,
    /// How long a machine outlives its daemon: `orphan_grace:`, 60 s by default.
    pub orphan_grace: Duration,
}

impl Config {
    /// Which server is asked in the place of which registry.
    pub fn mirrors(&self) -> BTreeMap<String, String> {
        let mirror =
            |(name, registry): (&String, &RegistryConfig)| Some((name.clone(), registry.mirror.clone()?));
        self.registries.iter().filter_map(mirror).collect()
    }
}

/// One entry of `registries:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// `mirror:`, the `host[:port]` that is asked first.
    pub mirror: Option<String>,
}

/// One entry of `workers:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// `name:`, 1 to 63 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
    pub name: String,
    /// `image:` or `worker_path:` (which wins).
    pub source: Source,
    /// `watch:`, whether an edit of the project is brought into the running machine.
    pub watch: bool,
    /// `config:` flattened and expanded, in order; or why that failed (an unset variable, or an engine's address that
    /// is none, with file and line).
    pub env: Result<Vec<(String, String)>, ErrorBody>,
    /// The engine that `config:` chooses by III_ENGINE_URL or III_URL, else the default one.
    pub engine: EngineUrl,
    /// `resources:`.
    pub resources: Resources,
    /// What of it the file itself says: for a project, its manifest fills in the rest.
    pub own_resources: OwnResources,
    /// `network:` and `ports:`.
    pub network: Network,
    /// `restart:`.
    pub restart: RestartConfig,
    /// `stop_timeout:`, 10 s by default.
    pub stop_timeout: Duration,
    /// `boot_timeout:`; `None` means the default, which depends on the host.
    pub boot_timeout: Option<Duration>,
}

/// What a worker is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An image, as the user wrote it (already checked to be a reference).
    Oci {
        /// `image:`.
        image: String,
    },
    /// A project folder.
    Local {
        /// `worker_path:`, absolute.
        path: PathBuf,
        /// `exclude:`, what is left out of a copy besides what the project itself says; git's patterns.
        exclude: Vec<String>,
    },
    /// Neither: kept and listed, cannot be started.
    None,
}

impl WorkerConfig {
    /// The TYPE column.
    pub fn worker_type(&self) -> WorkerType {
        match self.source {
            Source::Oci { .. } => WorkerType::Oci,
            Source::Local { .. } => WorkerType::Local,
            Source::None => WorkerType::Config,
        }
    }
}

/// When a worker that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the end, and also when a new daemon finds it stopped by the user.
    Always,
    /// Whatever the end, until the user stops it.
    UnlessStopped,
    /// Only after a failure.
    OnFailure,
    /// Never by itself.
    Never,
}

/// `restart:` in full; `restart: on-failure` is short for its `policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartConfig {
    /// `policy:`, `unless-stopped` by default.
    pub policy: RestartPolicy,
    /// `max_restarts:`; `None` retries for ever at the cap.
    pub max_restarts: Option<u32>,
    /// `delay:`, 250 ms: the second restart's delay (the first is at once), doubled each time.
    pub delay: Duration,
    /// `max_delay:`, 30 s: the cap.
    pub max_delay: Duration,
    /// `reset_after:`, 60 s of running well set the count back to zero.
    pub reset_after: Duration,
}

impl Default for RestartConfig {
    fn default() -> RestartConfig {
        RestartConfig {
            policy: RestartPolicy::UnlessStopped,
            max_restarts: None,
            delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        }
    }
}

//! What a machine is made of: all that the shim must know, decided by the worker's actor.

use std::path::PathBuf;

use iii_protocol::api::Resources;
use iii_protocol::engine::Engine;
use iii_protocol::guest::ProcessPlan;
use iii_protocol::network::Network;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::project::ProjectSpec;

/// One machine to launch. Sent to the shim over its birth link, never on a command line: it holds the
/// worker's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The worker's name, also the guest's host name.
    pub worker: String,
    /// The worker's start counter.
    pub generation: u64,
    /// Memory, vCPUs (already bounded by the host's), scratch disk size.
    pub resources: Resources,
    /// The image's read-only root disk.
    pub root_disk: PathBuf,
    /// The workload.
    pub process: ProcessPlan,
    /// What has to be on the disk before the workload starts; `None` for an image worker.
    pub project: Option<ProjectSpec>,
    /// What the guest may reach, and what of it can be reached.
    pub network: Network,
    /// Where the guest's way to its engine leads.
    pub engine: Engine,
    /// Signal number that asks the workload to end.
    pub stop_signal: i32,
    /// Milliseconds from that signal to SIGKILL.
    pub stop_timeout_ms: u64,
    /// Milliseconds the boot may take until the workload runs.
    pub boot_timeout_ms: u64,
    /// Milliseconds the shim waits for a daemon before it stops an orphaned machine.
    pub orphan_grace_ms: u64,
}

impl MachineSpec {
    /// Identifies what runs: two specs with equal hashes need no restart to get from one to the other.
    /// Start counter, timeouts and the order of variables (whose names are unique) do not count.
    pub fn hash(&self) -> String {
        let mut process = self.process.clone();
        process.env.sort();
        let machine = (&self.worker, &self.resources, &self.root_disk, &self.network, &self.engine);
        let what = (machine, &process, self.stop_signal, &self.project);
        let bytes = serde_json::to_vec(&what).expect("machine specs always serialise");
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

//! The seam between a worker's actor and its machine.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use iii_protocol::api::ErrorBody;
use iii_protocol::exit::ExitRecord;
use iii_protocol::shim::{ShimStatus, StopMachine};
use tokio::sync::mpsc;

use super::spec::MachineSpec;
use crate::logs::LogRing;

/// How many machine events and commands may wait.
pub const MACHINE_QUEUE: usize = 64;

/// Brings machines up and finds them again. The real one starts a shim process; tests pass a fake.
pub trait Launcher: Send + Sync + 'static {
    /// Looks whether this host can run machines at all: what keeps it from that is to be known before an image is
    /// pulled for one.
    fn check(&self) -> BoxFuture<'static, Result<(), ErrorBody>>;

    /// Checks the host, makes the scratch disk and starts a shim. Ends once the shim has the spec; the
    /// boot goes on and is told by the machine's events. `ring` gets the machine's log records.
    fn launch(&self, spec: MachineSpec, ring: Arc<LogRing>)
    -> BoxFuture<'static, Result<Machine, ErrorBody>>;

    /// Looks for what an earlier daemon left of this worker. Fills `ring` with the tail on disk.
    fn adopt(&self, worker: &str, ring: Arc<LogRing>) -> BoxFuture<'static, Result<Adoption, ErrorBody>>;

    /// Names of workers that have a running shim in this project, whether configured or not.
    fn running(&self) -> Vec<String>;
}

/// What was found of a worker.
#[derive(Debug)]
pub enum Adoption {
    /// Nothing: it is not running and has left no word.
    Nothing,
    /// It ended, maybe while no daemon was there. Told again until the next launch: what is known already
    /// is recognised by its generation.
    Ended(ExitRecord),
    /// It runs, and is ours now.
    Running(Machine),
}

/// What a machine may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineCommand {
    /// To end; a second request may shorten the grace.
    Stop(StopMachine),
    /// To bring its project up to date, and to restart the workload in place if that changes anything.
    Resync,
}

/// A machine in the hands of its worker's actor. Dropping it leaves the machine running.
#[derive(Debug)]
pub struct Machine {
    /// What the machine is asked.
    pub commands: mpsc::Sender<MachineCommand>,
    /// The current status first, then every change. The last one's phase is always `Ended`: when the
    /// shim is lost, the link makes that last word up itself (`shim-died`).
    pub events: mpsc::Receiver<ShimStatus>,
}

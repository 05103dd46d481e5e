//! Starts the worker's own process: from the plan to a successful `execve`.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use iii_protocol::guest::ProcessPlan;

use crate::error::StartError;
use crate::launch::{Launch, Launched, Stream, environment, launch};
use crate::link::Event;
use crate::platform::Platform;
use crate::reaper::Reaper;

/// The executed workload.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Process id, and process group and session too.
    pub(crate) pid: u32,
    /// When `execve` had succeeded.
    pub(crate) since: Instant,
    /// Reading end of its standard output.
    pub(crate) stdout: OwnedFd,
    /// Reading end of its standard error.
    pub(crate) stderr: OwnedFd,
}

/// Starts the workload and returns once it runs. Its end comes as [`Event::WorkloadEnded`].
pub(crate) fn start(
    process: &ProcessPlan,
    platform: &dyn Platform,
    reaper: &Reaper,
    events: SyncSender<Event>,
) -> Result<Workload, StartError> {
    if process.argv.is_empty() {
        return Err(StartError::new("exec", "the image names no command")
            .hint("give the image an Entrypoint or Cmd, or the worker a command"));
    }
    let identity = platform.identity(&process.user)?;
    let plan = Launch {
        argv: process.argv.clone(),
        env: environment(process.env.iter().cloned(), identity.as_ref()),
        cwd: if process.cwd.is_empty() { "/".to_owned() } else { process.cwd.clone() },
        identity,
        settings: platform.launch_settings(),
        terminal: false,
    };
    make_folder(&plan.cwd)?;
    let streams = [Stream::Null, Stream::Pipe, Stream::Pipe];
    let Launched { pid, pipes } = launch(plan, streams, reaper, move |ended| {
        // Fails only when the main thread is gone, and the process with it.
        let _ = events.send(Event::WorkloadEnded(ended));
    })?;
    let since = Instant::now();
    let [_, Some(stdout), Some(stderr)] = pipes else {
        return Err(StartError::new("exec", "the output pipes are missing"));
    };
    Ok(Workload { pid, since, stdout, stderr })
}

/// Makes a missing working directory, owned by root as Docker does.
fn make_folder(path: &str) -> Result<(), StartError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| {
        StartError::new("working directory", format!("{path}: {}", error.kind()))
            .hint("the image's WorkingDir must be a folder, or a path where one can be made")
    })
}

//! Starts the worker's own process: from the plan to a successful `execve`.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use iii_protocol::guest::ProcessPlan;

use crate::error::StartError;
use crate::link::Event;
use crate::platform::Platform;
use crate::reaper::Reaper;
use crate::stage::{DEFAULT_PATH, STAGE_NAME, StagePlan};

/// The agent's own program: a magic link that works whatever the root has become.
const SELF: &str = "/proc/self/exe";
/// Home of a user who has no entry, as Docker sets it.
const DEFAULT_HOME: &str = "/";

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
    let plan = stage_plan(process, platform)?;
    make_folder(&plan.cwd)?;
    let plan = serde_json::to_vec(&plan).map_err(|error| StartError::new("exec", error))?;
    let internal = |error: io::Error| StartError::new("exec", format!("cannot start a process: {error}"));

    let (mut ours, theirs) = UnixStream::pair().map_err(internal)?;
    let mut command = Command::new(SELF);
    command.arg0(STAGE_NAME).env_clear();
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = reaper
        .spawn(&mut command, move |ended| {
            // Fails only when the main thread is gone, and the process with it.
            let _ = events.send(Event::WorkloadEnded(ended));
        })
        .map_err(internal)?;
    // The command holds the stage's end of the socket; the end of the stream must be the stage's alone.
    drop(command);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
        return Err(StartError::new("exec", "the output pipes are missing"));
    };

    let mut report = Vec::new();
    ours.write_all(&plan)
        .and_then(|()| ours.shutdown(Shutdown::Write))
        .and_then(|()| ours.read_to_end(&mut report))
        .map_err(internal)?;
    if !report.is_empty() {
        return Err(serde_json::from_slice(&report).unwrap_or_else(|error| StartError::new("exec", error)));
    }
    Ok(Workload { pid: child.id(), since: Instant::now(), stdout: stdout.into(), stderr: stderr.into() })
}

fn stage_plan(process: &ProcessPlan, platform: &dyn Platform) -> Result<StagePlan, StartError> {
    if process.argv.is_empty() {
        return Err(StartError::new("exec", "the image names no command")
            .hint("give the image an Entrypoint or Cmd, or the worker a command"));
    }
    let identity = platform.identity(&process.user)?;
    let home = identity.as_ref().map(|identity| identity.home.as_deref().unwrap_or(DEFAULT_HOME));
    let settings = platform.stage();
    Ok(StagePlan {
        argv: process.argv.clone(),
        env: environment(&process.env, home),
        cwd: if process.cwd.is_empty() { "/".to_owned() } else { process.cwd.clone() },
        identity,
        cgroup_procs: settings.cgroup_procs,
        open_files: settings.open_files,
        die_with_agent: settings.die_with_agent,
    })
}

/// The environment without doubles (the last value stays, in the place of the first), with `PATH` and
/// `HOME` as Docker adds them when they are missing.
fn environment(env: &[(String, String)], home: Option<&str>) -> Vec<(String, String)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut result: Vec<(String, String)> = Vec::with_capacity(env.len() + 2);
    for (name, value) in env {
        if let Some(&place) = places.get(name.as_str()) {
            result[place].1.clone_from(value);
        } else {
            places.insert(name, result.len());
            result.push((name.clone(), value.clone()));
        }
    }
    for (name, value) in [("PATH", Some(DEFAULT_PATH)), ("HOME", home)] {
        if let Some(value) = value.filter(|_| !places.contains_key(name)) {
            result.push((name.to_owned(), value.to_owned()));
        }
    }
    result
}

/// Makes a missing working directory, owned by root as Docker does.
fn make_folder(path: &str) -> Result<(), StartError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| {
        StartError::new("working directory", format!("{path}: {}", error.kind()))
            .hint("the image's WorkingDir must be a folder, or a path where one can be made")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn later_variables_win_and_stay_in_place() {
        let got = environment(&env(&[("A", "1"), ("PATH", "/bin"), ("HOME", "/h"), ("A", "2")]), Some("/x"));
        assert_eq!(got, env(&[("A", "2"), ("PATH", "/bin"), ("HOME", "/h")]));
    }

    #[test]
    fn missing_path_and_home_are_added() {
        assert_eq!(environment(&[], Some("/root")), env(&[("PATH", DEFAULT_PATH), ("HOME", "/root")]));
        assert_eq!(environment(&[], None), env(&[("PATH", DEFAULT_PATH)]));
    }
}

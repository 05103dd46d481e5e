//! From a command to a running process: one fork, and the steps that only the new process can take
//! ([`crate::sys::Fork`]). Workload and sessions start by the same way.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::error::{Fault, StartError};
use crate::explain;
use crate::platform::LaunchSettings;
use crate::reaper::{Ended, Reaper};
use crate::sys::{self, Fork, Step};
use crate::user::Identity;

/// Searched when the environment has no `PATH`: the default of Docker.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Home of a user who has no entry, as Docker sets it.
const DEFAULT_HOME: &str = "/";

/// A process to be.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment, no name twice.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory, absolute and existing.
    pub(crate) cwd: String,
    /// User and groups to take on; `None` keeps those of the agent.
    pub(crate) identity: Option<Identity>,
    /// The platform's part.
    pub(crate) settings: LaunchSettings,
    /// Standard input is a terminal, to be the controlling one.
    pub(crate) terminal: bool,
}

/// The three standard streams.
pub(crate) type Streams = [Stdio; 3];

/// Starts the process and returns when it is executed. Its end is told to `on_end`.
pub(crate) fn launch(
    launch: Launch,
    streams: Streams,
    reaper: &Reaper,
    on_end: impl FnOnce(Ended) + Send + 'static,
) -> Result<Child, StartError> {
    let search =
        launch.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_str());
    let name = launch.argv.first().map(String::as_str).unwrap_or_default();
    let programs = explain::look_up(name, search, Path::new(&launch.cwd))?;
    let uid = launch.identity.as_ref().map_or_else(|| geteuid().as_raw(), |identity| identity.uid);
    let fork = Fork {
        cgroup: launch.settings.cgroup_procs.as_deref().map(open_procs).transpose()?,
        limits: launch.settings.limits,
        cwd: string(launch.cwd.as_bytes())?,
        terminal: launch.terminal,
        identity: launch.identity.map(|it| (it.uid, it.gid, it.groups)),
        die_with_parent: launch.settings.die_with_agent,
        candidates: strings(programs.iter().map(|it| it.as_os_str().as_encoded_bytes().to_vec()))?,
        argv: strings(launch.argv.iter().map(|it| it.as_bytes().to_vec()))?,
        env: strings(launch.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()))?,
    };
    // The name is never executed: the fork becomes its own program before.
    let mut command = Command::new(name);
    let [stdin, stdout, stderr] = streams;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    sys::become_on_fork(&mut command, fork);
    reaper.spawn(&mut command, on_end).map_err(|error| match sys::failed_step(&error) {
        Some((step, errno, candidate)) => {
            let shown = programs.get(candidate).map_or(Path::new(name), PathBuf::as_path);
            failed(step, errno, shown, &launch.cwd, uid)
        }
        None => StartError::new("process", format!("cannot start one: {error}")),
    })
}

fn open_procs(path: &Path) -> Result<OwnedFd, StartError> {
    let file = OpenOptions::new().write(true).open(path);
    file.map(OwnedFd::from).map_err(|error| StartError::new("cgroup", format!("{}: {error}", path.display())))
}

fn failed(step: Step, errno: Errno, program: &Path, cwd: &str, uid: u32) -> StartError {
    let error = |what: &str, subject: &str| {
        StartError::new(what, format!("{subject}: {}", errno.desc().to_lowercase()))
    };
    match step {
        Step::Cgroup => error("cgroup", "entering it"),
        Step::Session => error("session", "setsid"),
        Step::Limits => error("limits", "setting them"),
        Step::Cwd => error("working directory", cwd)
            .hint("it must exist: name another, or make it first")
            .fault(Fault::CannotExecute),
        Step::Terminal => error("terminal", "taking it over"),
        Step::User => error("user", &uid.to_string()),
        Step::Bond => error("process", "prctl"),
        Step::Exec => explain::explain(program, Path::new(cwd), errno, uid),
    }
}

fn strings(items: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, StartError> {
    items.into_iter().map(|item| string(&item)).collect()
}

fn string(item: &[u8]) -> Result<CString, StartError> {
    // The text is not shown: it may be a secret of the environment.
    CString::new(item).map_err(|_| StartError::new("exec", "an argument or a variable contains a zero byte"))
}

/// The environment without doubles (the last value stays, in the place of the first), with `PATH` and
/// `HOME` as Docker adds them when they are missing.
pub(crate) fn environment(
    env: impl IntoIterator<Item = (String, String)>,
    identity: Option<&Identity>,
) -> Vec<(String, String)> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut result: Vec<(String, String)> = Vec::new();
    for (name, value) in env {
        if let Some(&place) = places.get(&name) {
            result[place].1 = value;
        } else {
            places.insert(name.clone(), result.len());
            result.push((name, value));
        }
    }
    let home = identity.map(|identity| identity.home.as_deref().unwrap_or(DEFAULT_HOME));
    for (name, value) in [("PATH", Some(DEFAULT_PATH)), ("HOME", home)] {
        if let Some(value) = value.filter(|_| !places.contains_key(name)) {
            result.push((name.to_owned(), value.to_owned()));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn lives_in(home: Option<&str>) -> Identity {
        Identity { uid: 1, gid: 1, groups: Vec::new(), home: home.map(str::to_owned) }
    }

    #[test]
    fn later_variables_win_and_stay_in_place() {
        let given = env(&[("A", "1"), ("PATH", "/bin"), ("HOME", "/h"), ("A", "2")]);
        let got = environment(given, Some(&lives_in(Some("/x"))));
        assert_eq!(got, env(&[("A", "2"), ("PATH", "/bin"), ("HOME", "/h")]));
    }

    #[test]
    fn missing_path_and_home_are_added() {
        let with = |home| environment([], Some(&lives_in(home)));
        assert_eq!(with(Some("/root")), env(&[("PATH", DEFAULT_PATH), ("HOME", "/root")]));
        assert_eq!(with(None), env(&[("PATH", DEFAULT_PATH), ("HOME", "/")]));
        assert_eq!(environment([], None), env(&[("PATH", DEFAULT_PATH)]));
    }
}

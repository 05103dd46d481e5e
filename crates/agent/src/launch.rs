//! From a command to a running process: one fork, and the steps that only the new process can take
//! ([`crate::fork::Fork`]). Workload and sessions start by the same way.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{geteuid, pipe2};

use crate::error::{Fault, StartError};
use crate::explain;
use crate::fork::{Failed, Fork, Step};
use crate::platform::LaunchSettings;
use crate::reaper::{Ended, Reaper};
use crate::user::Identity;

/// Searched when the environment has no `PATH`: the default of Docker.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Home of a user who has no entry, as Docker sets it.
const DEFAULT_HOME: &str = "/";
const NULL: &str = "/dev/null";

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

/// One of the three standard streams of a process to be.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Empty, or thrown away.
    Null,
    /// The agent has the other end.
    Pipe,
    /// This.
    File(OwnedFd),
}

/// Standard input, output and error.
pub(crate) type Streams = [Stream; 3];

/// A process that runs its program.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Process id, and process group and session too.
    pub(crate) pid: u32,
    /// The agent's ends of the streams that are pipes.
    pub(crate) pipes: [Option<OwnedFd>; 3],
}

/// Starts the process and returns when it is executed. Its end is told to `on_end`.
pub(crate) fn launch(
    launch: Launch,
    streams: Streams,
    reaper: &Reaper,
    on_end: impl FnOnce(Ended) + Send + 'static,
) -> Result<Launched, StartError> {
    let search =
        launch.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_str());
    let name = launch.argv.first().map(String::as_str).unwrap_or_default();
    let programs = explain::look_up(name, search, Path::new(&launch.cwd))?;
    let uid = launch.identity.as_ref().map_or_else(|| geteuid().as_raw(), |identity| identity.uid);
    let (streams, pipes) = open_streams(streams).map_err(|error| StartError::new("streams", error))?;
    let fork = Fork {
        streams,
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
    let pid = reaper.spawn(&fork, on_end).map_err(|it| failed(it, &programs, &launch.cwd, uid))?;
    Ok(Launched { pid, pipes })
}

/// The process's ends, and the agent's.
fn open_streams(streams: Streams) -> io::Result<([OwnedFd; 3], [Option<OwnedFd>; 3])> {
    let open = |stream, is_input: bool| -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        match stream {
            Stream::Null => Ok((OpenOptions::new().read(true).write(true).open(NULL)?.into(), None)),
            Stream::Pipe => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                Ok(if is_input { (read, Some(write)) } else { (write, Some(read)) })
            }
            Stream::File(file) => Ok((file, None)),
        }
    };
    let [stdin, stdout, stderr] = streams;
    let (stdin, stdout, stderr) = (open(stdin, true)?, open(stdout, false)?, open(stderr, false)?);
    Ok(([stdin.0, stdout.0, stderr.0], [stdin.1, stdout.1, stderr.1]))
}

fn open_procs(path: &Path) -> Result<OwnedFd, StartError> {
    let file = OpenOptions::new().write(true).open(path);
    file.map(OwnedFd::from).map_err(|error| StartError::new("cgroup", format!("{}: {error}", path.display())))
}

fn failed(Failed { step, errno }: Failed, programs: &[PathBuf], cwd: &str, uid: u32) -> StartError {
    let error = |what: &str, subject: &str| {
        StartError::new(what, format!("{subject}: {}", errno.desc().to_lowercase()))
    };
    match step {
        Step::Process => error("process", "cannot start one"),
        Step::Cgroup => error("cgroup", "entering it"),
        Step::Session => error("session", "setsid"),
        Step::Limits => error("limits", "setting them"),
        Step::Cwd => error("working directory", cwd)
            .hint("it must exist: name another, or make it first")
            .fault(Fault::CannotExecute),
        Step::Streams => error("streams", "taking them over"),
        Step::Terminal => error("terminal", "taking it over"),
        Step::User => error("user", &uid.to_string()),
        Step::Bond => error("process", "prctl"),
        Step::Exec(candidate) => {
            let program = programs.get(candidate).map_or(Path::new(""), PathBuf::as_path);
            explain::explain(program, Path::new(cwd), errno, uid)
        }
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

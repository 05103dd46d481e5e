//! The agent as a plain process, for the process launcher of test builds: no mounts, no host name, no power.
//!
//! It is a subreaper, so the workload's orphans become its children and are found and ended like in a guest.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iii_protocol::guest::{AGENT_SOCKET_ENV, BootPlan, RootPlan};
use iii_protocol::session::SESSION_SOCKET_ENV;
use nix::errno::Errno;
use nix::libc::RLIMIT_NOFILE;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::engine::EngineDoor;
use crate::error::StartError;
use crate::fork::Limit;
use crate::platform::{Confinement, LaunchSettings, Platform, SessionHost, WORKSPACE};
use crate::tagged::{self, Census, Tagged};
use crate::user::{self, Identity};

/// The workload's number among those of sessions, which begin with 1.
const WORKLOAD_MARK: u64 = 0;

/// The machine this process happens to run on.
#[derive(Debug)]
pub(crate) struct Surroundings {
    socket: PathBuf,
    sessions: Option<PathBuf>,
    /// As it was before the agent raised its own.
    open_files: Option<Limit>,
}

impl Surroundings {
    /// From the environment; `None` when this is not a process launcher's agent.
    pub(crate) fn from_env() -> Option<Surroundings> {
        let socket = std::env::var_os(AGENT_SOCKET_ENV)?.into();
        let sessions = std::env::var_os(SESSION_SOCKET_ENV).map(PathBuf::from);
        Some(Surroundings { socket, sessions, open_files: None })
    }

    /// What every process of the machine takes on.
    fn settings(&self) -> LaunchSettings {
        LaunchSettings {
            limits: self.open_files.into_iter().collect(),
            die_with_agent: true,
            ..LaunchSettings::default()
        }
    }

    /// What tells the workload's processes from those of sessions.
    fn workload(&self) -> Tagged {
        Tagged::new(WORKLOAD_MARK, self.settings(), Arc::default())
    }
}

impl Platform for Surroundings {
    fn connect(&self) -> io::Result<File> {
        Ok(File::from(OwnedFd::from(UnixStream::connect(&self.socket)?)))
    }

    fn prepare(&mut self) -> Result<(), StartError> {
        let failed = |error: Errno| StartError::new("process", error.desc());
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
        // Each session takes some.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
        self.open_files = Some(Limit { resource: RLIMIT_NOFILE, soft, hard });
        prctl::set_child_subreaper(true).map_err(failed)
    }

    fn enter(&mut self, plan: &BootPlan) -> Result<(), StartError> {
        match plan.root {
            RootPlan::Surroundings => Ok(()),
            RootPlan::Overlay { .. } => {
                Err(StartError::new("boot plan", "a plain process cannot mount the root file system"))
            }
        }
    }

    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError> {
        if user.is_empty() || !geteuid().is_root() {
            return Ok(None);
        }
        resolve(user).map(Some)
    }

    fn launch_settings(&self) -> LaunchSettings {
        self.workload().launch_settings()
    }

    fn listen(&self) -> io::Result<Option<OwnedFd>> {
        let Some(path) = &self.sessions else { return Ok(None) };
        // The last generation's; its folder belongs to this machine alone.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Some(UnixListener::bind(path)?.into()))
    }

    /// The host's loopback is the workload's own here.
    fn engine_door(&self, _: u16) -> io::Result<Option<EngineDoor>> {
        Ok(None)
    }

    fn session_host(&self) -> Arc<dyn SessionHost> {
        Arc::new(Host { settings: self.settings(), census: Arc::default() })
    }

    fn kill_everything(&self) {
        tagged::kill_descendants();
    }

    fn kill_workload(&self, _leader: u32) -> bool {
        self.workload().kill()
    }

    fn renew_workload(&mut self) {}

    /// The count of the whole host says nothing about one process of it.
    fn oom_kills(&self) -> u64 {
        0
    }

    fn flush(&self) {}

    fn power_off(&self) {}
}

/// The same for the sessions' threads.
struct Host {
    settings: LaunchSettings,
    census: Arc<Census>,
}

impl SessionHost for Host {
    /// The socket's folder lets nobody else in.
    fn admits(&self, _: &OwnedFd) -> bool {
        true
    }

    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError> {
        if user.is_empty() {
            return Ok(None);
        }
        let identity = resolve(user)?;
        match geteuid() {
            own if own.is_root() => Ok(Some(identity)),
            own if own.as_raw() == identity.uid => Ok(None),
            own => Err(StartError::new("user", format!("`{user}`: only root can change from user {own}"))),
        }
    }

    fn default_cwd(&self) -> &'static str {
        if Path::new(WORKSPACE).is_dir() { WORKSPACE } else { "/" }
    }

    fn confine(&self, session: u64) -> Result<Box<dyn Confinement>, StartError> {
        Ok(Box::new(Tagged::new(session, self.settings.clone(), Arc::clone(&self.census))))
    }
}

fn resolve(user: &str) -> Result<Identity, StartError> {
    let read = |path| fs::read(path).unwrap_or_default();
    user::resolve(user, &read("/etc/passwd"), &read("/etc/group"))
        .map_err(|error| StartError::new("user", error))
}

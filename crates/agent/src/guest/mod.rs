//! The microVM's first process.

mod cgroup;
mod files;
mod mounts;
mod netlink;
mod network;
mod vsock;

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::engine::ENGINE_PORT;
use iii_protocol::guest::{BootPlan, CONTROL_PORT, RootPlan};
use nix::fcntl::{OFlag, open};
use nix::libc::{RLIMIT_NOFILE, SIGKILL};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{sethostname, sync};

use crate::console;
use crate::engine::EngineDoor;
use crate::error::StartError;
use crate::fork::Limit;
use crate::platform::{Confinement, LaunchSettings, Platform, SessionHost, WORKSPACE};
use crate::sys;
use crate::tagged::{Census, Tagged};
use crate::user::{self, Identity};

/// Open files a workload may have, soft and hard: what Docker gives.
const OPEN_FILES: u64 = 1024 * 1024;

/// A guest, from an empty root folder to power off. Only ever made by process 1.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    /// The scratch disk's mount, which is out of reach of any path after the switch of the root.
    scratch: Option<OwnedFd>,
    workload: cgroup::Workload,
}

impl Platform for Guest {
    fn connect(&self) -> io::Result<File> {
        vsock::dial_host(CONTROL_PORT).map(File::from)
    }

    fn prepare(&mut self) -> Result<(), StartError> {
        mounts::private_root(&mut mounts::Kernel)?;
        // Each session takes some; the kernel's own limit is too small for all.
        if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES) {
            console::say(format_args!("the limit of open files stays: {}", error.desc()));
        }
        // A failure here costs the workload its own localhost, not the machine.
        let up = netlink::Netlink::open().and_then(|it| it.bring_up(netlink::LOOPBACK_INDEX, None));
        if let Err(error) = up {
            console::say(format_args!("the loopback interface stays down: {error}"));
        }
        Ok(())
    }

    fn enter(&mut self, plan: &BootPlan) -> Result<(), StartError> {
        let RootPlan::Overlay { lower, upper } = &plan.root else {
            return Err(StartError::new("boot plan", "a guest needs a root disk"));
        };
        if let Some(now_ns) = plan.now_ns {
            set_clock(Duration::from_nanos(now_ns));
        }
        sethostname(&plan.hostname)
            .map_err(|error| StartError::new("host name", format!("{}: {}", plan.hostname, error.desc())))?;
        mounts::join_disks(&mut mounts::Kernel, lower, upper)?;
        let scratch = open(mounts::SCRATCH, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        self.scratch = scratch.ok();
        mounts::enter_root(&mut mounts::Kernel)?;

        files::apply_settings();
        files::write_names(Path::new("/"), &plan.hostname, plan.network.as_ref());
        if let Some(network) = &plan.network {
            network::set_up(network)?;
        }
        self.workload = cgroup::Workload::make();
        let owner = resolve(&plan.workload.user)?;
        files::make_workspace(Path::new("/"), &owner)
            .map_err(|error| StartError::new("workspace", format!("/workspace: {error}")))
    }

    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError> {
        resolve(user).map(Some)
    }

    fn launch_settings(&self) -> LaunchSettings {
        LaunchSettings {
            cgroup_procs: self.workload.procs(),
            limits: vec![Limit { resource: RLIMIT_NOFILE, soft: OPEN_FILES, hard: OPEN_FILES }],
            die_with_agent: false,
        }
    }

    fn listen(&self) -> io::Result<Option<OwnedFd>> {
        vsock::listen_for_sessions().map(Some)
    }

    fn engine_door(&self, port: u16) -> io::Result<Option<EngineDoor>> {
        let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port))?];
        // Not there in a kernel without IPv6.
        listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)));
        Ok(Some(EngineDoor { listeners, dial: Arc::new(|| vsock::dial_host(ENGINE_PORT)) }))
    }

    fn session_host(&self) -> Arc<dyn SessionHost> {
        let settings = LaunchSettings { cgroup_procs: None, ..self.launch_settings() };
        Arc::new(Host { settings, census: Arc::default() })
    }

    fn kill_everything(&self) {
        self.workload.kill();
        // From any other process than the guest's first this would end the host's.
        if std::process::id() == 1 {
            // Spares the caller; also reaches what has left the workload's cgroup.
            let _ = sys::kill(-1, SIGKILL);
        }
    }

    fn kill_workload(&self, leader: u32) -> bool {
        match self.workload.is_empty() {
            Some(true) => true,
            Some(false) => {
                self.workload.kill();
                false
            }
            // A kernel without cgroup v2: its group is what can be told apart from sessions.
            None => sys::kill(-leader.cast_signed(), SIGKILL).is_err(),
        }
    }

    fn renew_workload(&mut self) {
        self.workload.renew();
    }

    fn oom_kills(&self) -> u64 {
        self.workload.oom_kills()
    }

    fn flush(&self) {
        sync();
        let Some(scratch) = &self.scratch else { return };
        // Read-only marks the file system clean, so that the next boot has no journal to replay. It is
        // refused while a process that could not be killed still writes; the data is safe by then.
        let path = format!("/proc/self/fd/{}", scratch.as_raw_fd());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>);
    }

    fn power_off(&self) {
        // The VMM has no power switch: it ends when the guest resets (its kernel command line says
        // `reboot=k`, and it watches the keyboard controller for that).
        let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
        console::say(format_args!("cannot power off: {}", error.desc()));
    }
}

/// The guest as the sessions' threads see it.
struct Host {
    settings: LaunchSettings,
    census: Arc<Census>,
}

impl SessionHost for Host {
    fn admits(&self, connection: &OwnedFd) -> bool {
        vsock::is_from_host(connection)
    }

    fn identity(&self, user: &str) -> Result<Option<Identity>, StartError> {
        resolve(user).map(Some)
    }

    fn default_cwd(&self) -> &'static str {
        WORKSPACE
    }

    fn confine(&self, session: u64) -> Result<Box<dyn Confinement>, StartError> {
        Ok(match cgroup::Session::make(session, self.settings.clone()) {
            Ok(leaf) => Box::new(leaf),
            // A kernel without cgroup v2.
            Err(_) => Box::new(Tagged::new(session, self.settings.clone(), Arc::clone(&self.census))),
        })
    }
}

/// The guest's kernel may begin seconds behind the host (it did under emulation), and what the workload writes is
/// dated by this clock.
fn set_clock(since_epoch: Duration) {
    if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, since_epoch.into()) {
        console::say(format_args!("the clock stays as it is: {}", error.desc()));
    }
}

/// Against the image's own files; one that is missing is as good as empty.
fn resolve(user: &str) -> Result<Identity, StartError> {
    let read = |path| fs::read(path).unwrap_or_default();
    user::resolve(user, &read("/etc/passwd"), &read("/etc/group")).map_err(|error| {
        StartError::new("user", error).hint("the image's User must exist in the image, or be a number")
    })
}

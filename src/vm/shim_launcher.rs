//! The real launcher: one shim process per machine.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use iii_protocol::api::{ErrorBody, ErrorCode};
use iii_protocol::frame::Frame;
use iii_protocol::shim::{Attach, KIND_ATTACH, KIND_LAUNCH, KIND_STATUS, ShimStatus};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::launcher::{Adoption, Launcher, Machine};
use super::link::{Link, LinkTarget, follow, read_last_word, refill};
use super::scratch::{self, Disk};
use super::shim::{SHIM_LOCK, SHIM_LOG, SHIM_SOCKET, SOCKETS, ShimSpec, remove_sockets};
use super::spec::MachineSpec;
use super::wire::write_frame;
use crate::fsutil::{LockError, LockFile, PathError, create_private_dir, sweep_temporary};
use crate::home::{Home, MAX_SOCKET_PATH_BYTES, ProjectId};
use crate::host;
use crate::logs::LogRing;

/// How long the end of the machine before may take, until the new one is refused.
const LOCK_LIMIT: Duration = Duration::from_secs(15);
/// How long a shim may take to answer an attach.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
/// Attempts to reach a shim that holds its lock but does not listen yet: it was born a moment ago.
const ATTACH_ATTEMPTS: u32 = 40;
/// Pause between those attempts.
const ATTACH_PAUSE: Duration = Duration::from_millis(50);
/// Variables of the daemon's environment that a shim gets; the rest may hold the user's secrets.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];
/// glibc's allocator in a shim: one heap for its few threads, and the large buffers of connections outside of it, where
/// only the pages that are used take memory, and go back with the connection.
const SHIM_ALLOCATOR: &str = "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=65536";
/// The shim's own log is kept below this, bytes.
const SHIM_LOG_BYTES: u64 = 256 * 1024;

/// Launches shims for one project.
#[derive(Debug, Clone)]
pub struct ShimLauncher {
    home: Home,
    project: ProjectId,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Krun,
    #[cfg(feature = "process-launcher")]
    Process,
}

impl Kind {
    fn choose() -> Kind {
        #[cfg(feature = "process-launcher")]
        if std::env::var_os("III_TEST_LAUNCHER").is_some_and(|value| value == "process") {
            return Kind::Process;
        }
        Kind::Krun
    }
}

impl ShimLauncher {
    /// For the machines of `project`.
    pub fn new(home: &Home, project: &ProjectId) -> ShimLauncher {
        ShimLauncher { home: home.clone(), project: project.clone(), kind: Kind::choose() }
    }

    fn run_dir(&self, worker: &str) -> PathBuf {
        self.home.machine_run(&self.project, worker)
    }

    /// What this host lacks for any machine; gives the guest kernel's library. Blocks.
    fn check_host(&self) -> Result<Option<PathBuf>, ErrorBody> {
        let libkrunfw = match self.kind {
            Kind::Krun => {
                host::check_kvm()?;
                Some(host::find_libkrunfw(&self.home)?)
            }
            #[cfg(feature = "process-launcher")]
            Kind::Process => None,
        };
        host::check_free_space(self.home.root())?;
        Ok(libkrunfw)
    }

    /// What can be known to fail is found out before anything is started; then waits for the shim before
    /// this one to be gone. Blocks.
    fn prepare(&self, machine: MachineSpec, first_seq: u64) -> Result<(ShimSpec, File), ErrorBody> {
        // Again: a pull lies between this and the look before it, which took room.
        let libkrunfw = self.check_host()?;
        let run_dir = self.run_dir(&machine.worker);
        check_socket_path(&run_dir)?;
        let log_dir = self.home.logs(&machine.worker);
        for dir in [&run_dir, &log_dir] {
            create_private_dir(dir).map_err(path_error)?;
        }
        // The machine of that shim then is gone too, or still has the scratch disk locked, which the new
        // VMM waits for.
        let lock = LockFile::acquire(&run_dir.join(SHIM_LOCK)).map_err(|e| match e {
            LockError::Path(e) => path_error(e),
            held @ LockError::Held { .. } => internal(held.to_string()),
        })?;
        let scratch_disk = scratch::path(&self.home, &machine.worker);
        let base_changed = false;
        let spec = ShimSpec { machine, run_dir, log_dir, scratch_disk, base_changed, first_seq, libkrunfw };
        Ok((spec, lock.into_file()))
    }

    async fn launch(self, machine: MachineSpec, ring: Arc<LogRing>) -> Result<Machine, ErrorBody> {
        let worker = machine.worker.clone();
        let (launcher, first_seq) = (self.clone(), *ring.subscribe().borrow());
        let (home, disk_bytes) = (self.home.clone(), machine.resources.disk_bytes);
        let base = machine.project.as_ref().map(|project| project.base_image.clone());
        let prepared = tokio::task::spawn_blocking(move || launcher.prepare(machine, first_seq));
        let (mut spec, lock) = match timeout(LOCK_LIMIT, prepared).await {
            Ok(joined) => joined.map_err(|e| internal(e.to_string()))??,
            Err(_) => return Err(self.still_held(&worker)),
        };
        // Not part of the wait above: a large disk that has to grow takes its time.
        let made =
            tokio::task::spawn_blocking(move || scratch::ensure(&home, &worker, disk_bytes, base.as_deref()));
        let disk = made.await.map_err(|e| internal(e.to_string()))?.map_err(|e| ErrorBody::from(&e))?;
        spec.base_changed = disk == Disk::Replaced;
        let (ours, theirs) = StdUnixStream::pair().map_err(|e| internal(format!("no socket pair: {e}")))?;
        let shim_log = open_shim_log(&spec.run_dir).map_err(path_error)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("iii")
            .arg("__shim")
            .env_clear()
            .envs(KEPT_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("GLIBC_TUNABLES", SHIM_ALLOCATOR)
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(OwnedFd::from(lock))
            .stderr(OwnedFd::from(shim_log))
            // Its own group: Ctrl-C in the daemon's terminal is not for it.
            .process_group(0);
        let mut child = command.spawn().map_err(|e| ErrorBody {
            code: ErrorCode::Host,
            message: format!("cannot start the shim process: {e}"),
            hint: Some("check the limits on processes and memory (`ulimit -a`)".into()),
        })?;
        // The command holds duplicates of the lock and the link's other end.
        drop(command);
        // Reaps it; its machine's end is told by the link.
        tokio::spawn(async move { child.wait().await });

        let target = LinkTarget {
            worker: spec.machine.worker.clone(),
            generation: spec.machine.generation,
            spec_hash: spec.machine.hash(),
            run_dir: spec.run_dir.clone(),
            log_dir: spec.log_dir.clone(),
            ring,
        };
        let mut stream = from_std(ours)?;
        write_frame(&mut stream, &Frame::json(KIND_LAUNCH, &spec))
            .await
            .map_err(|e| internal(format!("the shim did not take its machine: {e}")))?;
        Ok(follow(target, Link::new(stream), None))
    }

    fn still_held(&self, worker: &str) -> ErrorBody {
        let run_dir = self.run_dir(worker);
        ErrorBody {
            code: ErrorCode::Host,
            message: format!("the machine of `{worker}` that ran before has not ended"),
            hint: Some(format!(
                "see {}, and `fuser {}`",
                run_dir.join(SHIM_LOG).display(),
                run_dir.join(SHIM_LOCK).display()
            )),
        }
    }

    async fn adopt(self, worker: String, ring: Arc<LogRing>) -> Result<Adoption, ErrorBody> {
        let run_dir = self.run_dir(&worker);
        let log_dir = self.home.logs(&worker);
        let mut target =
            LinkTarget { worker, generation: 0, spec_hash: String::new(), run_dir, log_dir, ring };
        for _ in 0..ATTACH_ATTEMPTS {
            match LockFile::try_acquire(&target.run_dir.join(SHIM_LOCK)) {
                Err(LockError::Held { .. }) => {}
                // Free, or the folder does not exist.
                Ok(_) | Err(LockError::Path(_)) => return self.adopt_remains(target).await,
            }
            if let Ok(Ok((link, status))) = timeout(ATTACH_LIMIT, attach(&target)).await {
                target.generation = status.generation;
                target.spec_hash.clone_from(&status.spec_hash);
                return Ok(Adoption::Running(follow(target, link, Some(status))));
            }
            tokio::time::sleep(ATTACH_PAUSE).await;
        }
        Err(self.still_held(&target.worker))
    }

    /// No shim: there may be its last word, and sockets that a killed one left.
    async fn adopt_remains(&self, target: LinkTarget) -> Result<Adoption, ErrorBody> {
        refill(&target, u64::MAX).await;
        remove_sockets(&target.run_dir);
        sweep_temporary(&target.run_dir);
        match read_last_word(&target.run_dir) {
            // It stays: this daemon may die before it is noted. The next shim takes it away.
            Some(exit) => Ok(Adoption::Ended(exit)),
            None => Ok(Adoption::Nothing),
        }
    }
}

impl Launcher for ShimLauncher {
    fn check(&self) -> BoxFuture<'static, Result<(), ErrorBody>> {
        let launcher = self.clone();
        async move {
            let check = tokio::task::spawn_blocking(move || launcher.check_host().map(drop));
            check.await.map_err(|e| internal(e.to_string()))?
        }
        .boxed()
    }

    fn launch(
        &self,
        spec: MachineSpec,
        ring: Arc<LogRing>,
    ) -> BoxFuture<'static, Result<Machine, ErrorBody>> {
        self.clone().launch(spec, ring).boxed()
    }

    fn adopt(&self, worker: &str, ring: Arc<LogRing>) -> BoxFuture<'static, Result<Adoption, ErrorBody>> {
        self.clone().adopt(worker.to_owned(), ring).boxed()
    }

    fn running(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.home.run(&self.project)) else { return Vec::new() };
        let held = |dir: &std::path::Path| {
            let lock = dir.join(SHIM_LOCK);
            lock.exists() && matches!(LockFile::try_acquire(&lock), Err(LockError::Held { .. }))
        };
        entries
            .flatten()
            .filter(|entry| held(&entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

/// Connects and takes over; the shim answers with its status.
async fn attach(target: &LinkTarget) -> anyhow::Result<(Link, ShimStatus)> {
    let stream = UnixStream::connect(target.run_dir.join(SHIM_SOCKET)).await?;
    let mut link = Link::new(stream);
    write_frame(&mut link.writer, &Frame::json(KIND_ATTACH, &Attach { daemon_pid: std::process::id() }))
        .await?;
    let frame = link.reader.next().await?.context("the shim closed the link")?;
    anyhow::ensure!(frame.kind == KIND_STATUS, "the shim's first frame is of kind {}", frame.kind);
    let status = frame.parse()?;
    Ok((link, status))
}

fn check_socket_path(run_dir: &Path) -> Result<(), ErrorBody> {
    let lengths = SOCKETS.map(|name| run_dir.join(name).as_os_str().len());
    let longest = lengths.into_iter().max().unwrap_or_default();
    if longest <= MAX_SOCKET_PATH_BYTES {
        return Ok(());
    }
    Err(ErrorBody {
        code: ErrorCode::Host,
        message: format!(
            "the sockets in {} would have paths of {longest} bytes (the system's limit is {MAX_SOCKET_PATH_BYTES})",
            run_dir.display()
        ),
        hint: Some("choose a shorter III_HOME or a shorter worker name".into()),
    })
}

/// Appends, but starts anew when the old one has grown large.
fn open_shim_log(run_dir: &Path) -> Result<File, PathError> {
    let path = run_dir.join(SHIM_LOG);
    let large = fs::metadata(&path).is_ok_and(|meta| meta.len() > SHIM_LOG_BYTES);
    let mut options = File::options();
    options.create(true);
    if large {
        options.write(true).truncate(true)
    } else {
        options.append(true)
    };
    options.open(&path).map_err(PathError::new("open", path))
}

fn internal(message: String) -> ErrorBody {
    ErrorBody { code: ErrorCode::Internal, message, hint: None }
}

fn path_error(error: PathError) -> ErrorBody {
    let hint = if error.is_disk_full() {
        "free some disk space and start the worker again"
    } else {
        "check the folder's owner and permissions, or choose another one with III_HOME"
    };
    ErrorBody { code: ErrorCode::Host, message: error.to_string(), hint: Some(hint.into()) }
}

fn from_std(stream: StdUnixStream) -> Result<UnixStream, ErrorBody> {
    stream.set_nonblocking(true).map_err(|e| internal(e.to_string()))?;
    UnixStream::from_std(stream).map_err(|e| internal(e.to_string()))
}

//! The guest's mounts, as data, and how they are put in place.
//!
//! ```text
//!   virtiofs /            what the VMM gives: an empty folder, perhaps read-only; never written to
//!   └─ tmpfs /            the private root: mount points, and the memory behind /run and /tmp
//!      ├─ /lower          erofs, the image
//!      ├─ /scratch        ext4, the worker's own changes
//!      └─ /root           overlay of both ── moved onto / at the end: the root that the workload sees
//! ```
//!
//! Sources: mount(2), overlayfs.rst and devpts.rst of the kernel's documentation; flags as Docker sets them, but for the
//! root: Docker keeps device nodes there from being opened by a cgroup's rules, and here it is mounted `nodev`. Devices
//! are those of /dev.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use iii_protocol::guest::{ROOT_DISK, SCRATCH_DISK};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::console;
use crate::error::StartError;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What /proc/mounts shows, or a block device.
    pub(crate) source: String,
    /// Where; made when missing.
    pub(crate) target: String,
    /// File system.
    pub(crate) fstype: &'static str,
    /// Flags.
    pub(crate) flags: MsFlags,
    /// Options of the file system.
    pub(crate) data: String,
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} as {}", self.source, self.target, self.fstype)
    }
}

/// The system calls whose order matters; a fake records them.
pub(crate) trait Syscalls {
    /// mount(2).
    fn mount(&mut self, mount: &Mount) -> io::Result<()>;
    /// Makes a folder and its parents with exactly this mode; fine if it is there.
    fn make_folder(&mut self, path: &str, mode: u32) -> io::Result<()>;
    /// Makes a folder with owner and mode of another.
    fn make_folder_like(&mut self, path: &str, model: &str) -> io::Result<()>;
    /// Makes a symbolic link; fine if there is something of that name.
    fn link(&mut self, path: &str, to: &str) -> io::Result<()>;
    /// Enters the mount on top of the current root folder, as root folder.
    fn enter_top_of_root(&mut self) -> io::Result<()>;
    /// Moves the mount at `path` on top of the current root and enters it: what switch_root(8) does.
    fn switch_root(&mut self, path: &str) -> io::Result<()>;
    /// Whether `path` itself is a folder, not a link to one.
    fn is_folder(&self, path: &str) -> bool;
    /// Whether a folder holds anything.
    fn is_empty(&self, path: &str) -> bool;
}

/// Where the image's root disk is mounted, before the switch.
const LOWER: &str = "/lower";
/// Where the scratch disk is mounted, before the switch.
pub(super) const SCRATCH: &str = "/scratch";
/// Where both are joined, before the switch.
const ROOT: &str = "/root";
/// Holds the memory that is laid over folders which start afresh at each boot.
const VOLATILE: &str = "/volatile";
/// These start afresh at each boot, with what the image has in them.
const VOLATILE_FOLDERS: [(&str, u32); 2] = [("/run", 0o755), ("/tmp", 0o1777)];

/// A row of [`SYSTEM_MOUNTS`]: target, file system, flags, options, and whether a machine without it is of no use.
type SystemMount = (&'static str, &'static str, MsFlags, &'static str, bool);

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;

/// What every workload finds in place, in this order.
const SYSTEM_MOUNTS: [SystemMount; 7] = [
    ("/proc", "proc", NOSUID.union(NODEV).union(NOEXEC), "", true),
    ("/sys", "sysfs", NOSUID.union(NODEV).union(NOEXEC), "", true),
    ("/dev", "devtmpfs", NOSUID, "mode=0755", true),
    ("/dev/pts", "devpts", NOSUID.union(NOEXEC), "newinstance,ptmxmode=0666,mode=0620,gid=5", true),
    ("/dev/shm", "tmpfs", NOSUID.union(NODEV).union(NOEXEC), "mode=1777", true),
    ("/dev/mqueue", "mqueue", NOSUID.union(NODEV).union(NOEXEC), "", false),
    // `favordynmods`: a process enters a group at once. Otherwise the kernel waits for an RCU grace period first, which
    // is a good part of the time of a short command.
    ("/sys/fs/cgroup", "cgroup2", NOSUID.union(NODEV).union(NOEXEC), "favordynmods", false),
];

/// Names that shells and programs expect in /dev and devtmpfs does not make.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Makes the private root; needs nothing of the boot plan, so it is done while that is on its way.
pub(crate) fn private_root(sys: &mut dyn Syscalls) -> Result<(), StartError> {
    let root = Mount {
        source: "iii".into(),
        target: "/".into(),
        fstype: "tmpfs",
        flags: NOSUID.union(NODEV),
        data: "mode=0755".into(),
    };
    sys.mount(&root).map_err(|error| failed("mounts", &root, &error))?;
    sys.enter_top_of_root().map_err(|error| failed("mounts", "the private root", &error))?;
    for path in [LOWER, SCRATCH, ROOT, VOLATILE] {
        sys.make_folder(path, 0o755).map_err(|error| failed("mounts", path, &error))?;
    }
    let devices = system_mount(SYSTEM_MOUNTS[2]);
    place(sys, &devices).map_err(|error| failed("mounts", &devices, &error))
}

/// Joins root disk and scratch disk at [`ROOT`].
pub(crate) fn join_disks(sys: &mut dyn Syscalls, lower: &str, upper: &str) -> Result<(), StartError> {
    let image = disk(lower, LOWER, "erofs", NODEV.union(MsFlags::MS_RDONLY), "");
    sys.mount(&image).map_err(|error| failed(ROOT_DISK, &image, &error))?;
    // The journal is replayed here when the last run ended without a flush.
    let scratch = disk(upper, SCRATCH, "ext4", NODEV.union(MsFlags::MS_NOATIME), "noinit_itable");
    sys.mount(&scratch).map_err(|error| failed(SCRATCH_DISK, &scratch, &error))?;
    // The root folder of the overlay is the upper one's: it must look like the image's.
    let made =
        sys.make_folder_like("/scratch/upper", LOWER).and_then(|()| sys.make_folder("/scratch/work", 0o755));
    made.map_err(|error| failed(SCRATCH_DISK, upper, &error))?;
    // Its own flag is the one that counts: what is opened through an overlay is none of the layers' mounts' business.
    let joined = overlay(ROOT, LOWER, SCRATCH, NODEV);
    sys.mount(&joined).map_err(|error| failed("mounts", &joined, &error))
}

/// From the joined disks to the root that the workload sees.
pub(crate) fn enter_root(sys: &mut dyn Syscalls) -> Result<(), StartError> {
    let mut fresh = Vec::new();
    for (path, mode) in VOLATILE_FOLDERS {
        if !volatile_overlay(sys, path, mode).map_err(|error| failed("mounts", path, &error))? {
            fresh.push(Mount {
                source: "tmpfs".into(),
                target: path.into(),
                fstype: "tmpfs",
                flags: NOSUID | NODEV,
                data: format!("mode={mode:04o}"),
            });
        }
    }
    sys.switch_root(ROOT).map_err(|error| failed("mounts", "switching the root", &error))?;
    for row in SYSTEM_MOUNTS {
        let mount = system_mount(row);
        let mut placed = place(sys, &mount);
        if placed.is_err() && !row.4 && !mount.data.is_empty() {
            // An older kernel may not know the options: `favordynmods` is of 6.0.
            placed = place(sys, &Mount { data: String::new(), ..mount.clone() });
        }
        match placed {
            Err(error) if row.4 => return Err(failed("mounts", &mount, &error)),
            Err(error) => console::say(format_args!("going on without {mount}: {error}")),
            Ok(()) => {}
        }
    }
    for mount in fresh {
        place(sys, &mount).map_err(|error| failed("mounts", &mount, &error))?;
    }
    for (path, to) in DEVICE_LINKS {
        sys.link(path, to).map_err(|error| failed("mounts", path, &error))?;
    }
    Ok(())
}

/// Lays memory over what the image has in `path`. Images count on it (`/run/mysqld`, owned by its user),
/// and what an earlier run left there (pid files, sockets) must not come back. `false` when the image
/// has nothing there: then a plain tmpfs does.
fn volatile_overlay(sys: &mut dyn Syscalls, path: &str, mode: u32) -> io::Result<bool> {
    let (lower, target) = (format!("{LOWER}{path}"), format!("{ROOT}{path}"));
    if !sys.is_folder(&lower) || sys.is_empty(&lower) || !sys.is_folder(&target) {
        return Ok(false);
    }
    let memory = format!("{VOLATILE}{path}");
    sys.make_folder(&format!("{memory}/upper"), mode)?;
    sys.make_folder(&format!("{memory}/work"), 0o755)?;
    sys.mount(&overlay(&target, &lower, &memory, NOSUID | NODEV))?;
    Ok(true)
}

fn disk(source: &str, target: &str, fstype: &'static str, flags: MsFlags, data: &str) -> Mount {
    Mount { source: source.into(), target: target.into(), fstype, flags, data: data.into() }
}

fn overlay(target: &str, lower: &str, upper: &str, flags: MsFlags) -> Mount {
    let data = format!("lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work");
    Mount { source: "overlay".into(), target: target.into(), fstype: "overlay", flags, data }
}

fn system_mount((target, fstype, flags, data, _): SystemMount) -> Mount {
    Mount { source: fstype.into(), target: target.into(), fstype, flags, data: data.into() }
}

fn place(sys: &mut dyn Syscalls, mount: &Mount) -> io::Result<()> {
    sys.make_folder(&mount.target, 0o755)?;
    sys.mount(mount)
}

fn failed(what: &str, subject: impl fmt::Display, error: &io::Error) -> StartError {
    StartError::new(what, format!("{subject}: {error}"))
}

/// The kernel.
#[derive(Debug, Default)]
pub(crate) struct Kernel;

impl Syscalls for Kernel {
    fn mount(&mut self, it: &Mount) -> io::Result<()> {
        let data = Some(it.data.as_str()).filter(|data| !data.is_empty());
        Ok(mount(Some(it.source.as_str()), it.target.as_str(), Some(it.fstype), it.flags, data)?)
    }

    fn make_folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        if Path::new(path).is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        // Not by the builder: the umask would take its part.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    fn make_folder_like(&mut self, path: &str, model: &str) -> io::Result<()> {
        if Path::new(path).is_dir() {
            return Ok(());
        }
        let meta = fs::metadata(model)?;
        self.make_folder(path, meta.mode() & 0o7777)?;
        chown(path, Some(meta.uid()), Some(meta.gid()))
    }

    fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        match symlink(to, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn enter_top_of_root(&mut self) -> io::Result<()> {
        // A lookup of "/" starts below what was mounted on it; ".." of the root steps onto the top.
        chdir("/..")?;
        Ok(chroot(".")?)
    }

    fn switch_root(&mut self, path: &str) -> io::Result<()> {
        chdir(path)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        chroot(".")?;
        Ok(chdir("/")?)
    }

    fn is_folder(&self, path: &str) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
    }

    fn is_empty(&self, path: &str) -> bool {
        fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
    }
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;

//! Enters libkrun: the only `unsafe` of the host's side, in the only process that may (`iii __vmm`).
//!
//! libkrun runs one VM per process, `krun_start_enter` never returns from a running VM (the process ends
//! with the guest), and errors collapse to `-EINVAL` with the reason on stderr, which the shim keeps.

use std::ffi::{CStr, CString, NulError, c_char, c_int, c_void};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use iii_protocol::engine::ENGINE_PORT;
use iii_protocol::guest::CONTROL_PORT;
use iii_protocol::network::GUEST_MAC;
use iii_protocol::session::SESSION_PORT;
use libloading::Library;
use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};
use serde::{Deserialize, Serialize};

use super::agent_binary::AGENT;
use super::vmm::GuestSockets;

/// Guest path of the root disk; libkrun names virtio-blk devices in the order they are added.
pub(super) const ROOT_DISK_DEVICE: &str = "/dev/vda";
/// Guest path of the scratch disk.
pub(super) const SCRATCH_DISK_DEVICE: &str = "/dev/vdb";

/// `KRUN_DISK_FORMAT_RAW`. The format is always passed: probing would let a guest that writes a qcow2
/// header to its disk read any file of the host's at the next start.
const DISK_FORMAT_RAW: u32 = 0;
/// `KRUN_SYNC_NONE`: for disks that are never written.
const SYNC_NONE: u32 = 0;
/// `KRUN_SYNC_FULL`: a guest's flush reaches the host's disk, so that a power cut loses nothing it was promised.
const SYNC_FULL: u32 = 2;
/// `virtiofs4`'s permission semantics of a Linux host (`LinuxComplete`).
const SEMANTICS_LINUX: u32 = 0;
/// No TSI: with it, the guest's sockets would be the host's own.
const TSI_OFF: u32 = 0;
/// VIRTIO_NET_F_CSUM: the guest may leave out checksums, for the link is memory.
const NET_CSUM: u32 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4 and GUEST_TSO6: with these its driver makes room for frames of the link's MTU, and
/// without them for 1500 bytes. Frames to the guest have their checksums all the same, and none is a joined one.
const NET_LARGE_FRAMES: u32 = 1 << 1 | 1 << 7 | 1 << 8;
/// Neither vfkit's greeting nor libkrun's own DHCP client: the agent sets the device up.
const NET_FLAGS: u32 = 0;
/// Tag of the file system that the guest's kernel mounts as its first root.
const ROOT_TAG: &str = "/dev/root";
/// Where libkrun's kernel command line looks for PID 1.
const INIT_NAME: &str = "init.krun";
/// Folders of the first root: mount points for the agent, which leaves it at once.
const ROOT_FOLDERS: [&str; 4] = ["dev", "proc", "sys", "newroot"];

/// What `iii __vmm` is told, as JSON on its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmmConfig {
    /// Virtual CPUs.
    pub(super) cpus: u8,
    /// Memory, MiB.
    pub(super) memory_mib: u32,
    /// Read-only EROFS.
    pub(super) root_disk: PathBuf,
    /// Writable ext4; locked while the VMM runs, so that no two machines ever share it.
    pub(super) scratch_disk: PathBuf,
    /// Where the guest's vsock ports lead.
    pub(super) sockets: GuestSockets,
    /// The guest kernel's library; loaded by path, so that libkrun's load by name finds it.
    pub(super) libkrunfw: PathBuf,
    /// What the socket behind the network device speaks.
    #[serde(default)]
    pub(super) network_link: NetworkLink,
}

/// How Ethernet frames go through the socket behind the guest's network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum NetworkLink {
    /// One message, one frame: the shim's stack.
    #[default]
    Messages,
    /// A stream, with a frame's length (32 bits, big endian) in front of it, as passt and QEMU have it. Only benchmarks
    /// ask for it, to have such a peer behind the same machine.
    Stream,
}

/// libkrunfw's getter: the kernel's address in this process, which is page-aligned; its load and entry addresses in the
/// guest, and its size in bytes, go to the pointers.
type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *mut c_void;

/// The two functions of libkrun that add a network device.
type AddNet = unsafe extern "C" fn(u32, *const c_char, c_int, *const u8, u32, u32) -> i32;

/// Why the VM was not entered.
#[derive(Debug, thiserror::Error)]
pub(super) enum KrunError {
    /// A path that C cannot take.
    #[error("a path with a NUL byte: {0}")]
    Path(#[from] NulError),
    /// The guest kernel's library cannot be loaded.
    #[error("cannot load {}: {source}", path.display())]
    Libkrunfw {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: libloading::Error,
    },
    /// libkrun refused; its reason is on stderr.
    #[error("libkrun: {step} failed with {code}")]
    Call {
        /// The function.
        step: &'static str,
        /// A negative errno.
        code: i32,
    },
}

/// Builds the machine and becomes it. Returns only if that failed. `network` is the other end of the guest's network
/// device, a socket as the configuration says: it is libkrun's from here on.
pub(super) fn enter(config: &VmmConfig, network: RawFd) -> KrunError {
    match try_enter(config, network) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// What the guest's kernel is told besides libkrun's own words (kernel-parameters.txt): not to charge its own memory to groups
/// of processes, which each page of a pipe and each new process paid for. No group here has a limit; the machine itself is
/// the limit, and the groups are there to end and to count what is in them. A group that a workload makes for itself is
/// limited in what its processes hold, without pipes and the like.
const KERNEL_WORDS: [&CStr; 1] = [c"cgroup.memory=nokmem"];
/// As many words as libkrun looks for in a list that does not end before.
const KRUN_MAX_WORDS: usize = 4096;

#[expect(unsafe_code, reason = "libkrun is a C interface")]
fn try_enter(config: &VmmConfig, network: RawFd) -> Result<std::convert::Infallible, KrunError> {
    let root_disk = c_path(&config.root_disk)?;
    let scratch_disk = c_path(&config.scratch_disk)?;
    let control_socket = c_path(&config.sockets.control)?;
    let session_socket = c_path(&config.sockets.sessions)?;
    let engine_socket = c_path(&config.sockets.engine)?;
    let root_tag = CString::new(ROOT_TAG)?;
    let init = CString::new(INIT_NAME)?;
    let console = CString::new("/proc/self/fd/1")?;
    finish_before_giving_way();

    // SAFETY: loading runs the library's initialisers; libkrunfw has none (it is a kernel image with
    // three getters). The user chose the file, and runs with no more rights than the user has.
    let library = unsafe { Library::new(&config.libkrunfw) }
        .map_err(|source| KrunError::Libkrunfw { path: config.libkrunfw.clone(), source })?;
    copy_patched_part(&library);
    // Stays loaded: libkrun maps the kernel out of it.
    std::mem::forget(library);

    let ctx = check("krun_create_ctx", krun::krun_create_ctx())?.unsigned_abs();
    check("krun_set_vm_config", krun::krun_set_vm_config(ctx, config.cpus, config.memory_mib))?;
    let mut words = [std::ptr::null(); KRUN_MAX_WORDS];
    for (place, word) in words.iter_mut().zip(KERNEL_WORDS) {
        *place = word.as_ptr();
    }
    // SAFETY: as many pointers as libkrun looks at, each null or a NUL-terminated string that outlives the call, which
    // copies them.
    check("krun_set_env", unsafe { krun::krun_set_env(ctx, words.as_ptr()) })?;

    // The first root has no host folder behind it at all: a null path makes it virtual.
    // SAFETY: the tag is a NUL-terminated string that outlives the call, and the documented meaning of
    // a null path is "no host folder".
    check("krun_add_virtiofs4", unsafe {
        krun::krun_add_virtiofs4(ctx, root_tag.as_ptr(), std::ptr::null(), 0, false, SEMANTICS_LINUX)
    })?;
    for folder in ROOT_FOLDERS {
        let folder = CString::new(folder)?;
        // SAFETY: both strings are NUL-terminated and outlive the call, which copies them.
        check("krun_fs_add_overlay_dir", unsafe {
            krun::krun_fs_add_overlay_dir(ctx, root_tag.as_ptr(), folder.as_ptr(), 0o755)
        })?;
    }
    // SAFETY: the strings are NUL-terminated and outlive the call; the agent's bytes are a static of
    // this program, so they live as long as the VM, which is what the function asks for.
    check("krun_fs_add_overlay_file", unsafe {
        krun::krun_fs_add_overlay_file(
            ctx,
            root_tag.as_ptr(),
            init.as_ptr(),
            AGENT.as_ptr(),
            AGENT.len(),
            0o755,
            false,
        )
    })?;

    for (id, path, read_only, sync) in
        [(c"vda", &root_disk, true, SYNC_NONE), (c"vdb", &scratch_disk, false, SYNC_FULL)]
    {
        // SAFETY: both strings are NUL-terminated and outlive the call, which copies them.
        check("krun_add_disk3", unsafe {
            krun::krun_add_disk3(ctx, id.as_ptr(), path.as_ptr(), DISK_FORMAT_RAW, read_only, false, sync)
        })?;
    }

    check("krun_disable_implicit_vsock", krun::krun_disable_implicit_vsock(ctx))?;
    check("krun_add_vsock", krun::krun_add_vsock(ctx, TSI_OFF))?;
    for (port, path) in [(CONTROL_PORT, &control_socket), (ENGINE_PORT, &engine_socket)] {
        // SAFETY: the path is NUL-terminated and outlives the call, which copies it.
        check("krun_add_vsock_port", unsafe { krun::krun_add_vsock_port(ctx, port, path.as_ptr()) })?;
    }
    // SAFETY: as above. `true` makes libkrun listen on the path, which the shim has cleared.
    check("krun_add_vsock_port2", unsafe {
        krun::krun_add_vsock_port2(ctx, SESSION_PORT, session_socket.as_ptr(), true)
    })?;
    let (no_path, features) = (std::ptr::null(), NET_CSUM | NET_LARGE_FRAMES);
    let (step, add_net): (_, AddNet) = match config.network_link {
        NetworkLink::Messages => ("krun_add_net_unixgram", krun::krun_add_net_unixgram),
        NetworkLink::Stream => ("krun_add_net_unixstream", krun::krun_add_net_unixstream),
    };
    // SAFETY: a null path means that the descriptor is to be used, which is open in this process and which nobody else
    // here refers to, so that libkrun may own it; the address is six bytes that outlive the call, which copies them.
    check(step, unsafe { add_net(ctx, no_path, network, GUEST_MAC.as_ptr(), features, NET_FLAGS) })?;
    // SAFETY: the path is NUL-terminated and outlives the call, which copies it.
    check("krun_set_console_output", unsafe { krun::krun_set_console_output(ctx, console.as_ptr()) })?;

    check("krun_start_enter", krun::krun_start_enter(ctx))?;
    Err(KrunError::Call { step: "krun_start_enter (it returned)", code: 0 })
}

/// Copies, in one call, what the guest's kernel changes of itself while it boots. libkrun maps the kernel out of the library
/// (privately), so each page that the guest writes to is copied then, and that takes three exits of the machine: to read it,
/// to write it, and to find the copy. A third of all exits of a boot are these.
///
/// That is the first half of the kernel, its code: nearly every page has a call or an instruction that is patched for the
/// processor at hand (2,619 of 2,632 pages in libkrunfw 5.6.1). Most of the other half stays shared by all machines.
/// Without the getter or the advice (before Linux 5.14) all is as it was, only slower.
#[expect(unsafe_code, reason = "libkrunfw is a C interface")]
fn copy_patched_part(library: &Library) {
    // SAFETY: this is the getter's type in libkrunfw's header, for all versions that have this file name.
    let Ok(get_kernel) = (unsafe { library.get::<GetKernel>(b"krunfw_get_kernel\0") }) else { return };
    let (mut load_address, mut entry_address, mut size) = (0, 0, 0);
    // SAFETY: the pointers are to variables of the pointed-to types, which outlive the call.
    let kernel = unsafe { get_kernel(&raw mut load_address, &raw mut entry_address, &raw mut size) };
    if let Some(kernel) = NonNull::new(kernel) {
        // SAFETY: the first `size` bytes are mapped and stay so, the library being loaded for good. The advice changes no
        // byte of them, only which page holds them.
        let _ = unsafe { madvise(kernel, size / 2, MmapAdvise::MADV_POPULATE_WRITE) };
    }
}

/// Lets a thread of the machine that wakes wait until whoever runs has done its piece, where there is no idle processor for
/// it (`SCHED_BATCH`, sched(7)); libkrun's threads inherit that from this one. Otherwise each packet that the guest sends ends
/// its turn at once, as its word of it wakes the thread that takes them, and that one's answer interrupts the guest: a stream
/// took twice as many exits. The machine gets as much of the processors as before. A schedule that the user chose is kept, and
/// where this is not permitted all works as well, only slower.
#[expect(unsafe_code, reason = "no safe wrapper sets this")]
fn finish_before_giving_way() {
    // SAFETY: takes an integer only; 0 is the calling thread.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return;
    }
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` is valid for the whole call, which only reads it.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}

fn check(step: &'static str, code: i32) -> Result<i32, KrunError> {
    if code < 0 { Err(KrunError::Call { step, code }) } else { Ok(code) }
}

fn c_path(path: &Path) -> Result<CString, NulError> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes())
}

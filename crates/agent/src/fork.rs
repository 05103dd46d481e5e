//! How a process comes to be, from its first instruction to a successful `execve`.
//!
//! The standard library copies the agent (`fork`) to get there, and copies back page by page what either of the two
//! then writes: in a guest, whose page faults are walked through two sets of page tables, most of what a short
//! command takes. Here the new process borrows the agent's memory instead (`CLONE_VM`), while the thread that starts
//! it stands still (`CLONE_VFORK`), as `posix_spawn` does it; that one has no way to enter a cgroup, to change the user
//! or to give a new process a terminal.

use std::ffi::{CString, c_int, c_void};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::sys::LAST_SIGNAL;

/// Stack of the new process until it executes something else, in bytes: as much as the C library takes for its own.
const STACK_BYTES: usize = 32 * 1024;
/// The first umask of a process, in a type of C.
const UMASK: libc::mode_t = 0o022;
/// Exit status of a process that could not become what it was to be. Nobody sees it: its failure is told.
const FAILED: c_int = 127;

/// A limit of resources: its number, soft and hard value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// `RLIMIT_...`.
    pub(crate) resource: u32,
    /// The limit in force.
    pub(crate) soft: u64,
    /// Up to where the process may raise it.
    pub(crate) hard: u64,
}

/// Everything a new process becomes before it executes its program; all memory of it is made by the parent.
#[derive(Debug)]
pub(crate) struct Fork {
    /// Standard input, output and error. Their numbers here are none of 0 to 2: those are always open, if only by the
    /// standard library before `main`.
    pub(crate) streams: [OwnedFd; 3],
    /// Open `cgroup.procs` of the group to enter.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Limits to take on.
    pub(crate) limits: Vec<Limit>,
    /// Working directory.
    pub(crate) cwd: CString,
    /// Make standard input the controlling terminal.
    pub(crate) terminal: bool,
    /// User, group and supplementary groups to take on.
    pub(crate) identity: Option<(u32, u32, Vec<u32>)>,
    /// Get SIGKILL when the thread that forks ends.
    pub(crate) die_with_parent: bool,
    /// Files to execute: the first one that this user may.
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// `NAME=value`.
    pub(crate) env: Vec<CString>,
}

/// Which step of a [`Fork`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making a process at all; nothing is left of it.
    Process,
    /// Entering the cgroup.
    Cgroup,
    /// A session of its own.
    Session,
    /// A limit.
    Limits,
    /// The working directory.
    Cwd,
    /// Standard input, output or error.
    Streams,
    /// The controlling terminal.
    Terminal,
    /// User or groups.
    User,
    /// The bond to the parent.
    Bond,
    /// `execve` of the candidate with this number.
    Exec(usize),
}

/// Where a [`Fork`] ended, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

/// A process that runs its program.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Its process id, which may be another's by now if it has ended and was reaped.
    pub(crate) pid: i32,
    /// Means this process and no other (pidfd_open(2)).
    pub(crate) handle: OwnedFd,
}

/// What the new process works with, in the parent's memory.
struct Child<'a> {
    fork: &'a Fork,
    /// Addresses of the strings of `fork`, with a null at the end.
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// Signals that are ignored here and are not to be ignored there.
    ignored: &'static [c_int],
    /// Written by the new process.
    failed: Option<Failed>,
}

/// Starts a process and returns when it has executed its program. One that could not do so is a child that has ended,
/// still to be reaped.
pub(crate) fn start(fork: &Fork) -> Result<Forked, Failed> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let mut child = Child {
        fork,
        argv: pointers(&fork.argv),
        env: pointers(&fork.env),
        ignored: ignored_signals(),
        failed: None,
    };
    let mut stack = vec![0u128; STACK_BYTES / size_of::<u128>()];
    let mut handle: c_int = -1;
    // No signal finds its way here while another process is in this memory; that one clears the mask for itself.
    let failed = |errno| Failed { step: Step::Process, errno };
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(failed)?;
    // SAFETY: `run` is given a `Child` that lives on this stack frame, and a stack of its own whose end is aligned to
    // 16 bytes (that of u128) as x86-64 and AArch64 want it. CLONE_VFORK keeps this thread from going on until the
    // new process has executed something or has ended, so nothing it works with goes away or is used by two at a time:
    // `child` and `stack` are not touched here meanwhile, and `&raw mut` makes the compiler see that they may have
    // changed. Other threads go on; none knows of these two, and the new process changes no other memory (see
    // `prepare`). `handle` is written by the kernel before the new process runs.
    #[expect(unsafe_code, reason = "there is no safe way to run code in a new process")]
    let pid = unsafe {
        libc::clone(
            run,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            (&raw mut child).cast(),
            &raw mut handle,
        )
    };
    let errno = Errno::last();
    // Fails only for a wrong `how`.
    let _ = mask.thread_set_mask();
    if pid < 0 {
        return Err(failed(errno));
    }
    // SAFETY: with CLONE_PIDFD the kernel has just made this descriptor for us, and nothing else knows of it.
    #[expect(unsafe_code, reason = "the kernel tells a number")]
    let handle = unsafe { OwnedFd::from_raw_fd(handle) };
    match child.failed {
        Some(failed) => Err(failed),
        None => Ok(Forked { pid, handle }),
    }
}

/// What is ignored when the agent starts stays so until it ends; the standard library adds SIGPIPE before `main`.
/// Across `execve` an ignored signal stays ignored, and every other one gets its default.
fn ignored_signals() -> &'static [c_int] {
    static IGNORED: OnceLock<Vec<c_int>> = OnceLock::new();
    IGNORED.get_or_init(|| (1..=LAST_SIGNAL).filter(|&signal| is_ignored(signal)).collect())
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer asks for the action only, and `action` has room for it. It is a plain C structure of
    // which zero is a valid value, should the call fail (for the C library's own signals).
    #[expect(unsafe_code, reason = "the safe wrapper knows no real-time signals, and none only to look")]
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// The first and last function of the new process.
extern "C" fn run(child: *mut c_void) -> c_int {
    // SAFETY: `start` passes a pointer to a `Child` that nobody else uses until this process has executed or ended.
    #[expect(unsafe_code, reason = "the C library passes a bare pointer")]
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.failed = Some(match prepare(child) {
        Err(failed) => failed,
        Ok(()) => execute(child),
    });
    // The C library ends the process with what is returned here, without running what is to run at an exit.
    FAILED
}

fn check(step: Step, result: i64) -> Result<(), Failed> {
    if result >= 0 { Ok(()) } else { Err(Failed { step, errno: Errno::last() }) }
}

/// All but the program.
fn prepare(child: &Child<'_>) -> Result<(), Failed> {
    let Child { fork, .. } = child;
    // SAFETY: this runs in a new process in the memory of another one, whose other threads go on, and one of them may
    // hold any lock. Nothing here takes one, allocates, frees or panics, and nothing is written but locals, `errno` of
    // the thread that stands still for it, and memory of the kernel's about this process alone: without CLONE_FS,
    // CLONE_FILES and CLONE_SIGHAND the working directory, umask, descriptors and signals are its own. write, setsid,
    // umask, chdir, dup2, signal, sigemptyset and sigprocmask are async-signal-safe by signal-safety(7). setrlimit,
    // ioctl, prctl and `syscall` are not on that page, but in the C library they only pass their arguments on to the
    // system call of that name. User and groups are changed by `syscall`, for the C library's wrappers change those of
    // every thread. All pointers are to memory that `child` owns or to locals; strings end with NUL; `none` is read
    // only after sigemptyset has filled it. SIG_DFL installs no handler.
    #[expect(unsafe_code, reason = "see the head of this file")]
    unsafe {
        if let Some(procs) = &fork.cgroup {
            // 0 means the writing process (cgroups(7)).
            check(Step::Cgroup, libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) as i64)?;
        }
        check(Step::Session, libc::setsid().into())?;
        libc::umask(UMASK);
        for limit in &fork.limits {
            let values = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
            check(Step::Limits, libc::setrlimit(limit.resource, &raw const values).into())?;
        }
        // Entered while still root: the folder may be closed to the user, as Docker allows.
        check(Step::Cwd, libc::chdir(fork.cwd.as_ptr()).into())?;
        for (stream, number) in fork.streams.iter().zip(0..) {
            check(Step::Streams, libc::dup2(stream.as_raw_fd(), number).into())?;
        }
        if fork.terminal {
            check(Step::Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0).into())?;
        }
        if let Some((uid, gid, groups)) = &fork.identity {
            check(Step::User, libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
            check(Step::User, libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid))?;
            check(Step::User, libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid))?;
        }
        if fork.die_with_parent {
            // After the change of user, which would reset it.
            check(Step::Bond, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        }
        // Whatever another thread has open and has not marked yet: portable-pty marks its ends only after they
        // were made. A kernel before 5.11 cannot, and the mark is on nearly always.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for &signal in child.ignored {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
    Ok(())
}

/// Returns only when it has failed.
fn execute(child: &Child<'_>) -> Failed {
    let mut failed = Failed { step: Step::Exec(0), errno: Errno::ENOENT };
    let mut denied = false;
    for (number, program) in child.fork.candidates.iter().enumerate() {
        // SAFETY: as in `prepare`: execve is async-signal-safe, its strings end with NUL and its lists with a null.
        #[expect(unsafe_code, reason = "see the head of this file")]
        unsafe {
            libc::execve(program.as_ptr(), child.argv.as_ptr(), child.env.as_ptr());
        }
        let errno = Errno::last();
        // What this user may not execute is not found; the first of these is told if there is no other.
        if !denied || errno != Errno::EACCES {
            failed = Failed { step: Step::Exec(number), errno };
        }
        if errno != Errno::EACCES {
            break;
        }
        denied = true;
    }
    failed
}

//! The system calls that no safe wrapper covers.
//!
//! - Signals as plain integers: `nix` wraps them too, but its `Signal` knows no real-time signals:
//!   `SIGRTMIN+3` (the stop signal of images that run systemd) could not be sent, and the status of a process
//!   that died of one would be reaped and lost.
//! - [`Fork`], what happens between `fork` and `execve`: the standard library has no other way in than an
//!   unsafe one, because almost nothing is allowed there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::libc;

/// The last signal number of Linux, on every CPU this runs on.
pub(crate) const LAST_SIGNAL: i32 = 64;
/// The most programs that [`Fork`] tries, one after the other.
pub(crate) const MAX_CANDIDATES: usize = 4096;

/// Sends `signal` to the process `pid`, or to the process group `-pid` when negative.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only and touches no memory of this process.
    #[expect(unsafe_code, reason = "the safe wrapper cannot send real-time signals")]
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until any child has ended, and leaves it unreaped. `ECHILD` when there is none.
pub(crate) fn wait_any() -> io::Result<i32> {
    // SAFETY: zero is a valid value of every field of this plain C structure.
    #[expect(unsafe_code, reason = "the C structure has no other constructor")]
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid and writable for the whole call, and nothing else refers to it.
    #[expect(unsafe_code, reason = "the safe wrapper fails for a death by a real-time signal")]
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has succeeded, so the fields of a SIGCHLD are the ones that are set.
    #[expect(unsafe_code, reason = "the field is one of a C union")]
    Ok(unsafe { info.si_pid() })
}

/// Reaps the ended child `pid`; `None` when there is nothing (any more) to reap.
pub(crate) fn reap(pid: i32) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: `status` is a valid, writable i32 for the whole call, and nothing else refers to it.
    #[expect(unsafe_code, reason = "the safe wrapper loses the status of a death by a real-time signal")]
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (reaped == pid).then(|| ExitStatus::from_raw(status))
}

/// Takes the next connection of a listening socket of any family.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: null pointers are how accept4 is told that the peer's address is not wanted; the rest are
    // integers.
    #[expect(unsafe_code, reason = "the standard library accepts no vsock, and nix gives a bare number")]
    let fd = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    #[expect(unsafe_code, reason = "see above")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another descriptor of the same open file as the number `fd`, closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only. A number that is no open file is EBADF.
    #[expect(unsafe_code, reason = "portable-pty lends its terminal as a bare number only")]
    let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    #[expect(unsafe_code, reason = "see above")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

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

/// Everything a new process becomes between `fork` and `execve`; all memory of it is made before the fork.
#[derive(Debug, Default)]
pub(crate) struct Fork {
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
    /// Files to execute: the first one that this user may. Not more than [`MAX_CANDIDATES`].
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// `NAME=value`.
    pub(crate) env: Vec<CString>,
}

/// Which step of a [`Fork`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Entering the cgroup.
    Cgroup = 1,
    /// A session of its own.
    Session,
    /// A limit.
    Limits,
    /// The working directory.
    Cwd,
    /// The controlling terminal.
    Terminal,
    /// User or groups.
    User,
    /// The bond to the parent.
    Bond,
    /// `execve` of the candidate with this number.
    Exec,
}

const STEPS: [Step; 8] = [
    Step::Cgroup,
    Step::Session,
    Step::Limits,
    Step::Cwd,
    Step::Terminal,
    Step::User,
    Step::Bond,
    Step::Exec,
];

/// Bits of an errno, and of a step, in a [`Fork`]'s error code; the candidate's number is above both.
const ERRNO_BITS: u32 = 12;
const STEP_BITS: u32 = 4;

/// Takes the error of a spawned [`Fork`] apart: step, reason and number of the candidate. `None` when it
/// is none of ours: the fork itself failed.
pub(crate) fn failed_step(error: &io::Error) -> Option<(Step, Errno, usize)> {
    let code = u32::try_from(error.raw_os_error()?).ok()?;
    let number = (code >> ERRNO_BITS) & ((1 << STEP_BITS) - 1);
    let step = STEPS.into_iter().find(|&step| step as u32 == number)?;
    let errno = Errno::from_raw((code & ((1 << ERRNO_BITS) - 1)).cast_signed());
    Some((step, errno, (code >> (ERRNO_BITS + STEP_BITS)) as usize))
}

/// An errno and where it happened, in one number: that is all the standard library carries to the parent.
fn failure(step: Step, errno: i32, candidate: usize) -> io::Error {
    let errno = errno.cast_unsigned() & ((1 << ERRNO_BITS) - 1);
    // Candidates are below 2^12, so the sum is a positive i32.
    let code = errno | (step as u32) << ERRNO_BITS | (candidate as u32) << (ERRNO_BITS + STEP_BITS);
    io::Error::from_raw_os_error(code.cast_signed())
}

/// Makes `command`'s process become `fork`; program, arguments and environment of `command` are not used.
pub(crate) fn become_on_fork(command: &mut Command, fork: Fork) {
    assert!(fork.candidates.len() <= MAX_CANDIDATES);
    let pointers = |strings: &[CString]| -> Vec<usize> {
        strings.iter().map(|it| it.as_ptr().expose_provenance()).chain([0]).collect()
    };
    let (argv, env) = (pointers(&fork.argv), pointers(&fork.env));
    // SAFETY: the closure runs between fork and execve in a copy of a process with several threads, where
    // a lock may be held for ever. It takes none: it allocates and frees nothing (its memory was made before
    // the fork, `io::Error` of a number needs none), does not panic (no indexing, no overflow), and calls
    // only what `become_it` lists.
    #[expect(unsafe_code, reason = "the only way in between fork and execve")]
    unsafe {
        command.pre_exec(move || become_it(&fork, &argv, &env));
    }
}

/// Runs in the forked process; returns only with an error. `argv` and `env` are addresses of strings of
/// `fork`, and 0 at their ends.
fn become_it(fork: &Fork, argv: &[usize], env: &[usize]) -> io::Result<()> {
    fn check(step: Step, result: i64) -> io::Result<()> {
        if result >= 0 { Ok(()) } else { Err(failure(step, Errno::last_raw(), 0)) }
    }
    // SAFETY: write, setsid, umask, chdir, signal, sigemptyset, sigprocmask and execve are async-signal-safe by
    // signal-safety(7). setrlimit, ioctl and prctl are not on that page, but in the C library they only pass
    // their arguments on to the system call of that name: no lock, no memory of its own. User and groups are
    // changed by `syscall`, which does the same, for the C library's wrappers would look for other threads. All
    // pointers are to memory that `fork` owns and that outlives the calls, or to locals: strings end with NUL,
    // lists of pointers with 0; `none` is read only after sigemptyset has filled it. SIG_DFL installs no handler;
    // numbers that may not be changed (SIGKILL, SIGSTOP, the C library's own) fail with EINVAL, which is right
    // to ignore.
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
        // The standard library ignores SIGPIPE, and an ignored signal stays ignored across `execve`.
        for signal in 1..=LAST_SIGNAL {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());

        let mut error = failure(Step::Exec, libc::ENOENT, 0);
        let mut denied = false;
        for (number, program) in fork.candidates.iter().enumerate() {
            libc::execve(program.as_ptr(), argv.as_ptr().cast(), env.as_ptr().cast());
            let errno = Errno::last_raw();
            // What this user may not execute is not found; the first of these is told if there is no other.
            if !denied || errno != libc::EACCES {
                error = failure(Step::Exec, errno, number);
            }
            if errno != libc::EACCES {
                break;
            }
            denied = true;
        }
        Err(error)
    }
}

/// The first umask of a process, in a type of C.
const UMASK: libc::mode_t = 0o022;

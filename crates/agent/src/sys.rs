//! The system calls that no safe wrapper covers. How a process is started is in [`crate::fork`].
//!
//! Signals are plain integers: `nix` wraps them too, but its `Signal` knows no real-time signals: `SIGRTMIN+3`
//! (the stop signal of images that run systemd) could not be sent, and the status of a process that died of one
//! would be reaped and lost.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::libc;

/// The last signal number of Linux, on every CPU this runs on.
pub(crate) const LAST_SIGNAL: i32 = 64;

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

/// How many bytes can be read from a pipe right now.
pub(crate) fn readable_bytes(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `bytes` is a valid, writable one for the whole call that nothing else
    // refers to.
    #[expect(unsafe_code, reason = "no safe wrapper asks this")]
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
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

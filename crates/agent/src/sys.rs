//! The three system calls that no safe wrapper covers, all on plain integers.
//!
//! `nix` wraps them too, but its `Signal` knows no real-time signals: `SIGRTMIN+3` (the stop signal of
//! images that run systemd) could not be sent, and the status of a process that died of one would be
//! reaped and lost. Resetting a disposition is `unsafe` everywhere because the same call can install a handler.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::libc;

/// The last signal number of Linux, on every CPU this runs on.
pub(crate) const LAST_SIGNAL: i32 = 64;

/// Sets every signal's disposition to its default and blocks none: what a freshly executed program may
/// expect. The standard library ignores SIGPIPE, and an ignored signal stays ignored across `execve`.
pub(crate) fn reset_signals() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: SIG_DFL installs no handler, so no code can run in signal context; the call takes
        // integers only. Numbers that may not be changed (SIGKILL, SIGSTOP, the C library's own) fail
        // with EINVAL, which is right to ignore.
        #[expect(unsafe_code, reason = "no safe wrapper resets a disposition, see the module's text")]
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // Fails only for an invalid `how`, which the wrapper does not let through.
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
}

/// Sends `signal` to the process `pid`, or to the process group `-pid` when negative.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only and touches no memory of this process.
    #[expect(unsafe_code, reason = "the safe wrapper cannot send real-time signals")]
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until any child has ended and reaps it. `ECHILD` when there is none.
pub(crate) fn wait_any() -> io::Result<(i32, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` is a valid, writable i32 for the whole call, and nothing else refers to it.
    #[expect(unsafe_code, reason = "the safe wrapper loses the status of a death by a real-time signal")]
    let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
    if pid > 0 { Ok((pid, ExitStatus::from_raw(status))) } else { Err(io::Error::last_os_error()) }
}

//! The caller's terminal: its size, and raw mode that is undone on every way out.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use iii_protocol::session::TerminalSize;
use nix::libc::_POSIX_VDISABLE;
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr,
};
use terminal_size::{Height, Width, terminal_size_of};

use super::exit;

/// The terminal that is raw now, and what it was before: here, so that a panic in any thread can undo it.
static RAW: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Standard input is a raw terminal as long as this lives.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    raw: Termios,
}

impl RawMode {
    /// Makes standard input raw, but for Ctrl-C and Ctrl-\, which are signals for us until [`RawMode::complete`].
    /// `None` if it is no terminal.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let mut waiting = raw.clone();
        waiting.local_flags |= LocalFlags::ISIG;
        // Not Ctrl-Z: nobody would be left to give the terminal back.
        waiting.control_chars[SpecialCharacterIndices::VSUSP as usize] = _POSIX_VDISABLE;
        *RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some((terminal.try_clone()?, before));
        // From here on it is undone, even if this only worked in part.
        let guard = RawMode { terminal, raw };
        tcsetattr(&guard.terminal, SetArg::TCSANOW, &waiting)?;
        Ok(Some(guard))
    }

    /// From now on every key is the guest's business.
    pub fn complete(&self) -> io::Result<()> {
        Ok(tcsetattr(&self.terminal, SetArg::TCSANOW, &self.raw)?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// As it was before; does nothing a second time.
fn restore() {
    let raw = RAW.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((terminal, before)) = raw {
        // A terminal that is gone needs nothing any more.
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
    }
}

/// Makes a defect of ours end the process as the table of exit codes says, with a terminal as it was.
pub fn end_tidily_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        restore();
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        eprintln!("error: a defect of iii{place}\n\nhint: please report it; the command was ended");
        std::process::exit(exit::SESSION_FAILED.into());
    }));
}

/// The size of the terminal behind any of the three standard streams.
pub fn size() -> Option<TerminalSize> {
    let (Width(columns), Height(rows)) = terminal_size_of(io::stdin())
        .or_else(|| terminal_size_of(io::stdout()))
        .or_else(|| terminal_size_of(io::stderr()))?;
    Some(TerminalSize { rows, columns })
}

/// The standard streams without any buffer of ours.
#[derive(Debug)]
pub struct Streams {
    /// Standard input.
    pub stdin: File,
    /// Standard output.
    pub stdout: File,
    /// Standard error.
    pub stderr: File,
}

impl Streams {
    /// Of this process.
    pub fn of_process() -> io::Result<Streams> {
        Ok(Streams {
            stdin: io::stdin().as_fd().try_clone_to_owned()?.into(),
            stdout: io::stdout().as_fd().try_clone_to_owned()?.into(),
            stderr: io::stderr().as_fd().try_clone_to_owned()?.into(),
        })
    }
}

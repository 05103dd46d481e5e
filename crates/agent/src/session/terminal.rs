//! The pseudo-terminal of a command.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, fchown};

use iii_protocol::session::TerminalSize;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use portable_pty::{MasterPty, PtySize, native_pty_system};

use crate::error::StartError;
use crate::launch::{Stream, Streams};
use crate::sys;

use super::pump::{Input, Output};

/// What programs take a terminal for that nobody has named.
pub(super) const DEFAULT_TERM: &str = "xterm";

/// Both ends, before the command runs.
pub(super) struct Terminal {
    pub(super) master: Box<dyn MasterPty + Send>,
    /// Kept open until the command has ended: a program may close all of its own for a while.
    pub(super) slave: File,
}

impl Terminal {
    /// Opens one of this size, which belongs to the user `owner`, or stays the agent's.
    pub(super) fn open(size: TerminalSize, owner: Option<u32>) -> Result<Terminal, StartError> {
        let failed = |error: io::Error| StartError::new("terminal", error);
        let pair = native_pty_system()
            .openpty(pty_size(size))
            .map_err(|error| StartError::new("terminal", error))?;
        let name = pair.master.tty_name().ok_or_else(|| StartError::new("terminal", "it has no name"))?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .map_err(failed)?;
        if let Some(owner) = owner {
            fchown(&slave, Some(owner), None).map_err(failed)?;
        }
        Ok(Terminal { master: pair.master, slave })
    }

    /// The command's standard streams.
    pub(super) fn streams(&self) -> io::Result<Streams> {
        let stream = || self.slave.try_clone().map(|slave| Stream::File(slave.into()));
        Ok([stream()?, stream()?, stream()?])
    }

    /// The agent's ends; input only if the client sends any.
    pub(super) fn ends(&self, input: bool) -> io::Result<(Output, Option<Input>)> {
        let master = || -> io::Result<File> {
            let fd = self.master.as_raw_fd().ok_or(io::ErrorKind::NotConnected)?;
            Ok(File::from(sys::duplicate(fd)?))
        };
        let output = master()?;
        // One open file, so this is for both ends.
        fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        let input = if input { Some(Input::Terminal(master()?)) } else { None };
        Ok((Output { stdout: Some(output), stderr: None, piped: false }, input))
    }
}

/// The kernel tells the foreground of the new size with SIGWINCH.
pub(super) fn resize(master: &dyn MasterPty, size: TerminalSize) {
    // Fails only for what is no terminal.
    let _ = master.resize(pty_size(size));
}

fn pty_size(size: TerminalSize) -> PtySize {
    PtySize { rows: size.rows, cols: size.columns, pixel_width: 0, pixel_height: 0 }
}

//! Carries the workload's output to the shim, byte for byte.
//!
//! One thread watches both pipes, so frames leave in the order of the reads across both streams. A read
//! takes at most [`READ_BYTES`] and becomes one frame. While the host is slow the thread waits in its
//! write, the pipes fill, and the workload waits in turn: nothing is dropped and nothing piles up here.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use iii_protocol::guest;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::link::{Event, LinkWriter};

/// The most bytes taken from a pipe at once: what a Linux pipe holds by default.
const READ_BYTES: usize = 64 * 1024;

/// The running pump.
#[derive(Debug)]
pub(crate) struct Pump {
    thread: JoinHandle<()>,
    no_writers: Arc<EventFd>,
}

impl Pump {
    /// Starts carrying both pipes over `link`.
    pub(crate) fn start(
        stdout: OwnedFd,
        stderr: OwnedFd,
        link: Arc<LinkWriter>,
        events: SyncSender<Event>,
    ) -> io::Result<Pump> {
        let no_writers = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
        let told = Arc::clone(&no_writers);
        let thread = thread::Builder::new().name("output".into()).spawn(move || {
            let pipes = [(guest::KIND_STDOUT, stdout), (guest::KIND_STDERR, stderr)];
            if carry(pipes, &told, &link).is_err() {
                // The reading side of the link sees this too; whoever is first wins.
                let _ = events.try_send(Event::LinkLost);
            }
        })?;
        Ok(Pump { thread, no_writers })
    }

    /// Sends what is still in the pipes and ends. To be called once every process that could write has
    /// been killed: a pipe that is empty then is done, even if something odd still holds it open.
    pub(crate) fn finish(self) {
        if self.no_writers.write(1).is_ok() {
            let _ = self.thread.join();
        }
    }
}

fn carry(pipes: [(u8, OwnedFd); 2], no_writers: &EventFd, link: &LinkWriter) -> io::Result<()> {
    let mut open: Vec<(u8, File)> = pipes.into_iter().map(|(kind, fd)| (kind, File::from(fd))).collect();
    let mut buffer = vec![0u8; READ_BYTES];
    let mut draining = false;
    while !open.is_empty() {
        let (ready, told) = wait(&open, no_writers, draining)?;
        if draining && !ready.contains(&true) {
            return Ok(());
        }
        draining |= told;
        let mut ready = ready.into_iter();
        let mut failure = None;
        open.retain_mut(|(kind, pipe)| {
            if failure.is_some() || !ready.next().unwrap_or(false) {
                return true;
            }
            match forward(*kind, pipe, &mut buffer, link) {
                Ok(more) => more,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(())
}

/// Waits for something to do: which pipes can be read, and whether the writers are said to be gone.
fn wait(open: &[(u8, File)], no_writers: &EventFd, draining: bool) -> io::Result<(Vec<bool>, bool)> {
    let mut fds: Vec<PollFd<'_>> =
        open.iter().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
    if !draining {
        fds.push(PollFd::new(no_writers.as_fd(), PollFlags::POLLIN));
    }
    let timeout = if draining { PollTimeout::ZERO } else { PollTimeout::NONE };
    loop {
        match poll(&mut fds, timeout) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
    let told = !draining && ready.pop().unwrap_or(false);
    Ok((ready, told))
}

/// Carries one read; `false` at the pipe's end.
fn forward(kind: u8, pipe: &mut File, buffer: &mut [u8], link: &LinkWriter) -> io::Result<bool> {
    let read = match pipe.read(buffer) {
        Ok(0) => return Ok(false),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
        Err(error) => return Err(error),
    };
    let payload = guest::output_payload(realtime_ns(), &buffer[..read]);
    link.send(kind, &payload).map_err(io::Error::other)?;
    Ok(true)
}

/// Nanoseconds since the Unix epoch by the guest's clock; 0 before it.
fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

//! The two threads that carry a command's bytes: output to the client, input from it.
//!
//! Output waits for the client's window, so a slow client makes the command wait in its write. Input waits
//! for the command, in a queue that the client's window limits.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use iii_protocol::frame::{HEADER_BYTES, header};
use iii_protocol::session::{KIND_STDERR, KIND_STDIN_CLOSED, KIND_STDOUT, MAX_DATA_BYTES};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::sys;

use super::connection::{Connection, Relay};
use super::inbound::{Inbound, Next};
use super::outbound::{Outbound, View};

/// Where a command's output comes from.
#[derive(Debug)]
pub(super) struct Output {
    /// Standard output, or the terminal.
    pub(super) stdout: Option<File>,
    /// Standard error; a terminal has none of its own.
    pub(super) stderr: Option<File>,
    /// Whether these are pipes.
    pub(super) piped: bool,
}

/// What goes into one frame of output. With its header it fills eight packets of vsock and no ninth: one of those takes
/// 64 KiB, and, of bytes that are moved page by page, 16 pieces of memory.
const FRAME_DATA_BYTES: usize = MAX_DATA_BYTES - 4096;
/// What is worth moving page by page: for less, copying is cheaper.
const RELAYED_FROM_BYTES: usize = 64 * 1024;

/// Carries output until nobody can write any more, or nobody reads.
pub(super) fn carry_output(mut output: Output, outbound: &Outbound, connection: &Connection) {
    let frame = vec![0u8; HEADER_BYTES + FRAME_DATA_BYTES];
    let mut carrier = Carrier { frame, piped: output.piped, relay: None, outbound, connection };
    loop {
        let view = outbound.view();
        if view.stdout_closed {
            output.stdout = None;
        }
        if view.stderr_closed {
            output.stderr = None;
        }
        if output.stdout.is_none() && output.stderr.is_none() {
            return;
        }
        let may_read = view.lost || view.room() > 0;
        let Ok(ready) = wait_for_output(&output, &outbound.wake, view, may_read) else { return };
        // Whoever writes in small pieces goes first, so that one frame takes many of them.
        std::thread::yield_now();
        if may_read && view.draining && !ready.contains(&true) {
            return;
        }
        for (kind, source, ready) in
            [(KIND_STDOUT, &mut output.stdout, ready[0]), (KIND_STDERR, &mut output.stderr, ready[1])]
        {
            if ready && !carrier.carry(kind, source) {
                *source = None;
            }
        }
    }
}

/// Sends what can be read, a frame at a time.
struct Carrier<'a> {
    frame: Vec<u8>,
    /// Whether the sources are pipes.
    piped: bool,
    /// Made for the first that is worth it.
    relay: Option<Relay>,
    outbound: &'a Outbound,
    connection: &'a Connection,
}

impl Carrier<'_> {
    /// One frame of what is there; `false` at the end of the source.
    fn carry(&mut self, kind: u8, source: &mut Option<File>) -> bool {
        let Some(source) = source else { return true };
        let view = self.outbound.view();
        let size = if view.lost { FRAME_DATA_BYTES } else { view.room().min(FRAME_DATA_BYTES) };
        if size == 0 {
            // The other source took the rest of the window.
            return true;
        }
        if !view.lost && self.relayed(kind, source, size) {
            return true;
        }
        let read = match source.read(&mut self.frame[HEADER_BYTES..HEADER_BYTES + size]) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
                return true;
            }
            // EIO is the end of a terminal.
            Err(_) => return false,
        };
        if view.lost {
            return true;
        }
        self.outbound.sent(read);
        self.frame[..HEADER_BYTES].copy_from_slice(&header(kind, read).expect("a frame of data is small"));
        let sent = self.connection.send_encoded(&self.frame[..HEADER_BYTES + read]);
        self.look(&sent);
        true
    }

    /// Sends at most `size` bytes without copying them to here. `false` when they are few, or cannot be.
    fn relayed(&mut self, kind: u8, source: &File, size: usize) -> bool {
        if !self.piped || size < RELAYED_FROM_BYTES {
            return false;
        }
        let there = sys::readable_bytes(source.as_fd()).unwrap_or(0).min(size);
        if there < RELAYED_FROM_BYTES {
            return false;
        }
        if self.relay.is_none() {
            self.relay = Relay::new().ok();
        }
        let Some(relay) = &self.relay else { return false };
        self.outbound.sent(there);
        let sent = self.connection.send_piped(kind, source, there, relay);
        self.look(&sent);
        true
    }

    fn look(&self, sent: &io::Result<()>) {
        if sent.is_err() {
            // The reader of the connection sees that too; until then there is nobody to send to.
            self.outbound.lose();
        }
    }
}

/// Waits until something can be read or has changed. Which of stdout and stderr can be read.
fn wait_for_output(output: &Output, wake: &EventFd, view: View, may_read: bool) -> nix::Result<[bool; 2]> {
    let sources = [&output.stdout, &output.stderr];
    let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
    if may_read {
        let open = sources.iter().filter_map(|source| source.as_ref());
        fds.extend(open.map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
    }
    let timeout = if view.draining && may_read { PollTimeout::ZERO } else { PollTimeout::NONE };
    poll_again(&mut fds, timeout)?;
    let mut ready = fds.iter().skip(1).map(|fd| fd.any().unwrap_or(true));
    Ok(sources.map(|source| source.is_some() && ready.next().unwrap_or(false)))
}

/// The command's end of standard input.
#[derive(Debug)]
pub(super) enum Input {
    /// A pipe.
    Pipe(File),
    /// A terminal's master, whose end of input is a character.
    Terminal(File),
}

/// The character that ends a line's input at once (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;

/// Carries input until it ends or the session is over. What a command does not take any more is thrown
/// away, so that the client is never held up by it.
pub(super) fn carry_input(input: Option<Input>, inbound: &Inbound, connection: &Connection) {
    if let Some(Input::Pipe(pipe)) = &input
        && let Ok(door) = pipe.try_clone()
    {
        inbound.open_door(door);
    }
    carry_queued(input, inbound, connection);
    // The command sees the end of its input only when all are closed.
    inbound.close_door();
}

fn carry_queued(mut input: Option<Input>, inbound: &Inbound, connection: &Connection) {
    // A send that fails is seen by the reader of the connection, which cancels.
    let mut line_is_open = false;
    loop {
        let next = inbound.next();
        let _ = inbound.tell_due(connection);
        match next {
            Next::Cancelled => return,
            Next::End => {
                if let Some(Input::Terminal(terminal)) = &mut input {
                    // Behind an unfinished line the first one only hands that over.
                    let bytes = [END_OF_INPUT; 2];
                    let count = if line_is_open { 2 } else { 1 };
                    let _ = write_all(terminal, &bytes[..count], inbound);
                }
                return;
            }
            Next::Data(bytes) => {
                if let Some(Input::Pipe(file) | Input::Terminal(file)) = &mut input {
                    line_is_open = bytes.last() != Some(&b'\n');
                    match write_all(file, &bytes, inbound) {
                        Ok(()) => {}
                        Err(_) if inbound.is_cancelled() => return,
                        Err(_) => {
                            input = None;
                            inbound.close_door();
                            let _ = connection.send(KIND_STDIN_CLOSED, &[]);
                        }
                    }
                }
                let _ = inbound.taken(bytes.len(), connection);
            }
            Next::Nothing => {
                let file = match &input {
                    Some(Input::Pipe(file)) => Some(file),
                    _ => None,
                };
                match wait_for_input(file, &inbound.wake) {
                    Ok(true) => {}
                    Ok(false) => {
                        input = None;
                        inbound.close_door();
                        let _ = connection.send(KIND_STDIN_CLOSED, &[]);
                    }
                    Err(_) => return,
                }
            }
        }
    }
}

/// Waits for more to write; `false` when nobody reads the pipe any more.
fn wait_for_input(pipe: Option<&File>, wake: &EventFd) -> nix::Result<bool> {
    let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
    // Errors are told whatever is asked for.
    fds.extend(pipe.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::empty())));
    poll_again(&mut fds, PollTimeout::NONE)?;
    Ok(!fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true)))
}

/// Writes to a file that does not block, and waits for it to take more unless the session is over.
pub(crate) fn write_all(file: &mut File, mut bytes: &[u8], inbound: &Inbound) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = inbound.wake.read();
                if inbound.is_cancelled() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                let mut fds = [
                    PollFd::new(file.as_fd(), PollFlags::POLLOUT),
                    PollFd::new(inbound.wake.as_fd(), PollFlags::POLLIN),
                ];
                poll_again(&mut fds, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until `wake` is readable.
pub(crate) fn wait_for(wake: &EventFd) -> io::Result<()> {
    let fd: BorrowedFd<'_> = wake.as_fd();
    Ok(poll_again(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE)?)
}

/// Waits for any of them, whatever signals come.
pub(crate) fn poll_again(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<()> {
    loop {
        match poll(fds, timeout) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What both threads share with the session.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) connection: Arc<Connection>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) outbound: Arc<Outbound>,
}

//! Standard input on its way: the bytes that the client sent and nobody took yet, at most one window of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iii_protocol::session::{KIND_CREDIT, MAX_DATA_BYTES, ReceiveWindow, WindowExceeded, credit_payload};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;

/// Shared by the reader of frames, which fills it and never waits, and one consumer.
#[derive(Debug)]
pub(crate) struct Inbound {
    state: Mutex<State>,
    /// Readable after a change.
    pub(crate) wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    window: ReceiveWindow,
    queue: VecDeque<Vec<u8>>,
    ended: bool,
    cancelled: bool,
    /// Where the consumer writes to, which does not block.
    door: Option<File>,
    /// The consumer has passed on all that it was given.
    idle: bool,
    /// Credit for what went through the door, to be told by the consumer.
    due: u32,
}

/// What the consumer gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Bytes, never none.
    Data(Vec<u8>),
    /// No more will come.
    End,
    /// The session is over, or its client gone: stop at once.
    Cancelled,
    /// Nothing yet: wait for [`Inbound::wake`].
    Nothing,
}

impl Inbound {
    pub(crate) fn new() -> io::Result<Inbound> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)?;
        Ok(Inbound { state: Mutex::default(), wake })
    }

    /// Lets bytes through this door whenever the consumer has nothing to do, instead of waking it: what it writes to,
    /// a file that does not block.
    pub(crate) fn open_door(&self, door: File) {
        self.lock().door = Some(door);
    }

    /// Nothing goes through any more.
    pub(crate) fn close_door(&self) {
        self.lock().door = None;
    }

    /// Bytes from the client.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<(), WindowExceeded> {
        let mut state = self.lock();
        state.window.received(bytes.len())?;
        let through = match &state.door {
            // An error is for the consumer to see.
            Some(door) if state.idle && state.queue.is_empty() => (&*door).write(bytes).unwrap_or(0),
            _ => 0,
        };
        let rest = &bytes[through..];
        let credit = state.window.taken(through).unwrap_or(0);
        state.due += credit;
        // Small pieces are joined, so that the window bounds the memory whatever the pieces are.
        match state.queue.back_mut() {
            Some(last) if last.len() + rest.len() <= MAX_DATA_BYTES => last.extend_from_slice(rest),
            _ if rest.is_empty() => {}
            _ => state.queue.push_back(rest.to_vec()),
        }
        drop(state);
        if credit > 0 || !rest.is_empty() {
            self.poke();
        }
        Ok(())
    }

    /// Tells the client of what went through the door. To be asked after each [`Inbound::next`]: whoever reads from the
    /// client does not send, for it must never wait for a client that does not read.
    pub(crate) fn tell_due(&self, connection: &Connection) -> io::Result<()> {
        // Not locked any more while it is sent.
        let due = std::mem::take(&mut self.lock().due);
        if due == 0 { Ok(()) } else { connection.send(KIND_CREDIT, &credit_payload(due)) }
    }

    /// Whether the client has said that there are no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// No more will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.poke();
    }

    /// The session is over, or its client gone.
    pub(crate) fn cancel(&self) {
        self.lock().cancelled = true;
        self.poke();
    }

    /// The next piece. To be answered with [`Inbound::taken`].
    pub(crate) fn next(&self) -> Next {
        // Empty is as good as emptied.
        let _ = self.wake.read();
        let mut state = self.lock();
        if state.cancelled {
            return Next::Cancelled;
        }
        let next = state.queue.pop_front();
        state.idle = next.is_none();
        match next {
            Some(bytes) => Next::Data(bytes),
            None if state.ended => Next::End,
            None => Next::Nothing,
        }
    }

    /// Whether to stop at once.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// `bytes` were passed on: tells the client when it is worth a frame.
    pub(crate) fn taken(&self, bytes: usize, connection: &Connection) -> io::Result<()> {
        let credit = self.lock().window.taken(bytes);
        match credit {
            Some(credit) => connection.send(KIND_CREDIT, &credit_payload(credit)),
            None => Ok(()),
        }
    }

    fn poke(&self) {
        // Fails only when it is readable as it is.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Standard input as a stream of bytes, for a session that is not a command. A read waits for the client; the
/// end comes when the client says so, and a client that has left is the error `ConnectionAborted`.
#[derive(Debug)]
pub(crate) struct SessionReader {
    inbound: Arc<Inbound>,
    connection: Arc<Connection>,
    rest: io::Cursor<Vec<u8>>,
}

impl SessionReader {
    pub(super) fn new(inbound: Arc<Inbound>, connection: Arc<Connection>) -> SessionReader {
        SessionReader { inbound, connection, rest: io::Cursor::default() }
    }
}

impl Read for SessionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.rest.read(buffer)?;
            if read > 0 {
                self.inbound.taken(read, &self.connection)?;
                return Ok(read);
            }
            match self.inbound.next() {
                Next::Data(bytes) => self.rest = io::Cursor::new(bytes),
                Next::End => return Ok(0),
                Next::Cancelled => return Err(io::ErrorKind::ConnectionAborted.into()),
                Next::Nothing => super::pump::wait_for(&self.inbound.wake)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn an_idle_consumer_is_passed_by_and_a_busy_one_is_not_overtaken() {
        let (mut reader, writer) = pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let inbound = Inbound::new().unwrap();
        inbound.open_door(File::from(OwnedFd::from(writer)));
        inbound.push(b"before it asks").unwrap();
        assert_eq!(inbound.next(), Next::Data(b"before it asks".to_vec()));
        inbound.push(b"while it is busy").unwrap();
        assert_eq!(inbound.next(), Next::Data(b"while it is busy".to_vec()));
        assert_eq!(inbound.next(), Next::Nothing);
        inbound.push(b"through").unwrap();
        assert_eq!(inbound.next(), Next::Nothing);
        // More than a pipe holds: the rest is the consumer's.
        let much = vec![7; MAX_DATA_BYTES];
        inbound.push(&much).unwrap();
        inbound.push(b"behind it").unwrap();
        let Next::Data(rest) = inbound.next() else { panic!("it has the rest") };
        let through = much.len() + b"behind it".len() - rest.len();
        assert!(0 < through && through < much.len());
        assert_eq!(rest, [&much[through..], b"behind it"].concat());
        inbound.end();
        assert_eq!(inbound.next(), Next::End);
        inbound.close_door();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, [b"through", &much[..through]].concat());
    }
}

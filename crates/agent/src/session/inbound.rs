//! Standard input on its way: the bytes that the client sent and nobody took yet, at most one window of them.

use std::collections::VecDeque;
use std::io::{self, Read};
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

    /// Bytes from the client.
    pub(crate) fn push(&self, bytes: Vec<u8>) -> Result<(), WindowExceeded> {
        let mut state = self.lock();
        state.window.received(bytes.len())?;
        // Small pieces are joined, so that the window bounds the memory whatever the pieces are.
        match state.queue.back_mut() {
            Some(last) if last.len() + bytes.len() <= MAX_DATA_BYTES => last.extend_from_slice(&bytes),
            _ if bytes.is_empty() => {}
            _ => state.queue.push_back(bytes),
        }
        drop(state);
        self.poke();
        Ok(())
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
        match state.queue.pop_front() {
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

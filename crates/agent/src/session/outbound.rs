//! What may be sent to the client: its window, and whether it still wants it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iii_protocol::session::{KIND_STDERR, KIND_STDOUT, MAX_DATA_BYTES, SendWindow, TooMuchCredit};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;

/// Shared by the reader of frames, which changes it, and one sender of data, which waits for changes.
#[derive(Debug)]
pub(crate) struct Outbound {
    state: Mutex<View>,
    /// Readable after a change.
    pub(crate) wake: EventFd,
}

/// The state of things at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View {
    window: SendWindow,
    /// Nobody reads standard output any more.
    pub(crate) stdout_closed: bool,
    /// Likewise.
    pub(crate) stderr_closed: bool,
    /// The client is gone: what comes is thrown away.
    pub(crate) lost: bool,
    /// All writers are gone: what can be read now is all there will ever be.
    pub(crate) draining: bool,
}

impl View {
    /// Bytes that may be sent now.
    pub(crate) fn room(&self) -> usize {
        self.window.room()
    }
}

impl Outbound {
    pub(crate) fn new() -> io::Result<Outbound> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)?;
        Ok(Outbound { state: Mutex::default(), wake })
    }

    /// The client took `bytes`.
    pub(crate) fn credited(&self, bytes: u32) -> Result<(), TooMuchCredit> {
        let result = self.lock().window.credited(bytes);
        self.poke();
        result
    }

    /// Nobody reads standard output any more.
    pub(crate) fn close_stdout(&self) {
        self.change(|state| state.stdout_closed = true);
    }

    /// Nobody reads standard error any more.
    pub(crate) fn close_stderr(&self) {
        self.change(|state| state.stderr_closed = true);
    }

    /// The client is gone.
    pub(crate) fn lose(&self) {
        self.change(|state| state.lost = true);
    }

    /// No process that could write is left.
    pub(crate) fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    /// As it is now; changes from here on make [`Outbound::wake`] readable.
    pub(crate) fn view(&self) -> View {
        // Empty is as good as emptied.
        let _ = self.wake.read();
        *self.lock()
    }

    /// `bytes` go out; at most the room of the last view, for this is the only sender.
    pub(crate) fn sent(&self, bytes: usize) {
        self.lock().window.sent(bytes);
    }

    fn change(&self, it: impl FnOnce(&mut View)) {
        it(&mut self.lock());
        self.poke();
    }

    fn poke(&self) {
        // Fails only when it is readable as it is.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Standard output or standard error as a stream of bytes, for a session that is not a command. A write waits until the
/// client has room, and fails with `BrokenPipe` when nobody reads any more. It makes frames as large as the
/// writes, so these should be large ([`MAX_DATA_BYTES`]).
#[derive(Debug)]
pub(crate) struct SessionWriter {
    outbound: Arc<Outbound>,
    connection: Arc<Connection>,
    kind: u8,
}

impl SessionWriter {
    pub(super) fn stdout(outbound: Arc<Outbound>, connection: Arc<Connection>) -> SessionWriter {
        SessionWriter { outbound, connection, kind: KIND_STDOUT }
    }

    pub(super) fn stderr(outbound: Arc<Outbound>, connection: Arc<Connection>) -> SessionWriter {
        SessionWriter { outbound, connection, kind: KIND_STDERR }
    }
}

impl Write for SessionWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            let view = self.outbound.view();
            let closed = if self.kind == KIND_STDOUT { view.stdout_closed } else { view.stderr_closed };
            if view.lost || closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let size = view.room().min(bytes.len()).min(MAX_DATA_BYTES);
            if size > 0 {
                self.outbound.sent(size);
                self.connection.send(self.kind, &bytes[..size])?;
                return Ok(size);
            }
            super::pump::wait_for(&self.outbound.wake)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

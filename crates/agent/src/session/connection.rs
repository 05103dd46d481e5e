//! The sending half of a session's connection, and its end.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use iii_protocol::frame::{Frame, HEADER_BYTES, encode};
use nix::sys::socket::{Shutdown, shutdown};

/// One connected stream socket, read by one thread and written by several.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: File,
    /// Held while a frame is written, so that each is whole.
    sending: Mutex<()>,
}

impl Connection {
    pub(crate) fn new(stream: OwnedFd) -> Connection {
        Connection { stream: stream.into(), sending: Mutex::new(()) }
    }

    /// The half to read from.
    pub(crate) fn stream(&self) -> &File {
        &self.stream
    }

    /// Sends one frame. Waits while the peer does not read; [`Connection::close`] ends that.
    pub(crate) fn send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        encode(kind, payload, &mut bytes).map_err(io::Error::other)?;
        self.send_encoded(&bytes)
    }

    /// Sends one control frame.
    pub(crate) fn send_json<T: serde::Serialize>(&self, kind: u8, value: &T) -> io::Result<()> {
        let frame = Frame::json(kind, value);
        self.send(frame.kind, &frame.payload)
    }

    /// Sends the bytes of a whole frame.
    pub(crate) fn send_encoded(&self, frame: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.stream).write_all(frame)
    }

    /// Ends the connection for both sides and wakes whoever reads or writes here.
    pub(crate) fn close(&self) {
        // An error means that the peer has done so already.
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }
}

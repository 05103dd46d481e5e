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
    /// Held while a frame is written, so that each is whole. In it is what goes out together with the next frame.
    sending: Mutex<Vec<u8>>,
}

impl Connection {
    pub(crate) fn new(stream: OwnedFd) -> Connection {
        Connection { stream: stream.into(), sending: Mutex::default() }
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
        let mut held_back = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        if held_back.is_empty() {
            return (&self.stream).write_all(frame);
        }
        held_back.extend_from_slice(frame);
        (&self.stream).write_all(&std::mem::take(&mut *held_back))
    }

    /// Sends one control frame together with the next one, or with [`Connection::send_held_back`].
    pub(crate) fn hold_back<T: serde::Serialize>(&self, kind: u8, value: &T) -> io::Result<()> {
        let frame = Frame::json(kind, value);
        let mut held_back = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        encode(frame.kind, &frame.payload, &mut held_back).map_err(io::Error::other)
    }

    /// Sends what is held back, if it did not go out yet.
    pub(crate) fn send_held_back(&self) -> io::Result<()> {
        self.send_encoded(&[])
    }

    /// Ends the connection for both sides and wakes whoever reads or writes here.
    pub(crate) fn close(&self) {
        // An error means that the peer has done so already.
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }
}

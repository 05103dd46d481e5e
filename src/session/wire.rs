//! A connected socket whose owner is woken for nothing that it does not wait for.
//!
//! tokio's own registers for both at once: what can be read, and room to write. A Unix socket tells of room whenever its
//! peer has read something, so that half of all wakes of whoever passes bytes on would be for nothing.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use iii_protocol::session::MAX_DATA_BYTES;
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[expect(
    deprecated,
    reason = "the newer one cannot be called here, for the sake of types that change their descriptor; this one keeps it"
)]
fn register(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

/// A socket that does not block, registered for reading.
#[derive(Debug)]
pub struct Wire(AsyncFd<UnixStream>);

/// The same socket while its owner waits for room, by a descriptor of its own.
#[derive(Debug)]
pub struct Room(AsyncFd<UnixStream>);

impl Wire {
    /// Registers a socket that does not block, within a runtime.
    pub fn new(stream: UnixStream) -> io::Result<Wire> {
        // So that a frame of data fits in, and whoever writes one is not woken for the rest. Less works as well.
        let _ = setsockopt(&stream, SndBuf, &MAX_DATA_BYTES);
        register(stream, Interest::READABLE).map(Wire)
    }

    /// Waits until [`Wire::try_read`] is worth it.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Does the given read, which says `WouldBlock` when there is nothing to read, and is then not done again before there is.
    pub fn try_read<R>(&self, read: impl FnOnce(&UnixStream) -> io::Result<R>) -> io::Result<R> {
        self.0.try_io(Interest::READABLE, read)
    }

    /// Waits for bytes and takes those that are there and fit; 0 at the end. One that is cancelled has taken none.
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.socket().read(into) {
                Ok(read) => {
                    // There were no more of them. If some have come since, the runtime has an event that is newer than
                    // what is cleared here.
                    if read < into.len() {
                        ready.clear_ready();
                    }
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes what there is room for now: nothing is no error.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket().write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// The socket itself, for what neither waits nor says `WouldBlock` of reading.
    pub fn socket(&self) -> &UnixStream {
        self.0.get_ref()
    }

    /// To be held for as long as there is something to write and no room.
    pub fn room(&self) -> io::Result<Room> {
        register(self.socket().try_clone()?, Interest::WRITABLE).map(Room)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl Room {
    /// Waits for room and writes what there is room for. One that is cancelled has written none.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write_by(|mut socket| socket.write(bytes)).await
    }

    /// Waits for room and does the given write. That says `WouldBlock` when there is none after all, and is tried again.
    pub async fn write_by<R>(&self, write: impl FnMut(&UnixStream) -> io::Result<R>) -> io::Result<R> {
        self.0.async_io(Interest::WRITABLE, write).await
    }
}

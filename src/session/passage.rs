//! Standard output straight from the connection into a pipe of the caller's, for as long as that takes it.
//!
//! Bytes that are only passed on need not be copied here and away again (splice(2)). While that cannot be, they are
//! read like all others: when the pipe is full or its reader has gone, and while something that was read is not written
//! yet.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use iii_protocol::frame::{FrameError, HEADER_BYTES, parse_header};
use iii_protocol::session::{KIND_STDOUT, MAX_DATA_BYTES};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use super::Lost;
use super::wire::Wire;

/// A frame of output as large as this tells that more of the kind come. For small ones, reading all there is takes
/// fewer calls than looking at each header.
const BULK_BYTES: usize = 32 * 1024;

/// What the reader of standard output shares with the one who moves the frames.
#[derive(Debug, Default)]
pub(super) struct Exit {
    /// Where all of it goes in the end.
    pub(super) pipe: OnceLock<File>,
    /// Bytes that the reader has and did not deal with yet.
    pub(super) behind: AtomicUsize,
}

/// The way from the connection into the pipe.
#[derive(Debug, Default)]
pub(super) struct Passage {
    exit: Arc<Exit>,
    is_bulk: bool,
    is_broken: bool,
    /// Bytes of a frame of output that are still to come.
    left: usize,
}

/// What a try to pass bytes on came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// So many are in the pipe.
    Bytes(usize),
    /// None can be passed now: read.
    Nothing,
    /// The connection has ended.
    End,
}

impl Passage {
    pub(super) fn to(exit: Arc<Exit>) -> Passage {
        Passage { exit, ..Passage::default() }
    }

    /// A frame of output came by another way.
    pub(super) fn saw(&mut self, bytes: usize) {
        let is_bulk = bytes >= BULK_BYTES;
        if let (true, false, Some(pipe)) = (is_bulk, self.is_bulk, self.exit.pipe.get()) {
            // A frame at a time; a pipe that may not grow works as well.
            let _ = fcntl_setpipe_size(pipe, MAX_DATA_BYTES);
        }
        self.is_bulk = is_bulk;
    }

    /// Whether the next frame's header should be looked at by itself.
    pub(super) fn is_open(&self) -> bool {
        self.is_bulk && self.pipe().is_some()
    }

    /// If this is the header of a frame of output: its payload, so many bytes, is to be [passed on](Passage::pass).
    pub(super) fn enter(&mut self, received: &[u8]) -> Result<Option<usize>, FrameError> {
        let Ok(header) = <[u8; HEADER_BYTES]>::try_from(received) else { return Ok(None) };
        let (kind, bytes) = parse_header(header)?;
        if kind != KIND_STDOUT || bytes == 0 || !self.is_open() {
            return Ok(None);
        }
        self.is_bulk = bytes >= BULK_BYTES;
        self.left = bytes;
        Ok(Some(bytes))
    }

    /// Bytes of the frame that is being passed on which are still to come.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Some of them were read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.left -= bytes;
    }

    /// Passes on what is there.
    pub(super) fn pass(&mut self, from: &Wire) -> Passed {
        let Some(pipe) = self.pipe() else { return Passed::Nothing };
        match splice(from, None, pipe, None, self.left, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Ok(0) => Passed::End,
            Ok(bytes) => {
                self.left -= bytes;
                Passed::Bytes(bytes)
            }
            // One of the two has to be waited for; whoever reads finds out which.
            Err(Errno::AGAIN | Errno::INTR) => Passed::Nothing,
            // Whoever writes there is told the same.
            Err(_) => {
                self.is_broken = true;
                Passed::Nothing
            }
        }
    }

    /// The pipe, if nothing is to be written there before.
    fn pipe(&self) -> Option<&File> {
        let is_free = !self.is_broken && self.exit.behind.load(Ordering::Acquire) == 0;
        self.exit.pipe.get().filter(|_| is_free)
    }
}

/// Reads what is there, at most so many bytes; nothing is no error.
pub(super) fn read_some(from: &Wire, into: &mut BytesMut, most: usize) -> Result<(), Lost> {
    let mut read = Vec::with_capacity(most);
    match from.try_read(|socket| Ok(rustix::io::read(socket, spare_capacity(&mut read))?)) {
        Ok(0) => return Err(Lost::Disconnected),
        Ok(_) => {}
        Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => {
            return Ok(());
        }
        Err(_) => return Err(Lost::Disconnected),
    }
    if into.is_empty() {
        // Which copies nothing.
        *into = Bytes::from(read).into();
    } else {
        into.extend_from_slice(&read);
    }
    Ok(())
}

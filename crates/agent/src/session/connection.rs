//! The sending half of a session's connection, and its end.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use iii_protocol::frame::{Frame, HEADER_BYTES, encode, header};
use iii_protocol::session::MAX_DATA_BYTES;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;

/// Lets a pipe hold as much as a frame of data; one that may not grow works as well.
pub(super) fn make_room_for_a_frame(pipe: impl AsFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(MAX_DATA_BYTES as i32));
}

/// A pipe that is empty between two frames: pages of another pipe go through it, behind their header.
#[derive(Debug)]
pub(crate) struct Relay {
    read: File,
    write: File,
}

impl Relay {
    pub(crate) fn new() -> io::Result<Relay> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        make_room_for_a_frame(&write);
        Ok(Relay { read: read.into(), write: write.into() })
    }

    /// Moves `missing` bytes from `pipe` to `target`, behind the `inside` ones that are in here.
    fn carry(&self, pipe: &File, mut missing: usize, target: &File, mut inside: usize) -> io::Result<()> {
        while inside + missing > 0 {
            while missing > 0 {
                match splice(pipe, None, &self.write, None, missing, SpliceFFlags::SPLICE_F_NONBLOCK) {
                    // Somebody else has read what was there.
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(moved) => (missing, inside) = (missing - moved, inside + moved),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) if inside > 0 => break,
                    Err(error) => return Err(error.into()),
                }
            }
            while inside > 0 {
                match splice(&self.read, None, target, None, inside, SpliceFFlags::empty()) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(moved) => inside -= moved,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

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

    /// Sends one frame with the next so many bytes of a pipe, which are there and have no other reader. They are not
    /// copied to here, but go through `relay`.
    pub(crate) fn send_piped(&self, kind: u8, pipe: &File, bytes: usize, relay: &Relay) -> io::Result<()> {
        let header = header(kind, bytes).map_err(io::Error::other)?;
        let mut held_back = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = std::mem::take(&mut *held_back);
        first.extend_from_slice(&header);
        let sent = (&relay.write).write_all(&first);
        let sent = sent.and_then(|()| relay.carry(pipe, bytes, &self.stream, first.len()));
        if sent.is_err() {
            // Nothing may come behind a frame that is cut off.
            self.close();
        }
        sent
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

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::unix::net::UnixStream;

    use iii_protocol::frame::read_frame;
    use iii_protocol::session::{KIND_STARTED, KIND_STDOUT, Started};

    use super::*;

    #[test]
    fn bytes_of_a_pipe_become_one_frame_behind_what_was_held_back() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(ours.into());
        let relay = Relay::new().unwrap();
        let (reader, writer) = pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let (reader, mut writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
        let started = Started { session: 1, pid: 2 };
        connection.hold_back(KIND_STARTED, &started).unwrap();
        let receiver = std::thread::spawn(move || {
            let mut frames = Vec::new();
            while let Some(frame) = read_frame(&mut theirs).unwrap() {
                frames.push(frame);
            }
            frames
        });
        let mut wanted = Vec::new();
        for round in 0..20u8 {
            // More pieces than the relay has room for at a time, and none of a page.
            let bytes: Vec<u8> = (0..200_000u32).map(|at| (at / 7) as u8 ^ round).collect();
            for piece in bytes.chunks(997) {
                writer.write_all(piece).unwrap();
            }
            connection.send_piped(KIND_STDOUT, &reader, 150_000, &relay).unwrap();
            connection.send(KIND_STDOUT, b"between").unwrap();
            connection.send_piped(KIND_STDOUT, &reader, 50_000, &relay).unwrap();
            wanted.extend([bytes[..150_000].to_vec(), b"between".to_vec(), bytes[150_000..].to_vec()]);
        }
        connection.close();
        let frames = receiver.join().unwrap();
        assert_eq!(frames[0].parse::<Started>().unwrap(), started);
        assert!(frames[1..].iter().map(|frame| &frame.payload).eq(&wanted));
    }
}

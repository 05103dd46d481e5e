//! Frames on their way out: what was put together here, and data that is sent from where it lies.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::os::unix::net::UnixStream;

use bytes::{Buf as _, Bytes, BytesMut};
use iii_protocol::frame::header;

/// Data shorter than this is put behind its header instead of being sent from where it lies.
const COPIED_BYTES: usize = 4096;
/// The most pieces that go out with one write.
const MAX_PIECES: usize = 16;

/// The frames that the carrier has not taken yet, in their order.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Whole but for the last one.
    pieces: VecDeque<Bytes>,
    /// The last one.
    open: BytesMut,
    bytes: usize,
}

impl Outgoing {
    /// Begins with `unsent`.
    pub(super) fn new(unsent: BytesMut) -> Outgoing {
        Outgoing { pieces: VecDeque::new(), bytes: unsent.len(), open: unsent }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Puts a frame behind the others.
    pub(super) fn put(&mut self, kind: u8, payload: Bytes) {
        // Only OPEN could be too long, and that was looked at.
        let Ok(header) = header(kind, payload.len()) else { return };
        self.open.extend_from_slice(&header);
        self.bytes += header.len() + payload.len();
        if payload.len() < COPIED_BYTES {
            self.open.extend_from_slice(&payload);
        } else {
            self.pieces.push_back(self.open.split().freeze());
            self.pieces.push_back(payload);
        }
    }

    /// Sends what the carrier takes now; `WouldBlock` when that is nothing.
    pub(super) fn write(&mut self, mut to: &UnixStream) -> io::Result<()> {
        let waiting = self.bytes;
        while self.bytes > 0 {
            if !self.open.is_empty() {
                self.pieces.push_back(self.open.split().freeze());
            }
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count =
                self.pieces.iter().zip(&mut slices).map(|(it, slice)| *slice = IoSlice::new(it)).count();
            match to.write_vectored(&slices[..count]) {
                Ok(written) => self.advance(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.bytes < waiting => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.pieces.front_mut() {
            let of_it = written.min(first.len());
            first.advance(of_it);
            written -= of_it;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
    }

    /// Forgets them all.
    pub(super) fn clear(&mut self) {
        *self = Outgoing::default();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::session::wire::Wire;

    #[tokio::test]
    async fn frames_go_out_whole_and_in_order_whatever_is_taken_at_a_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Wire::new(ours).unwrap();
        let mut outgoing = Outgoing::new(BytesMut::from(&b"before"[..]));
        let mut wanted = b"before".to_vec();
        for number in 0..200u8 {
            let payload =
                vec![number; [0, 1, COPIED_BYTES - 1, COPIED_BYTES, 100_000][usize::from(number) % 5]];
            wanted.extend(header(number, payload.len()).unwrap());
            wanted.extend(&payload);
            outgoing.put(number, payload.into());
        }
        assert_eq!(outgoing.len(), wanted.len());
        // Nobody reads yet.
        outgoing.write(ours.socket()).unwrap();
        assert!(0 < outgoing.len() && outgoing.len() < wanted.len());
        assert_eq!(outgoing.write(ours.socket()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let reader = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).map(|_| got)
        });
        let room = ours.room().unwrap();
        while outgoing.len() > 0 {
            room.write_by(|socket| outgoing.write(socket)).await.unwrap();
        }
        drop((room, ours));
        assert!(reader.await.unwrap().unwrap() == wanted);
    }
}

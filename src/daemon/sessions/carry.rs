//! Bytes of one session, both ways.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use iii_protocol::frame::{HEADER_BYTES, MAX_FRAME_BYTES};
use iii_protocol::session::{END_LINGER_MS, MAX_DATA_BYTES, WINDOW_BYTES};
use tokio::net::UnixStream;

use super::order::{Down, Up};

/// What may wait in one direction for an end that does not read. An honest sender has at most the window on
/// the way, even in frames of one byte, and besides that control frames, of which OPEN may be large.
pub const MAX_WAITING_BYTES: usize = WINDOW_BYTES * (HEADER_BYTES + 1) + MAX_FRAME_BYTES;
/// Bytes read at a time.
const READ_BYTES: usize = MAX_DATA_BYTES;
/// Likewise where all of them are thrown away.
const FORGOTTEN_BYTES: usize = 4096;
/// How long a client may stay after END.
const END_LINGER: Duration = Duration::from_millis(END_LINGER_MS);

/// Why bytes are carried no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// One of the ends is closed, and what the guest had sent is with the client.
    Closed,
    /// The session has ended and its client has left, and the guest takes another one on this connection.
    Again,
    /// More than [`MAX_WAITING_BYTES`] from the guest that the client does not read.
    GuestExceeded,
    /// Likewise the other way.
    ClientExceeded,
}

/// Carries bytes both ways until an end closes. `first` came with the client's request.
pub(super) async fn carry(client: &UnixStream, first: Bytes, guest: &UnixStream) -> Carried {
    let (mut above, mut below) = (Up::default(), Down::default());
    let mut rising = BytesMut::from(first);
    above.look(&rising);
    let up = async {
        let look = |waiting: &mut BytesMut, new| {
            above.look(&waiting[new..]);
            false
        };
        match pump(client, guest, &mut rising, look).await {
            Pumped::SourceClosed | Pumped::SourceEnded => Carried::Closed,
            Pumped::Exceeded => Carried::ClientExceeded,
            // The guest's last words may still be on the way: they decide. Until then the client's are
            // thrown away, so that its leaving is seen.
            Pumped::TargetClosed => {
                drain(client, |_| {}).await;
                Carried::Closed
            }
        }
    };
    let down = async {
        let mut waiting = BytesMut::new();
        let look = |waiting: &mut BytesMut, new| {
            // What comes behind END is for us.
            let behind = below.look(&waiting[new..]);
            waiting.truncate(waiting.len() - behind);
            below.has_ended()
        };
        match pump(guest, client, &mut waiting, look).await {
            Pumped::SourceClosed => {
                deliver(client, waiting).await;
                Carried::Closed
            }
            // The client closes when it has read all, however long that takes, or else we.
            Pumped::SourceEnded => {
                let told = async {
                    deliver(client, waiting).await;
                    tokio::time::sleep(END_LINGER).await;
                };
                let behind = drain(guest, |bytes| {
                    below.look(bytes);
                });
                // One that closes now changes nothing.
                tokio::select! {
                    () = told => {}
                    () = async { behind.await; pending().await } => {}
                }
                Carried::Closed
            }
            Pumped::Exceeded => Carried::GuestExceeded,
            Pumped::TargetClosed => Carried::Closed,
        }
    };
    let end = tokio::select! {
        end = up => end,
        end = down => end,
    };
    let in_order = rising.is_empty() && above.is_in_order() && below.takes_another();
    if end == Carried::Closed && in_order { Carried::Again } else { end }
}

/// How one direction ended.
enum Pumped {
    /// Nothing more comes; what was not yet taken is still waiting.
    SourceClosed,
    /// Likewise, but it is still there.
    SourceEnded,
    /// Nobody takes it any more.
    TargetClosed,
    /// More waits than may.
    Exceeded,
}

/// Reads all that comes, whether it can be written or not. `look` is given what waits after each read, and where the
/// new part of it begins; it tells whether that was the last.
async fn pump(
    from: &UnixStream,
    to: &UnixStream,
    waiting: &mut BytesMut,
    mut look: impl FnMut(&mut BytesMut, usize) -> bool,
) -> Pumped {
    loop {
        // What has just been read can nearly always be written at once.
        if !waiting.is_empty() && !write_some(to, waiting) {
            return Pumped::TargetClosed;
        }
        let writable = tokio::select! {
            ready = from.readable() => {
                if ready.is_err() {
                    return Pumped::SourceClosed;
                }
                false
            }
            _ = to.writable(), if !waiting.is_empty() => true,
        };
        if writable {
            continue;
        }
        waiting.reserve(READ_BYTES);
        let before = waiting.len();
        match from.try_read_buf(waiting) {
            Ok(0) => return Pumped::SourceClosed,
            Ok(_) if waiting.len() > MAX_WAITING_BYTES => return Pumped::Exceeded,
            Ok(_) if look(waiting, before) => return Pumped::SourceEnded,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Pumped::SourceClosed,
        }
    }
}

/// Whether the target is still there.
fn write_some(to: &UnixStream, waiting: &mut BytesMut) -> bool {
    match to.try_write(waiting) {
        Ok(written) => waiting.advance(written),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => return false,
    }
    true
}

/// Writes what is left, for as long as the target is there.
async fn deliver(to: &UnixStream, mut rest: BytesMut) {
    while !rest.is_empty() && write_some(to, &mut rest) {
        if !rest.is_empty() && to.writable().await.is_err() {
            return;
        }
    }
}

/// Reads and forgets, until the source closes.
async fn drain(from: &UnixStream, mut look: impl FnMut(&[u8])) {
    let mut forgotten = BytesMut::with_capacity(FORGOTTEN_BYTES);
    while from.readable().await.is_ok() {
        forgotten.clear();
        match from.try_read_buf(&mut forgotten) {
            Ok(0) => return,
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) => look(&forgotten),
            Err(_) => {}
        }
    }
}

//! Bytes of one session, both ways.

use std::future::pending;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use iii_protocol::frame::{HEADER_BYTES, MAX_FRAME_BYTES};
use iii_protocol::session::{END_LINGER_MS, MAX_DATA_BYTES, WINDOW_BYTES};

use super::order::{Down, Place, Up};
use crate::session::wire::{Room, Wire};

/// What may wait in one direction for an end that does not read. An honest sender has at most the window on
/// the way, even in frames of one byte, and besides that control frames, of which OPEN may be large.
pub const MAX_WAITING_BYTES: usize = WINDOW_BYTES * (HEADER_BYTES + 1) + MAX_FRAME_BYTES;
/// Bytes read at a time: a whole frame of data.
const READ_BYTES: usize = HEADER_BYTES + MAX_DATA_BYTES;
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
pub(super) async fn carry(client: &Wire, first: Bytes, guest: &Wire) -> Carried {
    let (mut above, mut below) = (Up::default(), Down::default());
    let mut rising = BytesMut::from(first);
    above.look(&rising);
    let up = async {
        let look = |bytes: &[u8]| {
            above.look(bytes);
            Seen { passed: bytes.len(), place: above.place(), is_last: false }
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
        let look = |bytes: &[u8]| {
            // What comes behind END is for us.
            let behind = below.look(bytes);
            Seen { passed: bytes.len() - behind, place: below.place(), is_last: below.has_ended() }
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

/// What there is to know of bytes that were read.
struct Seen {
    /// How many of them are to be passed on.
    passed: usize,
    /// Behind them.
    place: Place,
    /// Nothing comes behind them.
    is_last: bool,
}

/// Reads all that comes, whether it can be written or not, and shows it to `look`.
///
/// A frame that fits into one read is passed on when it is whole: its sender has written it in one go, and whoever gets
/// it should not be woken for each packet that it came in.
async fn pump(from: &Wire, to: &Wire, waiting: &mut BytesMut, mut look: impl FnMut(&[u8]) -> Seen) -> Pumped {
    if !write_some(to, waiting) {
        return Pumped::TargetClosed;
    }
    // The first so many bytes are of one frame, whose last ones are still to come.
    let (mut chunk, mut held) = (vec![0; READ_BYTES], 0);
    let mut whole_frames = 0;
    // There is one while something waits.
    let mut room: Option<Room> = None;
    loop {
        if waiting.is_empty() {
            room = None;
        } else if room.is_none() {
            let Ok(new) = to.room() else { return Pumped::TargetClosed };
            room = Some(new);
        }
        let written = async {
            match &room {
                Some(room) => room.write(waiting).await,
                None => pending().await,
            }
        };
        let read = tokio::select! {
            read = from.read(&mut chunk[held..]) => read,
            written = written => {
                let Ok(written) = written else { return Pumped::TargetClosed };
                waiting.advance(written);
                continue;
            }
        };
        let Ok(read @ 1..) = read else {
            waiting.extend_from_slice(&chunk[..held]);
            return Pumped::SourceClosed;
        };
        let seen = look(&chunk[held..held + read]);
        held += seen.passed;
        let ends_a_frame = seen.place.whole != whole_frames;
        whole_frames = seen.place.whole;
        if !ends_a_frame && !seen.is_last && (1..=chunk.len() - held).contains(&seen.place.missing) {
            continue;
        }
        let mut new = &chunk[..held];
        // What has just been read can nearly always be written at once.
        if waiting.is_empty() {
            let Ok(written) = to.try_write(new) else { return Pumped::TargetClosed };
            new = &new[written..];
        }
        waiting.extend_from_slice(new);
        held = 0;
        if waiting.len() > MAX_WAITING_BYTES {
            return Pumped::Exceeded;
        }
        if seen.is_last {
            return Pumped::SourceEnded;
        }
    }
}

/// Whether the target is still there.
fn write_some(to: &Wire, waiting: &mut BytesMut) -> bool {
    waiting.is_empty() || to.try_write(waiting).map(|written| waiting.advance(written)).is_ok()
}

/// Writes what is left, for as long as the target is there.
async fn deliver(to: &Wire, mut rest: BytesMut) {
    if !write_some(to, &mut rest) || rest.is_empty() {
        return;
    }
    let Ok(room) = to.room() else { return };
    while !rest.is_empty() {
        let Ok(written) = room.write(&rest).await else { return };
        rest.advance(written);
    }
}

/// Reads and forgets, until the source closes.
async fn drain(from: &Wire, mut look: impl FnMut(&[u8])) {
    let mut forgotten = [0; FORGOTTEN_BYTES];
    while let Ok(read @ 1..) = from.read(&mut forgotten).await {
        look(&forgotten[..read]);
    }
}

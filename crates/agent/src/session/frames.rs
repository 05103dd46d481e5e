//! The receiving half: frames of the client become deeds, one thread per session. It never waits for
//! anything but the client, so that the client's connection is always read.

use std::io::BufReader;
use std::sync::{Arc, Mutex, PoisonError};

use iii_protocol::frame::{Frame, FrameError, read_frame_into};
use iii_protocol::session::{
    self, KIND_CLOSE_STDERR, KIND_CLOSE_STDOUT, KIND_CREDIT, KIND_KILL, KIND_OPEN, KIND_RESIZE, KIND_SIGNAL,
    KIND_STDIN, KIND_STDIN_END, MAX_DATA_BYTES, TerminalSize, TooMuchCredit, WindowExceeded, parse_credit,
};

use crate::sys::LAST_SIGNAL;

use super::connection::Connection;
use super::pump::Lines;

/// The most bytes of small frames that are gathered by one read of a connection; the payload of a larger one is read
/// by itself.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// A connection as the reading thread sees it.
pub(super) type FrameStream = BufReader<ConnectionReader>;

/// Reads of a shared connection.
#[derive(Debug)]
pub(crate) struct ConnectionReader(pub(crate) Arc<Connection>);

impl std::io::Read for ConnectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.stream().read(buffer)
    }
}

/// What a session of some task does with the frames that are not about bytes.
pub(super) trait Controls: Send {
    /// Sends this signal to the foreground.
    fn signal(&self, signal: i32);
    /// The terminal has another size.
    fn resize(&self, size: TerminalSize);
    /// Ends every process at once.
    fn kill(&self);
    /// The client does not look any more at what was the reason for all of this.
    fn close_stdout(&self);
    /// Whether STDIN may come.
    fn takes_input(&self) -> bool;
}

/// The client broke the contract.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Window(#[from] WindowExceeded),
    #[error(transparent)]
    Credit(#[from] TooMuchCredit),
    #[error("a frame of kind {0} is out of place")]
    Kind(u8),
    #[error("a frame of kind {0} does not hold what its kind promises")]
    Payload(u8),
}

/// What the client's frames are about.
pub(super) struct Followed {
    pub(super) lines: Lines,
    pub(super) controls: Box<dyn Controls>,
}

/// Does what the client says until it has left or broken the contract, which is the same. Once the session has ended and
/// there is nothing to follow any more, what it still says is ignored, up to the OPEN of another one, which is returned.
pub(super) fn follow(stream: &mut FrameStream, followed: &Mutex<Option<Followed>>) -> Option<Frame> {
    let mut frame = Frame { kind: 0, payload: Vec::new() };
    while let Ok(true) = read_frame_into(stream, &mut frame) {
        match &*followed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Followed { lines, controls }) => obey(&frame, lines, controls.as_ref()).ok()?,
            None if frame.kind == KIND_OPEN => return Some(frame),
            None => {}
        }
    }
    None
}

fn obey(frame: &Frame, lines: &Lines, controls: &dyn Controls) -> Result<(), Violation> {
    let kind = frame.kind;
    let empty = |frame: &Frame| if frame.payload.is_empty() { Ok(()) } else { Err(Violation::Payload(kind)) };
    match kind {
        KIND_STDIN => {
            let in_place = controls.takes_input() && !lines.inbound.has_ended();
            if !in_place {
                return Err(Violation::Kind(kind));
            }
            if frame.payload.len() > MAX_DATA_BYTES {
                return Err(Violation::Payload(kind));
            }
            lines.inbound.push(&frame.payload)?;
        }
        KIND_STDIN_END => {
            empty(frame)?;
            lines.inbound.end();
        }
        KIND_SIGNAL => {
            let signal = frame.parse::<session::Signal>()?.signal;
            if !(1..=LAST_SIGNAL).contains(&signal) {
                return Err(Violation::Payload(kind));
            }
            controls.signal(signal);
        }
        KIND_RESIZE => controls.resize(frame.parse()?),
        KIND_KILL => {
            empty(frame)?;
            controls.kill();
        }
        KIND_CREDIT => {
            let bytes = parse_credit(&frame.payload).ok_or(Violation::Payload(kind))?;
            lines.outbound.credited(bytes)?;
        }
        KIND_CLOSE_STDOUT => {
            empty(frame)?;
            lines.outbound.close_stdout();
            controls.close_stdout();
        }
        KIND_CLOSE_STDERR => {
            empty(frame)?;
            lines.outbound.close_stderr();
        }
        other => return Err(Violation::Kind(other)),
    }
    Ok(())
}

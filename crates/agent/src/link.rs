//! The agent's side of the control link: frames out under one lock, events in.

use std::fs::File;
use std::io::{self, BufReader};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};
use std::thread;

use iii_protocol::frame::{Frame, FrameError, read_frame, write_frame};
use iii_protocol::guest::{self, Stop};

use crate::console;
use crate::reaper::Ended;

/// How many events may wait for the main thread; it never waits for those who send them.
pub(crate) const EVENT_QUEUE: usize = 64;

/// What the main thread acts on.
#[derive(Debug)]
pub(crate) enum Event {
    /// The shim wants the workload to end.
    Stop(Stop),
    /// The workload is to be started.
    Go,
    /// The workload is to end, and to be started again.
    Restart(Stop),
    /// The shim has the exit on its disk.
    ExitAcknowledged,
    /// The shim is gone.
    LinkLost,
    /// The workload's process has ended.
    WorkloadEnded(Ended),
}

/// The sending half. A slow host makes senders wait: that is the back-pressure on the workload.
#[derive(Debug)]
pub(crate) struct LinkWriter(Mutex<File>);

impl LinkWriter {
    /// Sends on `stream` (any connected stream socket).
    pub(crate) fn new(stream: File) -> LinkWriter {
        LinkWriter(Mutex::new(stream))
    }

    /// Sends one frame, whole, in order with all others.
    pub(crate) fn send(&self, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
        write_frame(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), kind, payload)
    }

    /// Sends one control frame.
    pub(crate) fn send_json<T: serde::Serialize>(&self, kind: u8, value: &T) -> Result<(), FrameError> {
        let frame = Frame::json(kind, value);
        self.send(frame.kind, &frame.payload)
    }
}

/// Reads control frames in a thread of their own until the link ends.
pub(crate) fn forward_events(mut stream: BufReader<File>, events: SyncSender<Event>) -> io::Result<()> {
    thread::Builder::new().name("link".into()).spawn(move || {
        loop {
            let event = match read_frame(&mut stream) {
                Ok(Some(frame)) => match to_event(&frame) {
                    Ok(event) => event,
                    Err(error) => {
                        console::say(format_args!("giving up the control link: {error}"));
                        Event::LinkLost
                    }
                },
                Ok(None) | Err(_) => Event::LinkLost,
            };
            let last = matches!(event, Event::LinkLost);
            // A send fails only when the main thread is gone, and the process with it.
            if events.send(event).is_err() || last {
                return;
            }
        }
    })?;
    Ok(())
}

/// A control frame that is not legal after the boot plan.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame of kind {0} is not for the agent")]
    Kind(u8),
}

fn to_event(frame: &Frame) -> Result<Event, ControlError> {
    match frame.kind {
        guest::KIND_STOP => Ok(Event::Stop(frame.parse()?)),
        guest::KIND_GO => Ok(Event::Go),
        guest::KIND_RESTART => Ok(Event::Restart(frame.parse()?)),
        guest::KIND_EXIT_ACK => Ok(Event::ExitAcknowledged),
        other => Err(ControlError::Kind(other)),
    }
}

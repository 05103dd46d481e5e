//! The task that moves the frames of one session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use iii_protocol::frame::{Frame, HEADER_BYTES, MAX_FRAME_BYTES, frame_length};
use iii_protocol::session::{
    End, KIND_CLOSE_STDERR, KIND_CLOSE_STDOUT, KIND_CREDIT, KIND_END, KIND_STARTED, KIND_STDERR, KIND_STDIN,
    KIND_STDIN_CLOSED, KIND_STDIN_END, KIND_STDOUT, MAX_DATA_BYTES, ReceiveWindow, SendWindow, Started,
    credit_payload, parse_credit,
};
use tokio::sync::{mpsc, oneshot};

use super::outgoing::Outgoing;
use super::passage::{Exit, Passage, Passed, read_some};
use super::wire::{Room, Wire};
use super::{Fed, Lost, Taken};

/// Bytes of frames that may wait for the carrier before nothing more is put behind them.
const MAX_OUTGOING_BYTES: usize = 2 * MAX_DATA_BYTES;
/// Bytes read at a time.
const READ_BYTES: usize = MAX_DATA_BYTES;

/// Moves the frames of one session.
pub(super) struct Mover {
    pub(super) wire: Wire,
    /// There is one while the carrier has no room.
    pub(super) room: Option<Room>,
    /// What was read and is not yet a whole frame.
    pub(super) incoming: BytesMut,
    pub(super) outgoing: Outgoing,
    /// False once a write has failed: what is still to be read counts all the same.
    pub(super) can_write: bool,
    /// `None` after its end, or when nobody reads it.
    pub(super) input: Option<mpsc::Receiver<Fed>>,
    /// Input that the window had no room for.
    pub(super) pending: Bytes,
    pub(super) send_window: SendWindow,
    pub(super) receive_window: ReceiveWindow,
    /// STDOUT and STDERR; `None` when nobody reads them.
    pub(super) outputs: [Option<mpsc::UnboundedSender<Bytes>>; 2],
    pub(super) exits: [Arc<Exit>; 2],
    pub(super) passage: Passage,
    pub(super) started: Option<oneshot::Sender<Started>>,
    pub(super) taken: Arc<Taken>,
}

impl Mover {
    /// Until END, or until it cannot come any more.
    pub(super) async fn run(&mut self, mut control: mpsc::Receiver<Frame>) -> Result<End, Lost> {
        let taken = self.taken.clone();
        let mut has_control = true;
        loop {
            if let Some(end) = self.take_frames()? {
                return Ok(end);
            }
            self.put_pending();
            self.write()?;
            let room = self.outgoing.len() < MAX_OUTGOING_BYTES;
            let wants_input = room && self.pending.is_empty() && self.send_window.room() > 0;
            tokio::select! {
                ready = self.wire.readable() => {
                    ready.map_err(|_| Lost::Disconnected)?;
                    self.read()?;
                }
                written = write(&self.room, &mut self.outgoing) => self.wrote(written)?,
                frame = control.recv(), if room && has_control => match frame {
                    Some(frame) => self.outgoing.put(frame.kind, frame.payload.into()),
                    None => has_control = false,
                },
                fed = receive(&mut self.input), if wants_input => self.feed(fed),
                () = taken.more.notified() => self.credit(),
                () = closed(&self.outputs[0]) => self.close_output(0, KIND_CLOSE_STDOUT),
                () = closed(&self.outputs[1]) => self.close_output(1, KIND_CLOSE_STDERR),
            }
        }
    }

    fn put_pending(&mut self) {
        while !self.pending.is_empty() && self.outgoing.len() < MAX_OUTGOING_BYTES {
            let portion = self.pending.len().min(self.send_window.room()).min(MAX_DATA_BYTES);
            if portion == 0 {
                return;
            }
            self.send_window.sent(portion);
            self.outgoing.put(KIND_STDIN, self.pending.split_to(portion));
        }
    }

    fn feed(&mut self, fed: Option<Fed>) {
        match fed {
            Some(Fed::Bytes(bytes)) => self.pending = bytes,
            Some(Fed::End) => {
                self.outgoing.put(KIND_STDIN_END, Bytes::new());
                self.input = None;
            }
            None => self.input = None,
        }
    }

    fn credit(&mut self) {
        if let Some(credit) = self.receive_window.taken(self.taken.bytes.swap(0, Ordering::Relaxed)) {
            self.outgoing.put(KIND_CREDIT, Bytes::copy_from_slice(&credit_payload(credit)));
        }
    }

    fn close_output(&mut self, which: usize, kind: u8) {
        self.outputs[which] = None;
        self.outgoing.put(kind, Bytes::new());
    }

    fn write(&mut self) -> Result<(), Lost> {
        if !self.can_write {
            self.outgoing.clear();
        } else if self.room.is_none() {
            let written = self.outgoing.write(self.wire.socket());
            self.wrote(written)?;
        }
        Ok(())
    }

    fn wrote(&mut self, written: io::Result<()>) -> Result<(), Lost> {
        if let Err(e) = written
            && e.kind() != io::ErrorKind::WouldBlock
        {
            // The last words may be here all the same: reading tells.
            self.can_write = false;
            self.outgoing.clear();
        }
        if self.outgoing.len() == 0 {
            self.room = None;
        } else if self.room.is_none() {
            // Without it, nobody would ever hear of the rest.
            self.room = Some(self.wire.room().map_err(|_| Lost::Disconnected)?);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Lost> {
        if self.passage.left() > 0 {
            return self.pass();
        }
        let most = if self.incoming.is_empty() && self.passage.is_open() { HEADER_BYTES } else { READ_BYTES };
        read_some(&self.wire, &mut self.incoming, most)?;
        if let Some(bytes) = self.passage.enter(&self.incoming).map_err(broken)? {
            self.receive_window.received(bytes).map_err(broken)?;
            self.incoming.clear();
        }
        Ok(())
    }

    /// The payload of a frame of output: into the caller's pipe if it takes it, or else to the reader.
    fn pass(&mut self) -> Result<(), Lost> {
        if self.outputs[0].is_some() {
            match self.passage.pass(&self.wire) {
                Passed::Bytes(bytes) => {
                    self.taken.bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.credit();
                    return Ok(());
                }
                Passed::End => return Err(Lost::Disconnected),
                Passed::Nothing => {}
            }
        }
        read_some(&self.wire, &mut self.incoming, self.passage.left())?;
        if !self.incoming.is_empty() {
            let payload = self.incoming.split_to(self.incoming.len().min(self.passage.left())).freeze();
            self.passage.read(payload.len());
            self.deliver(0, payload);
        }
        Ok(())
    }

    fn take_frames(&mut self) -> Result<Option<End>, Lost> {
        while let Some(length) = frame_length(&self.incoming, MAX_FRAME_BYTES).map_err(broken)? {
            let mut payload = self.incoming.split_to(length).freeze();
            let kind = payload.split_to(HEADER_BYTES)[HEADER_BYTES - 1];
            if let Some(end) = self.take(kind, payload)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    fn take(&mut self, kind: u8, payload: Bytes) -> Result<Option<End>, Lost> {
        match kind {
            KIND_STDOUT => {
                self.passage.saw(payload.len());
                self.output(0, payload)?;
            }
            KIND_STDERR => self.output(1, payload)?,
            KIND_CREDIT => {
                let bytes = parse_credit(&payload).ok_or_else(|| broken("credit without a number"))?;
                self.send_window.credited(bytes).map_err(broken)?;
            }
            KIND_STDIN_CLOSED => {
                self.input = None;
                self.pending = Bytes::new();
            }
            KIND_STARTED => {
                let started = serde_json::from_slice(&payload).map_err(broken)?;
                if let Some(sender) = self.started.take() {
                    let _ = sender.send(started);
                }
            }
            KIND_END => return serde_json::from_slice(&payload).map(Some).map_err(broken),
            kind => return Err(broken(format!("a frame of the unknown kind {kind}"))),
        }
        Ok(None)
    }

    fn output(&mut self, which: usize, payload: Bytes) -> Result<(), Lost> {
        let bytes = payload.len();
        if bytes == 0 {
            // Not counted by the window, so not kept either.
            return Ok(());
        }
        self.receive_window.received(bytes).map_err(broken)?;
        self.deliver(which, payload);
        Ok(())
    }

    /// Hands bytes to the reader of an output, which the window has counted.
    fn deliver(&mut self, which: usize, payload: Bytes) {
        let bytes = payload.len();
        self.exits[which].behind.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.outputs[which].as_ref().is_some_and(|output| output.send(payload).is_ok());
        if !sent {
            // Thrown away; the other stream still needs the room.
            self.taken.add(bytes);
        }
    }
}

fn broken(why: impl std::fmt::Display) -> Lost {
    Lost::Broken(why.to_string())
}

async fn receive(input: &mut Option<mpsc::Receiver<Fed>>) -> Option<Fed> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for the room that there was not.
async fn write(room: &Option<Room>, outgoing: &mut Outgoing) -> io::Result<()> {
    match room {
        Some(room) => room.write_by(|socket| outgoing.write(socket)).await,
        None => std::future::pending().await,
    }
}

async fn closed(output: &Option<mpsc::UnboundedSender<Bytes>>) {
    match output {
        Some(output) => output.closed().await,
        None => std::future::pending().await,
    }
}

//! One connection: from its first frame to its close, with one session after the other in between.

use std::io::{self, BufReader};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use iii_protocol::frame::{Frame, FrameError, read_frame};
use iii_protocol::session::{
    END_LINGER_MS, End, EndCause, KIND_AGAIN, KIND_END, KIND_OPEN, MAX_SESSIONS, Open, Task, VERSION,
};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::reaper::Ended;

use super::connection::Connection;
use super::frames::{self, ConnectionReader, Controls, Followed, FrameStream, READ_BYTES};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::pump::Lines;
use super::threads::{Working, spawn};
use super::{Shared, command, copying};

/// How long a client may take for each piece of its first frame.
const OPEN_SECONDS: i64 = 10;
/// How many events may wait for a session's thread: each kind comes at most once.
const EVENT_QUEUE: usize = 8;

/// What a session's thread waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// The command's process has ended.
    Ended(Ended),
    /// The client wants all to hang up, but stays to hear of the end.
    HangUp,
    /// The client has left, or broke the contract; the last one of the reading thread.
    Lost,
}

/// The first frame of a connection's next session, and where the rest of that comes from.
pub(super) type Next = (FrameStream, Frame);

/// Serves one connection until it is closed.
pub(super) fn serve(shared: &Arc<Shared>, connection: &Arc<Connection>) {
    let mut stream = BufReader::with_capacity(READ_BYTES, ConnectionReader(Arc::clone(connection)));
    match first_frame(&mut stream, connection) {
        Ok(Some(open)) => {
            let mut next = Some((stream, open));
            while let Some((stream, open)) = next {
                next = begin(shared, connection, stream, open);
            }
        }
        // Nobody there to be told anything.
        Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated { .. }) => {}
        Err(error) => {
            let error = could_not_start(format!("not the first frame of a session: {error}"));
            finish_unread(connection, stream, error);
        }
    }
    connection.close();
}

fn first_frame(stream: &mut FrameStream, connection: &Connection) -> Result<Option<Frame>, FrameError> {
    let wait = |seconds| {
        let timeout = TimeVal::seconds(seconds);
        setsockopt(connection.stream(), ReceiveTimeout, &timeout).map_err(io::Error::from)
    };
    wait(OPEN_SECONDS)?;
    let frame = read_frame(stream)?;
    // 0 is for ever.
    wait(0)?;
    Ok(frame)
}

/// One session. Returns the begin of the next one.
fn begin(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    stream: FrameStream,
    first: Frame,
) -> Option<Next> {
    let task = match parse_open(&first) {
        Ok(task) => task,
        Err(message) => {
            finish_unread(connection, stream, could_not_start(message));
            return None;
        }
    };
    let Some(admitted) = shared.admit() else {
        let message = format!("the worker has {MAX_SESSIONS} sessions already");
        finish_unread(connection, stream, could_not_start(message));
        return None;
    };
    match task {
        Task::Exec(exec) => command::run(admitted, connection, stream, exec),
        Task::Pack { .. } | Task::Unpack { .. } | Task::Update { .. } => {
            copying::run(admitted, connection, stream, task)
        }
    }
}

fn parse_open(frame: &Frame) -> Result<Task, String> {
    if frame.kind != KIND_OPEN {
        return Err(format!("a session begins with OPEN, not with a frame of kind {}", frame.kind));
    }
    let open: Open = frame.parse().map_err(|error| error.to_string())?;
    if open.version != VERSION {
        return Err(format!("the client speaks version {}, the worker {VERSION}", open.version));
    }
    Ok(open.task)
}

pub(super) fn could_not_start(message: String) -> EndCause {
    EndCause::CouldNotStart { message, hint: None }
}

/// Says END to a client whose frames nobody has looked at, and closes.
pub(super) fn finish_unread(connection: &Connection, stream: FrameStream, cause: EndCause) {
    // A client that has left needs no words.
    let _ = connection.send_json(KIND_END, &End { cause });
    let (events, over) = sync_channel(EVENT_QUEUE);
    let reader = spawn(move || {
        let mut stream = stream;
        let _ = io::copy(&mut stream, &mut io::sink());
        let _ = events.send(Event::Lost);
    });
    if let Ok(reader) = reader {
        linger(connection, reader, &over);
    }
}

/// A session whose client is being read.
pub(super) struct Attended {
    pub(super) lines: Lines,
    pub(super) events: Receiver<Event>,
    /// What the reader does with frames until the end.
    followed: Arc<Mutex<Option<Followed>>>,
    reader: Working<Option<Next>>,
}

/// What a session shares with its client, before anything is started for it.
pub(super) fn prepare(
    connection: &Arc<Connection>,
) -> io::Result<(Lines, SyncSender<Event>, Receiver<Event>)> {
    let (sender, events) = sync_channel(EVENT_QUEUE);
    let lines = Lines {
        connection: Arc::clone(connection),
        inbound: Arc::new(Inbound::new()?),
        outbound: Arc::new(Outbound::new()?),
    };
    Ok((lines, sender, events))
}

/// Starts to follow the client. When it is lost, everything that waits for it is woken and told.
pub(super) fn attend(
    stream: FrameStream,
    lines: Lines,
    controls: impl Controls + 'static,
    sender: SyncSender<Event>,
    events: Receiver<Event>,
) -> io::Result<Attended> {
    let followed = Followed { lines: lines.clone(), controls: Box::new(controls) };
    let followed = Arc::new(Mutex::new(Some(followed)));
    let (its, connection) = (Arc::clone(&followed), Arc::clone(&lines.connection));
    let reader = spawn(move || {
        let mut stream = stream;
        let next = frames::follow(&mut stream, &its);
        if next.is_none() {
            if let Some(Followed { lines, .. }) = let_go(&its) {
                lines.inbound.cancel();
                lines.outbound.lose();
            }
            connection.close();
            // Fails only when the session is over.
            let _ = sender.send(Event::Lost);
        }
        next.map(|open| (stream, open))
    })?;
    Ok(Attended { lines, events, followed, reader })
}

fn let_go(followed: &Mutex<Option<Followed>>) -> Option<Followed> {
    followed.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Attended {
    /// Says END, unless the client was `lost`, and waits until the connection is closed or carries another session,
    /// whose begin is returned.
    pub(super) fn finish(self, cause: EndCause, lost: bool) -> Option<Next> {
        let Attended { lines, followed, reader, .. } = self;
        let connection = lines.connection;
        if lost {
            connection.close();
            let _ = reader.join();
            return None;
        }
        // Before END, for what comes after it may be another client's.
        let of_this_session = (let_go(&followed), lines.inbound, lines.outbound);
        // In one piece, for whoever is in between to see both at once. A client that has left needs no words.
        let _ = connection.hold_back(KIND_END, &End { cause });
        let _ = connection.send(KIND_AGAIN, &[]);
        // Closed now, and not only when the connection is.
        drop(of_this_session);
        reader.join().ok().flatten()
    }
}

/// Waits for a client to close that was told END only, but not for ever.
fn linger(connection: &Connection, reader: Working<()>, events: &Receiver<Event>) {
    let deadline = Instant::now() + Duration::from_millis(END_LINGER_MS);
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Lost) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            Ok(Event::HangUp | Event::Ended(_)) => {}
        }
    }
    connection.close();
    let _ = reader.join();
}

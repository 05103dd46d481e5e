//! A session that is a copy: the archive is its standard output or input.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use iii_protocol::session::{EndCause, KIND_STARTED, MAX_DATA_BYTES, Started, Task, TerminalSize};

use crate::copy::{self, CopyError, Warnings};

use super::Admitted;
use super::connection::Connection;
use super::frames::{Controls, FrameStream};
use super::inbound::{Inbound, SessionReader};
use super::open::{self, Event, Next};
use super::outbound::{Outbound, SessionWriter};
use super::pump::Lines;

/// Copies, and says how that ended. Returns the begin of the connection's next session.
pub(super) fn run(
    admitted: Admitted,
    connection: &Arc<Connection>,
    stream: FrameStream,
    task: Task,
) -> Option<Next> {
    let (lines, sender, events) = match open::prepare(connection) {
        Ok(prepared) => prepared,
        Err(error) => {
            open::finish_unread(connection, stream, open::could_not_start(error.to_string()));
            return None;
        }
    };
    let Lines { inbound, outbound, .. } = lines.clone();
    let takes_input = matches!(task, Task::Unpack { .. } | Task::Update { .. });
    let controls = CopyControls { inbound, outbound, takes_input };
    // Without the thread there is no client either: its stream went with it.
    let Ok(attended) = open::attend(stream, lines, controls, sender, events) else { return None };

    let mut begun = Begun { is: false, session: admitted.number, connection: Arc::clone(connection) };
    let mut warnings = Warnings::default();
    let result = copy(task, &attended.lines, &mut begun, &mut warnings);
    let warnings = warnings.lines();
    if begun.is && !warnings.is_empty() {
        let lines = &attended.lines;
        let mut out = SessionWriter::stderr(Arc::clone(&lines.outbound), Arc::clone(&lines.connection));
        // A client that has left is not told.
        let _ = out.write_all(warnings.as_bytes());
    }
    let cause = match result {
        Ok(()) => {
            // Nothing to read or write is a copy too.
            let _ = begun.tell();
            EndCause::Exit { code: 0 }
        }
        Err(CopyError { message, hint }) if begun.is => EndCause::CopyFailed { message, hint },
        Err(CopyError { message, hint }) => EndCause::CouldNotStart { message, hint },
    };
    let lost = matches!(attended.events.try_recv(), Ok(Event::Lost));
    drop(admitted);
    attended.finish(cause, lost)
}

fn copy(task: Task, lines: &Lines, begun: &mut Begun, warnings: &mut Warnings) -> Result<(), CopyError> {
    match task {
        Task::Pack { path, follow } => {
            let out = SessionWriter::stdout(Arc::clone(&lines.outbound), Arc::clone(&lines.connection));
            let mut out = BufWriter::with_capacity(MAX_DATA_BYTES, Telling { begun, inner: out });
            copy::pack(&path, follow, &mut out, warnings)?;
            out.flush().map_err(|error| CopyError { message: format!("{path}: {error}"), hint: None })
        }
        Task::Unpack { path, layout, owners } => {
            copy::unpack(&path, &layout, owners, &mut Telling { begun, inner: input(lines) }, warnings)
        }
        Task::Update { path, changes } => {
            copy::update(&path, changes, &mut Telling { begun, inner: input(lines) }, warnings)
        }
        Task::Exec(_) => unreachable!("a command is no copy"),
    }
}

fn input(lines: &Lines) -> SessionReader {
    SessionReader::new(Arc::clone(&lines.inbound), Arc::clone(&lines.connection))
}

/// Says STARTED, once.
struct Begun {
    is: bool,
    session: u64,
    connection: Arc<Connection>,
}

impl Begun {
    fn tell(&mut self) -> io::Result<()> {
        if self.is {
            return Ok(());
        }
        self.is = true;
        self.connection.send_json(KIND_STARTED, &Started { session: self.session, pid: 0 })
    }
}

/// A stream whose first use is the begin of the copy.
struct Telling<'a, T> {
    begun: &'a mut Begun,
    inner: T,
}

impl<T: Write> Write for Telling<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.tell()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Telling<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.begun.tell()?;
        self.inner.read(buffer)
    }
}

/// A copy has no processes: its end is the end of its streams.
struct CopyControls {
    inbound: Arc<Inbound>,
    outbound: Arc<Outbound>,
    takes_input: bool,
}

impl Controls for CopyControls {
    fn signal(&self, _: i32) {}

    fn resize(&self, _: TerminalSize) {}

    fn kill(&self) {
        self.inbound.cancel();
        self.outbound.lose();
    }

    fn close_stdout(&self) {}

    fn takes_input(&self) -> bool {
        self.takes_input
    }
}

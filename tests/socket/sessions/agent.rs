//! The guest's end of sessions, in the test's hands.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use iii::vm::SESSION_SOCKET;
use iii_protocol::frame::{Frame, FrameError, read_frame, write_frame};
use iii_protocol::session::*;
use serde::Serialize;

use crate::fake::Project;

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Agent {
    listener: UnixListener,
}

impl Agent {
    pub fn listen(project: &Project, worker: &str) -> Agent {
        let folder = project.ctx.home.machine_run(&project.ctx.project, worker);
        fs::create_dir_all(&folder).unwrap();
        Agent { listener: UnixListener::bind(folder.join(SESSION_SOCKET)).unwrap() }
    }

    /// The next connection, of which nothing was read.
    pub fn accept(&self) -> Line {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Line { stream }
    }

    /// The next session, and what it is for.
    pub fn open(&self) -> (Line, Task) {
        let mut line = self.accept();
        let open: Open = line.expect(KIND_OPEN).parse().unwrap();
        assert_eq!(open.version, VERSION);
        (line, open.task)
    }

    /// The next session, which is for a command.
    pub fn begin(&self) -> (Line, Exec) {
        let (line, task) = self.open();
        let Task::Exec(exec) = task else { panic!("{task:?}") };
        (line, exec)
    }

    /// Likewise, and the command runs.
    pub fn run(&self) -> (Line, Exec) {
        let (mut line, exec) = self.begin();
        line.tell(KIND_STARTED, &Started { session: 3, pid: 77 });
        (line, exec)
    }
}

/// One session.
pub struct Line {
    pub stream: UnixStream,
}

impl Line {
    /// The next frame; `None` when the other end has closed.
    pub fn next(&mut self) -> Option<Frame> {
        match read_frame(&mut self.stream) {
            Ok(frame) => frame,
            Err(e) if e.to_string().contains("reset") => None,
            Err(e) => panic!("{e}"),
        }
    }

    #[track_caller]
    pub fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.next().expect("another frame");
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    #[track_caller]
    pub fn expect_signal(&mut self, signal: i32) {
        assert_eq!(self.expect(KIND_SIGNAL).parse::<Signal>().unwrap(), Signal { signal });
    }

    pub fn send(&mut self, kind: u8, payload: &[u8]) {
        self.try_send(kind, payload).unwrap();
    }

    /// For what the client may close the connection upon.
    pub fn try_send(&mut self, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
        write_frame(&mut self.stream, kind, payload)
    }

    pub fn tell(&mut self, kind: u8, value: &impl Serialize) {
        let frame = Frame::json(kind, value);
        self.send(frame.kind, &frame.payload);
    }

    pub fn end(&mut self, cause: EndCause) {
        self.tell(KIND_END, &End { cause });
    }

    pub fn exit(&mut self, code: i32) {
        self.end(EndCause::Exit { code });
    }
}

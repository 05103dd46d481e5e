//! A client of sessions, as simple as one can be: one connection, frames as they come.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use iii_protocol::frame::{Frame, read_frame, write_frame};
use iii_protocol::guest::ProcessPlan;
use iii_protocol::session::{
    End, EndCause, Exec, KIND_AGAIN, KIND_CREDIT, KIND_END, KIND_OPEN, KIND_STARTED, KIND_STDERR, KIND_STDIN,
    KIND_STDIN_CLOSED, KIND_STDIN_END, KIND_STDOUT, MAX_DATA_BYTES, Open, ReceiveWindow, SendWindow, Started,
    Task, VERSION, credit_payload, parse_credit,
};

use crate::shim::{PATIENCE, Shim, sh};

pub(crate) const OK: EndCause = EndCause::Exit { code: 0 };

/// An agent whose workload waits to be stopped.
pub(crate) fn worker() -> Shim {
    worker_of(sh("exec sleep 3600"))
}

pub(crate) fn worker_of(workload: ProcessPlan) -> Shim {
    let mut shim = Shim::new();
    shim.plan(workload);
    shim.hear_started();
    shim
}

pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec::new(argv.iter().copied())
}

pub(crate) fn script(text: &str) -> Exec {
    exec(&["sh", "-c", text])
}

/// The same, with standard input from the client.
pub(crate) fn script_with_input(text: &str) -> Exec {
    Exec { stdin: true, ..script(text) }
}

/// One connection and what has come over it.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) room: SendWindow,
    pub(crate) stdin_closed: usize,
    incoming: ReceiveWindow,
    pub(crate) started: Option<Started>,
}

impl Client {
    pub(crate) fn connect(shim: &Shim) -> Client {
        let stream = UnixStream::connect(shim.path("sessions.sock")).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        Client::over(stream)
    }

    fn over(stream: UnixStream) -> Client {
        Client {
            stream,
            stdout: Vec::new(),
            stderr: Vec::new(),
            room: SendWindow::default(),
            stdin_closed: 0,
            incoming: ReceiveWindow::default(),
            started: None,
        }
    }

    pub(crate) fn open(shim: &Shim, exec: Exec) -> Client {
        Client::open_task(shim, Task::Exec(exec))
    }

    pub(crate) fn open_task(shim: &Shim, task: Task) -> Client {
        let mut client = Client::connect(shim);
        client.say_json(KIND_OPEN, &Open { version: VERSION, task });
        client
    }

    /// Opens a session and waits until it runs.
    #[track_caller]
    pub(crate) fn run(shim: &Shim, exec: Exec) -> Client {
        let mut client = Client::open(shim, exec);
        let frame = client.hear_frame();
        assert_eq!(frame.kind, KIND_STARTED, "{}", String::from_utf8_lossy(&frame.payload));
        client.started = Some(frame.parse().expect("Started"));
        client
    }

    pub(crate) fn pid(&self) -> String {
        self.started.as_ref().expect("started").pid.to_string()
    }

    #[track_caller]
    pub(crate) fn say(&mut self, kind: u8, payload: &[u8]) {
        write_frame(&mut self.stream, kind, payload).expect("the agent reads");
    }

    pub(crate) fn say_json<T: serde::Serialize>(&mut self, kind: u8, value: &T) {
        let frame = Frame::json(kind, value);
        self.say(frame.kind, &frame.payload);
    }

    /// Sends input, hearing what comes while the window is closed.
    pub(crate) fn input(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let size = self.room.room().min(bytes.len()).min(MAX_DATA_BYTES);
            if size == 0 {
                assert!(self.hear().is_none(), "ended while input was sent");
                continue;
            }
            self.room.sent(size);
            self.say(KIND_STDIN, &bytes[..size]);
            bytes = &bytes[size..];
        }
    }

    pub(crate) fn end_input(&mut self) {
        self.say(KIND_STDIN_END, &[]);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The agent may have given up already.
        let _ = self.stream.write_all(bytes);
    }

    #[track_caller]
    pub(crate) fn hear_frame(&mut self) -> Frame {
        read_frame(&mut self.stream).expect("reads").expect("the agent does not close without END")
    }

    /// Takes one frame; the cause when it was END.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Option<EndCause> {
        let frame = self.hear_frame();
        self.take(&frame)
    }

    fn take(&mut self, frame: &Frame) -> Option<EndCause> {
        match frame.kind {
            KIND_STARTED => {
                assert!(self.started.is_none() && self.stdout.is_empty() && self.stderr.is_empty());
                self.started = Some(frame.parse().expect("Started"));
            }
            KIND_STDOUT | KIND_STDERR => {
                let length = frame.payload.len();
                assert!(length > 0 && length <= MAX_DATA_BYTES);
                self.incoming.received(length).expect("within the window");
                if frame.kind == KIND_STDOUT { &mut self.stdout } else { &mut self.stderr }
                    .extend_from_slice(&frame.payload);
                if let Some(credit) = self.incoming.taken(length) {
                    // The session may be over already.
                    let _ = write_frame(&mut self.stream, KIND_CREDIT, &credit_payload(credit));
                }
            }
            KIND_CREDIT => {
                let credit = parse_credit(&frame.payload).expect("a credit");
                self.room.credited(credit).expect("not more than was sent");
            }
            KIND_STDIN_CLOSED => self.stdin_closed += 1,
            KIND_END => {
                let end: End = frame.parse().expect("End");
                return Some(end.cause);
            }
            other => panic!("a frame of kind {other}"),
        }
        None
    }

    /// Listens to the end.
    #[track_caller]
    pub(crate) fn finish(&mut self) -> EndCause {
        loop {
            if let Some(cause) = self.hear() {
                return cause;
            }
        }
    }

    /// Begins the next session of this connection, whose last one has ended.
    #[track_caller]
    pub(crate) fn open_next(&mut self, task: Task) {
        let behind_the_end = self.hear_frame();
        assert_eq!((behind_the_end.kind, behind_the_end.payload.len()), (KIND_AGAIN, 0));
        *self = Client::over(self.stream.try_clone().expect("a descriptor"));
        self.say_json(KIND_OPEN, &Open { version: VERSION, task });
    }

    /// Listens until standard output has `marker`.
    #[track_caller]
    pub(crate) fn until_said(&mut self, marker: &str) {
        while !self.text().contains(marker) {
            let end = self.hear();
            assert!(end.is_none(), "{end:?} before {marker:?}: {:?}", self.text());
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Listens until the agent closes without END.
    pub(crate) fn until_closed(&mut self) {
        while let Ok(Some(frame)) = read_frame(&mut self.stream) {
            assert_ne!(frame.kind, KIND_END, "{}", String::from_utf8_lossy(&frame.payload));
        }
    }
}

/// Runs a command without input to its end.
#[track_caller]
pub(crate) fn outcome(shim: &Shim, exec: Exec) -> (EndCause, String, String) {
    let mut client = Client::open(shim, exec);
    let cause = client.finish();
    (cause, client.text(), String::from_utf8_lossy(&client.stderr).into_owned())
}

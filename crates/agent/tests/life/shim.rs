//! The other end of the control link: a shim that scripts what it says and keeps what it hears.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::exit::ExitCause;
use iii_protocol::frame::{Frame, read_frame, write_frame};
use iii_protocol::guest::{
    AGENT_SOCKET_ENV, BootPlan, Exit, Hello, KIND_EXIT, KIND_EXIT_ACK, KIND_GO, KIND_HELD, KIND_HELLO,
    KIND_PLAN, KIND_RESTART, KIND_STARTED, KIND_STDERR, KIND_STDOUT, KIND_STOP, ProcessPlan, RootPlan,
    Started, Stop, VERSION, parse_output,
};
use iii_protocol::session::SESSION_SOCKET_ENV;
use tempfile::TempDir;

/// Far more than anything here takes; a test that hangs fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One agent and the socket to it.
pub(crate) struct Shim {
    folder: TempDir,
    agent: Child,
    stream: Option<UnixStream>,
}

/// All that an agent said from Started on.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) started: Option<Started>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Kind, time and bytes of each output frame, in order.
    pub(crate) frames: Vec<(u8, u64, Vec<u8>)>,
    pub(crate) exit: Exit,
}

impl Life {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// `what` and message of a workload that was never running.
    #[track_caller]
    pub(crate) fn could_not_start(&self) -> (&str, &str, &str) {
        assert!(self.started.is_none(), "{self:?}");
        match &self.exit.cause {
            ExitCause::CouldNotStart { what, message, hint } => {
                (what, message, hint.as_deref().unwrap_or_default())
            }
            other => panic!("started and ended with {other}"),
        }
    }
}

pub(crate) fn process(argv: &[&str]) -> ProcessPlan {
    ProcessPlan {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        cwd: "/".into(),
        user: String::new(),
    }
}

pub(crate) fn sh(script: &str) -> ProcessPlan {
    process(&["sh", "-c", script])
}

pub(crate) fn boot_plan(workload: ProcessPlan) -> BootPlan {
    BootPlan {
        now_ns: None,
        version: VERSION,
        hostname: "test".into(),
        root: RootPlan::Surroundings,
        network: None,
        engine_port: None,
        hold: false,
        workload,
    }
}

impl Shim {
    /// Starts an agent and hears its Hello.
    pub(crate) fn new() -> Shim {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).expect("socket");
        let agent = Command::new(env!("CARGO_BIN_EXE_iii-agent"))
            .env(AGENT_SOCKET_ENV, &path)
            .env(SESSION_SOCKET_ENV, folder.path().join("sessions.sock"))
            .stdin(Stdio::null())
            .spawn()
            .expect("agent");
        let (mut stream, _) = listener.accept().expect("the agent connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let frame = read_frame(&mut stream).expect("reads").expect("a frame");
        assert_eq!(frame.kind, KIND_HELLO);
        let hello: Hello = frame.parse().expect("Hello");
        assert_eq!(hello.version, VERSION);
        assert!(!hello.kernel.is_empty() && hello.uptime_ms > 0);
        Shim { folder, agent, stream: Some(stream) }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path of ours").to_owned()
    }

    /// Process id of the agent.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.id()
    }

    /// How many threads, files and descendants the agent has.
    pub(crate) fn holds(&self) -> [usize; 3] {
        let count = |what: &str| {
            let entries = fs::read_dir(format!("/proc/{}/{what}", self.agent.id())).expect("the agent lives");
            entries.count()
        };
        let threads = fs::read_dir(format!("/proc/{}/task", self.agent.id())).expect("the agent lives");
        let (mut busy, mut children) = (0, 0);
        for thread in threads.flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            // Those that wait for the next session are kept for a while.
            busy += usize::from(read("comm").trim() != "session-idle");
            children += read("children").split_ascii_whitespace().count();
        }
        [busy, count("fd"), children]
    }

    /// What it holds with no session: once that is the same for a while.
    pub(crate) fn settled(&self) -> [usize; 3] {
        let mut last = self.holds();
        let mut same = 0;
        until("the agent holds the same", || {
            let now = self.holds();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > 40
        });
        last
    }

    /// Waits until it holds as much as with no session.
    #[track_caller]
    pub(crate) fn until_settled(&self, bare: [usize; 3]) {
        until("the agent holds what it held before", || self.holds() == bare);
    }

    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        self.stream.as_mut().expect("the link is up")
    }

    pub(crate) fn say<T: serde::Serialize>(&mut self, kind: u8, value: &T) {
        let frame = Frame::json(kind, value);
        write_frame(self.stream(), frame.kind, &frame.payload).expect("the agent listens");
    }

    pub(crate) fn plan(&mut self, workload: ProcessPlan) {
        self.say(KIND_PLAN, &boot_plan(workload));
    }

    /// Sends a plan that holds, and waits until it is held.
    #[track_caller]
    pub(crate) fn hold(&mut self, workload: ProcessPlan) {
        self.say(KIND_PLAN, &BootPlan { hold: true, ..boot_plan(workload) });
        let frame = self.hear();
        assert_eq!((frame.kind, &frame.payload[..]), (KIND_HELD, &b""[..]));
    }

    pub(crate) fn go(&mut self) {
        write_frame(self.stream(), KIND_GO, &[]).expect("the agent listens");
    }

    pub(crate) fn stop(&mut self, signal: i32, grace_ms: u64) {
        self.say(KIND_STOP, &Stop { signal, grace_ms });
    }

    pub(crate) fn restart(&mut self, signal: i32, grace_ms: u64) {
        self.say(KIND_RESTART, &Stop { signal, grace_ms });
    }

    /// The next frame, whatever it is.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Frame {
        read_frame(self.stream()).expect("reads").expect("the agent is there")
    }

    /// Waits for Started.
    #[track_caller]
    pub(crate) fn hear_started(&mut self) -> Started {
        let frame = self.hear();
        assert_eq!(frame.kind, KIND_STARTED, "{}", String::from_utf8_lossy(&frame.payload));
        frame.parse().expect("Started")
    }

    /// Listens until the workload has written `marker` to its standard output.
    #[track_caller]
    pub(crate) fn hear_output(&mut self, marker: &str) -> String {
        let mut text = String::new();
        while !text.contains(marker) {
            let frame = self.hear();
            assert_eq!(frame.kind, KIND_STDOUT, "{}", String::from_utf8_lossy(&frame.payload));
            text.push_str(&String::from_utf8_lossy(parse_output(&frame.payload).expect("output").1));
        }
        text
    }

    /// Listens to the end, acknowledges it, and sees the agent leave with status 0.
    #[track_caller]
    pub(crate) fn hear_all(mut self) -> Life {
        let (mut started, mut stdout, mut stderr, mut frames) = (None, Vec::new(), Vec::new(), Vec::new());
        let exit = loop {
            let frame = self.hear();
            match frame.kind {
                KIND_STARTED => {
                    assert!(started.is_none() && frames.is_empty(), "Started comes once and first");
                    started = Some(frame.parse().expect("Started"));
                }
                KIND_STDOUT | KIND_STDERR => {
                    let (at, bytes) = parse_output(&frame.payload).expect("output");
                    assert!(!bytes.is_empty());
                    if frame.kind == KIND_STDOUT { &mut stdout } else { &mut stderr }
                        .extend_from_slice(bytes);
                    frames.push((frame.kind, at, bytes.to_vec()));
                }
                KIND_EXIT => break frame.parse().expect("Exit"),
                other => panic!("a frame of kind {other}"),
            }
        };
        assert!(self.agent.try_wait().expect("status").is_none(), "it waits for the acknowledgement");
        write_frame(self.stream(), KIND_EXIT_ACK, &[]).expect("acknowledged");
        assert!(self.wait_for_agent().success());
        Life { started, stdout, stderr, frames, exit }
    }

    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
    }

    #[track_caller]
    pub(crate) fn wait_for_agent(&mut self) -> ExitStatus {
        let mut status = None;
        until("the agent has left", || {
            status = self.agent.try_wait().expect("status");
            status.is_some()
        });
        status.expect("it has left")
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Nothing is left to do for an agent of a failed test but to end it.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// Runs one workload from Hello to the acknowledged Exit.
#[track_caller]
pub(crate) fn live(workload: ProcessPlan) -> Life {
    let mut shim = Shim::new();
    shim.plan(workload);
    shim.hear_all()
}

/// Asks again until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process is there, and not a mere zombie of somebody else's.
pub(crate) fn is_alive(pid: &str) -> bool {
    let pid = pid.trim();
    assert!(!pid.is_empty());
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

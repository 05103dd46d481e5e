//! One case, run by either.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command whose input or signal waits for it says this first.
const READY: &[u8] = b"ready";
/// After which a case has hung.
const LIMIT: Duration = Duration::from_secs(15);

/// What stands at standard input.
#[derive(Debug, Clone, Default)]
pub(super) enum Input {
    #[default]
    Null,
    /// A pipe with these bytes, closed after them.
    Bytes(Vec<u8>),
    /// A pipe that nobody writes to, open for as long as the command runs.
    Open,
}

/// A command, and how it is run.
#[derive(Debug, Clone, Default)]
pub(super) struct Case {
    /// Unique; rows of the table name it.
    pub(super) name: &'static str,
    pub(super) argv: Vec<OsString>,
    pub(super) env: Vec<&'static str>,
    pub(super) cwd: Option<String>,
    pub(super) user: Option<&'static str>,
    /// Rows and columns of a terminal at all three streams.
    pub(super) terminal: Option<(u16, u16)>,
    pub(super) input: Input,
    /// What a shell does to the streams of `iii` or `crun` itself.
    pub(super) redirect: Option<&'static str>,
    /// Standard output is closed after so many bytes.
    pub(super) leave_after: Option<usize>,
    /// Sent to `iii` or `crun` itself when the command is ready.
    pub(super) signal: Option<Signal>,
    /// Only root may do this.
    pub(super) needs_root: bool,
}

/// What it left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) code: String,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Case {
    /// Runs the command line that either of the two made of this case.
    pub(super) fn run(&self, command: Command) -> Outcome {
        let is_safe = self.user.is_none() || !matches!(self.input, Input::Null);
        assert!(is_safe, "{}: crun would give /dev/null away", self.name);
        let mut command = self.redirected(&command);
        command.env("CALLERS", "from the caller").env_remove("NOT_SET").env("TERM", "vt220");
        let outcome = match self.terminal {
            Some(size) => self.on_terminal(command, size),
            None => self.on_pipes(command),
        };
        match outcome {
            Ok(outcome) => outcome,
            // Neither of them ever saw it.
            Err(error) if error.raw_os_error() == Some(Errno::E2BIG as i32) => {
                Outcome { code: "not executed".to_owned(), stdout: Vec::new(), stderr: Vec::new() }
            }
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    fn redirected(&self, plain: &Command) -> Command {
        let mut command = match self.redirect {
            Some(redirect) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("exec \"$@\" {redirect}"), "sh"]).arg(plain.get_program());
                shell
            }
            None => Command::new(plain.get_program()),
        };
        command.args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = plain.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }

    fn on_pipes(&self, mut command: Command) -> io::Result<Outcome> {
        let stdin = if matches!(self.input, Input::Null) { Stdio::null() } else { Stdio::piped() };
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let open = match (&self.input, stdin) {
            (Input::Bytes(bytes), Some(mut stdin)) => {
                let bytes = bytes.clone();
                // One who does not read it all is no failure.
                thread::spawn(move || stdin.write_all(&bytes));
                None
            }
            (_, stdin) => stdin,
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let signal = self.signal;
        let when_ready = move || {
            if let Some(signal) = signal {
                kill(pid, signal).unwrap();
            }
        };
        let stdout = collect(child.stdout.take().unwrap(), self.leave_after, when_ready);
        let stderr = collect(child.stderr.take().unwrap(), None, || ());
        let status = wait(&mut child, || drop(open))?;
        Ok(Outcome { code: code(status), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() })
    }

    fn on_terminal(&self, mut command: Command, (rows, columns): (u16, u16)) -> io::Result<Outcome> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None)?;
        let slave = File::from(pair.slave);
        let master = File::from(pair.master);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let mut child = command.spawn()?;
        // It holds copies of the terminal's other end, which would never end.
        drop(command);
        let mut keys = master.try_clone()?;
        let typed = if let Input::Bytes(bytes) = &self.input { bytes.clone() } else { Vec::new() };
        let when_ready = move || keys.write_all(&typed).unwrap();
        let stdout = collect(master, None, when_ready);
        let status = wait(&mut child, || ())?;
        Ok(Outcome { code: code(status), stdout: stdout.join().unwrap(), stderr: Vec::new() })
    }
}

fn code(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.to_string(),
        (None, signal) => format!("died of signal {}", signal.unwrap_or_default()),
    }
}

/// Reads to the end, or to where it is to leave; says once when the command is ready.
fn collect(
    mut from: impl Read + Send + 'static,
    leave_after: Option<usize>,
    when_ready: impl FnOnce() + Send + 'static,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut piece, mut when_ready) = (Vec::new(), vec![0; 1 << 16], Some(when_ready));
        loop {
            let room = leave_after.map_or(piece.len(), |limit| limit - all.len());
            // A terminal without a command behind it ends with an error.
            let Ok(count @ 1..) = from.read(&mut piece[..room]) else { return all };
            all.extend_from_slice(&piece[..count]);
            if all.starts_with(READY)
                && let Some(when_ready) = when_ready.take()
            {
                when_ready();
            }
        }
    })
}

/// Waits for the end, which is SIGKILL for one that hangs.
fn wait(child: &mut Child, ended: impl FnOnce()) -> io::Result<ExitStatus> {
    let (done, watchdog) = watchdog(child.id());
    let status = child.wait();
    drop(done);
    watchdog.join().unwrap();
    ended();
    status
}

fn watchdog(pid: u32) -> (Sender<()>, JoinHandle<()>) {
    let (done, is_done) = channel();
    let watchdog = thread::spawn(move || {
        if is_done.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            // It is killed or has ended: either way the wait is over.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    });
    (done, watchdog)
}

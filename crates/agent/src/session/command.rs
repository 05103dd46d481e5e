//! A session that is a command: from its launch to the end of everything it left.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use iii_protocol::session as contract;
use iii_protocol::session::{EndCause, Exec, HANGUP_GRACE_MS, KIND_STARTED, Started, TerminalSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{SIGCONT, SIGHUP, SIGKILL};
use portable_pty::MasterPty;

use crate::console;
use crate::error::{Fault, StartError};
use crate::launch::{Launch, Launched, Stream, Streams, environment, launch};
use crate::platform::Confinement;
use crate::reaper::Reaper;
use crate::sys;

use super::connection::{Connection, make_room_for_a_frame};
use super::frames::{Controls, FrameStream};
use super::open::{self, Event, Next};
use super::pump::{self, Input, Lines, Output};
use super::terminal::{self, Terminal};
use super::threads::{Working, spawn};
use super::{Admitted, Shared};

/// How long STARTED may wait for other words that it can go out with, when the client waits for its end only: many
/// commands take no longer than that, and then each side is woken once.
const STARTED_HOLD: Duration = Duration::from_millis(20);
/// How long killed processes may take to be gone. Only one stuck in the kernel takes any time at all.
const LAST_PROCESSES: Duration = Duration::from_secs(5);

const TERM: &str = "TERM";
const HINT_PROGRAM: &str = "a path must exist in the worker, a bare name must be in its PATH";
const HINT_USER: &str = "name a user of the worker's /etc/passwd, or a number";

/// Runs the command, and says how it ended. Returns the begin of the connection's next session.
pub(super) fn run(
    admitted: Admitted,
    connection: &Arc<Connection>,
    stream: FrameStream,
    exec: Exec,
) -> Option<Next> {
    let prepared = open::prepare(connection)
        .map_err(|error| StartError::new("session", error))
        .and_then(|(lines, sender, events)| Ok((start(&admitted, &exec, &sender)?, lines, sender, events)));
    let (running, lines, sender, events) = match prepared {
        Ok((Some(running), lines, sender, events)) => (running, lines, sender, events),
        // The worker is ending: its sessions just close.
        Ok((None, ..)) => return None,
        Err(error) => {
            drop(admitted);
            open::finish_unread(connection, stream, error.into());
            return None;
        }
    };
    let started = Started { session: admitted.number, pid: running.group.pid };
    // A client that has left meanwhile is seen by the reader of its connection.
    let _ = if is_awaited(&exec) {
        connection.send_json(KIND_STARTED, &started)
    } else {
        connection.hold_back(KIND_STARTED, &started)
    };
    if exec.detach {
        let its = Arc::clone(connection);
        let leave = spawn(move || {
            open::finish_unread(&its, stream, EndCause::Detached);
            its.close();
        });
        running.group.supervise(&events, exec.timeout_ms.map(Duration::from_millis), None);
        running.group.end_all();
        if let Ok(leave) = leave {
            let _ = leave.join();
        }
        return None;
    }
    attend(admitted, running, stream, &exec, (lines, sender, events))
}

/// Whether the client has something to do once the command runs.
fn is_awaited(exec: &Exec) -> bool {
    exec.stdin || exec.detach
}

/// A command that was executed, and the agent's ends of its streams.
struct Running {
    group: Arc<Group>,
    output: Output,
    input: Option<Input>,
    terminal: Option<Terminal>,
}

/// `None` when the worker is ending.
fn start(
    admitted: &Admitted,
    exec: &Exec,
    sender: &SyncSender<Event>,
) -> Result<Option<Running>, StartError> {
    let shared = &admitted.shared;
    let confinement = shared.host.confine(admitted.number)?;
    let wanted = exec.terminal.as_ref().filter(|_| !exec.detach);
    let launch_plan = plan(shared, exec, wanted, confinement.as_ref())?;
    let failed = |error: io::Error| StartError::new("session", error);
    let owner = launch_plan.identity.as_ref().map(|identity| identity.uid);
    let terminal = wanted.map(|wanted| Terminal::open(wanted.size, owner)).transpose()?;
    let streams = match &terminal {
        Some(terminal) => terminal.streams().map_err(failed)?,
        None => pipes(exec),
    };
    let gate = shared.gate();
    if !*gate {
        return Ok(None);
    }
    let sender = sender.clone();
    let Launched { pid, pipes } = launch(launch_plan, streams, &shared.reaper, move |ended| {
        // Fails only when the session's thread is gone; the queue has room for each kind of event.
        let _ = sender.try_send(Event::Ended(ended));
    })
    .map_err(for_a_session)?;
    let group = Group { pid, reaper: Arc::clone(&shared.reaper), confinement };
    let ends = match &terminal {
        Some(terminal) => terminal.ends(exec.stdin),
        None => take_pipes(pipes),
    };
    let (output, input) = ends.map_err(|error| {
        group.end_all();
        failed(error)
    })?;
    Ok(Some(Running { group: Arc::new(group), output, input, terminal }))
}

fn pipes(exec: &Exec) -> Streams {
    if exec.detach {
        return [Stream::Null, Stream::Null, Stream::Null];
    }
    let stdin = if exec.stdin { Stream::Pipe } else { Stream::Null };
    [stdin, Stream::Pipe, Stream::Pipe]
}

fn take_pipes([stdin, stdout, stderr]: [Option<OwnedFd>; 3]) -> io::Result<(Output, Option<Input>)> {
    let file = |fd: OwnedFd| {
        // One read then makes a large frame.
        make_room_for_a_frame(&fd);
        File::from(fd)
    };
    let stdout = stdout.map(file);
    let stderr = stderr.map(file);
    let input = match stdin.map(file) {
        Some(stdin) => {
            // Only this end: the command's is its own.
            fcntl(stdin.as_fd(), FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK))?;
            Some(Input::Pipe(stdin))
        }
        None => None,
    };
    Ok((Output { stdout, stderr, piped: true }, input))
}

fn plan(
    shared: &Shared,
    exec: &Exec,
    terminal: Option<&contract::Terminal>,
    confinement: &dyn Confinement,
) -> Result<Launch, StartError> {
    let user = exec.user.as_ref().unwrap_or(&shared.workload.user);
    let identity = shared.host.identity(user).map_err(|error| error.hint(HINT_USER))?;
    if let Some((name, _)) = exec.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(StartError::new("environment", format!("`{name}` is no name of a variable")));
    }
    let env = environment(variables(&shared.workload.env, exec, terminal), identity.as_ref());
    let cwd = match exec.cwd.as_deref() {
        None => shared.host.default_cwd(),
        Some(cwd) if cwd.starts_with('/') => cwd,
        Some(cwd) => {
            return Err(StartError::new("working directory", format!("`{cwd}` is not an absolute path")));
        }
    };
    if exec.argv.is_empty() {
        return Err(StartError::new("session", "no command was given"));
    }
    let (argv, cwd, settings) = (exec.argv.clone(), cwd.to_owned(), confinement.launch_settings());
    Ok(Launch { argv, env, cwd, identity, settings, terminal: terminal.is_some() })
}

/// The workload's own, then the terminal's, then the client's.
fn variables(
    own: &[(String, String)],
    exec: &Exec,
    terminal: Option<&contract::Terminal>,
) -> Vec<(String, String)> {
    let term = terminal.and_then(|terminal| match &terminal.term {
        Some(term) => Some(term.as_str()),
        None => (!own.iter().any(|(name, _)| name == TERM)).then_some(terminal::DEFAULT_TERM),
    });
    let term = term.map(|term| (TERM.to_owned(), term.to_owned()));
    own.iter().cloned().chain(term).chain(exec.env.iter().cloned()).collect()
}

/// The hint for a missing program is about the image's own command; this one is the user's.
fn for_a_session(error: StartError) -> StartError {
    if error.fault == Fault::NotFound { error.hint(HINT_PROGRAM) } else { error }
}

/// Carries the streams of a started command until all is over.
fn attend(
    admitted: Admitted,
    running: Running,
    stream: FrameStream,
    exec: &Exec,
    (lines, sender, events): (Lines, SyncSender<Event>, Receiver<Event>),
) -> Option<Next> {
    let Running { group, output, input, terminal } = running;
    let threads = carry(&lines, output, input, exec.stdin);
    let (master, slave) = terminal.map(|it| (it.master, it.slave)).unzip();
    let controls = CommandControls {
        group: Arc::clone(&group),
        master,
        takes_input: exec.stdin,
        hung_up: Cell::new(false),
        events: sender.clone(),
    };
    let attended = threads
        .and_then(|threads| Ok((open::attend(stream, lines.clone(), controls, sender, events)?, threads)));
    let (attended, threads) = match attended {
        Ok(attended) => attended,
        Err(error) => {
            // Out of threads: nothing can be told in an orderly way but the end.
            console::say(format_args!("a session is dropped: {error}"));
            lines.inbound.cancel();
            lines.outbound.lose();
            lines.connection.close();
            group.end_all();
            lines.outbound.drain();
            return None;
        }
    };
    let held_back = (!is_awaited(exec)).then_some(&*lines.connection);
    let timeout = exec.timeout_ms.map(Duration::from_millis);
    let (cause, lost) = group.supervise(&attended.events, timeout, held_back);
    group.end_all();
    drop(slave);
    lines.inbound.cancel();
    lines.outbound.drain();
    let _ = threads.output.join();
    let _ = threads.input.map(Working::join);
    // Waiting for another client is no session any more.
    drop((admitted, group, lines));
    attended.finish(cause, lost)
}

struct Threads {
    output: Working<()>,
    /// Only where input may come.
    input: Option<Working<()>>,
}

fn carry(lines: &Lines, output: Output, input: Option<Input>, takes_input: bool) -> io::Result<Threads> {
    let its = lines.clone();
    let output = spawn(move || pump::carry_output(output, &its.outbound, &its.connection))?;
    let its = lines.clone();
    let carry_input = move || pump::carry_input(input, &its.inbound, &its.connection);
    let input = takes_input.then(|| spawn(carry_input)).transpose()?;
    Ok(Threads { output, input })
}

/// The processes of a command.
struct Group {
    /// Of the command itself; its process group and session too.
    pid: u32,
    reaper: Arc<Reaper>,
    confinement: Box<dyn Confinement>,
}

impl Group {
    /// Waits for the command's end, and makes it come when time is up or the client has left. Returns the
    /// cause, and whether the client was lost. Sends what is `held_back` there when that takes long.
    fn supervise(
        &self,
        events: &Receiver<Event>,
        timeout: Option<Duration>,
        held_back: Option<&Connection>,
    ) -> (EndCause, bool) {
        let mut held_back = held_back.map(|connection| (connection, Instant::now() + STARTED_HOLD));
        // A time too long for the clock never comes.
        let mut timeout = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut hangup, mut timed_out, mut hung_up, mut lost) = (None, false, false, false);
        loop {
            let hold = held_back.map(|(_, until)| until);
            let event = match [timeout, hangup, hold].into_iter().flatten().min() {
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Ended(_)) if timed_out => return (EndCause::TimedOut, lost),
                Ok(Event::Ended(ended)) => return (cause(ended.status), lost),
                Ok(event @ (Event::Lost | Event::HangUp)) => {
                    lost |= matches!(event, Event::Lost);
                    if !hung_up {
                        hung_up = true;
                        hangup = Some(Instant::now() + Duration::from_millis(HANGUP_GRACE_MS));
                        self.signal_all(SIGHUP);
                        // Stopped ones take it only when they go on.
                        self.signal_all(SIGCONT);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    let is_over = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
                    timed_out |= is_over(&mut timeout);
                    if is_over(&mut hangup) || timed_out {
                        self.kill();
                    }
                    if let Some((connection, _)) = held_back.take_if(|(_, until)| *until <= now) {
                        // A client that has left is seen by its reader.
                        let _ = connection.send_held_back();
                    }
                }
                // The reaper holds a sender until the command has ended, and tells of that first.
                Err(RecvTimeoutError::Disconnected) => return (cause(ExitStatus::from_raw(SIGKILL)), lost),
            }
        }
    }

    fn signal_all(&self, signal: i32) {
        // The reaper goes on: the search takes too long for every session to wait for it.
        for pid in self.confinement.members() {
            // One that has ended meanwhile needs no signal.
            let _ = sys::kill(pid, signal);
        }
    }

    /// Sends `signal` to a process group of the session while the command runs.
    fn signal(&self, group: i32, signal: i32) {
        self.reaper.while_alive(self.pid, || {
            // A group that has ended meanwhile needs no signal.
            let _ = sys::kill(-group, signal);
        });
    }

    /// SIGKILL to all, and to the command even if it has left its confinement.
    fn kill(&self) {
        self.confinement.kill();
        self.signal(self.pid.cast_signed(), SIGKILL);
    }

    /// Ends what is left, and waits until it is gone.
    fn end_all(&self) {
        let deadline = Instant::now() + LAST_PROCESSES;
        self.signal(self.pid.cast_signed(), SIGKILL);
        if !self.reaper.wait_until(deadline, || self.confinement.kill()) {
            console::say(format_args!("killed processes of a session are stuck in the kernel"));
        }
    }
}

fn cause(status: ExitStatus) -> EndCause {
    match (status.code(), status.signal()) {
        (Some(code), _) => EndCause::Exit { code },
        (None, signal) => EndCause::Signal { signal: signal.unwrap_or(SIGKILL) },
    }
}

struct CommandControls {
    group: Arc<Group>,
    master: Option<Box<dyn MasterPty + Send>>,
    takes_input: bool,
    hung_up: Cell<bool>,
    events: SyncSender<Event>,
}

impl Controls for CommandControls {
    fn signal(&self, signal: i32) {
        let foreground = self.master.as_ref().and_then(|master| master.process_group_leader());
        match foreground {
            Some(foreground) => self.group.signal(foreground, signal),
            None => self.group.signal(self.group.pid.cast_signed(), signal),
        }
    }

    fn resize(&self, size: TerminalSize) {
        if let Some(master) = &self.master {
            terminal::resize(master.as_ref(), size);
        }
    }

    fn kill(&self) {
        self.group.kill();
    }

    fn close_stdout(&self) {
        if self.master.is_some() && !self.hung_up.replace(true) {
            // A terminal has no reading end to close; one that nobody looks at has hung up. Fails only when
            // the session is over.
            let _ = self.events.try_send(Event::HangUp);
        }
    }

    fn takes_input(&self) -> bool {
        self.takes_input
    }
}

//! The life of an agent, the same in a guest and as a plain process.
//!
//! ```text
//!   connect ── Hello ──> plan ── mounts, user, exec ──> Started ── output, Stop ──> workload ended
//!                          |            |                                               |
//!                          |            └── any failure ────────┐                kill the rest, drain
//!                          └── link gone: power off             v                       v
//!                                                              Exit ── flush ── ack ── power off
//! ```
//!
//! A Restart ends the workload's own processes, and leads from "workload ended" back to exec: sessions stay.
//!
//! A plan that holds has one more step between mounts and exec: sessions ── Held ──> Go. Otherwise sessions are
//! taken once the workload runs, which starts it sooner.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use iii_protocol::exit::ExitCause;
use iii_protocol::frame::{FrameError, read_frame};
use iii_protocol::guest::{self, BootPlan, Exit, Hello, ProcessPlan, Started};
use nix::libc::SIGKILL;
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::console;
use crate::engine::EngineDoor;
use crate::error::StartError;
use crate::link::{EVENT_QUEUE, Event, LinkWriter, forward_events};
use crate::output::Pump;
use crate::platform::Platform;
use crate::reaper::{Ended, Reaper};
use crate::session::Sessions;
use crate::stop::{StopAction, StopState};
use crate::sys;
use crate::workload::{self, Workload};

/// How long killed processes may take to be gone. Only one stuck in the kernel takes any time at all.
const LAST_PROCESSES: Duration = Duration::from_secs(5);
/// How long the shim may take to put the exit on its disk.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);

/// The agent could not even learn what to do; there is nobody to tell but the console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("cannot connect to the host: {0}")]
    Connect(std::io::Error),
    #[error("the control link failed before the boot plan: {0}")]
    Link(#[from] FrameError),
    #[error("the host closed the control link before the boot plan")]
    NoPlan,
    #[error("expected the boot plan, got a frame of kind {0}")]
    NotAPlan(u8),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Runs the machine from Hello to the acknowledged Exit.
pub(crate) fn run(platform: &mut dyn Platform) -> Result<(), AgentError> {
    let stream = platform.connect().map_err(AgentError::Connect)?;
    let link = Arc::new(LinkWriter::new(stream.try_clone().map_err(AgentError::Connect)?));
    link.send_json(guest::KIND_HELLO, &hello())?;
    // The plan travels meanwhile.
    let prepared = platform.prepare();
    let mut stream = BufReader::new(stream);
    let plan = read_plan(&mut stream)?;

    let (sender, events) = sync_channel(EVENT_QUEUE);
    forward_events(stream, sender.clone()).map_err(AgentError::Thread)?;
    let reaper = Reaper::start().map_err(AgentError::Thread)?;
    let mut machine = Machine { platform, link, events, sender, reaper, sessions: None };
    let exit = match prepared.and_then(|()| machine.boot(plan)) {
        Ok((workload, process)) => machine.supervise(workload, &process),
        Err(error) => {
            machine.end_everything();
            Exit { cause: error.into(), uptime_ms: 0 }
        }
    };
    machine.last_word(&exit);
    Ok(())
}

fn hello() -> Hello {
    let kernel = uname().map(|it| it.release().to_string_lossy().into_owned()).unwrap_or_default();
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Hello { version: guest::VERSION, kernel, uptime_ms: milliseconds(uptime) }
}

fn read_plan(stream: &mut BufReader<File>) -> Result<Result<BootPlan, StartError>, AgentError> {
    let frame = read_frame(stream)?.ok_or(AgentError::NoPlan)?;
    if frame.kind != guest::KIND_PLAN {
        return Err(AgentError::NotAPlan(frame.kind));
    }
    Ok(check_plan(frame.parse().map_err(|error| StartError::new("boot plan", error))))
}

fn check_plan(plan: Result<BootPlan, StartError>) -> Result<BootPlan, StartError> {
    let plan = plan?;
    if plan.version == guest::VERSION {
        return Ok(plan);
    }
    let (theirs, ours) = (plan.version, guest::VERSION);
    Err(StartError::new("boot plan", format!("the shim speaks version {theirs}, the agent {ours}"))
        .hint("this is a damaged installation of iii: install it again"))
}

/// What the end of a workload is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The machine ends with it.
    End,
    /// It is started again.
    Restart,
}

/// How a workload is over.
enum Over {
    /// For good.
    Ended(Exit),
    /// To be started again.
    Again,
}

struct Machine<'a> {
    platform: &'a mut dyn Platform,
    link: Arc<LinkWriter>,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    reaper: Arc<Reaper>,
    sessions: Option<Sessions>,
}

impl Machine<'_> {
    /// From the plan to the running workload.
    fn boot(&mut self, plan: Result<BootPlan, StartError>) -> Result<(Workload, ProcessPlan), StartError> {
        let plan = plan?;
        self.platform.enter(&plan)?;
        self.still_wanted()?;
        if let Some(port) = plan.engine_port {
            let opened =
                self.platform.engine_door(port).and_then(|door| door.map_or(Ok(()), EngineDoor::open));
            if let Err(error) = opened {
                console::say(format_args!("there is no way to the engine (port {port}): {error}"));
            }
        }
        if plan.hold {
            let sessions = self.take_sessions(plan.workload.clone());
            // Without them the shim could do nothing while the workload waits.
            self.sessions = sessions.map_err(|error| StartError::new("sessions", error))?;
            self.wait_for_go()?;
        }
        let workload = self.start(&plan.workload)?;
        if !plan.hold {
            self.sessions = self.take_sessions(plan.workload.clone()).unwrap_or_else(|error| {
                console::say(format_args!("going on without sessions: {error}"));
                None
            });
        }
        Ok((workload, plan.workload))
    }

    fn start(&self, process: &ProcessPlan) -> Result<Workload, StartError> {
        workload::start(process, &*self.platform, &self.reaper, self.sender.clone())
    }

    fn wait_for_go(&self) -> Result<(), StartError> {
        // A lost link is seen by its reader.
        let _ = self.link.send(guest::KIND_HELD, &[]);
        loop {
            match self.events.recv() {
                Ok(Event::Go) => return Ok(()),
                Ok(event) => go_on_after(&event)?,
                Err(RecvError) => return Err(host_is_gone()),
            }
        }
    }

    fn take_sessions(&self, workload: ProcessPlan) -> std::io::Result<Option<Sessions>> {
        let Some(listener) = self.platform.listen()? else { return Ok(None) };
        let (host, reaper) = (self.platform.session_host(), Arc::clone(&self.reaper));
        Sessions::start(listener, host, reaper, workload).map(Some)
    }

    /// Ends everything but the agent, and waits until it is gone.
    fn end_everything(&self) {
        self.kill_everything();
        let deadline = Instant::now() + LAST_PROCESSES;
        if !self.reaper.wait_childless(deadline, || self.platform.kill_everything()) {
            console::say(format_args!("killed processes are stuck in the kernel; going on without them"));
        }
    }

    /// Sends SIGKILL to everything but the agent. The connections of sessions are closed first: their clients
    /// are to hear of a lost worker, not of commands that were killed.
    fn kill_everything(&self) {
        if let Some(sessions) = &self.sessions {
            sessions.close();
        }
        self.platform.kill_everything();
    }

    /// A stop that came before there was anything to stop.
    fn still_wanted(&self) -> Result<(), StartError> {
        loop {
            match self.events.try_recv() {
                Ok(event) => go_on_after(&event)?,
                Err(TryRecvError::Disconnected) => return Err(host_is_gone()),
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    /// From the running workload to the last byte of the last one: a restart makes another one of it.
    fn supervise(&mut self, mut workload: Workload, process: &ProcessPlan) -> Exit {
        loop {
            match self.run(workload) {
                Over::Ended(exit) => return exit,
                // A stop or a lost link that came meanwhile is met by the new one.
                Over::Again => match self.start(process) {
                    Ok(next) => workload = next,
                    Err(error) => {
                        self.end_everything();
                        return Exit { cause: error.into(), uptime_ms: 0 };
                    }
                },
            }
        }
    }

    /// From a running workload to its last byte.
    fn run(&mut self, workload: Workload) -> Over {
        let oom_kills = self.platform.oom_kills();
        let Workload { pid, since, stdout, stderr } = workload;
        // A lost link is seen by its reader; the order (Started before any output) is what matters here.
        let _ = self.link.send_json(guest::KIND_STARTED, &Started { pid });
        let pump = Pump::start(stdout, stderr, Arc::clone(&self.link), self.sender.clone());
        let pump = pump.inspect_err(|error| {
            console::say(format_args!("cannot carry the workload's output: {error}"));
            self.kill_everything();
        });

        let (ended, stop, goal) = self.wait_for_end(pid);
        let oom = self.platform.oom_kills() > oom_kills;
        match goal {
            Goal::End => self.end_everything(),
            Goal::Restart => self.end_workload(pid),
        }
        if let Ok(pump) = pump {
            pump.finish();
        }
        if goal == Goal::Restart {
            return Over::Again;
        }
        let uptime_ms = milliseconds(ended.at.saturating_duration_since(since));
        Over::Ended(Exit { cause: cause(ended.status, oom && stop != StopState::Killed), uptime_ms })
    }

    /// Ends what the workload has left behind, waits until it is gone, and makes room for another one.
    fn end_workload(&mut self, leader: u32) {
        let deadline = Instant::now() + LAST_PROCESSES;
        if !self.reaper.wait_until(deadline, || self.platform.kill_workload(leader)) {
            console::say(format_args!(
                "killed processes of the workload are stuck; starting it without them"
            ));
        }
        self.platform.renew_workload();
    }

    fn wait_for_end(&self, pid: u32) -> (Ended, StopState, Goal) {
        let mut state = StopState::Running;
        let mut goal = Goal::End;
        loop {
            let event = match state.deadline() {
                Some(at) => self.events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self.events.recv().map_err(RecvTimeoutError::from),
            };
            let (next, action) = match event {
                Ok(Event::WorkloadEnded(ended)) => return (ended, state, goal),
                // The end of a machine goes before a restart in it: it takes over what that has begun.
                Ok(Event::Stop(stop)) => {
                    goal = Goal::End;
                    state.asked(Instant::now(), &stop)
                }
                Ok(Event::Restart(stop)) if state == StopState::Running => {
                    goal = Goal::Restart;
                    state.asked(Instant::now(), &stop)
                }
                // Under way already.
                Ok(Event::Restart(_)) => (state, StopAction::Nothing),
                Ok(Event::LinkLost) => {
                    goal = Goal::End;
                    state.abandoned()
                }
                Ok(Event::Go | Event::ExitAcknowledged) => (state, StopAction::Nothing),
                // This side holds a sender, so the channel is never disconnected.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => state.at(Instant::now()),
            };
            state = next;
            match action {
                StopAction::Nothing => {}
                StopAction::Signal(signal) => signal_group(pid, signal),
                StopAction::Kill => match goal {
                    Goal::End => self.kill_everything(),
                    Goal::Restart => {
                        // It may have moved itself out of where the others are.
                        signal_group(pid, SIGKILL);
                        self.platform.kill_workload(pid);
                    }
                },
            }
        }
    }

    /// Says Exit and waits until it is safe with the shim.
    fn last_word(&self, exit: &Exit) {
        let told = self.link.send_json(guest::KIND_EXIT, exit);
        // The shim writes its record while the disks are flushed.
        self.platform.flush();
        let deadline = Instant::now() + ACKNOWLEDGE;
        while told.is_ok() {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::ExitAcknowledged | Event::LinkLost) | Err(_) => return,
                Ok(Event::Stop(_) | Event::Go | Event::Restart(_) | Event::WorkloadEnded(_)) => {}
            }
        }
    }
}

/// Whether the workload is to be started in spite of what has happened before.
fn go_on_after(event: &Event) -> Result<(), StartError> {
    match event {
        Event::Stop(_) => Err(StartError::new("start", "stopped before the workload was started")),
        Event::LinkLost => Err(host_is_gone()),
        // Nobody was told yet that the workload waits; passed over, it would be waited for in vain.
        Event::Go | Event::Restart(_) => Err(StartError::new("start", "the host is ahead of the guest")),
        Event::ExitAcknowledged | Event::WorkloadEnded(_) => Ok(()),
    }
}

fn host_is_gone() -> StartError {
    StartError::new("start", "the host is gone")
}

fn signal_group(pid: u32, signal: i32) {
    // ESRCH is a workload that has just ended; its end is on the way.
    let _ = sys::kill(-pid.cast_signed(), signal);
}

fn cause(status: ExitStatus, oom: bool) -> ExitCause {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCause::Exit { code },
        (None, Some(SIGKILL)) if oom => ExitCause::Oom,
        (None, signal) => ExitCause::Signal { signal: signal.unwrap_or(SIGKILL) },
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

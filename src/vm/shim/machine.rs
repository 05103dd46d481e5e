//! The life of one machine: spawn the VMM, hand the agent its plan, follow it to its end, tell the truth.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use iii_protocol::api::Refused;
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::frame::Frame;
use iii_protocol::guest::{self, BootPlan, Exit, Hello, RootPlan, Stop};
use iii_protocol::log::Stream;
use iii_protocol::shim::{MachinePhase, ShimStatus, StopMachine};
use jiff::Timestamp;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::agent_link::{self, FromAgent};
use super::console::Console;
use super::daemon_link::{self, FromDaemon, LinkContext};
use super::network::{MachineNetwork, guest_network};
use super::output::Output;
use super::spawn::spawn_vmm;
use super::{Places, ShimSpec, remove_sockets};
use crate::vm::krun::{ROOT_DISK_DEVICE, SCRATCH_DISK_DEVICE};
use crate::vm::wire::{FrameReader, write_frame};

mod last_word;
mod preparation;
mod refresh;

pub(super) use last_word::{could_not_start, plain};

use last_word::{agents_cause, no_machine, no_start, now_ns, publish_end, write_last_word};
use preparation::{News, Preparation, workspace};
use refresh::Refresh;

/// Frames from the agent that may wait. Behind it the agent, and behind that the workload, wait.
const AGENT_QUEUE: usize = 8;
/// Frames to the agent that may wait. A plan, an acknowledgement and some stops are all there ever is, and
/// behind each a deadline runs: what a guest that does not read has no room for can be dropped.
const TO_AGENT_QUEUE: usize = 8;
/// Requests from daemons that may wait.
const DAEMON_QUEUE: usize = 16;
/// The longest grace of a stop; keeps deadlines far from the end of the calendar.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// What the guest has beyond a stop's grace to say its last word, before the VMM is killed.
const STOP_MARGIN: Duration = Duration::from_secs(3);
/// What the guest has to power off after its last word was acknowledged.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(3);
/// How long a slow daemon may keep an ended shim waiting for its last reads.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// What is told of a disk that was replaced.
const NEW_DISK: &str = "the base image changed: the project begins on a new disk, the old one is gone";
/// SIGKILL's number, for an end that had to be forced.
const SIGKILL: i32 = 9;

/// Runs the machine to its end.
pub(super) async fn run(
    spec: ShimSpec,
    birth: FrameReader<OwnedReadHalf>,
    birth_writer: OwnedWriteHalf,
    Places { daemons, agents, engine, ring, mut output }: Places,
    mut terminate: Signal,
) -> anyhow::Result<()> {
    if spec.base_changed {
        output.event(NEW_DISK);
    }
    let boot_limit = Duration::from_millis(spec.machine.boot_timeout_ms);
    let (since, detail) = (Timestamp::now(), None);
    let phase = MachinePhase::Booting { since, deadline: since + boot_limit, detail };
    let status = watch::Sender::new(ShimStatus {
        worker: spec.machine.worker.clone(),
        generation: spec.machine.generation,
        spec_hash: spec.machine.hash(),
        shim_pid: std::process::id(),
        vmm_pid: None,
        phase,
        next_seq: output.next_seq(),
        refused: Refused::default(),
        activity: None,
    });
    let (daemon_events, mut from_daemon) = mpsc::channel(DAEMON_QUEUE);
    let ctx = LinkContext { status: status.subscribe(), ring, events: daemon_events };
    let links = tokio::spawn(daemon_link::serve(birth, birth_writer, daemons, ctx));
    let (agent_events, mut from_agent) = mpsc::channel(AGENT_QUEUE);
    tokio::spawn(agent_link::serve(agents, agent_events));
    tracing::info!(generation = spec.machine.generation, "starting the VMM");

    let started = match MachineNetwork::start(&spec.machine.network, &spec.machine.engine, engine) {
        Ok((network, guests_end)) => match spawn(&spec, &guests_end).await {
            Ok((vmm, console, preparation)) => Ok((network, guests_end, vmm, console, preparation)),
            Err(error) => Err(no_machine(&spec, &error)),
        },
        Err(error) => Err(error.into()),
    };
    let (mut network, guests_end, mut vmm, console, preparation) = match started {
        Ok(started) => started,
        Err(cause) => {
            tracing::error!(?cause, "there is no machine");
            let exit = no_start(&spec, cause);
            remove_sockets(&spec.run_dir);
            let written = write_last_word(&spec, &exit);
            publish_end(&status, &output, exit);
            // The last word is on disk; a daemon that does not read it now finds it there.
            let _ = timeout(LAST_WORD_LIMIT, links).await;
            return written;
        }
    };
    // The VMM has its own now. A plain process has none, and a link without another end would end the network.
    let _guests_end = spec.libkrunfw.is_none().then_some(guests_end);
    status.send_modify(|status| status.vmm_pid = vmm.id());

    let mut machine = Machine {
        kill_at: Some(Instant::now() + boot_limit),
        spec,
        status,
        output,
        console,
        born: Instant::now(),
        agent: Agent::Absent,
        greeted: false,
        preparation,
        refresh: Refresh::default(),
        skipped: Vec::new(),
        running_since: None,
        last_word: None,
        is_written: false,
        verdict: None,
        stop_requested: false,
        orphaned_at: None,
    };
    let mut vmm_ended = None;
    while vmm_ended.is_none() || machine.agent.may_speak() {
        let kill_at = machine.kill_at;
        let orphan_at = machine.orphan_deadline();
        tokio::select! {
            // What the agent said comes before what happened to the VMM.
            biased;
            Some(event) = from_agent.recv() => machine.on_agent(event, &mut vmm),
            line = network.news() => machine.on_news(&line, network.refused()),
            news = next_news(&mut machine.preparation) => machine.on_preparation(news),
            Some(event) = from_daemon.recv() => machine.on_daemon(event, &mut vmm),
            result = vmm.wait(), if vmm_ended.is_none() => vmm_ended = Some(result?),
            () = at(kill_at), if vmm_ended.is_none() => machine.on_deadline(&mut vmm),
            () = at(orphan_at) => machine.on_orphaned(&mut vmm),
            Some(()) = terminate.recv() => machine.on_orphaned(&mut vmm),
        }
    }
    while let Some(line) = network.pending_news() {
        machine.on_news(&line, network.refused());
    }
    drop(network);
    // Before the end is told: after that nobody looks for what a shim leaves that is killed on its way out.
    remove_sockets(&machine.spec.run_dir);
    let written = machine.conclude(vmm_ended.context("the VMM has not ended")?).await;
    drop(machine);
    // As above: whoever is too slow finds everything on disk. If the disk would not take it, this is the
    // only way it is told at all.
    let _ = timeout(LAST_WORD_LIMIT, links).await;
    written
}

/// The VMM, and beside it what its project needs.
async fn spawn(
    spec: &ShimSpec,
    guests_end: &OwnedFd,
) -> anyhow::Result<(Child, Console, Option<Preparation>)> {
    let (vmm, console) = spawn_vmm(spec, guests_end).await?;
    Ok((vmm, console, Preparation::start(spec, spec.base_changed)?))
}

async fn next_news(preparation: &mut Option<Preparation>) -> News {
    match preparation {
        Some(preparation) => preparation.next().await,
        None => std::future::pending().await,
    }
}

/// Never, when there is no deadline.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug)]
enum Agent {
    /// Not connected yet.
    Absent,
    /// Connected; what is put here is written by a task of its own, so that a guest that does not read
    /// holds up neither a deadline nor a stop.
    Here(mpsc::Sender<Frame>),
    /// Its link has ended.
    Gone,
}

impl Agent {
    /// Whether frames may still arrive although the VMM is dead: they are in the socket's buffer.
    fn may_speak(&self) -> bool {
        matches!(self, Agent::Here(_))
    }
}

struct Machine {
    spec: ShimSpec,
    status: watch::Sender<ShimStatus>,
    output: Output,
    console: Console,
    born: Instant,
    agent: Agent,
    /// The agent has said hello and has its plan.
    greeted: bool,
    /// Until the workload may start, and while its project is brought up to date; `None` without a project.
    preparation: Option<Preparation>,
    refresh: Refresh,
    /// What was last told not to be copied of the project.
    skipped: Vec<String>,
    running_since: Option<Timestamp>,
    /// The agent's own account of the end: the truth, if there is one.
    last_word: Option<ExitRecord>,
    /// The last word is on disk.
    is_written: bool,
    /// Why we ended it ourselves.
    verdict: Option<ExitCause>,
    stop_requested: bool,
    /// When the VMM is killed: the boot deadline, then that of a stop, then that of the power-off.
    kill_at: Option<Instant>,
    /// Since when no daemon is there; `None` while one is.
    orphaned_at: Option<Instant>,
}

impl Machine {
    fn on_agent(&mut self, event: FromAgent, vmm: &mut Child) {
        match event {
            FromAgent::Connected(writer) => {
                let (queue, frames) = mpsc::channel(TO_AGENT_QUEUE);
                tokio::spawn(write_frames(writer, frames));
                self.agent = Agent::Here(queue);
            }
            FromAgent::Gone => {
                self.agent = Agent::Gone;
                // After the last word there is nothing left to lose; before it there is nothing left to
                // learn. The guest itself may hang.
                kill(vmm);
            }
            FromAgent::Frame(frame) => {
                if let Err(error) = self.on_frame(&frame) {
                    let message = plain(&format!("the guest's agent said something wrong: {error:#}"));
                    self.verdict.get_or_insert(ExitCause::VmmDied { detail: message });
                    kill(vmm);
                }
            }
        }
    }

    /// The guest may say anything: what is out of turn ends the machine, so that it cannot put off a
    /// deadline, and after the last word nothing counts.
    fn on_frame(&mut self, frame: &Frame) -> anyhow::Result<()> {
        if self.last_word.is_some() {
            return Ok(());
        }
        match frame.kind {
            guest::KIND_HELLO => {
                let hello: Hello = frame.parse()?;
                anyhow::ensure!(hello.version == guest::VERSION, "it speaks version {}", hello.version);
                anyhow::ensure!(!self.greeted, "it said hello twice");
                self.greeted = true;
                let (kernel, after_ms) = (plain(&hello.kernel), self.after_ms());
                tracing::info!(kernel, uptime_ms = hello.uptime_ms, after_ms, "the guest says hello");
                let plan = self.plan();
                self.say(Frame::json(guest::KIND_PLAN, &plan));
                if self.stop_requested {
                    self.say_stop(0);
                }
            }
            _ if !self.greeted => anyhow::bail!("a frame of kind {} before its hello", frame.kind),
            guest::KIND_HELD => {
                let preparation = self.preparation.as_mut().context("it waits for nothing")?;
                preparation.held();
                tracing::info!(after_ms = self.after_ms(), "the guest waits for its project");
                if !self.stop_requested {
                    // A copy and an install take what they take; whoever waits sees how far they are.
                    self.kill_at = None;
                    self.set_booting(Duration::MAX, None);
                }
            }
            guest::KIND_STARTED => {
                anyhow::ensure!(self.preparation.is_none(), "it started the workload before its time");
                let is_restart = self.refresh.is_restarting();
                anyhow::ensure!(self.running_since.is_none() || is_restart, "it started the workload twice");
                let since = Timestamp::now();
                tracing::info!(after_ms = self.after_ms(), "the workload runs");
                self.running_since = Some(since);
                if !self.stop_requested {
                    self.kill_at = None;
                    self.set_phase(MachinePhase::Running { since });
                }
                if is_restart {
                    self.has_restarted();
                }
            }
            guest::KIND_STDOUT | guest::KIND_STDERR => {
                anyhow::ensure!(self.running_since.is_some(), "output before the workload's start");
                let (at_ns, bytes) = guest::parse_output(&frame.payload).context("a short output frame")?;
                let stream = if frame.kind == guest::KIND_STDOUT { Stream::Stdout } else { Stream::Stderr };
                self.output.feed(stream, at_ns, bytes);
            }
            guest::KIND_EXIT => {
                let Exit { cause, uptime_ms } = frame.parse()?;
                // Of a machine that ends nothing is brought up to date any more.
                self.preparation = None;
                self.output.finish();
                // It cannot have run longer than its machine: a long run makes earlier deaths forgotten.
                let uptime_ms = uptime_ms.min(self.after_ms());
                let exit = self.record(agents_cause(&self.spec, cause)?, uptime_ms);
                match write_last_word(&self.spec, &exit) {
                    Ok(()) => self.is_written = true,
                    // It is true all the same: it is told over the link, and tried again at the end.
                    Err(error) => tracing::warn!("{error:#}"),
                }
                self.last_word = Some(exit);
                self.kill_at = Some(Instant::now() + POWER_OFF_LIMIT);
                self.say(Frame { kind: guest::KIND_EXIT_ACK, payload: Vec::new() });
            }
            kind => anyhow::bail!("a frame of unknown kind {kind}"),
        }
        Ok(())
    }

    /// Milliseconds since the VMM was started: where the time of a slow boot goes.
    fn after_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn plan(&self) -> BootPlan {
        let machine = &self.spec.machine;
        let mut workload = machine.process.clone();
        if machine.project.is_some() {
            workload.cwd = workspace(&self.spec);
        }
        let (root, network) = match self.spec.libkrunfw {
            Some(_) => (
                RootPlan::Overlay { lower: ROOT_DISK_DEVICE.into(), upper: SCRATCH_DISK_DEVICE.into() },
                Some(guest_network(&machine.network)),
            ),
            None => (RootPlan::Surroundings, None),
        };
        BootPlan {
            version: guest::VERSION,
            now_ns: Some(now_ns()),
            hostname: machine.worker.clone(),
            root,
            network,
            engine_port: Some(machine.engine.port),
            hold: machine.project.is_some(),
            workload,
        }
    }

    /// The network has something to tell.
    fn on_news(&mut self, line: &str, refused: Refused) {
        self.output.event(&plain(line));
        self.status
            .send_if_modified(|status| std::mem::replace(&mut status.refused, refused) != status.refused);
    }

    fn on_daemon(&mut self, event: FromDaemon, vmm: &mut Child) {
        match event {
            FromDaemon::Attached(link) => {
                tracing::debug!(link, "a daemon is there");
                self.orphaned_at = None;
            }
            FromDaemon::Gone(link) => {
                tracing::info!(link, "the daemon is gone");
                self.orphaned_at = Some(Instant::now());
            }
            FromDaemon::Stop(StopMachine { grace_ms }) => self.stop(grace_ms, vmm),
            FromDaemon::Resync => self.resync(),
        }
    }

    fn orphan_deadline(&self) -> Option<Instant> {
        let since = self.orphaned_at.filter(|_| !self.stop_requested)?;
        Some(since + Duration::from_millis(self.spec.machine.orphan_grace_ms))
    }

    fn on_orphaned(&mut self, vmm: &mut Child) {
        tracing::info!("no daemon has come back, or the shim was told to end: stopping");
        self.stop(self.spec.machine.stop_timeout_ms, vmm);
    }

    /// A second stop may shorten the grace, never lengthen it.
    fn stop(&mut self, grace_ms: u64, vmm: &mut Child) {
        let first = !self.stop_requested;
        self.stop_requested = true;
        // Ends what it does in the guest: its sessions have lost their client.
        self.preparation = None;
        self.set_activity(None);
        if self.last_word.is_some() {
            return;
        }
        let grace = Duration::from_millis(grace_ms).min(LONGEST_GRACE);
        let kill_at = Instant::now() + grace + STOP_MARGIN;
        self.kill_at = Some(match self.kill_at {
            Some(earlier) if !first => earlier.min(kill_at),
            _ => kill_at,
        });
        self.set_phase(MachinePhase::Stopping {
            running_since: self.running_since,
            deadline: Timestamp::now() + grace,
        });
        match self.agent {
            Agent::Here(_) => self.say_stop(grace_ms),
            // Nothing of the user's runs yet: there is nobody to be polite to.
            Agent::Absent | Agent::Gone => kill(vmm),
        }
    }

    fn say_stop(&self, grace_ms: u64) {
        let stop = Stop { signal: self.spec.machine.stop_signal, grace_ms };
        self.say(Frame::json(guest::KIND_STOP, &stop));
    }

    fn on_deadline(&mut self, vmm: &mut Child) {
        self.kill_at = None;
        if !self.stop_requested && self.last_word.is_none() && self.verdict.is_none() {
            self.verdict = Some(self.overdue());
        }
        kill(vmm);
    }

    /// A broken link shows as its end soon enough, so a failed write is not an event of its own.
    fn say(&self, frame: Frame) {
        if let Agent::Here(queue) = &self.agent
            && let Err(error) = queue.try_send(frame)
        {
            tracing::debug!(%error, "the agent does not take a frame");
        }
    }

    fn set_phase(&self, phase: MachinePhase) {
        self.status.send_modify(|status| status.phase = phase);
    }

    fn console_said(&self) -> String {
        match self.console.tail() {
            tail if tail.is_empty() => "; the console is empty".to_owned(),
            tail => format!("; the console's last lines:\n{tail}"),
        }
    }

    fn record(&self, cause: ExitCause, uptime_ms: u64) -> ExitRecord {
        let generation = self.spec.machine.generation;
        ExitRecord { generation, at: Timestamp::now(), uptime_ms, cause, requested: self.stop_requested }
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = write_frame(&mut writer, &frame).await {
            tracing::debug!(%error, kind = frame.kind, "the agent did not take a frame");
            return;
        }
    }
}

/// The VMM is our child and not reaped yet, so its process id cannot belong to anybody else.
fn kill(vmm: &mut Child) {
    if let Err(error) = vmm.start_kill() {
        tracing::debug!(%error, "the VMM has ended already");
    }
}

#[cfg(test)]
mod tests;

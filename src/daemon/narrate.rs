//! What the daemon prints: one line per state change, for the person in front of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use iii_protocol::api::{ErrorBody, Phase, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Event;
use crate::units::short_duration;

/// How many lines may wait for a terminal that does not take them (Ctrl-S, a full pipe). Above that they
/// are dropped: the daemon never waits for its reader.
pub const MAX_WAITING_LINES: usize = 256;

/// Turns statuses into lines; remembers what it has said of each worker.
#[derive(Debug)]
pub struct Narrator {
    zone: TimeZone,
    said: HashMap<String, Said>,
}

#[derive(Debug)]
struct Said {
    phase: Phase,
    phase_began: Timestamp,
    last_exit: Option<Timestamp>,
    cause: Option<ErrorBody>,
    /// When the boot began that is going on.
    booting_since: Option<Timestamp>,
    running_since: Option<Timestamp>,
    /// Why the last edit of its project is not in force.
    not_in_force: Option<String>,
    /// What was being done to make its project ready.
    step: Option<String>,
}

impl Narrator {
    /// Times are printed in `zone`.
    pub fn new(zone: TimeZone) -> Narrator {
        Narrator { zone, said: HashMap::new() }
    }

    /// The lines for one event, each without its newline.
    pub fn lines(&mut self, now: Timestamp, event: &Event) -> Vec<String> {
        let clock = now.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string();
        match event {
            Event::Worker(status) => {
                self.worker(now, status).into_iter().map(|text| format!("{clock} {text}")).collect()
            }
            Event::ConfigInForce { changed } if changed.is_empty() => {
                vec![format!("{clock} config.yaml was read again: nothing changed")]
            }
            Event::ConfigInForce { changed } => {
                vec![format!("{clock} config.yaml was read again: {}", changed.join(", "))]
            }
            Event::ConfigRefused { error } => {
                vec![format!("{clock} config.yaml is not in force, the last good one still is:\n{error}")]
            }
        }
    }

    fn worker(&mut self, now: Timestamp, status: &WorkerStatus) -> Vec<String> {
        let name = &status.name;
        let before = self.said.get(name);
        let newest = status.exits.first();
        let mut lines = Vec::new();
        if let (Some(before), Some(exit)) = (before, newest)
            && before.last_exit.is_none_or(|last| exit.at > last)
            && !exit.requested
        {
            lines.push(format!("{name}  ended: {}", describe_exit(exit)));
        }
        let same = before.is_some_and(|before| {
            before.phase == status.phase && before.phase_began == status.since && before.cause == status.cause
        });
        if !same {
            let booting_since = before.and_then(|b| b.booting_since);
            lines.extend(
                phase_line(now, status, before.is_none(), booting_since).map(|l| format!("{name}  {l}")),
            );
        }
        // Before its first phase is told, a step of it means nothing.
        let step = status.step().filter(|_| status.phase == Phase::Booting);
        if let (Some(before), Some(step)) = (before, step)
            && before.step.as_deref() != Some(step)
        {
            lines.push(format!("{name}  {step}"));
        }
        let trouble = status.not_in_force();
        // With the same machine, and running all the time.
        if same && before.is_some_and(|before| before.running_since != status.running_since) {
            lines.push(format!("{name}  restarted in place: its project has changed"));
        }
        if let Some(trouble) = trouble
            && before.is_none_or(|before| before.not_in_force.as_deref() != Some(trouble))
        {
            lines.push(format!("{name}  {trouble}"));
        }
        let booting_since = match status.phase {
            Phase::Booting => Some(status.since),
            _ => None,
        };
        self.said.insert(
            name.clone(),
            Said {
                phase: status.phase,
                phase_began: status.since,
                last_exit: newest.map(|exit| exit.at),
                cause: status.cause.clone(),
                booting_since,
                running_since: status.running_since,
                not_in_force: trouble.map(str::to_owned),
                step: step.map(str::to_owned),
            },
        );
        lines
    }
}

fn phase_line(
    now: Timestamp,
    status: &WorkerStatus,
    first: bool,
    booting_since: Option<Timestamp>,
) -> Option<String> {
    let left = status.until.map(|until| short_duration(between(now, until)));
    let because = status.cause.as_ref().map(|cause| format!(": {}", cause.message)).unwrap_or_default();
    Some(match status.phase {
        // A worker that is stopped at start-up is no news; one that has just stopped is.
        Phase::Stopped if first => return None,
        Phase::Stopped => match status.exits.first() {
            Some(exit) => format!("stopped ({})", exit.cause),
            None => "stopped".to_owned(),
        },
        Phase::Preparing => match &status.detail {
            Some(detail) => format!("preparing: {detail}"),
            None => "preparing".to_owned(),
        },
        Phase::Booting => "booting".to_owned(),
        Phase::Running => {
            let since = status.running_since.unwrap_or(status.since);
            match booting_since {
                Some(began) => format!("running (boot {})", short_duration(between(began, since))),
                None => format!("running (up {})", short_duration(between(since, now))),
            }
        }
        Phase::Stopping => match left {
            Some(left) => format!("stopping (killed in {left})"),
            None => "stopping".to_owned(),
        },
        Phase::Backoff => format!("restarts in {}{because}", left.unwrap_or_else(|| "a moment".to_owned())),
        Phase::CrashLoop => {
            format!("crash-loop, restarts in {}{because}", left.unwrap_or_else(|| "a moment".to_owned()))
        }
        Phase::Failed => {
            let hint = status.cause.as_ref().and_then(|cause| cause.hint.as_deref());
            format!("failed{because}{}", hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default())
        }
    })
}

/// `exit 7 after 3m 12s`, or what kept it from starting.
fn describe_exit(exit: &ExitRecord) -> String {
    match &exit.cause {
        ExitCause::CouldNotStart { what, message, .. } => format!("could not start ({what}): {message}"),
        ExitCause::VmmDied { detail } => format!("vmm-died: {detail}"),
        cause => format!("{cause} after {}", short_duration(Duration::from_millis(exit.uptime_ms))),
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Prints lines in a thread of its own, so that a reader that stops reading stops nothing else.
#[derive(Debug)]
pub struct Printer {
    lines: SyncSender<String>,
    /// Never sent to: closed when the thread has ended.
    ended: Receiver<Infallible>,
}

impl Printer {
    /// A printer onto `out`, flushed after each line.
    pub fn start(out: impl Write + Send + 'static) -> std::io::Result<Printer> {
        let (lines, waiting) = sync_channel(MAX_WAITING_LINES);
        let (guard, ended) = sync_channel(1);
        std::thread::Builder::new().name("iii-print".to_owned()).spawn(move || {
            let _guard = guard;
            print(out, waiting);
        })?;
        Ok(Printer { lines, ended })
    }

    /// Prints a line soon, or never if too many wait already.
    pub fn line(&self, line: impl Into<String>) {
        // Full: nobody reads. Disconnected: the output is closed. Neither is the daemon's business.
        let _ = self.lines.try_send(line.into());
    }

    /// Lets the lines that wait be printed, for `patience` at most.
    pub fn finish(self, patience: Duration) {
        drop(self.lines);
        let _ = self.ended.recv_timeout(patience);
    }
}

fn print(mut out: impl Write, waiting: Receiver<String>) {
    for line in waiting {
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

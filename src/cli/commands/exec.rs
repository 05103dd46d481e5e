use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use iii_protocol::session::{End, EndCause, Exec, Started, Task};
use jiff::Timestamp;
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant as Deadline;

use crate::cli::args::ExecArgs;
use crate::cli::client::ClientError;
use crate::cli::context::Context;
use crate::cli::copy::Passed;
use crate::cli::exec_plan::{Surroundings, plan};
use crate::cli::exit::{CANNOT_EXECUTE, Failure, NOT_FOUND, SESSION_FAILED, TIMED_OUT, of_signal};
use crate::cli::loss;
use crate::cli::offline::is_machine_running;
use crate::cli::output::Printer;
use crate::cli::patience::{self, Overdue, Patience, at};
use crate::cli::session::{self, OpenError};
use crate::cli::signals::{Came, Escalation, Signals};
use crate::cli::stdio::{self, Copied};
use crate::cli::terminal::{self, RawMode, Streams};
use crate::session::{Control, Ending, Input, Lost, Session};

/// How long a killed session may take to say so.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// The longest text from a guest that is shown, in characters.
const MAX_TOLD_CHARS: usize = 2_000;

/// `iii worker exec`.
pub async fn exec(ctx: &Context, args: &ExecArgs, printer: &mut Printer) -> Result<(), Failure> {
    terminal::end_tidily_on_panic();
    // Before the size is looked at, so that no change of it is missed.
    let mut signals = Signals::listen().map_err(cannot("listen for signals"))?;
    let here = Surroundings {
        stdin_is_terminal: io::stdin().is_terminal(),
        stdin_is_null: stdio::is_null(io::stdin()),
        stdout_is_terminal: io::stdout().is_terminal(),
        size: terminal::size(),
        term: std::env::var("TERM").ok(),
    };
    let exec = plan(args, &here, |key| std::env::var_os(key))?;
    let begun = Timestamp::now();
    let client = ctx.client();
    // The limit of a detached command is the guest's own business.
    let mut patience = Patience::begin(args.timeout.filter(|_| !args.detach));
    let opening = session::open(&client, &args.name, Task::Exec(exec.clone()));
    tokio::pin!(opening);
    let opened = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            signal = signals.asked() => return Err(Failure::Code(of_signal(signal))),
            overdue = patience.overdue() => match overdue {
                Overdue::Answer => printer.warn(&unanswered(&args.name)),
                Overdue::End => return Err(hung(args.timeout)),
            },
        }
    };
    let session = opened.map_err(|error| not_opened(ctx, &args.name, error))?;
    let running = Running::start(session, &exec, patience)?;
    let is_raw = running.raw.is_some();
    let (ran, result) = match running.run(args, &mut signals, printer).await {
        Ok((end, started)) => (started.is_some(), said(ctx, args, begun, end, started, printer).await),
        Err(failure) => (true, Err(failure)),
    };
    if ran && is_raw && matches!(&result, Err(failure) if failure.text().is_some()) {
        // Wherever the command left the cursor, what went wrong begins on a line of its own.
        printer.fresh_line();
    }
    result
}

/// What the end of a session means.
async fn said(
    ctx: &Context,
    args: &ExecArgs,
    begun: Timestamp,
    end: Result<End, Lost>,
    started: Option<Started>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    match end {
        Ok(End { cause: EndCause::Detached }) => {
            let number = started.map(|started| started.session.to_string());
            Ok(printer.print(&number.unwrap_or_default())?)
        }
        Ok(end) => conclude(end, args.timeout),
        Err(lost) => Err(loss::explain(ctx, &args.name, begun, &lost).await),
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |e| Failure::failed(format!("cannot {what}: {e}")).with_code(SESSION_FAILED)
}

fn unanswered(worker: &str) -> String {
    format!("`{worker}` does not answer yet; Ctrl-C leaves")
}

fn hung(limit: Option<Duration>) -> Failure {
    let limit = humantime::format_duration(limit.unwrap_or_default());
    let margin = humantime::format_duration(patience::MARGIN);
    Failure::failed(format!(
        "{limit} were over, and the guest did not say within {margin} more that it ended"
    ))
    .hint("the session is left to the agent, which kills it")
    .with_code(TIMED_OUT)
}

fn not_opened(ctx: &Context, name: &str, error: OpenError) -> Failure {
    match error {
        OpenError::TooLarge(e) => Failure::failed(format!("the argument list is too long: {e}"))
            .hint("send large data through stdin")
            .with_code(CANNOT_EXECUTE),
        OpenError::Client(ClientError::NoDaemon) => without_daemon(ctx, name).with_code(SESSION_FAILED),
        OpenError::Client(e) => Failure::from(e).with_code(SESSION_FAILED),
    }
}

/// What is wrong besides, as far as the disk tells.
fn without_daemon(ctx: &Context, name: &str) -> Failure {
    let config = ctx.load_or_empty().ok().flatten();
    let names: Vec<_> =
        config.into_iter().flat_map(|config| config.workers).map(|worker| worker.name).collect();
    if !names.is_empty() && !names.iter().any(|known| known == name) {
        return ctx.unknown(name, &names);
    }
    if matches!(is_machine_running(ctx, name), Ok(true)) {
        let config = ctx.config.display();
        return Failure::failed(format!("no daemon is running for {config}, though `{name}` runs on"))
            .hint(format!("start it with `iii`; it takes `{name}` over"));
    }
    ctx.explain(ClientError::NoDaemon)
}

/// The exit of a session whose end is known.
fn conclude(end: End, timeout: Option<Duration>) -> Result<(), Failure> {
    let (code, message, hint) = match end.cause {
        EndCause::Exit { code: 0 } | EndCause::Detached => return Ok(()),
        // As wait(2) would tell it.
        EndCause::Exit { code } => return Err(Failure::Code((code & 0xff) as u8)),
        EndCause::Signal { signal } => return Err(Failure::Code(of_signal(signal))),
        EndCause::TimedOut => {
            let limit = humantime::format_duration(timeout.unwrap_or_default());
            return Err(Failure::failed(format!("killed, because {limit} were over")).with_code(TIMED_OUT));
        }
        EndCause::NotFound { message, hint } => (NOT_FOUND, message, hint),
        EndCause::CannotExecute { message, hint } => (CANNOT_EXECUTE, message, hint),
        EndCause::CouldNotStart { message, hint } => (SESSION_FAILED, message, hint),
        EndCause::CopyFailed { message, hint } => (SESSION_FAILED, message, hint),
    };
    let failure = Failure::failed(harmless(&message)).with_code(code);
    Err(match hint {
        Some(hint) => failure.hint(harmless(&hint)),
        None => failure,
    })
}

/// A guest's text for a terminal: whatever it is, it moves no cursor.
fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.into() };
    text.chars().take(MAX_TOLD_CHARS).map(shown).collect()
}

/// A session at work, and our ends of its streams.
struct Running {
    control: Control,
    ending: Ending,
    started: oneshot::Receiver<Started>,
    /// What is fed once the command runs: one that does not start takes nothing from our standard input.
    input: Option<(std::fs::File, Input)>,
    input_error: Option<oneshot::Receiver<io::Error>>,
    outputs: [JoinHandle<Copied>; 2],
    /// Whether there is a terminal in the guest.
    terminal: bool,
    /// Our own terminal's raw mode; its end is restored when this is dropped.
    raw: Option<RawMode>,
    patience: Patience,
}

/// What is known so far.
#[derive(Default)]
struct Progress {
    started: Option<Started>,
    asked_started: bool,
    end: Option<Result<End, Lost>>,
    copied: [Option<Copied>; 2],
    /// Killed by the user: the code to leave with, and when to leave at the latest.
    killed: Option<(u8, Deadline)>,
}

impl Progress {
    fn is_over(&self) -> bool {
        self.end.is_some() && self.copied.iter().all(Option::is_some)
    }
}

type Ended = (Result<End, Lost>, Option<Started>);

impl Running {
    fn start(session: Session, exec: &Exec, patience: Patience) -> Result<Running, Failure> {
        let Session { input, stdout, stderr, control, started, ending } = session;
        let streams = Streams::of_process().map_err(cannot("use the standard streams"))?;
        let raw = match exec.terminal {
            Some(_) => RawMode::enter().map_err(cannot("make the terminal raw"))?,
            None => None,
        };
        if stdio::is_pipe(&streams.stdout) {
            stdout.goes_to(streams.stdout.try_clone().map_err(cannot("use standard output"))?);
        }
        let drain =
            |output, target, name| tokio::spawn(stdio::drain(output, target, name, Passed::default()));
        let outputs = [drain(stdout, streams.stdout, "stdout"), drain(stderr, streams.stderr, "stderr")];
        Ok(Running {
            control,
            ending,
            started,
            input: exec.stdin.then_some((streams.stdin, input)),
            input_error: None,
            outputs,
            terminal: exec.terminal.is_some(),
            raw,
            patience,
        })
    }

    /// Until the session has ended and all it wrote is written.
    async fn run(
        mut self,
        args: &ExecArgs,
        signals: &mut Signals,
        printer: &mut Printer,
    ) -> Result<Ended, Failure> {
        let mut known = Progress::default();
        let mut escalation = Escalation::default();
        while !known.is_over() {
            let leave_at = known.killed.map(|(_, at)| at);
            let [stdout, stderr] = &mut self.outputs;
            tokio::select! {
                // A signal that comes after the end is no longer one for the guest, and would be lost there.
                biased;
                started = &mut self.started, if !known.asked_started => {
                    known.asked_started = true;
                    known.started = started.ok();
                    self.begun(known.started.is_some())?;
                }
                end = self.ending.wait(), if known.end.is_none() => {
                    self.patience.ended();
                    known.end = Some(end);
                }
                copied = stdout, if known.copied[0].is_none() => known.copied[0] = Some(how(copied)),
                copied = stderr, if known.copied[1].is_none() => known.copied[1] = Some(how(copied)),
                error = unreadable(&mut self.input_error) => {
                    return Err(cannot("read the input")(error));
                }
                came = signals.next() => self.came(came, &mut known, &mut escalation).await?,
                overdue = self.patience.overdue() => match overdue {
                    Overdue::Answer => {
                        let cr = if self.raw.is_some() { "\r" } else { "" };
                        printer.warn(&format!("{}{cr}", unanswered(&args.name)));
                    }
                    Overdue::End => return Err(hung(args.timeout)),
                },
                () = at(leave_at) => break,
            }
        }
        if !known.asked_started {
            // It came before the end did, though not necessarily to our eyes.
            known.started = self.started.try_recv().ok();
        }
        if let Some((code, _)) = known.killed {
            return Err(Failure::Code(code));
        }
        for copied in known.copied.into_iter().flatten() {
            if let Copied::Failed(e) = copied {
                return Err(cannot("write the output")(e));
            }
        }
        Ok((known.end.unwrap_or(Err(Lost::Disconnected)), known.started))
    }

    /// The command runs, or never will.
    fn begun(&mut self, runs: bool) -> Result<(), Failure> {
        self.patience.answered();
        if let Some(raw) = self.raw.as_ref().filter(|_| runs) {
            raw.complete().map_err(cannot("make the terminal raw"))?;
        }
        if let Some((stdin, input)) = self.input.take().filter(|_| runs) {
            let error = stdio::feed(stdin, input, Passed::default()).map_err(cannot("start a thread"))?;
            self.input_error = Some(error);
        }
        Ok(())
    }

    /// Passes a signal on, or does what a second one means.
    async fn came(
        &self,
        came: Came,
        known: &mut Progress,
        escalation: &mut Escalation,
    ) -> Result<(), Failure> {
        let signal = match came {
            Came::Asked(signal) => signal,
            Came::Resized => {
                if let (true, Some(size)) = (self.terminal, terminal::size()) {
                    patiently(self.control.resize(size)).await;
                }
                return Ok(());
            }
        };
        let code = of_signal(signal);
        let leaves = [SignalKind::terminate(), SignalKind::hangup()].map(|kind| kind.as_raw_value());
        // Nothing is there to pass it on to, yet or any more; or the terminal is to be given back now. What still
        // belongs to the session is ended by the agent, once the connection is closed.
        let passes = known.asked_started && known.end.is_none() && known.killed.is_none();
        if !passes || (self.raw.is_some() && leaves.contains(&signal)) {
            return Err(Failure::Code(code));
        }
        if escalation.is_second(signal, Instant::now()) {
            patiently(self.control.kill()).await;
            known.killed = Some((code, Deadline::now() + KILL_PATIENCE));
        } else {
            patiently(self.control.signal(signal)).await;
        }
        Ok(())
    }
}

/// A connection that takes nothing any more must not keep the next signal waiting.
async fn patiently(said: impl Future<Output = ()>) {
    let _ = tokio::time::timeout(KILL_PATIENCE, said).await;
}

fn how(copied: Result<Copied, JoinError>) -> Copied {
    copied.unwrap_or_else(|e| Copied::Failed(io::Error::other(e)))
}

/// An error of reading the input, if one ever comes.
async fn unreadable(input: &mut Option<oneshot::Receiver<io::Error>>) -> io::Error {
    if let Some(receiver) = input {
        if let Ok(error) = receiver.await {
            return error;
        }
        *input = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(cause: EndCause) -> Result<(), Failure> {
        conclude(End { cause }, Some(Duration::from_millis(1500)))
    }

    #[test]
    fn each_end_has_its_exit_code() {
        let message = || "no such file: /bin/\u{1b}[2Jnope".to_owned();
        let table = [
            (EndCause::Exit { code: 0 }, 0),
            (EndCause::Exit { code: 7 }, 7),
            (EndCause::Exit { code: 255 }, 255),
            (EndCause::Signal { signal: 9 }, 137),
            (EndCause::Signal { signal: 64 }, 192),
            (EndCause::Signal { signal: i32::MAX }, 255),
            (EndCause::TimedOut, 124),
            (EndCause::Detached, 0),
            (EndCause::CouldNotStart { message: message(), hint: None }, 125),
            (EndCause::CannotExecute { message: message(), hint: None }, 126),
            (EndCause::NotFound { message: message(), hint: None }, 127),
        ];
        for (cause, code) in table {
            let told = format!("{cause:?}");
            assert_eq!(ended(cause).err().map_or(0, |failure| failure.code()), code, "{told}");
        }
    }

    #[test]
    fn what_a_guest_says_moves_no_cursor() {
        let hint = Some("\u{7}ring".to_owned());
        let cause = EndCause::NotFound { message: "no \u{1b}[2J".to_owned(), hint };
        assert_eq!(ended(cause).unwrap_err().text().unwrap(), "error: no \\u{1b}[2J\n\nhint: \\u{7}ring");
        let cause = EndCause::NotFound { message: "x".repeat(1 << 20), hint: None };
        assert!(ended(cause).unwrap_err().text().unwrap().len() < 3000);
        assert_eq!(
            ended(EndCause::TimedOut).unwrap_err().text().unwrap(),
            "error: killed, because 1s 500ms were over"
        );
    }
}

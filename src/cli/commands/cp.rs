use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use iii_archive::EntryPath;
use iii_archive::name::Spelling;
use iii_protocol::session::{End, EndCause, Layout, Task};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::args::CpArgs;
use crate::cli::context::Context;
use crate::cli::copy::{Passed, Side, local_source, side};
use crate::cli::exit::{Failure, of_signal};
use crate::cli::host_side::{self, Done, Host, Work};
use crate::cli::output::Printer;
use crate::cli::session::{self, OpenError};
use crate::cli::signals::Signals;
use crate::session::{Ending, Lost, Output, Session};

/// How long a copy takes before it is worth showing.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// How often what is shown changes.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How much of the guest's warnings is kept.
const MAX_WARNING_BYTES: usize = 16 * 1024;

/// `iii worker cp`.
pub async fn cp(ctx: &Context, args: &CpArgs, printer: &mut Printer) -> Result<(), Failure> {
    let (worker, task, host) = plan(args)?;
    refuse_terminals(&host)?;
    let mut signals =
        Signals::listen().map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")))?;
    let client = ctx.client();
    let opened = tokio::select! {
        opened = session::open(&client, &worker, task) => opened,
        signal = signals.asked() => return Err(interrupted(signal)),
    };
    let session = opened.map_err(|error| match error {
        OpenError::Client(error) => ctx.explain(error),
        error @ OpenError::TooLarge(_) => Failure::failed(error.to_string()),
    })?;
    let show = printer.err_style.terminal && !args.quiet;
    let outcome = carry(session, host, show, &mut signals).await?;
    for warning in &outcome.warnings {
        printer.warn(warning);
    }
    for line in outcome.said.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        // From the guest: nothing of it may write to the terminal.
        printer.warn(&format!("in `{worker}`: {}", EntryPath(line.to_vec())));
    }
    conclude(&worker, outcome.end, outcome.done)
}

/// The worker, what it is asked for, and what this host does meanwhile.
fn plan(args: &CpArgs) -> Result<(String, Task, Host), Failure> {
    Ok(match (side(&args.source)?, side(&args.destination)?) {
        (Side::Worker { .. }, Side::Worker { .. }) => {
            return Err(Failure::usage("both sides are workers").hint("copy to a folder of this host first"));
        }
        (Side::Worker { name, path }, Side::Stream) => (name, pack(path, args), Host::ToStdout),
        (Side::Worker { name, path }, Side::Local(to)) => {
            if args.archive && !nix::unistd::geteuid().is_root() {
                return Err(Failure::failed("only root can give files to other owners")
                    .hint("copy without `--archive`: what is copied is then yours"));
            }
            let spelling = Spelling::of(path.as_bytes());
            let contents = spelling.contents || spelling.bare == b"/";
            let asked = spelling.name().map(<[u8]>::to_vec);
            if asked.is_none() && !contents {
                return Err(Failure::usage(format!("`{path}` has no name to copy it under: write it out")));
            }
            let layout = iii_archive::Layout::As { name: asked, contents };
            let path = if spelling.bare == b"/" { "/.".to_owned() } else { path };
            (name, pack(path, args), Host::Unpack { to, layout, owners: args.archive })
        }
        (Side::Stream, Side::Worker { name, path }) => {
            (name, Task::Unpack { path, layout: Layout::Inside, owners: args.archive }, Host::FromStdin)
        }
        (Side::Local(from), Side::Worker { name, path }) => {
            let from = local_source(&from)?;
            let contents = Spelling::of(from.as_os_str().as_bytes()).contents;
            let task = Task::Unpack { path, layout: Layout::As { contents }, owners: args.archive };
            (name, task, Host::Pack { from, follow: args.follow_link })
        }
        _ => {
            return Err(Failure::usage("neither side is a worker").hint("write one of them as WORKER:PATH"));
        }
    })
}

/// An archive is nothing to read for a person, or to type.
fn refuse_terminals(host: &Host) -> Result<(), Failure> {
    match host {
        Host::ToStdout if io::stdout().is_terminal() => {
            Err(Failure::usage("a tar stream is not written to a terminal")
                .hint("redirect it to a file, or pipe it into `tar -t`"))
        }
        Host::FromStdin if io::stdin().is_terminal() => {
            Err(Failure::usage("a tar stream is not read from a terminal")
                .hint("redirect it from a file, or pipe `tar -c` into it"))
        }
        _ => Ok(()),
    }
}

fn interrupted(signal: i32) -> Failure {
    Failure::failed("interrupted").with_code(of_signal(signal))
}

fn pack(path: String, args: &CpArgs) -> Task {
    Task::Pack { path, follow: args.follow_link }
}

/// How a copy ended.
struct Outcome {
    end: Result<End, Lost>,
    done: Done,
    /// What this host left out.
    warnings: Vec<String>,
    /// What the guest said besides, a line each.
    said: Vec<u8>,
}

/// Waits for both sides, or for a signal, which is an error.
async fn carry(session: Session, host: Host, show: bool, signals: &mut Signals) -> Result<Outcome, Failure> {
    let Session { input, stdout, stderr, control: _control, started: _started, mut ending } = session;
    let passed = Passed::default();
    let shown = tokio::spawn(show_progress(passed.clone(), show));
    let said = tokio::spawn(collect(stderr));
    let reads_stdin = matches!(host, Host::FromStdin);
    let writes_files = matches!(host, Host::Unpack { .. });
    let mut work = host_side::begin(host, input, stdout, passed)
        .map_err(|e| Failure::failed(format!("the copy cannot begin: {e}")))?;
    let mut went = None;
    let end = tokio::select! {
        end = both_ends(&mut work, &mut went, &mut ending, reads_stdin) => Ok(end),
        signal = signals.asked() => Err(signal),
    };
    shown.abort();
    // Its bar clears itself when the task is gone.
    let _ = shown.await;
    // Closes what this host gave up: the guest's words end with it.
    drop(ending);
    match end {
        Ok(end) => {
            let (done, warnings) = went.unwrap_or((Done::Whole, Vec::new()));
            Ok(Outcome { end, done, warnings, said: said.await.unwrap_or_default() })
        }
        Err(signal) => {
            if writes_files && went.is_none() {
                // It sees the end of the session and takes away what is not whole; a second signal does not wait.
                tokio::select! {
                    _ = work => {}
                    _ = signals.asked() => {}
                }
            }
            Err(interrupted(signal))
        }
    }
}

/// Waits for both sides; what this host's part came to is left in `went`. One that failed by itself has the last
/// word: the session is then not waited for.
async fn both_ends(
    work: &mut Work,
    went: &mut Option<(Done, Vec<String>)>,
    ending: &mut Ending,
    reads_stdin: bool,
) -> Result<End, Lost> {
    tokio::select! {
        done = work => *went = Some(done),
        // Nobody reads our standard input any more, which may stay open for ever.
        end = ending.wait(), if reads_stdin => return end,
    }
    match went {
        Some((Done::Failed(_), _)) => Err(Lost::Disconnected),
        _ => ending.wait().await,
    }
}

/// What both sides say together.
fn conclude(worker: &str, end: Result<End, Lost>, done: Done) -> Result<(), Failure> {
    match (end.map(|end| end.cause), done) {
        (_, Done::Failed(failure)) => Err(failure),
        (Ok(EndCause::CopyFailed { message, hint } | EndCause::CouldNotStart { message, hint }), _) => {
            let failure = Failure::failed(format!("in `{worker}`: {}", EntryPath(message.into_bytes())));
            Err(match hint {
                Some(hint) => failure.hint(EntryPath(hint.into_bytes()).to_string()),
                None => failure,
            })
        }
        (_, Done::Cut(failure)) => Err(failure),
        (Ok(EndCause::Exit { code: 0 }), Done::Whole) => Ok(()),
        (Ok(cause), Done::Whole) => Err(Failure::failed(format!("the copy ended with {cause:?}"))),
        (Err(lost), Done::Whole) => Err(Failure::failed(format!("the session with `{worker}`: {lost}"))
            .hint(format!("see how it is: `iii worker status {worker}`"))),
    }
}

/// What the guest says besides, as far as it is worth keeping.
async fn collect(mut stderr: Output) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(bytes) = stderr.next().await {
        let room = MAX_WARNING_BYTES - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    kept
}

/// Shows how far a copy is that takes long; until it is aborted.
async fn show_progress(passed: Passed, wanted: bool) {
    if !wanted {
        return;
    }
    tokio::time::sleep(SHOW_AFTER).await;
    let style = ProgressStyle::with_template("  {spinner} {binary_bytes} copied, {binary_bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = Cleared(ProgressBar::new_spinner().with_style(style));
    loop {
        bar.0.set_position(passed.load(Ordering::Relaxed));
        tokio::time::sleep(SHOW_EVERY).await;
    }
}

/// A bar that leaves nothing on the terminal.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

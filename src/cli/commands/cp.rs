use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use iii_archive::name::Spelling;
use iii_archive::read::{Malformed, ReadError};
use iii_archive::unpack::{Fault, Problem};
use iii_archive::{Destination, EntryPath, PackError, PackSource, Rules};
use iii_protocol::session::{EndCause, Layout, MAX_DATA_BYTES, Task};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::SignalKind;
use tokio::task::spawn_blocking;

use crate::cli::args::CpArgs;
use crate::cli::context::Context;
use crate::cli::copy::{Passed, Side, Sink, Spring, local_source, side};
use crate::cli::exit::{Failure, of_signal};
use crate::cli::output::Printer;
use crate::cli::session::{self, OpenError};
use crate::session::{Input, Output, Session};

/// How long a copy takes before it is worth showing.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// How often what is shown changes.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How much of the guest's warnings is kept.
const MAX_WARNING_BYTES: usize = 16 * 1024;

/// `iii worker cp`.
pub async fn cp(ctx: &Context, args: &CpArgs, printer: &mut Printer) -> Result<(), Failure> {
    let both = (side(&args.source)?, side(&args.destination)?);
    let (worker, task, host) = match both {
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
    };
    let session = session::open(&ctx.client(), &worker, task).await.map_err(|error| match error {
        OpenError::Client(error) => ctx.explain(error),
        error @ OpenError::TooLarge(_) => Failure::failed(error.to_string()),
    })?;
    carry(&worker, session, host, args.quiet, printer).await
}

fn pack(path: String, args: &CpArgs) -> Task {
    Task::Pack { path, follow: args.follow_link }
}

/// What this host does.
enum Host {
    ToStdout,
    FromStdin,
    Pack { from: PathBuf, follow: bool },
    Unpack { to: PathBuf, layout: iii_archive::Layout, owners: bool },
}

/// How the host's part went.
enum Done {
    /// All of it.
    Whole,
    /// It ended early because the other side did; that one says why.
    Cut(Failure),
    /// It failed by itself.
    Failed(Failure),
}

async fn carry(
    worker: &str,
    session: Session,
    host: Host,
    quiet: bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let Session { input, stdout, stderr, control: _control, started: _started, mut ending } = session;
    let passed = Passed::default();
    let counted = passed.clone();
    let mut work = spawn_blocking(move || work(host, input, stdout, counted));
    let warned = tokio::spawn(collect(stderr));
    let show = tokio::spawn(show(passed, printer.err_style.terminal && !quiet));
    let done = tokio::select! {
        done = &mut work => Some(done),
        _ = tokio::signal::ctrl_c() => None,
    };
    show.abort();
    // Its bar clears itself when the task is gone.
    let _ = show.await;
    let Some(done) = done else {
        drop(ending);
        // It sees the end of the session and takes away what is not whole.
        let _ = work.await;
        let code = of_signal(SignalKind::interrupt().as_raw_value());
        return Err(Failure::failed("interrupted").with_code(code));
    };
    let (done, warnings) = done.map_err(|e| Failure::failed(format!("the copy failed: {e}")))?;
    for warning in warnings {
        printer.warn(&warning);
    }
    if let Done::Failed(failure) = done {
        return Err(failure);
    }
    let end = ending.wait().await;
    let warned = warned.await.unwrap_or_default();
    for line in warned.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        // From the guest: nothing of it may write to the terminal.
        printer.warn(&format!("in `{worker}`: {}", EntryPath(line.to_vec())));
    }
    match (end.map(|end| end.cause), done) {
        (Ok(EndCause::Exit { code: 0 }), Done::Whole) => Ok(()),
        (Ok(EndCause::CopyFailed { message, hint } | EndCause::CouldNotStart { message, hint }), _) => {
            let failure = Failure::failed(format!("in `{worker}`: {}", EntryPath(message.into_bytes())));
            Err(match hint {
                Some(hint) => failure.hint(EntryPath(hint.into_bytes()).to_string()),
                None => failure,
            })
        }
        (_, Done::Cut(failure) | Done::Failed(failure)) => Err(failure),
        (Ok(cause), Done::Whole) => Err(Failure::failed(format!("the copy ended with {cause:?}"))),
        (Err(lost), Done::Whole) => Err(Failure::failed(format!("the session with `{worker}`: {lost}"))
            .hint(format!("see how it is: `iii worker status {worker}`"))),
    }
}

fn work(host: Host, input: Input, output: Output, passed: Passed) -> (Done, Vec<String>) {
    let mut warnings = Vec::new();
    let local = |error: String| Failure::failed(format!("on this host: {error}"));
    let done = match host {
        Host::ToStdout => {
            let mut from = Spring { output, passed, rest: Bytes::new() };
            let mut out = io::stdout().lock();
            match io::copy(&mut from, &mut out).and_then(|_| out.flush()) {
                Ok(()) => Done::Whole,
                Err(error) => Done::Failed(error.into()),
            }
        }
        Host::FromStdin => {
            let mut to = BufWriter::with_capacity(MAX_DATA_BYTES, Sink { input, passed });
            let copied = io::copy(&mut io::stdin().lock(), &mut to).map(|_| ());
            finish(to, copied, local)
        }
        Host::Pack { from, follow } => {
            let mut to = BufWriter::with_capacity(MAX_DATA_BYTES, Sink { input, passed });
            let source = PackSource { path: &from, follow };
            match iii_archive::pack(source, &mut to, &mut |warning| warnings.push(warning)) {
                Ok(_) => finish(to, Ok(()), local),
                Err(PackError::Write(error)) => finish(to, Err(error), local),
                Err(error) => Done::Failed(local(error.to_string())),
            }
        }
        Host::Unpack { to, layout, owners } => {
            let from = Spring { output, passed, rest: Bytes::new() };
            let to = Destination { path: &to, layout, follow: false };
            // The archive is the guest's word: its devices and rights of others are not for this host.
            let rules = Rules { owners, set_ids: owners, devices: false };
            match iii_archive::unpack(from, &to, rules, &mut |warning| warnings.push(warning)) {
                Ok(_) => Done::Whole,
                Err(error) => {
                    let cut = is_cut(&error.fault);
                    let mut failure = local(error.to_string());
                    if matches!(error.fault, Fault::Destination { problem: Problem::IsLink, .. }) {
                        failure = failure.hint("write it with a `/` at its end if its folder is meant");
                    }
                    if cut { Done::Cut(failure) } else { Done::Failed(failure) }
                }
            }
        }
    };
    (done, warnings)
}

/// Sends the end of the input if all of it was sent.
fn finish(to: BufWriter<Sink>, copied: io::Result<()>, local: impl Fn(String) -> Failure) -> Done {
    let (sink, copied) = match copied {
        Ok(()) => match to.into_inner() {
            Ok(sink) => (Some(sink), Ok(())),
            Err(error) => (None, Err(error.into_error())),
        },
        Err(error) => (None, Err(error)),
    };
    match copied {
        Ok(()) => {
            // Nobody reads it any more if this fails: the end tells why.
            let _ = sink.map(|sink| sink.input.blocking_finish());
            Done::Whole
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Done::Cut(local("the worker takes no more of it".to_owned()))
        }
        Err(error) => Done::Failed(local(error.to_string())),
    }
}

/// Whether the archive ended too early, for which the guest has the reason.
fn is_cut(fault: &Fault) -> bool {
    let (Fault::Archive(problem) | Fault::Entry { problem, .. } | Fault::Destination { problem, .. }) = fault;
    matches!(problem, Problem::Empty | Problem::Read(ReadError::Malformed(Malformed::Truncated)))
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
async fn show(passed: Passed, wanted: bool) {
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

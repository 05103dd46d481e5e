//! `iii __prepare`: brings a machine's disk to where its project's workload can run.
//!
//! A process of its own, started by the shim with the VMM: it lists and compares a whole project, which takes memory
//! that an allocator does not give back, while the guest boots.
//!
//! ```text
//!   shim ── Order, a line of JSON on stdin, which stays open ─────▶ iii __prepare      lists, compares
//!        ── "held\n": the guest takes sessions ───────────────────▶                    copies, runs setup and install
//!        ◀── frames: PROGRESS, NOTE, SKIPPED, SETUP, INSTALL; at last DONE or FAILED ──
//! ```
//!
//! An edit of a watched project is brought into a running machine by another such process: the guest takes sessions
//! already, and DONE says whether anything was changed.
//!
//! What was done is noted on the host, beside the disk, and only once the guest has flushed it. Before anything is
//! changed the notes are made to say less than what is there: killed at any moment, the next start does again what
//! may be missing, and never takes half of an install for a whole one.

mod copy;
mod marker;
mod scripts;

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::BytesMut;
use iii_protocol::frame::{Frame, FrameError};
use iii_protocol::session::Task;
use iii_protocol::shim::without_last_lines;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::project::ProjectSpec;
use crate::session::{Session, open_frame, start};

/// A [`Progress`] for the worker's status.
pub const KIND_PROGRESS: u8 = 1;
/// A [`Note`] for the worker's log.
pub const KIND_NOTE: u8 = 2;
/// What `setup` wrote, raw.
pub const KIND_SETUP: u8 = 3;
/// What `install` wrote, raw.
pub const KIND_INSTALL: u8 = 4;
/// The workload can run: [`Done`]; the last frame.
pub const KIND_DONE: u8 = 5;
/// [`Failed`]; the last frame.
pub const KIND_FAILED: u8 = 6;
/// [`Skipped`]: what is not copied.
pub const KIND_SKIPPED: u8 = 7;
/// What the shim says when the guest takes sessions.
pub const HELD: &[u8] = b"held\n";
/// The marker's name there ([`crate::project::install_key`]).
pub const MARKER_NAME: &str = "installed.json";
/// The longest order that is read, bytes.
const MAX_ORDER_BYTES: u64 = 8 * 1024 * 1024;

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The worker's name, for hints.
    pub worker: String,
    /// What.
    pub project: ProjectSpec,
    /// Where the project goes in the guest.
    pub workspace: String,
    /// Where sessions of the machine are had.
    pub session_socket: PathBuf,
    /// The folder of the machine's disk and of the notes about it.
    pub notes: PathBuf,
    /// The disk is new because the base image is another one: why everything is done again.
    pub base_changed: bool,
}

/// How far it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// For people.
    pub detail: String,
}

/// Something worth a line in the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The line, without its end.
    pub text: String,
}

/// What of the project is not copied, and why. Each listing finds the same again: whoever tells of it knows what was
/// told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// A line each, without their ends.
    pub lines: Vec<String>,
}

/// The workload can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Whether a file was copied or a script was run: what runs already is older than its disk.
    pub changed: bool,
}

/// Why the workload cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// `copy`, `setup` or `install`.
    pub what: String,
    /// Why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failed {
    /// Its message on one line.
    pub fn in_short(&self) -> &str {
        without_last_lines(&self.message).lines().next().unwrap_or_default()
    }

    fn new(what: &str, message: impl Into<String>) -> Failed {
        Failed { what: what.to_owned(), message: message.into(), hint: None }
    }
}

/// Entry point of the hidden subcommand.
pub fn run() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let last = match work() {
        Ok(done) => Frame::json(KIND_DONE, &done),
        Err(failed) => Frame::json(KIND_FAILED, &failed),
    };
    // A shim that is gone needs no answer.
    match tell(&last) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work() -> Result<Done, Failed> {
    let (order, held) = read_order().map_err(|e| Failed::new("copy", format!("no order: {e}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failed::new("copy", format!("no runtime: {e}")))?;
    let survey = copy::survey(&order)?;
    let marker = marker::Kept::read(&order.notes);
    runtime.block_on(async {
        held.await.map_err(|_| Failed::new("copy", "the machine ended before its project was copied"))?;
        let copied = copy::copy(&order, survey).await?;
        let has_run = scripts::run_both(&order, copied.keys(&order.project), marker).await?;
        Ok(Done { changed: copied.changed || has_run })
    })
}

/// Reads the order; what comes after it is the word that the guest takes sessions, and at last the shim's end.
fn read_order() -> io::Result<(Order, oneshot::Receiver<()>)> {
    let mut stdin = io::BufReader::new(io::stdin());
    let mut line = Vec::new();
    (&mut stdin).take(MAX_ORDER_BYTES).read_until(b'\n', &mut line)?;
    let order = serde_json::from_slice(&line)?;
    let (sender, held) = oneshot::channel();
    std::thread::Builder::new().name("iii-parent".to_owned()).spawn(move || {
        let mut word = Vec::new();
        let read = (&mut stdin).take(HELD.len() as u64).read_until(b'\n', &mut word);
        if read.is_ok() && word == HELD {
            // Nobody waits for it any more when the work has failed.
            let _ = sender.send(());
        }
        let _end = io::copy(&mut stdin, &mut io::sink());
        // The machine ends with its shim. The notes say too little at any moment, never too much.
        std::process::exit(1);
    })?;
    Ok((order, held))
}

fn tell(frame: &Frame) -> Result<(), FrameError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&frame.to_bytes()?)?;
    stdout.flush()?;
    Ok(())
}

/// A word for the shim. One that is gone ends this process by itself.
fn say(kind: u8, value: &impl Serialize) {
    let _gone = tell(&Frame::json(kind, value));
}

fn note(text: impl Into<String>) {
    say(KIND_NOTE, &Note { text: text.into() });
}

fn progress(detail: impl Into<String>) {
    say(KIND_PROGRESS, &Progress { detail: detail.into() });
}

/// A session of the machine.
async fn session(socket: &Path, task: Task) -> io::Result<Session> {
    let open = open_frame(task).map_err(io::Error::other)?;
    start(UnixStream::connect(socket).await?, BytesMut::new(), open)
}

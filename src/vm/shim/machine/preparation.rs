//! The shim's side of `iii __prepare`: it goes along with a machine whose workload waits for its project.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use iii_protocol::exit::ExitCause;
use iii_protocol::frame::Frame;
use iii_protocol::guest;
use iii_protocol::log::Stream;
use iii_protocol::shim::MachinePhase;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::last_word::{now_ns, plain};
use super::{Agent, LONGEST_GRACE, Machine};
use crate::prepare::{
    Done, Failed, HELD, KIND_DONE, KIND_FAILED, KIND_INSTALL, KIND_NOTE, KIND_PROGRESS, KIND_SETUP,
    KIND_SKIPPED, Note, Order, Progress, Skipped,
};
use crate::project::WORKSPACE;
use crate::vm::scratch;
use crate::vm::shim::{SESSION_SOCKET, ShimSpec};
use crate::vm::wire::FrameReader;

/// Words of the process that may wait. Behind it that process waits, and behind that the script.
const NEWS_QUEUE: usize = 8;

/// What the process says.
#[derive(Debug)]
pub(super) enum News {
    /// How far it is.
    Progress(String),
    /// Worth a line in the log.
    Note(String),
    /// What of the project is not copied, a line each.
    Skipped(Vec<String>),
    /// What a script wrote.
    Output(Stream, Vec<u8>),
    /// The workload can run.
    Done(Done),
    /// It cannot; nothing more is done.
    Failed(Failed),
}

/// The process. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Preparation {
    _child: Child,
    held: Option<oneshot::Sender<()>>,
    news: mpsc::Receiver<News>,
}

/// Where the project is in the guest.
pub(super) fn workspace(spec: &ShimSpec) -> String {
    match spec.libkrunfw {
        Some(_) => WORKSPACE.to_owned(),
        None => scratch::workspace_of_process(&spec.scratch_disk).display().to_string(),
    }
}

impl Preparation {
    /// Starts it for a machine that has a project. `base_changed`: its disk is new for that reason.
    pub(super) fn start(spec: &ShimSpec, base_changed: bool) -> anyhow::Result<Option<Preparation>> {
        let Some(project) = &spec.machine.project else { return Ok(None) };
        let order = Order {
            worker: spec.machine.worker.clone(),
            project: project.clone(),
            workspace: workspace(spec),
            session_socket: spec.run_dir.join(SESSION_SOCKET),
            notes: spec.scratch_disk.parent().unwrap_or(Path::new("/")).to_owned(),
            base_changed,
        };
        let mut child = Command::new("/proc/self/exe")
            .arg0("iii")
            .arg("__prepare")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the process that copies the project")?;
        let stdin = child.stdin.take().context("its input is missing")?;
        let stdout = child.stdout.take().context("its output is missing")?;
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        let (sender, news) = mpsc::channel(NEWS_QUEUE);
        tokio::spawn(follow(FrameReader::new(stdout), sender));
        let (held, is_held) = oneshot::channel();
        tokio::spawn(pass_on(line, is_held, stdin));
        Ok(Some(Preparation { _child: child, held: Some(held), news }))
    }

    /// The guest takes sessions.
    pub(super) fn held(&mut self) {
        if let Some(held) = self.held.take() {
            // One that has ended shows by its last word, or by the lack of it.
            let _ended = held.send(());
        }
    }

    /// The next word. Never again after [`News::Done`] or [`News::Failed`].
    pub(super) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

impl Machine {
    /// The project's copy and scripts have something to tell.
    pub(super) fn on_preparation(&mut self, news: News) {
        if self.running_since.is_some() {
            return self.on_refresh(news);
        }
        match news {
            News::Progress(detail) => self.set_booting(Duration::MAX, Some(plain(&detail))),
            News::Note(text) => self.output.event(&plain(&text)),
            News::Skipped(lines) => self.tell_skipped(lines),
            News::Output(stream, bytes) => self.output.feed(stream, now_ns(), &bytes),
            News::Done(_) => {
                tracing::info!(after_ms = self.after_ms(), "the project is ready");
                self.preparation = None;
                self.output.finish();
                if !self.stop_requested {
                    let limit = Duration::from_millis(self.spec.machine.boot_timeout_ms);
                    self.kill_at = Some(Instant::now() + limit);
                    self.set_booting(limit, None);
                }
                self.say(Frame { kind: guest::KIND_GO, payload: Vec::new() });
            }
            News::Failed(Failed { what, message, hint }) => {
                tracing::warn!(what, message, "the project is not ready");
                self.preparation = None;
                self.output.finish();
                self.output.event(&plain(&message));
                let is_up = matches!(self.agent, Agent::Here(_)) && self.kill_at.is_none();
                if self.stop_requested || self.last_word.is_some() {
                    return;
                }
                let (message, hint) = (plain(&message), hint.map(|hint| plain(&hint)));
                if is_up {
                    self.set_phase(MachinePhase::Unprepared { since: Timestamp::now(), what, message, hint });
                } else {
                    // Nobody can look inside of a machine that is not up.
                    self.verdict.get_or_insert(ExitCause::CouldNotStart { what, message, hint });
                    self.kill_at = Some(Instant::now());
                }
            }
        }
    }

    /// Tells what is not copied now and was before, or was not there. Every edit lists the others again.
    pub(super) fn tell_skipped(&mut self, lines: Vec<String>) {
        for line in lines.iter().filter(|line| !self.skipped.contains(line)) {
            self.output.event(&plain(line));
        }
        self.skipped = lines;
    }

    /// Still on the way to its workload.
    pub(super) fn set_booting(&self, limit: Duration, detail: Option<String>) {
        let since = match &self.status.borrow().phase {
            MachinePhase::Booting { since, .. } => *since,
            _ => return,
        };
        let deadline = Timestamp::now() + limit.min(LONGEST_GRACE);
        self.set_phase(MachinePhase::Booting { since, deadline, detail });
    }
}

/// Hands over the order, says the word, and keeps the process's input open for as long as this shim is there. One that
/// takes neither has ended, which shows by the lack of its last word.
async fn pass_on(order: Vec<u8>, is_held: oneshot::Receiver<()>, mut stdin: ChildStdin) {
    if stdin.write_all(&order).await.is_ok() && is_held.await.is_ok() && stdin.write_all(HELD).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn follow(mut frames: FrameReader<ChildStdout>, news: mpsc::Sender<News>) {
    loop {
        let word = match frames.next().await {
            Ok(Some(frame)) => read(frame),
            Ok(None) => Err(anyhow::anyhow!(
                "it ended without a result; was it killed, or the machine out of memory?"
            )),
            Err(error) => Err(error.into()),
        };
        let word = word.unwrap_or_else(|error| {
            News::Failed(Failed {
                what: "copy".to_owned(),
                message: format!("the process that copies and installs the project: {error:#}"),
                hint: Some("start the worker again".to_owned()),
            })
        });
        let is_last = matches!(word, News::Done(_) | News::Failed(_));
        // The main loop is gone: so is the reason to tell it.
        if news.send(word).await.is_err() || is_last {
            return;
        }
    }
}

fn read(frame: Frame) -> anyhow::Result<News> {
    Ok(match frame.kind {
        KIND_PROGRESS => News::Progress(frame.parse::<Progress>()?.detail),
        KIND_NOTE => News::Note(frame.parse::<Note>()?.text),
        KIND_SKIPPED => News::Skipped(frame.parse::<Skipped>()?.lines),
        KIND_SETUP => News::Output(Stream::Setup, frame.payload),
        KIND_INSTALL => News::Output(Stream::Install, frame.payload),
        KIND_DONE => News::Done(frame.parse()?),
        KIND_FAILED => News::Failed(frame.parse()?),
        kind => anyhow::bail!("a word of unknown kind {kind}"),
    })
}
